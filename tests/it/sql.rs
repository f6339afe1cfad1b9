//! Every statement is prepared against a migrated database; the hot ones keep their plan.

use std::time::Duration;

use gmah_shared::catalog::store;
use gmah_shared::migrate::{self, Migration, MigrationSet, Options};

use crate::harness::Dev;

#[tokio::test(flavor = "multi_thread")]
async fn every_statement_prepares() {
    let dev = Dev::start().await;
    dev.cli_json(&["module", "enable", "paris", "patients"]).await;
    let tenant = dev.superuser("gmah_org_paris").await;
    for (name, sql) in gmah_api::repo::STATEMENTS {
        tenant.prepare(sql).await.unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    let files = walk(std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/api/src/repo/sql")));
    let listed = gmah_api::repo::STATEMENTS.iter().filter(|(_, sql)| sql.contains('\n')).count();
    assert_eq!(files, listed, "a statement file that no list names");
    let master = dev.superuser("gmah_master").await;
    for (name, sql) in store::STATEMENTS.iter().chain(gmah_api::pool::slots::STATEMENTS) {
        master.prepare(sql).await.unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}

fn walk(folder: &std::path::Path) -> usize {
    let entries = std::fs::read_dir(folder).expect("folder").flatten();
    entries.map(|e| if e.path().is_dir() { walk(&e.path()) } else { 1 }).sum()
}

/// A cold lookup is one indexed query, also with many organisations.
#[tokio::test(flavor = "multi_thread")]
async fn cold_lookups_use_their_indexes() {
    let dev = Dev::start().await;
    dev.execute(
        "gmah_master",
        "insert into organizations (id, slug, name, plan, server_id, database_name, role_name, role_password, status)
         select gen_random_uuid(), 'many' || n, 'n', 'starter', (select id from database_servers limit 1),
                'db' || n, 'r', '', 'active' from generate_series(100, 20000) n;
         insert into organization_domains (hostname, organization_id, status)
         select slug || '.example', id, 'active' from organizations where slug like 'many%';
         insert into organization_features (organization_id, module)
         select id, 'loans' from organizations where slug like 'many%';
         insert into certificates (hostname, chain_pem, private_key, not_after, renew_at, domain_id)
         select hostname, '', '', now(), now(), id from organization_domains;
         insert into certificates (hostname, chain_pem, private_key, not_after, renew_at, base_domain)
         select slug, '', '', now(), now(), slug from organizations; analyze",
    )
    .await;
    let master = dev.superuser("gmah_master").await;
    // Those read a handful of rows, all there are, or write one.
    let small = [
        "keys",
        "ticket_secrets",
        "challenges",
        "derivation",
        "make_derivation",
        "tell_keys",
        "forget_holder",
    ];
    for (name, sql) in store::STATEMENTS.iter().filter(|(name, _)| !small.contains(name)) {
        let argument = if *name == "detail" { "'01a20005-77bb-7147-a422-24839f563a1e'" } else { "'many777'" };
        let explain = format!("explain {}", sql.replace("$1", argument));
        let plan: Vec<String> =
            master.query(&explain, &[]).await.expect(name).iter().map(|r| r.get(0)).collect();
        let plan = plan.join("\n");
        for table in ["organizations", "organization_domains", "organization_features", "certificates"] {
            assert!(!plan.contains(&format!("Seq Scan on {table} ")), "{name}:\n{plan}");
        }
        assert!(plan.contains("Index"), "{name}:\n{plan}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn q18_migrations() {
    const ONE: Migration<'static> = Migration { version: 1, name: "one", sql: "create table one (x int)" };
    const TWO: Migration<'static> =
        Migration { version: 2, name: "two", sql: "create table two (x int); insert into one values (2)" };
    const BAD: Migration<'static> =
        Migration { version: 2, name: "bad", sql: "create table half (x int); select 1/0" };
    const ALONE: Migration<'static> = Migration {
        version: 3,
        name: "alone",
        sql: "-- gmah: no-transaction\ncreate index concurrently one_x on one (x)",
    };
    const SET1: MigrationSet<'static> = MigrationSet { name: "t", files: &[ONE] };
    const SET2: MigrationSet<'static> = MigrationSet { name: "t", files: &[ONE, TWO, ALONE] };
    const BROKEN: MigrationSet<'static> = MigrationSet { name: "t", files: &[ONE, BAD] };
    const CHANGED: MigrationSet<'static> = MigrationSet {
        name: "t",
        files: &[Migration { version: 1, name: "one", sql: "create table other (x int)" }],
    };

    let dev = Dev::start().await;
    dev.execute("postgres", "create database scratch").await;
    let mut client = dev.superuser("scratch").await;
    let quick = Options {
        runner_timeout: Duration::from_millis(200),
        lock_timeout: Duration::from_millis(200),
        ..Options::default()
    };
    let tables = "select string_agg(relname, ',' order by relname) from pg_class where relkind = 'r' and relnamespace = 'public'::regnamespace";

    let dry = migrate::run(&mut client, &[&SET1], Options { dry_run: true, ..quick }).await.expect("dry run");
    assert_eq!(dry.len(), 1);
    assert_eq!(dev.value("scratch", tables).await, "", "nothing is left of it");
    assert_eq!(migrate::run(&mut client, &[&SET1], quick).await.expect("first").len(), 1);
    assert_eq!(migrate::run(&mut client, &[&SET1], quick).await.expect("again").len(), 0);

    let failed =
        migrate::run(&mut client, &[&BROKEN], quick).await.expect_err("division by zero").to_string();
    assert!(failed.contains("t/0002_bad") && failed.contains("division by zero"), "{failed}");
    assert_eq!(dev.value("scratch", tables).await, "one,schema_migrations", "rolled back as a whole");

    let changed = migrate::run(&mut client, &[&CHANGED], quick).await.expect_err("changed").to_string();
    assert!(changed.contains("changed after"), "{changed}");

    // Another runner holds the lock; then somebody holds the table.
    let other = dev.superuser("scratch").await;
    other.batch_execute("select pg_advisory_lock(x'676d6168'::bigint)").await.expect("locked");
    let busy = migrate::run(&mut client, &[&SET2], quick).await.expect_err("busy").to_string();
    assert!(busy.contains("another migration"), "{busy}");
    other
        .batch_execute("select pg_advisory_unlock_all(); begin; lock table one in access exclusive mode")
        .await
        .expect("lock");
    let locked = migrate::run(&mut client, &[&SET2], quick).await.expect_err("locked").to_string();
    assert!(locked.contains("lock timeout"), "{locked}");
    other.batch_execute("rollback").await.expect("unlocked");
    // Nor is the table of what was applied waited for without an end.
    other.batch_execute("begin; lock table schema_migrations in access exclusive mode").await.expect("lock");
    let locked = migrate::run(&mut client, &[&SET2], quick).await.expect_err("locked").to_string();
    assert!(locked.contains("lock timeout"), "{locked}");
    other.batch_execute("rollback").await.expect("unlocked");
    let mine =
        "select current_setting('lock_timeout'), (select count(*) from pg_locks where locktype = 'advisory'
        and database = (select oid from pg_database where datname = current_database()))";
    let mine = client.query_one(mine, &[]).await.expect("settings");
    assert_eq!((mine.get::<_, &str>(0), mine.get::<_, i64>(1)), ("0", 0), "and nothing is left of it");

    assert_eq!(migrate::run(&mut client, &[&SET2], quick).await.expect("second").len(), 2);
    assert_eq!(dev.value("scratch", tables).await, "one,schema_migrations,two");
    let ahead = migrate::run(&mut client, &[&SET1], quick).await.expect_err("ahead").to_string();
    assert!(ahead.contains("at version 3, this program knows 1"), "{ahead}");
}
