-- Organisations: who they are, where their database is, under which names they are reached.

create sequence catalog_revision;

create table plans (
    key text primary key check (key ~ '^[a-z][a-z0-9_]*$'),
    name text not null,
    price_cents int check (price_cents >= 0),          -- a month; null: by quote
    currency char(3) not null default 'EUR',
    max_members int check (max_members > 0),            -- null: unlimited
    position int not null unique
);

insert into plans (key, name, price_cents, max_members, position) values
    ('starter', 'Starter', 0, 50, 1),
    ('community', 'Community', 4900, 500, 2),
    ('professional', 'Professional', 14900, 2000, 3),
    ('enterprise', 'Enterprise', null, null, 4);

create table database_servers (
    id uuid primary key default gen_random_uuid(),
    name text not null unique check (name ~ '^[a-z][a-z0-9-]{0,62}$'),
    host text not null,
    port int not null check (port between 1 and 65535),
    admin_user text not null,
    admin_password bytea,                               -- sealed; null: none needed
    max_databases int not null default 1000 check (max_databases > 0),
    created_at timestamptz not null default now()
);

create table organizations (
    id uuid primary key,
    slug text not null check (slug ~ '^[a-z][a-z0-9-]{1,48}[a-z0-9]$' and slug !~ '--'),
    name text not null check (length(name) between 1 and 200),
    domain text,                                        -- main custom domain, if any
    status text not null default 'provisioning'
        check (status in ('provisioning', 'active', 'suspended', 'maintenance', 'deleted')),
    status_reason text,
    plan text not null references plans (key),
    settings jsonb not null default '{}',
    limits jsonb not null default '{}',                 -- overrides of the plan's numbers
    server_id uuid not null references database_servers (id),
    database_name text not null check (length(database_name) <= 63),
    role_name text not null check (length(role_name) <= 63),
    role_password bytea not null,                       -- sealed for organizations/<id>/role
    placement int not null default 1 check (placement > 0),
    generation bigint not null default 1,
    revision bigint not null default nextval('catalog_revision'),
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);

-- A slug is free again once its organisation is deleted; the id never is.
create unique index organizations_slug on organizations (slug) where status <> 'deleted';
create unique index organizations_database on organizations (server_id, database_name) where status <> 'deleted';

create table organization_domains (
    hostname text not null check (hostname = lower(hostname) and hostname !~ '[^a-z0-9.-]' and hostname !~ '\.$'),
    organization_id uuid not null references organizations (id) on delete cascade,
    status text not null default 'pending'
        check (status in ('pending', 'verified', 'active', 'moved', 'removed', 'failed')),
    reason text,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    primary key (hostname, organization_id)
);

-- Two may claim a name; one at most holds it.
create unique index organization_domains_held on organization_domains (hostname)
    where status in ('verified', 'active');

create table organization_features (
    organization_id uuid not null references organizations (id) on delete cascade,
    module text not null check (module ~ '^[a-z][a-z0-9_]*$'),
    enabled boolean not null default true,
    updated_at timestamptz not null default now(),
    primary key (organization_id, module)
);

-- Every change raises the revision; a change of placement or status raises the generation as well, and readers hear
-- of it once per transaction (PostgreSQL folds equal notices of one transaction into one).
create function organizations_changed() returns trigger language plpgsql as $$
begin
    if tg_op = 'UPDATE' then
        new.revision := nextval('catalog_revision');
        new.updated_at := now();
        new.generation := old.generation;
        if (new.status, new.placement, new.server_id, new.database_name)
           is distinct from (old.status, old.placement, old.server_id, old.database_name) then
            new.generation := old.generation + 1;
        end if;
    end if;
    perform pg_notify('gmah_catalog', new.id::text);
    return new;
end $$;

create trigger organizations_changed before insert or update on organizations
    for each row execute function organizations_changed();

create function organization_part_changed() returns trigger language plpgsql as $$
begin
    -- Both, where a row went from one to another: the one that lost it must hear of it too.
    update organizations set revision = revision where id in (new.organization_id, old.organization_id);
    return null;
end $$;

create trigger organization_domains_changed after insert or update or delete on organization_domains
    for each row execute function organization_part_changed();
create trigger organization_features_changed after insert or update or delete on organization_features
    for each row execute function organization_part_changed();

-- A server that moved concerns all its organisations; a plan all of its subscribers: readers start over.
create function catalog_changed() returns trigger language plpgsql as $$
begin
    perform pg_notify('gmah_catalog', '*');
    return null;
end $$;

create trigger database_servers_changed after update of host, port on database_servers
    for each statement execute function catalog_changed();
create trigger plans_changed after update on plans
    for each statement execute function catalog_changed();
