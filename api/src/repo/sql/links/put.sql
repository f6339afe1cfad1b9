insert into account_links (user_id, purpose, hash, expires_at)
values ($1, $2, $3, $4)
on conflict (user_id, purpose)
    do update set hash = excluded.hash, expires_at = excluded.expires_at, created_at = now()
