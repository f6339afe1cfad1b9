//! Backups: of one moment, encrypted, restored into another database, gone back from; and whatever can go wrong on the way.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::dev::text;
use crate::harness::{Dev, eventually};
use crate::operations::killed_at;

async fn backup(dev: &Dev, slug: &str) -> String {
    text(&dev.cli_json(&["tenant", "backup", slug]).await["backup_id"]).to_owned()
}

/// A command that must fail; its exit code and what it said.
async fn fails(dev: &Dev, args: &[&str]) -> (Option<i32>, String) {
    let out = dev.cli(args).await;
    assert!(!out.status.success(), "{args:?} was done");
    (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
}

async fn database(dev: &Dev, slug: &str) -> String {
    let sql =
        format!("select database_name from organizations where slug = '{slug}' and status <> 'deleted'");
    dev.value("gmah_master", &sql).await
}

async fn is_served(dev: &Dev, slug: &str) {
    let served = || async { dev.get(slug, "/api/v1/tenant").await.slug() };
    eventually("served", Duration::from_secs(5), served, |s| *s == (200, slug.to_owned())).await;
}

/// Everything in the store of backups, by name.
fn stored(dev: &Dev) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![dev.folder().join("data/backups")]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.path().is_dir() { folders.push(entry.path()) } else { found.push(entry.path()) }
        }
    }
    found.sort();
    found
}

async fn databases(dev: &Dev) -> String {
    dev.value("postgres", "select string_agg(datname, ' ' order by datname) from pg_database").await
}

/// A file of an organisation, as its administrator.
async fn upload(dev: &Dev, slug: &str, token: &str, bytes: &str) -> String {
    let bearer = format!("Bearer {token}");
    let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/octet-stream")];
    let answer =
        dev.client.send("POST", &dev.host(slug), "/api/v1/files?name=a.txt", &headers, Some(bytes)).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    text(&answer.json()["id"]).to_owned()
}

async fn file(dev: &Dev, slug: &str, token: &str, id: &str) -> (u16, String) {
    let answer = dev.get_as(slug, &format!("/api/v1/files/{id}/content"), token).await;
    (answer.status, answer.body)
}

/// L-13: a backup taken while somebody writes shows one moment; restored it is that moment, and going back is all of what came
/// after.
#[tokio::test(flavor = "multi_thread")]
async fn l13_in_place_and_back() {
    let dev = Dev::start().await;
    let token = dev.login("paris").await;
    let kept = upload(&dev, "paris", &token, "as it was").await;
    let writes = async {
        for n in 0..200 {
            let sql = format!(
                "insert into members (id, first_name, last_name) values (gen_random_uuid(), 'W', 'w{n}')"
            );
            dev.execute("gmah_org_paris", &sql).await;
        }
    };
    let (id, ()) = tokio::join!(backup(&dev, "paris"), writes);
    let well = dev.cli_json(&["backup", "verify", &id]).await;
    assert_eq!((&well["failed"], &well["backups"][0]["files"]), (&0.into(), &1.into()), "{well}");
    let listed = &dev.cli_json(&["backup", "list", "--tenant", "paris"]).await[0];
    assert_eq!((text(&listed["state"]), listed["verified_at"].is_null()), ("done", false));
    let manifest = format!("select (manifest #>> '{{tables,members,rows}}') from backups where id = '{id}'");
    let members = dev.value("gmah_master", &manifest).await;

    // What comes after.
    dev.execute("gmah_org_paris", "create table check_canary (x int); insert into check_canary values (1)")
        .await;
    let bearer = format!("Bearer {token}");
    let gone = dev
        .client
        .send(
            "DELETE",
            &dev.host("paris"),
            &format!("/api/v1/files/{kept}"),
            &[("Authorization", &bearer)],
            None,
        )
        .await;
    assert_eq!(gone.status, 204);
    let after = dev.value("gmah_org_paris", "select count(*) from members").await;

    let generation = dev.get("paris", "/api/v1/tenant").await.json()["generation"].as_i64();
    let restored = dev.cli_json(&["tenant", "restore", "paris", "--backup", &id]).await;
    assert_eq!((&restored["placement"], &restored["files"]), (&2.into(), &1.into()), "{restored}");
    let now = database(&dev, "paris").await;
    assert!(now.starts_with("gmah_org_paris_p2_"), "{now}");
    is_served(&dev, "paris").await;
    assert!(dev.get("paris", "/api/v1/tenant").await.json()["generation"].as_i64() > generation);
    assert_eq!(dev.value(&now, "select count(*) from members").await, members);
    assert_eq!(dev.value(&now, "select to_regclass('check_canary') is null").await, "t");
    // Logins of before are over; people log in as they did, and have their files.
    assert_eq!(dev.get_as("paris", "/api/v1/auth/me", &token).await.status, 401);
    let token = dev.login("paris").await;
    assert_eq!(file(&dev, "paris", &token, &kept).await, (200, "as it was".into()));
    // Nobody gets into the one before.
    let shut = "select datallowconn from pg_database where datname = 'gmah_org_paris'";
    assert_eq!(dev.value("postgres", shut).await, "f");

    let back = dev.cli_json(&["tenant", "restore", "paris", "--undo"]).await;
    assert_eq!((text(&back["database"]), &back["placement"]), ("gmah_org_paris", &3.into()));
    is_served(&dev, "paris").await;
    assert_eq!(dev.value("gmah_org_paris", "select count(*) from check_canary").await, "1");
    assert_eq!(dev.value("gmah_org_paris", "select count(*) from members").await, after);
    // And forth again: what was left is kept in its turn.
    let forth = dev.cli_json(&["tenant", "restore", "paris", "--undo"]).await;
    assert_eq!((text(&forth["database"]), &forth["placement"]), (now.as_str(), &4.into()));
    is_served(&dev, "paris").await;
    dev.login("paris").await;
    let (code, said) = fails(&dev, &["tenant", "restore", "lyon", "--undo"]).await;
    assert_eq!((code, said.contains("no database is kept")), (Some(1), true), "{said}");
}

