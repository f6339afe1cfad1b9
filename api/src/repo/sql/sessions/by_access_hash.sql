-- Index: sessions_access, then the primary key of users.
select s.id as session_id, u.id, u.email, u.name, u.role
from sessions s
join users u on u.id = s.user_id
where s.access_hash = $1 and s.access_expires_at > now() and u.disabled_at is null
limit 1
