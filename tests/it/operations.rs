//! Operations of the control plane: killed at every step, gone on with, given up, and never run by two.

use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::accounts::{letters, token};
use crate::harness::dev::{BINARY, text};
use crate::harness::{Dev, eventually};

/// Runs a command that is to be killed by its own order, `KIND/STEP/WHEN`; true if it was.
pub(crate) async fn killed_at(dev: &Dev, at: &str, args: &[&str]) -> bool {
    let out = tokio::process::Command::new(BINARY)
        .args(args)
        .env("GMAH_CONFIG", text(&dev.info["config"]))
        .env("GMAH_KILL_AT", at)
        .stdin(Stdio::null())
        .output();
    let out = tokio::time::timeout(Duration::from_secs(60), out).await.expect("in time").expect("ran");
    std::os::unix::process::ExitStatusExt::signal(&out.status) == Some(9)
}

fn create<'a>(slug: &'a str, email: &'a str) -> [&'a str; 8] {
    ["tenant", "create", "--slug", slug, "--name", slug, "--admin-email", email]
}

/// The newest operation on an organisation.
async fn newest(dev: &Dev, slug: &str) -> Value {
    let listed = dev.cli_json(&["operation", "list", "--tenant", slug, "--limit", "1"]).await;
    dev.cli_json(&["operation", "show", text(&listed[0]["id"])]).await
}

/// Names of the steps that an operation took.
fn steps(shown: &Value) -> Vec<String> {
    shown["steps"].as_array().expect("steps").iter().map(|s| text(&s["name"]).to_owned()).collect()
}

/// One organisation, one database, one role, one administrator, and it answers.
async fn is_whole(dev: &Dev, slug: &str, at: &str) {
    let served = || async { dev.get(slug, "/api/v1/tenant").await.slug() };
    eventually(at, Duration::from_secs(2), served, |s| *s == (200, slug.to_owned())).await;
    let like = slug.replace('-', "_");
    for (database, sql) in [
        ("postgres", format!("select count(*) from pg_database where datname like 'gmah_org_{like}%'")),
        ("postgres", format!("select count(*) from pg_roles where rolname like 'gmah_org_{like}%'")),
        (
            "gmah_master",
            format!("select count(*) from organizations where slug = '{slug}' and status = 'active'"),
        ),
    ] {
        assert_eq!(dev.value(database, &sql).await, "1", "{at}: {sql}");
    }
    assert_eq!(dev.value(&format!("gmah_org_{like}"), "select count(*) from users").await, "1", "{at}");
}

/// The crash matrix of creating: killed before and after every step, then run again, or gone on with.
#[tokio::test(flavor = "multi_thread")]
async fn creating_killed_at_every_step_converges() {
    let dev = Dev::start().await;
    dev.create("whole").await;
    let all = steps(&newest(&dev, "whole").await);
    assert_eq!(all, ["reserve", "role", "database", "identity", "migrations", "administrator", "active"]);
    for (n, step) in all.iter().enumerate() {
        for when in ["before", "after"] {
            let slug = format!("k{n}-{when}");
            let email = format!("a@{slug}.example");
            let at = format!("tenant.create/{step}/{when}");
            assert!(killed_at(&dev, &at, &create(&slug, &email)).await, "{at}: not killed");
            let left = newest(&dev, &slug).await;
            assert_eq!((text(&left["state"]), &left["abandoned"]), ("running", &true.into()), "{at}");
            assert_eq!(text(&left["step"]), step, "{at}");
            let password = if when == "before" {
                let made = dev.cli_json(&create(&slug, &email)).await;
                text(&made["admin_password"]).to_owned()
            } else {
                let made = dev.cli_json(&["operation", "resume", text(&left["id"])]).await;
                assert_eq!((text(&made["state"]), &made["runners"]), ("done", &2.into()), "{at}");
                text(&made["admin_password"]).to_owned()
            };
            is_whole(&dev, &slug, &at).await;
            dev.login_as(&slug, &email, &password).await;
        }
    }
    assert_eq!(dev.cli_json(&["operation", "list", "--unfinished"]).await, serde_json::json!([]));
    // However often it was begun, the administrator has one letter, and chooses a password by it.
    for (n, _) in all.iter().enumerate() {
        for when in ["before", "after"] {
            let (slug, to) = (format!("k{n}-{when}"), format!("a@k{n}-{when}.example"));
            let letter = letters(&dev, &to, 1).await.remove(0);
            assert!(letter.contains(&format!("https://{}:", dev.host(&slug))), "{letter}");
            let body = serde_json::json!({"token": token(&letter, "invitation"), "new_password": "vingt mille lieues sous"});
            assert_eq!(dev.post(&slug, "/api/v1/auth/password/set", &[], &body).await.status, 204, "{slug}");
            dev.login_as(&slug, &to, "vingt mille lieues sous").await;
        }
    }
}