/// A restored database is walled in as one that was created is.
#[tokio::test(flavor = "multi_thread")]
async fn q15_q16_a_restored_database_is_walled_in() {
    let dev = Dev::start().await;
    let rights = "select string_agg(concat_ws(' ', n.nspname, c.relname, c.relkind, c.relacl::text), '; ' order by n.nspname, c.relname)
        from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where n.nspname = 'public' or c.relacl::text <> (select i.initprivs::text from pg_init_privs i
            where i.objoid = c.oid and i.classoid = 'pg_class'::regclass and i.objsubid = 0)";
    let more = "select concat_ws(' ', (select nspacl::text || pg_get_userbyid(nspowner) from pg_namespace where nspname = 'public'),
        (select string_agg(defaclacl::text, ' ' order by defaclobjtype) from pg_default_acl),
        (select string_agg(distinct pg_get_userbyid(relowner), ' ') from pg_class where relnamespace = 'public'::regnamespace))";
    let before = (dev.value("gmah_org_paris", rights).await, dev.value("gmah_org_paris", more).await);
    let id = backup(&dev, "paris").await;
    dev.cli_json(&["tenant", "restore", "paris", "--backup", &id]).await;
    let now = database(&dev, "paris").await;
    assert_eq!((dev.value(&now, rights).await, dev.value(&now, more).await), before);
    let owner = format!(
        "select pg_get_userbyid(datdba) || coalesce(datacl::text, '') from pg_database where datname = '{now}'"
    );
    let acl = dev.value("postgres", &owner).await;
    let first = dev.value("postgres", "select pg_get_userbyid(datdba) || coalesce(datacl::text, '') from pg_database where datname = 'gmah_org_paris'").await;
    assert_eq!(acl, first);
}

