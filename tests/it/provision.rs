//! Creating organisations: refusals, rights, and being killed at any moment.

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::harness::dev::{BINARY, text};
use crate::harness::{Dev, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_clear_and_create_nothing() {
    let dev = Dev::start().await;
    let create = |args: Vec<&'static str>| {
        let dev = &dev;
        async move {
            let out = dev.cli(&[vec!["tenant", "create"], args].concat()).await;
            (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
        }
    };
    let before = dev.value("postgres", "select count(*) from pg_database").await;
    let good = ["--name", "N", "--admin-email", "a@b.example"];
    for slug in [
        "admin",
        "NICE",
        "a_b",
        "x",
        "nice--x",
        "postgres",
        "-a",
        "\u{e9}",
        "template1",
        "a'; drop table x",
        "",
    ] {
        let (code, said) = create([vec!["--slug", slug], good.to_vec()].concat()).await;
        assert_eq!(code, Some(2), "{slug}: {said}");
        assert!(said.contains("slug") || said.contains("unexpected argument"), "{slug}: {said}");
        assert!(!said.contains("panicked"));
    }
    for (args, want) in [
        (vec!["--slug", "nice", "--name", "", "--admin-email", "a@b.example"], 2),
        (vec!["--slug", "nice", "--name", "N", "--admin-email", "nobody"], 2),
        (vec!["--slug", "nice", "--name", "N", "--admin-email", "a@b.example", "--plan", "gold"], 2),
        (
            vec!["--slug", "nice", "--name", "N", "--admin-email", "a@b.example", "--modules", "loans,sauna"],
            2,
        ),
        (vec!["--slug", "nice", "--name", "N", "--admin-email", "a@b.example", "--domain", "127.0.0.1"], 2),
        (
            vec![
                "--slug",
                "nice",
                "--name",
                "N",
                "--admin-email",
                "a@b.example",
                "--domain",
                "x.gmah.localhost",
            ],
            2,
        ),
        (vec!["--slug", "nice", "--name", "N", "--admin-email", "a@b.example", "--server", "mars"], 1),
        (vec!["--slug", "paris", "--name", "N", "--admin-email", "a@b.example"], 1),
        (vec!["--slug", "nice"], 2),
    ] {
        let (code, said) = create(args.clone()).await;
        assert_eq!((code, said.is_empty()), (Some(want), false), "{args:?}: {said}");
    }
    assert_eq!(dev.value("postgres", "select count(*) from pg_database").await, before);
    assert_eq!(dev.value("gmah_master", "select count(*) from organizations").await, "3");
}

#[tokio::test(flavor = "multi_thread")]
async fn once_created_it_works_and_a_second_run_changes_nothing() {
    let dev = Dev::start().await;
    let args =
        ["tenant", "create", "--slug", "nice", "--name", "GMAH Nice", "--admin-email", "A@Nice.Example"];
    let first = dev.cli_json(&args).await;
    assert_eq!((&first["created"], text(&first["host"])), (&true.into(), "nice.gmah.localhost"));
    let password = text(&first["admin_password"]).to_owned();
    dev.login_as("nice", "a@nice.example", &password).await;
    let second = dev.cli_json(&args).await;
    assert_eq!((&second["created"], second["admin_password"].is_null()), (&false.into(), true));
    assert_eq!(second["id"], first["id"]);
    dev.login_as("nice", "a@nice.example", &password).await;
    let other =
        ["tenant", "create", "--slug", "nice", "--name", "GMAH Nice", "--admin-email", "b@nice.example"];
    let out = dev.cli(&other).await;
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stderr).contains("taken"));
    assert_eq!(dev.value("gmah_org_nice", "select count(*) from users").await, "1");
    assert_eq!(
        dev.value("gmah_master", "select state from operations order by created_at desc limit 1").await,
        "done"
    );
}

/// Asked for twice at once it is made once, and both are told so; whoever asks later as well.
#[tokio::test(flavor = "multi_thread")]
async fn two_at_once_make_one() {
    let dev = Dev::start().await;
    let args = ["tenant", "create", "--slug", "nice", "--name", "Nice", "--admin-email", "a@nice.example"];
    let (one, other) = futures::join!(dev.cli_json(&args), dev.cli_json(&args));
    assert_eq!(one["id"], other["id"]);
    assert_ne!(one["created"], other["created"], "one of them made it");
    assert_eq!(dev.cli_json(&args).await["created"], false);
    assert_eq!(
        dev.value("gmah_master", "select string_agg(state, ',') from operations where subject = 'slug/nice'")
            .await,
        "done"
    );
}

