//! Family S: what the client sends under our names. A recording backend shows each request as it arrived.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use crate::harness::http::{request, responses, status};
use crate::harness::origin::{Origin, Recorded, answer};
use crate::harness::{Dev, roles};

/// Claims of the one token that a request may carry.
fn claims(r: &Recorded) -> Value {
    let tokens = r.all("x-tenant-token");
    assert_eq!(tokens.len(), 1, "{}", r.head);
    let payload = tokens[0].split('.').nth(1).expect("payload");
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).expect("base64")).expect("JSON")
}

/// Everything that must hold of any request that reaches a backend.
fn oracle(r: &Recorded, slug: &str, host: &str) {
    let claims = claims(r);
    assert_eq!((claims["slug"].as_str(), claims["host"].as_str()), (Some(slug), Some(host)), "{}", r.head);
    assert_eq!(r.all("host"), [host], "{}", r.head);
    assert_eq!(r.all("x-forwarded-host"), [host]);
    assert_eq!(r.all("x-forwarded-proto"), ["https"]);
    assert_eq!(r.all("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(r.all("x-request-id").len(), 1);
    let ours = ["x-tenant-token", "x-forwarded-host", "x-forwarded-proto", "x-forwarded-for", "x-request-id"];
    for (name, value) in r.fields() {
        let folded = name.replace(['_', '.'], "-");
        let family =
            ["x-tenant", "x-gmah", "x-forwarded", "http-x-tenant"].iter().any(|p| folded.starts_with(p));
        assert!(!family || ours.contains(&name.as_str()), "{name}: {value}");
        assert!(!value.contains("EVIL"), "{name}: {value}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s01_to_s10_nothing_of_ours_gets_in() {
    let dev = Dev::start().await;
    let origin = Origin::ok().await;
    let (router, client) = roles::router(&dev, &[origin.address], |_, _| {}).await;
    let (paris, lyon) = (dev.host("paris"), dev.host("lyon"));

    // A real token of lyon, captured.
    client.get(&lyon, "/", &[]).await;
    let captured = origin.take().pop().expect("recorded").all("x-tenant-token").remove(0);

    for name in [
        "X-Tenant-Token",
        "x-tenant-token",
        "X-TENANT-TOKEN",
        "X_Tenant_Token",
        "X-Tenant_Token",
        "X.Tenant.Token",
        "HTTP_X_TENANT_TOKEN",
        "x_tenant_id",
        "X.Tenant.ID",
        "X-Tenant",
        "X-Tenant-Foo",
        "X-Gmah-Tenant",
        "X_Gmah_Stale",
        "X-Forwarded-Host",
        "X-Forwarded-For",
        "X-Forwarded-Proto",
        "X_Forwarded_For",
        "X-Forwarded-Prefix",
        "X-Forwarded-Uri",
        "X-Forwarded-Server",
        "X-Host",
        "X-Original-Host",
        "X-HTTP-Host-Override",
        "Forwarded",
        "X-Original-URL",
        "X-Rewrite-URL",
        "True-Client-IP",
        "X-Real-IP",
        "CF-Connecting-IP",
        "X-Request-Id",
        "X-HTTP-Method-Override",
        "Proxy",
    ] {
        for value in ["EVIL", captured.as_str()] {
            let seen = client.get(&paris, "/x", &[(name, value)]).await;
            assert_eq!(seen.status, 200, "{name}");
            let recorded = origin.take();
            assert_eq!(recorded.len(), 1, "{name}");
            oracle(&recorded[0], "paris", &paris);
            assert!(!recorded[0].head.contains(&captured), "{name}");
        }
        // The same over HTTP/2, where names are in lower case by nature.
        let h2 = client.http2(&paris).await;
        let asked =
            http::Request::get(format!("https://{paris}/x")).header(name, "EVIL").body(()).expect("request");
        assert_eq!(h2.send(asked, "").await.expect("answer").status, 200, "{name}");
        oracle(&origin.take()[0], "paris", &paris);
    }

    // Twice, and nominated by Connection: our token is set after both.
    for headers in [
        vec![("X-Tenant-Token", "EVIL"), ("X-Tenant-Token", "EVIL")],
        vec![("Connection", "close, X-Tenant-Token")],
        vec![("Connection", "x-tenant-token")],
        vec![("Connection", "x-tenant-token\t")],
        vec![("Connection", "X-Tenant-Token"), ("Connection", "close")],
        vec![("Connection", "X-Forwarded-Prefix, X-Custom"), ("X-Custom", "gone")],
    ] {
        let raw = client.raw(&paris, &request("GET", &paris, "/x", &headers, None)).await;
        assert_eq!(status(&raw), Some(200), "{headers:?}: {}", String::from_utf8_lossy(&raw));
        let recorded = origin.take();
        oracle(&recorded[0], "paris", &paris);
        assert!(recorded[0].all("x-custom").is_empty());
    }
    // S-07, S-09, S-10: nominations that would change what is asked for.
    for value in [
        "\"X-Tenant-Token\"",
        "Host",
        "X-Forwarded-For",
        "X-Forwarded-Host",
        "X-Forwarded-Proto",
        ":authority",
        "Authorization",
        "Cookie",
        "Content-Length",
        "X-Request-Id",
        "Idempotency-Key",
        "If-Match",
    ] {
        let raw = client.raw(&paris, &request("GET", &paris, "/x", &[("Connection", value)], None)).await;
        assert_eq!((status(&raw), responses(&raw)), (Some(400), 1), "{value}");
        assert!(origin.take().is_empty(), "{value}: reached the backend");
    }
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_the_clients_own_goes_through() {
    let dev = Dev::start().await;
    let origin = Origin::ok().await;
    let (router, client) = roles::router(&dev, &[origin.address], |_, _| {}).await;
    let paris = dev.host("paris");
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let headers = [
        ("traceparent", trace),
        ("Authorization", "Bearer abc"),
        ("Cookie", "a=b"),
        ("Idempotency-Key", "k"),
    ];
    let seen = client.send("POST", &paris, "/a/b%2Fc?x=1&y=%20", &headers, Some("{\"a\":1}")).await;
    assert_eq!(seen.status, 200);
    let r = origin.take().remove(0);
    oracle(&r, "paris", &paris);
    assert_eq!(r.target(), "/a/b%2Fc?x=1&y=%20");
    assert_eq!(r.body, b"{\"a\":1}");
    for (name, value) in headers {
        assert_eq!(r.all(&name.to_lowercase()), [value], "{name}");
    }
    // M-22: a target is never decoded into anything else.
    for target in
        ["/a%0d%0aX-Tenant-Token:%20b", "/..%2f..%2fadmin", "/%2e%2e/admin", "/admin;x=y", "/./admin"]
    {
        client.get(&paris, target, &[]).await;
        let r = origin.take().remove(0);
        oracle(&r, "paris", &paris);
        assert_eq!(r.target(), target);
    }
    // The token is minted once and reused.
    client.get(&paris, "/1", &[]).await;
    client.get(&paris, "/2", &[]).await;
    let two = origin.take();
    assert_eq!(two[0].all("x-tenant-token"), two[1].all("x-tenant-token"));
    assert_ne!(two[0].all("x-request-id"), two[1].all("x-request-id"));
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn neutral_hosts() {
    let dev = Dev::start().await;
    let origin = Origin::start(Box::new(|_| Some(answer(200, "Set-Cookie: a=b\r\n", "{}")))).await;
    let (router, client) = roles::router(&dev, &[origin.address], |_, _| {}).await;
    let (app, paris) = (dev.host("app"), dev.host("paris"));
    let seen = client.get(&app, "/x?a=1&tenant=lyon", &[("Cookie", "s=1")]).await;
    assert_eq!((seen.status, seen.header("set-cookie")), (200, None), "cookies stop here, both ways");
    let r = origin.take().remove(0);
    oracle(&r, "lyon", &app);
    assert_eq!((r.target().as_str(), r.all("cookie").len()), ("/x?a=1", 0));
    assert_eq!(client.get(&app, "/x", &[("X-Tenant-ID", "paris")]).await.status, 200);
    oracle(&origin.take()[0], "paris", &app);
    for (target, headers, want) in [
        ("/x?tenant=lyon", vec![("X-Tenant-ID", "paris")], 400),
        ("/x", vec![("X-Tenant-ID", "paris"), ("X-Tenant-ID", "lyon")], 400),
        ("/x?tenant=lyon&tenant=paris", vec![], 400),
        ("/x", vec![], 404),
        ("/x?tenant=nobody", vec![], 404),
        ("/x?tenant=ADMIN", vec![], 404),
        ("/x", vec![("X-Tenant-ID", "' or 1=1")], 404),
    ] {
        assert_eq!(client.get(&app, target, &headers).await.status, want, "{target} {headers:?}");
        assert!(origin.take().is_empty());
    }
    // Elsewhere nothing that a request says decides, and nothing that it says twice.
    let twice = [("X-Tenant-ID", "lyon"), ("X-Tenant-ID", "nice")];
    assert_eq!(client.get(&paris, "/x", &twice).await.status, 200);
    oracle(&origin.take()[0], "paris", &paris);
    assert_eq!(client.get(&dev.host("nobody"), "/x", &twice).await.status, 404);
    // And the parameter stays where it is.
    let seen = client.get(&paris, "/x?tenant=lyon", &[("X-Tenant-ID", "lyon")]).await;
    assert_eq!(seen.header("set-cookie"), Some("a=b"));
    let r = origin.take().remove(0);
    oracle(&r, "paris", &paris);
    assert_eq!(r.target(), "/x?tenant=lyon");
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s13_nothing_of_ours_gets_out() {
    let dev = Dev::start().await;
    let fields = "X-Tenant-Token: SECRET\r\nx_tenant_id: SECRET\r\nX-Internal-Db: SECRET\r\nServer: SECRET\r\n\
                  X-Gmah-Foo: SECRET\r\nX-Foo: SECRET\r\nConnection: X-Foo\r\nETag: \"e\"\r\n";
    let origin = Origin::start(Box::new(move |_| Some(answer(200, fields, "{}")))).await;
    let (router, client) = roles::router(&dev, &[origin.address], |_, _| {}).await;
    let seen = client.get(&dev.host("paris"), "/", &[]).await;
    assert_eq!((seen.status, seen.header("etag")), (200, Some("\"e\"")));
    assert!(seen.headers.iter().all(|(_, v)| !v.contains("SECRET")), "{seen:?}");
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r16_tried_again_only_where_nothing_can_run_twice() {
    let dev = Dev::start().await;
    // The first request on a connection is answered, the second kills it: a reused connection that was dead.
    let dying =
        Origin::start(Box::new(|r| (!r.target().ends_with("/die")).then(|| answer(200, "", "{}")))).await;
    let dead = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
    let (router, client) = roles::router(&dev, &[dead, dying.address], |_, c| {
        c.router.workers = gmah_shared::config::Within::new(1)
    })
    .await;
    let paris = dev.host("paris");
    // A backend that cannot be reached was sent nothing: the other one answers, for every method.
    for _ in 0..4 {
        assert_eq!(client.send("POST", &paris, "/x", &[], Some("{}")).await.status, 200);
    }
    assert_eq!(dying.take().len(), 4);
    assert_eq!(client.send("POST", &paris, "/die", &[], Some("{}")).await.status, 502);
    assert_eq!(dying.take().len(), 1, "a POST that may have run is not sent again");
    let seen = client.get(&paris, "/die", &[]).await;
    assert_eq!((seen.status, seen.code()), (502, "bad_gateway".into()));
    assert!((1..=3).contains(&dying.take().len()), "a GET is tried a bounded number of times");
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_generation_is_resolved_anew_once() {
    let dev = Dev::start().await;
    let first = std::sync::atomic::AtomicBool::new(true);
    let origin = Origin::start(Box::new(move |r| {
        let stale = r.target() == "/always" || first.swap(false, std::sync::atomic::Ordering::SeqCst);
        Some(if stale { answer(503, "X-Gmah-Stale: 9\r\n", "{}") } else { answer(200, "", "{}") })
    }))
    .await;
    let (router, client) = roles::router(&dev, &[origin.address], |_, _| {}).await;
    let paris = dev.host("paris");
    let loads = || {
        router
            .metrics
            .registry
            .gather()
            .iter()
            .find(|f| f.name() == "gmah_catalog_loads_total")
            .map_or(0.0, |f| f.get_metric().iter().map(|m| m.get_counter().get_value()).sum())
    };
    let seen = client.send("POST", &paris, "/once", &[], Some("{\"a\":1}")).await;
    assert_eq!(seen.status, 200, "refused before anything ran, so a POST is sent again");
    let recorded = origin.take();
    assert_eq!(recorded.len(), 2);
    assert_eq!(recorded[1].body, b"{\"a\":1}");
    assert_eq!(loads(), 2.0, "resolved anew");
    let seen = client.get(&paris, "/always", &[]).await;
    assert_eq!((seen.status, origin.take().len()), (503, 2), "once");
    assert!(seen.header("x-gmah-stale").is_none());
    router.stop().await;
}

/// C-01: the edge keeps no answer, whatever the backend says of its age: each host has its own, each time.
#[tokio::test(flavor = "multi_thread")]
async fn c01_no_answer_is_kept_for_anybody() {
    let dev = Dev::start().await;
    let origin = Origin::start(Box::new(|request| {
        let fields = "Cache-Control: public, max-age=3600, s-maxage=3600\r\nAge: 1\r\nETag: \"same\"\r\n";
        Some(answer(200, fields, &request.all("host").concat()))
    }))
    .await;
    let (router, client) = roles::router(&dev, &[origin.address], |_, _| {}).await;
    for _ in 0..3 {
        for slug in ["paris", "lyon", "hopital-central"] {
            let host = dev.host(slug);
            let seen = client.get(&host, "/style.css", &[]).await;
            assert_eq!((seen.status, seen.body.as_str()), (200, host.as_str()));
            let tagged = client.get(&host, "/style.css", &[("If-None-Match", "\"same\"")]).await;
            assert_eq!((tagged.status, tagged.body.as_str()), (200, host.as_str()), "C-10");
        }
    }
    assert_eq!(origin.take().len(), 18, "each was asked for");
    router.stop().await;
}
