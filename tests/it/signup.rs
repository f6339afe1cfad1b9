//! Sign-up: nothing without a letter, one organisation with it, and bounds on both.

use std::time::Duration;

use serde_json::{Value, json};

use crate::accounts::{letters, token};
use crate::harness::dev::text;
use crate::harness::{Answer, Dev, eventually};
use crate::platform::browse;

const ON: &str = "[signup]\nplans = [\"starter\", \"professional\"]\n";

async fn send(dev: &Dev, path: &str, body: &Value) -> Answer {
    dev.post("admin", &format!("/api/v1/signup{path}"), &[], body).await
}

fn seen(answer: &Answer) -> (u16, String) {
    (answer.status, answer.json()["code"].as_str().unwrap_or_default().to_owned())
}

/// Confirms, and asks until it is ready.
async fn confirmed(dev: &Dev, body: &Value) -> Value {
    let now = || async { send(dev, "/confirm", body).await };
    let ready = eventually("ready", Duration::from_secs(30), now, |a| a.status != 202).await;
    assert_eq!(ready.status, 200, "{ready:?}");
    ready.json()
}

#[tokio::test(flavor = "multi_thread")]
async fn from_a_letter_to_an_organisation() {
    let dev = Dev::start_with(ON).await;
    let proposed = dev.get("admin", "/api/v1/signup/slugs?name=H%C3%B4pital%20Paris").await;
    assert_eq!(proposed.json(), json!({"slugs": ["hopital-paris", "hopital-paris-2", "hopital-paris-3"]}));
    let paris = dev.get("admin", "/api/v1/signup/slugs?name=Paris").await.json();
    assert_eq!(paris["slugs"][0], "paris-2", "the first is somebody's");
    let count = "select count(*) from organizations";
    let before = dev.value("gmah_master", count).await;
    let ask = json!({"name": "Société Nice", "slug": "nice", "email": "Eva@Nice.example"});
    let asked = send(&dev, "", &ask).await;
    assert_eq!((asked.status, &asked.json()["expires_in"]), (202, &json!(86400)), "{asked:?}");
    let letter = letters(&dev, "eva@nice.example", 1).await.remove(0);
    assert_eq!(
        dev.value("gmah_master", count).await,
        before,
        "nothing is made for an address that is not confirmed"
    );
    let made = json!({"token": token(&letter, "token")});
    let first = send(&dev, "/confirm", &made).await;
    assert_eq!((first.status, &first.json()["state"]), (202, &json!("making")), "{first:?}");
    let ready = confirmed(&dev, &made).await;
    assert_eq!((text(&ready["state"]), text(&ready["slug"])), ("ready", "nice"));
    assert!(text(&ready["url"]).starts_with("https://nice.gmah.localhost"), "{ready}");
    assert_eq!(dev.get("nice", "/api/v1/tenant").await.slug(), (200, "nice".to_owned()));
    // The second letter lets her in; the first one makes nothing any more.
    let second = letters(&dev, "eva@nice.example", 2).await;
    let invitation = second.iter().find(|l| l.contains("#invitation=")).expect("an invitation");
    let chosen = json!({"token": token(invitation, "invitation"), "new_password": "correct horse battery"});
    let set = dev.post("nice", "/api/v1/auth/password/set", &[], &chosen).await;
    assert_eq!(set.status, 204, "{set:?}");
    dev.login_as("nice", "eva@nice.example", "correct horse battery").await;
    assert_eq!(send(&dev, "/confirm", &made).await.status, 200);
    let made_now: i64 = dev.value("gmah_master", count).await.parse().expect("a number");
    assert_eq!(made_now, before.parse::<i64>().expect("a number") + 1);
    let operation = &dev.cli_json(&["operation", "list", "--tenant", "nice", "--limit", "1"]).await[0];
    assert_eq!((text(&operation["actor"]), text(&operation["state"])), ("signup:eva@nice.example", "done"));

    // A page for whoever has none of their own: which half of it shows is the script's work.
    for (path, shown, hidden) in [("/signup", "ask", "confirm"), ("/signup#token=x", "confirm", "ask")] {
        let (dom, log) = browse(&dev, path).await;
        let is_so = dom.contains(&format!("<form id=\"{shown}\">"))
            && dom.contains(&format!("<form id=\"{hidden}\" hidden"));
        assert!(is_so && !log.contains("Content Security Policy"), "{path}: {dom}\n{log}");
    }

    // Two want the same one: who confirms first has it, and the other takes another.
    for who in ["a", "b"] {
        let ask = json!({"name": "Brest", "slug": "brest", "email": format!("{who}@brest.example"), "plan": "professional"});
        assert_eq!(send(&dev, "", &ask).await.status, 202, "{who}");
    }
    let mut links = Vec::new();
    for who in ["a", "b"] {
        links.push(token(&letters(&dev, &format!("{who}@brest.example"), 1).await[0], "token"));
    }
    confirmed(&dev, &json!({"token": links[1]})).await;
    assert_eq!(seen(&send(&dev, "/confirm", &json!({"token": links[0]})).await), (409, "slug_taken".into()));
    let other = json!({"token": links[0], "slug": "brest-2"});
    assert_eq!(text(&confirmed(&dev, &other).await["slug"]), "brest-2");
    assert_eq!(dev.cli_json(&["tenant", "show", "brest-2"]).await["plan"], "professional");
}

