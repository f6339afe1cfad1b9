-- Index: primary key.
select u.id, u.email, u.name, u.role, u.disabled_at is not null as disabled, u.created_at, u.updated_at, r.permissions
from users u
join roles r on r.key = u.role
where u.id > $1
order by u.id
limit $2
