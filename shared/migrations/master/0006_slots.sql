-- Connections of api nodes to PostgreSQL servers: what each node may have, so that all together never have too many.

-- A node holds an advisory lock under its number for as long as its session with the master lives: a process that
-- dies loses it at once, one that is only slow does not.
alter table nodes
    add column number int generated always as identity unique,
    add column session_at timestamptz not null default now();           -- when that session began

create table node_slots (
    node_id uuid not null references nodes (id) on delete cascade,
    server_id uuid not null references database_servers (id) on delete cascade,
    slots int not null check (slots >= 0),                              -- what it may have, or still has
    wanted int not null check (wanted >= 0),                            -- what it could use
    budget int not null check (budget > 0),                             -- its pool.max_per_server; the smallest counts
    primary key (node_id, server_id)
);
create index node_slots_server on node_slots (server_id);
