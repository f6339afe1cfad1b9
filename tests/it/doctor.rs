//! A damaged installation: every fault is found, named, and repaired where that loses nothing.

use std::time::Duration;

use serde_json::Value;

use crate::harness::dev::text;
use crate::harness::{Dev, eventually};
use crate::operations::killed_at;

async fn examine(dev: &Dev, fix: bool) -> (Option<i32>, Vec<Value>) {
    let args: &[&str] = if fix { &["doctor", "--fix", "--json"] } else { &["doctor", "--json"] };
    let out = dev.cli(args).await;
    let found: Value = serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {out:?}"));
    (out.status.code(), found["faults"].as_array().expect("faults").clone())
}

fn kinds(faults: &[Value]) -> Vec<(String, String)> {
    let mut kinds: Vec<_> =
        faults.iter().map(|f| (text(&f["kind"]).to_owned(), text(&f["subject"]).to_owned())).collect();
    kinds.sort();
    kinds
}

#[tokio::test(flavor = "multi_thread")]
async fn planted_faults_are_found_and_repaired() {
    let dev = Dev::start().await;
    assert_eq!(examine(&dev, false).await, (Some(0), vec![]), "nothing is wrong with a new one");
    for slug in ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "gone"] {
        dev.create(slug).await;
    }
    let id = text(&dev.cli_json(&["tenant", "backup", "one"]).await["backup_id"]).to_owned();
    dev.cli_json(&["tenant", "restore", "one", "--backup", &id]).await;
    assert!(dev.cli(&["tenant", "exec", "--all", "--", "select 1"]).await.status.success());
    assert_eq!(examine(&dev, false).await, (Some(0), vec![]), "nor after a day's work");

    dev.cli_json(&["tenant", "delete", "gone", "--yes-delete", "gone", "--grace", "0s", "--without-backup"])
        .await;
    let gone = dev.value("gmah_master", "select id from organizations where slug = 'gone'").await;
    let one = dev.value("gmah_master", "select database_name from organizations where slug = 'one'").await;
    assert!(
        killed_at(
            &dev,
            "tenant.create/identity/before",
            &["tenant", "create", "--slug", "half", "--name", "h", "--admin-email", "a@half.example"]
        )
        .await
    );
    for (database, sql) in [
        ("postgres", "alter role gmah_org_two nologin".to_owned()),
        ("postgres", "alter role gmah_org_three createdb".to_owned()),
        ("postgres", "grant connect on database gmah_org_three to public".to_owned()),
        ("postgres", "alter database gmah_org_four owner to gmah".to_owned()),
        ("postgres", "alter database gmah_org_paris allow_connections false".to_owned()),
        ("postgres", "alter role gmah_org_five password 'another'".to_owned()),
        ("postgres", "alter role gmah_org_nine noinherit".to_owned()),
        ("postgres", "alter database gmah_org_ten owner to gmah; drop role gmah_org_ten".to_owned()),
        ("postgres", "revoke gmah_tenant from gmah_org_six".to_owned()),
        ("postgres", "alter role gmah_org_seven valid until '2001-01-01' connection limit 0".to_owned()),
        ("gmah_org_seven", "alter table members owner to gmah_org_seven; create table stock (id serial); alter sequence stock_id_seq rename to a_first; alter table stock owner to gmah_org_seven; grant create on schema public to gmah_tenant".to_owned()),
        ("postgres", "grant gmah_org_lyon to gmah_org_eight".to_owned()),
        ("gmah_org_eight", "grant truncate on users to public; grant truncate on roles to gmah_org_eight".to_owned()),
        ("gmah_org_two", "delete from gmah_identity".to_owned()),
        ("gmah_org_three", "alter schema public owner to gmah_org_three".to_owned()),
        ("gmah_org_three", "grant update on payments to gmah_tenant; revoke insert on members from gmah_tenant".to_owned()),
        ("gmah_org_four", "drop index loans_status; alter table members drop column family_id; drop table families;
            delete from schema_migrations where set_name = 'loans' and version = 3".to_owned()),
        ("gmah_master", "delete from organization_keys where organization_id = (select id from organizations where slug = 'lyon')".to_owned()),
        ("postgres", "create database gmah_verify_left".to_owned()),
        ("postgres", "create database gmah_template_0123456789ab_half".to_owned()),
        ("postgres", format!("create role gmah_org_gone; comment on role gmah_org_gone is 'gmah organisation {gone}'")),
        ("postgres", "create database gmah_org_gone owner gmah_org_gone".to_owned()),
        ("postgres", format!("create role gmah_reader_{} valid until '2020-01-01'", "0".repeat(32))),
        // Nobody's to repair.
        (one.as_str(), "drop table members cascade".to_owned()),
        ("postgres", "create database gmah_org_stranger".to_owned()),
    ] {
        dev.execute(database, &sql).await;
    }
    let lost: Vec<(String, String)> = [("database_unknown", "gmah_org_stranger"), ("schema_drift", "one")]
        .map(|(k, s)| (k.into(), s.into()))
        .into();
    let mut planted: Vec<(String, String)> = [
        ("database_left_over", "gmah_template_0123456789ab_half"),
        ("database_left_over", "gmah_verify_left"),
        ("database_orphaned", "gmah_org_gone"),
        ("database_owner", "four"),
        ("database_owner", "ten"),
        ("database_public", "three"),
        ("database_shut", "paris"),
        ("identity", "two"),
        ("key_missing", "lyon"),
        ("migrations_missing", "four"),
        ("operation_left_behind", "half"),
        ("rights", "eight"),
        ("rights", "eight"),
        ("rights", "three"),
        ("rights", "three"),
        ("role_left_over", "gmah_reader_00000000000000000000000000000000"),
        ("role_orphaned", "gmah_org_gone"),
        ("role_missing", "ten"),
        ("role_shut_out", "five"),
        ("role_shut_out", "nine"),
        ("role_shut_out", "seven"),
        ("role_shut_out", "six"),
        ("role_shut_out", "two"),
        ("role_too_mighty", "eight"),
        ("role_too_mighty", "three"),
        ("schema_open", "seven"),
        ("schema_open", "three"),
        ("table_owner", "seven"),
        ("table_owner", "seven"),
    ]
    .map(|(k, s)| (k.to_owned(), s.to_owned()))
    .into();
    planted.extend(lost.iter().cloned());
    planted.sort();
    let (code, faults) = examine(&dev, false).await;
    let mut seen = kinds(&faults);
    // What cannot be entered, or is not migrated, cannot be looked at from within.
    seen.retain(|(kind, subject)| {
        !matches!(
            (kind.as_str(), subject.as_str()),
            ("database_unreachable", "paris") | ("schema_drift", "four")
        )
    });
    assert_eq!((code, seen), (Some(1), planted), "{faults:#?}");
    assert!(faults.iter().all(|f| f["repaired"] == false));
    let (code, repaired) = examine(&dev, true).await;
    assert_eq!(code, Some(1), "two are left");
    for fault in &repaired {
        let is_lost = lost.contains(&(text(&fault["kind"]).to_owned(), text(&fault["subject"]).to_owned()));
        assert_eq!(fault["repaired"], !is_lost, "{fault}");
    }
    assert_eq!(kinds(&examine(&dev, false).await.1), lost);
    for slug in
        ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "paris", "lyon", "half"]
    {
        let served = || async { dev.get(slug, "/api/v1/tenant").await.status };
        eventually(slug, Duration::from_secs(5), served, |s| *s == 200).await;
    }
    dev.execute("postgres", "drop database gmah_org_stranger").await;
    dev.cli_json(&["tenant", "restore", "one", "--backup", &id]).await;
    assert_eq!(examine(&dev, false).await, (Some(0), vec![]));
}

