//! an organisation goes to another server while it is written to: nothing that was acknowledged is lost, and nothing is
//! written to the database that it left.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;

use crate::harness::dev::text;
use crate::harness::{Dev, eventually};
use crate::operations::killed_at;
use crate::transport::standby;

/// Adds members until told to stop; a refusal for now is tried again under the same key. Answers what was acknowledged.
fn writes(dev: &Arc<Dev>, token: &str, stop: &Arc<AtomicBool>) -> tokio::task::JoinHandle<BTreeSet<String>> {
    let (dev, bearer, stop) = (dev.clone(), format!("Bearer {token}"), stop.clone());
    gmah_shared::tasks::detach("writes", async move {
        let mut acknowledged = BTreeSet::new();
        for n in 0.. {
            if stop.load(Ordering::Acquire) {
                break;
            }
            let key = format!("moved-{n}");
            let headers = [("Authorization", &*bearer), ("Idempotency-Key", &*key)];
            let member = json!({"first_name": key, "last_name": "Set"});
            loop {
                let answer = dev.post("lyon", "/api/v1/members", &headers, &member).await;
                match answer.status {
                    201 => break,
                    502..=504 => tokio::time::sleep(Duration::from_millis(50)).await,
                    _ => panic!("{answer:?}"),
                }
            }
            acknowledged.insert(key);
        }
        acknowledged
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn q19_moved_while_it_is_written_to() {
    let dev = Arc::new(Dev::start().await);
    // A copy that goes its own way from here on is another server.
    let (_child, port) = standby(&dev).await;
    let mut there = dev.settings().master;
    there.hosts = gmah_shared::pg::Hosts::parse("127.0.0.1", port).expect("host");
    there.database = "postgres".into();
    let second = gmah_shared::pg::connect(&there, "test").await.expect("second");
    second.execute("select pg_promote(true, 30)", &[]).await.expect("promoted");
    // With nothing of the first on it.
    let copies = "select format('drop database %I with (force)', datname) from pg_database where datname like 'gmah%'
         and not datistemplate
         union all select format('alter database %I is_template false', datname) from pg_database where datistemplate and datname like 'gmah%'";
    for row in second.query(copies, &[]).await.expect("databases") {
        second.batch_execute(row.get(0)).await.expect("dropped");
    }
    let roles = "select format('drop role %I', rolname) from pg_roles where rolname like 'gmah_org%'";
    for row in second.query(roles, &[]).await.expect("roles") {
        second.batch_execute(row.get(0)).await.expect("dropped");
    }
    let password = dev.folder().join("password");
    std::fs::write(&password, text(&dev.info["postgres"]["password"])).expect("written");
    let (port, password) = (port.to_string(), password.display().to_string());
    let add = ["server", "add", "--name", "second", "--host", "127.0.0.1", "--port", &port, "--user", "gmah"];
    let added = dev.cli(&[&add[..], &["--password-file", &password]].concat()).await;
    assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
    // The same once more, by another name: organisations would be moved to where they are.
    let twice =
        ["server", "add", "--name", "third", "--host", "localhost", "--port", &port, "--user", "gmah"];
    let twice = dev.cli(&[&twice[..], &["--password-file", &password]].concat()).await;
    let said = String::from_utf8_lossy(&twice.stderr);
    assert!(twice.status.code() == Some(1) && said.contains("known already, as second"), "{said}");

    let token = dev.login("lyon").await;
    let stop = Arc::new(AtomicBool::new(false));
    let writer = writes(&dev, &token, &stop);
    let to = |server: &'static str| {
        let dev = &dev;
        async move {
            let moved = dev.cli_json(&["tenant", "move", "lyon", "--server", server]).await;
            assert_eq!(moved["server"], server);
            text(&moved["database"]).to_owned()
        }
    };
    for server in ["second", "local", "second"] {
        let before = dev.cli_json(&["tenant", "show", "lyon"]).await;
        let database = to(server).await;
        let now = dev.cli_json(&["tenant", "show", "lyon"]).await;
        assert_eq!((&now["database"], &now["server"]), (&json!(database), &json!(server)));
        assert_eq!(now["placement"].as_i64(), before["placement"].as_i64().map(|n| n + 1));
        assert_eq!(now["maintenance"], json!(null), "requests go on");
        tokio::time::sleep(Duration::from_millis(300)).await;
        // What was left is shut, and stays as it was.
        let (was, name) = (text(&before["server"]), text(&before["database"]));
        let sql = format!("select datallowconn::text from pg_database where datname = '{name}'");
        let open = match was {
            "local" => dev.value("postgres", &sql).await,
            _ => second.query_one(&sql, &[]).await.expect("row").get(0),
        };
        assert_eq!(open, "false", "{name} on {was}");
    }
    stop.store(true, Ordering::Release);
    let acknowledged = writer.await.expect("writer");
    assert!(acknowledged.len() > 5, "{}", acknowledged.len());
    let shown = dev.cli_json(&["tenant", "show", "lyon"]).await;
    there.database = text(&shown["database"]).to_owned();
    let db = gmah_shared::pg::connect(&there, "test").await.expect("its database");
    let rows =
        db.query("select first_name from members where last_name = 'Set'", &[]).await.expect("members");
    let found: Vec<String> = rows.iter().map(|r| r.get(0)).collect();
    let set: BTreeSet<String> = found.iter().cloned().collect();
    assert_eq!(set.len(), found.len(), "none twice");
    assert_eq!(set, acknowledged, "none lost");
    drop(db);
    // Logins hold, and so does everything else that an organisation has.
    assert_eq!(dev.get_as("lyon", "/api/v1/members", &token).await.status, 200);
    assert!(dev.cli(&["tenant", "backup", "lyon"]).await.status.success());
    assert!(dev.cli(&["key", "rotate", "tenant", "lyon"]).await.status.success());

    for (why, args) in [
        ("already", ["tenant", "move", "lyon", "--server", "second"]),
        ("no server", ["tenant", "move", "lyon", "--server", "third"]),
        ("no organisation", ["tenant", "move", "nobody", "--server", "second"]),
    ] {
        let refused = dev.cli(&args).await;
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(refused.status.code() == Some(1) && said.contains(why), "{args:?}: {said}");
    }
    dev.execute("gmah_master", "update database_servers set max_databases = 1 where name = 'local'").await;
    let full = dev.cli(&["tenant", "move", "lyon", "--server", "local"]).await;
    assert!(String::from_utf8_lossy(&full.stderr).contains("room"), "{full:?}");
    dev.execute("gmah_master", "update database_servers set max_databases = 1000 where name = 'local'").await;

    // Killed before and after every step: gone on with, or given up, and served in either case.
    let (mut home, mut away) = ("second", "local");
    for (n, step) in ["plan", "role", "close", "drain", "copy", "fence", "switch", "open"].iter().enumerate()
    {
        for when in ["before", "after"] {
            let at = format!("tenant.move/{step}/{when}");
            let stays = async |why: &str| {
                let no = dev.cli(&["server", "remove", "second"]).await;
                let said = String::from_utf8_lossy(&no.stderr);
                assert!(no.status.code() == Some(1) && said.contains(why), "{at}: {said}");
            };
            let is_left = away == "second";
            stays(if is_left { "have left until" } else { "holds organisations" }).await;
            assert!(killed_at(&dev, &at, &["tenant", "move", "lyon", "--server", away]).await, "{at}");
            if is_left && dev.cli_json(&["tenant", "show", "lyon"]).await["server"] == "local" {
                stays("a move was left unfinished").await;
            }
            let left = dev.cli_json(&["operation", "list", "--unfinished"]).await;
            let id = text(&left[0]["id"]);
            let is_over = *step == "open" || (*step == "switch" && when == "after");
            if (n + usize::from(when == "after")).is_multiple_of(2) && !is_over {
                dev.cli_json(&["operation", "cancel", id]).await;
            } else {
                dev.cli_json(&["operation", "resume", id]).await;
                (home, away) = (away, home);
            }
            let shown = dev.cli_json(&["tenant", "show", "lyon"]).await;
            assert_eq!((&shown["server"], &shown["maintenance"]), (&json!(home), &json!(null)), "{at}");
            let served = || async { dev.get_as("lyon", "/api/v1/members?limit=1", &token).await.status };
            eventually(&at, Duration::from_secs(5), served, |s| *s == 200).await;
        }
    }
    // What an operator set for holds is as it was; and whom an operator holds the move does not let go.
    let numbers =
        "select concat_ws(' ', maintenance_mode, maintenance_hold_seconds, maintenance_hold_requests)
        from organizations where slug = 'lyon'";
    assert_eq!(dev.value("gmah_master", numbers).await, "10 100");
    dev.cli_json(&["tenant", "maintenance", "lyon", "hold", "--hold-seconds", "7", "--hold-requests", "9"])
        .await;
    dev.cli_json(&["tenant", "move", "lyon", "--server", away]).await;
    assert_eq!(dev.value("gmah_master", numbers).await, "hold 7 9");
    // Destroyed, it is gone from both.
    dev.cli_json(&["tenant", "delete", "lyon", "--yes-delete", "lyon", "--grace", "0s", "--without-backup"])
        .await;
    for sql in [
        "select count(*)::text from pg_roles where rolname = 'gmah_org_lyon'",
        "select count(*)::text from pg_database where datname like 'gmah_org_lyon_p%'",
    ] {
        assert_eq!(dev.value("postgres", sql).await, "0", "{sql}");
    }
    let copies = "select count(*)::text from pg_database where datname like 'gmah_org_lyon_p%'";
    let copies: String = second.query_one(copies, &[]).await.expect("row").get(0);
    let roles = "select count(*)::text from pg_roles where rolname = 'gmah_org_lyon'";
    let roles: String = second.query_one(roles, &[]).await.expect("row").get(0);
    assert_eq!((&*copies, &*roles), ("0", "0"));
}
