-- organization_domains_held, then the primary keys of organizations and plans.
select o.id, o.slug, o.status, o.generation, o.revision, o.name, o.limits, o.settings -> 'branding' as branding, o.pools,
       o.maintenance_mode, o.maintenance_retry_after, o.maintenance_bypass, o.maintenance_hold_seconds,
       o.maintenance_hold_requests,
       p.requests_per_second, p.request_burst, p.concurrent_requests, p.max_body_bytes, p.weight
from organization_domains d
join organizations o on o.id = d.organization_id
join plans p on p.key = o.plan
where d.hostname = $1 and d.status in ('active', 'moved') and o.status <> 'deleted'
