-- What was done, by whom: written in the transaction that does it. The organisation's role may add and read; only the
-- platform removes what is too old.

create table audit_log (
    id uuid primary key,                                -- version 7: in order of time
    at timestamptz not null default now(),
    actor_id uuid,                                      -- no reference: an entry outlives its user
    actor text not null check (length(actor) between 1 and 254),
    impersonator text check (length(impersonator) <= 254),
    action text not null check (length(action) between 1 and 100),
    entity_id text check (length(entity_id) <= 200),
    before jsonb,
    after jsonb,
    request_id text check (length(request_id) <= 64),
    address text check (length(address) <= 45)
);
create index audit_log_entity on audit_log (entity_id, id);
create index audit_log_action on audit_log (action, id);
create index audit_log_actor on audit_log (actor_id, id);
create index audit_log_at on audit_log (at);

create function audit_log_stays() returns trigger language plpgsql as $$
begin
    raise exception 'what was done is not written anew' using errcode = 'restrict_violation';
end $$;
create trigger audit_log_stays before update on audit_log for each row execute function audit_log_stays();
revoke update, delete on audit_log from gmah_tenant;

-- A few at a time, and never what is younger than thirty days.
create function audit_log_expire(keep_days int, most int) returns bigint
language sql security definer set search_path = pg_catalog, pg_temp as $$
    with old as (
        select id from public.audit_log
        where at < now() - make_interval(days => greatest(keep_days, 30))
        order by at limit most),
    gone as (delete from public.audit_log where id in (select id from old) returning 1)
    select count(*) from gone
$$;
revoke all on function audit_log_expire(int, int) from public;
grant execute on function audit_log_expire(int, int) to gmah_tenant;
