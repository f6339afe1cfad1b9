//! Exports: everything its owner has, and nothing that is secret; imported again, the same.

use std::path::Path;

use serde_json::{Value, json};

use crate::harness::Dev;
use crate::harness::dev::text;
use crate::operations::killed_at;

fn lines(folder: &Path, table: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(folder.join(format!("tables/{table}.jsonl"))).expect(table);
    text.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect()
}

async fn fails(dev: &Dev, args: &[&str]) -> (Option<i32>, String) {
    let out = dev.cli(args).await;
    assert!(!out.status.success(), "{args:?} was done");
    (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn out_and_in_again() {
    let dev = Dev::start().await;
    let token = dev.login("hopital-central").await;
    let bearer = format!("Bearer {token}");
    let headers = [("Authorization", bearer.as_str())];
    let ida = json!({"first_name": "Ida", "last_name": "=Noddack, \"née\" Tacke\u{e9}", "birth_date": "1896-02-25",
        "national_id": "2960299999999", "notes": "only for the ward"});
    let made = dev.post("hopital-central", "/api/v1/patients", &headers, &ida).await;
    assert_eq!(made.status, 201, "{made:?}");
    let upload = [("Authorization", bearer.as_str()), ("Content-Type", "application/octet-stream")];
    let file = dev
        .client
        .send("POST", &dev.host("hopital-central"), "/api/v1/files?name=a.txt", &upload, Some("an image"))
        .await;
    let file = text(&file.json()["id"]).to_owned();
    let to = dev.folder().join("export");
    let path = to.to_str().expect("UTF-8");
    let shown = dev.cli_json(&["tenant", "export", "hopital-central", "--to", path]).await;
    assert_eq!(shown["tables"]["patients"]["rows"], 241, "{shown}");
    let noddack = lines(&to, "patients").into_iter().find(|p| p["first_name"] == "Ida").expect("Ida");
    assert_eq!(
        (text(&noddack["notes"]), text(&noddack["national_id"])),
        ("only for the ward", "2960299999999")
    );
    assert_eq!(noddack["last_name"], ida["last_name"]);
    let mut sheet = csv::Reader::from_path(to.join("tables/patients.csv")).expect("CSV");
    let rows: Vec<csv::StringRecord> = sheet.records().collect::<Result<_, _>>().expect("records");
    assert!(rows.len() == 241 && rows.iter().any(|r| r.iter().any(|c| Some(c) == ida["last_name"].as_str())));
    assert_eq!(std::fs::read_to_string(to.join("files").join(&file)).expect("file"), "an image");
    // Nothing that is secret, and for nobody else on the machine.
    for table in ["sessions", "outbox", "user_totp", "api_keys", "gmah_identity"] {
        assert!(!to.join(format!("tables/{table}.jsonl")).exists(), "{table}");
    }
    assert!(lines(&to, "users").iter().all(|u| u.get("password_hash").is_none()));
    for inside in [to.clone(), to.join("manifest.json"), to.join("tables/users.jsonl")] {
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(
            std::fs::metadata(&inside).expect("there").permissions().mode() & 0o077,
            0,
            "{}",
            inside.display()
        );
    }

    let copy = dev.cli_json(&["tenant", "import", "--from", path, "--slug", "hopital-2"]).await;
    assert_eq!(copy["files"], 1, "{copy}");
    let tables: Vec<String> = shown["tables"].as_object().expect("tables").keys().cloned().collect();
    for table in &tables {
        let count = format!("select count(*) from {table}");
        assert_eq!(
            dev.value("gmah_org_hopital_2", &count).await,
            dev.value("gmah_org_hopital_central", &count).await,
            "{table}"
        );
    }
    let email = text(&copy["admin_email"]).to_owned();
    let theirs = dev.login_as("hopital-2", &email, text(&copy["admin_password"])).await;
    let path_of = format!("/api/v1/patients/{}", text(&made.json()["id"]));
    let patient = dev.get_as("hopital-2", &path_of, &theirs).await.json();
    assert_eq!((text(&patient["notes"]), &patient["last_name"]), ("only for the ward", &ida["last_name"]));
    let bearer = format!("Bearer {theirs}");
    let again = dev.post("hopital-2", "/api/v1/patients", &[("Authorization", &bearer)], &ida).await;
    assert_eq!(again.status, 409, "found by what is sealed: {again:?}");
    let content = dev.get_as("hopital-2", &format!("/api/v1/files/{file}/content"), &theirs).await;
    assert_eq!((content.status, content.body.as_str()), (200, "an image"));
    // Exported once more it is the same, but for the password that was set and what was done since.
    let second = dev.folder().join("second");
    dev.cli_json(&["tenant", "export", "hopital-2", "--to", second.to_str().expect("UTF-8")]).await;
    for table in ["patients", "files", "roles", "settings", "hospitalizations", "invoices"] {
        assert_eq!(lines(&to, table), lines(&second, table), "{table}");
    }
    let doctor = dev.cli(&["doctor"]).await;
    assert!(doctor.status.success(), "{doctor:?}");

    for (args, code, what) in [
        (vec!["tenant", "export", "hopital-central", "--to", path], 1, "has something in it"),
        (vec!["tenant", "export", "nobody", "--to", "/tmp/nothing"], 1, "no organisation"),
        (vec!["tenant", "export", "paris", "--to", "/proc/nothing"], 1, "/proc"),
        (vec!["tenant", "import", "--from", path, "--slug", "paris"], 1, "taken"),
        (vec!["tenant", "import", "--from", "/nowhere", "--slug", "nice"], 1, "/nowhere"),
        (vec!["tenant", "import", "--from", path, "--slug", "NICE"], 2, "slug"),
        (vec!["tenant", "import", "--from", path, "--slug", "nice", "--admin-email", "nobody"], 2, "e-mail"),
    ] {
        let (seen, said) = fails(&dev, &args).await;
        assert_eq!((seen, said.contains(what)), (Some(code), true), "{args:?}: {said}");
    }
}

/// What was changed, cut off or made up is refused, and leaves nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_bad_export_makes_nothing() {
    let dev = Dev::start().await;
    let to = dev.folder().join("export");
    let path = to.to_str().expect("UTF-8");
    dev.cli_json(&["tenant", "export", "lyon", "--to", path]).await;
    let before = dev.value("postgres", "select count(*) from pg_database").await;
    let (members, manifest) = (to.join("tables/members.jsonl"), to.join("manifest.json"));
    let whole = std::fs::read_to_string(&members).expect("members");
    let said = std::fs::read_to_string(&manifest).expect("manifest");
    let half = whole.get(..whole.len() / 2).expect("ASCII").to_owned();
    let first = whole.lines().next().expect("a line").to_owned();
    for (what, rows, words) in [
        ("cut off", half, said.clone()),
        ("a row less", whole.replacen(&format!("{first}\n"), "", 1), said.clone()),
        (
            "another row",
            whole.replacen("\"first_name\": \"", "\"first_name\": \"X", 1).replacen(
                "\"first_name\":\"",
                "\"first_name\":\"X",
                1,
            ),
            said.clone(),
        ),
        ("no JSON", format!("nonsense\n{whole}"), said.clone()),
        ("another format", whole.clone(), said.replacen("\"format\": 1", "\"format\": 2", 1)),
        ("a later schema", whole.clone(), said.replacen("\"loans\": 3", "\"loans\": 4", 1)),
        ("another table", whole.clone(), said.replacen("\"members\": {", "\"members; drop\": {", 1)),
        ("a table of ours", whole.clone(), said.replacen("\"members\": {", "\"sessions\": {", 1)),
        ("a column of ours", whole.clone(), said.replacen("\"disabled_at\"", "\"password_hash\"", 1)),
        ("a column that is none", whole.clone(), said.replacen("\"disabled_at\"", "\"nonsense\"", 1)),
        ("no manifest", whole.clone(), String::new()),
    ] {
        assert!(rows != whole || words != said, "{what}: nothing is wrong with it");
        std::fs::write(&members, rows).expect("written");
        std::fs::write(&manifest, words).expect("written");
        let (code, why) = fails(&dev, &["tenant", "import", "--from", path, "--slug", "nice"]).await;
        assert_eq!((code, why.contains("panicked")), (Some(1), false), "{what}: {why}");
        assert_eq!(dev.value("postgres", "select count(*) from pg_database").await, before, "{what}");
        assert_eq!(
            dev.value("postgres", "select count(*) from pg_roles where rolname = 'gmah_org_nice'").await,
            "0",
            "{what}"
        );
    }
    std::fs::write(&members, &whole).expect("written");
    std::fs::write(&manifest, &said).expect("written");
    for step in
        ["reserve", "role", "database", "identity", "migrations", "load", "files", "administrator", "active"]
    {
        for when in ["before", "after"] {
            let at = format!("tenant.import/{step}/{when}");
            let slug = format!("i-{step}-{when}");
            let args = ["tenant", "import", "--from", path, "--slug", &slug];
            assert!(killed_at(&dev, &at, &args).await, "{at}");
            let left = dev.cli_json(&["operation", "list", "--unfinished"]).await[0]["id"].clone();
            match (step, when) {
                ("load", _) => drop(dev.cli_json(&["operation", "resume", text(&left)]).await),
                ("files", _) => {
                    dev.cli_json(&["operation", "cancel", text(&left)]).await;
                    assert_eq!(dev.get(&slug, "/api/v1/tenant").await.status, 404, "{at}");
                    continue;
                }
                _ => drop(dev.cli_json(&args).await),
            }
            let database = format!("gmah_org_{}", slug.replace('-', "_"));
            assert_eq!(dev.value(&database, "select count(*) from members").await, "240", "{at}");
        }
    }
    assert_eq!(dev.cli_json(&["operation", "list", "--unfinished"]).await, json!([]));
}
