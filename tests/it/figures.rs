//! What is known of organisations from within, what they use, and the alerts that are made of it.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::dev::{Metrics, text};
use crate::harness::{Dev, eventually};

const SOON: Duration = Duration::from_secs(20);

/// Often, so that nobody waits long.
const OFTEN: &str = "[metrics]\ncollect_every = \"1s\"\n";

#[tokio::test(flavor = "multi_thread")]
async fn figures_are_collected_and_shown() {
    let dev = Dev::start_with(OFTEN).await;
    let token = dev.login("paris").await;
    let bearer = format!("Bearer {token}");
    let member = json!({"first_name": "Ada", "last_name": "Byron"});
    let made = dev.post("paris", "/api/v1/members", &[("Authorization", &bearer)], &member).await;
    assert_eq!(made.status, 201, "{made:?}");
    let members = dev.value("gmah_org_paris", "select count(*) from members").await;
    let has = |m: &Metrics| {
        m.sum("gmah_tenant_members", &["tenant=\"paris\""]).to_string() == members
            && m.sum("gmah_tenant_last_activity_timestamp_seconds", &["tenant=\"paris\""]) > 1.7e9
    };
    let metrics = eventually("collected", SOON, || dev.metrics("api_admin"), has).await;
    for (name, at_least) in [
        ("gmah_tenant_database_size_bytes", 1e6),
        ("gmah_tenant_connections", 0.0),
        ("gmah_tenant_users", 1.0),
        ("gmah_tenant_active_loans", 0.0),
        ("gmah_tenant_month_transactions", 0.0),
        ("gmah_tenant_storage_bytes", 0.0),
        ("gmah_tenant_health", 0.0),
        ("gmah_tenant_collected_timestamp_seconds", 1.7e9),
    ] {
        let sample = metrics.0.lines().find(|l| l.starts_with(&format!("{name}{{tenant=\"paris\"}}")));
        let value: f64 = sample.and_then(|l| l.rsplit(' ').next()?.parse().ok()).unwrap_or(-1.0);
        assert!(value >= at_least, "{name}: {value}");
    }
    let schema = metrics.sum("gmah_tenant_schema_version", &["tenant=\"paris\"", "set=\"core\""]);
    let newest = dev
        .value("gmah_org_paris", "select max(version) from schema_migrations where set_name = 'core'")
        .await;
    assert_eq!(schema.to_string(), newest);
    assert!(!metrics.0.contains("gmah_tenant_active_loans{tenant=\"hopital-central\"}"), "it has no loans");
    assert_eq!(crate::metrics::promtool(&metrics.0).await, "");

    let shown = dev.cli_json(&["tenant", "show", "paris"]).await;
    let figures = &shown["figures"];
    assert_eq!((&figures["health"], &figures["reasons"]), (&json!("healthy"), &json!([])), "{shown}");
    assert_eq!(figures["members"].to_string(), members);
    let listed = String::from_utf8(dev.cli(&["tenant", "list"]).await.stdout).expect("text");
    let line = listed.lines().find(|l| l.starts_with("paris")).expect("listed");
    assert!(line.contains("healthy") && line.contains("current"), "{listed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_away_keeps_nobody_waiting() {
    let dev = Dev::start_with(OFTEN).await;
    let collected = async |slug: &str| -> f64 {
        let label = format!("tenant=\"{slug}\"");
        dev.metrics("api_admin").await.sum("gmah_tenant_collected_timestamp_seconds", &[&label])
    };
    eventually(
        "both",
        SOON,
        async || (collected("paris").await, collected("lyon").await),
        |(a, b)| *a > 0.0 && *b > 0.0,
    )
    .await;
    dev.set_reachable("gmah_org_paris", false).await;
    let shown = async || dev.cli_json(&["tenant", "show", "paris"]).await["figures"].clone();
    let seen = eventually("noticed", SOON, shown, |f| f["health"] == "critical").await;
    assert_eq!(seen["reasons"], json!(["database_unreachable"]));
    assert!(seen["users"].as_i64().expect("users") > 0, "what was known stays known");
    let health = || async { dev.metrics("api_admin").await.sum("gmah_tenant_health", &["tenant=\"paris\""]) };
    eventually("shown", SOON, health, |n| *n == 2.0).await;
    let (away, before) = (collected("paris").await, collected("lyon").await);
    eventually("lyon goes on", SOON, || collected("lyon"), |at| *at > before + 3.0).await;
    assert_eq!(collected("paris").await, away, "when it was seen last");
    dev.set_reachable("gmah_org_paris", true).await;
    eventually("back", SOON, shown, |f| f["health"] == "healthy").await;

    // One that answers, and does not say all of it in time, is another matter; and it, too, keeps nobody waiting.
    let mut holder = dev.superuser("gmah_org_paris").await;
    let held = holder.transaction().await.expect("transaction");
    held.batch_execute("lock table users in access exclusive mode").await.expect("locked");
    let late = eventually("late", SOON * 2, shown, |f| f["health"] == "warning").await;
    assert_eq!(late["reasons"], json!(["figures_failed"]));
    let before = collected("lyon").await;
    eventually("lyon goes on", SOON, || collected("lyon"), |at| *at > before + 3.0).await;
    held.rollback().await.expect("rolled back");
    eventually("back", SOON * 2, shown, |f| f["health"] == "healthy").await;

    // A suspended one is not looked into, and has a size all the same; one that is deleted has nothing.
    dev.cli_json(&["tenant", "suspend", "lyon"]).await;
    dev.create("gone").await;
    let of = |slug: &'static str| {
        let dev = &dev;
        async move {
            let label = format!("tenant=\"{slug}\"");
            dev.metrics("api_admin").await.sum("gmah_tenant_database_size_bytes", &[&label])
        }
    };
    eventually("a new one", SOON, || of("gone"), |bytes| *bytes > 0.0).await;
    dev.cli_json(&["tenant", "delete", "gone", "--yes-delete", "gone", "--without-backup"]).await;
    eventually("a deleted one", SOON, || of("gone"), |bytes| *bytes == 0.0).await;
    assert!(of("lyon").await > 0.0);
    let before = collected("lyon").await;
    eventually("its size is looked at", SOON, || collected("lyon"), |at| *at > before).await;
    let closed = dev.metrics("api_admin").await.sum("gmah_tenant_closed", &["tenant=\"lyon\""]);
    assert_eq!(closed, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn reasons_to_look_after_an_organisation() {
    let dev = Dev::start_with(OFTEN).await;
    dev.cli_json(&["tenant", "set", "lyon", "limits.members=1"]).await;
    dev.execute(
        "gmah_master",
        "update organization_figures set schema = '{}', due_at = now();
         insert into backups (id, organization_id, slug, operation_id, state, verified_at, verification)
         select gen_random_uuid(), id, slug, gen_random_uuid(), 'done', now(), 'x' from organizations where slug = 'lyon'",
    )
    .await;
    let token = dev.login("lyon").await;
    let bearer = format!("Bearer {token}");
    let member = json!({"first_name": "Ada", "last_name": "Byron"});
    let answer = dev.post("lyon", "/api/v1/members", &[("Authorization", &bearer)], &member).await;
    assert!([201, 409].contains(&answer.status), "{answer:?}");
    let shown = async || dev.cli_json(&["tenant", "show", "lyon"]).await["figures"].clone();
    let has_both = |f: &Value| f["reasons"] == json!(["backup_not_well", "members_full"]);
    let seen = eventually("both", SOON, shown, has_both).await;
    assert_eq!(seen["health"], "critical");
    dev.execute("gmah_org_lyon", "delete from schema_migrations where set_name = 'core' and version >= 7")
        .await;
    eventually("the schema as well", SOON, shown, |f| f["reasons"].to_string().contains("schema_behind"))
        .await;
    let listed = dev.cli_json(&["tenant", "list"]).await;
    let lyon = listed.as_array().expect("list").iter().find(|t| t["slug"] == "lyon").expect("lyon").clone();
    assert_eq!(lyon["health"], "critical");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_and_bytes_are_metered_exactly() {
    let dev = Dev::start_with(OFTEN).await;
    dev.create("metered").await;
    let mut bytes = 0;
    for _ in 0..25 {
        let answer = dev.get("metered", "/api/v1/tenant").await;
        assert_eq!(answer.status, 200);
        bytes += answer.body.len() as i64;
    }
    for _ in 0..5 {
        let login = json!({"email": "x@y.example", "password": "wrong"});
        let answer = dev.post("metered", "/api/v1/auth/login", &[], &login).await;
        assert_eq!(answer.status, 401);
        bytes += answer.body.len() as i64;
    }
    let sent = 5 * json!({"email": "x@y.example", "password": "wrong"}).to_string().len() as i64;
    let usage = async |dev: &Dev| {
        let shown = dev.cli_json(&["tenant", "show", "metered"]).await;
        let month = &shown["usage"][0];
        (month["requests"].as_i64(), month["bytes_in"].as_i64(), month["bytes_out"].as_i64())
    };
    let all = (Some(30), Some(sent), Some(bytes));
    eventually("written down", Duration::from_secs(30), || usage(&dev), |seen| *seen == all).await;
    // What was not handed over yet is, at the end; and nothing is counted twice.
    for _ in 0..7 {
        assert_eq!(dev.get("metered", "/api/v1/tenant").await.status, 200);
    }
    let folder = dev.stop().await;
    let dev = Dev::start_in(folder, &[]).await;
    assert_eq!(usage(&dev).await.0, Some(37));
    let months = dev.value("gmah_master", "select count(*) from organization_usage u join organizations o on o.id = u.organization_id where o.slug = 'metered'").await;
    assert_eq!(months, "1");
    let shown = dev.cli_json(&["tenant", "show", "metered"]).await;
    assert!(shown["usage"][0]["database_bytes"].as_i64().expect("bytes") > 0);
    assert_eq!(text(&shown["slug"]), "metered");
}

/// Rules are YAML that nobody compiles: their own tests, run by the program that reads them.
#[tokio::test]
async fn alert_rules_hold_their_tests_and_name_what_there_is() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus");
    let run = async |args: &[&str]| {
        let out = tokio::process::Command::new("promtool").args(args).current_dir(&folder).output().await;
        let out = out.expect("promtool (Debian package prometheus)");
        assert!(out.status.success(), "{args:?}: {out:?}");
    };
    run(&["check", "rules", "alerts.yml"]).await;
    run(&["test", "rules", "alerts.test.yml"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_of_a_rule_is_there() {
    let dev = Dev::start_with(OFTEN).await;
    let id = text(&dev.cli_json(&["tenant", "backup", "paris"]).await["backup_id"]).to_owned();
    dev.cli_json(&["backup", "verify", &id]).await;
    dev.get("paris", "/api/v1/tenant").await;
    let rules = std::fs::read_to_string(
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus/alerts.yml"),
    )
    .expect("rules");
    let mut names: Vec<&str> = rules
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| {
            ["gmah_router_", "gmah_api_", "gmah_tenant_", "gmah_catalog_"].iter().any(|p| word.starts_with(p))
        })
        .collect();
    names.sort_unstable();
    names.dedup();
    assert!(names.len() > 10);
    let all = || async { dev.metrics("admin").await.0 + &dev.metrics("api_admin").await.0 };
    let has = |text: &String| {
        names.iter().all(|name| {
            text.lines().any(|l| {
                l.strip_prefix(name).is_some_and(|rest| rest.starts_with('{') || rest.starts_with(' '))
            })
        })
    };
    let found = eventually("all of them", SOON, all, has).await;
    assert!(found.contains("gmah_tenant_last_backup_verified{tenant=\"paris\"} 1"));
    assert!(found.contains("state=\"up\""), "the word that the rule on backends has");
}
