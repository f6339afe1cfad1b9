//! The isolation matrix: every route of the api with another organisation's token, login and ids. It goes through the
//! api's own table of routes, and a route that it does not know how to ask fails it.

use gmah_api::routes::{Access, Route, TABLE};
use serde_json::{Value, json};

use crate::harness::dev::{address, text};
use crate::harness::http::{exchange, request};
use crate::harness::{Answer, Dev};

/// A well-formed request to a route, for an organisation whose member is `member`.
pub(crate) fn ask(route: &Route, member: &str) -> (String, Option<Value>) {
    match (route.method, route.path) {
        (
            "GET",
            "/api/openapi.json" | "/api/v1/tenant" | "/api/v1/auth/me" | "/api/v1/audit" | "/api/v1/members"
            | "/api/v1/patients" | "/api/v1/loans",
        ) => (route.path.into(), None),
        ("POST", "/api/v1/auth/logout") => (route.path.into(), None),
        ("POST", "/api/v1/auth/login") => {
            (route.path.into(), Some(json!({"email": "admin@paris.example", "password": "wrong password"})))
        }
        ("POST", "/api/v1/auth/refresh") => {
            (route.path.into(), Some(json!({"refresh_token": "A".repeat(43)})))
        }
        ("POST", "/api/v1/members") => {
            (route.path.into(), Some(json!({"first_name": "Ada", "last_name": "Lovelace"})))
        }
        ("POST", "/api/v1/auth/password/forgotten") => {
            (route.path.into(), Some(json!({"email": "nobody@paris.example"})))
        }
        ("POST", "/api/v1/auth/password/set") => {
            (route.path.into(), Some(json!({"token": "A".repeat(43), "new_password": "long enough"})))
        }
        ("POST", "/api/v1/auth/totp") => (route.path.into(), Some(json!({"password": "wrong"}))),
        ("DELETE", "/api/v1/users/{id}/totp") => (format!("/api/v1/users/{member}/totp"), None),
        ("POST", "/api/v1/auth/totp/confirm" | "/api/v1/auth/totp/end") => {
            (route.path.into(), Some(json!({"code": "000000"})))
        }
        ("GET", "/api/v1/api-keys") => (route.path.into(), None),
        ("POST", "/api/v1/api-keys") => (route.path.into(), Some(json!({"name": "key", "scopes": ["*"]}))),
        ("DELETE", "/api/v1/api-keys/{id}") => (format!("/api/v1/api-keys/{member}"), None),
        ("POST", "/api/v1/users/{id}/invitation") => (format!("/api/v1/users/{member}/invitation"), None),
        (
            "GET",
            "/api/v1/settings/core"
            | "/api/v1/settings/loans"
            | "/api/v1/settings/patients"
            | "/api/v1/members/export"
            | "/api/v1/patients/export"
            | "/api/v1/families"
            | "/api/v1/files"
            | "/api/v1/overview/loans"
            | "/api/v1/overview/patients"
            | "/api/v1/hospitalizations"
            | "/api/v1/invoices",
        ) => (route.path.into(), None),
        ("PUT", "/api/v1/settings/core" | "/api/v1/settings/loans" | "/api/v1/settings/patients") => {
            (route.path.into(), Some(json!({})))
        }
        ("POST", "/api/v1/members/import") => {
            (route.path.into(), Some("first_name,last_name\r\nAda,Lovelace\r\n".into()))
        }
        ("PATCH", "/api/v1/members/{id}") => {
            (format!("/api/v1/members/{member}"), Some(json!({"first_name": "Eva"})))
        }
        ("POST", "/api/v1/files") => (format!("{}?name=a.txt", route.path), Some("bytes".into())),
        ("GET" | "DELETE", "/api/v1/files/{id}") => (format!("/api/v1/files/{member}"), None),
        ("GET", "/api/v1/files/{id}/content") => (format!("/api/v1/files/{member}/content"), None),
        ("POST", "/api/v1/families") => (route.path.into(), Some(json!({"name": "Lovelace"}))),
        ("PATCH", "/api/v1/families/{id}") => {
            (format!("/api/v1/families/{member}"), Some(json!({"name": "Byron"})))
        }
        ("GET" | "DELETE", "/api/v1/families/{id}") => (format!("/api/v1/families/{member}"), None),
        ("PATCH", "/api/v1/patients/{id}") => {
            (format!("/api/v1/patients/{member}"), Some(json!({"first_name": "Eva"})))
        }
        ("POST", "/api/v1/hospitalizations") => {
            (route.path.into(), Some(json!({"patient_id": member, "ward": "A"})))
        }
        ("GET", "/api/v1/hospitalizations/{id}") => (format!("/api/v1/hospitalizations/{member}"), None),
        ("PATCH", "/api/v1/hospitalizations/{id}") => {
            (format!("/api/v1/hospitalizations/{member}"), Some(json!({"ward": "B"})))
        }
        ("POST", "/api/v1/hospitalizations/{id}/discharge") => {
            (format!("/api/v1/hospitalizations/{member}/discharge"), Some(json!({})))
        }
        ("POST", "/api/v1/invoices") => (route.path.into(), Some(json!({"patient_id": member, "amount": 1}))),
        ("GET", "/api/v1/invoices/{id}") => (format!("/api/v1/invoices/{member}"), None),
        ("POST", "/api/v1/invoices/{id}/cancel") => (format!("/api/v1/invoices/{member}/cancel"), None),
        ("GET", "/api/v1/invoices/{id}/payments") => (format!("/api/v1/invoices/{member}/payments"), None),
        ("POST", "/api/v1/invoices/{id}/payments") => {
            (format!("/api/v1/invoices/{member}/payments"), Some(json!({"amount": 1})))
        }
        ("POST", "/api/v1/invoices/{id}/payments/{payment}/reversal") => {
            (format!("/api/v1/invoices/{member}/payments/{member}/reversal"), None)
        }
        ("GET", "/api/v1/auth/sessions" | "/api/v1/users" | "/api/v1/roles") => (route.path.into(), None),
        ("POST", "/api/v1/loans") => (
            route.path.into(),
            Some(json!({"member_id": member, "amount": 1000, "currency": "EUR", "installments": 1})),
        ),
        ("GET", "/api/v1/loans/{id}") => (format!("/api/v1/loans/{member}"), None),
        ("POST", "/api/v1/loans/{id}/approve") => (format!("/api/v1/loans/{member}/approve"), None),
        ("POST", "/api/v1/loans/{id}/write-off") => (format!("/api/v1/loans/{member}/write-off"), None),
        ("GET", "/api/v1/loans/{id}/payments") => (format!("/api/v1/loans/{member}/payments"), None),
        ("POST", "/api/v1/loans/{id}/payments") => {
            (format!("/api/v1/loans/{member}/payments"), Some(json!({"direction": "out", "amount": 1})))
        }
        ("POST", "/api/v1/loans/{id}/payments/{payment}/reversal") => {
            (format!("/api/v1/loans/{member}/payments/{member}/reversal"), None)
        }
        ("POST", "/api/v1/patients") => (
            route.path.into(),
            Some(json!({"first_name": "Ada", "last_name": "Lovelace", "birth_date": "1985-12-10"})),
        ),
        ("GET", "/api/v1/patients/{id}") => (format!("/api/v1/patients/{member}"), None),
        ("POST", "/api/v1/auth/password") => {
            (route.path.into(), Some(json!({"current_password": "wrong", "new_password": "long enough"})))
        }
        ("DELETE", "/api/v1/auth/sessions/{id}") => (format!("/api/v1/auth/sessions/{member}"), None),
        ("GET", "/api/v1/users/{id}") => (format!("/api/v1/users/{member}"), None),
        ("PATCH", "/api/v1/users/{id}") => {
            (format!("/api/v1/users/{member}"), Some(json!({"name": "Somebody else"})))
        }
        ("POST", "/api/v1/users") => (
            route.path.into(),
            Some(json!({"email": "new@paris.example", "name": "New", "role": "administrator"})),
        ),
        ("POST", "/api/v1/roles") => {
            (route.path.into(), Some(json!({"key": "own", "title": "Own", "permissions": ["*"]})))
        }
        ("PATCH", "/api/v1/roles/{key}") => ("/api/v1/roles/own".into(), Some(json!({"title": "Else"}))),
        ("DELETE", "/api/v1/roles/{key}") => ("/api/v1/roles/own".into(), None),
        ("GET", "/api/v1/members/{id}") => (format!("/api/v1/members/{member}"), None),
        (method, path) => panic!("{method} {path} is missing from the isolation matrix"),
    }
}

