-- Exchanging the platform's keys while everything runs.

-- What keys for other purposes (cursors, proofs of pages, requests under an Idempotency-Key) are derived from. It outlives
-- an exchange of the master key, which seals it anew.
create table platform_secrets (
    name text primary key,
    secret bytea not null                               -- sealed for platform_secrets/<name>
);

-- Master keys that were made here; the keys themselves are in a file, or a variable, of every node.
create table master_keys (
    id text primary key check (id ~ '^[0-9a-f]{8}$'),
    created_at timestamptz not null default now(),
    done_at timestamptz                                 -- since when nothing in here is sealed with an older one
);

-- Which keys each node knows: none is used that somebody does not.
create table key_holders (
    node_id uuid primary key,
    role text not null check (role in ('router', 'api')),
    address text not null,                              -- for people
    master_keys text[] not null,                        -- ids; the first seals
    signing_keys text[] not null,                       -- key ids that it verifies, or publishes
    seen_at timestamptz not null default now()
);
create index key_holders_seen_at on key_holders (seen_at);