/// What would be the better for something is advice: it is said, and nothing is at fault.
#[tokio::test(flavor = "multi_thread")]
async fn advice_is_no_fault() {
    let dev = Dev::start().await;
    let db = dev.superuser("gmah_org_paris").await;
    db.batch_execute(
        "create table notes (id int, member uuid references members (id), word text) with (autovacuum_enabled = false);
         insert into notes select n, null, 'same' from generate_series(1, 40000) n;
         delete from notes where id <= 15000; analyze notes",
    )
    .await
    .expect("a table");
    let twice = db.batch_execute("create unique index concurrently notes_word on notes (word)").await;
    assert!(twice.is_err(), "the words are all the same");
    db.batch_execute("select pg_stat_force_next_flush()").await.expect("statistics");
    let advised = |fix: bool| {
        let dev = &dev;
        async move {
            let args: &[&str] = if fix { &["doctor", "--fix", "--json"] } else { &["doctor", "--json"] };
            let out = dev.cli(args).await;
            let found: Value = serde_json::from_slice(&out.stdout).expect("JSON");
            assert_eq!((out.status.code(), &found["faults"]), (Some(0), &serde_json::json!([])), "{found}");
            kinds(found["advice"].as_array().expect("advice"))
        }
    };
    let all = ["index_invalid", "index_missing", "vacuum_due"].map(|k| (k.to_owned(), "paris".to_owned()));
    eventually("statistics", Duration::from_secs(10), || advised(false), |found| *found == all).await;
    let said = dev.cli(&["doctor"]).await;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains("advice: paris: index_missing: notes (member) refers to members"), "{said}");
    assert_eq!(advised(true).await, all, "with --fix it is still named");
    db.batch_execute("drop index notes_word; create index on notes (member)").await.expect("followed");
    eventually("followed", Duration::from_secs(10), || advised(false), Vec::is_empty).await;
}

