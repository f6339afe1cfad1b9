//! Family A: browsers' cookies, keys of programs, second factors, and the keys that all of that is sealed with.

use std::time::Duration;

use serde_json::{Value, json};
use totp_rs::{Builder, Secret};

use crate::accounts::{Headers, ask, by, is, letters, post, seen, token};
use crate::harness::dev::text;
use crate::harness::{Answer, Dev, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn cookies_of_browsers() {
    let dev = Dev::start().await;
    let tenants = dev.info["tenants"].as_array().expect("tenants");
    let password = text(&tenants.iter().find(|t| t["slug"] == "paris").expect("paris")["admin_password"]);
    let body = json!({"email": "admin@paris.example", "password": password, "cookie": true});
    let login = post(&dev, "/api/v1/auth/login", body).await;
    assert_eq!(login.status, 200);
    assert!(login.json().get("access_token").is_none() && login.json().get("refresh_token").is_none());
    let csrf = text(&login.json()["csrf_token"]).to_owned();
    let cookies = |answer: &Answer| {
        let set = answer.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case("set-cookie"));
        set.map(|(_, v)| v.clone()).collect::<Vec<_>>()
    };
    let set = cookies(&login);
    assert_eq!(set.len(), 3, "{set:?}");
    for cookie in &set {
        assert!(cookie.starts_with("__Host-gmah_"), "{cookie}");
        assert!(cookie.contains("; Path=/; Secure; ") && cookie.contains("SameSite="), "{cookie}");
        assert!(!cookie.contains("Domain="), "{cookie}");
        assert_eq!(cookie.contains("HttpOnly"), !cookie.contains("_csrf="), "{cookie}");
    }
    let jar = |set: &[String]| {
        set.iter().map(|c| c.split(';').next().unwrap_or_default()).collect::<Vec<_>>().join("; ")
    };
    let old = jar(&set);
    assert_eq!(ask(&dev, "GET", "/api/v1/auth/me", &[("Cookie", &old)], None).await.status, 200);
    let member = || Some(json!({"first_name": "Ada", "last_name": "Lovelace"}));
    let origin = format!("https://{}", dev.host("paris"));
    let evil: [(&str, Headers<'_>); 6] = [
        ("no proof", &[("Cookie", &old)]),
        ("an empty one", &[("Cookie", &old), ("X-CSRF-Token", "")]),
        ("a guess", &[("Cookie", &old), ("X-CSRF-Token", "A")]),
        ("another site", &[("Cookie", &old), ("X-CSRF-Token", &csrf), ("Origin", "https://evil.example")]),
        ("no site", &[("Cookie", &old), ("X-CSRF-Token", &csrf), ("Origin", "null")]),
        (
            "another organisation",
            &[("Cookie", &old), ("X-CSRF-Token", &csrf), ("Origin", "https://lyon.gmah.localhost")],
        ),
    ];
    for (what, headers) in evil {
        let refused = ask(&dev, "POST", "/api/v1/members", headers, member()).await;
        assert_eq!(seen(&refused), is(403, "csrf_failed"), "{what}");
    }
    let own = [("Cookie", old.as_str()), ("X-CSRF-Token", csrf.as_str()), ("Origin", origin.as_str())];
    assert_eq!(ask(&dev, "POST", "/api/v1/members", &own, member()).await.status, 201);
    // Of two cookies of one name nobody knows whose the second is.
    let twice = format!("{old}; __Host-gmah_access=x");
    assert_eq!(ask(&dev, "GET", "/api/v1/auth/me", &[("Cookie", &twice)], None).await.status, 401);
    // A bearer that is wrong is not saved by a cookie.
    let both = [("Cookie", old.as_str()), ("Authorization", "Bearer nobody")];
    assert_eq!(ask(&dev, "GET", "/api/v1/auth/me", &both, None).await.status, 401);
    // Paris's cookies are nobody's at lyon.
    let elsewhere =
        dev.client.send("GET", &dev.host("lyon"), "/api/v1/auth/me", &[("Cookie", &old)], None).await;
    assert_eq!(elsewhere.status, 401);

    let refreshed =
        ask(&dev, "POST", "/api/v1/auth/refresh", &[("Cookie", &old), ("Origin", &origin)], Some(json!({})))
            .await;
    assert_eq!(refreshed.status, 200, "{refreshed:?}");
    let new = jar(&cookies(&refreshed));
    assert_eq!(ask(&dev, "GET", "/api/v1/auth/me", &[("Cookie", &old)], None).await.status, 401);
    let csrf = text(&refreshed.json()["csrf_token"]).to_owned();
    let out =
        ask(&dev, "POST", "/api/v1/auth/logout", &[("Cookie", &new), ("X-CSRF-Token", &csrf)], None).await;
    assert_eq!(out.status, 204, "{out:?}");
    assert!(cookies(&out).iter().all(|c| c.contains("=; ") && c.contains("Max-Age=0")));
    assert_eq!(ask(&dev, "GET", "/api/v1/auth/me", &[("Cookie", &new)], None).await.status, 401);
    assert_eq!(ask(&dev, "POST", "/api/v1/auth/refresh", &[], Some(json!({}))).await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a01_keys_do_what_both_may() {
    let dev = Dev::start().await;
    let admin = dev.login("paris").await;
    let make = |token: &str, body: Value| {
        let (dev, token) = (&dev, token.to_owned());
        async move { by(dev, &token, "POST", "/api/v1/api-keys", Some(body)).await }
    };
    let later = json!("2999-01-01T00:00:00Z");
    let made = make(
        &admin,
        json!({"name": "books", "scopes": ["members.*", "loans.read"], "expires_at": later.clone()}),
    )
    .await;
    assert_eq!(made.status, 201, "{made:?}");
    assert_eq!(made.header("cache-control"), Some("private, no-store"));
    let (id, secret) = (text(&made.json()["id"]).to_owned(), text(&made.json()["secret"]).to_owned());
    assert!(secret.starts_with("gmahk_") && secret.len() == 49, "{secret}");
    let member = || Some(json!({"first_name": "Ada", "last_name": "Lovelace"}));
    assert_eq!(by(&dev, &secret, "POST", "/api/v1/members", member()).await.status, 201);
    assert_eq!(by(&dev, &secret, "GET", "/api/v1/loans", None).await.status, 200);
    let me = by(&dev, &secret, "GET", "/api/v1/auth/me", None).await.json();
    assert_eq!(me["permissions"], json!(["loans.read", "members.*"]));
    for (method, path, body) in [
        ("POST", "/api/v1/loans", None),
        ("GET", "/api/v1/users", None),
        ("GET", "/api/v1/audit", None),
        // What only a person does.
        ("POST", "/api/v1/auth/logout", None),
        ("GET", "/api/v1/auth/sessions", None),
        ("GET", "/api/v1/api-keys", None),
        ("POST", "/api/v1/api-keys", Some(json!({"name": "more", "scopes": ["members.read"]}))),
        ("POST", "/api/v1/auth/totp", Some(json!({"password": "x"}))),
    ] {
        let body = body.or_else(|| {
            (path == "/api/v1/loans")
                .then(|| json!({"member_id": id, "amount": 1, "currency": "EUR", "installments": 1}))
        });
        assert_eq!(
            seen(&by(&dev, &secret, method, path, body).await),
            is(403, "forbidden"),
            "{method} {path}"
        );
    }
    let listed = by(&dev, &admin, "GET", "/api/v1/api-keys", None).await;
    assert!(!listed.body.contains(&secret[6..]), "{listed:?}");
    assert!(listed.json()["items"][0]["last_used_at"].is_string(), "{listed:?}");
    assert_eq!(dev.get_as("lyon", "/api/v1/members", &secret).await.status, 401);
    for (bad, field) in [
        (json!({"name": "", "scopes": ["members.read"]}), "name"),
        (json!({"name": "x", "scopes": []}), "scopes"),
        (json!({"name": "x", "scopes": ["fly"]}), "scopes[0]"),
        (
            json!({"name": "x", "scopes": ["members.read"], "expires_at": "2001-01-01T00:00:00Z"}),
            "expires_at",
        ),
    ] {
        let refused = make(&admin, bad).await;
        assert_eq!((refused.status, text(&refused.json()["field"])), (422, field), "{refused:?}");
    }
    // Asked twice with one key, it is the same one, and its secret is nowhere in clear.
    let bearer = format!("Bearer {admin}");
    let again = [("Authorization", bearer.as_str()), ("Idempotency-Key", "once")];
    let body = || Some(json!({"name": "again", "scopes": ["members.read"]}));
    let first = ask(&dev, "POST", "/api/v1/api-keys", &again, body()).await;
    let second = ask(&dev, "POST", "/api/v1/api-keys", &again, body()).await;
    assert_eq!((first.status, first.json()), (201, second.json()));
    let stored = dev
        .value("gmah_org_paris", "select string_agg(i::text, '') || string_agg(encode(answer, 'escape'), '') from idempotency_keys i")
        .await;
    assert!(!stored.contains(&text(&first.json()["secret"])[6..]), "{stored}");
    // A user's rights end a key's.
    let mallory =
        json!({"email": "m@paris.example", "name": "M", "role": "manager", "password": "correct horse"});
    let mallory =
        text(&by(&dev, &admin, "POST", "/api/v1/users", Some(mallory)).await.json()["id"]).to_owned();
    let token = dev.login_as("paris", "m@paris.example", "correct horse").await;
    assert_eq!(make(&token, json!({"name": "x", "scopes": ["members.read"]})).await.status, 403);
    let role = json!({"key": "integrator", "title": "I", "permissions": ["keys.write", "members.*"]});
    assert_eq!(by(&dev, &admin, "POST", "/api/v1/roles", Some(role)).await.status, 201);
    let path = format!("/api/v1/users/{mallory}");
    assert_eq!(by(&dev, &admin, "PATCH", &path, Some(json!({"role": "integrator"}))).await.status, 200);
    let token = dev.login_as("paris", "m@paris.example", "correct horse").await;
    assert_eq!(
        make(&token, json!({"name": "x", "scopes": ["*"]})).await.status,
        403,
        "not more than the user"
    );
    let key = make(&token, json!({"name": "x", "scopes": ["members.*"]})).await.json();
    let key = text(&key["secret"]).to_owned();
    assert_eq!(by(&dev, &key, "POST", "/api/v1/members", member()).await.status, 201);
    let less = Some(json!({"permissions": ["keys.write", "members.read"]}));
    assert_eq!(by(&dev, &admin, "PATCH", "/api/v1/roles/integrator", less).await.status, 200);
    assert_eq!(by(&dev, &key, "POST", "/api/v1/members", member()).await.status, 403);
    assert_eq!(by(&dev, &key, "GET", "/api/v1/members", None).await.status, 200);
    assert_eq!(by(&dev, &admin, "PATCH", &path, Some(json!({"disabled": true}))).await.status, 200);
    assert_eq!(by(&dev, &key, "GET", "/api/v1/members", None).await.status, 401);
    // No more than fifty.
    let mut statuses = std::collections::BTreeSet::new();
    for _ in 0..51 {
        statuses.insert(make(&admin, json!({"name": "x", "scopes": ["members.read"]})).await.status);
    }
    assert_eq!(statuses, [201, 409].into());
    // Ended by its owner, and by nobody else.
    let path = format!("/api/v1/api-keys/{id}");
    assert_eq!(by(&dev, &admin, "DELETE", &path, None).await.status, 204);
    assert_eq!(by(&dev, &admin, "DELETE", &path, None).await.status, 404);
    assert_eq!(by(&dev, &secret, "GET", "/api/v1/members", None).await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a09_a_second_factor() {
    let dev = Dev::start().await;
    let admin = dev.login("paris").await;
    let body =
        json!({"email": "eva@paris.example", "name": "Eva", "role": "member", "password": "correct horse"});
    assert_eq!(by(&dev, &admin, "POST", "/api/v1/users", Some(body)).await.status, 201);
    let eva = dev.login_as("paris", "eva@paris.example", "correct horse").await;
    let login = |code: Option<&str>| {
        let mut body = json!({"email": "eva@paris.example", "password": "correct horse"});
        if let Some(code) = code {
            body["code"] = code.into();
        }
        let dev = &dev;
        async move { post(dev, "/api/v1/auth/login", body).await }
    };
    let early = by(&dev, &eva, "POST", "/api/v1/auth/totp/confirm", Some(json!({"code": "123456"}))).await;
    assert_eq!(seen(&early), is(409, "totp_not_begun"));
    let begin =
        |password: &str| by(&dev, &eva, "POST", "/api/v1/auth/totp", Some(json!({ "password": password })));
    assert_eq!(seen(&begin("wrong").await), is(401, "bad_credentials"));
    let begun = begin("correct horse").await;
    assert_eq!(begun.status, 201, "{begun:?}");
    let secret = text(&begun.json()["secret"]).to_owned();
    assert!(text(&begun.json()["uri"]).starts_with("otpauth://totp/"), "{begun:?}");
    // Not before it is confirmed.
    assert_eq!(login(None).await.status, 200);
    let device =
        Builder::new().with_secret(Secret::try_from_base32(&secret).expect("base32")).build().expect("TOTP");
    let now = || u64::try_from(time::OffsetDateTime::now_utc().unix_timestamp()).expect("after 1970");
    let code = |at: u64| device.generate(at).to_string();
    let wrong = Some(json!({"code": "000000"}));
    assert_eq!(
        seen(&by(&dev, &eva, "POST", "/api/v1/auth/totp/confirm", wrong).await),
        is(401, "bad_credentials")
    );
    let used = code(now());
    let confirmed =
        by(&dev, &eva, "POST", "/api/v1/auth/totp/confirm", Some(json!({ "code": used.clone() }))).await;
    assert_eq!(confirmed.status, 200, "{confirmed:?}");
    let codes: Vec<String> = confirmed.json()["recovery_codes"]
        .as_array()
        .expect("codes")
        .iter()
        .map(|c| text(c).to_owned())
        .collect();
    assert_eq!(codes.len(), 10);
    assert_eq!(seen(&login(None).await), is(401, "totp_required"));
    assert_eq!(seen(&login(Some("000000")).await), is(401, "bad_credentials"));
    assert_eq!(seen(&login(Some(&used)).await), is(401, "bad_credentials"), "each code once");
    // The next step's, within the skew.
    let next = code(now() + 30);
    assert_eq!(login(Some(&next)).await.status, 200);
    assert_eq!(seen(&login(Some(&next)).await), is(401, "bad_credentials"));
    assert_eq!(login(Some(&codes[0].to_uppercase())).await.status, 200);
    assert_eq!(seen(&login(Some(&codes[0])).await), is(401, "bad_credentials"));
    assert_eq!(seen(&begin("correct horse").await), is(409, "totp_active"));
    // The secret is sealed, for this user's row.
    let sealed = dev.value("gmah_org_paris", "select encode(secret, 'hex') from user_totp").await;
    let plain: String = Secret::try_from_base32(&secret)
        .expect("base32")
        .as_bytes()
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    assert!(!sealed.contains(&plain));
    let end = |code: String| by(&dev, &eva, "POST", "/api/v1/auth/totp/end", Some(json!({ "code": code })));
    assert_eq!(seen(&end("111111".into()).await), is(401, "bad_credentials"));
    assert_eq!(end(codes[1].clone()).await.status, 204);
    assert_eq!(seen(&end(codes[2].clone()).await), is(404, "not_found"));
    assert_eq!(login(None).await.status, 200);
    // Who has lost everything is helped by an administrator, and logged out everywhere.
    let begun = begin("correct horse").await;
    let secret = text(&begun.json()["secret"]).to_owned();
    let device =
        Builder::new().with_secret(Secret::try_from_base32(&secret).expect("base32")).build().expect("TOTP");
    let code = Some(json!({"code": device.generate(now()).to_string()}));
    assert_eq!(by(&dev, &eva, "POST", "/api/v1/auth/totp/confirm", code).await.status, 200);
    let id = text(&by(&dev, &eva, "GET", "/api/v1/auth/me", None).await.json()["id"]).to_owned();
    assert_eq!(seen(&login(None).await), is(401, "totp_required"));
    let path = format!("/api/v1/users/{id}/totp");
    let me = text(&by(&dev, &admin, "GET", "/api/v1/auth/me", None).await.json()["id"]).to_owned();
    let own = by(&dev, &admin, "DELETE", &format!("/api/v1/users/{me}/totp"), None).await;
    assert_eq!(seen(&own), is(403, "forbidden"), "one's own needs its code");
    assert_eq!(by(&dev, &admin, "DELETE", &path, None).await.status, 204);
    assert_eq!(by(&dev, &admin, "DELETE", &path, None).await.status, 404);
    assert_eq!(by(&dev, &eva, "GET", "/api/v1/auth/me", None).await.status, 401);
    assert_eq!(login(None).await.status, 200);
}

/// The key of an organisation is exchanged while it is used.
#[tokio::test(flavor = "multi_thread")]
async fn keys_of_an_organisation_are_exchanged() {
    let dev = Dev::start().await;
    let admin = dev.login("paris").await;
    let tenants = dev.info["tenants"].as_array().expect("tenants");
    let password = &tenants.iter().find(|t| t["slug"] == "paris").expect("paris")["admin_password"];
    let begun = by(&dev, &admin, "POST", "/api/v1/auth/totp", Some(json!({ "password": password }))).await;
    let secret = text(&begun.json()["secret"]).to_owned();
    let device =
        Builder::new().with_secret(Secret::try_from_base32(&secret).expect("base32")).build().expect("TOTP");
    let now = || u64::try_from(time::OffsetDateTime::now_utc().unix_timestamp()).expect("after 1970");
    let before = dev.value("gmah_org_paris", "select encode(secret, 'hex') from user_totp").await;
    // The wait is that of the catalog's configuration.
    let config = std::fs::read_to_string(text(&dev.info["config"])).expect("configuration");
    let quick = dev.folder().join("data/quick.toml");
    std::fs::write(&quick, format!("{config}\n[catalog]\nttl = \"1s\"\nmax_stale = \"2s\"\n"))
        .expect("written");
    let rotated =
        dev.cli_json(&["--config", &quick.display().to_string(), "key", "rotate", "data", "paris"]).await;
    assert_eq!((&rotated["version"], &rotated["resealed"]), (&json!(2), &json!(1)), "{rotated}");
    let after = dev.value("gmah_org_paris", "select encode(secret, 'hex') from user_totp").await;
    assert_ne!(before, after);
    assert_eq!(dev.value("gmah_master", "select count(*) from organization_keys k join organizations o on o.id = k.organization_id where slug = 'paris'").await, "1");
    let code = json!({"code": device.generate(now()).to_string()});
    assert_eq!(by(&dev, &admin, "POST", "/api/v1/auth/totp/confirm", Some(code)).await.status, 200);
    // Without the key nothing opens any more, in whatever copy.
    dev.cli_json(&["module", "enable", "paris", "patients"]).await;
    let patient =
        json!({"first_name": "Ada", "last_name": "x", "birth_date": "1915-12-10", "notes": "allergic"});
    let made = by(&dev, &admin, "POST", "/api/v1/patients", Some(patient)).await;
    assert_eq!(made.status, 201, "{made:?}");
    let record = format!("/api/v1/patients/{}", text(&made.json()["id"]));
    assert_eq!(by(&dev, &admin, "GET", &record, None).await.status, 200);
    dev.execute("gmah_master", "delete from organization_keys").await;
    let gone = || by(&dev, &admin, "GET", &record, None);
    eventually("it is gone", Duration::from_secs(5), gone, |a| a.status == 503).await;
    let code = json!({"code": device.generate(now() + 30).to_string()});
    assert_eq!(by(&dev, &admin, "POST", "/api/v1/auth/totp/end", Some(code)).await.status, 503);
}

/// what has expired opens nothing, whatever it was.
#[tokio::test(flavor = "multi_thread")]
async fn a01_what_has_expired_opens_nothing() {
    const DB: &str = "gmah_org_paris";
    let dev = Dev::start().await;
    let who = dev.info["tenants"]
        .as_array()
        .expect("tenants")
        .iter()
        .find(|t| t["slug"] == "paris")
        .expect("paris");
    let login = json!({"email": who["admin_email"], "password": who["admin_password"]});
    let tokens = dev.post("paris", "/api/v1/auth/login", &[], &login).await.json();
    let (access, refresh) =
        (text(&tokens["access_token"]), json!({"refresh_token": tokens["refresh_token"]}));
    let key = json!({"name": "books", "scopes": ["members.read"], "expires_at": "2999-01-01T00:00:00Z"});
    let key = by(&dev, access, "POST", "/api/v1/api-keys", Some(key)).await;
    let key = text(&key.json()["secret"]).to_owned();
    let list = async |token: &str| dev.get_as("paris", "/api/v1/members?limit=1", token).await.status;
    assert_eq!((list(access).await, list(&key).await), (200, 200));
    dev.execute(DB, "update sessions set access_expires_at = now() - interval '1 second'").await;
    dev.execute(DB, "update api_keys set expires_at = now() - interval '1 second'").await;
    assert_eq!((list(access).await, list(&key).await), (401, 401));
    // A login goes on with its other half, until that is over as well.
    let fresh = dev.post("paris", "/api/v1/auth/refresh", &[], &refresh).await;
    assert_eq!(fresh.status, 200, "{fresh:?}");
    let (access, refresh) = (fresh.json(), json!({"refresh_token": fresh.json()["refresh_token"]}));
    assert_eq!(list(text(&access["access_token"])).await, 200);
    dev.execute(DB, "update sessions set refresh_expires_at = now() - interval '1 second'").await;
    assert_eq!(dev.post("paris", "/api/v1/auth/refresh", &[], &refresh).await.status, 401);
    // And a link to choose a password.
    let forgotten = json!({"email": who["admin_email"]});
    assert_eq!(dev.post("paris", "/api/v1/auth/password/forgotten", &[], &forgotten).await.status, 202);
    let letter = letters(&dev, text(&who["admin_email"]), 1).await.remove(0);
    dev.execute(DB, "update account_links set expires_at = now() - interval '1 second'").await;
    let set = json!({"token": token(&letter, "reset"), "new_password": "another horse"});
    let refused = dev.post("paris", "/api/v1/auth/password/set", &[], &set).await;
    assert_eq!(refused.status, 422, "{refused:?}");
    assert_eq!(dev.post("paris", "/api/v1/auth/login", &[], &login).await.status, 200, "with the one before");
}