/// As another organisation: its own id, key and tokens; the people and records of the backup; and nothing of the original moves.
#[tokio::test(flavor = "multi_thread")]
async fn another_organisation_out_of_a_backup() {
    let dev = Dev::start().await;
    let token = dev.login("hopital-central").await;
    let sealed = json!({"first_name": "Ida", "last_name": "Noddack", "birth_date": "1896-02-25", "national_id": "2960299999999",
        "notes": "only for the ward"});
    let bearer = format!("Bearer {token}");
    let headers = [("Authorization", bearer.as_str())];
    let made = dev.post("hopital-central", "/api/v1/patients", &headers, &sealed).await;
    assert_eq!(made.status, 201, "{made:?}");
    let path = format!("/api/v1/patients/{}", text(&made.json()["id"]));
    let kept = upload(&dev, "hopital-central", &token, "an image").await;
    let id = backup(&dev, "hopital-central").await;
    let copy = dev
        .cli_json(&["tenant", "restore", "hopital-central", "--backup", &id, "--as", "hopital-copy"])
        .await;
    assert_eq!((text(&copy["database"]), &copy["files"]), ("gmah_org_hopital_copy", &1.into()), "{copy}");
    is_served(&dev, "hopital-copy").await;
    let ids =
        "select count(distinct id) from organizations where slug in ('hopital-central', 'hopital-copy')";
    assert_eq!(dev.value("gmah_master", ids).await, "2");
    // A token of the one is nothing at the other.
    assert_eq!(dev.get_as("hopital-copy", &path, &token).await.status, 401);
    let demo = dev.info["tenants"]
        .as_array()
        .expect("tenants")
        .iter()
        .find(|t| t["slug"] == "hopital-central")
        .expect("demo");
    let copied =
        dev.login_as("hopital-copy", text(&demo["admin_email"]), text(&demo["admin_password"])).await;
    let shown = dev.get_as("hopital-copy", &path, &copied).await.json();
    assert_eq!((text(&shown["notes"]), text(&shown["national_id"])), ("only for the ward", "2960299999999"));
    assert_eq!(file(&dev, "hopital-copy", &copied, &kept).await, (200, "an image".into()));
    // What is sealed there is sealed with another key, and is still found by what it is.
    let column = "select encode(notes, 'hex') from patients where last_name = 'Noddack'";
    assert_ne!(
        dev.value("gmah_org_hopital_copy", column).await,
        dev.value("gmah_org_hopital_central", column).await
    );
    let bearer = format!("Bearer {copied}");
    let again = dev.post("hopital-copy", "/api/v1/patients", &[("Authorization", &bearer)], &sealed).await;
    assert_eq!(again.status, 409, "the same national id: {again:?}");
    for (args, code, what) in [
        (vec!["tenant", "restore", "hopital-central", "--backup", &id, "--as", "paris"], 1, "taken"),
        (vec!["tenant", "restore", "hopital-central", "--backup", &id, "--as", "admin"], 2, "reserved"),
        (vec!["tenant", "restore", "paris", "--backup", &id], 1, "--as another"),
        (vec!["tenant", "restore", "paris", "--backup", &id, "--as", "nice"], 1, "has no backup"),
        (
            vec!["tenant", "restore", "paris", "--backup", "018f0000-0000-7000-8000-000000000000"],
            1,
            "there is no backup",
        ),
        (vec!["tenant", "restore", "paris", "--backup", "x"], 2, "invalid value"),
        (vec!["tenant", "restore", "paris"], 2, "--backup"),
        (vec!["tenant", "backup", "nobody"], 1, "no organisation"),
        (vec!["tenant", "backup"], 2, "required"),
    ] {
        let (seen, said) = fails(&dev, &args).await;
        assert_eq!((seen, said.contains(what)), (Some(code), true), "{args:?}: {said}");
    }
}

