-- How servers are reached: several hosts of which one takes writes, and TLS that is verified.

-- `host` may be a list, `db1,db2:5433`; `port` is that of hosts without one.
alter table database_servers
    add column tls text not null default 'disable' check (tls in ('disable', 'verify-full')),
    add column tls_ca text;                                             -- PEM; null: the system's authorities

drop trigger database_servers_changed on database_servers;
create trigger database_servers_changed after update of host, port, tls, tls_ca on database_servers
    for each statement execute function catalog_changed();
