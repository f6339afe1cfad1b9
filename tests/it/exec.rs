//! Statements in organisations' databases: what only reads cannot write, however it is said.

use serde_json::Value;

use crate::harness::Dev;

/// every way out of reading that we know is shut, because the role has none of it.
#[tokio::test(flavor = "multi_thread")]
async fn q13_q15_reading_stays_reading() {
    let dev = Dev::start().await;
    let out = dev.cli(&["tenant", "exec", "--all", "--", "select count(*) as n from users -- of each"]).await;
    assert!(out.status.success(), "{out:?}");
    let lines: Vec<Value> = String::from_utf8_lossy(&out.stdout)
        .lines()
        .map(|l| serde_json::from_str(l).expect("JSON"))
        .collect();
    assert_eq!(lines.len(), 3);
    assert!(lines.iter().all(|l| l["row"]["n"] == 1 && l["tenant"].is_string()), "{lines:?}");
    // What is left out is said.
    let few = dev.cli(&["tenant", "exec", "--max-rows", "1", "paris", "--", "select id from members"]).await;
    assert_eq!((few.status.code(), String::from_utf8_lossy(&few.stdout).lines().count()), (Some(0), 1));
    assert_eq!(
        String::from_utf8_lossy(&few.stderr).trim(),
        "paris: there are more rows than these 1: --max-rows"
    );
    let state = "select (select count(*) from users) || ' ' || (select count(*) from members) || ' ' ||
        (select count(*) from pg_class where relnamespace = 'public'::regnamespace)";
    let before = dev.value("gmah_org_paris", state).await;
    for sql in [
        "delete from users",
        "commit; delete from users",
        "select 1; delete from users",
        "with d as (delete from members returning 1) select * from d",
        "select 1) q; delete from users; --",
        "truncate members",
        "create table x (a int)",
        "create temp table x (a int)",
        "do $$ begin delete from users; end $$",
        "do $$ begin set transaction_read_only = off; delete from users; end $$",
        "do $$ begin execute 'reset role'; execute 'set transaction read write'; delete from users; end $$",
        "select set_config('transaction_read_only', 'off', false), set_config('role', 'gmah', false)",
        "set role gmah",
        "set session authorization gmah",
        "select pg_read_file('/etc/passwd')",
        "select lo_import('/etc/passwd')",
        "copy members to program 'id'",
        "copy members to '/tmp/gmah-x'",
        "select pg_terminate_backend(pid) from pg_stat_activity",
        "select dblink('x')",
        "alter role gmah password 'x'",
        "grant gmah to current_user",
        "select nextval('x')",
        "select * from pg_authid",
        "insert into members (id, first_name, last_name) values (gen_random_uuid(), 'a', 'b') returning id",
        "lock table members",
        "vacuum",
        "",
        "not sql",
    ] {
        let out = dev.cli(&["tenant", "exec", "paris", "--", sql]).await;
        assert!(!out.status.success(), "{sql}: {out:?}");
        assert!(!String::from_utf8_lossy(&out.stderr).contains("panicked"), "{sql}");
        assert_eq!(dev.value("gmah_org_paris", state).await, before, "{sql}");
    }
    let roles = "select count(*) from pg_roles where rolname ~ '^gmah_reader_'";
    assert_eq!(dev.value("postgres", roles).await, "0", "gone with their commands");
    // What is asked for one does not reach another, and one that fails is named beside those that do not.
    let out = dev.cli(&["tenant", "exec", "--all", "--", "select count(*) from patients"]).await;
    assert_eq!(out.status.code(), Some(3));
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(said.contains("lyon: failed") && said.contains("paris: failed"), "{said}");
    // Where all failed, each is named all the same; of one alone there is nothing to tell apart.
    for (args, code) in [(&["--all"][..], 3), (&["paris", "lyon"], 3), (&["paris"], 1)] {
        let out = dev.cli(&[&["tenant", "exec"][..], args, &["--", "select 1 from nowhere"]].concat()).await;
        assert_eq!(out.status.code(), Some(code), "{out:?}");
    }
    // Whoever reads may have had enough: the command ends as it would, and leaves no role.
    let binary = crate::harness::dev::BINARY;
    let (config, many) = (crate::harness::dev::text(&dev.info["config"]), "select generate_series(1, 9000)");
    let script = format!(
        "'{binary}' tenant exec paris --max-rows 9000 -- '{many}' 2>&1 | head -1; echo \"${{PIPESTATUS[0]}}\""
    );
    let out = tokio::process::Command::new("bash").args(["-c", &script]).env("GMAH_CONFIG", config).output();
    let said = String::from_utf8_lossy(&out.await.expect("ran").stdout).into_owned();
    assert!(said.ends_with("\n0\n") && said.starts_with('{') && !said.contains("panicked"), "{said}");
    assert_eq!(dev.value("postgres", roles).await, "0");
    for sql in
        ["show server_version", "explain select 1", "values (1)", "table members", "select null where false"]
    {
        let out = dev.cli(&["tenant", "exec", "paris", "--", sql]).await;
        assert!(out.status.success(), "{sql}: {out:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn writing_is_asked_for_and_on_record() {
    let dev = Dev::start().await;
    let sql = "update members set phone = '+33 1 00 00 00 00' returning id";
    let out = dev.cli(&["tenant", "exec", "paris", "lyon", "--write", "--", sql]).await;
    assert!(out.status.success(), "{out:?}");
    assert_eq!(String::from_utf8_lossy(&out.stdout).lines().count(), 480);
    let out = dev
        .cli(&["tenant", "exec", "paris", "--write", "--", "delete from sessions; delete from users"])
        .await;
    assert!(!out.status.success(), "one statement: {out:?}");
    let file = dev.folder().join("statement.sql");
    std::fs::write(&file, "create index members_phone on members (phone)").expect("written");
    let path = file.to_str().expect("UTF-8");
    assert!(dev.cli(&["tenant", "exec", "lyon", "--write", "--file", path]).await.status.success());
    let noted = "select count(*) from audit_log where action = 'tenant.exec'";
    assert_eq!(dev.value("gmah_master", noted).await, "4");
    for (args, code) in [
        (&["tenant", "exec", "paris"][..], 2),
        (&["tenant", "exec", "--", "select 1"], 2),
        (&["tenant", "exec", "nobody", "--", "select 1"], 1),
        (&["tenant", "exec", "paris", "--file", "/nowhere"], 2),
        (&["tenant", "exec", "paris", "--timeout", "50ms", "--", "select pg_sleep(5)"], 1),
        (&["tenant", "psql", "nobody"], 1),
    ] {
        assert_eq!(dev.cli(args).await.status.code(), Some(code), "{args:?}");
    }
    let psql = dev.cli(&["tenant", "psql", "paris", "--", "-Atc", "select current_database()"]).await;
    assert_eq!(String::from_utf8_lossy(&psql.stdout).trim(), "gmah_org_paris", "{psql:?}");
}
