-- Backups of organisations, and databases that an organisation has left.

create table backups (
    id uuid primary key,
    organization_id uuid not null references organizations (id),
    slug text not null,                                 -- as it was
    operation_id uuid not null unique,                  -- that made it
    state text not null default 'running' check (state in ('running', 'done', 'failed', 'removed')),
    manifest jsonb,                                     -- as it lies beside the backup
    sha256 bytea check (length(sha256) = 32),           -- of the dump as it is stored: encrypted
    size_bytes bigint,                                  -- of the dump and of the files that it was the first to bring
    error text,
    created_at timestamptz not null default now(),      -- of what is in it
    finished_at timestamptz,
    verified_at timestamptz,                            -- when it was last restored for a trial
    verification text,                                  -- null: well; otherwise what was not
    removed_at timestamptz                              -- since when nothing of it lies in the store; removed before
);
create index backups_unremoved on backups (organization_id) where state = 'removed' and removed_at is null;
create index backups_organization on backups (organization_id, created_at desc);
create index backups_newest on backups (created_at desc, id desc);

-- A database that an organisation was moved away from, fenced, and kept for a while.
create table organization_placements (
    id uuid primary key default gen_random_uuid(),
    organization_id uuid not null references organizations (id),
    placement int not null,
    server_id uuid not null references database_servers (id),
    database_name text not null,
    reason text not null,                               -- the kind of the operation that replaced it
    kept_until timestamptz not null,
    created_at timestamptz not null default now(),
    unique (organization_id, placement)
);
create index organization_placements_server on organization_placements (server_id);
