//! The command line: exit codes, sentences, JSON.

use std::process::Stdio;

use crate::harness::Dev;
use crate::harness::dev::{BINARY, text};

async fn run(folder: &std::path::Path, args: &[&str]) -> (Option<i32>, String, String) {
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

/// Every example configuration of `deploy/` loads.
#[tokio::test]
async fn examples_load() {
    let folder = tempfile::tempdir().expect("folder");
    let key = gmah_shared::secret::MasterKey::generate_text();
    let mut found = 0;
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy")).expect("deploy").flatten()
    {
        if entry.path().extension().is_some_and(|e| e == "toml") {
            found += 1;
            let here = folder.path().join(entry.file_name());
            // The secrets that an example names are elsewhere on a real machine.
            let example = std::fs::read_to_string(entry.path()).expect("example");
            std::fs::write(&here, example.replace("/etc/gmah/secrets/", "")).expect("copy");
            std::fs::write(folder.path().join("master.key"), secrecy::ExposeSecret::expose_secret(&key))
                .expect("key");
            std::fs::write(folder.path().join("postgres.password"), "secret\n").expect("password");
            let (code, out, said) =
                run(folder.path(), &["--config", text_of(&here), "config", "check"]).await;
            assert_eq!(code, Some(0), "{out}{said}");
        }
    }
    assert!(found > 0);
}

fn text_of(path: &std::path::Path) -> &str {
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
