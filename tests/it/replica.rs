//! A copy of a PostgreSQL server: what only reads is served there, and nobody can tell by what is read.

use std::time::Duration;

use serde_json::json;

use crate::harness::dev::text;
use crate::harness::{Answer, Dev, eventually};
use crate::transport::standby;

const READS: &str = "gmah_api_replica_reads_total";

async fn add(dev: &Dev, name: &str, port: u16, of: &str) -> std::process::Output {
    let password = dev.folder().join("password");
    std::fs::write(&password, text(&dev.info["postgres"]["password"])).expect("written");
    let (port, password) = (port.to_string(), password.display().to_string());
    let to = ["server", "add", "--name", name, "--host", "127.0.0.1", "--port", &port, "--user", "gmah"];
    dev.cli(&[&to[..], &["--password-file", &password, "--replica-of", of]].concat()).await
}

async fn reads(dev: &Dev, result: &str) -> f64 {
    dev.metrics("api_admin").await.sum(READS, &[&format!("\"{result}\"")])
}

/// Every route that only reads works at a server that takes no writes, and shows at once what was written elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn what_only_reads_is_served_at_the_copy() {
    let dev = Dev::start().await;
    dev.cli_json(&["module", "enable", "paris", "patients"]).await;
    let (_child, port) = standby(&dev).await;
    let added = add(&dev, "copy", port, "local").await;
    assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
    let listed = dev.cli_json(&["server", "list"]).await;
    assert_eq!((&listed[0]["replica_of"], &listed[1]["replica_of"]), (&json!("local"), &json!(null)));
    let bearer = format!("Bearer {}", dev.login("paris").await);
    let headers = [("Authorization", &*bearer)];
    let get = |path: String| {
        let (dev, headers) = (&dev, &headers);
        async move { dev.client.send("GET", &dev.host("paris"), &path, headers, None).await }
    };
    // Its places are dealt out when it is first asked for.
    let served = || async {
        assert_eq!(get("/api/v1/members".into()).await.status, 200);
        reads(&dev, "served").await
    };
    eventually("served", Duration::from_secs(20), served, |n| *n > 0.0).await;

    // What was just written is there, each time: a copy that is a moment behind is waited for, or not asked.
    for n in 0..40 {
        let member = json!({"first_name": format!("n{n}"), "last_name": "Just now"});
        let made = dev.post("paris", "/api/v1/members", &headers, &member).await;
        assert_eq!(made.status, 201, "{made:?}");
        let id = text(&made.json()["id"]).to_owned();
        let seen = get(format!("/api/v1/members/{id}")).await;
        assert_eq!((seen.status, &seen.json()["first_name"]), (200, &json!(format!("n{n}"))), "{seen:?}");
    }
    // A login that has ended has ended there too.
    let other = dev.login("paris").await;
    let out = [("Authorization", &*format!("Bearer {other}"))];
    assert_eq!(dev.post("paris", "/api/v1/auth/logout", &out, &json!({})).await.status, 204);
    assert_eq!(dev.get_as("paris", "/api/v1/members", &other).await.status, 401);

    for route in gmah_api::routes::TABLE.iter().filter(|r| r.reads_only) {
        let id = uuid::Uuid::new_v4().to_string();
        let before = reads(&dev, "served").await;
        let path = route.path.replace("{id}", &id);
        let answered = || async {
            let seen: Answer = get(path.clone()).await;
            assert!(matches!(seen.status, 200 | 404), "{route:?}: {seen:?}");
            reads(&dev, "served").await
        };
        eventually(route.path, Duration::from_secs(10), answered, |n| *n > before).await;
    }
    for path in [
        "/api/v1/overview/loans",
        "/api/v1/overview/patients",
        "/api/v1/members/export",
        "/api/v1/patients/export",
    ] {
        let before = reads(&dev, "served").await;
        assert_eq!(get(path.into()).await.status, 200, "{path}");
        assert!(reads(&dev, "served").await > before, "{path}");
    }
    // The budget of the copy is one of its own, and organisations are never placed there.
    let sum = dev.metrics("api_admin").await;
    assert!(sum.sum("gmah_api_server_connections", &["\"copy\"", "\"limit\""]) > 0.0);
    dev.create("placed").await;
    assert_eq!(dev.cli_json(&["tenant", "show", "placed"]).await["server"], "local");
}

