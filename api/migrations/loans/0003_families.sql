-- Families: members who belong together.
create table families (
    id uuid primary key,
    name text not null check (length(name) between 1 and 200),
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);
alter table members add column family_id uuid references families (id);
create index members_family on members (family_id, id);
create index loans_status on loans (status, id);
