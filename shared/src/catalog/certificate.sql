-- organization_domains_held, then certificates_domain.
select o.id, o.revision, d.id as domain_id, c.chain_pem, c.private_key
from organization_domains d
join organizations o on o.id = d.organization_id
join lateral (
    select c.chain_pem, c.private_key from certificates c
    where c.domain_id = d.id order by c.created_at desc limit 1) c on true
where d.hostname = $1 and d.status in ('verified', 'active', 'moved') and o.status <> 'deleted'
