-- Primary key of users. Only for the user that the password was checked of: one that was changed, disabled or given
-- another role or password meanwhile has to log in again. The lock waits for such a change, and sees it.
insert into sessions (id, user_id, access_hash, access_expires_at, refresh_hash, refresh_expires_at, address, user_agent, generation)
select $1, u.id, $3, $4, $5, $6, $7, $8, $9
from users u
where u.id = $2 and u.disabled_at is null and u.role = $10 and u.password_hash is not distinct from $11
for share of u
