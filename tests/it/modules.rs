//! Modules: on and off for each organisation, with their tables, and at once.

use std::time::Duration;

use serde_json::json;

use crate::harness::{Dev, eventually};
use crate::operations::killed_at;

const SOON: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread")]
async fn a_module_is_switched_on_and_off() {
    let dev = Dev::start().await;
    let token = dev.login("paris").await;
    let ask = |path: &'static str| {
        let (dev, token) = (&dev, token.clone());
        async move {
            let answer = dev.get_as("paris", path, &token).await;
            (answer.status, if answer.status == 200 { String::new() } else { answer.code() })
        }
    };
    let off = (404, "module_disabled".to_owned());
    assert_eq!(ask("/api/v1/patients").await, off);
    let tables =
        || dev.value("gmah_org_paris", "select count(*) from pg_tables where tablename = 'patients'");
    assert_eq!(tables().await, "0");
    let now = dev.cli_json(&["module", "enable", "paris", "patients"]).await;
    assert_eq!(now["modules"], json!(["loans", "patients"]));
    eventually("on", SOON, || ask("/api/v1/patients"), |a| a.0 == 200).await;
    assert_eq!(tables().await, "1");
    assert_eq!(dev.get("paris", "/api/v1/tenant").await.json()["modules"], json!(["loans", "patients"]));
    let bearer = format!("Bearer {token}");
    let ada = json!({"first_name": "Ada", "last_name": "Lovelace", "birth_date": "1985-12-10"});
    let made = dev.post("paris", "/api/v1/patients", &[("Authorization", &bearer)], &ada).await;
    assert_eq!((made.status, &made.json()["birth_date"]), (201, &json!("1985-12-10")), "{made:?}");
    for (field, value) in [
        ("birth_date", json!("1985-13-10")),
        ("birth_date", json!("10.12.1985")),
        ("birth_date", json!("2985-12-10")),
        ("birth_date", json!("0001-01-01")),
        ("phone", json!("none")),
        ("insurance", json!("x")),
    ] {
        let mut body = ada.clone();
        body[field] = value;
        let seen = dev.post("paris", "/api/v1/patients", &[("Authorization", &bearer)], &body).await;
        assert_eq!((seen.status, seen.json()["field"].as_str()), (422, Some(field)), "{seen:?}");
    }
    // Twice is once; off and on again, what was there is there.
    dev.cli_json(&["module", "enable", "paris", "patients", "patients"]).await;
    assert_eq!(dev.cli_json(&["module", "disable", "paris", "patients"]).await["modules"], json!(["loans"]));
    eventually("off", SOON, || ask("/api/v1/patients"), |a| *a == off).await;
    assert_eq!(ask("/api/v1/members").await.0, 200);
    dev.cli_json(&["module", "enable", "paris", "patients"]).await;
    eventually("on again", SOON, || ask("/api/v1/patients"), |a| a.0 == 200).await;
    let kept = dev.get_as("paris", "/api/v1/patients", &token).await.json();
    assert_eq!(kept["items"].as_array().map(Vec::len), Some(1));
    let history = "select string_agg(action, ' ' order by id) from audit_log where action like 'module.%'";
    assert_eq!(dev.value("gmah_master", history).await, "module.enable module.disable module.enable");

    for (args, code, why) in [
        (&["module", "enable", "paris", "nothing"][..], 2, "nothing is no module; there are loans, patients"),
        (&["module", "disable", "paris", "core"], 2, "core is everybody's"),
        (&["module", "enable", "nobody", "loans"], 1, "no organisation nobody"),
        (&["module", "enable", "paris"], 2, "MODULES"),
        (&["module", "list", "nobody"], 1, "no organisation nobody"),
    ] {
        let out = dev.cli(args).await;
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.code() == Some(code) && said.contains(why), "{args:?}: {said}");
    }
    let listed = dev.cli_json(&["module", "list", "lyon"]).await;
    assert_eq!((&listed[0]["key"], &listed[0]["enabled"]), (&json!("loans"), &json!(true)));
    assert_eq!((&listed[1]["key"], &listed[1]["enabled"]), (&json!("patients"), &json!(false)));
}

/// a module whose tables cannot be made is not switched on.
#[tokio::test(flavor = "multi_thread")]
async fn q18_a_module_without_tables_stays_off() {
    let dev = Dev::start().await;
    dev.execute("gmah_org_paris", "create table patients (x int)").await;
    let out = dev.cli(&["module", "enable", "paris", "patients"]).await;
    assert_eq!(out.status.code(), Some(1), "{}", String::from_utf8_lossy(&out.stderr));
    let on = "select count(*) from organization_features f join organizations o on o.id = f.organization_id
        where slug = 'paris' and module = 'patients'";
    assert_eq!(dev.value("gmah_master", on).await, "0");
    dev.execute("gmah_org_paris", "drop table patients").await;
    dev.cli_json(&["module", "enable", "paris", "patients"]).await;
}

/// killed wherever, an organisation never has a module without its tables, and nothing stands in anybody's way.
#[tokio::test(flavor = "multi_thread")]
async fn q18_a_switch_that_was_cut_short_is_gone_on_with_or_void() {
    let dev = Dev::start().await;
    let on = async || dev.cli_json(&["module", "list", "paris"]).await[1]["enabled"] == json!(true);
    let tables = async || {
        dev.value("gmah_org_paris", "select count(*) from pg_tables where tablename = 'patients'").await
    };
    let enable = ["module", "enable", "paris", "patients"];
    for (at, has_tables, is_on) in [
        ("tables/before", "0", false),
        ("tables/after", "1", false),
        ("switch/before", "1", false),
        ("switch/after", "1", true),
    ] {
        assert!(killed_at(&dev, &format!("tenant.modules/{at}"), &enable).await, "{at}");
        assert_eq!((tables().await.as_str(), on().await), (has_tables, is_on), "{at}");
        let left = dev.cli_json(&["operation", "list", "--unfinished"]).await;
        let id = left[0]["id"].as_str().expect("one is left").to_owned();
        assert_eq!(
            (&left[0]["kind"], &left[0]["slug"]),
            (&json!("tenant.modules"), &json!("paris")),
            "{left}"
        );
        match at {
            // Asked for again; by its number; void, because something else is asked for; given up.
            "tables/before" => drop(dev.cli_json(&enable).await),
            "tables/after" => drop(dev.cli_json(&["operation", "resume", &id]).await),
            "switch/before" => drop(dev.cli_json(&["module", "disable", "paris", "patients"]).await),
            _ => drop(dev.cli_json(&["operation", "cancel", &id]).await),
        }
        assert_eq!(dev.cli_json(&["operation", "list", "--unfinished"]).await, json!([]), "{at}");
        assert_eq!(on().await, at != "switch/before", "{at}");
        dev.cli_json(&["module", "disable", "paris", "patients"]).await;
    }
    // Off is one statement: it was done, or not.
    dev.cli_json(&enable).await;
    let disable = ["module", "disable", "paris", "patients"];
    assert!(killed_at(&dev, "tenant.modules/switch/before", &disable).await);
    assert!(on().await);
    dev.cli_json(&disable).await;
    assert!(!on().await);
    let count = |what: &str| format!("select count(*) from audit_log where action = 'module.{what}'");
    assert_eq!(dev.value("gmah_master", &count("enable")).await, "4");
    assert_eq!(dev.value("gmah_master", &count("disable")).await, "4");
}