/// Cut off, changed, another's, under another key, away: the restore is refused, and what the organisation has is untouched.
#[tokio::test(flavor = "multi_thread")]
async fn a_bad_backup_changes_nothing() {
    let dev = Dev::start().await;
    let id = backup(&dev, "paris").await;
    let other = backup(&dev, "paris").await;
    let dump = |id: &str| {
        let simple = id.replace('-', "");
        stored(&dev)
            .into_iter()
            .find(|p| p.to_string_lossy().contains(&simple) && p.ends_with("dump.age"))
            .expect("dump")
    };
    let (path, bytes) = (dump(&id), std::fs::read(dump(&id)).expect("read"));
    let before = databases(&dev).await;
    let mut changed = bytes.clone();
    changed[bytes.len() / 2] ^= 1;
    for (what, content) in [
        ("cut off", bytes[..bytes.len() / 2].to_vec()),
        ("cut off by a byte", bytes[..bytes.len() - 1].to_vec()),
        ("changed", changed),
        ("another's", std::fs::read(dump(&other)).expect("read")),
        ("empty", Vec::new()),
    ] {
        std::fs::write(&path, content).expect("written");
        let (code, said) = fails(&dev, &["tenant", "restore", "paris", "--backup", &id]).await;
        assert_eq!(code, Some(1), "{what}: {said}");
        let (_, said) = fails(&dev, &["tenant", "restore", "paris", "--backup", &id, "--as", "nice"]).await;
        assert!(!said.contains("panicked"), "{what}: {said}");
        let verified = dev.cli(&["backup", "verify", &id]).await;
        assert_eq!(verified.status.code(), Some(3), "{what}");
        assert_eq!(databases(&dev).await, before, "{what}: nothing is left of it");
        assert_eq!(
            (database(&dev, "paris").await.as_str(), dev.get("paris", "/api/v1/tenant").await.status),
            ("gmah_org_paris", 200),
            "{what}"
        );
    }
    let noted = dev.cli_json(&["backup", "list", "--tenant", "paris"]).await;
    assert!(
        noted
            .as_array()
            .expect("list")
            .iter()
            .any(|b| b["id"] == id.as_str() && !b["verification"].is_null()),
        "{noted}"
    );
    std::fs::remove_file(&path).expect("removed");
    let (_, said) = fails(&dev, &["tenant", "restore", "paris", "--backup", &id]).await;
    assert!(said.contains("among the backups"), "{said}");
    std::fs::write(&path, &bytes).expect("as it was");
    // Another key: it opens nothing that was encrypted to the one before; put before it, both open.
    let key_file = dev.folder().join("data/secrets/backups.key");
    let key = std::fs::read_to_string(&key_file).expect("key");
    let stranger = gmah_api::control::backup::config::Backups::generate_key();
    let stranger = secrecy::ExposeSecret::expose_secret(&stranger);
    std::fs::write(&key_file, stranger).expect("written");
    let (code, _) = fails(&dev, &["tenant", "restore", "paris", "--backup", &id]).await;
    assert_eq!(code, Some(1));
    std::fs::write(&key_file, format!("{stranger}\n{key}\n")).expect("written");
    let newer = backup(&dev, "paris").await;
    let well = dev.cli_json(&["backup", "verify", &id, &newer, &other]).await;
    assert_eq!(well["failed"], 0, "{well}");
    dev.cli_json(&["tenant", "restore", "paris", "--backup", &id]).await;
    is_served(&dev, "paris").await;
    // Nothing of it is in clear, and no secret is where it has no business.
    for path in stored(&dev) {
        let bytes = std::fs::read(&path).expect("read");
        if path.extension().is_some_and(|e| e == "age") {
            assert!(bytes.starts_with(b"age-encryption.org/v1"), "{}", path.display());
        }
        assert!(!bytes.windows(9).any(|w| w == b"last_name") || path.ends_with("manifest.json"));
    }
    std::fs::write(&key_file, "nonsense").expect("written");
    let (code, said) = fails(&dev, &["config", "check"]).await;
    assert_eq!((code, said.contains("backups.key_file")), (Some(2), true), "{said}");
}

