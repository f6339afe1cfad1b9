//! What was done is written down with it, and stays.

use gmah_api::routes::{Access, TABLE};
use serde_json::{Value, json};

use crate::harness::dev::text;
use crate::harness::{Answer, Dev};
use crate::isolation::{ask, wire};

async fn by(dev: &Dev, token: &str, method: &str, path: &str, body: Option<Value>) -> Answer {
    let bearer = format!("Bearer {token}");
    let body = body.map(|b| b.to_string());
    dev.client.send(method, &dev.host("paris"), path, &[("Authorization", &bearer)], body.as_deref()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_and_its_entry_are_one() {
    let dev = Dev::start().await;
    let admin = dev.login("paris").await;
    let me = text(&by(&dev, &admin, "GET", "/api/v1/auth/me", None).await.json()["id"]).to_owned();
    let body =
        json!({"email": "eva@paris.example", "name": "Eva", "role": "member", "password": "correct horse"});
    let made = by(&dev, &admin, "POST", "/api/v1/users", Some(body)).await;
    let id = text(&made.json()["id"]).to_owned();
    let path = format!("/api/v1/users/{id}");
    assert_eq!(by(&dev, &admin, "PATCH", &path, Some(json!({"name": "Evita"}))).await.status, 200);
    let before: i64 =
        dev.value("gmah_org_paris", "select count(*) from audit_log").await.parse().expect("count");
    // Refused, so nothing was done.
    assert_eq!(by(&dev, &admin, "PATCH", &path, Some(json!({"role": "nothing"}))).await.status, 422);
    let list = by(&dev, &admin, "GET", &format!("/api/v1/audit?entity_id={id}"), None).await;
    assert_eq!(list.status, 200, "{list:?}");
    let items = list.json()["items"].as_array().expect("items").clone();
    let actions: Vec<_> = items.iter().map(|i| text(&i["action"]).to_owned()).collect();
    assert_eq!(actions, ["users.update", "users.create"], "the newest first");
    let update = &items[0];
    assert_eq!((&update["before"]["name"], &update["after"]["name"]), (&json!("Eva"), &json!("Evita")));
    assert_eq!((text(&update["actor"]), text(&update["actor_id"])), ("admin@paris.example", me.as_str()));
    assert_eq!(text(&update["address"]), "127.0.0.1");
    assert!(text(&update["request_id"]).len() > 8);
    assert!(!list.body.contains("argon2") && !list.body.contains("correct horse"));
    let count: i64 =
        dev.value("gmah_org_paris", "select count(*) from audit_log").await.parse().expect("count");
    assert_eq!(count, before);

    let mine =
        by(&dev, &admin, "GET", &format!("/api/v1/audit?actor_id={me}&action=users.create&limit=1"), None)
            .await;
    assert_eq!(mine.json()["items"].as_array().map(Vec::len), Some(1));
    let page = by(&dev, &admin, "GET", "/api/v1/audit?limit=1", None).await.json();
    let next = format!("/api/v1/audit?limit=1&cursor={}", text(&page["next_cursor"]));
    let second = by(&dev, &admin, "GET", &next, None).await.json();
    assert!(text(&second["items"][0]["id"]) < text(&page["items"][0]["id"]));
    for bad in ["actor_id=x", "limit=0", "limit=x", "bogus=1", "cursor=x"] {
        let seen = by(&dev, &admin, "GET", &format!("/api/v1/audit?{bad}"), None).await;
        assert!([400, 422].contains(&seen.status), "{bad}: {seen:?}");
    }
    // Not even the organisation's own role in the database changes or removes what is written.
    let role = dev.value("gmah_master", "select role_name from organizations where slug = 'paris'").await;
    let db = dev.superuser("gmah_org_paris").await;
    db.batch_execute(&format!("set role \"{role}\"")).await.expect("role");
    for sql in [
        "update audit_log set actor = 'nobody'",
        "delete from audit_log",
        "truncate audit_log",
        "alter table audit_log disable trigger all",
    ] {
        assert!(db.batch_execute(sql).await.is_err(), "{sql}");
    }
    // But for what is too old, and that not before thirty days.
    db.batch_execute(
        "reset role; alter table audit_log disable trigger audit_log_stays;
        update audit_log set at = now() - interval '40 days' where action = 'users.create';
        update audit_log set at = now() - interval '20 days' where action = 'users.update'",
    )
    .await
    .expect("aged");
    db.batch_execute(&format!("set role \"{role}\"")).await.expect("role");
    let gone = db.query_one("select audit_log_expire(0, 1000)", &[]).await.expect("expired");
    assert_eq!(gone.get::<_, i64>(0), 1);
}

/// Every route that needs a permission needs it, and no more than it.
#[tokio::test(flavor = "multi_thread")]
async fn a01_permissions_are_those_of_the_table() {
    let dev = Dev::start().await;
    dev.cli_json(&["module", "enable", "paris", "patients"]).await;
    let admin = dev.login("paris").await;
    let role = |permissions: Value| json!({"key": "probe", "title": "Probe", "permissions": permissions});
    assert_eq!(by(&dev, &admin, "POST", "/api/v1/roles", Some(role(json!([])))).await.status, 201);
    let body = json!({"email": "p@paris.example", "name": "P", "role": "probe", "password": "correct horse"});
    assert_eq!(by(&dev, &admin, "POST", "/api/v1/users", Some(body)).await.status, 201);
    let token = dev.login_as("paris", "p@paris.example", "correct horse").await;
    let (mut tried, nobody) = (0, "018f0000-0000-7000-8000-000000000000");
    let needing = TABLE.iter().filter_map(|r| Some((r, r.permission?)));
    for (route, permission) in needing {
        assert_eq!(route.access, Access::User);
        let (path, body) = ask(route, nobody);
        let (body, media_type) = wire(route, body.as_ref());
        let bearer = format!("Bearer {token}");
        let headers: Vec<_> = std::iter::once(("Authorization", bearer.as_str())).chain(media_type).collect();
        let host = dev.host("paris");
        let ask = || dev.client.send(route.method, &host, &path, &headers, body.as_deref());
        let change = |permissions: Value| {
            by(&dev, &admin, "PATCH", "/api/v1/roles/probe", Some(json!({ "permissions": permissions })))
        };
        assert_eq!(change(json!([])).await.status, 200);
        assert_eq!((ask().await.status, ask().await.code()), (403, "forbidden".into()), "{route:?}");
        assert_eq!(change(json!([permission])).await.status, 200);
        let with = ask().await;
        // Those give something away that this user has not.
        let gives = ["users.write", "roles.write", "keys.write"].contains(&permission);
        assert!(with.status != 403 || gives, "{route:?} with {permission}: {with:?}");
        tried += 1;
    }
    assert!(tried > 15, "{tried}");
}