/// an organisation's role enters its own database and nothing else, and sees nothing of the rest.
#[tokio::test(flavor = "multi_thread")]
async fn q15_q16_roles_are_walled_in() {
    let dev = Dev::start().await;
    let store = dev.settings();
    let pool = gmah_shared::pg::pool(&store.master, "test").expect("pool");
    let catalog = gmah_shared::catalog::Store::new(pool, store.master_key.clone(), Duration::from_secs(5));
    let id = text(&dev.get("lyon", "/api/v1/tenant").await.json()["id"]).to_owned();
    let id = gmah_shared::tenant::TenantId::parse(&id).expect("id");
    let lyon = catalog.detail(id).await.expect("row").expect("there").placement;
    let enter = |database: &str| {
        let settings = gmah_shared::config::Postgres {
            hosts: lyon.hosts.clone(),
            transport: lyon.transport.clone(),
            user: lyon.role.clone(),
            password: Some(lyon.password.clone()),
            database: database.to_owned(),
            max_connections: 1,
            timeout: Duration::from_secs(5),
        };
        async move { gmah_shared::pg::connect(&settings, "test").await }
    };
    for database in ["gmah_org_paris", "gmah_master", "gmah_org_hopital_central", "postgres", "template1"] {
        let refused = enter(database).await.expect_err(database);
        let code = refused.as_db_error().expect("refused by the server").code().code().to_owned();
        assert_eq!(code, "42501", "{database}");
    }
    let client = enter("gmah_org_lyon").await.expect("its own");
    let bounds = "select string_agg(setting || unit, ' ' order by name) from pg_settings
        where name in ('statement_timeout', 'idle_in_transaction_session_timeout', 'lock_timeout')";
    let bounds: String = client.query_one(bounds, &[]).await.expect("settings").get(0);
    assert_eq!(bounds, "60000ms 15000ms 60000ms", "set for the role, whoever enters with it");
    for sql in [
        "set role gmah_org_paris",
        "set role gmah",
        "create database mine template gmah_org_paris",
        "create role friend",
        "alter role gmah_org_lyon superuser",
        "alter system set port = 1",
        "copy members to program 'id'",
        "copy members to '/tmp/x'",
        "select pg_read_file('/etc/passwd')",
        "select lo_import('/etc/passwd')",
        "create extension dblink",
        "create extension file_fdw",
        "update gmah_identity set placement = 2",
        "delete from gmah_identity",
        "drop table gmah_identity",
        "truncate gmah_identity",
        "alter table members add x int",
        "drop table members",
        "drop schema public cascade",
        "create table public.mine (x int)",
        "select * from schema_migrations",
        "select datname from pg_database",
        "select usename from pg_stat_activity",
        "select * from pg_shadow",
        "select rolname from pg_roles",
        "select * from pg_authid",
        "create function f() returns int language c as 'x'",
        "insert into schema_migrations values ('x', 1, 'x', '', now())",
    ] {
        let refused = client.batch_execute(sql).await.err().unwrap_or_else(|| panic!("{sql} was allowed"));
        assert!(refused.as_db_error().is_some(), "{sql}: {refused}");
    }
    client
        .batch_execute("select count(*) from members; select organization_id from gmah_identity")
        .await
        .expect("its own data");
    let owner = "select pg_get_userbyid(datdba) from pg_database where datname = 'gmah_org_lyon'";
    assert_eq!(dev.value("postgres", owner).await, "gmah_org_lyon");
    // The master holds no password in clear, and a sealed one opens for its own row only.
    let stored = dev.value("gmah_master", "select string_agg(o::text, '') from organizations o").await;
    assert!(!stored.contains(secrecy_expose(&lyon.password)));
    let server_log = std::fs::read_to_string(dev.folder().join("data/postgres.log")).expect("log");
    assert!(!server_log.contains(secrecy_expose(&lyon.password)));
}

fn secrecy_expose(secret: &secrecy::SecretString) -> &str {
    secrecy::ExposeSecret::expose_secret(secret)
}

