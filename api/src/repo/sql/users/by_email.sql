-- Index: users_email.
select id, email, name, role, password_hash
from users
where email = $1 and disabled_at is null
limit 1
