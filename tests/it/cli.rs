//! The command line: exit codes, sentences, JSON.

use std::path::Path;
use std::process::Stdio;

use crate::harness::Dev;
use crate::harness::dev::{BINARY, text};

async fn run(folder: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let out = tokio::process::Command::new(BINARY)
        .args(args)
        .env_remove("GMAH_CONFIG")
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .await
        .expect("ran");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (out.status.code(), text(&out.stdout), text(&out.stderr))
}

#[tokio::test]
async fn without_a_configuration_it_says_so() {
    let folder = tempfile::tempdir().expect("folder");
    for args in [&["tenant", "list"][..], &["router"], &["api"], &["config", "check"]] {
        let (code, _, said) = run(folder.path(), args).await;
        assert_eq!((code, said.contains("--config")), (Some(2), true), "{args:?}: {said}");
    }
    let (code, _, said) = run(folder.path(), &["--config", "nothere.toml", "config", "check"]).await;
    assert_eq!((code, said.contains("nothere.toml")), (Some(2), true), "{said}");
    std::fs::write(folder.path().join("bad.toml"), "base_domain = \"gmah.com\"\nbogus = 1\n")
        .expect("written");
    let (code, _, said) = run(folder.path(), &["--config", "bad.toml", "config", "check"]).await;
    assert_eq!((code, said.contains("bad.toml:2: bogus: unknown key")), (Some(2), true), "{said}");
    for args in [&["bogus"][..], &["tenant", "bogus"], &["tenant", "migrate"], &["tenant", "create"], &[]] {
        assert_eq!(run(folder.path(), args).await.0, Some(2), "{args:?}");
    }
    assert_eq!(run(folder.path(), &["--version"]).await.0, Some(0));
}

/// An example configuration, with what it names beside it: its text in this folder.
fn beside(folder: &Path, example: &Path) -> String {
    let key = gmah_shared::secret::MasterKey::generate_text();
    let made =
        rcgen::generate_simple_self_signed(["gmah.com".to_owned(), "*.gmah.com".to_owned()]).expect("made");
    for (name, text) in [
        ("master.key", secrecy::ExposeSecret::expose_secret(&key)),
        ("postgres.password", "secret\n"),
        ("gmah.com.pem", &made.cert.pem()),
        ("gmah.com.key", &made.signing_key.serialize_pem()),
    ] {
        std::fs::write(folder.join(name), text).expect("written");
    }
    // What an example names is elsewhere on a real machine.
    let text = std::fs::read_to_string(example).expect("example");
    text.replace("/etc/gmah/secrets/", "").replace("/etc/gmah/certs/", "")
}

/// Every example configuration of `deploy/` loads.
#[tokio::test]
async fn examples_load() {
    let folder = tempfile::tempdir().expect("folder");
    let mut found = 0;
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy")).expect("deploy").flatten()
    {
        if entry.path().extension().is_some_and(|e| e == "toml") {
            found += 1;
            let here = folder.path().join(entry.file_name());
            std::fs::write(&here, beside(folder.path(), &entry.path())).expect("copy");
            let (code, out, said) =
                run(folder.path(), &["--config", text_of(&here), "config", "check"]).await;
            assert_eq!(code, Some(0), "{out}{said}");
        }
    }
    assert!(found > 0);
}

