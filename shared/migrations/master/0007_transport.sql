-- How servers are reached: several hosts of which one takes writes, and TLS that is verified.

-- `host` may be a list, `db1,db2:5433`; `port` is that of hosts without one.
alter table database_servers
    add column tls text not null default 'disable' check (tls in ('disable', 'verify-full')),
    add column tls_ca text;                                             -- PEM; null: the system's authorities

-- A server that is reached in another way makes another row of each of its organisations: of two rows of one revision
-- nobody could say which is the newer.
create function database_server_changed() returns trigger language plpgsql as $$
begin
    if (new.host, new.port, new.tls, new.tls_ca) is distinct from (old.host, old.port, old.tls, old.tls_ca) then
        update organizations set revision = revision where server_id = new.id;
        perform pg_notify('gmah_catalog', '*');
    end if;
    return null;
end $$;

drop trigger database_servers_changed on database_servers;
create trigger database_servers_changed after update on database_servers
    for each row execute function database_server_changed();
