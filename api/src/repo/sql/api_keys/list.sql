-- Index: api_keys_user.
select id, user_id, name, scopes, created_at, expires_at, last_used_at
from api_keys
where user_id = $1
order by id
limit 200
