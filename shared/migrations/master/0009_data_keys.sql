-- Keys of organisations' sensitive fields, sealed with the master key. When an organisation is deleted these go, and with
-- them what they sealed, in every copy and backup.
create table organization_keys (
    organization_id uuid not null references organizations (id) on delete cascade,
    version int not null check (version > 0),
    secrets bytea not null,
    created_at timestamptz not null default now(),
    -- A new key opens at once and seals a while later, when every node has it.
    seals_from timestamptz not null default now(),
    primary key (organization_id, version)
);
create trigger organization_keys_changed after insert or update or delete on organization_keys
    for each row execute function organization_part_changed();
