//! Manners of HTTP: languages, compression, the document, and sums that may be a little old.

use std::time::Duration;

use gmah_api::routes::TABLE;
use serde_json::{Value, json};

use crate::harness::dev::text;
use crate::harness::redis::Redis;
use crate::harness::{Dev, roles};

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_in_the_readers_language() {
    let dev = Dev::start().await;
    let host = dev.host("paris");
    let fr = dev.client.get(&host, "/api/v1/auth/me", &[("Accept-Language", "fr-FR, en;q=0.5")]).await;
    assert_eq!(
        (text(&fr.json()["title"]), fr.code()),
        ("Veuillez vous connecter.", "unauthenticated".into())
    );
    assert_eq!(fr.header("content-language"), Some("fr"));
    assert!(fr.headers.iter().any(|(n, v)| n == "vary" && v == "accept-language"), "{fr:?}");
    let de = dev.client.get(&host, "/api/v1/auth/me", &[("Accept-Language", "de")]).await;
    assert_eq!((text(&de.json()["title"]), de.header("content-language")), ("Please log in.", Some("en")));
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_compressed_for_who_wants_it() {
    let dev = Dev::start().await;
    let token = dev.login("paris").await;
    let bearer = format!("Bearer {token}");
    let host = dev.host("paris");
    let plain = dev.get_as("paris", "/api/v1/members?limit=200", &token).await;
    assert_eq!(plain.header("content-encoding"), None);
    for encoding in ["gzip", "br", "zstd"] {
        let headers = [("Authorization", bearer.as_str()), ("Accept-Encoding", encoding)];
        let seen = dev.client.get(&host, "/api/v1/members?limit=200", &headers).await;
        assert_eq!((seen.status, seen.header("content-encoding")), (200, Some(encoding)));
        assert!(seen.body.len() < plain.body.len(), "{encoding}");
    }
    let refused = [("Authorization", bearer.as_str()), ("Accept-Encoding", "gzip;q=0, identity")];
    let seen = dev.client.get(&host, "/api/v1/members?limit=200", &refused).await;
    assert_eq!((seen.header("content-encoding"), seen.body.len()), (None, plain.body.len()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_document_is_of_what_the_organisation_has() {
    let dev = Dev::start().await;
    let document = dev.get("paris", "/api/openapi.json").await;
    assert_eq!((document.status, document.header("content-type")), (200, Some("application/json")));
    let paths = document.json()["paths"].clone();
    for route in TABLE {
        let is_there = paths[route.path].get(route.method.to_lowercase()).is_some();
        assert_eq!(is_there, route.module != Some("patients"), "{route:?}");
    }
    dev.cli_json(&["module", "enable", "paris", "patients"]).await;
    let has = || async {
        dev.get("paris", "/api/openapi.json").await.json()["paths"]["/api/v1/patients"].is_object()
    };
    crate::harness::eventually("the module", Duration::from_secs(5), has, |is| *is).await;
    assert!(
        dev.get("hopital-central", "/api/openapi.json").await.json()["paths"].get("/api/v1/loans").is_none()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a13_sums_are_kept_for_a_while_and_are_right_without_a_cache() {
    let dev = Dev::start().await;
    let (paris, lyon) = (dev.login("paris").await, dev.login("lyon").await);
    let redis = Redis::start().await;
    let url = redis.url();
    let api = roles::api(&dev, |_, c| c.cache.address = Some(url.into())).await;
    let (router, client) = roles::router(&dev, &[api.address], |_, _| {}).await;
    let overview = async |slug: &str, token: &str| -> Value {
        let bearer = format!("Bearer {token}");
        let host = dev.host(slug);
        let seen = client.get(&host, "/api/v1/overview/loans", &[("Authorization", &bearer)]).await;
        assert_eq!(seen.status, 200, "{seen:?}");
        seen.json()
    };
    // Another number, so that one organisation's sums are not taken for another's.
    dev.execute("gmah_org_lyon", "delete from members where id = (select max(id::text)::uuid from members)")
        .await;
    let first = overview("paris", &paris).await;
    assert_eq!((&first["members"], &first["outstanding"]), (&json!(240), &json!([])));
    let member = json!({"first_name": "Ada", "last_name": "Lovelace"});
    let bearer = format!("Bearer {paris}");
    let auth = [("Authorization", bearer.as_str())];
    let id = dev.post("paris", "/api/v1/members", &auth, &member).await.json()["id"].clone();
    let loan = json!({"member_id": id, "amount": 1000, "currency": "EUR", "installments": 1});
    let loan = text(&dev.post("paris", "/api/v1/loans", &auth, &loan).await.json()["id"]).to_owned();
    assert_eq!(
        dev.client
            .send("POST", &dev.host("paris"), &format!("/api/v1/loans/{loan}/approve"), &auth, None)
            .await
            .status,
        200
    );
    for (direction, amount) in [("out", 1000), ("in", 300)] {
        let body = json!({"direction": direction, "amount": amount});
        assert_eq!(
            dev.post("paris", &format!("/api/v1/loans/{loan}/payments"), &auth, &body).await.status,
            201
        );
    }
    assert_eq!(overview("paris", &paris).await, first, "as it was kept");
    assert_eq!(overview("lyon", &lyon).await["members"], json!(239), "A-13");
    // With Redis away it is computed.
    let address = redis.stop().await;
    let now = overview("paris", &paris).await;
    assert_eq!(
        (&now["members"], &now["active_loans"], &now["outstanding"]),
        (&json!(241), &json!(1), &json!([{"amount": 700, "currency": "EUR"}]))
    );
    // And kept again when it is back.
    let _redis = Redis::start_at(address).await;
    let kept = || async { (overview("paris", &paris).await, overview("paris", &paris).await) };
    crate::harness::eventually("kept again", Duration::from_secs(20), kept, |(a, b)| a == b).await;
    router.stop().await;
    api.stop().await;
}

/// A-19, C-10: reading changes nothing, no header makes it something else, and a tag is one organisation's.
#[tokio::test(flavor = "multi_thread")]
async fn a19_c10_methods_and_tags() {
    let dev = Dev::start().await;
    let (paris, lyon) = (dev.login("paris").await, dev.login("lyon").await);
    let bearer = format!("Bearer {paris}");
    let host = dev.host("paris");
    let mut tried = 0;
    for route in TABLE {
        let has = |method: &str| TABLE.iter().any(|r| r.path == route.path && r.method == method);
        let path = ["{id}", "{payment}", "{key}"]
            .iter()
            .fold(route.path.to_owned(), |p, name| p.replace(name, "018f0000-0000-7000-8000-000000000000"));
        // Closed by the server when it has answered, which is how the end of an answer without a body is seen.
        let auth = [("Authorization", bearer.as_str()), ("Connection", "close")];
        for method in ["OPTIONS", "HEAD"] {
            let seen = dev
                .client
                .raw(&host, &crate::harness::http::request(method, &host, &path, &auth, None))
                .await;
            let status = crate::harness::http::status(&seen);
            let is_read = method == "HEAD" && has("GET");
            assert_eq!(status == Some(405), !is_read, "{method} {path}: {status:?}");
            tried += 1;
        }
    }
    assert!(tried > 100, "{tried}");
    let count = "select count(*) from members";
    let before = dev.value("gmah_org_paris", count).await;
    for (path, header) in [
        ("/api/v1/members", ("X-HTTP-Method-Override", "POST")),
        ("/api/v1/members", ("X-Method-Override", "DELETE")),
    ] {
        let seen = dev.client.get(&host, path, &[("Authorization", &bearer), header]).await;
        assert_eq!(seen.status, 200);
    }
    assert_eq!(
        dev.client.get(&host, "/api/v1/members?_method=POST", &[("Authorization", &bearer)]).await.status,
        400
    );
    assert_eq!(dev.value("gmah_org_paris", count).await, before);
    // Both have the same settings, and each its own tag of them.
    let own = dev.get_as("paris", "/api/v1/settings/loans", &paris).await;
    let tag = own.header("etag").expect("a tag").to_owned();
    let ask = async |slug: &str, token: &str| {
        let bearer = format!("Bearer {token}");
        let headers = [("Authorization", bearer.as_str()), ("If-None-Match", tag.as_str())];
        dev.client.get(&dev.host(slug), "/api/v1/settings/loans", &headers).await
    };
    assert_eq!(ask("paris", &paris).await.status, 304);
    let others = ask("lyon", &lyon).await;
    assert_eq!((others.status, &others.body), (200, &own.body));
}