/// The crash matrix of backup, restore, undo and restore as another: killed before and after every step, then gone on with or
/// given up.
#[tokio::test(flavor = "multi_thread")]
async fn killed_at_every_step_it_converges() {
    let dev = Dev::start().await;
    let token = dev.login("paris").await;
    upload(&dev, "paris", &token, "a file").await;
    let id = backup(&dev, "paris").await;
    dev.execute("gmah_org_paris", "create table check_canary (x int)").await;
    let has_canary = |database: String| {
        let dev = &dev;
        async move { dev.value(&database, "select to_regclass('check_canary') is not null").await }
    };
    let left = || async { dev.cli_json(&["operation", "list", "--unfinished"]).await[0].clone() };
    let nothing_left = || async {
        assert_eq!(dev.cli_json(&["operation", "list", "--unfinished"]).await, json!([]));
    };
    for when in ["before", "after"] {
        for step in ["begin", "dump", "files", "manifest"] {
            let at = format!("tenant.backup/{step}/{when}");
            assert!(killed_at(&dev, &at, &["tenant", "backup", "paris"]).await, "{at}");
            let op = left().await;
            let objects = stored(&dev).len();
            match (step, when) {
                // Gone on with, given up, or void because another was asked for.
                ("dump", _) => drop(dev.cli_json(&["operation", "resume", text(&op["id"])]).await),
                ("files", _) => drop(dev.cli_json(&["operation", "cancel", text(&op["id"])]).await),
                _ => drop(backup(&dev, "paris").await),
            }
            nothing_left().await;
            let running = "select count(*) from backups where state = 'running'";
            if step == "files" {
                assert!(stored(&dev).len() < objects, "{at}: what it had stored is gone");
                assert_eq!(dev.value("gmah_master", running).await, "0", "{at}");
            }
        }
        for step in ["plan", "load", "files", "fence", "switch", "files_again"] {
            let at = format!("tenant.restore/{step}/{when}");
            let was = database(&dev, "paris").await;
            assert!(killed_at(&dev, &at, &["tenant", "restore", "paris", "--backup", &id]).await, "{at}");
            let op = left().await;
            if step == "fence" {
                // Given up: all is as it was.
                dev.cli_json(&["operation", "cancel", text(&op["id"])]).await;
                assert_eq!(database(&dev, "paris").await, was, "{at}");
                is_served(&dev, "paris").await;
                nothing_left().await;
                continue;
            }
            dev.cli_json(&["tenant", "restore", "paris", "--backup", &id]).await;
            is_served(&dev, "paris").await;
            let now = database(&dev, "paris").await;
            assert_eq!(has_canary(now.clone()).await, "f", "{at}");
            nothing_left().await;
            let mut places = [was.clone(), now];
            for undo in if step == "plan" { &["plan", "open"][..] } else { &["fence", "switch"] } {
                let at = format!("tenant.restore_undo/{undo}/{when}");
                assert!(killed_at(&dev, &at, &["tenant", "restore", "paris", "--undo"]).await, "{at}");
                dev.cli_json(&["operation", "resume", text(&left().await["id"])]).await;
                is_served(&dev, "paris").await;
                assert_eq!(database(&dev, "paris").await, places[0], "{at}");
                nothing_left().await;
                places.swap(0, 1);
            }
            if database(&dev, "paris").await != was {
                dev.cli_json(&["tenant", "restore", "paris", "--undo"]).await;
            }
            assert_eq!(has_canary(database(&dev, "paris").await).await, "t", "{at}");
        }
        for step in ["reserve", "role", "load", "files", "active"] {
            let at = format!("tenant.restore_as/{step}/{when}");
            let slug = format!("copy-{step}-{when}");
            let args = ["tenant", "restore", "paris", "--backup", &id, "--as", &slug];
            assert!(killed_at(&dev, &at, &args).await, "{at}");
            if step == "files" {
                dev.cli_json(&["operation", "cancel", text(&left().await["id"])]).await;
                assert_eq!(dev.get(&slug, "/api/v1/tenant").await.status, 404, "{at}");
            } else {
                dev.cli_json(&args).await;
                is_served(&dev, &slug).await;
            }
            nothing_left().await;
        }
    }
}

