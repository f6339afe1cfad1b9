//! K-18: keys of the platform are exchanged while everything runs, and nobody notices.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use gmah_shared::secret::MasterKey;
use secrecy::ExposeSecret as _;
use serde_json::json;

use crate::harness::dev::{address, text};
use crate::harness::{Dev, eventually, http, roles};
use crate::operations::killed_at;

/// Requests that go on until told to stop: reads through the tenant token, writes under an `Idempotency-Key`.
struct Traffic {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<Vec<String>>,
}

impl Traffic {
    async fn start(dev: &Arc<Dev>) -> Self {
        let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let token = format!("Bearer {}", dev.login("lyon").await);
        let (dev, stopped, counted) = (dev.clone(), stop.clone(), served.clone());
        let task = gmah_shared::tasks::detach("traffic", async move {
            let mut faults = Vec::new();
            while !stopped.load(Ordering::Acquire) {
                let n = counted.fetch_add(1, Ordering::AcqRel);
                let seen = dev.get("paris", "/api/v1/tenant").await;
                if seen.status != 200 {
                    faults.push(format!("{seen:?}"));
                }
                let key = format!("write-{n}");
                let headers = [("Authorization", &*token), ("Idempotency-Key", &*key)];
                let member = json!({"first_name": "n", "last_name": key});
                // Twice: the second is the stored answer, told by a key that is derived.
                let first = dev.post("lyon", "/api/v1/members", &headers, &member).await;
                let again = dev.post("lyon", "/api/v1/members", &headers, &member).await;
                if first.status != 201 || again.json()["id"] != first.json()["id"] {
                    faults.push(format!("{first:?} {again:?}"));
                }
            }
            faults
        });
        Self { stop, served, task }
    }

    /// None of the requests may have failed, and some must have been sent meanwhile.
    async fn end(self) {
        let so_far = self.served.load(Ordering::Acquire);
        let more = || async { self.served.load(Ordering::Acquire) };
        eventually("traffic goes on", Duration::from_secs(20), more, |n| *n > so_far + 3).await;
        self.stop.store(true, Ordering::Release);
        assert_eq!(self.task.await.expect("traffic"), Vec::<String>::new());
    }
}

fn key_file(dev: &Dev) -> PathBuf {
    dev.settings().master_key.file().expect("a file").to_owned()
}

/// How many of the master's secrets are sealed with another key than that one.
async fn sealed_otherwise(dev: &Dev, id: &str) -> String {
    let columns = [
        "select private_key from signing_keys",
        "select private_key from certificates",
        "select credentials from acme_accounts",
        "select secret from ticket_secrets",
        "select secret from platform_secrets",
        "select admin_password from database_servers",
        "select role_password from organizations where purged_at is null",
        "select role_password_next from organizations where role_password_next is not null",
        "select totp_secret from system_admins where totp_secret is not null",
        "select secrets from organization_keys",
    ];
    let all = columns.join(" union all ");
    let sql = format!(
        "select count(*) filter (where encode(substring(s from 2 for 4), 'hex') <> '{id}') || '/'
             || (count(s) > 8) from ({all}) as sealed(s)"
    );
    dev.value("gmah_master", &sql).await
}

