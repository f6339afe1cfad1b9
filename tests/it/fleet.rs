//! Things done to many organisations: reports, canaries, runs that are gone on with.

use std::time::Duration;

use crate::harness::dev::text;
use crate::harness::{Dev, eventually};
use crate::operations::killed_at;

/// A fleet run with one broken organisation: the others are done, the broken one is named, the exit code says so.
#[tokio::test(flavor = "multi_thread")]
async fn migrating_the_fleet() {
    let dev = Dev::start().await;
    let nothing = dev.cli_json(&["tenant", "migrate", "--all"]).await;
    assert_eq!((&nothing["failed"], nothing["tenants"].as_array().map(Vec::len)), (&0.into(), Some(3)));
    // As if lyon and paris were older than this program; paris cannot be migrated.
    for database in ["gmah_org_lyon", "gmah_org_paris"] {
        dev.execute(database, "delete from schema_migrations where set_name = 'loans'").await;
    }
    let clear = "drop table payments, loan_guarantors, loans, members, families; drop function payments_stay";
    dev.execute("gmah_org_lyon", clear).await;
    let dry = dev.cli(&["tenant", "migrate", "lyon", "--dry-run"]).await;
    assert!(String::from_utf8_lossy(&dry.stdout).contains("would apply loans/0001_members"), "{dry:?}");
    assert_eq!(dev.value("gmah_org_lyon", "select to_regclass('members') is null").await, "t");
    let out = dev.cli(&["tenant", "migrate", "--all", "--json"]).await;
    assert_eq!(out.status.code(), Some(3));
    let report: serde_json::Value = serde_json::from_slice(&out.stdout).expect("JSON");
    let of = |slug: &str| {
        report["tenants"].as_array().expect("tenants").iter().find(|t| t["slug"] == slug).expect(slug).clone()
    };
    assert_eq!(of("lyon")["applied"][0]["name"], "members");
    let why = text(&of("paris")["error"]).to_owned();
    assert!(why.contains("already exists"), "{why}");
    assert!(why.contains("line ") && why.contains("create table members"), "which statement it was: {why}");
    assert!(of("hopital-central")["error"].is_null());
    let token = dev.login("lyon").await;
    assert_eq!(dev.get_as("lyon", "/api/v1/members", &token).await.json()["items"], serde_json::json!([]));
    // The run is in the journal, with what came of each, and is gone on with once paris can be migrated.
    let shown = dev.cli_json(&["operation", "show", text(&report["operation"])]).await;
    assert_eq!((text(&shown["state"]), &shown["runners"]), ("failed", &1.into()), "{shown}");
    let items = "select string_agg(o.slug || '=' || i.state, ' ' order by o.slug) from operation_items i
        join organizations o on o.id = i.organization_id
        where i.operation_id = (select id from operations order by created_at desc limit 1)";
    assert_eq!(dev.value("gmah_master", items).await, "hopital-central=done lyon=done paris=failed");
    dev.execute("gmah_org_paris", clear).await;
    let again = dev.cli_json(&["tenant", "migrate", "--resume"]).await;
    assert_eq!((&again["failed"], &again["operation"]), (&0.into(), &report["operation"]));
    assert_eq!(dev.value("gmah_master", items).await, "hopital-central=done lyon=done paris=done");
    let runs = "select count(*) from operations where kind = 'fleet.migrate' and id::text = ";
    let done = format!("{runs}'{}' and state = 'done' and fence = 2", text(&report["operation"]));
    assert_eq!(dev.value("gmah_master", &done).await, "1");
    let nothing = dev.cli(&["tenant", "migrate", "--resume"]).await;
    assert_eq!(nothing.status.code(), Some(1), "there is nothing to go on with: {nothing:?}");
    // No more than so many failures.
    for database in ["gmah_org_lyon", "gmah_org_paris"] {
        dev.execute(database, "delete from schema_migrations where set_name = 'loans'").await;
    }
    let out = dev
        .cli(&["tenant", "migrate", "paris", "lyon", "--max-failures", "1", "--parallel", "1", "--json"])
        .await;
    let report: serde_json::Value = serde_json::from_slice(&out.stdout).expect("JSON");
    assert_eq!((out.status.code(), &report["failed"]), (Some(3), &2.into()), "{report}");
    assert_eq!(report["tenants"][0]["skipped"], true);
    // A canary that fails keeps all others from being begun.
    dev.execute("gmah_org_lyon", clear).await;
    let out = dev.cli(&["tenant", "migrate", "paris", "lyon", "--canary", "1", "--json"]).await;
    let report: serde_json::Value = serde_json::from_slice(&out.stdout).expect("JSON");
    assert_eq!((out.status.code(), &report["failed"]), (Some(3), &2.into()), "{report}");
    let lyon =
        report["tenants"].as_array().expect("tenants").iter().find(|t| t["slug"] == "lyon").expect("lyon");
    assert_eq!(lyon["skipped"], true, "{report}");
    // One run at a time.
    let runner = dev.superuser("gmah_master").await;
    runner
        .execute("select pg_advisory_lock(hashtextextended('gmah fleet/migrate', 0))", &[])
        .await
        .expect("held");
    let second = dev.cli(&["tenant", "migrate", "lyon"]).await;
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!((second.status.code(), said.contains("under way")), (Some(1), true), "{said}");
    drop(runner);
    let unknown = dev.cli(&["tenant", "migrate", "nobody"]).await;
    assert_eq!(unknown.status.code(), Some(1));
}

