//! The platform's own host: documentation for people, of no organisation, behind tokens of its own.

use std::process::Stdio;
use std::time::Duration;

use gmah_shared::token::{PlatformClaims, now_seconds};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::harness::Dev;
use crate::harness::dev::text;
use crate::tokens::Forger;

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_document_is_on_the_platforms_host() {
    let dev = Dev::start().await;
    for path in ["/", "/api/docs"] {
        let seen = dev.get("admin", path).await;
        assert_eq!((seen.status, seen.header("location")), (303, Some("/api/docs/")), "{path}: {seen:?}");
    }
    let page = dev.get("admin", "/api/docs/").await;
    assert!(page.status == 200 && page.body.contains("swagger-ui"), "{page:?}");
    assert!(page.header("content-security-policy").is_some_and(|v| v.contains("default-src 'none'")));
    assert!(page.header("x-request-id").is_some());
    let whole = dev.get("admin", "/api/openapi.json").await.json();
    for path in ["/api/v1/members", "/api/v1/patients"] {
        assert!(whole["paths"][path].is_object(), "{path}");
    }
    let port = dev.settings().public_https_port;
    assert_eq!(whole["servers"][0]["url"], format!("https://{{organisation}}.gmah.localhost:{port}"));
    // An organisation's own has its modules, and says nothing of others.
    let own = dev.get("paris", "/api/openapi.json").await.json();
    assert!(own["paths"]["/api/v1/patients"].is_null() && own["servers"].is_null());
    // Nothing of an organisation is here, and nothing of the platform is there.
    for (slug, path) in [
        ("admin", "/api/v1/tenant"),
        ("admin", "/api/v1/members"),
        ("admin", "/api/docs/nothing.js"),
        ("admin", "/api/docs/..%2f..%2fetc%2fpasswd"),
        ("admin", "/api/v1/admin"),
        ("paris", "/api/docs/"),
        ("paris", "/api/v1/admin"),
    ] {
        let seen = dev.get(slug, path).await;
        assert_eq!((seen.status, seen.code()), (404, "not_found".into()), "{slug} {path}: {seen:?}");
    }
    let seen = dev.post("admin", "/api/docs/", &[], &json!({})).await;
    assert_eq!(seen.status, 405, "{seen:?}");
    let other = [("X-Tenant-ID", "paris")];
    let seen = dev.client.send("GET", &dev.host("admin"), "/api/v1/tenant?tenant=paris", &other, None).await;
    assert_eq!(seen.status, 404, "nobody is chosen here: {seen:?}");
    let metrics = dev.metrics("admin").await;
    assert!(metrics.sum("gmah_router_tenant_requests_total", &["\"_other\""]) > 8.0);
    assert!(!metrics.0.contains("_platform"), "which is no organisation");
    assert_eq!(dev.metrics("api_admin").await.sum("gmah_api_tenant_requests_total", &["platform"]), 0.0);
}

/// K-08: a token is for one audience.
#[tokio::test(flavor = "multi_thread")]
async fn k08_tokens_of_the_platform_and_of_organisations() {
    let dev = Dev::start().await;
    let f = Forger::new(&dev).await;
    let (paris, admin) = (dev.host("paris"), dev.host("admin"));
    let good = f.sign(&f.claims());
    let now = now_seconds();
    let claims = PlatformClaims {
        iss: "gmah-router".into(),
        aud: "gmah-platform".into(),
        host: "admin.gmah.localhost".into(),
        iat: now,
        exp: now + 50,
    };
    let sign = |claims: &Value| f.sign(claims);
    let platform = sign(&json!(claims));
    let served = f.ask(&admin, &[("X-Tenant-Token", &platform)]).await;
    assert_eq!(served.status, 404, "{served:?}");
    let mut cases = vec![
        ("an organisation's", admin.clone(), good.clone()),
        ("the platform's", paris.clone(), platform.clone()),
        ("none", admin.clone(), String::new()),
    ];
    let mut of_admin = f.claims();
    of_admin["host"] = json!("admin.gmah.localhost");
    cases.push(("an organisation's, for this host", admin.clone(), sign(&of_admin)));
    of_admin["aud"] = json!("gmah-platform");
    cases.push(("with claims of an organisation", paris.clone(), sign(&of_admin)));
    for (claim, value) in [
        ("host", json!("paris.gmah.localhost")),
        ("host", json!("ADMIN.gmah.localhost")),
        ("aud", json!("gmah-api")),
        ("iss", json!("somebody")),
        ("exp", json!(now - 6)),
        ("exp", json!(now + 61)),
        ("iat", json!(now + 30)),
        ("exp", Value::Null),
    ] {
        let mut other = json!(claims);
        other[claim] = value;
        cases.push((claim, admin.clone(), sign(&other)));
    }
    for (what, host, token) in cases {
        f.refused(what, f.ask(&host, &[("X-Tenant-Token", &token)]).await).await;
    }
    let twice = [("X-Tenant-Token", &*platform), ("X-Tenant-Token", &*platform)];
    f.refused("twice", f.ask(&admin, &twice).await).await;
}

/// What a browser makes of a page of the platform's host, and what it says about it.
pub(crate) async fn browse(dev: &Dev, path: &str) -> (String, String) {
    let https = text(&dev.info["https"]);
    let port = https.rsplit(':').next().expect("port");
    let profile = dev.folder().join("chromium");
    let run = Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--dump-dom"])
        .args(["--ignore-certificate-errors", "--virtual-time-budget=20000", "--enable-logging=stderr"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(format!("--host-resolver-rules=MAP * 127.0.0.1:{port}"))
        .arg(format!("https://admin.gmah.localhost:{port}{path}"))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let out = tokio::time::timeout(Duration::from_secs(60), run).await.expect("in time").expect("chromium");
    let (dom, log) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    (dom.into_owned(), log.into_owned())
}

/// In a browser: what it draws, with the policy that the page has.
#[tokio::test(flavor = "multi_thread")]
async fn a_browser_shows_the_document() {
    let dev = Dev::start().await;
    let (dom, log) = browse(&dev, "/").await;
    for shown in ["opblock-tag-section", "Let a patient go", "/api/v1/members", "free-loan society"] {
        assert!(dom.contains(shown), "{shown} is not in the page:\n{dom}\n{log}");
    }
    assert!(!log.contains("Content Security Policy"), "{log}");
}