/// A copy that is late, or gone, costs a moment and no answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_late_or_away_is_not_needed() {
    let dev = Dev::start().await;
    let (mut child, port) = standby(&dev).await;
    assert!(add(&dev, "copy", port, "local").await.status.success());
    let token = dev.login("paris").await;
    let list = || async { dev.get_as("paris", "/api/v1/members", &token).await };
    let served = || async {
        assert_eq!(list().await.status, 200);
        reads(&dev, "served").await
    };
    eventually("served", Duration::from_secs(20), served, |n| *n > 0.0).await;

    // It says nothing of what happens from now on.
    let copy = crate::transport::at(&dev, port).await;
    copy.batch_execute("select pg_wal_replay_pause()").await.expect("paused");
    let bearer = format!("Bearer {token}");
    for n in 0..5 {
        let member = json!({"first_name": format!("late{n}"), "last_name": "x"});
        let headers = [("Authorization", &*bearer)];
        let made = dev.post("paris", "/api/v1/members", &headers, &member).await;
        let id = text(&made.json()["id"]).to_owned();
        let seen = dev.get_as("paris", &format!("/api/v1/members/{id}"), &token).await;
        assert_eq!(seen.status, 200, "{seen:?}");
    }
    assert!(reads(&dev, "late").await > 0.0);
    copy.batch_execute("select pg_wal_replay_resume()").await.expect("goes on");
    let before = reads(&dev, "served").await;
    eventually("served again", Duration::from_secs(10), served, |n| *n > before).await;

    child.kill().await.expect("killed");
    for _ in 0..20 {
        let seen = list().await;
        assert_eq!(seen.status, 200, "{seen:?}");
    }
    assert!(reads(&dev, "failed").await > 0.0);
    let gone = dev.cli(&["server", "remove", "copy"]).await;
    assert!(gone.status.success(), "{}", String::from_utf8_lossy(&gone.stderr));
    let counted = || async {
        let before = reads(&dev, "failed").await + reads(&dev, "late").await;
        assert_eq!(list().await.status, 200);
        reads(&dev, "failed").await + reads(&dev, "late").await - before
    };
    eventually("not asked any more", Duration::from_secs(5), counted, |n| *n == 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_copy_is_refused() {
    let dev = Dev::start().await;
    let other = Dev::start().await;
    let refused = async |name: &str, port: u16, of: &str, why: &str| {
        let out = add(&dev, name, port, of).await;
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.code() == Some(1) && said.contains(why), "{why}: {said}");
    };
    refused("copy", dev.postgres_port(), "local", "no standby of local").await;
    refused("copy", other.postgres_port(), "local", "server copy").await;
    refused("copy", dev.postgres_port(), "nowhere", "there is no server nowhere").await;
    refused("local", dev.postgres_port(), "local", "is there already").await;
    let (_child, port) = standby(&dev).await;
    assert!(add(&dev, "copy", port, "local").await.status.success());
    assert!(add(&dev, "copy", port, "local").await.status.success(), "again is the same");
    refused("second", port, "copy", "copy is a copy itself").await;
    let (_other, theirs) = standby(&other).await;
    // Of another cluster: its password is not ours either, so it is made ours for a moment.
    other
        .execute(
            "postgres",
            &format!("alter role gmah password '{}'", text(&dev.info["postgres"]["password"])),
        )
        .await;
    let same = || async {
        String::from_utf8_lossy(&add(&dev, "stranger", theirs, "local").await.stderr).into_owned()
    };
    eventually("a stranger's", Duration::from_secs(10), same, |s| s.contains("no standby of local")).await;
    for (name, why) in [("local", "holds organisations"), ("nowhere", "there is no server")] {
        let out = dev.cli(&["server", "remove", name]).await;
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.code() == Some(1) && said.contains(why), "{said}");
    }
}
