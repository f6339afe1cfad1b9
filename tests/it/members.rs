//! Members: what may go in, what comes out, and that a request that is sent twice happens once.

use serde_json::{Value, json};

use crate::accounts::by;
use crate::harness::dev::text;
use crate::harness::{Answer, Dev};

async fn create(dev: &Dev, token: &str, key: Option<&str>, body: &Value) -> Answer {
    let bearer = format!("Bearer {token}");
    let mut headers = vec![("Authorization", bearer.as_str())];
    headers.extend(key.map(|k| ("Idempotency-Key", k)));
    dev.post("paris", "/api/v1/members", &headers, body).await
}

fn ada() -> Value {
    json!({"first_name": "Ada", "last_name": "Lovelace", "email": "ada@example.org", "phone": "+33 1 02 03 04 05"})
}

async fn count(dev: &Dev) -> i64 {
    dev.value("gmah_org_paris", "select count(*) from members").await.parse().expect("count")
}

#[tokio::test(flavor = "multi_thread")]
async fn l07_a_key_makes_a_request_happen_once() {
    let dev = Dev::start().await;
    let token = dev.login("paris").await;
    let before = count(&dev).await;
    let first = create(&dev, &token, Some("key-1"), &ada()).await;
    assert_eq!((first.status, first.header("idempotency-replayed")), (201, None));
    let again = create(&dev, &token, Some("key-1"), &ada()).await;
    assert_eq!((again.status, again.header("idempotency-replayed")), (201, Some("true")));
    assert_eq!(again.json(), first.json());
    assert_eq!(count(&dev).await, before + 1);
    let mut other = ada();
    other["first_name"] = "Eva".into();
    let reused = create(&dev, &token, Some("key-1"), &other).await;
    assert_eq!((reused.status, reused.code()), (422, "idempotency_key_reused".into()));
    // Ten at once with one key.
    let dev = std::sync::Arc::new(dev);
    let tasks: Vec<_> = (0..10)
        .map(|_| {
            let (dev, token) = (dev.clone(), token.clone());
            gmah_shared::tasks::detach(
                "create",
                async move { create(&dev, &token, Some("key-2"), &ada()).await },
            )
        })
        .collect();
    let mut ids = Vec::new();
    for task in tasks {
        let answer = task.await.expect("joined");
        assert_eq!(answer.status, 201, "{answer:?}");
        ids.push(text(&answer.json()["id"]).to_owned());
    }
    ids.dedup();
    assert_eq!((ids.len(), count(&dev).await), (1, before + 2));
    for key in ["", "with space", "\u{e9}", &"k".repeat(256)] {
        let seen = create(&dev, &token, Some(key), &ada()).await;
        assert_eq!(seen.status, 400, "{key:?}: {seen:?}");
    }
    assert_eq!(count(&dev).await, before + 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a04_q13_bad_input_is_named_and_changes_nothing() {
    let dev = Dev::start().await;
    let token = dev.login("paris").await;
    let before = count(&dev).await;
    let with = |field: &str, value: Value| {
        let mut body = ada();
        body[field] = value;
        body
    };
    for (field, value) in [
        ("first_name", json!("")),
        ("first_name", json!("   ")),
        ("first_name", json!("a".repeat(101))),
        ("last_name", json!("nul\u{0}")),
        ("last_name", json!(7)),
        ("email", json!("nobody")),
        ("email", json!("a@b@c.d")),
        ("email", json!("a@localhost")),
        ("phone", json!("call me")),
        ("bogus", json!(1)),
        ("id", json!(uuid::Uuid::new_v4())),
        ("tenant_id", json!("x")),
        ("created_at", json!("2020-01-01T00:00:00Z")),
        ("__proto__", json!({"role": "administrator"})),
    ] {
        let seen = create(&dev, &token, None, &with(field, value)).await;
        assert_eq!((seen.status, seen.code()), (422, "invalid".into()), "{field}: {seen:?}");
        assert_eq!(seen.header("content-type"), Some("application/problem+json"));
    }
    let bearer = format!("Bearer {token}");
    let raw = |content_type: &'static str, body: String| {
        let (dev, bearer) = (&dev, bearer.clone());
        async move {
            let head = format!(
                "POST /api/v1/members HTTP/1.1\r\nHost: {}\r\nAuthorization: {bearer}\r\nContent-Type: {content_type}\r\n\
                 Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
                dev.host("paris"),
                body.len()
            );
            crate::harness::http::status(&dev.client.raw(&dev.host("paris"), head.as_bytes()).await)
        }
    };
    assert_eq!(raw("application/json", "{\"first_name\":\"A\"".into()).await, Some(400));
    assert_eq!(raw("application/json", String::new()).await, Some(400));
    assert_eq!(raw("application/json", "[]".into()).await, Some(422));
    assert_eq!(raw("application/json", format!("{} {{}}", ada())).await, Some(400));
    let twice = ada().to_string().replacen('{', "{\"first_name\":\"Eva\",", 1);
    assert_eq!(raw("application/json", twice).await, Some(422), "one field twice");
    assert_eq!(raw("text/plain", ada().to_string()).await, Some(415));
    assert_eq!(raw("application/json", "[".repeat(20_000)).await, Some(422), "depth");
    assert_eq!(
        raw("application/json", "[\"Ada\",\"Lovelace\",null,null]".into()).await,
        Some(422),
        "no object"
    );
    let big = with("first_name", json!("a".repeat(2 << 20))).to_string();
    assert_eq!(raw("application/json; charset=utf-8", big).await, Some(413));
    assert_eq!(count(&dev).await, before);
    for id in ["'", "%27%20OR%201=1--", "%00", "%ff", "..%2f..%2fetc%2fpasswd", &"9".repeat(400), "1", "nil"]
    {
        let seen = dev.get_as("paris", &format!("/api/v1/members/{id}"), &token).await;
        assert_eq!((seen.status, seen.code()), (404, "not_found".into()), "{id}: {seen:?}");
    }
    for (query, status) in [
        ("limit=0", 422),
        ("limit=201", 422),
        ("limit=100000", 422),
        ("limit=-1", 400),
        ("limit=x", 400),
        ("cursor=x", 400),
        ("cursor=%27", 400),
        ("sort=name", 400),
        ("limit=1&limit=2", 400),
        ("limit=200", 200),
    ] {
        let seen = dev.get_as("paris", &format!("/api/v1/members?{query}"), &token).await;
        assert_eq!(seen.status, status, "{query}: {seen:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_nothing_changes_nothing() {
    let dev = Dev::start().await;
    let token = dev.login("paris").await;
    let made = create(&dev, &token, None, &ada()).await;
    let path = format!("/api/v1/members/{}", text(&made.json()["id"]));
    let etag = dev.get_as("paris", &path, &token).await.header("etag").expect("etag").to_owned();
    for (body, want, is_same) in [
        (json!({}), (200, ""), true),
        (json!({"email": " ada@example.org"}), (200, ""), true),
        // Two that are never null, and one that may be.
        (json!({"first_name": null}), (422, "first_name"), true),
        (json!({"last_name": null}), (422, "last_name"), true),
        (json!({"phone": null}), (200, ""), false),
    ] {
        let seen = by(&dev, &token, "PATCH", &path, Some(body.clone())).await;
        let field = seen.json()["field"].as_str().unwrap_or_default().to_owned();
        assert_eq!((seen.status, &*field), want, "{body}: {seen:?}");
        let now = dev.get_as("paris", &path, &token).await;
        assert_eq!(now.header("etag") == Some(&etag), is_same, "{body}");
    }
    let audited = "select count(*) from audit_log where action = 'members.update'";
    assert_eq!(dev.value("gmah_org_paris", audited).await, "1");
    // What is missing is named.
    let without = create(&dev, &token, None, &json!({"first_name": "Ada"})).await;
    assert_eq!((without.status, text(&without.json()["field"])), (422, "last_name"), "{without:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_hold_every_member_once() {
    let dev = Dev::start().await;
    let token = dev.login("paris").await;
    let mut seen = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = dev.get_as("paris", &format!("/api/v1/members?limit=37{cursor}"), &token).await.json();
        let items = page["items"].as_array().expect("items").clone();
        assert!(!items.is_empty() && items.len() <= 37);
        seen.extend(items.iter().map(|m| text(&m["id"]).to_owned()));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen.len() as i64, count(&dev).await);
    assert!(seen.is_sorted());
    let one = dev.get_as("paris", &format!("/api/v1/members/{}", seen[0]), &token).await.json();
    assert!(text(&one["created_at"]).ends_with('Z'), "{one}");
}

/// A hundred who join at the last free place: one gets it.
#[tokio::test(flavor = "multi_thread")]
async fn a_plan_limit_holds_under_a_race() {
    let dev = Dev::start().await;
    let token = dev.login("paris").await;
    let before = count(&dev).await;
    let set =
        format!("update organizations set limits = '{{\"members\": {}}}' where slug = 'paris'", before + 1);
    dev.execute("gmah_master", &set).await;
    crate::harness::eventually(
        "the limit is known",
        std::time::Duration::from_secs(2),
        || async { dev.get("paris", "/api/v1/tenant").await.json()["limits"]["members"].clone() },
        |m| *m == json!(before + 1),
    )
    .await;
    let dev = std::sync::Arc::new(dev);
    let tasks: Vec<_> = (0..100)
        .map(|_| {
            let (dev, token) = (dev.clone(), token.clone());
            gmah_shared::tasks::detach("join", async move { create(&dev, &token, None, &ada()).await })
        })
        .collect();
    let mut admitted = 0;
    for task in tasks {
        let answer = task.await.expect("joined");
        match answer.status {
            201 => admitted += 1,
            409 => {
                let body = answer.json();
                assert_eq!(body["code"], "plan_limit_reached");
                assert_eq!((&body["limit"], &body["plan"]), (&json!("members"), &json!("professional")));
            }
            // So many at once may find the queue for connections full, which admits nobody.
            other => assert_eq!(other, 503, "{answer:?}"),
        }
    }
    assert_eq!((admitted, count(&dev).await), (1, before + 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn logging_in_and_out() {
    let dev = Dev::start().await;
    let login = |email: &str, password: &str| {
        let (dev, body) = (&dev, json!({"email": email, "password": password}));
        async move { dev.post("paris", "/api/v1/auth/login", &[], &body).await }
    };
    let tenants = dev.info["tenants"].as_array().expect("tenants").clone();
    let of = |slug: &str| tenants.iter().find(|t| t["slug"] == slug).expect("demo").clone();
    let (paris, lyon) = (of("paris"), of("lyon"));
    let (email, password) = (text(&paris["admin_email"]), text(&paris["admin_password"]));
    // Wrong in any way is wrong in the same way.
    let mut bodies = Vec::new();
    for (email, password) in [
        (email, "wrong"),
        ("nobody@paris.example", password),
        (text(&lyon["admin_email"]), text(&lyon["admin_password"])),
        ("", ""),
        ("' or 1=1 --", "x"),
        ("nul\0@x.example", "x"),
        (email, &"x".repeat(5000)),
    ] {
        let seen = login(email, password).await;
        assert_eq!((seen.status, seen.code()), (401, "bad_credentials".into()), "{email:?}");
        let mut body = seen.json();
        body["request_id"] = json!("");
        bodies.push(body);
    }
    bodies.dedup();
    assert_eq!(bodies.len(), 1);
    let tokens = login(&email.to_uppercase(), password).await.json();
    assert_eq!((&tokens["token_type"], &tokens["expires_in"]), (&json!("Bearer"), &json!(3600)));
    let me = |token: String| {
        let dev = &dev;
        async move { dev.get_as("paris", "/api/v1/auth/me", &token).await }
    };
    let access = text(&tokens["access_token"]).to_owned();
    let seen = me(access.clone()).await.json();
    assert_eq!((&seen["email"], &seen["role"]), (&json!(email), &json!("administrator")));
    assert!(seen.get("password_hash").is_none());
    // A refresh token is good once, and ends the access token that it came with.
    let refresh = json!({"refresh_token": tokens["refresh_token"]});
    let fresh = dev.post("paris", "/api/v1/auth/refresh", &[], &refresh).await;
    assert_eq!(fresh.status, 200, "{fresh:?}");
    assert_eq!(dev.post("paris", "/api/v1/auth/refresh", &[], &refresh).await.status, 401, "used");
    assert_eq!(dev.post("lyon", "/api/v1/auth/refresh", &[], &refresh).await.status, 401, "another's");
    assert_eq!(me(access).await.status, 401);
    let access = text(&fresh.json()["access_token"]).to_owned();
    assert_eq!(me(access.clone()).await.status, 200);
    let bearer = format!("Bearer {access}");
    let out = dev.post("paris", "/api/v1/auth/logout", &[("Authorization", &bearer)], &json!({})).await;
    assert_eq!(out.status, 204);
    assert_eq!(me(access.clone()).await.status, 401);
    // Nothing of it is stored or logged in clear.
    let stored = dev
        .value(
            "gmah_org_paris",
            "select string_agg(s::text, '') || (select string_agg(u::text, '') from users u) from sessions s",
        )
        .await;
    assert!(!stored.contains(password) && !stored.contains(&access));
    let log = dev.log();
    assert!(!log.contains(&access), "a token in the log");
    // A user who may only read.
    let hash = gmah_api::auth::password::hash(&"reader password".to_owned().into()).expect("hash");
    let insert = format!(
        "insert into users (id, email, name, role, password_hash) values (gen_random_uuid(), 'r@x.example', 'R', 'read_only', '{hash}')"
    );
    dev.execute("gmah_org_paris", &insert).await;
    let reader = dev.login_as("paris", "r@x.example", "reader password").await;
    assert_eq!(dev.get_as("paris", "/api/v1/members", &reader).await.status, 200);
    let seen = create(&dev, &reader, None, &ada()).await;
    assert_eq!((seen.status, seen.code()), (403, "forbidden".into()));
    dev.execute("gmah_org_paris", "update users set disabled_at = now() where email = 'r@x.example'").await;
    assert_eq!(dev.get_as("paris", "/api/v1/members", &reader).await.status, 401, "disabled at once");
}
