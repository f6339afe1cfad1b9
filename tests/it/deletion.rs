//! Deleting, having back, destroying: at every step killed, with everything in the way that keeps a database from going.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::dev::text;
use crate::harness::{Dev, eventually};
use crate::operations::killed_at;

async fn status(dev: &Dev, slug: &str) -> u16 {
    dev.get(slug, "/api/v1/tenant").await.status
}

async fn is(dev: &Dev, slug: &str, want: u16) {
    eventually("status", Duration::from_secs(3), || status(dev, slug), |s| *s == want).await;
}

async fn count(dev: &Dev, sql: &str) -> String {
    dev.value("postgres", sql).await
}

async fn purge(dev: &Dev, slug: &str) -> Value {
    dev.cli_json(&["tenant", "delete", slug, "--yes-delete", slug, "--grace", "0s"]).await
}

/// Gone within a second; back with everything, or destroyed with a certificate.
#[tokio::test(flavor = "multi_thread")]
async fn deleted_had_back_and_destroyed() {
    let dev = Dev::start().await;
    let token = dev.login("lyon").await;
    for (args, code, what) in [
        (&["tenant", "delete", "lyon"][..], 2, "--yes-delete lyon"),
        (&["tenant", "delete", "lyon", "--yes-delete", "paris"], 2, "nothing was deleted"),
        (&["tenant", "delete", "nobody", "--yes-delete", "nobody"], 1, "no organisation"),
        (&["tenant", "delete", "lyon", "--yes-delete", "lyon", "--grace", "soon"], 2, "invalid value"),
        (&["tenant", "undelete", "lyon"], 1, "is not deleted"),
        (&["tenant", "undelete", "nobody"], 1, "no organisation"),
    ] {
        let out = dev.cli(args).await;
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!((out.status.code(), said.contains(what)), (Some(code), true), "{args:?}: {said}");
    }
    assert_eq!(status(&dev, "lyon").await, 200, "nothing was deleted");
    let members = dev.value("gmah_org_lyon", "select count(*) from members").await;
    let deleted = dev.cli_json(&["tenant", "delete", "lyon", "--yes-delete", "lyon"]).await;
    assert!(deleted["backup_id"].is_string() && deleted["certificate"].is_null(), "{deleted}");
    is(&dev, "lyon", 404).await;
    let shown = dev.cli(&["tenant", "show", "lyon"]).await;
    assert_eq!(shown.status.code(), Some(1));
    let taken =
        dev.cli(&["tenant", "create", "--slug", "lyon", "--name", "L", "--admin-email", "a@b.example"]).await;
    assert!(String::from_utf8_lossy(&taken.stderr).contains("undelete lyon"), "{taken:?}");
    let back = dev.cli_json(&["tenant", "undelete", "lyon"]).await;
    assert_eq!((text(&back["status"]), text(&back["database"])), ("active", "gmah_org_lyon"));
    is(&dev, "lyon", 200).await;
    assert_eq!(dev.value("gmah_org_lyon", "select count(*) from members").await, members);
    assert_eq!(dev.get_as("lyon", "/api/v1/auth/me", &token).await.status, 401, "logins of before are over");
    dev.login("lyon").await;

    // Destroyed: what is in the way of dropping a database goes with it.
    let settings = "select setting::int > 0 from pg_settings where name = 'max_prepared_transactions'";
    if count(&dev, settings).await == "t" {
        dev.execute("gmah_org_lyon", "begin; create table p (x int); prepare transaction 'left'").await;
    }
    dev.execute(
        "gmah_org_lyon",
        "create subscription s connection 'host=127.0.0.1 port=1' publication p with (connect = false)",
    )
    .await;
    let open = dev.superuser("gmah_org_lyon").await;
    open.batch_execute("begin; select * from members").await.expect("a transaction that is open");
    dev.cli_json(&["tenant", "backup", "lyon"]).await;
    let gone = purge(&dev, "lyon").await;
    is(&dev, "lyon", 404).await;
    let certificate = &gone["certificate"];
    assert_eq!((text(&certificate["slug"]), &certificate["keys"]), ("lyon", &1.into()), "{gone}");
    assert!(certificate["last_backup_expires_at"].is_string() && certificate["purged_at"].is_string());
    for (database, sql) in [
        (
            "postgres",
            "select count(*) from pg_database where datname like '%lyon%' or datname like 'gmah_deleted%'",
        ),
        ("postgres", "select count(*) from pg_roles where rolname = 'gmah_org_lyon'"),
        (
            "gmah_master",
            "select count(*) from organization_keys k join organizations o on o.id = k.organization_id where slug = 'lyon'",
        ),
        ("gmah_master", "select count(*) from organizations where slug = 'lyon' and purged_at is null"),
    ] {
        assert_eq!(dev.value(database, sql).await, "0", "{sql}");
    }
    let never = dev.cli(&["tenant", "undelete", "lyon"]).await;
    assert_eq!(never.status.code(), Some(1));
    // What had failed of one that is gone nobody can go on with, and is not asked to.
    dev.create("nice").await;
    let config = std::fs::read_to_string(text(&dev.info["config"])).expect("configuration");
    let quick = dev.folder().join("data/quick.toml");
    std::fs::write(&quick, format!("{config}\n[catalog]\nttl = \"1s\"\nmax_stale = \"1s\"\n"))
        .expect("written");
    dev.set_reachable("gmah_org_nice", false).await;
    let no = dev.cli(&["--config", &quick.display().to_string(), "key", "rotate", "data", "nice"]).await;
    assert_eq!(no.status.code(), Some(1), "{no:?}");
    dev.set_reachable("gmah_org_nice", true).await;
    let left = dev.cli_json(&["operation", "list", "--unfinished"]).await;
    assert_eq!(left[0]["kind"], "tenant.rotate_data_key", "{left}");
    purge(&dev, "nice").await;
    assert_eq!(dev.cli_json(&["operation", "list", "--unfinished"]).await, json!([]));
    assert_eq!(dev.cli_json(&["operation", "show", text(&left[0]["id"])]).await["state"], "cancelled");

    // T-19: the slug begins anew.
    dev.create("lyon").await;
    is(&dev, "lyon", 200).await;
    assert_eq!(dev.value("gmah_org_lyon", "select count(*) from members").await, "0");
    let id = text(&dev.get("lyon", "/api/v1/tenant").await.json()["id"]).to_owned();
    assert_ne!(id, text(&gone["id"]));
}

