//! Family H: which host a request is for. Every case goes through the real router to the real api; the follow-up
//! oracle asks for another tenant afterwards.

use http::Request;
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::TestRunner;

use crate::harness::Dev;
use crate::harness::http::{is_closed, responses, status, talk};
use gmah_shared::hostname::Hostname;
use gmah_shared::tenant::TenantSlug;

enum Want {
    Slug(&'static str),
    Refused(u16),
}
use Want::{Refused, Slug};

/// Sends a head as it is to a fresh connection and compares; then asks for lyon on a second one.
async fn case(dev: &Dev, head: &str, want: &Want) {
    let raw = dev.client.raw(&dev.host("paris"), head.as_bytes()).await;
    let text = String::from_utf8_lossy(&raw);
    assert_eq!(responses(&raw), 1, "{head:?}: {text}");
    match want {
        Slug(slug) => {
            assert_eq!(status(&raw), Some(200), "{head:?}: {text}");
            assert!(text.contains(&format!("\"slug\":\"{slug}\"")), "{head:?}: {text}");
        }
        Refused(code) => {
            assert_eq!(status(&raw), Some(*code), "{head:?}: {text}");
            for leak in ["paris", "lyon", "GMAH", "ingora", "postgres"] {
                assert!(!text.contains(leak), "{head:?}: {text}");
            }
        }
    }
    let follow_up = dev.get("lyon", "/api/v1/tenant").await;
    assert_eq!(follow_up.slug(), (200, "lyon".into()), "after {head:?}: {follow_up:?} {}", dev.log());
}

fn get(host: &str) -> String {
    format!("GET /api/v1/tenant HTTP/1.1\r\nHost: {host}\r\n\r\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn h01_to_h28_the_host_field() {
    let dev = Dev::start().await;
    let b = "gmah.localhost";
    let long_label = format!("{}.{b}", "a".repeat(63));
    let too_long_label = format!("{}.{b}", "a".repeat(64));
    let too_long = format!("{}.{b}", "a.".repeat(2000));
    let cases = [
        ("PARIS.Gmah.LocalHost".into(), Slug("paris")),
        (format!("paris.{b}."), Slug("paris")),
        (format!("paris.{b}:443"), Slug("paris")),
        (format!("paris.{b}:8443"), Slug("paris")),
        (format!("paris.{b}:"), Slug("paris")),
        (format!("lyon.{b}"), Slug("lyon")),
        (format!("paris.{b}.."), Refused(400)),
        (".".into(), Refused(400)),
        (format!(".paris.{b}"), Refused(400)),
        (format!("paris..{b}"), Refused(400)),
        (format!("paris.{b}@lyon.{b}"), Refused(400)),
        (format!("user:pw@paris.{b}"), Refused(400)),
        (format!("paris.{b}, lyon.{b}"), Refused(400)),
        (format!("paris.{b}:99999"), Refused(400)),
        (format!("paris.{b}:x"), Refused(400)),
        (format!("xn--paris-.{b}"), Refused(400)),
        (long_label, Refused(404)),
        (too_long_label, Refused(400)),
        (too_long, Refused(400)),
        ("127.0.0.1".into(), Refused(400)),
        ("[::1]".into(), Refused(400)),
        ("[::ffff:127.0.0.1]:443".into(), Refused(400)),
        ("2130706433".into(), Refused(400)),
        ("0x7f.1".into(), Refused(400)),
        ("0177.0.0.1".into(), Refused(400)),
        (format!("a.paris.{b}"), Refused(421)),
        ("evil.example".into(), Refused(421)),
        (b.into(), Refused(404)),
        (format!("nobody.{b}"), Refused(404)),
    ];
    for (host, want) in &cases {
        case(&dev, &get(host), want).await;
    }
    for reserved in
        ["www", "admin", "api", "static", "mail", "localhost", "postgres", "master", "template0", "WWW"]
    {
        case(&dev, &get(&format!("{reserved}.{b}")), &Refused(404)).await;
    }
    // An underscore is in no host name.
    case(&dev, &get(&format!("_acme-challenge.{b}")), &Refused(400)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn h07_to_h33_request_lines_and_fields() {
    let dev = Dev::start().await;
    let (paris, lyon) = (dev.host("paris"), dev.host("lyon"));
    let cases = [
        (format!("GET /api/v1/tenant HTTP/1.1\r\nHost: {paris}\r\nHost: {lyon}\r\n\r\n"), Refused(400)),
        (format!("GET /api/v1/tenant HTTP/1.1\r\nHost: {paris}\r\nhost: {paris}\r\n\r\n"), Refused(400)),
        ("GET /api/v1/tenant HTTP/1.1\r\n\r\n".into(), Refused(400)),
        ("GET /api/v1/tenant HTTP/1.1\r\nHost:\r\n\r\n".into(), Refused(400)),
        ("GET /api/v1/tenant HTTP/1.0\r\n\r\n".into(), Refused(400)),
        (format!("GET /api/v1/tenant HTTP/1.0\r\nHost: {paris}\r\n\r\n"), Slug("paris")),
        (format!("GET /\r\nHost: {paris}\r\n\r\n"), Refused(400)),
        (format!("GET http://{lyon}/api/v1/tenant HTTP/1.1\r\nHost: {paris}\r\n\r\n"), Refused(400)),
        (format!("GET http://{paris}/api/v1/tenant HTTP/1.1\r\nHost: {paris}\r\n\r\n"), Slug("paris")),
        (format!("GET http://{paris}/api/v1/tenant HTTP/1.1\r\n\r\n"), Refused(400)),
        (format!("GET https:{paris}/ HTTP/1.1\r\nHost: {paris}\r\n\r\n"), Refused(400)),
        (format!("GET http:\\\\{lyon}/ HTTP/1.1\r\nHost: {paris}\r\n\r\n"), Refused(400)),
        (format!("GET {lyon}:80 HTTP/1.1\r\nHost: {paris}\r\n\r\n"), Refused(400)),
        (format!("GET * HTTP/1.1\r\nHost: {paris}\r\n\r\n"), Refused(400)),
        (format!("OPTIONS * HTTP/1.1\r\nHost: {paris}\r\n\r\n"), Refused(400)),
        (format!("OPTIONS */x HTTP/1.1\r\nHost: {paris}\r\n\r\n"), Refused(400)),
        (format!("CONNECT {lyon}:443 HTTP/1.1\r\nHost: {paris}\r\n\r\n"), Refused(405)),
        (format!("CONNECT 127.0.0.1:5432 HTTP/1.1\r\nHost: {paris}\r\n\r\n"), Refused(405)),
        (format!("TRACE / HTTP/1.1\r\nHost: {paris}\r\n\r\n"), Refused(405)),
        (format!("GET / HTTP/1.1\r\nHost : {paris}\r\n\r\n"), Refused(400)),
        (format!("GET / HTTP/1.1\r\n Host: {paris}\r\n\r\n"), Refused(400)),
        ("GET / HTTP/1.1\r\nHost: paris.\r\n gmah.localhost\r\n\r\n".into(), Refused(400)),
        (format!("GET / HTTP/1.1\r\nHost: {paris}\r\nX: y\r\n Host: {lyon}\r\n\r\n"), Refused(400)),
        (format!("GET / HTTP/1.1\nHost: {paris}\n\n"), Refused(400)),
        (format!("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nHost: {paris}\r\n\r\n"), Refused(400)),
        (format!("GET /{} HTTP/1.1\r\nHost: {paris}\r\n\r\n", "a".repeat(9000)), Refused(414)),
        (format!("GET / HTTP/1.1\r\nHost: {paris}\r\nX: {}\r\n\r\n", "a".repeat(40_000)), Refused(431)),
        (format!("GET / HTTP/1.1\r\nHost: {paris}\r\n{}\r\n", "X: y\r\n".repeat(120)), Refused(431)),
    ];
    for (head, want) in &cases {
        case(&dev, head, want).await;
    }
    // A path that looks like an authority stays a path: the host decides.
    let raw = dev
        .client
        .raw(&paris, format!("GET //{lyon}/api HTTP/1.1\r\nHost: {paris}\r\n\r\n").as_bytes())
        .await;
    assert!(matches!(status(&raw), Some(400 | 404)), "{}", String::from_utf8_lossy(&raw));
}

#[tokio::test(flavor = "multi_thread")]
async fn h30_every_byte_of_a_host() {
    let dev = Dev::start().await;
    let mut tried = 0;
    for byte in (0u8..=0x20).chain(0x7f..=0xff).chain(*b"/\\@,;%_#?\"'<>(){}[]|^`=+&$!*~") {
        for place in ["%paris.gmah.localhost", "par%is.gmah.localhost", "paris.gmah.localhost%"] {
            let mut head = get(place).into_bytes();
            let at = head.iter().position(|b| *b == b'%').expect("a place");
            head[at] = byte;
            // White space around a value is not part of it.
            let trimmed = matches!(byte, b' ' | b'\t') && !place.starts_with("par%");
            let raw = dev.client.raw(&dev.host("paris"), &head).await;
            let want = if trimmed { 200 } else { 400 };
            // A line feed or carriage return ends the head early or late; never is it paris.
            assert_eq!(status(&raw), Some(want), "{byte:#x} {place}: {}", String::from_utf8_lossy(&raw));
            tried += 1;
        }
    }
    assert!(tried > 500);
}

#[tokio::test(flavor = "multi_thread")]
async fn m07_a_refusal_ends_the_connection_where_the_rest_cannot_be_trusted() {
    let dev = Dev::start().await;
    let (paris, lyon) = (dev.host("paris"), dev.host("lyon"));
    let smuggled = format!("GET /api/v1/tenant HTTP/1.1\r\nHost: {lyon}\r\n\r\n");
    for fields in [
        "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Content-Length: 5, 6\r\n",
        "Content-Length: +5\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Connection: Idempotency-Key\r\n",
    ] {
        let mut stream = dev.client.connect(&paris).await;
        let attack =
            format!("POST /api/v1/tenant HTTP/1.1\r\nHost: {paris}\r\n{fields}\r\n0\r\n\r\n{smuggled}");
        let raw = talk(&mut stream, attack.as_bytes()).await;
        assert_eq!(
            (status(&raw), responses(&raw)),
            (Some(400), 1),
            "{fields}: {}",
            String::from_utf8_lossy(&raw)
        );
        assert!(is_closed(&mut stream).await, "{fields}");
    }
    // A refusal before the body was read: whatever follows is not taken for a request.
    for target in ["/nothing", "/api/v1/tenant"] {
        let attack = format!(
            "POST {target} HTTP/1.1\r\nHost: nobody.gmah.localhost\r\nContent-Length: {}\r\n\r\n{smuggled}{smuggled}",
            smuggled.len()
        );
        let raw = dev.client.raw(&paris, attack.as_bytes()).await;
        assert_eq!((status(&raw), responses(&raw)), (Some(404), 1), "{}", String::from_utf8_lossy(&raw));
        assert!(!String::from_utf8_lossy(&raw).contains("lyon"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn h34_to_h39_http2() {
    let dev = Dev::start().await;
    let (paris, lyon) = (dev.host("paris"), dev.host("lyon"));
    let h2 = dev.client.http2(&paris).await;
    let ask = |authority: String| {
        let h2 = h2.clone();
        async move { h2.get(&authority, "/api/v1/tenant").await.map(|a| a.slug()) }
    };
    assert_eq!(ask(paris.clone()).await.expect("answer"), (200, "paris".into()));
    assert_eq!(ask(format!("{}:8443", lyon.to_uppercase())).await.expect("answer"), (200, "lyon".into()));
    assert_eq!(ask("nobody.gmah.localhost".into()).await.expect("answer").0, 404);
    assert_eq!(ask("127.0.0.1".into()).await.expect("answer").0, 400);
    assert_eq!(ask("evil.example".into()).await.expect("answer").0, 421);

    // Authority and Host that differ, userinfo, CONNECT, TRACE, too many fields: never lyon, and the siblings live on.
    let uri = format!("https://{paris}/api/v1/tenant");
    let mut odd = vec![
        Request::get(&uri).header("host", &lyon),
        Request::get(format!("https://user@{paris}/api/v1/tenant")),
        Request::connect(format!("{lyon}:443")),
        Request::builder().method("TRACE").uri(&uri),
    ];
    odd.push((0..120).fold(Request::get(&uri), |r, n| r.header(format!("x-{n}"), "y")));
    for request in odd {
        match h2.send(request.body(()).expect("request"), "").await {
            Ok(answer) => {
                assert!(matches!(answer.status, 400 | 405 | 431), "{answer:?}");
                assert!(!answer.body.contains("slug"));
            }
            Err(e) => assert!(e.is_reset() || e.is_remote(), "{e}"),
        }
        assert_eq!(ask(paris.clone()).await.expect("sibling"), (200, "paris".into()));
    }

    // H-39: one connection, a hundred streams at once, each for its own tenant.
    let streams = (0..100).map(|n| {
        let (slug, host) = if n % 3 == 0 { ("lyon", &lyon) } else { ("paris", &paris) };
        let ask = ask(host.clone());
        async move { (slug, ask.await) }
    });
    for (slug, answer) in gather(streams).await {
        assert_eq!(answer.expect("answer"), (200, slug.to_owned()));
    }
}

async fn gather<F>(futures: impl Iterator<Item = F>) -> Vec<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    let tasks: Vec<_> = futures.map(|f| gmah_shared::tasks::detach("concurrent", f)).collect();
    let mut out = Vec::new();
    for task in tasks {
        out.push(task.await.expect("joined"));
    }
    out
}

/// H-40: the router's answer is the model's: normalise, then look up.
#[tokio::test(flavor = "multi_thread")]
async fn h40_random_hosts_agree_with_the_model() {
    let dev = Dev::start().await;
    let base = Hostname::parse("gmah.localhost").expect("base");
    let names = ["(?i)paris", "lyon", "(?i)LYON", "nobody[a-z0-9]{0,3}", "[a-zA-Z0-9.-]{1,12}", "\\PC{1,4}"];
    let strategy =
        names.map(|n| format!("({n})(\\.|\\.\\.)?(gmah\\.localhost|GMAH\\.LocalHost)?\\.?(:[0-9]{{0,5}})?"));
    let mut runner = TestRunner::deterministic();
    let mut stream = dev.client.connect(&dev.host("paris")).await;
    for n in 0..1200 {
        let pattern = &strategy[n % strategy.len()].replace("(?i)", "");
        let host = proptest::string::string_regex(pattern)
            .expect("pattern")
            .new_tree(&mut runner)
            .expect("tree")
            .current();
        let want = model(&host, &base);
        let raw = exchange_or_reconnect(&dev, &mut stream, &host).await;
        let seen = status(&raw).expect("a status");
        let text = String::from_utf8_lossy(&raw);
        assert_eq!(seen, want.0, "{host:?}: {text}");
        if let Some(slug) = want.1 {
            assert!(text.contains(&format!("\"slug\":\"{slug}\"")), "{host:?}: {text}");
        }
    }
}

fn model(host: &str, base: &Hostname) -> (u16, Option<&'static str>) {
    let Ok(name) = Hostname::parse_authority(host.trim_matches([' ', '\t'])) else { return (400, None) };
    if name == *base {
        return (404, None);
    }
    let Some(label) = name.label_under(base) else { return (421, None) };
    match TenantSlug::parse(label) {
        Ok(slug) if slug.as_str() == "paris" => (200, Some("paris")),
        Ok(slug) if slug.as_str() == "lyon" => (200, Some("lyon")),
        _ => (404, None),
    }
}

async fn exchange_or_reconnect(
    dev: &Dev,
    stream: &mut tokio_rustls::client::TlsStream<tokio::net::TcpStream>,
    host: &str,
) -> Vec<u8> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut out = Vec::new();
    stream.write_all(get(host).as_bytes()).await.expect("sent");
    loop {
        let n = stream.read_buf(&mut out).await.expect("read");
        let text = String::from_utf8_lossy(&out).to_lowercase();
        let whole = text.split_once("\r\n\r\n").is_some_and(|(head, body)| {
            let length =
                head.split("content-length: ").nth(1).and_then(|l| l.split("\r\n").next()?.parse().ok());
            body.len() >= length.unwrap_or(0)
        });
        if whole || n == 0 {
            if text.contains("connection: close") || n == 0 {
                *stream = dev.client.connect(&dev.host("paris")).await;
            }
            return out;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_fields_that_are_malformed_or_too_many() {
    let dev = Dev::start().await;
    let paris = dev.host("paris");
    let connection = dev.client.http2(&paris).await;
    let get = || http::Request::get(format!("https://{paris}/api/v1/tenant"));
    // RFC 9113, section 8.2.1: neither begins nor ends with a space.
    for value in [" a", "a ", "\ta", "a\t", " "] {
        let request = get().header("x-a", value).body(()).expect("request");
        let seen = dev.client.http2(&paris).await.send(request, "").await.expect("answer");
        assert_eq!((seen.status, seen.code().as_str()), (400, "malformed_request"), "{value:?}");
    }
    let inside =
        connection.send(get().header("x-a", "a b").body(()).expect("request"), "").await.expect("answer");
    assert_eq!(inside.slug(), (200, "paris".into()));
    // Crumbs of cookies count as one field, up to a number of them (section 8.2.3).
    let crumbs = |n: usize| {
        (0..n).fold(get(), |r, n| r.header("cookie", format!("c{n}=1"))).body(()).expect("request")
    };
    assert_eq!(connection.send(crumbs(200), "").await.expect("answer").status, 200);
    assert_eq!(connection.send(crumbs(201), "").await.expect("answer").status, 431);
}
