-- One that was begun and never confirmed gives way.
insert into user_totp (user_id, secret)
values ($1, $2)
on conflict (user_id) do update set secret = excluded.secret, last_step = 0, created_at = now()
    where user_totp.confirmed_at is null
