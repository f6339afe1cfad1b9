//! Family K: tokens thrown at the api itself, past the router.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
use gmah_shared::catalog::Store;
use gmah_shared::pg;
use gmah_shared::token::{Signer, now_seconds};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::harness::dev::{address, text};
use crate::harness::http::{exchange, request};
use crate::harness::{Answer, Dev};

/// Speaks to the api as the router would, with the platform's own key.
pub(crate) struct Forger {
    api: std::net::SocketAddr,
    signer: Signer,
    paris: Value,
    lyon: Value,
    hosts: [String; 2],
}

impl Forger {
    pub(crate) async fn new(dev: &Dev) -> Self {
        let settings = dev.settings();
        let pool = pg::pool(&settings.master, "test").expect("pool");
        let store = Store::new(pool, settings.master_key.clone(), Duration::from_secs(5));
        let ring = store.keyring(true).await.expect("keys");
        Self {
            api: address(&dev.info["api"]),
            signer: Signer::new(Arc::new(ArcSwap::from_pointee(ring))),
            paris: dev.get("paris", "/api/v1/tenant").await.json(),
            lyon: dev.get("lyon", "/api/v1/tenant").await.json(),
            hosts: [dev.host("paris"), dev.host("lyon")],
        }
    }

    pub(crate) fn claims(&self) -> Value {
        let now = now_seconds();
        json!({"iss": "gmah-router", "aud": "gmah-api", "sub": self.paris["id"], "slug": "paris",
               "host": self.hosts[0], "gen": self.paris["generation"], "iat": now, "exp": now + 50})
    }

    pub(crate) fn sign(&self, claims: &Value) -> String {
        self.signer.sign_claims(claims).expect("signed")
    }

    pub(crate) async fn ask(&self, host: &str, headers: &[(&str, &str)]) -> Answer {
        let mut stream = TcpStream::connect(self.api).await.expect("connect");
        exchange(&mut stream, &request("GET", host, "/api/v1/tenant", headers, None)).await
    }

    async fn with_token(&self, token: &str) -> Answer {
        self.ask(&self.hosts[0], &[("X-Tenant-Token", token)]).await
    }