#[tokio::test(flavor = "multi_thread")]
async fn k18_the_master_key_is_exchanged_under_traffic() {
    let dev = Arc::new(Dev::start().await);
    let token = dev.login("paris").await;
    for name in ["Ada", "Grace", "Joan"] {
        let member = json!({"first_name": name, "last_name": "x"});
        let headers = [("Authorization", &*format!("Bearer {token}"))];
        assert_eq!(dev.post("paris", "/api/v1/members", &headers, &member).await.status, 201);
    }
    let page = dev.get_as("paris", "/api/v1/members?limit=2", &token).await.json();
    let next = format!("/api/v1/members?limit=2&cursor={}", text(&page["next_cursor"]));
    let second_page = dev.get_as("paris", &next, &token).await.json();
    assert!(second_page["items"].as_array().is_some_and(|i| !i.is_empty()), "{second_page}");
    // A node in another process would have the file from its operator; this one reads the same.
    let second = roles::api(&dev, |_, _| {}).await;
    let traffic = Traffic::start(&dev).await;
    let rotated = dev.cli_json(&["key", "rotate", "master"]).await;
    let id = text(&rotated["id"]).to_owned();
    assert_eq!(rotated["older"].as_array().map(Vec::len), Some(1), "{rotated}");
    assert!(rotated["resealed"].as_u64() > Some(8), "{rotated}");
    assert_eq!(sealed_otherwise(&dev, &id).await, "0/true");
    assert_eq!(dev.settings().master_key.ids()[0], id);
    // New secrets, too, are the new key's; and what had been derived from the older one holds.
    let password = dev.create("later").await;
    dev.login_as("later", "admin@later.example", &password).await;
    assert_eq!(sealed_otherwise(&dev, &id).await, "0/true");
    assert_eq!(dev.get_as("paris", &next, &token).await.json(), second_page);
    // Once more, and the older ones go.
    let again = dev.cli_json(&["key", "rotate", "master", "--forget-older"]).await;
    assert_ne!(again["id"], rotated["id"]);
    assert_eq!((&again["older"], dev.settings().master_key.ids().len()), (&json!([]), 1));
    assert_eq!(sealed_otherwise(&dev, text(&again["id"])).await, "0/true");
    traffic.end().await;
    second.stop().await;
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(key_file(&dev)).expect("file").permissions(),
    );
    assert_eq!(mode & 0o7777, 0o600);
    let audited = "select count(*) from audit_log where action = 'key.rotate_master'";
    assert_eq!(dev.value("gmah_master", audited).await, "2");
    // Whoever starts now knows the new one only.
    let Ok(dev) = Arc::try_unwrap(dev) else { panic!("still in use") };
    let dev = Dev::start_in(dev.stop().await, &[]).await;
    let token = dev.login("paris").await;
    assert_eq!(dev.get_as("paris", &next, &token).await.json(), second_page);
}

