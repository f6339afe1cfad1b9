-- Index: api_keys_user.
insert into api_keys (id, user_id, name, hash, scopes, generation, expires_at)
select $1, $2, $3, $4, $5, $6, $7
where (select count(*) from api_keys where user_id = $2) < $8
returning id, user_id, name, scopes, created_at, expires_at, last_used_at
