-- Primary keys. A token that was exchanged comes again: somebody has a copy, and nobody knows who. From the same client
-- within a few seconds it is an answer that was lost, or two requests at once.
delete from sessions
where id = (
    select session_id from refresh_tokens_used
    where hash = $1
      and not (used_at > now() - interval '10 seconds'
               and address is not distinct from $2 and user_agent is not distinct from $3))