/// Nothing is sealed with a key that a node does not know; and an exchange that was cut short goes on.
#[tokio::test(flavor = "multi_thread")]
async fn k18_a_node_without_the_new_key_stops_the_exchange() {
    let dev = Dev::start().await;
    let file = key_file(&dev);
    let before = std::fs::read_to_string(&file).expect("file");
    let known = dev.settings().master_key.ids();
    dev.execute(
        "gmah_master",
        "insert into key_holders (node_id, role, address, master_keys, signing_keys, seen_at)
         values (gen_random_uuid(), 'api', '192.0.2.1:9', '{00000000}', '{}', now() + interval '1 hour')",
    )
    .await;
    for which in ["signing", "master"] {
        let out = dev.cli(&["key", "rotate", which, "--wait", "1s"]).await;
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{said}");
        assert!(said.contains("api 192.0.2.1:9") && !said.contains("127.0.0.1"), "{said}");
    }
    assert_eq!(sealed_otherwise(&dev, &known[0]).await, "0/true");
    let begun = dev.settings().master_key.ids();
    assert_eq!((begun.len(), &begun[0]), (2, &known[0]));
    assert!(std::fs::read_to_string(&file).expect("file").starts_with(before.trim_end()));
    assert_eq!(dev.value("gmah_master", "select count(*) from signing_keys where state = 'next'").await, "1");
    // It is gone: the same keys are finished with, and no others made.
    dev.execute("gmah_master", "delete from key_holders where address = '192.0.2.1:9'").await;
    let rotated = dev.cli_json(&["key", "rotate", "master"]).await;
    assert_eq!(rotated["id"], begun[1]);
    dev.cli_json(&["key", "rotate"]).await;
    assert_eq!(dev.value("gmah_master", "select count(*) from signing_keys").await, "2");
    // A key that somebody put before the others is taken as it is.
    let own = MasterKey::generate_text();
    let all = std::fs::read_to_string(&file).expect("file");
    std::fs::write(&file, format!("{}\n{all}", own.expose_secret())).expect("written");
    let by_hand = dev.cli_json(&["key", "rotate", "master", "--forget-older"]).await;
    assert_eq!(by_hand["id"], MasterKey::parse(&own).expect("key").ids()[0]);
    assert_eq!(std::fs::read_to_string(&file).expect("file").trim_end(), own.expose_secret());
    assert_eq!(dev.get("paris", "/api/v1/tenant").await.status, 200);
    // A file that cannot be written, and a secret that does not open.
    let config = std::fs::read_to_string(text(&dev.info["config"])).expect("configuration");
    let line = config.lines().find(|l| l.starts_with("master_key_file")).expect("line");
    let path = dev.folder().join("data/variable.toml");
    std::fs::write(&path, config.replace(line, "master_key_env = \"GMAH_TEST_KEY\"")).expect("written");
    for more in [&["--forget-older"][..], &[]] {
        let out = tokio::process::Command::new(crate::harness::dev::BINARY)
            .args(["--config", &path.display().to_string(), "key", "rotate", "master"])
            .args(more)
            .env("GMAH_TEST_KEY", own.expose_secret())
            .output();
        let out = out.await.expect("command");
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.code() == Some(1) && said.contains("comes from a variable"), "{more:?}: {said}");
    }
    // A file that is full stays as it is.
    let many: String = (1..16).map(|_| format!("{}\n", MasterKey::generate_text().expose_secret())).collect();
    let full = format!("{}\n{many}", own.expose_secret());
    std::fs::write(&file, &full).expect("written");
    let out = dev.cli(&["key", "rotate", "master"]).await;
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(1) && said.contains("16 keys"), "{said}");
    assert_eq!(std::fs::read_to_string(&file).expect("file"), full);
    // One that is older than what is used: no command begins.
    std::fs::write(&file, &before).expect("written");
    let out = dev.cli(&["tenant", "list"]).await;
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(1) && said.contains("older than"), "{said}");
    std::fs::write(&file, format!("{}\n", own.expose_secret())).expect("written");
    dev.execute("gmah_master", "update platform_secrets set secret = '\\x01aabbccdd'").await;
    let out = dev.cli(&["key", "rotate", "master", "--wait", "20s"]).await;
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(1) && said.contains("platform_secrets/derivation"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn k18_the_signing_key_is_exchanged_under_traffic() {
    let dev = Arc::new(Dev::start().await);
    let second = roles::api(&dev, |_, _| {}).await;
    let traffic = Traffic::start(&dev).await;
    let first = dev.value("gmah_master", "select kid from signing_keys where state = 'active'").await;
    let mut kids = vec![first];
    for _ in 0..3 {
        let rotated = dev.cli_json(&["key", "rotate"]).await;
        assert_eq!(text(&rotated["retired"]), kids[kids.len() - 1]);
        kids.push(text(&rotated["kid"]).to_owned());
    }
    traffic.end().await;
    second.stop().await;
    let jwks = http::plain(address(&dev.info["admin"]), "/.well-known/jwks.json").await.json();
    let mut published: Vec<_> =
        jwks["keys"].as_array().expect("keys").iter().map(|k| text(&k["kid"]).to_owned()).collect();
    published.sort();
    kids.sort();
    assert_eq!(published, kids, "the older ones verify on");
}

/// What the server keeps of a role's password.
async fn verifier(dev: &Dev, slug: &str) -> String {
    let sql = format!("select rolpassword from pg_authid where rolname = 'gmah_org_{slug}'");
    dev.value("postgres", &sql).await
}

/// Connections of so short a life that nearly every request makes one, and so needs the password.
#[tokio::test(flavor = "multi_thread")]
async fn k18_an_organisations_password_is_exchanged_under_traffic() {
    let dev = Arc::new(Dev::start_with("[pool]\nmax_lifetime = \"20ms\"\nidle_timeout = \"50ms\"\n").await);
    let second = roles::api(&dev, |_, _| {}).await;
    let traffic = Traffic::start(&dev).await;
    // Several at once, so that those who are refused and those who look race.
    let (ended, token) = (Arc::new(AtomicBool::new(false)), Arc::new(dev.login("lyon").await));
    let readers: Vec<_> = (0..6)
        .map(|_| {
            let (dev, ended, token) = (dev.clone(), ended.clone(), token.clone());
            gmah_shared::tasks::detach("reads", async move {
                let mut faults = Vec::new();
                while !ended.load(Ordering::Acquire) {
                    let seen = dev.get_as("lyon", "/api/v1/members?limit=1", &token).await;
                    if seen.status != 200 {
                        faults.push(format!("{seen:?}"));
                    }
                }
                faults
            })
        })
        .collect();
    let mut seen = vec![verifier(&dev, "lyon").await];
    for _ in 0..5 {
        let exchanged = dev.cli_json(&["key", "rotate", "tenant", "lyon"]).await;
        assert_eq!(exchanged["role"], "gmah_org_lyon");
        seen.push(verifier(&dev, "lyon").await);
    }
    // Killed wherever, it is gone on with, and nobody notices meanwhile; there is no way back.
    for step in ["make", "server", "switch"] {
        for when in ["before", "after"] {
            let at = format!("tenant.rotate_password/{step}/{when}");
            assert!(killed_at(&dev, &at, &["key", "rotate", "tenant", "lyon"]).await, "{at}");
            let token = dev.login("lyon").await;
            assert_eq!(dev.get_as("lyon", "/api/v1/members", &token).await.status, 200, "{at}");
            let left = dev.cli_json(&["operation", "list", "--unfinished"]).await;
            let id = text(&left[0]["id"]);
            let no = dev.cli(&["operation", "cancel", id]).await;
            assert!(String::from_utf8_lossy(&no.stderr).contains("half-way"), "{at}: {no:?}");
            if when == "before" {
                dev.cli_json(&["operation", "resume", id]).await;
            } else {
                dev.cli_json(&["key", "rotate", "tenant", "lyon"]).await;
            }
            let next = "select count(*) from organizations where role_password_next is not null";
            assert_eq!(dev.value("gmah_master", next).await, "0", "{at}");
            seen.push(verifier(&dev, "lyon").await);
        }
    }
    traffic.end().await;
    ended.store(true, Ordering::Release);
    for reader in readers {
        assert_eq!(reader.await.expect("reader"), Vec::<String>::new());
    }
    second.stop().await;
    let all = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), all, "a new one each time");
    assert_eq!(sealed_otherwise(&dev, &dev.settings().master_key.ids()[0]).await, "0/true");
    assert!(!dev.log().contains("breaker opens"), "nobody was refused with both");
    assert_eq!(dev.cli(&["doctor"]).await.status.code(), Some(0));
    let unknown = dev.cli(&["key", "rotate", "tenant", "nobody"]).await;
    assert_eq!(unknown.status.code(), Some(1), "{unknown:?}");
    // A role that somebody else has put there is left alone.
    dev.execute("postgres", "comment on role gmah_org_paris is 'mine'").await;
    let refused = dev.cli(&["key", "rotate", "tenant", "paris"]).await;
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(1) && said.contains("not this organisation's"), "{said}");
    assert_eq!(dev.get("paris", "/api/v1/tenant").await.status, 200);
}