    pub(crate) async fn refused(&self, what: &str, seen: Answer) {
        assert_eq!((seen.status, seen.code()), (401, "invalid_tenant_token".into()), "{what}: {seen:?}");
        assert!(!seen.body.contains("paris") && !seen.body.contains("lyon"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn k01_to_k16_crafted_tokens() {
    let dev = Dev::start().await;
    let f = Forger::new(&dev).await;
    let good = f.sign(&f.claims());
    assert_eq!(f.with_token(&good).await.slug(), (200, "paris".into()));

    f.refused("S-12: none", f.ask(&f.hosts[0], &[]).await).await;
    let two = [("X-Tenant-Token", good.as_str()), ("X-Tenant-Token", good.as_str())];
    f.refused("K-13: twice", f.ask(&f.hosts[0], &two).await).await;
    f.refused("K-13: as a bearer", f.ask(&f.hosts[0], &[("Authorization", &good)]).await).await;
    f.refused("K-13: in a cookie", f.ask(&f.hosts[0], &[("Cookie", &good)]).await).await;
    for (path, body) in [
        (format!("/api/v1/tenant?X-Tenant-Token={good}"), None),
        (format!("/api/v1/tenant?token={good}"), None),
        ("/api/v1/auth/login".to_owned(), Some(json!({"X-Tenant-Token": good, "token": good}).to_string())),
    ] {
        let mut stream = TcpStream::connect(f.api).await.expect("connect");
        let method = if body.is_some() { "POST" } else { "GET" };
        let bytes = request(method, &f.hosts[0], &path, &[], body.as_deref());
        f.refused("K-13: in a query, in a body", exchange(&mut stream, &bytes).await).await;
    }
    f.refused("K-09: another host", f.ask(&f.hosts[1], &[("X-Tenant-Token", &good)]).await).await;

    let payload = B64.encode(f.claims().to_string());
    let kid = B64.decode(good.split('.').next().expect("header")).expect("base64");
    let kid: Value = serde_json::from_slice(&kid).expect("JSON");
    for alg in ["none", "None", "nOnE", "HS256", "ES256", "RS256", "PS256", "EdDSA"] {
        let header = B64.encode(json!({"alg": alg, "typ": "JWT", "kid": kid["kid"]}).to_string());
        for signature in ["", &"A".repeat(86)] {
            f.refused(alg, f.with_token(&format!("{header}.{payload}.{signature}")).await).await;
        }
    }
    for kid in ["unknown", "../../etc/passwd", "' OR 1=1--", "http://127.0.0.1:1/jwks"] {
        let header = B64.encode(json!({"alg": "EdDSA", "typ": "JWT", "kid": kid}).to_string());
        let signature = good.rsplit('.').next().expect("signature");
        f.refused(kid, f.with_token(&format!("{header}.{payload}.{signature}")).await).await;
    }
    let now = now_seconds();
    for (claim, value) in [
        ("exp", json!(now - 6)),
        ("exp", json!(now + 61)),
        ("exp", json!("9999999999")),
        ("exp", json!(1e99)),
        ("exp", json!(null)),
        ("iat", json!(now + 30)),
        ("aud", json!("gmah-platform")),
        ("iss", json!("somebody")),
        ("sub", json!("paris")),
        ("sub", json!(uuid::Uuid::new_v4())),
        ("sub", f.lyon["id"].clone().as_str().map_or(json!(null), |_| json!(["x"]))),
        ("host", json!(f.hosts[1])),
        ("slug", json!("admin")),
        ("gen", json!("2")),
    ] {
        let mut claims = f.claims();
        claims[claim] = value.clone();
        f.refused(&format!("{claim} {value}"), f.with_token(&f.sign(&claims)).await).await;
        let mut without = f.claims();
        without.as_object_mut().expect("object").remove(claim);
        f.refused(&format!("without {claim}"), f.with_token(&f.sign(&without)).await).await;
    }
    // K-15: one bit anywhere.
    for at in (0..good.len()).step_by(3) {
        let mut bytes = good.clone().into_bytes();
        bytes[at] ^= 1;
        let flipped = String::from_utf8(bytes).expect("ASCII");
        if flipped.bytes().all(|b| b.is_ascii_graphic()) {
            f.refused(&format!("bit at {at}"), f.with_token(&flipped).await).await;
        }
    }
    f.refused("long", f.with_token(&"A".repeat(3000)).await).await;
    // No tenant's database was touched by any of it.
    let metrics = dev.metrics("api_admin").await;
    assert_eq!(metrics.sum("gmah_api_pool_connections", &[]), 0.0, "{}", metrics.0);
    assert!(metrics.sum("gmah_api_tokens_total", &["refused"]) > 100.0);
    assert_eq!(f.with_token(&good).await.slug(), (200, "paris".into()), "and it still serves");
    assert!(!dev.log().contains("eyJ"), "K-19: a token in the log");
}

/// K-10, what is promised: a token says for which organisation and host, and until when; whoever has it may use it for
/// that, at every api, until then and not after.
#[tokio::test(flavor = "multi_thread")]
async fn k10_a_token_is_good_until_it_ends() {
    let dev = Dev::start().await;
    let f = Forger::new(&dev).await;
    let other = crate::harness::roles::api(&dev, |_, _| {}).await;
    let mut claims = f.claims();
    claims["exp"] = json!(now_seconds() + 4);
    let token = f.sign(&claims);
    let ask = |api: std::net::SocketAddr, host: &str| {
        let bytes = request("GET", host, "/api/v1/tenant", &[("X-Tenant-Token", token.as_str())], None);
        async move { exchange(&mut TcpStream::connect(api).await.expect("connect"), &bytes).await }
    };
    for api in [f.api, other.address, f.api] {
        assert_eq!(ask(api, &f.hosts[0]).await.slug(), (200, "paris".into()));
        f.refused("at another host", ask(api, &f.hosts[1]).await).await;
    }
    for api in [f.api, other.address] {
        let ended = || ask(api, &f.hosts[0]);
        crate::harness::eventually("ended", Duration::from_secs(15), ended, |a| a.status == 401).await;
        f.refused("and for ever", ask(api, &f.hosts[0]).await).await;
    }
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn generations_older_newer_and_of_a_suspended_tenant() {
    let dev = Dev::start().await;
    let f = Forger::new(&dev).await;
    let generation = f.paris["generation"].as_i64().expect("generation");
    let at = |n: i64| {
        let mut claims = f.claims();
        claims["gen"] = json!(n);
        f.sign(&claims)
    };
    let older = f.with_token(&at(generation - 1)).await;
    assert_eq!((older.status, older.header("x-gmah-stale")), (503, Some(generation.to_string().as_str())));
    assert!(older.header("retry-after").is_some());
    let newer = f.with_token(&at(generation + 1)).await;
    assert_eq!((newer.status, newer.header("x-gmah-stale")), (503, None), "reloaded, and still not known");

    // The api refuses by itself, whatever the router may believe.
    assert!(dev.cli(&["tenant", "suspend", "paris"]).await.status.success());
    let next = at(generation + 1);
    let suspended = crate::harness::eventually(
        "the api refuses the new generation",
        Duration::from_secs(5),
        || f.with_token(&next),
        |a| a.status == 403,
    )
    .await;
    assert_eq!(suspended.code(), "organization_suspended");
    assert_eq!(f.with_token(&at(generation)).await.status, 503, "the old generation is stale");
}

/// K-12: what opened an organisation opens nothing at another one that has its slug now.
#[tokio::test(flavor = "multi_thread")]
async fn k12_what_was_the_former_organisations_opens_nothing_at_its_namesake() {
    let dev = Dev::start().await;
    let f = Forger::new(&dev).await;
    let mut claims = f.claims();
    claims["sub"] = f.lyon["id"].clone();
    claims["slug"] = json!("lyon");
    claims["host"] = json!(f.hosts[1]);
    claims["gen"] = f.lyon["generation"].clone();
    let of = |claims: &Value| {
        let (token, f) = (f.sign(claims), &f);
        async move { f.ask(&f.hosts[1], &[("X-Tenant-Token", &token)]).await }
    };
    assert_eq!(of(&claims).await.slug(), (200, "lyon".into()));
    let who =
        dev.info["tenants"].as_array().expect("tenants").iter().find(|t| t["slug"] == "lyon").expect("lyon");
    let login = json!({"email": who["admin_email"], "password": who["admin_password"]});
    let tokens = dev.post("lyon", "/api/v1/auth/login", &[], &login).await.json();
    let access = tokens["access_token"].as_str().expect("token").to_owned();
    assert_eq!(dev.get_as("lyon", "/api/v1/auth/me", &access).await.status, 200);

    dev.cli_json(&["tenant", "delete", "lyon", "--yes-delete", "lyon", "--grace", "0s"]).await;
    dev.create("lyon").await;
    let served = || async { dev.get("lyon", "/api/v1/tenant").await };
    let now =
        crate::harness::eventually("its namesake", Duration::from_secs(5), served, |a| a.status == 200).await;
    assert_ne!(now.json()["id"], f.lyon["id"]);
    // Whatever generation it claims, its own of now included.
    for generation in [f.lyon["generation"].clone(), now.json()["generation"].clone(), json!(99)] {
        claims["gen"] = generation;
        f.refused("the former id", of(&claims).await).await;
    }
    assert_eq!(dev.get_as("lyon", "/api/v1/auth/me", &access).await.status, 401);
    let refresh = json!({"refresh_token": tokens["refresh_token"]});
    assert_eq!(dev.post("lyon", "/api/v1/auth/refresh", &[], &refresh).await.status, 401);
    assert_eq!(dev.post("lyon", "/api/v1/auth/login", &[], &login).await.status, 401);
}

/// An api that has no key knows nothing of any token, good or bad.
#[tokio::test(flavor = "multi_thread")]
async fn without_keys_nobody_is_told_that_a_token_is_bad() {
    let dev = Dev::start().await;
    let f = Forger::new(&dev).await;
    let token = f.sign(&f.claims());
    assert_eq!(f.with_token(&token).await.status, 200);
    dev.execute("gmah_master", "delete from signing_keys").await;
    let asked = || f.with_token(&token);
    let wait = Duration::from_secs(5);
    let seen = crate::harness::eventually("without keys", wait, asked, |a| a.status != 200).await;
    assert_eq!((seen.status, seen.code()), (503, "unavailable".into()), "{seen:?}");
}

/// K-18: keys overlap, and a removed one is refused.
#[tokio::test(flavor = "multi_thread")]
async fn k18_rotation_without_a_failed_request() {
    let dev = Dev::start().await;
    let f = Forger::new(&dev).await;
    let key = gmah_shared::token::SigningKey::generate().expect("key");
    let sealed =
        dev.settings().master_key.seal(&format!("signing_keys/{}", key.kid()), key.pkcs8()).expect("sealed");
    let master = dev.superuser("gmah_master").await;
    let insert = "insert into signing_keys (kid, public_key, private_key, state) values ($1, $2, $3, 'next')";
    master.execute(insert, &[&key.kid(), &&key.public()[..], &sealed]).await.expect("next");
    let ok = |what: &'static str| {
        let dev = &dev;
        async move { assert_eq!(dev.get("paris", "/api/v1/tenant").await.status, 200, "{what}") }
    };
    let jwks = || async {
        crate::harness::http::plain(address(&dev.info["admin"]), "/.well-known/jwks.json").await.json()["keys"]
            .as_array()
            .map_or(0, Vec::len)
    };
    crate::harness::eventually("two keys", Duration::from_secs(5), jwks, |n| *n == 2).await;
    for _ in 0..20 {
        ok("next").await;
    }
    master
        .batch_execute(&format!(
            "begin; update signing_keys set state = 'retired', retired_at = now() where state = 'active';
             update signing_keys set state = 'active' where kid = '{}'; commit",
            key.kid()
        ))
        .await
        .expect("switched");
    for _ in 0..50 {
        ok("switched").await;
    }
    let old = f.sign(&f.claims());
    assert_eq!(f.with_token(&old).await.status, 200, "the old key verifies on");
    master
        .execute(
            "update signing_keys set retired_at = now() - interval '1 hour' where state = 'retired'",
            &[],
        )
        .await
        .expect("dead");
    crate::harness::eventually(
        "the old key is refused",
        Duration::from_secs(5),
        || f.with_token(&old),
        |a| a.status == 401,
    )
    .await;
    assert_eq!(text(&dev.get("paris", "/api/v1/tenant").await.json()["slug"]), "paris");
}
