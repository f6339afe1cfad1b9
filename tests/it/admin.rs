//! The admin API: who may, what comes of it, and what is written down of it.

use std::time::Duration;

use gmah_api::platform::routes::TABLE;
use gmah_api::routes::Access;
use serde_json::{Value, json};
use totp_rs::{Builder, Secret};

use crate::harness::dev::text;
use crate::harness::{Answer, Dev, eventually};

const API: &str = "/api/v1/admin";

async fn send(dev: &Dev, token: Option<&str>, method: &str, path: &str, body: Option<&Value>) -> Answer {
    let bearer = token.map(|t| format!("Bearer {t}"));
    let headers: Vec<(&str, &str)> = bearer.iter().map(|b| ("Authorization", b.as_str())).collect();
    let body = body.map(Value::to_string);
    dev.client.send(method, &dev.host("admin"), path, &headers, body.as_deref()).await
}

/// An administrator who is logged in.
pub(crate) struct Admin<'a> {
    dev: &'a Dev,
    token: String,
}

impl<'a> Admin<'a> {
    async fn enter(dev: &'a Dev, email: &str, password: &str) -> Self {
        let login = json!({ "email": email, "password": password });
        let answer = send(dev, None, "POST", &format!("{API}/auth/login"), Some(&login)).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        Self { dev, token: text(&answer.json()["access_token"]).to_owned() }
    }

    /// The one whom `gmah dev` makes.
    pub(crate) async fn owner(dev: &'a Dev) -> Self {
        let own = &dev.info["system_admin"];
        Self::enter(dev, text(&own["email"]), text(&own["password"])).await
    }

    async fn with_role(dev: &'a Dev, role: &str) -> Self {
        let email = format!("{role}@platform.example");
        let made = dev.cli_json(&["admin", "create", "--email", &email, "--role", role]).await;
        assert_eq!(made["role"], role);
        Self::enter(dev, &email, text(&made["password"])).await
    }

    pub(crate) async fn ask(&self, method: &str, path: &str, body: Option<Value>) -> Answer {
        send(self.dev, Some(&self.token), method, &format!("{API}{path}"), body.as_ref()).await
    }

    async fn json(&self, method: &str, path: &str, body: Option<Value>, status: u16) -> Value {
        let answer = self.ask(method, path, body).await;
        assert_eq!(answer.status, status, "{method} {path}: {answer:?}");
        if answer.body.is_empty() { Value::Null } else { answer.json() }
    }

