-- When each organisation's database is looked after next: letters that are left, entries that are too old. In a table of
-- its own: that somebody came by is no news of the organisation.
create table organization_chores (
    organization_id uuid primary key references organizations (id) on delete cascade,
    due_at timestamptz not null default now()
);
create index organization_chores_due on organization_chores (due_at);
insert into organization_chores (organization_id) select id from organizations;

create function organization_has_chores() returns trigger language plpgsql as $$
begin
    insert into organization_chores (organization_id) values (new.id) on conflict do nothing;
    return null;
end $$;
create trigger organization_has_chores after insert on organizations
    for each row execute function organization_has_chores();
