-- Primary key. `body` is for nodes of the version before, which read it. Waits for another transaction that claims the same key.
insert into idempotency_keys (user_id, key, request_hash, status, place, body)
values ($1, $2, $3, 0, $4, '{}')
on conflict (user_id, key) do nothing
