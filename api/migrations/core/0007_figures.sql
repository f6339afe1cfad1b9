-- The api says of each organisation how far its schema has come. The table itself stays the migrations' own.
create function schema_versions() returns table (set_name text, version int)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select m.set_name, max(m.version) from public.schema_migrations m group by m.set_name
$$;
revoke all on function schema_versions() from public;
grant execute on function schema_versions() to gmah_tenant;
