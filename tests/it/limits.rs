//! What a tenant may have of the edge, and what its clients see while it is worked on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use gmah_router::config::{RouterConfig, SharedLimits};
use gmah_shared::tasks;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;

use crate::bounds;
use crate::harness::dev::{Metrics, text};
use crate::harness::http::{Answer, Client, exchange, plain, request};
use crate::harness::origin::Origin;
use crate::harness::redis::Redis;
use crate::harness::{Dev, eventually, roles};

/// Sends `n` requests on one connection; how many were served, and the first refusal.
async fn burst(client: &Client, host: &str, n: usize) -> (usize, Option<Answer>) {
    let mut stream = client.connect(host).await;
    let (mut served, mut refused) = (0, None);
    for _ in 0..n {
        let answer = exchange(&mut stream, &request("GET", host, "/x", &[], None)).await;
        if answer.status == 200 {
            served += 1;
        } else {
            refused.get_or_insert(answer);
        }
    }
    (served, refused)
}

async fn set(dev: &Dev, slug: &str, words: &[&str]) {
    let out = dev.cli(&[&["tenant", "set", slug], words].concat()).await;
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn r15_a_tenant_over_its_limits_is_alone_with_it() {
    let dev = Dev::start().await;
    let origin = Origin::ok().await;
    let (router, client) = roles::router(&dev, &[origin.address], |_, _| {}).await;
    let (paris, lyon) = (dev.host("paris"), dev.host("lyon"));
    assert_eq!(burst(&client, &paris, 100).await.0, 100, "no limit in the plan");
    set(&dev, "paris", &["limits.requests_per_second=5", "limits.request_burst=20"]).await;
    let limited = || async { burst(&client, &paris, 60).await };
    let (served, refused) = eventually("a limit", Duration::from_secs(3), limited, |(n, _)| *n < 60).await;
    assert!((10..40).contains(&served), "{served}");
    let refused = refused.expect("refused");
    assert_eq!((refused.status, refused.code()), (429, "too_many_requests".into()));
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(burst(&client, &lyon, 100).await.0, 100, "nobody else's trouble");
    // The counters outlive the entry of the cache: any change ends it, and no new burst comes with the next one.
    set(&dev, "paris", &["branding.name=Paris"]).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(burst(&client, &paris, 60).await.0 < 15);
    assert!(dev.cli(&["tenant", "set", "paris", "limits.request_burst=0"]).await.status.code() == Some(2));

    // A body of its own size.
    set(&dev, "paris", &["limits.requests_per_second=default", "limits.max_body_bytes=1000"]).await;
    let post = |host: String, n: usize| {
        let client = client.clone();
        async move { client.send("POST", &host, "/x", &[], Some(&"x".repeat(n))).await.status }
    };
    eventually("a body too large", Duration::from_secs(3), || post(paris.clone(), 1001), |s| *s == 413).await;
    assert_eq!((post(paris.clone(), 1000).await, post(lyon.clone(), 5000).await), (200, 200));
    let show = dev.cli_json(&["tenant", "show", "paris"]).await;
    assert_eq!(show["limits"], serde_json::json!({"request_burst": 20, "max_body_bytes": 1000}));
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_in_flight_have_a_limit() {
    let dev = Dev::start().await;
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let (router, client) = roles::router(&dev, &[silent.local_addr().expect("address")], |_, _| {}).await;
    let paris = dev.host("paris");
    set(&dev, "paris", &["limits.concurrent_requests=3"]).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let h2 = client.http2(&paris).await;
    let mut flying = Vec::new();
    for _ in 0..3 {
        let (h2, paris) = (h2.clone(), paris.clone());
        flying.push(tasks::detach("in-flight", async move { h2.get(&paris, "/x").await }));
    }
    // One that came before them would take a place and give it back.
    tokio::time::sleep(Duration::from_millis(700)).await;
    let ask = || async { tokio::time::timeout(Duration::from_millis(500), h2.get(&paris, "/x")).await };
    let refused = eventually("too many", Duration::from_secs(3), ask, |a| a.is_ok()).await;
    let refused = refused.expect("at once").expect("answer");
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")));
    let seen = Metrics(plain(router.admin, "/metrics").await.body);
    assert_eq!(seen.sum("gmah_router_rejections_total", &["too_many_concurrent"]), 1.0);
    // Cancelled by the client: the places are free again.
    drop(h2);
    flying.iter().for_each(tokio::task::JoinHandle::abort);
    drop(flying);
    let other = client.http2(&paris).await;
    let waits =
        || async { tokio::time::timeout(Duration::from_millis(300), other.get(&paris, "/x")).await.is_err() };
    eventually("a place again", Duration::from_secs(5), waits, |waits| *waits).await;
    router.stop().await;
}

fn share(config: &mut RouterConfig, url: &str) {
    let shared: SharedLimits = toml::from_str(&format!("url = {url:?}")).expect("section");
    let shared = SharedLimits { address: Some(url.to_owned().into()), ..shared };
    config.router.shared_limits = Some(toml::Spanned::new(0..0, shared));
}

#[tokio::test(flavor = "multi_thread")]
async fn routers_share_what_they_count_and_go_on_without() {
    let dev = Dev::start().await;
    let (origin, redis) = (Origin::ok().await, Redis::start().await);
    let paris = dev.host("paris");
    set(&dev, "paris", &["limits.requests_per_second=2", "limits.request_burst=40"]).await;
    let (one, a) = roles::router(&dev, &[origin.address], |_, c| share(c, &redis.url())).await;
    let (two, b) = roles::router(&dev, &[origin.address], |_, c| share(c, &redis.url())).await;
    let both = || async {
        let (x, _) = burst(&a, &paris, 25).await;
        let (y, refused) = burst(&b, &paris, 60).await;
        (x + y, x, y, refused)
    };
    let (sum, x, y, refused) = both().await;
    assert!((40..60).contains(&sum) && x == 25, "one bucket: {x} + {y}");
    assert_eq!(refused.expect("refused").status, 429);
    let connected = |router: &gmah_router::server::RunningRouter| {
        let admin = router.admin;
        async move { Metrics(plain(admin, "/metrics").await.body).sum("gmah_router_shared_limits_connected", &[]) }
    };
    assert_eq!((connected(&one).await, connected(&two).await), (1.0, 1.0));
    // Away: each counts by itself, nobody waits, nobody is refused for it.
    let address = redis.stop().await;
    // What was said last holds for a moment.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let began = Instant::now();
    let (_, x, y, _) = both().await;
    assert!(x == 25 && (40..60).contains(&y), "a bucket each: {x} + {y}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(connected(&one).await, 0.0);
    // Back: one bucket again.
    let redis = Redis::start_at(address).await;
    let again = || async {
        a.get(&paris, "/x", &[]).await;
        connected(&one).await
    };
    eventually("shared again", Duration::from_secs(10), again, |c| *c == 1.0).await;
    drop(redis);
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_in_flight_elsewhere_count() {
    let dev = Dev::start().await;
    let redis = Redis::start().await;
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let silent = silent.local_addr().map(|a| (a, silent)).expect("address");
    let origin = Origin::ok().await;
    let paris = dev.host("paris");
    set(&dev, "paris", &["limits.concurrent_requests=3"]).await;
    let (one, a) = roles::router(&dev, &[silent.0], |_, c| share(c, &redis.url())).await;
    let (two, b) = roles::router(&dev, &[origin.address], |_, c| share(c, &redis.url())).await;
    let h2 = a.http2(&paris).await;
    let flying: Vec<_> = (0..3)
        .map(|_| {
            let (h2, paris) = (h2.clone(), paris.clone());
            tasks::detach("in-flight", async move { h2.get(&paris, "/x").await })
        })
        .collect();
    // The other router hears of them as soon as it has something to say itself.
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (more, host, stopped) = (b.clone(), paris.clone(), stop.clone());
    let busy = tasks::detach("busy", async move {
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            burst(&more, &host, 20).await;
        }
    });
    let ask = || async { b.get(&paris, "/x", &[]).await.status };
    eventually("those elsewhere count", Duration::from_secs(10), ask, |s| *s == 429).await;
    flying.iter().for_each(tokio::task::JoinHandle::abort);
    drop((flying, h2));
    eventually("none elsewhere any more", Duration::from_secs(10), ask, |s| *s == 200).await;
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    busy.await.expect("load");
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn maintenance_with_a_way_past_it() {
    let dev = Dev::start().await;
    let paris = dev.host("paris");
    let ask = |fields: &'static [(&'static str, &'static str)]| {
        let (client, paris) = (dev.client.clone(), paris.clone());
        async move { client.get(&paris, "/api/v1/tenant", fields).await }
    };
    let done =
        dev.cli_json(&["tenant", "maintenance", "paris", "on", "--bypass", "--retry-after", "7min"]).await;
    assert_eq!((text(&done["status"]), text(&done["maintenance"])), ("maintenance", "full"));
    let secret: &'static str = text(&done["bypass"]).to_owned().leak();
    let closed = eventually("closed", Duration::from_secs(2), || ask(&[]), |a| a.status == 503).await;
    assert_eq!(
        (closed.code().as_str(), closed.header("retry-after")),
        ("organization_maintenance", Some("420"))
    );
    assert_eq!(dev.get("lyon", "/api/v1/tenant").await.status, 200);
    // With the secret: in a header, or in a cookie that a link gives.
    let with = |name: &'static str, value: String| {
        let (client, paris) = (dev.client.clone(), paris.clone());
        async move { client.get(&paris, "/api/v1/tenant", &[(name, &value)]).await }
    };
    assert_eq!(with("X-Gmah-Bypass", secret.to_owned()).await.slug(), (200, "paris".into()));
    assert_eq!(with("X-Gmah-Bypass", format!("{secret}x")).await.status, 503);
    let link = dev.get("paris", &format!("/api/v1/tenant?a=1&gmah-bypass={secret}")).await;
    assert_eq!((link.status, link.header("location")), (303, Some("/api/v1/tenant?a=1")));
    let cookie = link.header("set-cookie").expect("cookie");
    for part in ["__Host-gmah-bypass=", "; Path=/", "; Secure", "; HttpOnly"] {
        assert!(cookie.contains(part), "{cookie}");
    }
    // Where one name is everybody's there are no cookies.
    let everybodys = format!("/api/v1/tenant?tenant=paris&gmah-bypass={secret}");
    let seen = dev.client.get(&format!("app.{}", text(&dev.info["base_domain"])), &everybodys, &[]).await;
    assert_eq!((seen.status, seen.header("set-cookie")), (503, None), "{seen:?}");
    let pair = cookie.split(';').next().expect("pair").to_owned();
    assert_eq!(with("Cookie", pair.clone()).await.status, 200);
    // Not at another organisation in maintenance, and not after a new secret was made.
    dev.cli_json(&["tenant", "maintenance", "lyon", "on", "--bypass"]).await;
    let lyon = dev.host("lyon");
    let ask_lyon = || async { dev.client.get(&lyon, "/api/v1/tenant", &[("Cookie", &pair)]).await };
    eventually("lyon closed", Duration::from_secs(2), ask_lyon, |a| a.status == 503).await;
    dev.cli_json(&["tenant", "maintenance", "paris", "on", "--bypass"]).await;
    eventually(
        "the old secret ended",
        Duration::from_secs(2),
        || with("Cookie", pair.clone()),
        |a| a.status == 503,
    )
    .await;
    dev.cli_json(&["tenant", "maintenance", "paris", "off"]).await;
    eventually("open", Duration::from_secs(2), || ask(&[]), |a| a.status == 200).await;
    let refused = dev.cli(&["tenant", "maintenance", "paris", "on", "--retry-after", "3days"]).await;
    assert_eq!(refused.status.code(), Some(2));
    assert!(dev.cli(&["tenant", "suspend", "paris"]).await.status.success());
    assert_eq!(dev.cli(&["tenant", "maintenance", "paris", "on"]).await.status.code(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn read_only_and_hold() {
    let dev = Dev::start().await;
    let origin = Origin::ok().await;
    let (router, client) = roles::router(&dev, &[origin.address], |_, _| {}).await;
    let paris = dev.host("paris");
    dev.cli_json(&["tenant", "maintenance", "paris", "read-only", "--retry-after", "5s"]).await;
    let post = || client.send("POST", &paris, "/x", &[], Some("{}"));
    let refused = eventually("read only", Duration::from_secs(2), post, |a| a.status == 503).await;
    assert_eq!((refused.code(), refused.header("retry-after")), ("organization_read_only".into(), Some("5")));
    assert_eq!(client.get(&paris, "/x", &[]).await.status, 200);

    // Held: two wait, the third is told to come again; when it is over, both go on, with their bodies.
    let hold = ["tenant", "maintenance", "paris", "hold", "--hold-seconds", "20", "--hold-requests", "2"];
    dev.cli_json(&hold).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    origin.take();
    let waiting: Vec<_> = (0..2)
        .map(|n| {
            let (client, paris) = (client.clone(), paris.clone());
            tasks::detach("held", async move {
                client.send("POST", &paris, &format!("/{n}"), &[], Some("{\"a\":1}")).await
            })
        })
        .collect();
    let one_more =
        || async { tokio::time::timeout(Duration::from_millis(300), client.get(&paris, "/x", &[])).await };
    tokio::time::sleep(Duration::from_millis(700)).await;
    let refused = eventually("too many wait", Duration::from_secs(3), one_more, |a| a.is_ok()).await;
    assert_eq!(refused.expect("at once").code(), "organization_maintenance");
    assert_eq!(origin.take().iter().map(|r| r.head.clone()).collect::<Vec<_>>(), [""; 0]);
    assert!(waiting.iter().all(|w| !w.is_finished()));
    assert_eq!(client.get(&dev.host("lyon"), "/x", &[]).await.status, 200, "nobody else waits");
    origin.take();
    dev.cli_json(&["tenant", "maintenance", "paris", "off"]).await;
    for held in waiting {
        assert_eq!(held.await.expect("joined").status, 200);
    }
    let seen = origin.take();
    assert_eq!(seen.iter().filter(|r| r.body == b"{\"a\":1}").count(), 2);

    // Not all of the places for one address.
    let hold = ["tenant", "maintenance", "paris", "hold", "--hold-seconds", "20", "--hold-requests", "20"];
    dev.cli_json(&[&hold[..], &["--retry-after", "7s"]].concat()).await;
    let one = || async {
        let (client, paris) = (client.clone(), paris.clone());
        let asked = tasks::detach("held", async move { client.get(&paris, "/x", &[]).await });
        tokio::time::sleep(Duration::from_millis(300)).await;
        if asked.is_finished() { Err(asked.await.expect("joined")) } else { Ok(asked) }
    };
    let mut waiting =
        vec![eventually("held", Duration::from_secs(5), one, Result::is_ok).await.expect("held")];
    let over = loop {
        match one().await {
            Ok(waits) => waiting.push(waits),
            Err(refused) => break refused,
        }
        assert!(waiting.len() <= 10, "no share was reached");
    };
    assert_eq!((over.code(), over.header("retry-after")), ("organization_maintenance".into(), Some("7")));
    assert_eq!(waiting.len(), 10, "half of them");
    let elsewhere = {
        let socket = tokio::net::TcpSocket::new_v4().expect("socket");
        socket.bind("127.0.0.2:0".parse().expect("address")).expect("bind");
        let tcp = socket.connect(client.address()).await.expect("connect");
        let (client, paris) = (client.clone(), paris.clone());
        tasks::detach("held", async move {
            let mut stream = client.over(tcp, &paris).await.expect("handshake");
            exchange(&mut stream, &request("GET", &paris, "/x", &[], None)).await
        })
    };
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!elsewhere.is_finished(), "another has room");
    dev.cli_json(&["tenant", "maintenance", "paris", "off"]).await;
    for held in waiting.into_iter().chain([elsewhere]) {
        assert_eq!(held.await.expect("joined").status, 200);
    }

    // Not for ever.
    dev.cli_json(&["tenant", "maintenance", "paris", "hold", "--hold-seconds", "1"]).await;
    let refused = || async {
        let began = Instant::now();
        (client.get(&paris, "/x", &[]).await, began)
    };
    let (refused, began) =
        eventually("not for ever", Duration::from_secs(5), refused, |(a, _)| a.status == 503).await;
    assert_eq!(refused.code(), "organization_maintenance");
    assert!(began.elapsed() >= Duration::from_millis(900) && began.elapsed() < Duration::from_secs(5));
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_in_the_organisations_colours() {
    let dev = Dev::start().await;
    let words = [
        "branding.name=Gemach <Paris>",
        "branding.logo_url=https://cdn.example/logo.png",
        "branding.primary_color=#a1b2c3",
    ];
    set(&dev, "paris", &words).await;
    assert!(dev.cli(&["tenant", "suspend", "paris"]).await.status.success());
    let (paris, html) = (dev.host("paris"), [("Accept", "text/html,application/xhtml+xml")]);
    let ask = || dev.client.get(&paris, "/", &html);
    let page = eventually("suspended", Duration::from_secs(2), ask, |a| a.status == 403).await;
    for part in ["Gemach &#60;Paris&#62;", "#a1b2c3", "https://cdn.example/logo.png", "suspended"] {
        assert!(page.body.contains(part), "{part} in {}", page.body);
    }
    let policy = page.header("content-security-policy").expect("policy");
    assert!(
        policy.contains("default-src 'none'") && policy.contains("img-src https://cdn.example;"),
        "{policy}"
    );
    // Nobody's page is everybody's: without a name, the same for all.
    let nobody = dev.client.get(&dev.host("nobody"), "/", &html).await;
    assert_eq!((nobody.status, nobody.body.contains("Paris")), (404, false));
    for bad in ["branding.primary_color=red", "branding.logo_url=http://x/", "branding.nothing=1"] {
        assert_eq!(dev.cli(&["tenant", "set", "paris", bad]).await.status.code(), Some(2), "{bad}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r09_one_address_does_not_take_an_organisations_places() {
    let dev = Dev::start().await;
    set(&dev, "paris", &["limits.concurrent_requests=512"]).await;
    // One path answers more than a shut window lets through; any other answers a word.
    let origin = Origin::start(Box::new(|r| {
        let large = r.target() == "/large";
        Some(crate::harness::origin::answer(200, "", &"x".repeat(if large { 1 << 18 } else { 1 })))
    }))
    .await;
    let (router, client) = roles::router(&dev, &[origin.address], |_, _| {}).await;
    let paris = dev.host("paris");
    let mut held = Vec::new();
    for _ in 0..4 {
        let mut stream = client.try_connect(&paris, &[b"h2"]).await.expect("handshake");
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend(bounds::frame(4, 0, 0, &[0, 4, 0, 0, 0, 0])); // SETTINGS_INITIAL_WINDOW_SIZE = 0
        for n in 0..100u32 {
            // The same block as for `/`, with its path spelt out.
            let mut block = bounds::get_block(&paris);
            block.splice(2..3, [0x04, 6].into_iter().chain(*b"/large"));
            let flags = bounds::END_STREAM | bounds::END_HEADERS;
            bytes.extend(bounds::frame(bounds::HEADERS, flags, 2 * n + 1, &block));
        }
        stream.write_all(&bytes).await.expect("sent");
        stream.flush().await.expect("sent");
        held.push(stream);
    }
    let over = || client.get(&paris, "/", &[]);
    // Until then a busy machine has asked for all of them, and given up none (`write_timeout`).
    let refused = eventually("its part is taken", Duration::from_secs(25), over, |a| a.status == 429).await;
    assert!(refused.body.contains("from this address"), "{refused:?}");
    assert!(refused.header("retry-after").is_some());
    // Anybody else has the rest.
    let other = || async {
        let socket = tokio::net::TcpSocket::new_v4().expect("socket");
        socket.bind("127.0.0.2:0".parse().expect("address")).expect("bind");
        let tcp = socket.connect(client.address()).await.expect("connect");
        let mut stream = client.over(tcp, &paris).await.expect("handshake");
        exchange(&mut stream, &request("GET", &paris, "/", &[], None)).await.status
    };
    for _ in 0..50 {
        assert_eq!(other().await, 200);
    }
    // Places come back with their requests.
    drop(held);
    eventually("places again", Duration::from_secs(10), over, |a| a.status == 200).await;
    router.stop().await;
}
