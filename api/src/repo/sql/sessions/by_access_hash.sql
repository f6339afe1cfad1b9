-- Index: sessions_access, then the primary keys of users and roles.
select s.id as session_id, s.impersonator, u.id, u.email, u.name, u.role, false as disabled, u.created_at, u.updated_at, r.permissions
from sessions s
join users u on u.id = s.user_id
join roles r on r.key = u.role
where s.access_hash = $1 and s.access_expires_at > now() and s.generation >= $2 and u.disabled_at is null
limit 1