    /// Begins an operation and waits for its end.
    async fn operate(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        let begun = self.json(method, path, body, 202).await;
        let shown = format!("/operations/{}", text(&begun["operation"]));
        let now = || async { self.json("GET", &shown, None, 200).await };
        let over = |op: &Value| op["state"] != "running";
        let ended = eventually("operation", Duration::from_secs(30), now, over).await;
        assert_eq!(ended["state"], "done", "{ended}");
        ended
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a01_every_route_knows_who_may() {
    let dev = Dev::start().await;
    let roles = ["read_only", "support", "operator", "owner"];
    let mut admins = Vec::new();
    for role in roles {
        admins.push(Admin::with_role(&dev, role).await);
    }
    let tenant = dev.login("paris").await;
    let rank = |role: Option<&str>| roles.iter().position(|r| Some(*r) == role).unwrap_or(0);
    for route in TABLE {
        let path = route
            .path
            .replace("{slug}", "nobody-there")
            .replace("{id}", "018f0000-0000-7000-8000-000000000000")
            .replace("{module}", "loans")
            .replace("{hostname}", "www.nobody.example");
        let body = route.takes_body().then(|| json!({"nothing": "of the kind"}));
        let what = format!("{} {path}", route.method);
        // On whatever host but its own there is nothing.
        let bearer = format!("Bearer {tenant}");
        let headers = [("Authorization", &*bearer)];
        let elsewhere = dev
            .client
            .send(
                route.method,
                &dev.host("paris"),
                &path,
                &headers,
                body.as_ref().map(Value::to_string).as_deref(),
            )
            .await;
        assert_eq!(elsewhere.status, 404, "{what}: {elsewhere:?}");
        if route.access == Access::Tenant {
            let open = send(&dev, None, route.method, &path, body.as_ref()).await;
            // Sign-up is off unless somebody switches it on.
            let is_off = path.contains("/signup") && open.status == 404;
            assert!(is_off || [200, 422].contains(&open.status), "{what}: {open:?}");
            continue;
        }
        for token in [None, Some("short"), Some(tenant.as_str())] {
            let refused = send(&dev, token, route.method, &path, body.as_ref()).await;
            assert_eq!(refused.status, 401, "{what} {token:?}: {refused:?}");
        }
        // Ends what asks; it has a test of its own.
        if route.path.ends_with("/logout") {
            continue;
        }
        for (n, admin) in admins.iter().enumerate() {
            let answer = send(&dev, Some(&admin.token), route.method, &path, body.as_ref()).await;
            if n < rank(route.permission) {
                assert_eq!(answer.status, 403, "{what} as {}: {answer:?}", roles[n]);
            } else {
                let fine = if body.is_some() {
                    answer.status == 422
                } else {
                    [200, 202, 404].contains(&answer.status)
                };
                assert!(fine, "{what} as {}: {answer:?}", roles[n]);
            }
        }
        let method = send(&dev, Some(&admins[3].token), "TRACE", &path, None).await;
        assert_eq!(method.status, 405, "{what}");
        let kept = send(&dev, Some(&admins[3].token), "GET", &format!("{API}/auth/me"), None).await;
        assert_eq!(kept.header("cache-control"), Some("private, no-store"), "{what}");
    }
    let unknown = admins[3].ask("GET", "/nothing", None).await;
    assert_eq!((unknown.status, &unknown.json()["code"]), (404, &json!("not_found")));
    let document = send(&dev, None, "GET", &format!("{API}/openapi.json"), None).await.json();
    assert_eq!(document["openapi"], "3.1.0");
    for route in TABLE {
        assert!(document["paths"][route.path][route.method.to_lowercase()].is_object(), "{route:?}");
    }
    let described = document.to_string();
    for reference in described.split("\"#/components/schemas/").skip(1) {
        let name = reference.split('"').next().expect("a name");
        assert!(document["components"]["schemas"].get(name).is_some(), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_organisation_from_its_beginning_to_its_end() {
    let dev = Dev::start().await;
    let admin = Admin::owner(&dev).await;
    let new = json!({"slug": "metz", "name": "Metz", "admin_email": "a@metz.example", "modules": ["loans"]});
    let made = admin.operate("POST", "/organizations", Some(new.clone())).await;
    assert!(text(&made["actor"]).starts_with("admin:"), "{made}");
    let served = |slug: &'static str, status: u16| {
        let dev = &dev;
        async move {
            let now = || async { dev.get(slug, "/api/v1/tenant").await.status };
            eventually("status", Duration::from_secs(3), now, |s| *s == status).await;
        }
    };
    served("metz", 200).await;
    let taken = admin
        .ask(
            "POST",
            "/organizations",
            Some(json!({"slug": "metz", "name": "Other", "admin_email": "b@metz.example"})),
        )
        .await;
    assert_eq!((taken.status, &taken.json()["code"]), (409, &json!("refused")), "{taken:?}");
    for (field, bad) in [
        ("slug", json!({"slug": "Metz", "name": "x", "admin_email": "a@x.example"})),
        ("slug", json!({"slug": "admin", "name": "x", "admin_email": "a@x.example"})),
        ("admin_email", json!({"slug": "nancy", "name": "x", "admin_email": "x"})),
        ("domain", json!({"slug": "nancy", "name": "x", "admin_email": "a@x.example", "domain": "10.0.0.1"})),
        ("domain", json!({"slug": "nancy", "name": "x", "admin_email": "a@x.example", "domain": "co.uk"})),
        ("name", json!({"slug": "nancy", "name": " ", "admin_email": "a@x.example"})),
        ("plan", json!({"slug": "nancy", "name": "x", "admin_email": "a@x.example", "plan": "none"})),
        ("modules", json!({"slug": "nancy", "name": "x", "admin_email": "a@x.example", "modules": ["none"]})),
    ] {
        let refused = admin.ask("POST", "/organizations", Some(bad.clone())).await;
        assert_eq!((refused.status, &refused.json()["field"]), (422, &json!(field)), "{bad}: {refused:?}");
    }

    let one = "/organizations/metz";
    let changed =
        admin.json("PATCH", one, Some(json!({"plan": "starter", "limits": {"members": 1}})), 200).await;
    assert_eq!((&changed["plan"], &changed["limits"]["members"]), (&json!("starter"), &json!(1)));
    let limits = || async { dev.get("metz", "/api/v1/tenant").await.json() };
    eventually("everybody goes by it", Duration::from_secs(2), limits, |t| t["plan"] == "starter").await;
    for (field, bad) in [
        ("plan", json!({"plan": "none"})),
        ("limits.members", json!({"limits": {"members": 0}})),
        ("limits.x", json!({"limits": {"x": 1}})),
        ("limits", json!({"limits": []})),
        ("pools.api", json!({"pools": {"api": "A"}})),
        ("branding.name=X", json!({"branding": {"name=X": "y"}})),
        ("branding.primary_color", json!({"branding": {"name": "Metz", "primary_color": "red"}})),
    ] {
        let refused = admin.ask("PATCH", one, Some(bad.clone())).await;
        assert_eq!((refused.status, &refused.json()["field"]), (422, &json!(field)), "{bad}: {refused:?}");
    }
    let whole = admin.json("GET", one, None, 200).await;
    let metz = json!({"name": "Metz"});
    let shown = admin.json("PATCH", one, Some(json!({"branding": metz})), 200).await;
    assert_eq!(shown["branding"], metz);
    assert_eq!(
        (&whole["plan"], &whole["branding"]),
        (&json!("starter"), &json!({})),
        "nothing of what was refused"
    );
    admin.json("POST", &format!("{one}/suspend"), Some(json!({"reason": "unpaid"})), 200).await;
    served("metz", 403).await;
    assert_eq!(admin.json("GET", one, None, 200).await["status_reason"], "unpaid");
    admin.json("POST", &format!("{one}/resume"), None, 200).await;
    served("metz", 200).await;
    admin.json("POST", &format!("{one}/maintenance"), Some(json!({"mode": "full"})), 200).await;
    served("metz", 503).await;
    admin.json("POST", &format!("{one}/maintenance"), Some(json!({"mode": "off"})), 200).await;
    served("metz", 200).await;
    let with = admin.json("PUT", &format!("{one}/modules/patients"), None, 200).await;
    assert_eq!(with["modules"], json!(["loans", "patients"]));
    admin.json("DELETE", &format!("{one}/modules/patients"), None, 200).await;
    assert_eq!(admin.ask("PUT", &format!("{one}/modules/none"), None).await.status, 422);
    let domain = admin
        .json("POST", &format!("{one}/domains"), Some(json!({"hostname": "www.metz.example"})), 201)
        .await;
    assert!(text(&domain["txt_name"]).contains("www.metz.example"), "{domain}");
    assert_eq!(
        admin.json("GET", &format!("{one}/domains"), None, 200).await["items"][0]["status"],
        "pending"
    );
    admin.json("DELETE", &format!("{one}/domains/www.metz.example"), None, 204).await;

    let made = admin.operate("POST", &format!("{one}/backups"), None).await;
    let backup = made["result"]["backup_id"].clone();
    let listed = admin.json("GET", "/backups?organization=metz", None, 200).await;
    assert_eq!(listed["items"][0]["id"], backup);
    admin.json("POST", &format!("/backups/{}/verify", text(&backup)), None, 202).await;
    let verified =
        || async { admin.json("GET", "/backups?organization=metz", None, 200).await["items"][0].clone() };
    eventually("tried", Duration::from_secs(20), verified, |b| b["verified_at"].is_string()).await;
    admin.operate("POST", &format!("{one}/restore"), Some(json!({"backup_id": backup}))).await;
    admin.operate("POST", &format!("{one}/restore/undo"), None).await;
    admin.operate("POST", &format!("{one}/password"), None).await;
    served("metz", 200).await;

    // Whatever was done is written down, with who did it, and what it was before and after.
    let history = admin.json("GET", &format!("{one}/history"), None, 200).await;
    let entries = history["items"].as_array().expect("items");
    let patched = entries.iter().find(|e| e["detail"]["after"]["plan"] == "starter").expect("written down");
    assert!(text(&patched["action"]).starts_with("PATCH "));
    assert_eq!(
        (&patched["detail"]["before"]["plan"], &patched["detail"]["after"]["plan"]),
        (&json!("professional"), &json!("starter"))
    );
    assert_eq!(text(&patched["actor"]), format!("admin:{}", text(&dev.info["system_admin"]["email"])));
    assert!(patched["detail"]["request_id"].is_string() && patched["detail"]["address"].is_string());
    assert!(entries.iter().any(|e| e["action"] == "tenant.plan"));
    let all = admin.json("GET", "/audit?limit=2", None, 200).await;
    let next =
        admin.json("GET", &format!("/audit?limit=2&cursor={}", text(&all["next_cursor"])), None, 200).await;
    assert!(next["items"][0]["id"].as_i64() < all["items"][1]["id"].as_i64());

    assert_eq!(
        admin.ask("POST", &format!("{one}/delete"), Some(json!({"confirm": "lyon"}))).await.status,
        422
    );
    served("metz", 200).await;
    admin.operate("POST", &format!("{one}/delete"), Some(json!({"confirm": "metz"}))).await;
    served("metz", 404).await;
    assert_eq!(admin.ask("GET", one, None).await.status, 404);
    admin.operate("POST", &format!("{one}/undelete"), None).await;
    served("metz", 200).await;

    let page = admin.json("GET", "/organizations?limit=2", None, 200).await;
    assert_eq!(page["items"].as_array().map(Vec::len), Some(2));
    let rest = admin
        .json("GET", &format!("/organizations?limit=200&cursor={}", text(&page["next_cursor"])), None, 200)
        .await;
    assert_eq!((rest["items"].as_array().map(Vec::len), &rest["next_cursor"]), (Some(2), &Value::Null));
    let found = admin.json("GET", "/organizations?search=ETZ&status=active", None, 200).await;
    assert_eq!(found["items"][0]["slug"], "metz");
    for bad in ["?limit=0", "?status=none", "?search=", "?health=x"] {
        assert_eq!(admin.ask("GET", &format!("/organizations{bad}"), None).await.status, 422, "{bad}");
    }
    for bad in ["?nothing=1", "?cursor=abc"] {
        assert_eq!(admin.ask("GET", &format!("/organizations{bad}"), None).await.status, 400, "{bad}");
    }
    admin
        .operate("POST", "/migrations", Some(json!({"organizations": ["metz", "paris"], "canaries": 1})))
        .await;
    assert!(admin.json("GET", "/servers", None, 200).await["items"][0]["organizations"].as_i64() >= Some(4));
    for (status, port) in [(409, 1), (422, 0)] {
        let server = json!({"name": "none", "host": "127.0.0.1", "port": port, "admin_user": "x"});
        let refused = admin.ask("POST", "/servers", Some(server)).await;
        assert_eq!(refused.status, status, "{refused:?}");
    }
    assert_eq!(admin.json("GET", "/plans", None, 200).await["items"][0]["key"], "starter");
    let operations = admin.json("GET", "/operations?organization=metz&limit=3", None, 200).await;
    assert_eq!(operations["items"].as_array().map(Vec::len), Some(3));
    let id = text(&operations["items"][0]["id"]).to_owned();
    assert_eq!(admin.ask("POST", &format!("/operations/{id}/resume"), None).await.status, 409, "it is done");
}

#[tokio::test(flavor = "multi_thread")]
async fn support_looks_into_an_organisation_and_is_seen() {
    let dev = Dev::start().await;
    let support = Admin::with_role(&dev, "support").await;
    let seen = support
        .json("POST", "/organizations/lyon/impersonations", Some(json!({"reason": "ticket 7"})), 201)
        .await;
    let token = text(&seen["access_token"]).to_owned();
    assert!(text(&seen["host"]).starts_with("lyon."));
    assert_eq!(dev.get_as("lyon", "/api/v1/members", &token).await.status, 200);
    assert_eq!(dev.get_as("lyon", "/api/v1/auth/me", &token).await.json()["email"], seen["email"]);
    assert_eq!(dev.get_as("paris", "/api/v1/members", &token).await.status, 401, "nowhere else");
    // It reads, and nothing else, whatever is asked.
    for route in gmah_api::routes::TABLE.iter().filter(|r| r.access == Access::User) {
        let path = route
            .path
            .replace("{id}", "018f0000-0000-7000-8000-000000000000")
            .replace("{payment}", "018f0000-0000-7000-8000-000000000000")
            .replace("{key}", "none");
        let bearer = format!("Bearer {token}");
        let body = route.takes_body().then(|| "{}".to_owned());
        let headers = [("Authorization", &*bearer)];
        let answer = dev.client.send(route.method, &dev.host("lyon"), &path, &headers, body.as_deref()).await;
        let may = route.permission.is_none_or(|p| p.ends_with(".read"));
        let of_module = route.module.is_none_or(|m| m == "loans");
        // A body that breaks a rule is refused before anybody is looked up.
        let fine: &[u16] = match (route.is_write(), route.is_personal || !may) {
            (true, _) => &[400, 403, 404, 415, 422],
            (false, true) if of_module => &[403],
            (false, _) => &[200, 403, 404],
        };
        assert!(fine.contains(&answer.status), "{route:?}: {answer:?}");
    }
    let bearer = format!("Bearer {token}");
    let headers = [("Authorization", &*bearer)];
    let member = json!({"first_name": "Ada", "last_name": "Byron"});
    assert_eq!(dev.post("lyon", "/api/v1/members", &headers, &member).await.status, 403, "it reads only");
    let password = json!({"current_password": "x", "new_password": "long enough"});
    assert_eq!(dev.post("lyon", "/api/v1/auth/password", &headers, &password).await.status, 403);
    for not in ["/api/v1/members/export", "/api/v1/audit", "/api/v1/auth/sessions", "/api/v1/api-keys"] {
        assert_eq!(dev.get_as("lyon", not, &token).await.status, 403, "{not}");
    }
    // The organisation sees it: in its audit, and among the user's sessions.
    let own = dev.login("lyon").await;
    let entries = dev.get_as("lyon", "/api/v1/audit?action=sessions.impersonate", &own).await.json();
    let entry = &entries["items"][0];
    assert_eq!(
        (&entry["impersonator"], &entry["actor"], &entry["after"]["reason"]),
        (&json!("support@platform.example"), &seen["email"], &json!("ticket 7"))
    );
    let sessions = dev.get_as("lyon", "/api/v1/auth/sessions", &own).await.json();
    let sessions = sessions["items"].as_array().expect("sessions");
    let theirs = sessions.iter().find(|s| s["impersonator"] == "support@platform.example").expect("visible");
    let ended = dev
        .client
        .send(
            "DELETE",
            &dev.host("lyon"),
            &format!("/api/v1/auth/sessions/{}", text(&theirs["id"])),
            &[("Authorization", &format!("Bearer {own}"))],
            None,
        )
        .await;
    assert_eq!(ended.status, 204);
    assert_eq!(dev.get_as("lyon", "/api/v1/members", &token).await.status, 401, "ended by its user");
    // A patient's record is written down in both names.
    let looked = support
        .json(
            "POST",
            "/organizations/hopital-central/impersonations",
            Some(json!({"reason": "ticket 8"})),
            201,
        )
        .await;
    let token = text(&looked["access_token"]).to_owned();
    let patients = dev.get_as("hopital-central", "/api/v1/patients?limit=1", &token).await.json();
    let record = format!("/api/v1/patients/{}", text(&patients["items"][0]["id"]));
    assert_eq!(dev.get_as("hopital-central", &record, &token).await.status, 200);
    let by = dev
        .value(
            "gmah_org_hopital_central",
            "select impersonator from audit_log where action = 'patients.read' order by id desc limit 1",
        )
        .await;
    assert_eq!(by, "support@platform.example");
    // And it is over after a quarter of an hour, or with a suspension.
    let left = dev.value("gmah_org_hopital_central", "select count(*) from sessions where impersonator is not null and access_expires_at between now() + interval '13 minutes' and now() + interval '15 minutes'").await;
    assert_eq!(left, "1");
    dev.cli_json(&["tenant", "suspend", "hopital-central", "--reason", "x"]).await;
    dev.cli_json(&["tenant", "resume", "hopital-central"]).await;
    let again = || async { dev.get_as("hopital-central", &record, &token).await.status };
    eventually("over", Duration::from_secs(3), again, |s| *s == 401).await;
    // What an operator has closed for work on it, support does not open.
    dev.cli_json(&["tenant", "maintenance", "paris", "on"]).await;
    let closed =
        support.ask("POST", "/organizations/paris/impersonations", Some(json!({"reason": "x"}))).await;
    assert_eq!(closed.status, 409, "{closed:?}");
    for (path, body) in [("resume", None), ("suspend", Some(json!({"reason": "x"})))] {
        let refused = support.ask("POST", &format!("/organizations/paris/{path}"), body).await;
        assert_eq!(refused.status, 409, "{path}: {refused:?}");
    }
    assert_eq!(dev.get("paris", "/api/v1/tenant").await.status, 503);
    dev.cli_json(&["tenant", "maintenance", "paris", "off"]).await;
    for (status, bad) in [
        (422, json!({"reason": ""})),
        (422, json!({"reason": "x", "email": "nobody@lyon.example"})),
        (422, json!({"reason": "x", "email": "no address"})),
        (422, json!({})),
    ] {
        let refused = support.ask("POST", "/organizations/lyon/impersonations", Some(bad.clone())).await;
        assert_eq!(refused.status, status, "{bad}: {refused:?}");
    }
    let nowhere =
        support.ask("POST", "/organizations/nobody/impersonations", Some(json!({"reason": "x"}))).await;
    assert_eq!(nowhere.status, 404);
    assert_eq!(dev.value("gmah_master", "select count(*) from audit_log where action like '%impersonations' and actor = 'admin:support@platform.example' and detail ->> 'reason' like 'ticket%'").await, "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a09_administrators_and_their_logins() {
    let dev = Dev::start().await;
    let owner = Admin::owner(&dev).await;
    let login = async |email: &str, password: &str, code: Option<String>| {
        let mut body = json!({ "email": email, "password": password });
        if let Some(code) = code {
            body["code"] = code.into();
        }
        send(&dev, None, "POST", &format!("{API}/auth/login"), Some(&body)).await
    };
    let made = owner
        .json(
            "POST",
            "/administrators",
            Some(json!({"email": "Eve@platform.example", "role": "operator"})),
            201,
        )
        .await;
    let (id, password) = (text(&made["id"]).to_owned(), text(&made["password"]).to_owned());
    assert_eq!(
        owner
            .ask("POST", "/administrators", Some(json!({"email": "eve@platform.example", "role": "owner"})))
            .await
            .status,
        409
    );
    let eve = Admin::enter(&dev, "eve@platform.example", &password).await;
    // One's own password: other sessions end.
    let other = Admin::enter(&dev, "eve@platform.example", &password).await;
    let wrong = eve
        .ask(
            "POST",
            "/auth/password",
            Some(json!({"current_password": "wrong", "new_password": "long enough"})),
        )
        .await;
    assert_eq!(wrong.status, 401);
    let short = eve
        .ask("POST", "/auth/password", Some(json!({"current_password": password, "new_password": "short"})))
        .await;
    assert_eq!((short.status, &short.json()["field"]), (422, &json!("new_password")));
    eve.json(
        "POST",
        "/auth/password",
        Some(json!({"current_password": password, "new_password": "long enough"})),
        204,
    )
    .await;
    assert_eq!(other.ask("GET", "/auth/me", None).await.status, 401);
    assert_eq!(eve.json("GET", "/auth/me", None, 200).await["email"], "eve@platform.example");
    // A second factor.
    let begun = eve.json("POST", "/auth/totp", Some(json!({"password": "long enough"})), 201).await;
    let secret = Secret::try_from_base32(text(&begun["secret"])).expect("base32");
    let device = Builder::new().with_secret(secret).build().expect("TOTP");
    let now = || u64::try_from(time::OffsetDateTime::now_utc().unix_timestamp()).expect("after 1970");
    assert_eq!(login("eve@platform.example", "long enough", None).await.status, 200, "not asked for yet");
    assert_eq!(eve.ask("POST", "/auth/totp/confirm", Some(json!({"code": "000000"}))).await.status, 401);
    let code = device.generate(now()).to_string();
    eve.json("POST", "/auth/totp/confirm", Some(json!({"code": code})), 204).await;
    let needed = login("eve@platform.example", "long enough", None).await;
    assert_eq!((needed.status, &needed.json()["code"]), (401, &json!("totp_required")));
    assert_eq!(
        login("eve@platform.example", "long enough", Some(code)).await.status,
        401,
        "none is used twice"
    );
    let next = device.generate(now() + 30).to_string();
    assert_eq!(login("eve@platform.example", "long enough", Some(next)).await.status, 200);
    assert_eq!(eve.ask("POST", "/auth/totp", Some(json!({"password": "long enough"}))).await.status, 409);
    // Given another password by an owner: the factor is gone, and so are all sessions.
    let reset = owner.json("POST", &format!("/administrators/{id}/reset"), None, 200).await;
    assert_eq!(eve.ask("GET", "/auth/me", None).await.status, 401);
    let eve = Admin::enter(&dev, "eve@platform.example", text(&reset["password"])).await;
    // What one may is what one may now.
    owner.json("PATCH", &format!("/administrators/{id}"), Some(json!({"role": "read_only"})), 200).await;
    assert_eq!(eve.ask("POST", "/organizations/paris/resume", None).await.status, 403);
    owner.json("PATCH", &format!("/administrators/{id}"), Some(json!({"disabled": true})), 200).await;
    assert_eq!(eve.ask("GET", "/auth/me", None).await.status, 401);
    assert_eq!(login("eve@platform.example", text(&reset["password"]), None).await.status, 401);
    // Somebody must be left who may say who else may.
    let listed = owner.json("GET", "/administrators", None, 200).await;
    let own = text(&dev.info["system_admin"]["email"]).to_owned();
    let me =
        listed["items"].as_array().expect("items").iter().find(|a| a["email"] == own).expect("me").clone();
    let own_reset = owner.ask("POST", &format!("/administrators/{}/reset", text(&me["id"])), None).await;
    assert_eq!(own_reset.status, 409, "{own_reset:?}");
    for change in [json!({"role": "support"}), json!({"disabled": true})] {
        let no = owner.ask("PATCH", &format!("/administrators/{}", text(&me["id"])), Some(change)).await;
        assert_eq!(no.status, 409, "{no:?}");
    }
    let no = dev.cli(&["admin", "disable", "--email", &own]).await;
    assert!(
        no.status.code() == Some(1) && String::from_utf8_lossy(&no.stderr).contains("last owner"),
        "{no:?}"
    );
    dev.cli_json(&["admin", "enable", "--email", "eve@platform.example"]).await;
    dev.cli_json(&["admin", "set-role", "owner", "--email", "eve@platform.example"]).await;
    let listed = String::from_utf8(dev.cli(&["admin", "list"]).await.stdout).expect("text");
    assert!(listed.lines().any(|l| l.starts_with("eve@platform.example") && l.contains("owner")), "{listed}");
    // A token ends with its logout.
    let brief = Admin::enter(&dev, "eve@platform.example", text(&reset["password"])).await;
    brief.json("POST", "/auth/logout", None, 204).await;
    assert_eq!(brief.ask("GET", "/auth/me", None).await.status, 401);
    // Guessing is slowed down, the same for who is there and who is not.
    for email in ["eve@platform.example", "nobody@platform.example"] {
        let mut statuses = Vec::new();
        for n in 0..12 {
            statuses.push(login(email, &format!("wrong {n}"), None).await.status);
        }
        assert!(statuses[0] == 401 && statuses[11] == 429, "{email}: {statuses:?}");
    }
    // Passwords and tokens are nowhere in clear.
    let dump = dev.value("gmah_master", "select string_agg(a::text, ' ') || (select string_agg(l::text, ' ') from audit_log l) from system_admins a").await;
    assert!(!dump.contains("long enough") && !dump.contains(&owner.token));
    assert!(!dev.log().contains(&owner.token));
}