/// The crash matrix of deleting, having back and destroying.
#[tokio::test(flavor = "multi_thread")]
async fn killed_at_every_step_it_converges() {
    let dev = Dev::start().await;
    let left = || async { dev.cli_json(&["operation", "list", "--unfinished"]).await[0].clone() };
    let delete = ["tenant", "delete", "lyon", "--yes-delete", "lyon"];
    let destroyed = ["tenant", "delete", "nice", "--yes-delete", "nice", "--grace", "0s", "--without-backup"];
    for when in ["before", "after"] {
        for (n, step) in
            ["close", "drain", "begin", "dump", "files", "manifest", "fence", "rename"].iter().enumerate()
        {
            let at = format!("tenant.delete/{step}/{when}");
            assert!(killed_at(&dev, &at, &delete).await, "{at}");
            let op = left().await;
            if n % 2 == 0 {
                dev.cli_json(&["operation", "cancel", text(&op["id"])]).await;
                is(&dev, "lyon", 200).await;
            } else {
                dev.cli_json(&["operation", "resume", text(&op["id"])]).await;
                is(&dev, "lyon", 404).await;
                dev.cli_json(&["tenant", "undelete", "lyon"]).await;
            }
            is(&dev, "lyon", 200).await;
            dev.login("lyon").await;
        }
        for step in ["open", "active"] {
            dev.cli_json(&delete).await;
            let at = format!("tenant.undelete/{step}/{when}");
            assert!(killed_at(&dev, &at, &["tenant", "undelete", "lyon"]).await, "{at}");
            dev.cli_json(&["operation", "resume", text(&left().await["id"])]).await;
            is(&dev, "lyon", 200).await;
            dev.login("lyon").await;
        }
        for step in ["files", "databases", "role", "keys"] {
            dev.create("nice").await;
            let at = format!("tenant.purge/{step}/{when}");
            assert!(killed_at(&dev, &at, &destroyed).await, "{at}");
            let op = left().await;
            let no = dev.cli(&["operation", "cancel", text(&op["id"])]).await;
            assert!(String::from_utf8_lossy(&no.stderr).contains("half-way"), "{at}: {no:?}");
            let done = dev.cli_json(&["operation", "resume", text(&op["id"])]).await;
            assert!(done["result"]["databases"].is_array(), "{at}: {done}");
            assert_eq!(
                count(&dev, "select count(*) from pg_database where datname like 'gmah_deleted%'").await,
                "0",
                "{at}"
            );
            assert_eq!(
                count(&dev, "select count(*) from pg_roles where rolname = 'gmah_org_nice'").await,
                "0",
                "{at}"
            );
        }
    }
    assert_eq!(dev.cli_json(&["operation", "list", "--unfinished"]).await, json!([]));
}

