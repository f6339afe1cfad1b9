-- Index: idempotency_keys_created, then the primary key. Keys are kept for a day; a few of this user's go at a time,
-- skipping those that somebody else is clearing away.
delete from idempotency_keys
where (user_id, key) in (
    select user_id, key from idempotency_keys
    where created_at < now() - interval '24 hours' and user_id = $1
    order by created_at
    limit 20
    for update skip locked)
