-- Copies of a server that follow it (PostgreSQL, chapter 26.2) and answer what only reads. A copy is a server with a budget
-- of its own, on which no organisation is placed.
alter table database_servers
    add column replica_of uuid references database_servers (id) on delete restrict check (replica_of <> id);
create index database_servers_replica_of on database_servers (replica_of) where replica_of is not null;

-- Organisations of a server whose copies changed have another row than before.
create function database_replica_changed() returns trigger language plpgsql as $$
begin
    if coalesce(new.replica_of, old.replica_of) is not null then
        update organizations set revision = revision where server_id in (new.replica_of, old.replica_of);
        perform pg_notify('gmah_catalog', '*');
    end if;
    return null;
end $$;
create trigger database_replica_changed after insert or update or delete on database_servers
    for each row execute function database_replica_changed();