/// A last backup that cannot be made keeps the organisation from being deleted: it is as it was.
#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_that_fails_is_undone() {
    let dev = Dev::start().await;
    // Where its backups would lie there is something else.
    let id = text(&dev.get("lyon", "/api/v1/tenant").await.json()["id"]).replace('-', "");
    let backups = dev.folder().join("data/backups").join(id);
    std::fs::create_dir_all(backups.parent().expect("folder")).expect("folder");
    std::fs::write(&backups, "no folder").expect("in the way");
    // However often it is tried.
    for _ in 0..2 {
        let out = dev.cli(&["tenant", "delete", "lyon", "--yes-delete", "lyon"]).await;
        assert!(!out.status.success(), "{out:?}");
        is(&dev, "lyon", 200).await;
        dev.login("lyon").await;
    }
    let noted = "select string_agg(distinct state, ' ') from backups";
    assert_eq!(dev.value("gmah_master", noted).await, "failed");
    std::fs::remove_file(&backups).expect("out of the way");
    let deleted = dev.cli_json(&["tenant", "delete", "lyon", "--yes-delete", "lyon"]).await;
    assert!(deleted["backup_id"].is_string(), "{deleted}");
    is(&dev, "lyon", 404).await;
    dev.cli_json(&["tenant", "undelete", "lyon"]).await;
    is(&dev, "lyon", 200).await;
    dev.login("lyon").await;
    let deleted =
        dev.cli_json(&["tenant", "delete", "lyon", "--yes-delete", "lyon", "--without-backup"]).await;
    assert!(deleted["backup_id"].is_null(), "{deleted}");
    is(&dev, "lyon", 404).await;
}

/// What an api node does by itself: destroys, backs up, tries, drops what was kept; and no other node beside it.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_due_is_done() {
    let dev = Dev::start_with("[backups]\nevery = \"1s\"\nverify_every = \"1s\"\n").await;
    let session = || async {
        let file = gmah_shared::config::ConfigFile::load(std::path::Path::new(text(&dev.info["config"])))
            .expect("file");
        let config = gmah_api::control::config::ControlConfig::from_file(&file).expect("sections");
        gmah_api::control::Control::open(dev.settings(), config).await.expect("session").working("worker")
    };
    let id = text(&dev.cli_json(&["tenant", "backup", "paris"]).await["backup_id"]).to_owned();
    dev.cli_json(&["tenant", "restore", "paris", "--backup", &id]).await;
    dev.cli_json(&["tenant", "delete", "lyon", "--yes-delete", "lyon", "--grace", "1s"]).await;
    let state = "select concat_ws(' ',
        (select count(*) from backups where state = 'done' and verified_at is not null),
        (select count(*) from organization_placements),
        (select count(*) from organizations where purged_at is not null))";
    assert_eq!(dev.value("gmah_master", state).await, "0 1 0");
    dev.execute("gmah_master", "update organization_placements set kept_until = now()").await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    // While another node is at it, nothing is done.
    let other = dev.superuser("gmah_master").await;
    other
        .execute("select pg_advisory_lock(hashtextextended('gmah fleet/worker', 0))", &[])
        .await
        .expect("held");
    session().await.round().await.expect("nothing to do");
    assert_eq!(dev.value("gmah_master", state).await, "0 1 0");
    drop(other);
    let free = "select count(*) from pg_locks where locktype = 'advisory'
        and ((classid::bigint << 32) | objid::bigint) = hashtextextended('gmah fleet/worker', 0)";
    eventually("free", Duration::from_secs(5), || dev.value("gmah_master", free), |n| n == "0").await;
    session().await.round().await.expect("a round");
    // The newest of paris, of the hospital, and of what was deleted are well.
    assert_eq!(dev.value("gmah_master", state).await, "3 0 1");
    assert_eq!(count(&dev, "select count(*) from pg_database where datname = 'gmah_org_paris'").await, "0");
    assert_eq!(status(&dev, "paris").await, 200);
    let actors = "select string_agg(distinct actor, ' ') from audit_log where action in ('tenant.purge')";
    assert_eq!(dev.value("gmah_master", actors).await, "worker");
}
