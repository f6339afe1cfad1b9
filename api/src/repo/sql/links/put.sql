-- Primary key. Who asks for others' letters again and again does not end the links that these have.
insert into account_links (user_id, purpose, hash, expires_at)
values ($1, $2, $3, $4)
on conflict (user_id, purpose)
    do update set hash = excluded.hash, expires_at = excluded.expires_at, created_at = now()
    where account_links.expires_at < now()
       or account_links.created_at < now() - case $2 when 'reset' then interval '10 minutes' else interval '1 minute' end
