-- Index: primary key, or audit_log_entity, audit_log_actor. Backwards: what was done last is asked for first.
select id, at, actor_id, actor, impersonator, action, entity_id, before, after, request_id, address
from audit_log
where id < $1
  and ($3::uuid is null or actor_id = $3)
  and ($4::text is null or action = $4)
  and ($5::text is null or entity_id = $5)
order by id desc
limit $2
