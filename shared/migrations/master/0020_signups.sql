-- People who want an organisation: what they asked for, until they have shown that the address is theirs, and a day longer.
create table signups (
    id uuid primary key,
    token_hash bytea not null unique check (length(token_hash) = 32),
    email text not null check (length(email) <= 254),
    name text not null check (length(name) between 1 and 200),
    slug text not null check (length(slug) <= 63),
    plan text not null references plans (key),
    language text not null check (length(language) <= 8),
    network text not null check (length(network) <= 64),   -- of whoever asked
    created_at timestamptz not null default now(),
    expires_at timestamptz not null,
    confirmed_at timestamptz,                               -- somebody is making it, or has made it
    failure text                                            -- why it was not made, for people
);
create index signups_created_at on signups (created_at);
create index operations_actor on operations (actor, created_at desc);
create index operations_finished_at on operations (finished_at) where state <> 'running';
