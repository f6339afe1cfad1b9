-- Primary keys. What the user of a session may do right now; none when it is over.
select r.permissions
from sessions s
join users u on u.id = s.user_id
join roles r on r.key = u.role
where s.id = $1 and u.disabled_at is null
limit 1
