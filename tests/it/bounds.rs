//! Family R, and whose connection it is: clients that are slow, greedy or hostile in HTTP; proxies in front.

use std::time::{Duration, Instant};

use gmah_shared::config::{HumanDuration, Within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::dev::Metrics;
use crate::harness::http::{exchange, is_closed, request, status, talk};
use crate::harness::origin::{self, Origin};
use crate::harness::{Dev, eventually, roles};

fn metrics(router: &gmah_router::server::RunningRouter) -> Metrics {
    Metrics(router.metrics.text().expect("metrics"))
}

/// A frame of HTTP/2 (RFC 9113, section 4.1).
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("length").to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// The preface and empty settings.
pub(crate) fn preface() -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, &[]));
    bytes
}

/// A header block (RFC 7541) for `GET / https` at that host, nothing indexed.
pub(crate) fn get_block(host: &str) -> Vec<u8> {
    let mut block = vec![0x82, 0x87, 0x84, 0x01, u8::try_from(host.len()).expect("short")];
    block.extend(host.as_bytes());
    block
}

pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// The error code of the GOAWAY in what a server sent, if there is one.
fn goaway(mut bytes: &[u8]) -> Option<u32> {
    while let [a, b, c, kind, _, _, _, _, _, rest @ ..] = bytes {
        let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
        if *kind == GOAWAY {
            return rest.get(4..8)?.try_into().ok().map(u32::from_be_bytes);
        }
        bytes = rest.get(length..)?;
    }
    None
}

