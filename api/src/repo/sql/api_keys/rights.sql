-- Primary keys. What a key may do right now; none when it is over.
select r.permissions, k.scopes
from api_keys k
join users u on u.id = k.user_id
join roles r on r.key = u.role
where k.id = $1 and (k.expires_at is null or k.expires_at > now()) and u.disabled_at is null
limit 1