/// All of them at once, each by itself; and only so many are kept.
#[tokio::test(flavor = "multi_thread")]
async fn the_fleet_and_what_is_kept() {
    let dev = Dev::start_with("[backups]\nkeep = 2\n").await;
    let all = dev.cli_json(&["tenant", "backup", "--all", "--parallel", "3"]).await;
    assert_eq!((&all["failed"], all["tenants"].as_array().map(Vec::len)), (&0.into(), Some(3)), "{all}");
    let token = dev.login("paris").await;
    let kept = upload(&dev, "paris", &token, "of two backups").await;
    let mut ids = Vec::new();
    for _ in 0..2 {
        ids.push(backup(&dev, "paris").await);
    }
    let bearer = format!("Bearer {token}");
    dev.client
        .send(
            "DELETE",
            &dev.host("paris"),
            &format!("/api/v1/files/{kept}"),
            &[("Authorization", &bearer)],
            None,
        )
        .await;
    let simple = kept.replace('-', "");
    let has_file = || stored(&dev).iter().any(|p| p.to_string_lossy().contains(&simple));
    let states = async || {
        let sql = "select string_agg(state, ' ' order by created_at) from backups where slug = 'paris'";
        dev.value("gmah_master", sql).await
    };
    assert_eq!(states().await, "removed done done");
    let third = dev.cli_json(&["tenant", "backup", "paris"]).await;
    assert_eq!((&third["removed"], has_file()), (&1.into(), true), "another backup needs the file");
    backup(&dev, "paris").await;
    assert_eq!(states().await, "removed removed removed done done");
    assert!(!has_file(), "nobody needs it any more");
    let (_, said) = fails(&dev, &["tenant", "restore", "paris", "--backup", &ids[0]]).await;
    assert!(said.contains("is removed"), "{said}");
    // One whose database is away is named, and the others are done.
    dev.set_reachable("gmah_org_lyon", false).await;
    let out = dev.cli(&["tenant", "backup", "--all", "--json"]).await;
    let report: Value = serde_json::from_slice(&out.stdout).expect("JSON");
    assert_eq!((out.status.code(), &report["failed"]), (Some(3), &1.into()), "{report}");
    let lyon =
        report["tenants"].as_array().expect("tenants").iter().find(|t| t["slug"] == "lyon").expect("lyon");
    assert!(lyon["error"].is_string(), "{report}");
    // Several at once, while somebody else makes a group that a dump grants something to.
    let other = dev.superuser("postgres").await;
    other
        .batch_execute("begin; create role gmah_readers nologin")
        .await
        .expect("a role that is not there yet");
    let waiting = "select count(*) from pg_stat_activity
        where wait_event_type = 'Lock' and query like '%gmah_readers%' and pid <> pg_backend_pid()";
    let meanwhile = async {
        let seen = || dev.value("postgres", waiting);
        eventually("trials wait for it", Duration::from_secs(20), seen, |n| n == "3").await;
        other.batch_execute("commit").await.expect("it is there");
    };
    let (verified, ()) =
        tokio::join!(dev.cli_json(&["backup", "verify", "--all", "--parallel", "3"]), meanwhile);
    assert_eq!((&verified["failed"], verified["backups"].as_array().map(Vec::len)), (&0.into(), Some(3)));
}