#[tokio::test(flavor = "multi_thread")]
async fn r04_rapid_reset() {
    let dev = Dev::start().await;
    let origin = Origin::ok().await;
    let (router, client) = roles::router(&dev, &[origin.address], |_, _| {}).await;
    let paris = dev.host("paris");
    let mut stream = client.try_connect(&paris, &[b"h2"]).await.expect("handshake");
    let mut flood = preface();
    for n in 0..10_000u32 {
        let id = 2 * n + 1;
        flood.extend(frame(HEADERS, END_STREAM | END_HEADERS, id, &get_block(&paris)));
        flood.extend(frame(RST_STREAM, 0, id, &8u32.to_be_bytes()));
    }
    let back = talk(&mut stream, &flood).await;
    assert_eq!(goaway(&back), Some(11), "ENHANCE_YOUR_CALM");
    assert!(origin.take().len() < 1000);
    assert!(is_closed(&mut stream).await);

    // The same, one by one, so that each stream is taken up before it is abandoned.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let silent_address = silent.local_addr().expect("address");
    let (other, client) = roles::router(&dev, &[silent_address], |_, _| {}).await;
    let mut stream = client.try_connect(&paris, &[b"h2"]).await.expect("handshake");
    stream.write_all(&preface()).await.expect("sent");
    let mut back = Vec::new();
    for n in 0..3000u32 {
        let id = 2 * n + 1;
        let headers = frame(HEADERS, END_STREAM | END_HEADERS, id, &get_block(&paris));
        if stream.write_all(&headers).await.is_err() || stream.flush().await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        if stream.write_all(&frame(RST_STREAM, 0, id, &8u32.to_be_bytes())).await.is_err() {
            break;
        }
        if let Ok(Ok(0) | Err(_)) = tokio::time::timeout(Duration::ZERO, stream.read_buf(&mut back)).await {
            break;
        }
    }
    let _ = tokio::time::timeout(Duration::from_secs(2), stream.read_to_end(&mut back)).await;
    assert_eq!(goaway(&back), Some(11), "ENHANCE_YOUR_CALM");
    assert!(metrics(&other).sum("gmah_router_rejections_total", &["too_many_resets"]) >= 1.0);
    router.stop().await;
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r06_r07_header_blocks_without_end_or_measure() {
    let dev = Dev::start().await;
    let origin = Origin::ok().await;
    let (router, client) = roles::router(&dev, &[origin.address], |_, _| {}).await;
    let paris = dev.host("paris");

    // CONTINUATION after CONTINUATION.
    let mut stream = client.try_connect(&paris, &[b"h2"]).await.expect("handshake");
    let mut flood = preface();
    flood.extend(frame(HEADERS, END_STREAM, 1, &get_block(&paris)));
    for _ in 0..10_000 {
        flood.extend(frame(CONTINUATION, 0, 1, &[0x00, 0x01, b'a', 0x01, b'b']));
    }
    let back = talk(&mut stream, &flood).await;
    assert!(goaway(&back).is_some(), "{} bytes", back.len());
    assert!(is_closed(&mut stream).await);

    // One large field, indexed, then referred to by one byte each: 4,000 bytes times thousands.
    let mut stream = client.try_connect(&paris, &[b"h2"]).await.expect("handshake");
    let value = vec![b'x'; 3900];
    let mut block = get_block(&paris);
    block.extend([0x40, 1, b'a', 0x7f, 0xbd, 0x1d]); // 3900 as a 7-bit prefixed integer
    block.extend(&value);
    block.extend(std::iter::repeat_n(0xbe, 8000)); // the first entry of the dynamic table
    let mut bomb = preface();
    bomb.extend(frame(HEADERS, END_STREAM | END_HEADERS, 1, &block));
    let back = talk(&mut stream, &bomb).await;
    assert!(!back.is_empty());
    drop(stream);
    assert!(origin.take().is_empty(), "nothing of it reached a backend");
    assert_eq!(client.get(&paris, "/", &[]).await.status, 200);
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r01_r09_bodies_that_drip_and_answers_that_are_not_read() {
    let dev = Dev::start().await;
    let large = Origin::start(Box::new(|_| Some(origin::answer(200, "", &"x".repeat(8 << 20))))).await;
    let (router, client) = roles::router(&dev, &[large.address], |_, c| {
        let l = &mut c.router.limits;
        (l.body_rate_window, l.write_timeout) =
            (HumanDuration::from_millis(300), HumanDuration::from_millis(600));
        l.body_timeout = HumanDuration::from_millis(600);
        roles::api_pool(c).read_timeout = HumanDuration::from_millis(600);
    })
    .await;
    let paris = dev.host("paris");

    // A byte now and then: never silent for long, never done.
    let mut slow = client.connect(&paris).await;
    let began = Instant::now();
    let head = format!("POST / HTTP/1.1\r\nHost: {paris}\r\nContent-Length: 4096\r\n\r\n");
    slow.write_all(head.as_bytes()).await.expect("sent");
    let mut back = Vec::new();
    while began.elapsed() < Duration::from_secs(5) {
        if slow.write_all(b"x").await.is_err() || slow.flush().await.is_err() {
            break;
        }
        if let Ok(Ok(_) | Err(_)) =
            tokio::time::timeout(Duration::from_millis(50), slow.read_buf(&mut back)).await
        {
            break;
        }
    }
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert_eq!(status(&back), Some(408), "{}", String::from_utf8_lossy(&back));
    drop(slow);

    // Answers of 8 MiB whose windows stay shut: every stream is given up, and the connection comes free.
    let mut greedy = client.try_connect(&paris, &[b"h2"]).await.expect("handshake");
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, &[0, 4, 0, 0, 0, 0])); // SETTINGS_INITIAL_WINDOW_SIZE = 0
    for n in 0..100u32 {
        bytes.extend(frame(HEADERS, END_STREAM | END_HEADERS, 2 * n + 1, &get_block(&paris)));
    }
    greedy.write_all(&bytes).await.expect("sent");
    greedy.flush().await.expect("sent");
    eventually("taken up", Duration::from_secs(3), || async { large.take().len() }, |n| *n > 0).await;
    let mut back = Vec::new();
    let given_up = async {
        let mut buf = [0u8; 16 * 1024];
        while count(&back, RST_STREAM) < 100 {
            match greedy.read(&mut buf).await {
                Ok(n) if n > 0 => back.extend(&buf[..n]),
                _ => break,
            }
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(8), given_up).await;
    assert_eq!(count(&back, RST_STREAM), 100);
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answered_stream_does_not_wait_for_its_request() {
    let dev = Dev::start().await;
    let origin = Origin::ok().await;
    // The backend answers before the body is there, which never comes.
    let early = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = early.local_addr().expect("address");
    let answering = gmah_shared::tasks::detach("early", async move {
        let mut kept = Vec::new();
        while let Ok((mut socket, _)) = early.accept().await {
            let mut buf = [0u8; 4096];
            let _ = socket.read(&mut buf).await;
            let _ = socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            kept.push(socket);
        }
    });
    let (router, client) = roles::router(&dev, &[address], |_, c| {
        c.router.limits.body_timeout = HumanDuration::from_secs(16);
        c.router.limits.write_timeout = HumanDuration::from_secs(2);
        roles::api_pool(c).read_timeout = HumanDuration::from_secs(16);
    })
    .await;
    let paris = dev.host("paris");
    let connection = client.http2(&paris).await;
    let post = http::Request::post(format!("https://{paris}/")).body(()).expect("request");
    let (response, mut body) = connection.begin(post).await;
    assert_eq!(response.await.expect("answered").status(), 200);
    // Not the 32 s that body and backend may be still.
    let ended =
        tokio::time::timeout(Duration::from_secs(12), std::future::poll_fn(|cx| body.poll_reset(cx))).await;
    assert!(ended.is_ok(), "the stream is still open");
    // It counts all the same, once.
    let counted = || async {
        let text = router.metrics.text().expect("metrics");
        let metrics = crate::harness::dev::Metrics(text);
        let sum = |name: &str, labels: &[&str]| metrics.sum(name, labels);
        (
            sum("gmah_router_tenant_requests_total", &["paris", "2xx"]),
            sum("gmah_router_tenant_bytes_total", &["paris", "out"]),
        )
    };
    eventually("counted", Duration::from_secs(5), counted, |c| *c == (1.0, 2.0)).await;
    answering.abort();
    drop(origin);
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_read_slowly_is_read_to_its_end() {
    let dev = Dev::start().await;
    let large = Origin::start(Box::new(|_| Some(origin::answer(200, "", &"x".repeat(300_000))))).await;
    // A stream in which nothing moves is given up after 32 s, and looked at every 2 s.
    let (router, client) = roles::router(&dev, &[large.address], |_, c| {
        c.router.limits.body_timeout = HumanDuration::from_secs(16);
        roles::api_pool(c).read_timeout = HumanDuration::from_secs(16);
    })
    .await;
    let paris = dev.host("paris");
    let stream = client.try_connect(&paris, &[b"h2"]).await.expect("handshake");
    let (sender, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    let driver = gmah_shared::tasks::detach("http2-client", connection);
    let get = http::Request::get(format!("https://{paris}/")).body(()).expect("request");
    let (response, _) = sender.ready().await.expect("ready").send_request(get, true).expect("sent");
    let mut body = response.await.expect("answered").into_body();
    // The window is 64 KiB: the rest waits in the router, all of it.
    let mut length = 0;
    while length < 60_000 {
        length += body.data().await.expect("more").expect("whole").len();
    }
    tokio::time::sleep(Duration::from_secs(9)).await;
    body.flow_control().release_capacity(length).expect("released");
    while let Some(piece) = body.data().await {
        let piece = piece.expect("whole");
        body.flow_control().release_capacity(piece.len()).expect("released");
        length += piece.len();
    }
    assert_eq!(length, 300_000);
    driver.abort();
    router.stop().await;
}

/// How many frames of a kind there are.
fn count(mut bytes: &[u8], wanted: u8) -> usize {
    let mut seen = 0;
    while let [a, b, c, kind, _, _, _, _, _, rest @ ..] = bytes {
        seen += usize::from(*kind == wanted);
        let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
        let Some(after) = rest.get(length..) else { break };
        bytes = after;
    }
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_of_one_address_have_a_rate() {
    let dev = Dev::start().await;
    let origin = Origin::ok().await;
    let (router, client) = roles::router(&dev, &[origin.address], |_, c| {
        c.router.limits.max_new_connections_per_address = Within::new(20);
    })
    .await;
    let paris = dev.host("paris");
    let mut served = 0;
    for _ in 0..40 {
        served += usize::from(client.try_connect(&paris, &[]).await.is_ok());
    }
    assert!((20..25).contains(&served), "{served}");
    assert!(metrics(&router).sum("gmah_router_refused_connections_total", &["rate"]) >= 15.0);
    router.stop().await;
}

const V1: &[u8] = b"PROXY TCP4 192.0.2.7 198.51.100.1 1234 443\r\n";
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\xc6\x33\x64\x01\x04\xd2\x01\xbb";

#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_protocol_from_configured_networks_only() {
    let dev = Dev::start().await;
    let origin = Origin::ok().await;
    let (trusting, _) = roles::router(&dev, &[origin.address], |_, c| {
        c.router.proxies.proxy_protocol_from = vec!["127.0.0.0/8".parse().expect("network")];
        c.router.limits.handshake_timeout = HumanDuration::from_millis(500);
        c.router.limits.max_connections_per_address = Within::new(3);
    })
    .await;
    let paris = dev.host("paris");
    let get = request("GET", &paris, "/", &[("X-Forwarded-For", "203.0.113.9")], None);
    for header in [V1, V2] {
        // TLS: the client's address goes to the backend; byte by byte makes no difference.
        for in_pieces in [false, true] {
            let mut tcp = TcpStream::connect(trusting.https).await.expect("connect");
            if in_pieces {
                for byte in header {
                    tcp.write_all(&[*byte]).await.expect("sent");
                }
            } else {
                tcp.write_all(header).await.expect("sent");
            }
            let mut tls = dev.client.over(tcp, &paris).await.expect("handshake");
            assert_eq!(exchange(&mut tls, &get).await.status, 200);
            assert_eq!(origin.take()[0].all("x-forwarded-for"), ["192.0.2.7"]);
        }
        // The plain port, with the request in the same packet.
        let mut tcp = TcpStream::connect(trusting.http).await.expect("connect");
        let both = [header, &request("GET", &paris, "/a", &[], None)].concat();
        assert_eq!(status(&talk(&mut tcp, &both).await), Some(308));
    }
    // Without a header, with junk, with half of one: closed without a word.
    for bytes in [&get[..], b"PROXY TCP4 junk\r\n", b"PROXY TCP4 192.0.2.7", b"\r\n\r\n\0\r\nQUIT\n"] {
        for address in [trusting.https, trusting.http] {
            let mut tcp = TcpStream::connect(address).await.expect("connect");
            assert!(talk(&mut tcp, bytes).await.is_empty(), "{bytes:?}");
        }
    }
    // Caps count the client that was named, and not the proxy.
    let mut held = Vec::new();
    for n in 0..6u8 {
        let mut tcp = TcpStream::connect(trusting.http).await.expect("connect");
        let line = format!("PROXY TCP4 192.0.2.{} 198.51.100.1 1 80\r\n", if n < 4 { 1 } else { 2 });
        tcp.write_all(line.as_bytes()).await.expect("sent");
        held.push(tcp);
    }
    let refused =
        || async { metrics(&trusting).sum("gmah_router_refused_connections_total", &["\"address\""]) };
    eventually("one over the cap", Duration::from_secs(3), refused, |n| *n == 1.0).await;
    assert!(metrics(&trusting).sum("gmah_router_refused_connections_total", &["proxy_header"]) >= 8.0);
    trusting.stop().await;

    // From anywhere else it is no header but a broken request, or a broken handshake.
    let (careful, client) = roles::router(&dev, &[origin.address], |_, _| {}).await;
    let mut tcp = TcpStream::connect(careful.http).await.expect("connect");
    let both = [V1, &request("GET", &paris, "/a", &[], None)].concat();
    assert_eq!(status(&talk(&mut tcp, &both).await), Some(400));
    let mut tcp = TcpStream::connect(careful.https).await.expect("connect");
    tcp.write_all(V2).await.expect("sent");
    assert!(client.over(tcp, &paris).await.is_err());
    careful.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s04_x_forwarded_for_from_configured_proxies_only() {
    let dev = Dev::start().await;
    let origin = Origin::ok().await;
    let paris = dev.host("paris");
    let fields = [("X-Forwarded-For", "203.0.113.9, 198.51.100.4"), ("X-Forwarded-Proto", "http")];
    for (trusted, want) in [("127.0.0.1/32", "198.51.100.4"), ("10.0.0.0/8", "127.0.0.1")] {
        let (router, client) = roles::router(&dev, &[origin.address], |_, c| {
            c.router.proxies.forwarded_from = vec![trusted.parse().expect("network")];
        })
        .await;
        let seen = client.get(&paris, "/", &fields).await;
        assert_eq!(seen.status, 200);
        let request = origin.take().remove(0);
        assert_eq!(request.all("x-forwarded-for"), [want]);
        assert_eq!(request.all("x-forwarded-proto"), ["https"]);
        // What every response says, a backend's and ours.
        for answer in [seen, client.get(&dev.host("nobody"), "/", &[]).await] {
            assert_eq!(answer.header("strict-transport-security"), Some("max-age=31536000"), "{answer:?}");
            assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        }
        router.stop().await;
    }
}
