//! Stopping: readiness first, requests in flight finish, and as soon as nothing runs it is over.

use std::sync::Arc;
use std::time::{Duration, Instant};

use gmah_shared::config::HumanDuration;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use crate::harness::dev::{BINARY, address};
use crate::harness::http::{is_closed, plain, request, status, talk};
use crate::harness::{Dev, eventually, roles};

/// A backend that answers when it is told to.
async fn slow_backend() -> (std::net::SocketAddr, Arc<Notify>, Arc<Notify>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let (arrived, answer) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (a, b, at) = (arrived.clone(), answer.clone(), listener.local_addr().expect("address"));
    drop(gmah_shared::tasks::detach("slow-backend", async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("accept");
            let (a, b) = (a.clone(), b.clone());
            drop(gmah_shared::tasks::detach("slow-answer", async move {
                // A connection without a request is the router's question how we are.
                if !matches!(stream.read(&mut [0u8; 8192]).await, Ok(n) if n > 0) {
                    return;
                }
                a.notify_one();
                b.notified().await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate").await;
            }));
        }
    }));
    (at, arrived, answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn l04_requests_in_flight_finish() {
    let dev = Dev::start().await;
    let (backend, arrived, answer) = slow_backend().await;
    let (router, client) =
        roles::router(&dev, &[backend], |_, c| c.router.drain_delay = HumanDuration::from_millis(300)).await;
    let (https, admin, paris) = (router.https, router.admin, dev.host("paris"));
    let mut idle = client.connect(&paris).await;
    let idle_h2 = client.http2(&paris).await;
    let flying = {
        let (client, paris) = (client.clone(), paris.clone());
        gmah_shared::tasks::detach("in-flight", async move { client.get(&paris, "/slow", &[]).await })
    };
    arrived.notified().await;
    let stopping = gmah_shared::tasks::detach("stop", async move {
        let began = Instant::now();
        router.stop().await;
        began.elapsed()
    });
    eventually(
        "readiness goes first",
        Duration::from_secs(2),
        || async { plain(admin, "/readyz").await.status },
        |s| *s == 503,
    )
    .await;
    assert!(TcpStream::connect(https).await.is_ok(), "while balancers notice, it still accepts");
    assert!(is_closed(&mut idle).await, "idle connections end at once");
    assert!(!stopping.is_finished());
    answer.notify_one();
    let finished = flying.await.expect("joined");
    assert_eq!(
        (finished.status, finished.body.as_str(), finished.header("connection")),
        (200, "late", Some("close"))
    );
    let took = stopping.await.expect("joined");
    assert!(idle_h2.get(&paris, "/").await.is_err(), "the idle HTTP/2 connection has ended too");
    assert!(took < Duration::from_secs(10), "over as soon as nothing runs: {took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn l04_the_grace_period_ends() {
    let dev = Dev::start().await;
    let (backend, arrived, _never) = slow_backend().await;
    let (router, client) =
        roles::router(&dev, &[backend], |_, c| c.router.drain_timeout = HumanDuration::from_millis(500))
            .await;
    let paris = dev.host("paris");
    let mut stream = client.connect(&paris).await;
    stream.write_all(&request("GET", &paris, "/slow", &[], None)).await.expect("sent");
    arrived.notified().await;
    let began = Instant::now();
    router.stop().await;
    assert!(began.elapsed() < Duration::from_secs(8));
    let raw = talk(&mut stream, b"").await;
    assert_ne!(status(&raw), Some(200), "never a response that looks whole");
}

/// The roles as processes of their own, on a configuration file, ended by SIGTERM.
#[tokio::test(flavor = "multi_thread")]
async fn roles_as_processes_end_on_sigterm() {
    let dev = Dev::start().await;
    // Below the ports that the kernel gives to outgoing connections, of which this machine is full just now.
    let free = || loop {
        let port = 10_240 + (uuid::Uuid::new_v4().as_u128() % 22_000) as u16;
        if let Ok(listener) = std::net::TcpListener::bind(("127.0.0.1", port)) {
            return listener.local_addr().expect("address");
        }
    };
    let ports = [free(), free(), free(), free(), free()];
    let mut text = std::fs::read_to_string(dev.config().path()).expect("configuration");
    let keys = ["https", "http", "admin", "api", "api_admin"];
    for (key, port) in keys.iter().zip(ports) {
        text = text.replace(&format!("\"{}\"", address(&dev.info[*key])), &format!("\"{port}\""));
    }
    let path = dev.folder().join("roles.toml");
    std::fs::write(&path, text).expect("written");
    let spawn = |role: &str| {
        tokio::process::Command::new(BINARY)
            .arg("--config")
            .arg(&path)
            .arg(role)
            .stderr(std::process::Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("started")
    };
    let mut children = [spawn("router"), spawn("api")];
    let client = dev.client.at(ports[0]);
    let paris = dev.host("paris");
    let up = || async {
        let Ok(mut stream) = client.try_connect(&paris, &[]).await else { return 0 };
        let raw = talk(
            &mut stream,
            format!("GET /api/v1/tenant HTTP/1.1\r\nHost: {paris}\r\nConnection: close\r\n\r\n").as_bytes(),
        )
        .await;
        status(&raw).unwrap_or(0)
    };
    eventually("both serve", Duration::from_secs(20), up, |s| *s == 200).await;
    for child in &mut children {
        let pid = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)).expect("running");
        kill_process(pid, Signal::TERM).expect("signalled");
        let ended = tokio::time::timeout(Duration::from_secs(10), child.wait())
            .await
            .expect("in time")
            .expect("wait");
        assert!(ended.success(), "{ended}");
    }
}
