//! Family A: invitations and forgotten passwords, by letters whose links work once.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::dev::text;
use crate::harness::{Answer, Dev, eventually};

pub(crate) type Headers<'a> = &'a [(&'a str, &'a str)];

pub(crate) async fn ask(
    dev: &Dev,
    method: &str,
    path: &str,
    headers: Headers<'_>,
    body: Option<Value>,
) -> Answer {
    let body = body.map(|b| b.to_string());
    dev.client.send(method, &dev.host("paris"), path, headers, body.as_deref()).await
}

pub(crate) async fn post(dev: &Dev, path: &str, body: Value) -> Answer {
    ask(dev, "POST", path, &[], Some(body)).await
}

pub(crate) async fn by(dev: &Dev, token: &str, method: &str, path: &str, body: Option<Value>) -> Answer {
    let bearer = format!("Bearer {token}");
    ask(dev, method, path, &[("Authorization", &bearer)], body).await
}

pub(crate) fn seen(answer: &Answer) -> (u16, String) {
    (answer.status, answer.code())
}

pub(crate) fn is(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

/// Letters to somebody, the earliest first, as they read.
pub(crate) async fn letters(dev: &Dev, to: &str, count: usize) -> Vec<String> {
    let folder = dev.folder().join("data/mail");
    let found = || async {
        let mut files: Vec<_> = std::fs::read_dir(&folder).into_iter().flatten().flatten().collect();
        files.sort_by_key(|f| f.metadata().and_then(|m| m.modified()).ok());
        let texts = files.iter().filter_map(|f| std::fs::read_to_string(f.path()).ok());
        texts.filter(|t| t.contains(&format!("To: {to}"))).collect::<Vec<_>>()
    };
    let texts = eventually("letters", Duration::from_secs(40), found, |t: &Vec<_>| t.len() >= count).await;
    assert_eq!(texts.len(), count, "{texts:?}");
    // Quoted-printable (RFC 2045, section 6.7), as far as these have it.
    texts.iter().map(|t| t.replace("=\r\n", "").replace("=3D", "=")).collect()
}

/// The token of the link in a letter.
pub(crate) fn token(letter: &str, purpose: &str) -> String {
    let (_, rest) = letter.split_once(&format!("#{purpose}=")).expect("a link");
    rest.chars().take(43).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a09_an_invitation_works_once() {
    let dev = Dev::start().await;
    let admin = dev.login("paris").await;
    let body = json!({"email": "eva@paris.example", "name": "Eva", "role": "member"});
    let made = by(&dev, &admin, "POST", "/api/v1/users", Some(body)).await;
    assert_eq!(made.status, 201, "{made:?}");
    let id = text(&made.json()["id"]).to_owned();
    let letter = letters(&dev, "eva@paris.example", 1).await.remove(0);
    let link = format!("https://{}:", dev.host("paris"));
    assert!(letter.contains(&link) && letter.contains("GMAH Paris"), "{letter}");
    let first = token(&letter, "invitation");

    // Another letter is the end of the first one.
    let path = format!("/api/v1/users/{id}/invitation");
    // Not at once.
    assert_eq!(seen(&by(&dev, &admin, "POST", &path, None).await), is(409, "link_recent"));
    dev.execute("gmah_org_paris", "update account_links set created_at = now() - interval '2 minutes'").await;
    let bearer = format!("Bearer {admin}");
    let french = [("Authorization", bearer.as_str()), ("Accept-Language", "fr-FR,fr;q=0.9")];
    assert_eq!(ask(&dev, "POST", &path, &french, None).await.status, 202);
    let letter = letters(&dev, "eva@paris.example", 2).await.remove(1);
    assert!(letter.contains("Bonjour Eva"), "{letter}");
    let second = token(&letter, "invitation");
    let set = |token: &str, password: &str| {
        let body = json!({"token": token, "new_password": password});
        let dev = &dev;
        async move { post(dev, "/api/v1/auth/password/set", body).await }
    };
    assert_eq!(seen(&set(&first, "correct horse").await), is(422, "link_invalid"));
    assert_eq!(seen(&set(&"A".repeat(43), "correct horse").await), is(422, "link_invalid"));
    assert_eq!(seen(&set("short", "correct horse").await), is(422, "link_invalid"));
    // A password that is refused does not use it up.
    let refused = set(&second, "short").await;
    assert_eq!((seen(&refused), text(&refused.json()["field"])), (is(422, "invalid"), "new_password"));
    // Nor does another organisation.
    let body = json!({"token": second, "new_password": "correct horse"});
    assert_eq!(
        seen(&dev.post("lyon", "/api/v1/auth/password/set", &[], &body).await),
        is(422, "link_invalid")
    );
    // Of five at once one wins.
    let at_once = futures::future::join_all((0..5).map(|_| set(&second, "correct horse"))).await;
    let mut statuses: Vec<_> = at_once.iter().map(|a| a.status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [204, 422, 422, 422, 422]);
    dev.login_as("paris", "eva@paris.example", "correct horse").await;
    // What was carried is not kept, and neither are links.
    let left = "select (select count(*) from outbox) + (select count(*) from account_links)";
    assert_eq!(dev.value("gmah_org_paris", left).await, "0");
    // Nobody who is disabled is invited.
    let change = Some(json!({"disabled": true}));
    assert_eq!(by(&dev, &admin, "PATCH", &format!("/api/v1/users/{id}"), change).await.status, 200);
    assert_eq!(seen(&by(&dev, &admin, "POST", &path, None).await), is(409, "user_disabled"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a09_a10_a_forgotten_password_tells_nothing() {
    let dev = Dev::start().await;
    let admin = dev.login("paris").await;
    let forgotten = |email: &'static str| {
        let dev = &dev;
        async move {
            // The link is made of the host that was asked, whatever else is said.
            let evil = [("X-Forwarded-Host", "evil.example"), ("Forwarded", "host=evil.example")];
            ask(dev, "POST", "/api/v1/auth/password/forgotten", &evil, Some(json!({ "email": email }))).await
        }
    };
    let (known, unknown) = (forgotten("ADMIN@paris.example").await, forgotten("nobody@paris.example").await);
    assert_eq!((known.status, &known.body), (202, &unknown.body));
    assert_eq!(unknown.status, 202);
    let letter = letters(&dev, "admin@paris.example", 1).await.remove(0);
    assert!(
        letter.contains(&format!("https://{}:", dev.host("paris"))) && !letter.contains("evil"),
        "{letter}"
    );
    let key = by(
        &dev,
        &admin,
        "POST",
        "/api/v1/api-keys",
        Some(json!({"name": "key", "scopes": ["members.read"]})),
    )
    .await;
    let secret = text(&key.json()["secret"]).to_owned();
    assert_eq!(by(&dev, &secret, "GET", "/api/v1/members", None).await.status, 200);
    let body = json!({"token": token(&letter, "reset"), "new_password": "another horse"});
    assert_eq!(post(&dev, "/api/v1/auth/password/set", body).await.status, 204);
    // Everything that was begun with the old one is over.
    for old in [admin.as_str(), &secret] {
        assert_eq!(by(&dev, old, "GET", "/api/v1/auth/me", None).await.status, 401);
    }
    dev.login_as("paris", "admin@paris.example", "another horse").await;
    // A flood of letters ends, locks nobody out, and does not end the link that came first.
    let mut statuses = Vec::new();
    for _ in 0..15 {
        statuses.push(forgotten("admin@paris.example").await.status);
    }
    assert!(statuses.contains(&202) && statuses.ends_with(&[429]), "{statuses:?}");
    let letter = letters(&dev, "admin@paris.example", 2).await.remove(1);
    let body = json!({"token": token(&letter, "reset"), "new_password": "a third horse"});
    assert_eq!(post(&dev, "/api/v1/auth/password/set", body).await.status, 204);
    let body = json!({"email": "admin@paris.example", "password": "another horse"});
    assert_eq!(post(&dev, "/api/v1/auth/login", body).await.status, 401);
    dev.login_as("paris", "admin@paris.example", "a third horse").await;
    assert!(!dev.log().contains("nobody@paris.example"));
}

/// Rule 9: what waits to be carried is not in the database in clear.
#[tokio::test(flavor = "multi_thread")]
async fn k19_a_link_is_nowhere_in_clear() {
    let dev = Dev::start().await;
    let admin = dev.login("paris").await;
    // Nothing can be carried into a file.
    let mail = dev.folder().join("data/mail");
    std::fs::remove_dir_all(&mail).expect("folder");
    std::fs::write(&mail, "in the way").expect("file");
    let body = json!({"email": "eva@paris.example", "name": "Eva", "role": "member"});
    assert_eq!(by(&dev, &admin, "POST", "/api/v1/users", Some(body)).await.status, 201);
    let failed = || dev.value("gmah_org_paris", "select count(*) from outbox where last_error is not null");
    eventually("a failure", Duration::from_secs(10), failed, |n| n == "1").await;
    let body = dev.value("gmah_org_paris", "select encode(body, 'escape') from outbox").await;
    assert!(!body.contains("invitation") && !body.contains("https"), "{body}");
    assert!(!dev.log().contains("#invitation="));
    // When there is a way again it leaves, once.
    std::fs::remove_file(&mail).expect("file");
    std::fs::create_dir(&mail).expect("folder");
    dev.execute("gmah_org_paris", "update outbox set next_attempt_at = now()").await;
    dev.execute("gmah_master", "update organization_chores set due_at = now()").await;
    let gone = || dev.value("gmah_org_paris", "select count(*) from outbox");
    eventually("it leaves", Duration::from_secs(40), gone, |n| n == "0").await;
    letters(&dev, "eva@paris.example", 1).await;
}

/// work that waits is one organisation's, of one database. A letter that is copied into another's database opens there
/// for nobody, and while the catalog leads to a database that is not the organisation's, nothing is taken out of it.
#[tokio::test(flavor = "multi_thread")]
async fn a06_work_that_waits_is_done_for_nobody_else() {
    let dev = Dev::start().await;
    let admin = dev.login("paris").await;
    let mail = dev.folder().join("data/mail");
    std::fs::remove_dir_all(&mail).expect("folder");
    std::fs::write(&mail, "in the way").expect("file");
    let body = json!({"email": "eva@paris.example", "name": "Eva", "role": "member"});
    assert_eq!(by(&dev, &admin, "POST", "/api/v1/users", Some(body)).await.status, 201);
    let failed = "select count(*) from outbox where last_error is not null";
    let one = |n: &String| n == "1";
    eventually("a failure", Duration::from_secs(10), || dev.value("gmah_org_paris", failed), one).await;
    // A copy in Lyon's, and a catalog that takes Paris to a copy of Lyon's.
    let (paris, lyon) = (dev.superuser("gmah_org_paris").await, dev.superuser("gmah_org_lyon").await);
    let row = paris.query_one("select to_jsonb(outbox)::text from outbox", &[]).await.expect("a letter");
    let copy = "insert into outbox select * from jsonb_populate_record(null::outbox, $1::text::jsonb)";
    lyon.execute(copy, &[&row.get::<_, String>(0)]).await.expect("copied");
    lyon.batch_execute("update outbox set last_error = null, next_attempt_at = now()").await.expect("due");
    drop((paris, lyon));
    dev.set_reachable("gmah_org_lyon", false).await;
    dev.execute("postgres", "create database elsewhere template gmah_org_lyon owner gmah_org_paris").await;
    dev.set_reachable("gmah_org_lyon", true).await;
    let lead = |to: &str| format!("update organizations set database_name = '{to}' where slug = 'paris'");
    dev.execute("gmah_master", &lead("elsewhere")).await;
    std::fs::remove_file(&mail).expect("file");
    std::fs::create_dir(&mail).expect("folder");
    let alarm = || async { dev.metrics("api_admin").await.sum("gmah_api_identity_mismatches_total", &[]) };
    let before = alarm().await;
    dev.execute("gmah_master", "update organization_chores set due_at = now()").await;
    // Lyon's own worker has taken the copy, and could make nothing of it.
    let tried = || dev.value("gmah_org_lyon", failed);
    eventually("it does not open", Duration::from_secs(40), tried, one).await;
    eventually("an alarm", Duration::from_secs(40), alarm, |n| *n > before).await;
    let untouched = "select count(*) from outbox where attempts = 0 or last_error is null";
    assert_eq!(dev.value("elsewhere", untouched).await, "1", "nothing was taken");
    assert_eq!(std::fs::read_dir(&mail).expect("folder").count(), 0);
    // Where it belongs it is carried, once.
    dev.execute("gmah_master", &lead("gmah_org_paris")).await;
    dev.execute("gmah_org_paris", "update outbox set next_attempt_at = now()").await;
    dev.execute("gmah_master", "update organization_chores set due_at = now()").await;
    let gone = || dev.value("gmah_org_paris", "select count(*) from outbox");
    eventually("it leaves", Duration::from_secs(40), gone, |n| n == "0").await;
    letters(&dev, "eva@paris.example", 1).await;
}
