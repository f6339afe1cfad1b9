-- Free-loan societies: their members.

create table members (
    id uuid primary key,
    first_name text not null check (length(first_name) between 1 and 100),
    last_name text not null check (length(last_name) between 1 and 100),
    email text check (length(email) <= 254),
    phone text check (length(phone) <= 32),
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);
