//! Step 8 of a request: pools, their backends and what happens when those fail.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use gmah_router::config::{Pool, Protocol, RouterConfig, Rule, Target};
use gmah_shared::config::{HumanDuration, Within};
use gmah_shared::hostname::Hostname;
use gmah_shared::tasks;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::dev::Metrics;
use crate::harness::http::{exchange, plain, request};
use crate::harness::origin::{Origin, Recorded, answer};
use crate::harness::{Dev, eventually, roles};
use crate::tls::certificate;

fn metrics(router: &gmah_router::server::RunningRouter) -> Metrics {
    Metrics(router.metrics.text().expect("metrics"))
}

fn add_pool(config: &mut RouterConfig, name: &str, addresses: &[SocketAddr]) {
    let pool = Pool {
        addresses: addresses.iter().map(|a| (*a).into()).collect(),
        ..roles::api_pool(config).clone()
    };
    config.router.pools.insert(name.to_owned(), pool);
}

fn quick(pool: &mut Pool) {
    pool.health.interval = HumanDuration::from_millis(100);
    pool.health.timeout = HumanDuration::from_millis(500);
    (pool.health.rise, pool.health.fall) = (Within::new(1), Within::new(1));
}

/// What the payload of the token says.
fn claim(recorded: &Recorded, name: &str) -> String {
    use base64::Engine as _;
    let token = recorded.all("x-tenant-token").remove(0);
    let payload = token.split('.').nth(1).expect("payload").to_owned();
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(payload).expect("base64");
    let claims: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
    claims[name].as_str().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_go_to_their_pools_each_with_its_own_audience() {
    let dev = Dev::start().await;
    let (api, frontend, own) = (Origin::ok().await, Origin::ok().await, Origin::ok().await);
    let (router, client) = roles::router(&dev, &[api.address], |_, c| {
        add_pool(c, "frontend", &[frontend.address]);
        add_pool(c, "api-large", &[own.address]);
        c.router.pools.get_mut("api-large").expect("pool").audience = Some("large".into());
        let rule = |prefix: &str, pool: &str| Rule { prefix: prefix.into(), pool: pool.into() };
        c.router.routes = vec![rule("/app/", "frontend"), rule("/app/api/", "api"), rule("/api/", "api")];
    })
    .await;
    let (paris, lyon) = (dev.host("paris"), dev.host("lyon"));
    for (path, origin, audience) in [
        ("/api/v1/x", &api, "gmah-api"),
        ("/app/x?a=/api/", &frontend, "gmah-frontend"),
        ("/app/api/x", &api, "gmah-api"),
        ("/app/", &frontend, "gmah-frontend"),
    ] {
        for _ in 0..2 {
            assert_eq!(client.get(&paris, path, &[]).await.status, 200, "{path}");
            let seen = origin.take().remove(0);
            assert_eq!((claim(&seen, "aud"), claim(&seen, "slug")), (audience.into(), "paris".into()));
        }
    }
    for path in ["/", "/ap", "/App/x", "/%61pi/x"] {
        let seen = client.get(&paris, path, &[]).await;
        assert_eq!((seen.status, seen.code()), (404, "not_found".into()), "{path}");
    }
    // Dedicated hosting: another pool in the place of one, for one organisation, at once.
    assert!(dev.cli(&["tenant", "set", "lyon", "pool.api=api-large"]).await.status.success());
    let go = || async {
        let seen = client.get(&lyon, "/api/v1/x", &[]).await;
        (seen.status, own.take().first().map(|r| (claim(r, "aud"), claim(r, "slug"))))
    };
    let want = (200, Some(("large".to_owned(), "lyon".to_owned())));
    eventually("its own backend", Duration::from_secs(2), go, |seen| *seen == want).await;
    api.take();
    assert_eq!(client.get(&lyon, "/app/x", &[]).await.status, 200);
    assert_eq!(frontend.take().len(), 1, "only in the place of that one");
    assert_eq!(client.get(&paris, "/api/v1/x", &[]).await.status, 200);
    assert_eq!(api.take().len(), 1, "nobody else's");
    // A pool that is not configured here: never the shared one instead.
    assert!(dev.cli(&["tenant", "set", "lyon", "pool.api=nowhere"]).await.status.success());
    let go = || async { client.get(&lyon, "/api/v1/x", &[]).await.status };
    eventually("nowhere to go", Duration::from_secs(2), go, |s| *s == 503).await;
    assert!(api.take().is_empty());
    assert!(dev.cli(&["tenant", "set", "lyon", "pool.api=default"]).await.status.success());
    eventually("shared again", Duration::from_secs(2), go, |s| *s == 200).await;
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_backend_fails_no_get_and_runs_no_post_twice() {
    let dev = Dev::start().await;
    let script = || -> crate::harness::origin::Script { Box::new(|_| Some(answer(200, "", "{}"))) };
    let (stays, dies) = (Origin::start(script()).await, Origin::start(script()).await);
    let address = dies.address;
    let (router, client) = roles::router(&dev, &[stays.address, address], |_, c| {
        let pool = roles::api_pool(c);
        quick(pool);
        pool.slow_start = HumanDuration::from_secs(6);
    })
    .await;
    let paris = dev.host("paris");
    let (next, stop) = (Arc::new(AtomicUsize::new(0)), tokio_util::sync::CancellationToken::new());
    let mut load = Vec::new();
    for worker in 0..8 {
        let (client, paris, next, stop) = (client.clone(), paris.clone(), next.clone(), stop.clone());
        load.push(tasks::detach("load", async move {
            let mut stream = client.connect(&paris).await;
            let mut failed: Vec<(bool, u16)> = Vec::new();
            while !stop.is_cancelled() {
                let id = next.fetch_add(1, Ordering::Relaxed);
                let is_get = (id + worker) % 3 != 0;
                let (method, body) = if is_get { ("GET", None) } else { ("POST", Some("{}")) };
                let seen =
                    exchange(&mut stream, &request(method, &paris, &format!("/{id}"), &[], body)).await;
                if seen.status != 200 {
                    failed.push((is_get, seen.status));
                }
                if seen.header("connection") == Some("close") {
                    stream = client.connect(&paris).await;
                }
            }
            failed
        }));
    }
    tokio::time::sleep(Duration::from_millis(700)).await;
    let mut ran = dies.kill().await;
    assert!(!ran.is_empty(), "both had work");
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let seen = Metrics(plain(router.admin, "/metrics").await.body);
    let out = ["down", "ejected"].map(|state| seen.sum("gmah_router_backends", &["api", state]));
    assert_eq!(out.iter().sum::<f64>(), 1.0, "{out:?}");
    // It comes back, and gets its share little by little.
    let back = Origin::start_at(address, script()).await;
    eventually("back", Duration::from_secs(5), || async { back.take() }, |seen| !seen.is_empty()).await;
    ran.extend(stays.take());
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (early, others) = (back.take(), stays.take());
    assert!(early.len() * 4 < others.len(), "{} of {}", early.len(), others.len());
    stop.cancel();
    let mut failed = Vec::new();
    for task in load {
        failed.extend(task.await.expect("load"));
    }
    assert!(failed.iter().all(|(is_get, _)| !is_get), "no GET fails: {failed:?}");
    ran.extend([early, others, back.take(), stays.take()].concat());
    let posts: Vec<String> =
        ran.iter().filter(|r| r.head.starts_with("POST")).map(Recorded::target).collect();
    let distinct: HashSet<&String> = posts.iter().collect();
    assert!(posts.len() > 50 && distinct.len() == posts.len(), "{} of {}", distinct.len(), posts.len());
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_of_which_none_is_well() {
    let dev = Dev::start().await;
    let sick = Arc::new(AtomicUsize::new(0));
    let state = sick.clone();
    let origin = Origin::start(Box::new(move |r| {
        let health = r.target() == "/health";
        let status = if health && state.load(Ordering::SeqCst) > 0 { 503 } else { 200 };
        // A backend may end the connection with its answer.
        Some(answer(status, if health { "Connection: close\r\n" } else { "" }, "{}"))
    }))
    .await;
    let (router, client) = roles::router(&dev, &[origin.address], |_, c| {
        let pool = roles::api_pool(c);
        quick(pool);
        pool.health.path = Some("/health".into());
    })
    .await;
    let paris = dev.host("paris");
    let ask = || client.get(&paris, "/x", &[]);
    assert_eq!(ask().await.status, 200);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(ask().await.status, 200, "asked some times, and well");
    sick.store(1, Ordering::SeqCst);
    let seen = eventually("nobody to ask", Duration::from_secs(5), ask, |a| a.status == 503).await;
    assert_eq!((seen.code(), seen.header("retry-after")), ("unavailable".into(), Some("1")));
    assert!(!seen.body.contains("127.0.0.1") && !seen.body.contains("pool"));
    sick.store(0, Ordering::SeqCst);
    eventually("well again", Duration::from_secs(5), ask, |a| a.status == 200).await;
    router.stop().await;
}

/// An HTTP/2 server in clear that answers 200, counting connections and requests.
async fn h2c() -> (SocketAddr, Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    let (connections, requests) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let counts = (connections.clone(), requests.clone());
    drop(tasks::detach("h2c", async move {
        loop {
            let (stream, _) = listener.accept().await.expect("accept");
            let (connections, requests) = counts.clone();
            drop(tasks::detach("h2c-connection", async move {
                let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                connections.fetch_add(1, Ordering::SeqCst);
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    requests.fetch_add(1, Ordering::SeqCst);
                    assert!(request.headers().contains_key("x-tenant-token"));
                    let head = http::Response::new(());
                    let mut body = respond.send_response(head, false).expect("head");
                    body.send_data(Bytes::from_static(b"{}"), true).expect("body");
                }
            }));
        }
    }));
    (address, connections, requests)
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_and_tls_to_backends() {
    let dev = Dev::start().await;
    let paris = dev.host("paris");
    // HTTP/2 in clear: many requests, few connections.
    let (address, connections, requests) = h2c().await;
    let (router, client) = roles::router(&dev, &[address], |_, c| {
        roles::api_pool(c).protocol = Protocol::H2c;
        c.router.workers = Within::new(1);
    })
    .await;
    let h2 = client.http2(&paris).await;
    for _ in 0..20 {
        assert_eq!(h2.get(&paris, "/x").await.expect("answer").status, 200);
    }
    assert_eq!(client.send("POST", &paris, "/x", &[], Some("{}")).await.status, 200);
    assert_eq!(requests.load(Ordering::SeqCst), 21);
    assert!(connections.load(Ordering::SeqCst) <= 4, "{connections:?}");
    router.stop().await;

    // TLS: the name and the authority must be right.
    let (chain, key) = certificate(&dev, &["api.internal"]);
    let config = || {
        use rustls::pki_types::pem::PemObject as _;
        use rustls::pki_types::{CertificateDer, PrivateKeyDer};
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(chain.as_bytes()).expect("certificate")],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("key"),
            )
            .expect("pair")
    };
    let origin = Origin::tls(config(), Box::new(|_| Some(answer(200, "", "{}")))).await;
    let ca = std::path::PathBuf::from(crate::harness::dev::text(&dev.info["ca"]));
    for (name, trusted, want) in
        [("api.internal", true, 200), ("other.internal", true, 502), ("api.internal", false, 502)]
    {
        let (router, client) = roles::router(&dev, &[origin.address], |_, c| {
            let pool = roles::api_pool(c);
            pool.protocol = Protocol::Https;
            pool.server_name = Some(Hostname::parse(name).expect("name"));
            pool.ca_file = trusted.then(|| ca.clone());
        })
        .await;
        assert_eq!(client.get(&paris, "/x", &[]).await.status, want, "{name} {trusted}");
        assert_eq!(origin.take().len(), usize::from(want == 200));
        router.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_resolved_again() {
    let dev = Dev::start().await;
    let dns = crate::harness::dns::Dns::start().await;
    let (first, second) = (Origin::ok().await, Origin::ok().await);
    // One port, two addresses: the second origin moves to another loopback address with the first one's port.
    let port = first.address.port();
    drop(second);
    let moved: SocketAddr = SocketAddr::from(([127, 0, 0, 2], port));
    let second = Origin::start_at(moved, Box::new(|_| Some(answer(200, "", "{}")))).await;
    dns.set_addresses("backend.example", &["127.0.0.1"]).await;
    let (router, client) = roles::router(&dev, &[], |s, c| {
        s.dns.servers = vec![dns.address];
        let pool = roles::api_pool(c);
        pool.addresses = vec![Target::Name(Hostname::parse("backend.example").expect("name"), port)];
        pool.resolve_every = HumanDuration::from_millis(100);
    })
    .await;
    let paris = dev.host("paris");
    let ask = || async { client.get(&paris, "/x", &[]).await.status };
    eventually("resolved", Duration::from_secs(5), ask, |s| *s == 200).await;
    assert!(!first.take().is_empty() && second.take().is_empty());
    dns.set_addresses("backend.example", &["127.0.0.2"]).await;
    let at_second = || async {
        ask().await;
        second.take().len()
    };
    eventually("moved", Duration::from_secs(5), at_second, |n| *n > 0).await;
    // A name server that is away moves nobody.
    dns.stop().await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(ask().await, 200);
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_stream_both_ways_and_the_whole_has_a_deadline() {
    let dev = Dev::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    let (router, client) = roles::router(&dev, &[address], |_, c| {
        let pool = roles::api_pool(c);
        pool.total_timeout = HumanDuration::from_millis(1500);
        // The only connections are those of requests.
        pool.health.interval = HumanDuration::from_secs(3600);
    })
    .await;
    let paris = dev.host("paris");
    let mut front = client.connect(&paris).await;
    let head = format!("POST /x HTTP/1.1\r\nHost: {paris}\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n");
    front.write_all(head.as_bytes()).await.expect("sent");
    front.flush().await.expect("sent");
    let mut back = loop {
        let (mut stream, _) = listener.accept().await.expect("accept");
        let mut seen = Vec::new();
        // The first connection may be a question how the backend is.
        let read =
            tokio::time::timeout(Duration::from_secs(2), read_until(&mut stream, &mut seen, b"one\r\n"));
        if read.await == Ok(true) {
            break stream;
        }
    };
    // The backend has the first piece while the second is not sent; the client has its answer's first piece as well.
    back.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        .await
        .expect("sent");
    let mut seen = Vec::new();
    assert!(read_until(&mut front, &mut seen, b"first\r\n").await);
    front.write_all(b"3\r\ntwo\r\n0\r\n\r\n").await.expect("sent");
    front.flush().await.expect("sent");
    assert!(read_until(&mut back, &mut Vec::new(), b"two\r\n0\r\n\r\n").await);
    // It goes on and on: cut off, and not so that it looks whole.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(5) {
        if back.write_all(b"4\r\nmore\r\n").await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(3), front.read_to_end(&mut rest)).await;
    assert!(!rest.ends_with(b"0\r\n\r\n"));
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pieces_of_a_body_whose_length_is_known_are_not_kept_back() {
    let dev = Dev::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    let (router, client) = roles::router(&dev, &[address], |_, c| {
        roles::api_pool(c).health.interval = HumanDuration::from_secs(3600);
    })
    .await;
    let paris = dev.host("paris");
    let mut front = client.connect(&paris).await;
    front.write_all(format!("GET /x HTTP/1.1\r\nHost: {paris}\r\n\r\n").as_bytes()).await.expect("sent");
    front.flush().await.expect("sent");
    let mut back = loop {
        let (mut stream, _) = listener.accept().await.expect("accept");
        if read_until(&mut stream, &mut Vec::new(), b"\r\n\r\n").await {
            break stream;
        }
    };
    // Each of them is there before the next is sent, the head before any of the body.
    for (sent, seen) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", "\r\n\r\n"),
        ("first", "\r\n\r\nfirst"),
        ("other", "other"),
    ] {
        back.write_all(sent.as_bytes()).await.expect("sent");
        let mut read = if seen.contains("first") { b"\r\n\r\n".to_vec() } else { Vec::new() };
        assert!(read_until(&mut front, &mut read, seen.as_bytes()).await, "{seen:?} in {read:?}");
    }
    router.stop().await;
}

async fn read_until<S: tokio::io::AsyncRead + Unpin>(stream: &mut S, seen: &mut Vec<u8>, end: &[u8]) -> bool {
    while !seen.ends_with(end) {
        match tokio::time::timeout(Duration::from_secs(5), stream.read_buf(seen)).await {
            Ok(Ok(n)) if n > 0 => {}
            _ => return false,
        }
    }
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_never_answered_has_deadlines() {
    let dev = Dev::start().await;
    // Accepted by the kernel, never answered; and a port where packets vanish.
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = silent.local_addr().expect("address");
    let (router, client) = roles::router(&dev, &[address], |_, c| {
        let pool = roles::api_pool(c);
        pool.read_timeout = HumanDuration::from_millis(300);
        pool.health.interval = HumanDuration::from_secs(3600);
    })
    .await;
    let began = Instant::now();
    let seen = client.get(&dev.host("paris"), "/x", &[]).await;
    assert_eq!((seen.status, seen.code()), (504, "gateway_timeout".into()));
    assert!(began.elapsed() < Duration::from_secs(2), "not tried again: it may be running");
    assert!(TcpStream::connect(router.https).await.is_ok());
    let counts: BTreeMap<&str, f64> =
        ["gateway_timeout"].map(|r| (r, metrics(&router).sum("gmah_router_rejections_total", &[r]))).into();
    assert_eq!(counts["gateway_timeout"], 1.0);
    router.stop().await;
}
