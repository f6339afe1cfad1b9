//! Family T: handshakes, certificates, and clients that are slow or many.

use std::time::{Duration, Instant};

use gmah_shared::config::{HumanDuration, Within};
use rcgen::{CertificateParams, Issuer, KeyPair};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::dev::address;
use crate::harness::http::{is_closed, request, status, talk};
use crate::harness::origin::Origin;
use crate::harness::{Dev, eventually, roles};

/// A certificate for those names by the CA of a running `gmah dev`, and its key.
pub(crate) fn certificate(dev: &Dev, names: &[&str]) -> (String, String) {
    certificate_with(dev, names, |_| {})
}

/// The same with something else about it.
pub(crate) fn certificate_with(
    dev: &Dev,
    names: &[&str],
    change: impl FnOnce(&mut CertificateParams),
) -> (String, String) {
    let read = |name: &str| std::fs::read_to_string(dev.folder().join("data/certs").join(name)).expect(name);
    let (ca, ca_key) = (read("ca.pem"), KeyPair::from_pem(&read("ca.key")).expect("CA key"));
    let issuer = Issuer::from_ca_cert_pem(&ca, ca_key).expect("CA");
    let key = KeyPair::generate().expect("key");
    let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("names");
    change(&mut params);
    let certificate = params.signed_by(&key, &issuer).expect("signed");
    (certificate.pem(), key.serialize_pem())
}

