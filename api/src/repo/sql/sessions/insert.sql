insert into sessions (id, user_id, access_hash, access_expires_at, refresh_hash, refresh_expires_at)
values ($1, $2, $3, $4, $5, $6)
