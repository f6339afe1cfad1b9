-- Index: audit_log_at for the newest entry.
select (select count(*) from users where disabled_at is null),
    (select coalesce(sum(size), 0)::bigint from files where state <> 'deleted'),
    greatest((select max(at) from audit_log), (select max(used_at) from sessions),
        (select max(last_used_at) from api_keys))