/// The bytes of a body, and the header that says what they are, where that is not JSON.
pub(crate) fn wire(
    route: &Route,
    body: Option<&Value>,
) -> (Option<String>, Option<(&'static str, &'static str)>) {
    let text = body.map(|b| b.as_str().map_or_else(|| b.to_string(), str::to_owned));
    (text, route.takes_file.map(|media_type| ("Content-Type", media_type)))
}

struct World {
    dev: Dev,
    paris: String,
    paris_member: String,
    paris_canary: String,
}

impl World {
    async fn new() -> Self {
        let dev = Dev::start().await;
        let paris = dev.login("paris").await;
        let canary = format!("CANARY-{}", uuid::Uuid::new_v4());
        let body = json!({"first_name": canary, "last_name": "Paris"});
        let bearer = format!("Bearer {paris}");
        let made = dev.post("paris", "/api/v1/members", &[("Authorization", &bearer)], &body).await;
        assert_eq!(made.status, 201);
        let paris_member = text(&made.json()["id"]).to_owned();
        Self { dev, paris, paris_member, paris_canary: canary }
    }

    async fn send(&self, slug: &str, route: &Route, member: &str, bearer: Option<&str>) -> Answer {
        let (path, body) = ask(route, member);
        let authorization = bearer.map(|b| format!("Bearer {b}"));
        let (body, media_type) = wire(route, body.as_ref());
        let headers: Vec<_> =
            authorization.iter().map(|a| ("Authorization", a.as_str())).chain(media_type).collect();
        let host = self.dev.host(slug);
        self.dev.client.send(route.method, &host, &path, &headers, body.as_deref()).await
    }

