-- Index: sessions_user.
select id, created_at, used_at, address, user_agent, impersonator
from sessions
where user_id = $1 and refresh_expires_at > now() and generation >= $2
order by id
limit 200