/// L-06: a server that forgets what it has acknowledged when it crashes is a fault, whoever told it to.
#[tokio::test(flavor = "multi_thread")]
async fn l06_servers_that_may_lose_are_named() {
    let dev = Dev::start().await;
    dev.execute("postgres", "alter role gmah_org_paris set synchronous_commit = off").await;
    dev.execute("postgres", "alter database gmah_org_lyon set synchronous_commit = off").await;
    let (code, faults) = examine(&dev, true).await;
    let said: Vec<_> = faults.iter().map(|f| (text(&f["subject"]), text(&f["what"]))).collect();
    let loss = "what was acknowledged in the moments before a crash is lost";
    assert_eq!(code, Some(1));
    assert_eq!(
        said,
        [
            ("local", &*format!("synchronous_commit is off for database gmah_org_lyon: {loss}")),
            ("local", &*format!("synchronous_commit is off for role gmah_org_paris: {loss}")),
        ]
    );
    dev.execute("postgres", "alter role gmah_org_paris reset synchronous_commit").await;
    dev.execute("postgres", "alter database gmah_org_lyon reset synchronous_commit").await;
    dev.execute("postgres", "create role somebody; alter role somebody set synchronous_commit = off").await;
    assert_eq!(examine(&dev, false).await, (Some(0), vec![]), "which is nothing of ours");
    for name in ["fsync", "full_page_writes", "synchronous_commit"] {
        let [off, reset] = [format!("alter system set {name} = off"), format!("alter system reset {name}")];
        dev.execute("postgres", &off).await;
        dev.execute("postgres", "select pg_reload_conf()").await;
        let show = format!("show {name}");
        let shown = || dev.value("postgres", &show);
        eventually("off", Duration::from_secs(5), shown, |v| v == "off").await;
        let out = dev.cli(&["doctor", "--json"]).await;
        let found: Value = serde_json::from_slice(&out.stdout).expect("JSON");
        // Of the one, some file systems have no need.
        let (code, list) = if name == "full_page_writes" { (0, "advice") } else { (1, "faults") };
        let found = found[list].as_array().expect("a list");
        let said: Vec<_> = found.iter().map(|f| (text(&f["kind"]), text(&f["subject"]))).collect();
        assert_eq!(out.status.code(), Some(code), "{name}");
        assert_eq!(said, [("server_not_durable", "master"), ("server_not_durable", "local")], "{name}");
        assert!(found.iter().all(|f| text(&f["what"]).starts_with(&format!("{name} is off: "))), "{found:?}");
        dev.execute("postgres", &reset).await;
        dev.execute("postgres", "select pg_reload_conf()").await;
        eventually("on", Duration::from_secs(5), shown, |v| v == "on").await;
    }
    assert_eq!(examine(&dev, false).await, (Some(0), vec![]));
}