#[tokio::test]
async fn every_part_says_what_is_wrong_with_it_and_where() {
    let folder = tempfile::tempdir().expect("folder");
    let good = beside(folder.path(), Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/gmah.toml")));
    let other = rcgen::KeyPair::generate().expect("key").serialize_pem();
    std::fs::write(folder.path().join("other.key"), other).expect("written");
    let here = folder.path().join("gmah.toml");
    let line =
        |text: &str, wanted: &str| text.lines().position(|l| l.starts_with(wanted)).expect("there") + 1;
    let check = async |text: &str| {
        std::fs::write(&here, text).expect("written");
        run(folder.path(), &["--config", text_of(&here), "config", "check"]).await
    };
    for (was, is, key, message) in [
        ("filter = \"info\"", "filter = \"gmah=notalevel\"", "log.filter", "error parsing"),
        ("max_per_tenant = 8\n", "max_per_tenant = 81\n", "pool.max_per_tenant", "must not be above"),
        ("master_key_file = \"master", "master_key_file = \"no", "secrets.master_key_file", "No such file"),
        ("certificate_file = \"gmah", "certificate_file = \"no", "router.certificate_file", "No such file"),
        ("key_file = \"gmah.com.key", "key_file = \"other.key", "router.certificate_file", "KeyMismatch"),
        ("password_file = \"", "password_file = \"no", "master.password_file", "No such file"),
    ] {
        let bad = good.replace(was, is);
        assert_ne!(bad, good, "{was}");
        let (code, out, said) = check(&bad).await;
        let place = format!("gmah.toml:{}: {key}: ", line(&bad, key.rsplit('.').next().expect("name")));
        assert!(said.contains(&place) && said.contains(message), "{key}: {said}");
        assert_eq!((code, out.as_str(), said.lines().count()), (Some(2), "", 1), "{said}");
    }
    let bad =
        good.replace("max_per_tenant = 8\n", "max_per_tenant = 81\n").replace("\"info\"", "\"gmah=no\"");
    let bad =
        format!("bogus = 1\nwrong = 2\n{}", bad.replace("certificate_file = \"", "certificate_file = \"no"));
    let (code, _, said) = check(&bad).await;
    assert_eq!(code, Some(2));
    for wanted in
        [":1: bogus: ", ":2: wrong: ", "log.filter: ", "router.certificate_file: ", "pool.max_per_tenant: "]
    {
        assert_eq!(said.matches(wanted).count(), 1, "{wanted}: {said}");
    }
    // What a role would not start with is wrong usage for it too.
    let bad = good.replace("certificate_file = \"gmah", "certificate_file = \"no");
    std::fs::write(&here, &bad).expect("written");
    let (code, _, said) = run(folder.path(), &["--config", text_of(&here), "router"]).await;
    assert!(code == Some(2) && said.contains("router.certificate_file: "), "{said}");
}

fn text_of(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_on_organisations() {
    let dev = Dev::start().await;
    let ok = dev.cli(&["config", "check"]).await;
    assert!(ok.status.success() && String::from_utf8_lossy(&ok.stdout).contains("valid"));
    let list = dev.cli_json(&["tenant", "list"]).await;
    let slugs: Vec<_> = list.as_array().expect("list").iter().map(|t| text(&t["slug"])).collect();
    assert_eq!(slugs, ["hopital-central", "lyon", "paris"]);
    let shown = dev.cli_json(&["tenant", "show", "paris"]).await;
    assert_eq!((text(&shown["database"]), &shown["placement"]), ("gmah_org_paris", &1.into()));
    assert!(!shown.to_string().contains("password"));

    let fails = |args: &'static [&'static str]| {
        let dev = &dev;
        async move {
            let out = dev.cli(args).await;
            (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
        }
    };
    let (code, said) = fails(&["tenant", "show", "nobody"]).await;
    assert_eq!((code, said.contains("no organisation nobody")), (Some(1), true), "{said}");
    assert_eq!(fails(&["tenant", "suspend", "NOBODY"]).await.0, Some(2));
    assert!(dev.cli(&["tenant", "suspend", "lyon"]).await.status.success());
    assert!(dev.cli(&["tenant", "suspend", "lyon"]).await.status.success(), "again changes nothing");
    let (code, said) = fails(&["tenant", "maintenance", "lyon", "on"]).await;
    assert_eq!((code, said.contains("is suspended")), (Some(1), true), "{said}");
    assert!(dev.cli(&["tenant", "resume", "lyon"]).await.status.success());

    let servers = dev.cli_json(&["server", "list"]).await;
    assert_eq!((text(&servers[0]["name"]), &servers[0]["organizations"]), ("local", &3.into()));
    assert!(!servers.to_string().contains("password"));
    for (args, code) in [
        (&["server", "add", "--name", "Bad Name", "--host", "127.0.0.1", "--user", "x"][..], Some(2)),
        (&["server", "add", "--name", "mars", "--host", "127.0.0.1", "--port", "1", "--user", "x"], Some(1)),
        (
            &[
                "server",
                "add",
                "--name",
                "mars",
                "--host",
                "127.0.0.1",
                "--user",
                "x",
                "--password-file",
                "/nowhere",
            ],
            Some(1),
        ),
    ] {
        assert_eq!(dev.cli(args).await.status.code(), code, "{args:?}");
    }
    let admin = dev.cli_json(&["admin", "create", "--email", "Root@Example.org"]).await;
    assert!(text(&admin["password"]).len() >= 32);
    assert_eq!(fails(&["admin", "create", "--email", "root@example.org"]).await.0, Some(1));
    assert_eq!(fails(&["admin", "create", "--email", "nobody"]).await.0, Some(2));
    assert_eq!(dev.cli_json(&["admin", "list"]).await.as_array().map(Vec::len), Some(2));
    let seeded = dev.cli_json(&["tenant", "seed", "paris"]).await;
    assert_eq!(seeded["members"], 0, "tables that have rows are left alone");
}
