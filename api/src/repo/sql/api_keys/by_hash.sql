-- Unique index of api_keys, then the primary keys of users and roles.
select k.id as key_id, k.name as key_name, k.scopes,
       k.last_used_at is null or k.last_used_at < now() - interval '1 minute' as is_stale,
       u.id, u.email, u.name, u.role, false as disabled, u.created_at, u.updated_at, r.permissions
from api_keys k
join users u on u.id = k.user_id
join roles r on r.key = u.role
where k.hash = $1 and (k.expires_at is null or k.expires_at > now()) and k.generation >= $2 and u.disabled_at is null
limit 1
