-- Primary key.
select request_hash, status, place, answer, body
from idempotency_keys
where user_id = $1 and key = $2
limit 1