/// Killed in the middle of a run: what was done stays done, and the rest follows.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_killed_is_gone_on_with() {
    let dev = Dev::start().await;
    for when in ["before", "after"] {
        for database in ["gmah_org_lyon", "gmah_org_paris"] {
            dev.execute(database, "delete from schema_migrations where set_name = 'loans' and version = 3")
                .await;
            dev.execute(
                database,
                "drop index loans_status; alter table members drop column family_id; drop table families",
            )
            .await;
        }
        let at = format!("fleet.migrate/migrate/{when}");
        assert!(killed_at(&dev, &at, &["tenant", "migrate", "--all"]).await, "{at}");
        let left = &dev.cli_json(&["operation", "list", "--unfinished"]).await[0];
        assert_eq!((text(&left["kind"]), &left["abandoned"]), ("fleet.migrate", &true.into()), "{at}");
        let applied = if when == "before" {
            dev.cli_json(&["tenant", "migrate", "--resume"]).await
        } else {
            dev.cli_json(&["tenant", "migrate", "--all"]).await
        };
        assert_eq!((&applied["failed"], &applied["operation"]), (&0.into(), &left["id"]), "{at}");
        let shown = dev.cli_json(&["operation", "show", text(&left["id"])]).await;
        assert_eq!((text(&shown["state"]), &shown["runners"]), ("done", &2.into()), "{at}");
        for slug in ["lyon", "paris"] {
            let token = dev.login(slug).await;
            assert_eq!(dev.get_as(slug, "/api/v1/families", &token).await.status, 200, "{at}");
        }
    }
    // What another run was left at is void once another is asked for.
    assert!(killed_at(&dev, "fleet.migrate/migrate/before", &["tenant", "migrate", "lyon"]).await);
    let other = dev.cli_json(&["tenant", "migrate", "paris"]).await;
    assert_eq!(other["failed"], 0);
    assert_eq!(dev.cli_json(&["operation", "list", "--unfinished"]).await, serde_json::json!([]));
}

/// An organisation whose schema this program does not serve is refused, and says why; the others do not notice.
#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_is_not_served_is_refused_by_itself() {
    let dev = Dev::start().await;
    let (paris, lyon) = (dev.login("paris").await, dev.login("lyon").await);
    let end = "select pg_terminate_backend(pid) from pg_stat_activity
        where datname = 'gmah_org_paris' and application_name = 'gmah api'";
    let asked = || async { dev.get_as("paris", "/api/v1/members?limit=1", &paris).await };
    for (what, there, back) in [
        (
            "behind",
            "delete from schema_migrations where set_name = 'loans' and version = 3",
            "insert into schema_migrations (set_name, version, name, checksum) values ('loans', 3, 'families', '')",
        ),
        (
            "ahead",
            "insert into schema_migrations (set_name, version, name, checksum) values ('core', 999, 'later', '')",
            "delete from schema_migrations where version = 999",
        ),
        (
            "far behind",
            "alter function schema_versions() rename to elsewhere",
            "alter function elsewhere() rename to schema_versions",
        ),
    ] {
        dev.execute("gmah_org_paris", there).await;
        dev.execute("gmah_org_paris", end).await;
        let refused = eventually(what, Duration::from_secs(5), asked, |a| a.status == 503).await;
        let body = refused.json();
        assert_eq!(body["code"], "schema_unsupported", "{what}: {refused:?}");
        assert!(refused.header("retry-after").is_some(), "{what}");
        for _ in 0..20 {
            assert_eq!(dev.get_as("lyon", "/api/v1/members?limit=1", &lyon).await.status, 200, "{what}");
        }
        // Also while nobody tries; one who does may find the server busy, and says that.
        let code = || async { asked().await.code() };
        eventually(what, Duration::from_secs(10), code, |c| c == "schema_unsupported").await;
        dev.execute("gmah_org_paris", back).await;
        eventually(what, Duration::from_secs(10), asked, |a| a.status == 200).await;
    }
    let counted = dev.metrics("api_admin").await;
    assert!(
        counted.sum("gmah_api_pool_failures_total", &["reason=\"schema\""]) > 0.0,
        "{}",
        counted.series()
    );
}
