//! WebSockets through the router: their own deadlines, and their end with their organisation.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use gmah_shared::config::{HumanDuration, Within};
use gmah_shared::tasks;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::harness::http::{is_closed, request};
use crate::harness::{Dev, roles};

/// A backend that speaks WebSocket's opening and then echoes bytes.
pub(crate) async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    drop(tasks::detach("echo", async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("accept");
            drop(tasks::detach("echo-connection", async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    if stream.read_buf(&mut head).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                let text = String::from_utf8_lossy(&head).to_lowercase();
                assert!(text.contains("x-tenant-token") && text.contains("upgrade: websocket"), "{text}");
                let switch = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                              Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
                stream.write_all(switch.as_bytes()).await.expect("sent");
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            }));
        }
    }));
    address
}

const WEBSOCKET: [(&str, &str); 4] = [
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

/// Opens one; the stream right after the answer.
pub(crate) async fn open_websocket<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(
    stream: &mut S,
    host: &str,
) {
    stream.write_all(&request("GET", host, "/ws", &WEBSOCKET, None)).await.expect("sent");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let n = tokio::time::timeout(Duration::from_secs(5), stream.read_buf(&mut head)).await;
        assert!(n.expect("in time").expect("read") > 0, "{}", String::from_utf8_lossy(&head));
    }
    let text = String::from_utf8_lossy(&head).to_lowercase();
    assert!(text.starts_with("http/1.1 101 ") && text.contains("upgrade: websocket"), "{text}");
}

pub(crate) async fn echoes<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(
    stream: &mut S,
    bytes: &[u8],
) {
    stream.write_all(bytes).await.expect("sent");
    stream.flush().await.expect("sent");
    let mut back = vec![0; bytes.len()];
    let read = tokio::time::timeout(Duration::from_secs(5), stream.read_exact(&mut back)).await;
    read.expect("in time").expect("read");
    assert_eq!(back, bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn m15_websockets_live_and_end_with_their_organisation() {
    let dev = Dev::start().await;
    let backend = echo().await;
    let (router, client) = roles::router(&dev, &[backend], |_, c| {
        let pool = roles::api_pool(c);
        pool.read_timeout = HumanDuration::from_millis(300);
        pool.total_timeout = HumanDuration::from_millis(600);
        pool.websocket_idle_timeout = HumanDuration::from_millis(1500);
        c.router.limits.body_timeout = HumanDuration::from_millis(300);
        // Frames are no body: neither slow nor too large.
        c.router.limits.body_rate_window = HumanDuration::from_millis(200);
        c.router.limits.max_body_bytes = Within::new(10_000);
    })
    .await;
    let (paris, lyon) = (dev.host("paris"), dev.host("lyon"));
    let mut a = client.connect(&paris).await;
    let mut b = client.connect(&lyon).await;
    open_websocket(&mut a, &paris).await;
    open_websocket(&mut b, &lyon).await;
    echoes(&mut a, b"\x81\x85hello").await;
    // Longer than any request may take or wait, as long as something is said now and then.
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        echoes(&mut a, b"still here").await;
        echoes(&mut b, &[7; 100_000]).await;
    }
    // Its organisation suspended: over within a moment, and nobody else's.
    assert!(dev.cli(&["tenant", "suspend", "lyon"]).await.status.success());
    let began = Instant::now();
    let mut rest = Vec::new();
    while began.elapsed() < Duration::from_secs(10) {
        let _ = b.write_all(b"x").await;
        match tokio::time::timeout(Duration::from_millis(100), b.read_buf(&mut rest)).await {
            Ok(Ok(0) | Err(_)) => break,
            _ => echoes(&mut a, b"mine").await,
        }
    }
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    echoes(&mut a, b"unmoved").await;
    // Silence on both sides ends it.
    assert!(is_closed(&mut a).await);
    router.stop().await;
}
