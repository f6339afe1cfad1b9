-- Unique index of account_links, primary key of users. Of two who use a link at once the second waits, and finds none.
with used as (
    delete from account_links l
    using users u
    where l.hash = $1 and l.expires_at > now() and u.id = l.user_id and u.disabled_at is null
    returning u.id, u.email)
select id, email from used
