-- Customers' own names: how they are proven, checked again, and get certificates.

alter table organization_domains
    add column id uuid not null default gen_random_uuid() unique,
    add column nonce text not null default replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', ''),
    add column target_label text not null default 't' || replace(gen_random_uuid()::text, '-', ''),
    add column verified_at timestamptz,
    add column checked_at timestamptz,
    add column next_check_at timestamptz not null default now(),
    add column failures int not null default 0,
    add column moved_at timestamptz,
    add column claimed_at timestamptz not null default now();

create index organization_domains_due on organization_domains (next_check_at) where status not in ('removed', 'failed');

-- A name that has moved is still served for a while, so it is still held.
drop index organization_domains_held;
create unique index organization_domains_held on organization_domains (hostname)
    where status in ('verified', 'active', 'moved');

-- Readers hear of a name only when what they hold of it changed, not whenever it was looked at: an entry that was ended
-- is not served while the master is away.
drop trigger organization_domains_changed on organization_domains;
create trigger organization_domains_made_or_gone after insert or delete on organization_domains
    for each row execute function organization_part_changed();
create trigger organization_domains_changed after update on organization_domains for each row
    when ((old.status, old.hostname, old.organization_id) is distinct from (new.status, new.hostname, new.organization_id))
    execute function organization_part_changed();

alter table certificates
    add column domain_id uuid references organization_domains (id) on delete cascade,
    add column order_id uuid,
    add column renewal_checked_at timestamptz not null default now();
-- private_key is sealed for certificates/<domain_id>.
create index certificates_domain on certificates (domain_id, created_at desc);

-- One row per name that is to have a certificate: who is at it, and when it is tried again.
create table certificate_orders (
    domain_id uuid primary key references organization_domains (id) on delete cascade,
    holder uuid,
    held_until timestamptz,
    fence bigint not null default 0,                    -- raised with every holder; an older one writes nothing
    attempts int not null default 0,
    due_at timestamptz not null default now(),
    last_error text
);
create index certificate_orders_due on certificate_orders (due_at);

-- What was ordered, for the budget of the account.
create table acme_orders (
    id uuid primary key default gen_random_uuid(),
    at timestamptz not null default now(),
    hostname text not null
);
create index acme_orders_at on acme_orders (at);

create table acme_accounts (
    directory text primary key,
    credentials bytea not null,                         -- sealed for acme_accounts/<directory>
    paused_until timestamptz,                           -- the authority asked to be left alone
    created_at timestamptz not null default now()
);

-- Proofs that any router must be able to show.
create table acme_challenges (
    hostname text not null,
    token text not null check (token ~ '^[A-Za-z0-9_-]+$' and length(token) between 8 and 256),
    kind text not null check (kind in ('http-01', 'tls-alpn-01')),
    key_authorization text not null,
    expires_at timestamptz not null,
    primary key (hostname, token)
);

-- Keys of session tickets are derived from these, so that any router can resume what another began.
create table ticket_secrets (
    id bigint generated always as identity primary key,
    secret bytea not null,                              -- sealed for ticket_secrets
    created_at timestamptz not null default now()
);

create function edge_part_changed() returns trigger language plpgsql as $$
begin
    perform pg_notify('gmah_catalog', tg_argv[0]);
    return null;
end $$;
create trigger acme_challenges_changed after insert or update or delete on acme_challenges
    for each statement execute function edge_part_changed('challenges');
create trigger ticket_secrets_changed after insert or delete on ticket_secrets
    for each statement execute function edge_part_changed('tickets');
create trigger certificate_orders_changed after insert on certificate_orders
    for each statement execute function edge_part_changed('orders');

-- A certificate belongs to an organisation, whose entries are read again when it changes.
create function certificates_changed() returns trigger language plpgsql as $$
begin
    update organizations set revision = revision where id = (
        select organization_id from organization_domains where id = coalesce(new.domain_id, old.domain_id));
    return null;
end $$;
create trigger certificates_changed after insert or update or delete on certificates
    for each row execute function certificates_changed();

