-- Index: users_role. With the lock of the caller, how many are left who may do everything and can log in; two are enough
-- to know.
select count(*) from (
    select 1 from users
    where role = 'administrator' and disabled_at is null and password_hash is not null
    limit 2) a