/// A copy to try things on: as many rows, the same amounts and states, and nobody's name, address, note or password.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_without_what_is_personal() {
    let dev = Dev::start().await;
    dev.cli_json(&["module", "enable", "hopital-central", "loans"]).await;
    let token = dev.login("hopital-central").await;
    let bearer = format!("Bearer {token}");
    let headers = [("Authorization", bearer.as_str())];
    let secret = "Confidential-Zyx";
    for (path, body) in [
        (
            "/api/v1/patients",
            json!({"first_name": secret, "last_name": secret, "birth_date": "1896-02-25", "national_id": "2960299999999", "notes": secret, "address": secret}),
        ),
        (
            "/api/v1/members",
            json!({"first_name": secret, "last_name": secret, "email": "confidential-zyx@example.org", "phone": "+33 1 99 99 99 99"}),
        ),
        ("/api/v1/families", json!({"name": secret})),
    ] {
        let made = dev.post("hopital-central", path, &headers, &body).await;
        assert_eq!(made.status, 201, "{path}: {made:?}");
    }
    upload(&dev, "hopital-central", &token, secret).await;
    dev.execute(
        "gmah_org_hopital_central",
        "insert into loans (id, member_id, amount, currency, installments, purpose)
             select gen_random_uuid(), id, 1000, 'EUR', 3, 'Confidential-Zyx' from members limit 1;
         insert into payments (id, loan_id, direction, amount, currency, paid_on, note, created_by)
             select gen_random_uuid(), l.id, 'out', 1000, 'EUR', '2026-01-02', 'Confidential-Zyx', u.id from loans l, users u;
         insert into hospitalizations (id, patient_id, ward, admitted_at) select gen_random_uuid(), id, 'A', now() from patients limit 3;
         insert into invoices (id, patient_id, amount, currency, description)
             select gen_random_uuid(), id, 500, 'EUR', 'Confidential-Zyx' from patients limit 3;
         insert into invoice_payments (id, invoice_id, amount, currency, paid_on, note, created_by)
             select gen_random_uuid(), i.id, 500, 'EUR', '2026-01-02', 'Confidential-Zyx', u.id from invoices i, users u",
    )
    .await;
    let copy = dev.cli_json(&["tenant", "clone", "hopital-central", "staging"]).await;
    is_served(&dev, "staging").await;
    let of = |database: &'static str, sql: &'static str| dev.value(database, sql);
    // Every text of every row of every table, beside those that are not anybody's: names of the demo's people among them.
    let all = "select string_agg(t.x, ' ') from (
            select query_to_xml(format('select * from %I', c.relname), true, true, '')::text as x
            from pg_class c where c.relnamespace = 'public'::regnamespace and c.relkind = 'r') t";
    let copied = of("gmah_org_staging", all).await;
    let people = "select string_agg(distinct w, E'\n') from (
            select last_name as w from patients union select phone from patients where phone is not null
            union select email from members where email is not null union select email from users
            union select encode(notes, 'hex') from patients where notes is not null) p where length(w) > 4";
    let personal = of("gmah_org_hopital_central", people).await;
    for word in personal.lines().chain(["onfidential", "2960299999999", "99 99 99"]) {
        assert!(!copied.contains(word), "{word}");
    }
    for table in [
        "patients",
        "members",
        "loans",
        "payments",
        "hospitalizations",
        "invoices",
        "invoice_payments",
        "families",
    ] {
        let rows = format!("select count(*) from {table}");
        assert_eq!(
            dev.value("gmah_org_staging", &rows).await,
            dev.value("gmah_org_hopital_central", &rows).await,
            "{table}"
        );
    }
    let amounts = "select sum(amount) || ' ' || min(status) from loans";
    assert_eq!(of("gmah_org_staging", amounts).await, of("gmah_org_hopital_central", amounts).await);
    // One can log in, and nobody else.
    dev.login_as("staging", text(&copy["admin_email"]), text(&copy["admin_password"])).await;
    assert_eq!(
        of("gmah_org_staging", "select count(*) from users where password_hash is not null").await,
        "1"
    );
    // What is never changed is never changed there either.
    let stays = dev.superuser("gmah_org_staging").await;
    assert!(stays.batch_execute("update payments set note = 'x'").await.is_err());
    let doctor = dev.cli(&["doctor"]).await;
    assert!(doctor.status.success(), "{doctor:?}");
    for (args, code) in [
        (&["tenant", "clone", "paris", "staging"][..], 1),
        (&["tenant", "clone", "nobody", "nice"], 1),
        (&["tenant", "clone", "paris", "NICE"], 2),
        (&["tenant", "clone", "paris", "nice", "--admin-email", "x"], 2),
    ] {
        assert_eq!(dev.cli(args).await.status.code(), Some(code), "{args:?}");
    }
}

/// A restore that fails after its switch is gone on with, and what was written since stays.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_after_the_switch_stays() {
    let dev = Dev::start().await;
    let id = backup(&dev, "paris").await;
    assert!(
        killed_at(
            &dev,
            "tenant.restore/files_again/before",
            &["tenant", "restore", "paris", "--backup", &id]
        )
        .await
    );
    is_served(&dev, "paris").await;
    let now = database(&dev, "paris").await;
    dev.execute(&now, "create table written_since (x int)").await;
    // As after a failure that could not be undone: all but the plan is to be done again.
    dev.execute("gmah_master", "update operation_steps set state = 'failed' where name <> 'plan'").await;
    let left = &dev.cli_json(&["operation", "list", "--unfinished"]).await[0];
    dev.cli_json(&["operation", "resume", text(&left["id"])]).await;
    assert_eq!(database(&dev, "paris").await, now);
    assert_eq!(dev.value(&now, "select to_regclass('written_since') is not null").await, "t");
    is_served(&dev, "paris").await;
}
