-- Index: sessions_refresh. One statement: of two exchanges of the same token one finds it. The old one is remembered, and
-- who exchanged it.
with exchanged as (
    update sessions s
    set access_hash = $2, access_expires_at = $3, refresh_hash = $4, refresh_expires_at = $5, used_at = now()
    from users u
    where s.refresh_hash = $1 and s.refresh_expires_at > now() and s.generation >= $6
      and u.id = s.user_id and u.disabled_at is null
    returning s.id)
insert into refresh_tokens_used (hash, session_id, address, user_agent)
select $1, id, $7, $8 from exchanged
returning session_id
