-- Primary key.
update idempotency_keys set status = $3, body = $4
where user_id = $1 and key = $2
