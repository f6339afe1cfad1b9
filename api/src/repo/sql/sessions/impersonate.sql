-- Index: users_email, users_role. In the name of the user who was asked for, or of the administrator who was there first.
-- Never longer than a quarter of an hour, and nothing renews it.
with u as (
    select id, email from users
    where disabled_at is null and case when $1::text is null then role = 'administrator' else email = $1 end
    order by created_at, id limit 1),
made as (
    insert into sessions (id, user_id, access_hash, access_expires_at, refresh_hash, refresh_expires_at, address, user_agent,
        generation, impersonator)
    select $2, id, $3, now() + interval '15 minutes', $4, now() + interval '15 minutes', $5, $6, $7, $8 from u)
select id, email from u
