-- What is known of every organisation from within, and what it has used: for metrics, bills, and whoever looks after them.

-- Collected by the api nodes, in turns. In a table of its own: that somebody counted is no news of the organisation.
create table organization_figures (
    organization_id uuid primary key references organizations (id) on delete cascade,
    due_at timestamptz not null default now(),
    tried_at timestamptz,
    collected_at timestamptz,                           -- of what follows; null: never
    error text,                                         -- why the newest try brought nothing; null: it did
    database_bytes bigint,
    connections int,                                    -- to its database, whoever has them
    users bigint,                                       -- that may log in
    members bigint,                                     -- of whatever modules: members, patients
    active_loans bigint,                                -- null: no such module
    month_transactions bigint,                          -- payments of this month, UTC
    storage_bytes bigint,                               -- of files
    last_activity_at timestamptz,
    schema jsonb not null default '{}',                 -- {"core": 6, …}
    health text not null default 'healthy' check (health in ('healthy', 'warning', 'critical')),
    reasons text[] not null default '{}'
);
create index organization_figures_due on organization_figures (due_at);
insert into organization_figures (organization_id) select id from organizations where purged_at is null;

create function organization_has_figures() returns trigger language plpgsql as $$
begin
    insert into organization_figures (organization_id) values (new.id) on conflict do nothing;
    return null;
end $$;
create trigger organization_has_figures after insert on organizations
    for each row execute function organization_has_figures();

-- By calendar month, UTC. Requests and bytes are added to by the routers, in batches; of what is there rather than used, the
-- most that was seen in the month.
create table organization_usage (
    organization_id uuid not null references organizations (id) on delete cascade,
    month date not null check (extract(day from month) = 1),
    requests bigint not null default 0,
    bytes_in bigint not null default 0,
    bytes_out bigint not null default 0,
    storage_bytes bigint not null default 0,
    database_bytes bigint not null default 0,
    users bigint not null default 0,
    members bigint not null default 0,
    primary key (organization_id, month)
);

-- Batches that have been added, so that none is added twice when its answer was lost.
create table usage_batches (
    id uuid primary key,
    added_at timestamptz not null default now()
);
create index usage_batches_added_at on usage_batches (added_at);
