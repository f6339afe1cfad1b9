-- Rights: roles with permissions, of which an organisation may have its own; where sessions come from, and what became
-- of their refresh tokens.

create table roles (
    key text primary key check (key ~ '^[a-z][a-z0-9_]{0,62}$'),
    title text not null check (length(title) between 1 and 100),
    permissions text[] not null check (cardinality(permissions) <= 200),
    is_builtin boolean not null default false,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);

-- `*` is everything, `members.*` all about members, `*.read` reading of everything.
insert into roles (key, title, permissions, is_builtin) values
    ('administrator', 'Administrator', '{*}', true),
    ('manager', 'Manager', '{*.read,members.*,loans.*,payments.*,patients.*,hospitalizations.*,invoices.*,files.*}', true),
    ('member', 'Member', '{members.read,loans.read,payments.read,patients.read,hospitalizations.read,invoices.read,files.read}', true),
    ('read_only', 'Read only', '{*.read}', true);

alter table users drop constraint users_role_check;
alter table users add constraint users_role foreign key (role) references roles (key);
create index users_role on users (role);
alter table users add column updated_at timestamptz not null default now();

alter table sessions
    add column address text check (length(address) <= 45),
    add column user_agent text check (length(user_agent) <= 200),
    add column used_at timestamptz not null default now(),
    -- The organisation's when it was begun: a suspension ends all those of before.
    add column generation bigint not null default 0;

-- Tokens that were exchanged for others. One that comes again was stolen, before or after.
create table refresh_tokens_used (
    hash bytea primary key check (length(hash) = 32),
    session_id uuid not null references sessions (id) on delete cascade,
    address text,
    user_agent text,
    used_at timestamptz not null default now()
);
create index refresh_tokens_used_session on refresh_tokens_used (session_id);
