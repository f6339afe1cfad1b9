-- Index: idempotency_keys_place.
update idempotency_keys set status = $2, answer = $3
where place = $1
