-- Index: outbox_next_attempt.
update outbox set next_attempt_at = now() + interval '5 minutes', attempts = attempts + 1
where id = (
    select id from outbox
    where next_attempt_at <= now() and expires_at > now()
    order by next_attempt_at
    limit 1
    for update skip locked)
returning id, recipient, subject, body, attempts