/// Killed at any moment and run again: one organisation, one database, one administrator, and it answers.
#[tokio::test(flavor = "multi_thread")]
async fn killed_anywhere_it_converges() {
    let dev = Dev::start().await;
    let began = Instant::now();
    dev.create("whole").await;
    let whole = began.elapsed();
    for n in 0..12u32 {
        let slug = format!("crash{n:02}");
        let email = format!("a@{slug}.example");
        let args = ["tenant", "create", "--slug", &slug, "--name", &slug, "--admin-email", &email];
        let mut child = tokio::process::Command::new(BINARY)
            .args(args)
            .env("GMAH_CONFIG", text(&dev.info["config"]))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("started");
        tokio::time::sleep(whole * (2 * n + 1) / 24).await;
        child.kill().await.expect("killed");
        let out = dev.cli(&args).await;
        assert!(out.status.success(), "{slug}: {}", String::from_utf8_lossy(&out.stderr));
        assert_eq!(dev.get(&slug, "/api/v1/tenant").await.slug(), (200, slug.clone()));
        let databases = format!("select count(*) from pg_database where datname like 'gmah_org_{slug}%'");
        assert_eq!(dev.value("postgres", &databases).await, "1");
        assert_eq!(dev.value(&format!("gmah_org_{slug}"), "select count(*) from users").await, "1");
        let rows = format!("select count(*) from organizations where slug = '{slug}'");
        assert_eq!(dev.value("gmah_master", &rows).await, "1");
    }
    let listed = dev.cli_json(&["operation", "list"]).await;
    let listed = listed.as_array().expect("operations");
    assert!(listed.iter().all(|o| o["state"] == "done" && o["step"].is_null()), "{listed:?}");
    let open = "select count(*) from operations where state <> 'done'";
    assert_eq!(dev.value("gmah_master", open).await, "0");
    let halves = "select count(*) from pg_database where datname like '%_half'";
    assert_eq!(dev.value("postgres", halves).await, "0");
}

/// What stands in the way under our names is not adopted.
#[tokio::test(flavor = "multi_thread")]
async fn anothers_role_or_database_is_not_adopted() {
    let dev = Dev::start().await;
    dev.execute("postgres", "create role gmah_org_nice login").await;
    let args = ["tenant", "create", "--slug", "nice", "--name", "N", "--admin-email", "a@nice.example"];
    let out = dev.cli(&args).await;
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stderr).contains("not this organisation's"));
    dev.execute("postgres", "drop role gmah_org_nice").await;
    dev.execute("postgres", "create database gmah_org_nice").await;
    let out = dev.cli(&args).await;
    assert_eq!(out.status.code(), Some(1));
    assert_eq!(dev.get("nice", "/api/v1/tenant").await.status, 503, "being provisioned");
    dev.execute("postgres", "drop database gmah_org_nice").await;
    assert!(dev.cli(&args).await.status.success(), "and once the way is free, it goes on");
    // The router remembers for a moment that it is being provisioned.
    let served = || async { dev.get("nice", "/api/v1/tenant").await.status };
    crate::harness::eventually("served", Duration::from_secs(1), served, |s| *s == 200).await;
}

/// T-19: the slug of a deleted organisation begins anew: another id, and nothing of the old one is accepted.
#[tokio::test(flavor = "multi_thread")]
async fn t19_a_slug_used_again() {
    let dev = Dev::start().await;
    let password = dev.create("nice").await;
    let old_token = dev.login_as("nice", "admin@nice.example", &password).await;
    let old_id = dev.get("nice", "/api/v1/tenant").await.json()["id"].clone();
    dev.cli_json(&["tenant", "delete", "nice", "--yes-delete", "nice", "--grace", "0s"]).await;
    crate::harness::eventually(
        "deleted",
        Duration::from_secs(2),
        || async { dev.get("nice", "/api/v1/tenant").await.status },
        |s| *s == 404,
    )
    .await;
    dev.create("nice").await;
    let new = dev.get("nice", "/api/v1/tenant").await;
    assert_eq!(new.status, 200);
    assert_ne!(new.json()["id"], old_id);
    assert_eq!(dev.get_as("nice", "/api/v1/auth/me", &old_token).await.status, 401);
}

