//! Family M where the framework and its libraries do the work: regressions are caught here. Each case is followed by a
//! request of somebody else, on the same connection where it lives and on another one.

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::bounds::{END_HEADERS, END_STREAM, GOAWAY, HEADERS, RST_STREAM, frame, get_block, preface};
use crate::harness::dev::{address, text};
use crate::harness::http::{Answer, exchange, request, responses, status, talk, try_read};
use crate::harness::origin::{Origin, answer};
use crate::harness::{Dev, roles};

#[tokio::test(flavor = "multi_thread")]
async fn m21_answers_that_say_two_things_stay_with_their_request() {
    let dev = Dev::start().await;
    let origin = Origin::start(Box::new(|r| {
        let raw = |s: &str| Some(s.as_bytes().to_vec());
        let evil = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nEVIL";
        match r.target().as_str() {
            "/extra" => raw(&format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok{evil}")),
            "/head" => raw(&format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{evil}", evil.len())),
            "/204" => raw(&format!("HTTP/1.1 204 No Content\r\n\r\n{evil}")),
            "/304" => raw(&format!("HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\n{evil}")),
            "/two" => raw("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 4\r\n\r\nokok"),
            "/both" => raw(&format!(
                "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n{evil}"
            )),
            "/negative" => raw("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nok"),
            "/name" => raw("HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok"),
            _ => Some(answer(200, "", "mine")),
        }
    }))
    .await;
    let (router, client) = roles::router(&dev, &[origin.address], |_, _| {}).await;
    let (paris, lyon) = (dev.host("paris"), dev.host("lyon"));
    for (method, path) in [
        ("GET", "/extra"),
        ("HEAD", "/head"),
        ("GET", "/204"),
        ("GET", "/304"),
        ("GET", "/two"),
        ("GET", "/both"),
        ("GET", "/negative"),
        ("GET", "/name"),
    ] {
        let mut stream = client.connect(&paris).await;
        let first = talk(&mut stream, &request(method, &paris, path, &[], None)).await;
        assert!(
            responses(&first) == 1 && !String::from_utf8_lossy(&first).contains("EVIL") || method == "HEAD",
            "{path}"
        );
        assert!(!first.ends_with(b"EVIL"), "{path}: {}", String::from_utf8_lossy(&first));
        assert!(
            matches!(status(&first), Some(200 | 204 | 304 | 502)),
            "{path}: {:?}",
            String::from_utf8_lossy(&first)
        );
        // Somebody else, on the same connection if it still stands, and on several others.
        let next = talk(&mut stream, &request("GET", &lyon, "/mine", &[], None)).await;
        assert!(next.is_empty() || next.ends_with(b"mine"), "{path}: {}", String::from_utf8_lossy(&next));
        for _ in 0..3 {
            let seen = client.get(&lyon, "/mine", &[]).await;
            assert_eq!((seen.status, seen.body.as_str()), (200, "mine"), "{path}");
        }
    }
    router.stop().await;
}

/// A field that is not indexed, with its name spelt out.
fn field(name: &str, value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x00, u8::try_from(name.len()).expect("short")];
    bytes.extend(name.as_bytes());
    bytes.push(u8::try_from(value.len()).expect("short"));
    bytes.extend(value);
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn m16_m18_m19_malformed_streams_and_their_neighbours() {
    const DATA: u8 = 0;
    let dev = Dev::start().await;
    let origin = Origin::ok().await;
    let (router, client) = roles::router(&dev, &[origin.address], |_, _| {}).await;
    let paris = dev.host("paris");
    let with = |more: &[Vec<u8>]| [get_block(&paris), more.concat()].concat();
    let post = |length: &[u8]| {
        let mut block = get_block(&paris);
        block[0] = 0x83; // :method POST
        block.extend(field("content-length", length));
        block
    };
    let whole = |block: &[u8]| frame(HEADERS, END_STREAM | END_HEADERS, 1, block);
    let cases: [(&str, Vec<u8>); 12] = [
        ("a line break in a value", whole(&with(&[field("x-a", b"a\r\nx-tenant-token: b")]))),
        ("a NUL in a value", whole(&with(&[field("x-a", b"a\0b")]))),
        ("a colon in a name", whole(&with(&[field("x:a", b"b")]))),
        ("a space in a name", whole(&with(&[field("x a", b"b")]))),
        ("upper case in a name", whole(&with(&[field("X-A", b"b")]))),
        ("a connection field", whole(&with(&[field("connection", b"close")]))),
        ("transfer-encoding", whole(&with(&[field("transfer-encoding", b"chunked")]))),
        ("an unknown pseudo field", whole(&with(&[field(":x", b"b")]))),
        ("a path twice", whole(&with(&[field(":path", b"/other")]))),
        ("a status in a request", whole(&with(&[field(":status", b"200")]))),
        ("less body than said", frame(HEADERS, END_STREAM | END_HEADERS, 1, &post(b"10"))),
        (
            "more body than said",
            [frame(HEADERS, END_HEADERS, 1, &post(b"0")), frame(DATA, END_STREAM, 1, b"0123456789")].concat(),
        ),
    ];
    for (name, bytes) in cases {
        let mut stream = client.try_connect(&paris, &[b"h2"]).await.expect("handshake");
        let good = frame(HEADERS, END_STREAM | END_HEADERS, 3, &get_block(&paris));
        let back = talk(&mut stream, &[preface(), bytes, good].concat()).await;
        let kinds = kinds(&back);
        let refused = kinds.contains(&(RST_STREAM, 1)) || kinds.contains(&(GOAWAY, 0));
        // A stream that is refused by us is answered with a status of its own.
        let answered = kinds.contains(&(HEADERS, 1));
        assert!(refused || answered, "{name}: {kinds:?}");
        let seen = origin.take();
        // A head goes on before its body is there: what is wrong with a body is never forwarded, its head may be.
        let gets = seen.iter().filter(|r| r.head.starts_with("GET / ")).count();
        assert!(gets <= 1 && seen.len() - gets <= usize::from(name.contains("body")), "{name}: {seen:?}");
        assert!(seen.iter().all(|r| r.all("x-a").is_empty() && r.body.is_empty()), "{name}: {seen:?}");
        assert_eq!(client.get(&paris, "/", &[]).await.status, 200, "{name}");
        origin.take();
    }
    router.stop().await;
}

/// Kind and stream of each frame.
fn kinds(mut bytes: &[u8]) -> Vec<(u8, u32)> {
    let mut seen = Vec::new();
    while let [a, b, c, kind, _, s0, s1, s2, s3, rest @ ..] = bytes {
        seen.push((*kind, u32::from_be_bytes([*s0, *s1, *s2, *s3])));
        let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
        let Some(after) = rest.get(length..) else { break };
        bytes = after;
    }
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn t04_a_client_hello_in_records_of_one_byte() {
    let dev = Dev::start().await;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(text(&dev.info["ca"])).expect("CA")).expect("root");
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let (https, host) = (address(&dev.info["https"]), dev.host("paris"));
    let name = ServerName::try_from(host.clone()).expect("name");
    let bytes = request("GET", &host, "/api/v1/tenant", &[("Connection", "close")], None);
    let shaken = tokio::task::spawn_blocking(move || {
        let mut client = ClientConnection::new(Arc::new(config), name).expect("client");
        let mut tcp = std::net::TcpStream::connect(https).expect("connect");
        tcp.set_nodelay(true).expect("option");
        tcp.set_read_timeout(Some(Duration::from_secs(10))).expect("option");
        let mut hello = Vec::new();
        client.write_tls(&mut hello).expect("hello");
        // One record of five bytes' head becomes as many records as it has bytes.
        let (head, body) = hello.split_at(5);
        for byte in body {
            tcp.write_all(&[head[0], head[1], head[2], 0, 1, *byte]).expect("sent");
        }
        let mut tls = rustls::Stream::new(&mut client, &mut tcp);
        tls.write_all(&bytes).expect("sent");
        let mut back = Vec::new();
        let _ = tls.read_to_end(&mut back);
        back
    });
    let back = shaken.await.expect("joined");
    let seen = String::from_utf8_lossy(&back).into_owned();
    assert!(seen.contains("\"slug\":\"paris\""), "{seen}");
    // Nothing but hellos that never end: they end.
    let mut tcp = tokio::net::TcpStream::connect(https).await.expect("connect");
    let endless: Vec<u8> = std::iter::repeat_n([0x16, 3, 1, 0, 1, 1], 30_000).flatten().collect();
    let _ = tcp.write_all(&endless).await;
    assert!(talk(&mut tcp, b"").await.len() < 100);
    assert_eq!(dev.get("lyon", "/api/v1/tenant").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn m07_the_api_never_leaves_a_body_unread_without_a_word() {
    let dev = Dev::start().await;
    let (api, host) = (address(&dev.info["api"]), dev.host("paris"));
    let head = |length: usize, more: &str| {
        let path = "/api/v1/members";
        format!("POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n{more}\r\n").into_bytes()
    };
    let is_last = |answer: &Answer| answer.header("connection") == Some("close");
    let next = request("GET", &host, "/api/v1/tenant", &[], None);

    // Refused for what its head lacks, before a byte of its body is there: the connection goes on.
    let mut in_time = 0;
    for _ in 0..20 {
        let mut stream = tokio::net::TcpStream::connect(api).await.expect("connect");
        let began = Instant::now();
        stream.write_all(&head(20, "")).await.expect("head");
        tokio::time::sleep(Duration::from_millis(50)).await;
        let seen = exchange(&mut stream, &[b'x'; 20]).await;
        assert_eq!((seen.status, seen.code()), (401, "invalid_tenant_token".into()));
        // A machine that is busy with others may be late itself.
        if began.elapsed() < Duration::from_millis(400) {
            assert!(!is_last(&seen), "{seen:?}");
            let seen = exchange(&mut stream, &next).await;
            assert_eq!((seen.status, is_last(&seen)), (401, false));
            in_time += 1;
        }
        if in_time == 3 {
            break;
        }
    }
    assert_eq!(in_time, 3, "of twenty");

    // What comes too late, is too much, ends before its end, or waits to be asked for: the answer says that it is the last.
    let cases: [(&str, usize, &str, Vec<u8>); 4] = [
        ("nothing", 20, "", vec![]),
        ("a part", 20, "", vec![b'x'; 19]),
        ("too much", 3 << 20, "", vec![b'x'; 2 << 20]),
        ("withheld", 20, "Expect: 100-continue\r\n", vec![]),
    ];
    for (what, length, more, body) in cases {
        let (mut reads, mut writes) =
            tokio::net::TcpStream::connect(api).await.expect("connect").into_split();
        writes.write_all(&head(length, more)).await.expect("head");
        let talks = async {
            // It may have heard enough.
            let (_, seen) = tokio::join!(writes.write_all(&body), try_read(&mut reads));
            let seen = seen.expect(what);
            assert_eq!((seen.status, is_last(&seen)), (401, true), "{what}: {:?}", seen.headers);
            let mut rest = [0; 1];
            assert!(!matches!(reads.read(&mut rest).await, Ok(1..)), "{what}: nothing after the last");
        };
        tokio::time::timeout(Duration::from_secs(20), talks).await.expect(what);
    }
}
