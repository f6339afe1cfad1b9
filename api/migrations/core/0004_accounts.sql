-- Accounts: letters to their owners, links that work once, keys for programs, and a second factor.

-- Letters are written in the transaction that is their reason, and sent by whoever comes by.
create table outbox (
    id uuid primary key,                                -- version 7; the Message-ID is made of it
    recipient text not null check (length(recipient) <= 254),
    subject text not null check (length(subject) between 1 and 300),
    body bytea not null,                                -- sealed for (outbox, body, id): links are in it
    created_at timestamptz not null default now(),
    expires_at timestamptz not null,                    -- after it nobody has a use for it
    next_attempt_at timestamptz not null default now(), -- moved on by whoever takes it
    attempts int not null default 0,
    last_error text check (length(last_error) <= 500)
);
create index outbox_next_attempt on outbox (next_attempt_at);

-- One of a kind for each user: a new one is the end of the one before.
create table account_links (
    user_id uuid not null references users (id) on delete cascade,
    purpose text not null check (purpose in ('invitation', 'reset')),
    hash bytea not null unique check (length(hash) = 32),
    expires_at timestamptz not null,
    created_at timestamptz not null default now(),
    primary key (user_id, purpose)
);

-- What a program may do in a user's name: what the scopes say, and never more than the user.
create table api_keys (
    id uuid primary key,
    user_id uuid not null references users (id) on delete cascade,
    name text not null check (length(name) between 1 and 100),
    hash bytea not null unique check (length(hash) = 32),
    scopes text[] not null check (cardinality(scopes) between 1 and 200),
    generation bigint not null,
    created_at timestamptz not null default now(),
    expires_at timestamptz,
    last_used_at timestamptz
);
create index api_keys_user on api_keys (user_id);

-- Time-based one-time passwords (RFC 6238). The secret is sealed for (user_totp, secret, user_id).
create table user_totp (
    user_id uuid primary key references users (id) on delete cascade,
    secret bytea not null,
    confirmed_at timestamptz,                           -- null: begun, and not asked for yet
    last_step bigint not null default 0,                -- of the code that was used last: none is used twice
    created_at timestamptz not null default now()
);
create table recovery_codes (
    user_id uuid not null references user_totp (user_id) on delete cascade,
    hash bytea not null check (length(hash) = 32),
    primary key (user_id, hash)
);

-- Answers that are kept for repeated requests are sealed for (idempotency_keys, answer, place): they hold what is sealed
-- elsewhere.
alter table idempotency_keys
    add column place uuid not null default gen_random_uuid(),
    add column answer bytea,
    alter column body drop not null;
create unique index idempotency_keys_place on idempotency_keys (place);