#[tokio::test(flavor = "multi_thread")]
async fn a05_what_is_refused_sends_no_letter() {
    let off = Dev::start().await;
    let good = json!({"name": "Nice", "slug": "nice", "email": "eva@nice.example"});
    assert_eq!(send(&off, "", &good).await.status, 404, "off unless it is switched on");
    for path in ["/api/v1/signup/slugs?name=x", "/signup", "/signup/page.js"] {
        assert_eq!(off.get("admin", path).await.status, 404, "{path}");
    }
    drop(off);
    let dev = Dev::start_with(&format!("{ON}per_email = 2\nper_network = 4\n")).await;
    let with = |field: &str, value: Value| {
        let mut body = good.clone();
        body[field] = value;
        body
    };
    for (body, status, code) in [
        (with("name", json!("")), 422, "invalid"),
        (with("name", json!("x\u{7}")), 422, "invalid"),
        (with("slug", json!("NICE")), 422, "invalid"),
        (with("slug", json!("admin")), 422, "invalid"),
        (with("slug", json!("paris")), 409, "slug_taken"),
        (with("email", json!("nobody")), 422, "invalid"),
        (with("email", json!("a@b.example\r\nBcc: c@d.example")), 422, "invalid"),
        (with("plan", json!("enterprise")), 422, "invalid"),
        (with("modules", json!(["patients"])), 422, "invalid"),
        (json!({"name": "Nice"}), 422, "invalid"),
    ] {
        assert_eq!(seen(&send(&dev, "", &body).await), (status, code.to_owned()), "{body}");
    }
    for (body, code) in [
        (json!({"token": "x".repeat(43)}), "link_invalid"),
        (json!({"token": "short"}), "link_invalid"),
        (json!({"token": "\u{0}".repeat(43)}), "link_invalid"),
        (json!({}), "invalid"),
    ] {
        assert_eq!(seen(&send(&dev, "/confirm", &body).await), (422, code.to_owned()), "{body}");
    }
    assert_eq!(dev.get("admin", "/api/v1/signup/slugs?name=%00").await.status, 422);
    assert_eq!(dev.get("admin", "/api/v1/signup/slugs").await.status, 400);
    assert_eq!(dev.value("gmah_master", "select count(*) from signups").await, "0");
    // Two to one address, four from one network.
    let to = |who: &str| with("email", json!(who));
    for (who, status) in [
        ("a@x.example", 202),
        ("a@x.example", 202),
        ("a@x.example", 429),
        ("b@x.example", 202),
        ("c@x.example", 202),
        ("d@x.example", 429),
    ] {
        let answer = send(&dev, "", &to(who)).await;
        assert_eq!(answer.status, status, "{who}: {answer:?}");
        if status == 429 {
            assert_eq!(answer.header("retry-after"), Some("3600"));
        }
    }
    letters(&dev, "a@x.example", 2).await;
    // What is over its time makes nothing.
    let link = token(&letters(&dev, "b@x.example", 1).await[0], "token");
    dev.execute("gmah_master", "update signups set expires_at = now() - interval '1 second'").await;
    assert_eq!(seen(&send(&dev, "/confirm", &json!({"token": link})).await), (422, "link_invalid".into()));
    for (lines, what) in [
        ("plans = []", "signup.plans"),
        ("plans = [\"starter\"]\nlink = \"https://x.example\"", "signup.link"),
        ("plans = [\"starter\"]\nper_email = 0", "signup.per_email"),
    ] {
        let path = dev.folder().join("bad.toml");
        let text = std::fs::read_to_string(text(&dev.info["config"])).expect("configuration");
        let (head, _) = text.split_once("[signup]").expect("the section");
        std::fs::write(&path, format!("{head}[signup]\n{lines}\n")).expect("written");
        let out = dev.cli(&["--config", path.to_str().expect("UTF-8"), "config", "check"]).await;
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!((out.status.code(), said.contains(what)), (Some(2), true), "{said}");
    }
}

