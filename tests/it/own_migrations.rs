//! What one organisation has of its own: it runs as the modules' files do, for that one alone.

use serde_json::{Value, json};

use crate::harness::Dev;
use crate::harness::dev::text;

fn file(dev: &Dev, name: &str, sql: &str) -> String {
    let path = dev.folder().join(name);
    std::fs::write(&path, sql).expect("written");
    path.to_str().expect("UTF-8").to_owned()
}

async fn refused(dev: &Dev, args: &[&str]) -> (Option<i32>, String) {
    let out = dev.cli(args).await;
    (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
}

fn of<'a>(report: &'a Value, slug: &str) -> &'a Value {
    report["tenants"].as_array().expect("tenants").iter().find(|t| t["slug"] == slug).expect("its outcome")
}

#[tokio::test(flavor = "multi_thread")]
async fn one_organisation_has_files_of_its_own() {
    let dev = Dev::start().await;
    let first = file(
        &dev,
        "0001_badges.sql",
        "create table badges (id int primary key, holder text); alter table members add column badge text; create schema crm; create table crm.contacts (name text); create function whose() returns text language sql as $$ select 'Somebody' $$",
    );
    let index = file(
        &dev,
        "0002_by_phone.sql",
        "-- gmah: no-transaction\ncreate index concurrently members_phone on members (phone)",
    );
    let broken = file(&dev, "0003_broken.sql", "create table half (x int);\nselect 1 / 0");
    for (args, code, why) in [
        (vec!["nobody", &first], 1, "no organisation"),
        (vec!["paris", &index], 1, "the next file is 0001"),
        (vec!["paris", "/nowhere/0001_a.sql"], 2, "cannot be read"),
    ] {
        let args = [&["tenant", "migration", "add"], &args[..]].concat();
        let (seen, said) = refused(&dev, &args).await;
        assert_eq!((seen, said.contains(why)), (Some(code), true), "{args:?}: {said}");
    }
    for (name, sql) in [("badges.sql", "select 1"), ("0001_empty.sql", " \n")] {
        let path = file(&dev, name, sql);
        assert_eq!(refused(&dev, &["tenant", "migration", "add", "paris", &path]).await.0, Some(2), "{name}");
    }
    for path in [&first, &index] {
        dev.cli_json(&["tenant", "migration", "add", "paris", path]).await;
    }
    let (code, said) = refused(&dev, &["tenant", "migration", "add", "paris", &first]).await;
    assert!(code == Some(1) && said.contains("the next file is 0003"), "{said}");
    let listed = dev.cli_json(&["tenant", "migration", "list", "paris"]).await;
    assert_eq!(
        (listed.as_array().map(Vec::len), &listed[1]["name"]),
        (Some(2), &json!("by_phone")),
        "{listed}"
    );
    let standing = |doctor: std::process::Output| String::from_utf8_lossy(&doctor.stdout).into_owned();
    let before = standing(dev.cli(&["doctor"]).await);
    assert!(
        before.contains("paris: migrations_missing: 2 migrations are missing, from own/0001"),
        "{before}"
    );

    let dry = dev.cli(&["tenant", "migrate", "paris", "--dry-run"]).await;
    assert!(
        String::from_utf8_lossy(&dry.stdout).contains("would apply own/0001_badges, own/0002_by_phone"),
        "{dry:?}"
    );
    let report = dev.cli_json(&["tenant", "migrate", "--all"]).await;
    assert_eq!(of(&report, "paris")["applied"].as_array().map(Vec::len), Some(2), "{report}");
    assert_eq!(of(&report, "lyon")["applied"], json!([]), "{report}");
    let there = "select count(*) from pg_class where relname in ('badges', 'members_phone')";
    assert_eq!(dev.value("gmah_org_paris", there).await, "2");
    assert_eq!(dev.value("gmah_org_lyon", there).await, "0");
    // Its own role works with it as with the modules' tables, and it is served.
    let may = "select has_table_privilege('gmah_org_paris', 'badges', 'select, insert, update, delete')";
    assert_eq!(dev.value("gmah_org_paris", may).await, "t");
    let token = dev.login("paris").await;
    assert_eq!(dev.get_as("paris", "/api/v1/members?limit=1", &token).await.status, 200);
    assert!(dev.cli(&["doctor"]).await.status.success());

    // One that fails is named with its statement, and harms nobody; it is taken back, and one that ran is not.
    dev.cli_json(&["tenant", "migration", "add", "paris", &broken]).await;
    let out = dev.cli(&["tenant", "migrate", "--all", "--json"]).await;
    let report: Value = serde_json::from_slice(&out.stdout).expect("JSON");
    assert_eq!((out.status.code(), &report["failed"]), (Some(3), &json!(1)), "{report}");
    let why = text(&of(&report, "paris")["error"]);
    assert!(why.contains("own/0003_broken") && why.contains("line 2"), "{why}");
    let removed = dev.cli_json(&["tenant", "migration", "remove", "paris"]).await;
    assert_eq!(removed["version"], 3, "{removed}");
    // Nor is one noted as done that ends the transaction itself and fails after that.
    let escapes = file(&dev, "0003_escapes.sql", "create table escaped (x int);\ncommit;\nselect 1 / 0");
    dev.cli_json(&["tenant", "migration", "add", "paris", &escapes]).await;
    for _ in 0..2 {
        let out = dev.cli(&["tenant", "migrate", "paris", "--json"]).await;
        let report: Value = serde_json::from_slice(&out.stdout).expect("JSON");
        assert_eq!(out.status.code(), Some(3), "{report}");
        assert!(text(&of(&report, "paris")["error"]).contains("own/0003_escapes"), "{report}");
    }
    dev.execute("gmah_org_paris", "drop table escaped").await;
    dev.cli_json(&["tenant", "migration", "remove", "paris"]).await;
    let (code, said) = refused(&dev, &["tenant", "migration", "remove", "paris"]).await;
    assert!(code == Some(1) && said.contains("0002_by_phone has run"), "{said}");
    let (code, said) = refused(&dev, &["tenant", "migration", "remove", "lyon"]).await;
    assert!(code == Some(1) && said.contains("no file of its own"), "{said}");

    // It comes along with a backup; a copy to try things on is without it, since nobody knows what is personal in it.
    dev.execute(
        "gmah_org_paris",
        "insert into badges values (1, 'Somebody'); update members set badge = 'secret'",
    )
    .await;
    let made = dev.cli_json(&["tenant", "backup", "paris"]).await;
    let id = text(&made["backup_id"]).to_owned();
    dev.cli_json(&["tenant", "restore", "paris", "--backup", &id]).await;
    let database = text(&dev.cli_json(&["tenant", "show", "paris"]).await["database"]).to_owned();
    assert_eq!(dev.value(&database, "select holder from badges").await, "Somebody");
    dev.cli_json(&["tenant", "restore", "paris", "--backup", &id, "--as", "paris-2"]).await;
    assert_eq!(dev.value("gmah_org_paris_2", "select holder from badges").await, "Somebody");
    assert_eq!(
        dev.cli_json(&["tenant", "migration", "list", "paris-2"]).await.as_array().map(Vec::len),
        Some(2)
    );
    dev.cli_json(&["tenant", "clone", "paris", "paris-3"]).await;
    let left = "select (select count(*) from pg_class where relname = 'badges')
        + (select count(*) from pg_attribute where attrelid = 'members'::regclass and attname = 'badge' and not attisdropped)
        + (select count(*) from pg_namespace where nspname = 'crm') + (select count(*) from pg_proc where proname = 'whose')";
    assert_eq!(dev.value("gmah_org_paris_3", left).await, "0");
    assert_eq!(dev.value("gmah_org_paris_3", "select count(*) from members").await, "240");
    let all = dev.cli_json(&["tenant", "migrate", "--all"]).await;
    assert_eq!(all["failed"], 0, "{all}");
    assert!(dev.cli(&["doctor"]).await.status.success());
}
