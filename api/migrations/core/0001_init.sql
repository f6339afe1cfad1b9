-- Every organisation: proof of identity, users, sessions, idempotency keys.

-- Only the platform creates objects here; the organisation's role owns the database but not the schema, so that
-- nothing which reaches SQL through the api can drop or replace a table.
do $$
begin
    execute format('alter schema public owner to %I', current_user);
end $$;
revoke all on schema public from public;
grant usage on schema public to gmah_tenant;
alter default privileges in schema public grant select, insert, update, delete on tables to gmah_tenant;
alter default privileges in schema public grant usage, select on sequences to gmah_tenant;

-- What other databases, roles and sessions the server has is nobody's business here.
do $$
begin
    if current_setting('is_superuser') = 'on' then
        revoke select on pg_catalog.pg_database, pg_catalog.pg_roles, pg_catalog.pg_user, pg_catalog.pg_shadow,
            pg_catalog.pg_group, pg_catalog.pg_stat_activity, pg_catalog.pg_stat_database, pg_catalog.pg_authid,
            pg_catalog.pg_auth_members, pg_catalog.pg_db_role_setting, pg_catalog.pg_stat_database_conflicts,
            pg_catalog.pg_shdescription, pg_catalog.pg_stat_replication, pg_catalog.pg_stat_ssl from public;
        revoke execute on function pg_catalog.pg_stat_get_activity(integer) from public;
    end if;
end $$;

-- The right-database proof. The organisation's role may read it and no more.
create table gmah_identity (
    organization_id uuid not null,
    placement int not null check (placement > 0),
    tombstoned_at timestamptz
);
create unique index gmah_identity_one_row on gmah_identity ((true));
revoke insert, update, delete on gmah_identity from gmah_tenant;

create table users (
    id uuid primary key,
    email text not null check (email = lower(email) and length(email) <= 254),
    name text not null check (length(name) between 1 and 200),
    role text not null check (role in ('administrator', 'manager', 'member', 'read_only')),
    password_hash text,                                 -- null: invited, no password yet
    disabled_at timestamptz,
    created_at timestamptz not null default now()
);
create unique index users_email on users (email);

create table sessions (
    id uuid primary key,
    user_id uuid not null references users (id) on delete cascade,
    access_hash bytea not null check (length(access_hash) = 32),
    access_expires_at timestamptz not null,
    refresh_hash bytea not null check (length(refresh_hash) = 32),
    refresh_expires_at timestamptz not null,
    created_at timestamptz not null default now()
);
create unique index sessions_access on sessions (access_hash);
create unique index sessions_refresh on sessions (refresh_hash);
create index sessions_user on sessions (user_id);
create index sessions_expiry on sessions (refresh_expires_at);

create table idempotency_keys (
    user_id uuid not null references users (id) on delete cascade,
    key text not null check (length(key) between 1 and 255),
    request_hash bytea not null check (length(request_hash) = 32),
    status int not null,
    body jsonb not null,
    created_at timestamptz not null default now(),
    primary key (user_id, key)
);
create index idempotency_keys_created on idempotency_keys (created_at);
