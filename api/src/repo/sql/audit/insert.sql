insert into audit_log (id, actor_id, actor, action, entity_id, before, after, request_id, address, impersonator)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
