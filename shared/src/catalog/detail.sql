-- Primary keys of organizations, plans, database_servers organization_features and organization_keys.
select o.id, o.slug, o.status, o.generation, o.revision, o.name, o.plan, o.settings, o.limits,
       coalesce((o.limits ->> 'members')::bigint, p.max_members::bigint) as max_members,
       coalesce((o.limits ->> 'users')::bigint, p.max_users::bigint) as max_users,
       coalesce((o.limits ->> 'storage_bytes')::bigint, p.max_storage_bytes) as max_storage_bytes,
       o.sessions_since, o.database_name, o.role_name, o.role_password, o.role_password_next, o.placement,
       s.name as server, s.host, s.port, s.tls, s.tls_ca,
       r.name as replica, r.host as replica_host, r.port as replica_port, r.tls as replica_tls, r.tls_ca as replica_tls_ca,
       array(select f.module from organization_features f
             where f.organization_id = o.id and f.enabled order by f.module) as modules,
       array(select k.secrets from organization_keys k
             where k.organization_id = o.id
             order by k.seals_from <= now() desc, k.version desc limit 8) as data_keys
from organizations o
join plans p on p.key = o.plan
join database_servers s on s.id = o.server_id
-- Of several copies each organisation has its own.
left join lateral (select * from database_servers c where c.replica_of = s.id
                   order by md5(c.name || o.id::text) limit 1) r on true
where o.id = $1 and o.status <> 'deleted'
