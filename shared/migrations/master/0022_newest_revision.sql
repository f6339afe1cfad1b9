-- The newest revision of all is asked for where a name is gone: a master that was restored from a backup has an older one. Not
-- its sequence's last value, which is ahead of what was given by as much as one write of the log foresees.
create index organizations_revision on organizations (revision);

-- An organisation is never deleted but by hand; then this remembers how far the master had come.
create table catalog_deletions (
    revision bigint primary key default nextval('catalog_revision'),
    organization_id uuid not null,
    deleted_at timestamptz not null default now()
);

create function organization_deleted() returns trigger language plpgsql as $$
begin
    insert into catalog_deletions (organization_id) values (old.id);
    perform pg_notify('gmah_catalog', old.id::text);
    return null;
end $$;

create trigger organization_deleted after delete on organizations
    for each row execute function organization_deleted();