/// A node that ends half-way leaves nothing that nobody goes on with; one that fails says so once, and may be asked again.
#[tokio::test(flavor = "multi_thread")]
async fn what_fails_is_said_and_begins_again() {
    let dev = Dev::start_with(ON).await;
    let ask = json!({"name": "Nice", "slug": "nice", "email": "eva@nice.example"});
    assert_eq!(send(&dev, "", &ask).await.status, 202);
    let body = json!({"token": token(&letters(&dev, "eva@nice.example", 1).await[0], "token")});
    // No room anywhere.
    dev.execute("gmah_master", "update database_servers set max_databases = 1").await;
    assert_eq!(send(&dev, "/confirm", &body).await.status, 202);
    let now = || async { send(&dev, "/confirm", &body).await };
    let failed = eventually("failed", Duration::from_secs(20), now, |a| a.status != 202).await;
    assert_eq!(seen(&failed), (409, "refused".into()), "{failed:?}");
    dev.execute("gmah_master", "update database_servers set max_databases = 1000").await;
    assert_eq!(text(&confirmed(&dev, &body).await["slug"]), "nice");
    // Of the journal, a year of what comes round again.
    for (kind, state, age) in [
        ("tenant.backup", "done", "2 years"),
        ("tenant.backup", "done", "2 days"),
        ("tenant.backup", "failed", "2 years"),
        ("tenant.purge", "done", "2 years"),
    ] {
        let old = format!(
            "insert into operations (id, kind, subject, input, state, actor, created_at, finished_at)
             values (gen_random_uuid(), '{kind}', 'x/{kind}/{state}/{age}', '{{}}', '{state}', 'test', now() - interval '{age}', now() - interval '{age}')"
        );
        dev.execute("gmah_master", &old).await;
    }
    // Both that are over are forgotten, and none that is not.
    dev.execute(
        "gmah_master",
        "insert into signups (id, token_hash, email, name, slug, plan, language, network, created_at, expires_at) values
             (gen_random_uuid(), sha256('a'), 'a@x.example', 'A', 'aaa', 'starter', 'en', '', now() - interval '2 days', now() - interval '1 day'),
             (gen_random_uuid(), sha256('b'), 'b@x.example', 'B', 'bbb', 'starter', 'en', '', now(), now() - interval '1 second')",
    )
    .await;
    let config = gmah_api::control::config::ControlConfig::from_file(&dev.config()).expect("configuration");
    let control = gmah_api::control::Control::open(dev.settings(), config).await.expect("control");
    control.round().await.expect("a round");
    let kept = "select string_agg(subject, ' ' order by subject) from operations where actor = 'test'";
    assert_eq!(
        dev.value("gmah_master", kept).await,
        "x/tenant.backup/done/2 days x/tenant.backup/failed/2 years x/tenant.purge/done/2 years"
    );
    let left = dev.value("gmah_master", "select string_agg(slug, ',' order by slug) from signups").await;
    assert_eq!(left, "bbb,nice");
}
