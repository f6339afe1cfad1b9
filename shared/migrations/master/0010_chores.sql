-- When each organisation's database is looked after next: letters that are left, entries that are too old. In a table of
-- its own: that somebody came by is no news of the organisation.
create table organization_chores (
    organization_id uuid primary key references organizations (id) on delete cascade,
    -- A new one has nothing to look after yet.
    due_at timestamptz not null default now() + interval '10 minutes'
);
create index organization_chores_due on organization_chores (due_at);
insert into organization_chores (organization_id, due_at)
select id, now() + random() * interval '10 minutes' from organizations;

create function organization_has_chores() returns trigger language plpgsql as $$
begin
    insert into organization_chores (organization_id) values (new.id) on conflict do nothing;
    return null;
end $$;
create trigger organization_has_chores after insert on organizations
    for each row execute function organization_has_chores();
