-- organizations_slug, then the primary key of plans.
select o.id, o.slug, o.status, o.generation, o.revision, o.name, o.limits, o.settings -> 'branding' as branding, o.pools,
       o.maintenance_mode, o.maintenance_retry_after, o.maintenance_bypass, o.maintenance_hold_seconds,
       o.maintenance_hold_requests,
       p.requests_per_second, p.request_burst, p.concurrent_requests, p.max_body_bytes, p.weight
from organizations o
join plans p on p.key = o.plan
where o.slug = $1 and o.status <> 'deleted'
