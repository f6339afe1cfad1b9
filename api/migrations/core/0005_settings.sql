-- What an organisation has settled for itself, by module; what is not here goes by the module's defaults. The program knows
-- the shape of each.
create table settings (
    module text primary key check (module ~ '^[a-z][a-z0-9_]{0,62}$'),
    value jsonb not null check (jsonb_typeof(value) = 'object'),
    updated_at timestamptz not null default now()
);
