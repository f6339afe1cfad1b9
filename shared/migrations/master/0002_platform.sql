-- The platform itself: its administrators, keys, certificates, operations, nodes, and what was done.

create table system_admins (
    id uuid primary key default gen_random_uuid(),
    email text not null check (email = lower(email)),
    password_hash text not null,
    created_at timestamptz not null default now()
);
create unique index system_admins_email on system_admins (email);

create table signing_keys (
    kid text primary key,
    public_key bytea not null check (length(public_key) = 32),
    private_key bytea not null,                         -- sealed for signing_keys/<kid>
    state text not null default 'active' check (state in ('next', 'active', 'retired')),
    created_at timestamptz not null default now(),
    retired_at timestamptz
);
create unique index signing_keys_active on signing_keys (state) where state = 'active';

create function signing_keys_changed() returns trigger language plpgsql as $$
begin
    perform pg_notify('gmah_catalog', 'keys');
    return null;
end $$;
create trigger signing_keys_changed after insert or update or delete on signing_keys
    for each statement execute function signing_keys_changed();

create table certificates (
    id uuid primary key default gen_random_uuid(),
    hostname text not null,
    chain_pem text not null,
    private_key bytea not null,                         -- sealed for certificates/<id>
    not_after timestamptz not null,
    renew_at timestamptz not null,
    created_at timestamptz not null default now()
);
create index certificates_hostname on certificates (hostname, not_after desc);
create index certificates_renew_at on certificates (renew_at);

create table operations (
    id uuid primary key,
    kind text not null,
    organization_id uuid references organizations (id) on delete cascade,
    input jsonb not null,                               -- never a secret
    state text not null default 'running' check (state in ('running', 'done', 'failed', 'cancelled')),
    error text,
    actor text not null,
    created_at timestamptz not null default now(),
    finished_at timestamptz
);
create index operations_organization on operations (organization_id, created_at desc);

create table operation_steps (
    operation_id uuid not null references operations (id) on delete cascade,
    position int not null,
    name text not null,
    state text not null check (state in ('running', 'done', 'failed')),
    detail jsonb not null default '{}',
    started_at timestamptz not null default now(),
    finished_at timestamptz,
    primary key (operation_id, position)
);

create table nodes (
    id uuid primary key,
    role text not null check (role in ('router', 'api')),
    address text not null,
    version text not null,
    started_at timestamptz not null default now(),
    heartbeat_at timestamptz not null default now()
);

create table audit_log (
    id bigint generated always as identity primary key,
    at timestamptz not null default now(),
    actor text not null,
    action text not null,
    organization_id uuid,
    detail jsonb not null default '{}'
);
create index audit_log_organization on audit_log (organization_id, id desc);