/// Kills an exchange before and after each of its steps; it is gone on with by its number, or asked for again, in turn. `well` looks
/// what is there after each.
async fn cut_short(
    dev: &Dev,
    kind: &str,
    steps: &[&str],
    args: &[&str],
    config: &[&str],
    well: impl AsyncFn(&str),
) {
    for step in steps {
        for when in ["before", "after"] {
            let at = format!("{kind}/{step}/{when}");
            assert!(killed_at(dev, &at, &[config, args].concat()).await, "{at}");
            let left = dev.cli_json(&["operation", "list", "--unfinished"]).await;
            assert_eq!(
                (left.as_array().map(Vec::len), &left[0]["kind"]),
                (Some(1), &json!(kind)),
                "{at}: {left}"
            );
            let again =
                if when == "before" { &["operation", "resume", text(&left[0]["id"])][..] } else { args };
            dev.cli_json(&[config, again].concat()).await;
            assert_eq!(dev.cli_json(&["operation", "list", "--unfinished"]).await, json!([]), "{at}");
            well(&at).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn k18_an_exchange_of_the_signing_key_is_gone_on_with() {
    let dev = Dev::start().await;
    let exchanged = AtomicUsize::new(0);
    let args = ["key", "rotate", "signing"];
    cut_short(&dev, "key.rotate_signing", &["make", "known", "switch"], &args, &[], async |at| {
        // Asked for when it is over, it is another one.
        let kids = exchanged.fetch_add(1, Ordering::AcqRel) + 1 + usize::from(at.ends_with("switch/after"));
        let states = "select string_agg(state || count, ' ' order by state) from (
            select state, count(*) from signing_keys group by state) s (state, count)";
        assert_eq!(dev.value("gmah_master", states).await, format!("active1 retired{kids}"), "{at}");
        assert_eq!(dev.get("paris", "/api/v1/tenant").await.status, 200, "{at}");
    })
    .await;
    // Given up, the next exchange takes up the key that was made.
    assert!(killed_at(&dev, "key.rotate_signing/known/before", &args).await);
    let next = dev.value("gmah_master", "select kid from signing_keys where state = 'next'").await;
    let left = dev.cli_json(&["operation", "list", "--unfinished"]).await;
    dev.cli_json(&["operation", "cancel", text(&left[0]["id"])]).await;
    assert_eq!(dev.cli_json(&args).await["kid"], json!(next));
}

/// What a master key is after each exchange: the only one that seals, and the first line of the file.
async fn seals_all(dev: &Dev, at: &str) {
    let id =
        dev.value("gmah_master", "select id from master_keys order by done_at desc nulls last limit 1").await;
    assert_eq!(dev.settings().master_key.ids()[0], id, "{at}");
    assert_eq!(sealed_otherwise(dev, &id).await, "0/true", "{at}");
    let undone = "select count(*) from master_keys where done_at is null";
    assert_eq!(dev.value("gmah_master", undone).await, "0", "{at}: no key is left half-way");
    assert_eq!(dev.get("paris", "/api/v1/tenant").await.status, 200, "{at}");
}

#[tokio::test(flavor = "multi_thread")]
async fn k18_an_exchange_of_the_master_key_is_gone_on_with() {
    let dev = Dev::start().await;
    let args = ["key", "rotate", "master"];
    let steps = ["make", "known", "first", "reseal", "note"];
    cut_short(&dev, "key.rotate_master", &steps, &args, &[], async |at| {
        seals_all(&dev, at).await;
        // The file has room for sixteen.
        let first = std::fs::read_to_string(key_file(&dev)).expect("file");
        let first = first.lines().next().expect("a line").to_owned();
        std::fs::write(key_file(&dev), first + "\n").expect("written");
    })
    .await;
    // Asked for otherwise, it is the same exchange. On a machine without the key's file it goes nowhere.
    let before = std::fs::read_to_string(key_file(&dev)).expect("file");
    assert!(killed_at(&dev, "key.rotate_master/known/before", &args).await);
    let made = std::fs::read_to_string(key_file(&dev)).expect("file");
    std::fs::write(key_file(&dev), &before).expect("written");
    let left = dev.cli_json(&["operation", "list", "--unfinished"]).await;
    let no = dev.cli(&["operation", "resume", text(&left[0]["id"])]).await;
    assert!(String::from_utf8_lossy(&no.stderr).contains("is not in the file here"), "{no:?}");
    std::fs::write(key_file(&dev), &made).expect("written");
    let rotated = dev.cli_json(&["key", "rotate", "master", "--forget-older"]).await;
    assert!(made.ends_with(&std::fs::read_to_string(key_file(&dev)).expect("file")), "{rotated}");
    seals_all(&dev, "asked for otherwise").await;
    // One that failed is that of whoever asks next, either way; and what asks after that has a key of its own.
    dev.execute(
        "gmah_master",
        "insert into key_holders (node_id, role, address, master_keys, signing_keys, seen_at)
         values (gen_random_uuid(), 'api', '192.0.2.1:9', '{00000000}', '{}', now() + interval '1 hour')",
    )
    .await;
    let failed = dev.cli(&["key", "rotate", "master", "--forget-older", "--wait", "1s"]).await;
    assert_eq!(failed.status.code(), Some(1), "{failed:?}");
    dev.execute("gmah_master", "delete from key_holders where address = '192.0.2.1:9'").await;
    let mut seen = vec![rotated["id"].clone()];
    for args in [&args[..], &args, &["key", "rotate", "master", "--forget-older"], &args] {
        let rotated = dev.cli_json(args).await;
        assert!(!seen.contains(&rotated["id"]), "{args:?}: {rotated} after {seen:?}");
        seals_all(&dev, text(&rotated["id"])).await;
        seen.push(rotated["id"].clone());
    }
    // Nobody finishes it from afar.
    assert!(killed_at(&dev, "key.rotate_master/known/before", &args).await);
    let left = dev.cli_json(&["operation", "list", "--unfinished"]).await;
    let admin = crate::admin::Admin::owner(&dev).await;
    for what in ["resume", "cancel"] {
        let path = format!("/operations/{}/{what}", text(&left[0]["id"]));
        let seen = admin.ask("POST", &path, None).await;
        assert!(seen.status == 409 && seen.body.contains("on the command line"), "{seen:?}");
    }
    dev.cli_json(&["operation", "cancel", text(&left[0]["id"])]).await;
    // What is given up leaves a key that opens and does not seal: the next exchange is with it.
    let made = dev.settings().master_key.ids();
    assert_eq!(dev.cli_json(&args).await["id"], json!(made[made.len() - 1]));
}

#[tokio::test(flavor = "multi_thread")]
async fn k18_older_master_keys_go_wherever_it_is_cut_short() {
    let dev = Dev::start().await;
    // What was destroyed with an organisation is sealed with none.
    dev.create("gone").await;
    dev.cli_json(&["tenant", "delete", "gone", "--yes-delete", "gone", "--grace", "0s", "--without-backup"])
        .await;
    let args = ["key", "rotate", "master", "--forget-older"];
    cut_short(&dev, "key.rotate_master", &["alone", "forget"], &args, &[], async |at| {
        seals_all(&dev, at).await;
        assert_eq!(dev.settings().master_key.ids().len(), 1, "{at}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn k18_an_exchange_of_an_organisations_key_is_gone_on_with() {
    let dev = Dev::start().await;
    let config = std::fs::read_to_string(text(&dev.info["config"])).expect("configuration");
    let quick = dev.folder().join("data/quick.toml");
    std::fs::write(&quick, format!("{config}\n[catalog]\nttl = \"1s\"\nmax_stale = \"1s\"\n"))
        .expect("written");
    let path = quick.display().to_string();
    let args = ["key", "rotate", "data", "paris"];
    let exchanged = AtomicUsize::new(1);
    let steps = ["make", "seals", "reseal", "remove"];
    cut_short(&dev, "tenant.rotate_data_key", &steps, &args, &["--config", &path], async |at| {
        // Asked for when it is over, it is another one.
        let version =
            exchanged.fetch_add(1, Ordering::AcqRel) + 1 + usize::from(at.ends_with("remove/after"));
        let keys =
            "select string_agg(version || ' ' || (exchanged_at is not null), ',') from organization_keys k
            join organizations o on o.id = k.organization_id where slug = 'paris'";
        assert_eq!(dev.value("gmah_master", keys).await, format!("{version} true"), "{at}");
        let audited = "select count(*) from audit_log where action = 'key.rotate_data'";
        assert_eq!(dev.value("gmah_master", audited).await, (version - 1).to_string(), "{at}");
    })
    .await;
    // One that failed waits for another operation that was left half-way: what it had seen may not be so any more.
    dev.set_reachable("gmah_org_paris", false).await;
    let failed = dev.cli(&["--config", &path, "key", "rotate", "data", "paris"]).await;
    assert_eq!(failed.status.code(), Some(1), "{failed:?}");
    dev.set_reachable("gmah_org_paris", true).await;
    let failed = dev.cli_json(&["operation", "list", "--unfinished"]).await;
    assert!(
        killed_at(&dev, "tenant.rotate_password/server/before", &["key", "rotate", "tenant", "paris"]).await
    );
    let (again, resume) =
        (["key", "rotate", "data", "paris"], ["operation", "resume", text(&failed[0]["id"])]);
    for args in [&again[..], &resume] {
        let no = dev.cli(&[&["--config", &path], args].concat()).await;
        let said = String::from_utf8_lossy(&no.stderr);
        assert!(no.status.code() == Some(1) && said.contains("tenant.rotate_password was left"), "{said}");
    }
    dev.cli_json(&["key", "rotate", "tenant", "paris"]).await;
    dev.cli_json(&[&["--config", &path], &again[..]].concat()).await;
    assert_eq!(dev.cli_json(&["operation", "list", "--unfinished"]).await, json!([]));
    // Nothing waits for somebody to come back to it; and of another organisation of that name it is not.
    let at = ["--config", &path, "key", "rotate", "data", "paris"];
    assert!(killed_at(&dev, "tenant.rotate_data_key/seals/before", &at).await);
    dev.cli_json(&["tenant", "backup", "paris"]).await;
    assert_eq!(dev.cli_json(&["operation", "list", "--unfinished"]).await, json!([]));
    assert!(killed_at(&dev, "tenant.rotate_data_key/seals/before", &at).await);
    dev.execute(
        "gmah_master",
        "update organizations set slug = 'former' where slug = 'paris'; update organizations set slug = 'paris' where slug = 'lyon'",
    )
    .await;
    let left = dev.cli_json(&["operation", "list", "--unfinished"]).await;
    let no = dev.cli(&["--config", &path, "operation", "resume", text(&left[0]["id"])]).await;
    let said = String::from_utf8_lossy(&no.stderr);
    assert!(no.status.code() == Some(1) && said.contains("which paris is not"), "{said}");
    let lyon = "select count(*) from organization_keys k join organizations o on o.id = k.organization_id where slug = 'paris'";
    assert_eq!(dev.value("gmah_master", lyon).await, "1");
    dev.cli_json(&["operation", "cancel", text(&left[0]["id"])]).await;
}
