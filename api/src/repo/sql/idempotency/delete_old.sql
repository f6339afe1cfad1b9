-- Index: idempotency_keys_created, then the primary key.
delete from idempotency_keys
where (user_id, key) in (
    select user_id, key from idempotency_keys
    where created_at < now() - interval '24 hours'
    order by created_at
    limit 5000
    for update skip locked)
