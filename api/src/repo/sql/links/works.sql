-- Unique index of account_links, primary key of users.
select 1
from account_links l
join users u on u.id = l.user_id
where l.hash = $1 and l.expires_at > now() and u.disabled_at is null
limit 1
