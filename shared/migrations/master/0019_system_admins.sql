-- Administrators of the platform: what each may do, how they log in, and where they acted as somebody else.
alter table system_admins
    add column role text not null default 'owner' check (role in ('owner', 'operator', 'support', 'read_only')),
    add column disabled_at timestamptz,
    add column updated_at timestamptz not null default now(),
    add column totp_secret bytea,                       -- sealed for system_admins/<id>/totp
    add column totp_confirmed_at timestamptz,           -- null: begun, and not asked for yet
    add column totp_last_step bigint not null default 0; -- of the code that was used last: none is used twice

create table system_sessions (
    id uuid primary key,
    admin_id uuid not null references system_admins (id) on delete cascade,
    token_hash bytea not null unique check (length(token_hash) = 32),
    address text check (length(address) <= 45),
    user_agent text check (length(user_agent) <= 200),
    created_at timestamptz not null default now(),
    used_at timestamptz not null default now(),
    expires_at timestamptz not null
);
create index system_sessions_admin on system_sessions (admin_id);
create index system_sessions_expires_at on system_sessions (expires_at);
