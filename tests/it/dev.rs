//! `gmah dev` itself: started again, killed, refused.

use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use crate::harness::Dev;
use crate::harness::dev::{dev_command, text};

fn postgres_pid(dev: &Dev) -> i32 {
    let file = std::fs::read_to_string(dev.folder().join("data/pg/postmaster.pid")).expect("pid file");
    file.lines().next().and_then(|l| l.trim().parse().ok()).expect("pid")
}

fn is_running(pid: i32) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // A zombie has ended; in a container nobody may be there to collect it.
    !state.is_empty() && !state.contains(") Z ")
}

#[tokio::test(flavor = "multi_thread")]
async fn started_again_it_keeps_the_data() {
    let dev = Dev::start().await;
    for path in [
        "ready.json",
        "data/gmah.toml",
        "data/credentials.json",
        "data/secrets/master.key",
        "data/certs/ca.key",
        "data/certs/server.key",
        "data/secrets/postgres.password",
    ] {
        let mode = std::fs::metadata(dev.folder().join(path)).expect(path).permissions().mode();
        assert_eq!(mode & 0o077, 0, "{path}");
    }
    let info = dev.info.clone();
    let printed = dev.log();
    for who in info["tenants"].as_array().expect("tenants").iter().chain([&info["system_admin"]]) {
        let field =
            |name: &str| who.get(format!("admin_{name}")).unwrap_or(&who[name]).as_str().expect("text");
        let line = printed.lines().find(|l| l.contains(text(&who["host"])) && l.contains(field("email")));
        assert!(line.is_some_and(|l| l.contains(field("password"))), "{printed}");
    }
    assert_eq!(info["tenants"].as_array().expect("tenants").len(), 3);
    for tenant in info["tenants"].as_array().expect("tenants") {
        let slug = text(&tenant["slug"]);
        assert_eq!(dev.get(slug, "/api/v1/tenant").await.slug(), (200, slug.to_owned()));
        dev.login(slug).await;
    }
    assert_eq!(dev.get("paris", "/api/v1/tenant").await.json()["plan"], "professional");
    dev.create("nice").await;
    let pid = postgres_pid(&dev);
    let folder = dev.stop().await;
    assert!(!is_running(pid), "PostgreSQL stopped with it");
    assert!(!folder.path().join("ready.json").exists());

    let began = Instant::now();
    let dev = Dev::start_in(folder, &[]).await;
    assert!(began.elapsed() < Duration::from_secs(20));
    assert_eq!(dev.info["tenants"], info["tenants"], "the same credentials");
    assert_eq!(dev.info["ca"], info["ca"]);
    assert_eq!(dev.get("nice", "/api/v1/tenant").await.status, 200);
    dev.login("paris").await;
    assert_eq!(dev.value("gmah_org_paris", "select count(*) > 200 from members").await, "t");
    assert_eq!(dev.value("gmah_org_hopital_central", "select count(*) > 200 from patients").await, "t");

    // A second one on the same folder is refused, and disturbs nothing.
    let out = dev_command(dev.folder()).output().await.expect("ran");
    assert!(!out.status.success());
    assert!(String::from_utf8_lossy(&out.stderr).contains("another gmah dev"));
    assert_eq!(dev.get("paris", "/api/v1/tenant").await.status, 200);
    let folder = dev.stop().await;

    let dev = Dev::start_in(folder, &["--reset"]).await;
    assert_eq!(dev.get("nice", "/api/v1/tenant").await.status, 404, "thrown away");
    assert_ne!(dev.info["tenants"], info["tenants"]);
    assert_eq!(dev.get("paris", "/api/v1/tenant").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_run_is_cleaned_up_by_the_next() {
    let dev = Dev::start().await;
    let token = dev.login("paris").await;
    let pid = postgres_pid(&dev);
    let folder = dev.kill().await;
    assert!(is_running(pid), "PostgreSQL outlives a kill -9");
    std::fs::remove_file(folder.path().join("ready.json")).expect("stale ready file");
    let dev = Dev::start_in(folder, &[]).await;
    assert!(!is_running(pid), "and is stopped by the next run");
    assert_eq!(
        dev.get_as("paris", "/api/v1/auth/me", &token).await.status,
        200,
        "what was acknowledged is there"
    );
}

/// Below a folder that is closed to the user PostgreSQL runs as, the cluster lies elsewhere, and stays when the data folder
/// is removed by hand.
#[tokio::test(flavor = "multi_thread")]
async fn a_data_folder_removed_by_hand_is_made_again() {
    let folder = tempfile::tempdir().expect("folder");
    let mode = |mode| std::os::unix::fs::PermissionsExt::from_mode(mode);
    std::fs::set_permissions(folder.path(), mode(0o700)).expect("mode");
    let dev = Dev::start_in(folder, &[]).await;
    dev.create("nice").await;
    let folder = dev.stop().await;
    let data = folder.path().join("data");
    let elsewhere = std::fs::read_to_string(data.join("cluster")).ok();
    assert_eq!(
        elsewhere.is_some(),
        rustix::process::getuid().is_root(),
        "root's PostgreSQL is somebody else's"
    );
    std::fs::remove_dir_all(&data).expect("removed");

    let dev = Dev::start_in(folder, &[]).await;
    assert_eq!(dev.get("paris", "/api/v1/tenant").await.status, 200);
    assert_eq!(dev.get("nice", "/api/v1/tenant").await.status, 404, "another cluster");
    let _folder = dev.stop().await;
    if let Some(elsewhere) = elsewhere {
        let elsewhere = std::path::Path::new(elsewhere.trim());
        let before = elsewhere.with_extension("before");
        assert!(before.join("PG_VERSION").exists(), "the one before is kept");
        std::fs::remove_dir_all(elsewhere.parent().expect("folder")).expect("removed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_work_is_said() {
    let folder = tempfile::tempdir().expect("folder");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).expect("mode");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = taken.local_addr().expect("address").port().to_string();
    for (args, want) in [
        (vec!["--https-port", port.as_str()], "--https-port"),
        (vec!["--http-port", port.as_str()], "--http-port"),
        (vec!["--base-domain", "127.0.0.1"], "--base-domain"),
        (vec!["--base-domain", "no such"], "--base-domain"),
        (vec!["--pg-bin", "/nowhere"], "initdb"),
        (vec!["--https-port", "99999"], "99999"),
    ] {
        let mut command = tokio::process::Command::new(crate::harness::dev::BINARY);
        command.args(["dev", "--admin-port", "0", "--data-dir"]).arg(folder.path().join("data"));
        for other in ["--https-port", "--http-port"] {
            if !args.contains(&other) {
                command.args([other, "0"]);
            }
        }
        let out = command.args(&args).stdin(std::process::Stdio::null()).output().await.expect("ran");
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(
            !out.status.success() && said.contains(want) && !said.contains("panicked"),
            "{args:?}: {said}"
        );
    }
}
