-- What one organisation has of its own: an index, a table of its integration. It runs after the modules' migrations, as the set
-- `own`, and like those it is never changed once it is here.
create table organization_migrations (
    organization_id uuid not null references organizations (id) on delete cascade,
    version int not null check (version between 1 and 9999),
    name text not null check (name ~ '^[a-z0-9_]{1,60}$'),
    sql text not null check (length(sql) between 1 and 1048576),
    created_by text not null,
    created_at timestamptz not null default now(),
    primary key (organization_id, version)
);
