-- Index: outbox_next_attempt.
select extract(epoch from next_attempt_at - now())::float8
from outbox
where expires_at > now()
order by next_attempt_at
limit 1