    /// Nothing of paris in any part of an answer.
    fn clean(&self, answer: &Answer) {
        let all = format!("{answer:?}");
        for secret in [&self.paris_canary, &self.paris_member, "gmah_org_paris"] {
            assert!(!all.contains(secret), "{secret} in {all}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a01_a02_every_route_with_anothers_everything() {
    let w = World::new().await;
    let lyon = w.dev.login("lyon").await;
    let mut tried = 0;
    for route in TABLE {
        let name = format!("{} {}", route.method, route.path);
        // Without a login.
        let seen = w.send("lyon", route, &w.paris_member, None).await;
        w.clean(&seen);
        match route.access {
            Access::User => assert_eq!((seen.status, seen.code()), (401, "unauthenticated".into()), "{name}"),
            Access::Tenant => assert!(matches!(seen.status, 200 | 202 | 401 | 422), "{name}: {seen:?}"),
        }
        // Paris's login at lyon; and logins that are nobody's.
        let nobody = "A".repeat(43);
        for bearer in [w.paris.as_str(), nobody.as_str(), "", "x"] {
            let seen = w.send("lyon", route, &w.paris_member, Some(bearer)).await;
            w.clean(&seen);
            if route.access == Access::User {
                assert_eq!(seen.status, 401, "{name} with a bearer of paris");
            }
            tried += 1;
        }
        // Lyon's login, paris's ids; at its own host lyon may do what it likes with its own.
        if route.path.contains("{id}") {
            for id in [w.paris_member.as_str(), &uuid::Uuid::new_v4().to_string()] {
                let seen = w.send("lyon", route, id, Some(&lyon)).await;
                w.clean(&Answer { body: seen.body.replace(id, ""), ..seen.clone() });
                // Lyon has not the hospitals' module.
                let code = if route.module == Some("patients") { "module_disabled" } else { "not_found" };
                assert_eq!((seen.status, seen.code()), (404, code.into()), "{name} {id}");
                tried += 1;
            }
        }
        // The hospital has not that module.
        if route.module == Some("loans") {
            let hospital = w.dev.login("hopital-central").await;
            let seen = w.send("hopital-central", route, &w.paris_member, Some(&hospital)).await;
            assert_eq!((seen.status, seen.code()), (404, "module_disabled".into()), "{name}");
        }
        // The api itself, past the router: without a token, and with lyon's token under paris's host.
        let (path, body) = ask(route, &w.paris_member);
        let (body, media_type) = wire(route, body.as_ref());
        let paris_host = w.dev.host("paris");
        let bearer = format!("Bearer {}", w.paris);
        for mut headers in [vec![], vec![("Authorization", bearer.as_str())]] {
            headers.extend(media_type);
            let mut api = tokio::net::TcpStream::connect(address(&w.dev.info["api"])).await.expect("api");
            let bytes = request(route.method, &paris_host, &path, &headers, body.as_deref());
            let seen = exchange(&mut api, &bytes).await;
            w.clean(&seen);
            assert_eq!((seen.status, seen.code()), (401, "invalid_tenant_token".into()), "{name}");
            tried += 1;
        }
        // Another method on the same path.
        let seen = w.dev.client.send("TRACK", &w.dev.host("lyon"), &path, &[], None).await;
        assert_eq!(seen.status, 405, "{name}");
    }
    assert!(tried > 45, "{tried}");
    // Paris has what is paris's, exactly once, and lyon's list has nothing of it.
    let own = w.dev.get_as("paris", &format!("/api/v1/members/{}", w.paris_member), &w.paris).await;
    assert_eq!(own.json()["first_name"], w.paris_canary.as_str());
    let mut cursor = String::new();
    loop {
        let page = w.dev.get_as("lyon", &format!("/api/v1/members?limit=200{cursor}"), &lyon).await;
        w.clean(&page);
        match page.json()["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    // A cursor of paris is none of lyon's.
    let page = w.dev.get_as("paris", "/api/v1/members?limit=5", &w.paris).await;
    let next = page.json()["next_cursor"].as_str().expect("more").to_owned();
    let seen = w.dev.get_as("lyon", &format!("/api/v1/members?cursor={next}"), &lyon).await;
    assert_eq!((seen.status, seen.code()), (400, "malformed".into()), "A-03");
}

/// what is another's, in bodies and queries: as if it was nobody's.
#[tokio::test(flavor = "multi_thread")]
async fn a02_anothers_ids_in_bodies_and_queries() {
    let dev = Dev::start().await;
    let password = text(
        &dev.cli_json(&[
            "tenant",
            "create",
            "--slug",
            "clinique",
            "--name",
            "C",
            "--admin-email",
            "a@c.example",
            "--without-letter",
            "--modules",
            "patients",
        ])
        .await["admin_password"],
    )
    .to_owned();
    let tokens = [
        ("paris", dev.login("paris").await),
        ("lyon", dev.login("lyon").await),
        ("hopital-central", dev.login("hopital-central").await),
        ("clinique", dev.login_as("clinique", "a@c.example", &password).await),
    ];
    let send = |slug: &'static str, method: &'static str, path: String, body: Value| {
        let (dev, tokens) = (&dev, &tokens);
        async move {
            let token = &tokens.iter().find(|(s, _)| *s == slug).expect("known").1;
            let bearer = format!("Bearer {token}");
            let body = (!body.is_null()).then(|| body.to_string());
            let headers = [("Authorization", bearer.as_str())];
            dev.client.send(method, &dev.host(slug), &path, &headers, body.as_deref()).await
        }
    };
    let make = |slug: &'static str, path: &'static str, body: Value| {
        let send = &send;
        async move {
            let made = send(slug, "POST", path.into(), body).await;
            assert_eq!(made.status, 201, "{slug} {path}: {made:?}");
            text(&made.json()["id"]).to_owned()
        }
    };
    let person = json!({"first_name": "Ada", "last_name": "CANARY"});
    let patient = json!({"first_name": "Ada", "last_name": "CANARY", "birth_date": "1985-12-10"});
    // Theirs, and what is one's own beside it.
    let their_member = make("paris", "/api/v1/members", person.clone()).await;
    let their_family = make("paris", "/api/v1/families", json!({"name": "CANARY"})).await;
    let their_patient = make("hopital-central", "/api/v1/patients", patient.clone()).await;
    let their_stay = make(
        "hopital-central",
        "/api/v1/hospitalizations",
        json!({"patient_id": their_patient, "ward": "CANARY"}),
    )
    .await;
    let me = send("paris", "GET", "/api/v1/auth/me".into(), Value::Null).await.json();
    let their_user = text(&me["id"]).to_owned();
    let member = make("lyon", "/api/v1/members", person).await;
    let own_patient = make("clinique", "/api/v1/patients", patient).await;

    let loan = |member: &str, guarantors: &[&str]| json!({"member_id": member, "amount": 1000, "currency": "EUR", "installments": 1, "guarantor_ids": guarantors});
    let members = "/api/v1/members";
    let mut tried = 0;
    for (slug, method, path, theirs, body) in [
        (
            "lyon",
            "POST",
            members.to_owned(),
            &their_family,
            json!({"first_name": "A", "last_name": "B", "family_id": "ID"}),
        ),
        ("lyon", "PATCH", format!("{members}/{member}"), &their_family, json!({"family_id": "ID"})),
        ("lyon", "GET", format!("{members}?family_id=ID"), &their_family, Value::Null),
        ("lyon", "POST", "/api/v1/loans".into(), &their_member, loan("ID", &[])),
        ("lyon", "POST", "/api/v1/loans".into(), &their_member, loan(&member, &["ID"])),
        ("lyon", "GET", "/api/v1/loans?member_id=ID".into(), &their_member, Value::Null),
        ("lyon", "GET", "/api/v1/audit?actor_id=ID".into(), &their_user, Value::Null),
        ("lyon", "GET", "/api/v1/audit?entity_id=ID".into(), &their_member, Value::Null),
        (
            "clinique",
            "POST",
            "/api/v1/hospitalizations".into(),
            &their_patient,
            json!({"patient_id": "ID", "ward": "A"}),
        ),
        ("clinique", "GET", "/api/v1/hospitalizations?patient_id=ID".into(), &their_patient, Value::Null),
        (
            "clinique",
            "POST",
            "/api/v1/invoices".into(),
            &their_patient,
            json!({"patient_id": "ID", "amount": 1}),
        ),
        (
            "clinique",
            "POST",
            "/api/v1/invoices".into(),
            &their_stay,
            json!({"patient_id": own_patient, "hospitalization_id": "ID", "amount": 1}),
        ),
        ("clinique", "GET", "/api/v1/invoices?patient_id=ID".into(), &their_patient, Value::Null),
    ] {
        let mut seen = Vec::new();
        for id in [theirs.clone(), uuid::Uuid::new_v4().to_string()] {
            let body = serde_json::from_str(&body.to_string().replace("\"ID\"", &format!("\"{id}\"")))
                .expect("JSON");
            let answer = send(slug, method, path.replace("ID", &id), body).await;
            assert!(!format!("{answer:?}").contains("CANARY"), "{slug} {method} {path}: {answer:?}");
            let mut said = answer.json();
            let fields = said.as_object_mut().expect("an object");
            fields.remove("request_id");
            if method == "GET" {
                let is_empty = fields["items"].as_array().is_some_and(Vec::is_empty);
                assert!(answer.status == 200 && is_empty, "{path}: {answer:?}");
            } else {
                assert!(matches!(answer.status, 404 | 422), "{method} {path}: {answer:?}");
            }
            seen.push((answer.status, said));
            tried += 1;
        }
        assert_eq!(seen[0], seen[1], "{method} {path}: another's is told from nobody's");
    }
    assert_eq!(tried, 26);
    // Nothing came of it, and nothing of theirs was touched.
    let own = send("lyon", "GET", format!("{members}/{member}"), Value::Null).await.json();
    assert!(own["family_id"].is_null(), "{own}");
    let theirs = "select (select count(*) from loans where created_at > now() - interval '1 hour' and purpose is null and member_id = (select id from members where last_name = 'CANARY'))
        || '/' || (select count(*) from members where family_id = (select id from families where name = 'CANARY'))";
    assert_eq!(dev.value("gmah_org_paris", theirs).await, "0/0");
    let theirs = format!(
        "select (select count(*) from invoices where patient_id = '{their_patient}') || '/' || (select count(*) from hospitalizations where patient_id = '{their_patient}')"
    );
    assert_eq!(dev.value("gmah_org_hopital_central", &theirs).await, "0/1");
    assert_eq!(
        dev.value(
            "gmah_org_lyon",
            "select count(*) from loans l join members m on m.id = l.member_id where m.last_name = 'CANARY'"
        )
        .await,
        "0"
    );
    assert_eq!(
        dev.value(
            "gmah_org_clinique",
            "select (select count(*) from invoices) + (select count(*) from hospitalizations)"
        )
        .await,
        "0"
    );
}

/// what is for operators is not reachable from outside, at any host.
#[tokio::test(flavor = "multi_thread")]
async fn a07_operators_doors_are_closed() {
    let dev = Dev::start().await;
    for slug in ["paris", "admin", "app", "nobody"] {
        for path in [
            "/metrics",
            "/healthz",
            "/readyz",
            "/admin",
            "/internal",
            "/debug/pprof",
            "/api/v1/admin",
            "/.well-known/jwks.json",
            "/api/v1/admin/tenants",
        ] {
            let seen = dev.get(slug, path).await;
            assert_eq!(seen.status, 404, "{slug} {path}: {seen:?}");
        }
    }
}

/// A request that is answered by lyon under load never sees paris, whatever is going on around it.
#[tokio::test(flavor = "multi_thread")]
async fn answers_never_cross_under_load() {
    let w = std::sync::Arc::new(World::new().await);
    let lyon = w.dev.login("lyon").await;
    let tasks: Vec<_> = (0..8)
        .map(|k| {
            let (w, lyon) = (w.clone(), lyon.clone());
            gmah_shared::tasks::detach("load", async move {
                for n in 0..40 {
                    let (slug, token) = if (n + k) % 2 == 0 { ("paris", &w.paris) } else { ("lyon", &lyon) };
                    let seen = w.dev.get_as(slug, "/api/v1/auth/me", token).await;
                    assert_eq!(seen.json()["email"], format!("admin@{slug}.example"), "{seen:?}");
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no answer crossed");
    }
}