/// Databases that are ready are taken by whoever is new, each by one, and nobody can tell by what is in them.
#[tokio::test(flavor = "multi_thread")]
async fn databases_that_are_ready_are_taken_once() {
    let dev = Dev::start_with("[provision]\nready = 3\n").await;
    let ready =
        "select string_agg(oid::text, ',' order by oid) from pg_database where datname like 'gmah_ready_%'";
    let count = || async { dev.value("postgres", ready).await };
    let oids = eventually("ready", Duration::from_secs(30), count, |s| s.split(',').count() == 3).await;
    let closed = "select count(*) from pg_database where datname like 'gmah_ready_%' and datallowconn";
    assert_eq!(dev.value("postgres", closed).await, "0", "nobody enters them");
    // Four at once: three have one, the fourth a copy.
    let slugs = ["anna", "bela", "cleo", "dora"];
    let passwords = futures::future::join_all(slugs.map(|slug| dev.create(slug))).await;
    let mut taken = 0;
    for (slug, password) in slugs.iter().zip(&passwords) {
        let oid = dev
            .value("postgres", &format!("select oid from pg_database where datname = 'gmah_org_{slug}'"))
            .await;
        taken += usize::from(oids.split(',').any(|o| o == oid));
        let token = dev.login_as(slug, &format!("admin@{slug}.example"), password).await;
        assert_eq!(dev.get_as(slug, "/api/v1/members", &token).await.status, 200);
    }
    assert!(taken >= 3, "{taken}");
    // A killed run goes on with the one that it had taken.
    for when in ["before", "after"] {
        let slug = format!("killed-{when}");
        let args = ["tenant", "create", "--slug", &slug, "--name", "k", "--admin-email", "a@k.example"];
        assert!(crate::operations::killed_at(&dev, &format!("tenant.create/database/{when}"), &args).await);
        assert!(dev.cli(&args).await.status.success());
        assert_eq!(dev.get(&slug, "/api/v1/tenant").await.status, 200);
    }
    assert_eq!(dev.cli(&["doctor"]).await.status.code(), Some(0), "nothing is left over");
}

/// Where a router is named, it is not said that somebody is served before it does; one that is away keeps nobody from being made.
#[tokio::test(flavor = "multi_thread")]
async fn the_router_is_asked_last() {
    let dev = Dev::start().await;
    let own = std::fs::read_to_string(text(&dev.info["config"])).expect("configuration");
    let (router, ca) = (text(&dev.info["https"]), text(&dev.info["ca"]));
    let create = |slug: &'static str, probe: String, ca: &str| {
        let path = dev.folder().join(format!("{slug}.toml"));
        let section = format!("{own}\n[provision]\nprobe = \"{probe}\"\nprobe_ca_file = \"{ca}\"\n");
        std::fs::write(&path, section).expect("written");
        let dev = &dev;
        async move {
            let email = format!("a@{slug}.example");
            let config = ["--config", path.to_str().expect("UTF-8"), "tenant", "create", "--json"];
            dev.cli(&[&config[..], &["--slug", slug, "--name", slug, "--admin-email", &email]].concat()).await
        }
    };
    let made = create("nice", router.to_owned(), ca).await;
    let shown: serde_json::Value = serde_json::from_slice(&made.stdout).expect("JSON");
    assert_eq!(shown["served"], true, "{shown}");
    let listed = dev.cli_json(&["operation", "list", "--tenant", "nice"]).await;
    let steps = dev.cli_json(&["operation", "show", text(&listed[0]["id"])]).await["steps"].clone();
    assert_eq!(steps.as_array().and_then(|s| s.last()).map(|s| text(&s["name"])), Some("served"), "{steps}");
    let away = crate::harness::dns::free().to_string();
    for (slug, out, why, code) in [
        ("metz", create("metz", away, ca).await, "does not serve it yet", 0),
        ("lens", create("lens", router.to_owned(), "/nowhere").await, "/nowhere", 0),
    ] {
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!((out.status.code(), said.contains(why)), (Some(code), true), "{slug}: {said}");
        // Made all the same.
        let served = || async { dev.get(slug, "/api/v1/tenant").await.status };
        eventually(slug, Duration::from_secs(3), served, |s| *s == 200).await;
    }
}