#[tokio::test(flavor = "multi_thread")]
async fn t03_unknown_or_absent_sni_is_an_alert() {
    let dev = Dev::start().await;
    for sni in ["evil.example.net", "a.paris.gmah.localhost", "127.0.0.1", "localhost"] {
        // An IP address is never sent as SNI, so this one is the case without.
        let refused = dev.client.try_connect(sni, &[]).await.expect_err(sni).to_string();
        assert!(refused.contains("UnrecognisedName"), "{sni}: {refused}");
    }
    assert_eq!(dev.get("paris", "/api/v1/tenant").await.status, 200);
    assert_eq!(dev.metrics("admin").await.sum("gmah_router_handshakes_total", &["unknown_name"]), 4.0);
    // Upper case and the bytes one by one make no difference.
    assert!(dev.client.try_connect("PARIS.gmah.localhost", &[]).await.is_ok());
    // What is no ClientHello at all ends, and nobody else notices.
    for junk in
        [&b"GET / HTTP/1.1\r\nHost: paris.gmah.localhost\r\n\r\n"[..], &[0x16, 3, 1, 0xff, 0xff], &[0; 600]]
    {
        let mut stream = TcpStream::connect(address(&dev.info["https"])).await.expect("connect");
        let back = talk(&mut stream, junk).await;
        assert!(!back.starts_with(b"HTTP"), "{back:?}");
    }
    assert_eq!(dev.get("paris", "/api/v1/tenant").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn t01_t02_the_host_decides_within_the_certificate() {
    let dev = Dev::start().await;
    let mut stream = dev.client.connect(&dev.host("paris")).await;
    for (host, want) in [("lyon.gmah.localhost", 200), ("shop.acme.test", 421), ("paris.gmah.localhost", 200)]
    {
        let answer =
            crate::harness::http::exchange(&mut stream, &request("GET", host, "/api/v1/tenant", &[], None))
                .await;
        assert_eq!(answer.status, want, "{host}");
        if want == 200 {
            assert!(host.starts_with(&answer.slug().1));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn t22_r01_slow_and_silent_clients() {
    let dev = Dev::start().await;
    let origin = Origin::ok().await;
    let short = HumanDuration::from_millis(400);
    let (router, client) = roles::router(&dev, &[origin.address], |_, c| {
        let l = &mut c.router.limits;
        (l.handshake_timeout, l.header_timeout, l.preface_timeout, l.idle_timeout, l.body_timeout) =
            (short, short, short, HumanDuration::from_millis(900), short);
        // Those that are well shake hands in time on a busy machine too.
        l.handshake_timeout = HumanDuration::from_millis(1500);
        l.max_connections_per_address = Within::new(40);
        l.max_body_bytes = Within::new(10_000);
        roles::api_pool(c).read_timeout = short;
    })
    .await;
    let paris = dev.host("paris");

    // Nothing after the connect; a ClientHello that never ends.
    for bytes in [&b""[..], &[0x16, 3, 1, 2, 0]] {
        let mut silent = TcpStream::connect(router.https).await.expect("connect");
        silent.write_all(bytes).await.expect("sent");
        assert!(is_closed(&mut silent).await);
    }
    // One byte of a head at a time: the deadline is for the whole head.
    let mut slow = client.connect(&paris).await;
    let began = Instant::now();
    for byte in request("GET", &paris, "/", &[], None) {
        if slow.write_all(&[byte]).await.is_err() || slow.flush().await.is_err() {
            break;
        }
        if let Ok(Ok(0) | Err(_)) =
            tokio::time::timeout(Duration::from_millis(30), slow.read(&mut [0u8; 8])).await
        {
            break;
        }
    }
    assert!(began.elapsed() < Duration::from_millis(1400), "{:?}", began.elapsed());
    assert!(origin.take().is_empty());
    // No request; no preface; half a body.
    let mut idle = client.connect(&paris).await;
    assert!(is_closed(&mut idle).await);
    let mut no_preface = client.try_connect(&paris, &[b"h2"]).await.expect("handshake");
    assert!(is_closed(&mut no_preface).await);
    let head = format!("POST / HTTP/1.1\r\nHost: {paris}\r\nContent-Length: 100\r\n\r\nhalf");
    let raw = client.raw(&paris, head.as_bytes()).await;
    assert!(matches!(status(&raw), Some(408 | 504) | None), "{}", String::from_utf8_lossy(&raw));

    // An HTTP/2 request that is answered while its body never comes: its stream is reset, and the connection stays free
    // to end.
    let hanging = client.http2(&paris).await;
    let (stream, _body) =
        hanging.begin(http::Request::post(format!("https://{paris}/")).body(()).expect("request")).await;
    let ended = tokio::time::timeout(Duration::from_secs(5), stream).await;
    assert!(ended.is_ok(), "an answer or a reset");
    eventually("reset", Duration::from_secs(5), || async { router_connections(&router) }, |n| *n == 0).await;

    // Over the size of a body: declared, and found out on the way.
    let big = "x".repeat(20_000);
    let seen = client.send("POST", &paris, "/", &[], Some(&big)).await;
    assert_eq!((seen.status, seen.code()), (413, "too_large".into()));
    let chunk = format!("{:x}\r\n{}\r\n", 4000, "x".repeat(4000));
    let chunked = format!(
        "POST / HTTP/1.1\r\nHost: {paris}\r\nTransfer-Encoding: chunked\r\n\r\n{}0\r\n\r\n",
        chunk.repeat(5)
    );
    let raw = client.raw(&paris, chunked.as_bytes()).await;
    assert_eq!(status(&raw), Some(413), "{}", String::from_utf8_lossy(&raw));

    // More connections than one address may have: closed at once, and counted.
    let mut held = Vec::new();
    for _ in 0..80 {
        held.push(TcpStream::connect(router.https).await.expect("connect"));
    }
    let refused = || async {
        let text = router.metrics.text().expect("metrics");
        crate::harness::dev::Metrics(text).sum("gmah_router_refused_connections_total", &["address"])
    };
    eventually("the cap", Duration::from_secs(3), refused, |n| *n >= 30.0).await;
    drop(held);
    // Until one is free, the handshake is what fails.
    let shakes = || async { client.try_connect(&paris, &[b"http/1.1"]).await.is_ok() };
    eventually("a place again", Duration::from_secs(5), shakes, |is_free| *is_free).await;
    eventually("and served", Duration::from_secs(5), || client.get(&paris, "/", &[]), |a| a.status == 200)
        .await;
    let held = || async { router_connections(&router) };
    eventually("places are given back", Duration::from_secs(5), held, |n| *n <= 2).await;
    router.stop().await;
}

fn router_connections(router: &gmah_router::server::RunningRouter) -> i64 {
    router.metrics.connections.get()
}

#[tokio::test(flavor = "multi_thread")]
async fn l03_certificates_are_exchanged_while_running() {
    let dev = Dev::start().await;
    let origin = Origin::ok().await;
    let folder = tempfile::tempdir().expect("folder");
    let (cert, key) = (folder.path().join("c.pem"), folder.path().join("k.pem"));
    let write = |pair: (String, String)| {
        std::fs::write(&cert, pair.0).expect("certificate");
        std::fs::write(&key, pair.1).expect("key");
    };
    write(certificate(&dev, &["*.gmah.localhost"]));
    let (router, client) = roles::router(&dev, &[origin.address], |_, c| {
        (c.router.certificate_file, c.router.key_file) = (Some(cert.clone()), Some(key.clone()));
        c.router.certificate_poll = HumanDuration::from_millis(30);
    })
    .await;
    let works = |sni: &'static str| {
        let client = client.clone();
        async move { client.try_connect(sni, &[]).await.is_ok() }
    };
    let reloads = |result: &'static str| {
        let metrics = router.metrics.clone();
        async move {
            let text = gmah_shared::telemetry::encode(&metrics.registry).expect("metrics");
            crate::harness::dev::Metrics(text).sum("gmah_router_certificate_reloads_total", &[result])
        }
    };
    assert!(works("paris.gmah.localhost").await && !works("new.example").await);
    let mut open = client.connect("paris.gmah.localhost").await;

    // Junk, a key of another certificate, an empty file: the old pair is served on.
    for (n, (c, k)) in [
        ("junk".to_owned(), "junk".to_owned()),
        (certificate(&dev, &["new.example"]).0, certificate(&dev, &["new.example"]).1),
        (String::new(), String::new()),
    ]
    .into_iter()
    .enumerate()
    {
        write((c, k));
        eventually("refused", Duration::from_secs(5), || reloads("refused"), |seen| *seen > n as f64).await;
        assert!(works("paris.gmah.localhost").await && !works("new.example").await);
    }
    write(certificate(&dev, &["*.gmah.localhost", "new.example"]));
    eventually("exchanged", Duration::from_secs(5), || works("new.example"), |w| *w).await;
    assert_eq!(reloads("loaded").await, 1.0);
    let bytes = request("GET", "paris.gmah.localhost", "/", &[], None);
    assert_eq!(crate::harness::http::exchange(&mut open, &bytes).await.status, 200, "open connections go on");
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_resume_with_a_ticket() {
    let dev = Dev::start().await;
    let host = dev.host("paris");
    let resumed = |previous: Option<&str>, file: std::path::PathBuf| {
        let connect = crate::harness::dev::text(&dev.info["https"]).to_owned();
        let mut command = tokio::process::Command::new("openssl");
        command.args([
            "s_client",
            "-connect",
            &connect,
            "-servername",
            &host,
            "-alpn",
            "http/1.1",
            "-ign_eof",
        ]);
        command.arg(previous.unwrap_or("-sess_out")).arg(&file);
        command
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null());
        let host = host.clone();
        async move {
            let mut child = command.spawn().expect("openssl");
            let bytes = format!("GET /api/v1/tenant HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
            child.stdin.take().expect("stdin").write_all(bytes.as_bytes()).await.expect("sent");
            let out = child.wait_with_output().await.expect("output");
            let text = String::from_utf8_lossy(&out.stdout).into_owned();
            assert!(text.contains("\"slug\":\"paris\""), "{text}");
            text.contains("Reused, TLS")
        }
    };
    let file = dev.folder().join("session");
    assert!(!resumed(None, file.clone()).await);
    assert!(resumed(Some("-sess_in"), file).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plain_port_redirects_what_is_known() {
    let dev = Dev::start().await;
    let http = address(&dev.info["http"]);
    let port = address(&dev.info["https"]).port();
    let ask = |bytes: String| async move {
        let mut stream = TcpStream::connect(http).await.expect("connect");
        String::from_utf8_lossy(&talk(&mut stream, bytes.as_bytes()).await).into_owned()
    };
    let get = |host: &str, target: &str| {
        format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
    };
    for (host, target) in [
        ("paris.gmah.localhost", "/a?b=c"),
        ("PARIS.gmah.localhost.:8080", "/a?b=c"),
        ("paris.gmah.localhost", "/a%0d%0ab?b=c"),
    ] {
        let seen = ask(get(host, target)).await;
        assert!(seen.starts_with("HTTP/1.1 308 "), "{seen}");
        let want = format!("https://paris.gmah.localhost:{port}{target}\r\n");
        assert!(seen.to_lowercase().contains(&format!("location: {want}")), "{seen}");
    }
    // A suspended one is known all the same: its page is behind TLS.
    assert!(dev.cli(&["tenant", "suspend", "lyon"]).await.status.success());
    assert!(ask(get("lyon.gmah.localhost", "/")).await.starts_with("HTTP/1.1 308 "));
    for host in ["nobody.gmah.localhost", "evil.example", "www.gmah.localhost", "gmah.localhost"] {
        let seen = ask(get(host, "/")).await;
        assert!(
            seen.starts_with("HTTP/1.1 404 ") && !seen.to_lowercase().contains("location"),
            "{host}: {seen}"
        );
    }
    assert!(ask("GET / HTTP/1.1\r\n\r\n".into()).await.starts_with("HTTP/1.1 400 "));
    // M-12, M-13: HTTP/2 is for TLS.
    let upgrade = "GET / HTTP/1.1\r\nHost: paris.gmah.localhost\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\
                   Connection: close, Upgrade, HTTP2-Settings\r\n\r\n";
    assert!(ask(upgrade.into()).await.starts_with("HTTP/1.1 308 "));
    assert!(ask("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into()).await.starts_with("HTTP/1.1 400 "));
}