/// Given up at any step: nothing of it is left, and its slug is free.
#[tokio::test(flavor = "multi_thread")]
async fn creating_given_up_leaves_nothing() {
    let dev = Dev::start().await;
    let before =
        dev.value("postgres", "select count(*) from pg_database where datname like 'gmah_org%'").await;
    for (step, when) in [
        ("reserve", "before"),
        ("reserve", "after"),
        ("role", "after"),
        ("database", "after"),
        ("active", "before"),
    ] {
        let at = format!("tenant.create/{step}/{when}");
        assert!(killed_at(&dev, &at, &create("nice", "a@nice.example")).await, "{at}");
        let left = newest(&dev, "nice").await;
        // Whoever asks for something else is told of what lies there.
        let other = dev.cli(&create("nice", "b@nice.example")).await;
        let said = String::from_utf8_lossy(&other.stderr).into_owned();
        assert_eq!(other.status.code(), Some(1), "{at}: {said}");
        assert!(said.contains("taken") || said.contains(text(&left["id"])), "{at}: {said}");
        let gone = dev.cli_json(&["operation", "cancel", text(&left["id"])]).await;
        assert_eq!(text(&gone["state"]), "cancelled", "{at}");
        let left_over = "select (select count(*) from pg_roles where rolname = 'gmah_org_nice')";
        assert_eq!(dev.value("postgres", left_over).await, "0", "{at}");
        let databases = "select count(*) from pg_database where datname like 'gmah_org%'";
        assert_eq!(dev.value("postgres", databases).await, before, "{at}");
        assert_eq!(dev.get("nice", "/api/v1/tenant").await.status, 404, "{at}");
    }
    let password = dev.create("nice").await;
    dev.login_as("nice", "admin@nice.example", &password).await;
    // What is over is over.
    let done = newest(&dev, "nice").await;
    for what in ["resume", "cancel"] {
        let out = dev.cli(&["operation", what, text(&done["id"])]).await;
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!((out.status.code(), said.contains("is done")), (Some(1), true), "{what}: {said}");
    }
    for (args, code) in [
        (&["operation", "show", "018f0000-0000-7000-8000-000000000000"][..], Some(1)),
        (&["operation", "show", "nonsense"], Some(2)),
        (&["operation", "list", "--limit", "0"], Some(2)),
        (&["operation", "list", "--tenant", "NOT A SLUG"], Some(2)),
    ] {
        assert_eq!(dev.cli(args).await.status.code(), code, "{args:?}");
    }
}

/// L-05: a runner that was taken for dead and is not: what it still does is not noted, and the other's work stands.
#[tokio::test(flavor = "multi_thread")]
async fn l05_a_runner_that_comes_back_is_fenced_off() {
    let dev = Dev::start().await;
    let args = create("nice", "a@nice.example");
    let mut child = tokio::process::Command::new(BINARY)
        .args(args)
        .env("GMAH_CONFIG", text(&dev.info["config"]))
        .env("GMAH_STOP_AT", "tenant.create/identity/before")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started");
    let at = || async { newest_step(&dev).await };
    eventually("it stands still", Duration::from_secs(20), at, |s| s == "identity").await;
    // It runs: nobody else may, and nobody may give it up.
    let left = newest(&dev, "nice").await;
    assert_eq!((text(&left["state"]), &left["abandoned"]), ("running", &false.into()));
    let out = dev.cli(&["operation", "cancel", text(&left["id"])]).await;
    assert!(String::from_utf8_lossy(&out.stderr).contains("is running"), "{out:?}");
    // As if its machine had gone: the server ends its sessions.
    let sessions = "from pg_stat_activity where application_name = 'gmah control'";
    let count = format!("select count(*) {sessions}");
    // With the master, the server, and the database; those of the command that was refused may be on their way out.
    eventually("three", Duration::from_secs(20), || dev.value("postgres", &count), |n| n == "3").await;
    dev.execute("postgres", &format!("select pg_terminate_backend(pid) {sessions}")).await;
    let made = dev.cli_json(&args).await;
    assert_eq!(made["created"], true);
    let pid = Pid::from_raw(i32::try_from(child.id().expect("running")).expect("id")).expect("id");
    kill_process(pid, Signal::CONT).expect("told");
    let status =
        tokio::time::timeout(Duration::from_secs(20), child.wait()).await.expect("ends").expect("wait");
    assert_eq!(status.code(), Some(1), "it did nothing, and says so");
    is_whole(&dev, "nice", "after both").await;
    dev.login_as("nice", "a@nice.example", text(&made["admin_password"])).await;
    // And with its session alive: a note of an older runner is refused.
    let out = tokio::process::Command::new(BINARY)
        .args(create("nancy", "a@nancy.example"))
        .env("GMAH_CONFIG", text(&dev.info["config"]))
        .env("GMAH_STOP_AT", "tenant.create/identity/before")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started");
    let at = || async { newest_step(&dev).await };
    eventually("it stands still", Duration::from_secs(20), at, |s| s == "identity").await;
    dev.execute("gmah_master", "update operations set fence = fence + 1 where state = 'running'").await;
    let pid = Pid::from_raw(i32::try_from(out.id().expect("running")).expect("id")).expect("id");
    kill_process(pid, Signal::CONT).expect("told");
    let out = tokio::time::timeout(Duration::from_secs(20), out.wait_with_output())
        .await
        .expect("ends")
        .expect("wait");
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!((out.status.code(), said.contains("another runner")), (Some(1), true), "{said}");
    dev.cli_json(&create("nancy", "a@nancy.example")).await;
    is_whole(&dev, "nancy", "after the other").await;
}

async fn newest_step(dev: &Dev) -> String {
    let sql = "select s.name from operation_steps s join operations o on o.id = s.operation_id
        where o.state = 'running' and s.state = 'running'";
    dev.value("gmah_master", sql).await
}
