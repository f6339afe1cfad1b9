delete from api_keys
where user_id = $1 and id = $2
returning id, user_id, name, scopes, created_at, expires_at, last_used_at
