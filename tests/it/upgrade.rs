//! Another configuration, and another program, for a router that runs: nobody notices.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use gmah_router::config::{RouterConfig, Rule};
use gmah_shared::config::{ConfigFile, Within};
use gmah_shared::tasks;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

use crate::harness::dev::{BINARY, address};
use crate::harness::dns::free;
use crate::harness::http::{Client, exchange, plain, request, status, talk};
use crate::harness::origin::Origin;
use crate::harness::{Dev, eventually, roles};
use crate::websockets::{echo, echoes, open_websocket};

#[tokio::test(flavor = "multi_thread")]
async fn l03_a_configuration_is_taken_as_a_whole_or_not_at_all() {
    let dev = Dev::start().await;
    let (first, second) = (Origin::ok().await, Origin::ok().await);
    let (router, client) = roles::router(&dev, &[first.address], |_, _| {}).await;
    let paris = dev.host("paris");
    let fresh = |backend: SocketAddr| {
        let mut config = RouterConfig::from_file(&dev.config()).expect("configuration");
        (config.router.https, config.router.http, config.router.admin) =
            (([127, 0, 0, 1], 0).into(), ([127, 0, 0, 1], 0).into(), ([127, 0, 0, 1], 0).into());
        roles::api_pool(&mut config).addresses = vec![backend.into()];
        config
    };
    let mut open = client.connect(&paris).await;
    let served = || async {
        let answer = client.get(&paris, "/x", &[]).await;
        (answer.status, first.take().len(), second.take().len())
    };
    assert_eq!(served().await, (200, 1, 0));
    router.reload(fresh(second.address)).await.expect("loaded");
    assert_eq!(served().await, (200, 0, 1), "new requests go elsewhere");
    let bytes = request("GET", &paris, "/x", &[], None);
    assert_eq!(exchange(&mut open, &bytes).await.status, 200, "on an old connection as well");

    // Each with one fault; what is right in it is not taken either.
    let with = |change: fn(&mut RouterConfig)| {
        let mut config = fresh(first.address);
        change(&mut config);
        config
    };
    for bad in [
        with(|c| c.router.certificate_file = Some("/nowhere.pem".into())),
        with(|c| (c.router.certificate_file, c.router.key_file) = (None, None)),
        with(|c| roles::api_pool(c).ca_file = Some("/nowhere.pem".into())),
        with(|c| c.router.workers = Within::new(7)),
        with(|c| c.router.https = ([127, 0, 0, 1], 1).into()),
        with(|c| {
            let name = gmah_shared::hostname::Hostname::parse("nowhere.invalid").expect("name");
            roles::api_pool(c).addresses.push(gmah_router::config::Target::Name(name, 80));
        }),
    ] {
        let refused = router.reload(bad).await.expect_err("a fault");
        second.take();
        assert_eq!(served().await, (200, 0, 1), "{refused}");
    }
    // Limits and rules.
    let mut config = fresh(first.address);
    config.router.limits.max_body_bytes = Within::new(10);
    config.router.routes = vec![Rule { prefix: "/only/".into(), pool: "api".into() }];
    router.reload(config).await.expect("loaded");
    assert_eq!(client.get(&paris, "/x", &[]).await.status, 404);
    assert_eq!(client.send("POST", &paris, "/only/x", &[], Some("{\"long\":\"body\"}")).await.status, 413);
    router.stop().await;
}

/// A router as a process of its own, in front of the api of a `gmah dev` and a backend that echoes.
struct Process {
    file: PathBuf,
    https: SocketAddr,
    admin: SocketAddr,
    child: Child,
}

impl Process {
    async fn start(dev: &Dev) -> Self {
        let echo = echo().await;
        let [https, http, admin] = [free(), free(), free()];
        let mut text = std::fs::read_to_string(dev.config().path()).expect("configuration");
        for (key, port) in [("https", https), ("http", http), ("admin", admin)] {
            text = text.replace(&format!("\"{}\"", address(&dev.info[key])), &format!("\"{port}\""));
        }
        let socket = dev.folder().join("router.sock");
        text = text.replace(
            "[router]\n",
            &format!("[router]\nupgrade_socket = {socket:?}\ndrain_timeout = \"20s\"\n"),
        );
        text.push_str(&format!(
            "\n[router.pools.echo]\naddresses = [\"{echo}\"]\n\
             [[router.routes]]\nprefix = \"/\"\npool = \"api\"\n[[router.routes]]\nprefix = \"/ws\"\npool = \"echo\"\n"
        ));
        let file = dev.config().path().with_file_name("router.toml");
        std::fs::write(&file, text).expect("written");
        let child = spawn(&file, &[]);
        let process = Self { file, https, admin, child };
        process.until_ready().await;
        process
    }

    async fn until_ready(&self) {
        let ready = || async {
            match tokio::net::TcpStream::connect(self.admin).await {
                Ok(_) => plain(self.admin, "/readyz").await.status,
                Err(_) => 0,
            }
        };
        eventually("ready", Duration::from_secs(20), ready, |s| *s == 200).await;
    }

    /// Another process takes over; returns when the old one has ended.
    async fn upgrade(&mut self) {
        let old = std::mem::replace(&mut self.child, spawn(&self.file, &["--upgrade"]));
        let ended = tokio::time::timeout(Duration::from_secs(40), old.wait_with_output()).await;
        let output = ended.expect("ends in time").expect("wait");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().expect("runs").cast_signed()).expect("pid");
        kill_process(pid, signal).expect("signalled");
    }
}

fn spawn(file: &std::path::Path, more: &[&str]) -> Child {
    Command::new(BINARY)
        .arg("router")
        .arg("--config")
        .arg(file)
        .args(more)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .expect("router starts")
}

/// What a client of one kind did.
#[derive(Default)]
struct Tally {
    done: AtomicUsize,
    /// Streams that the other side said it had not begun (GOAWAY): the protocol lets a client send them again.
    sent_again: AtomicUsize,
}

async fn h1(client: Client, host: String, keep: bool, stop: Arc<AtomicBool>, tally: Arc<Tally>) {
    let mut stream = client.connect(&host).await;
    while !stop.load(Ordering::Relaxed) {
        let fields = if keep { vec![] } else { vec![("Connection", "close")] };
        let answer = exchange(&mut stream, &request("GET", &host, "/api/v1/tenant", &fields, None)).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        tally.done.fetch_add(1, Ordering::Relaxed);
        if answer.header("connection") == Some("close") {
            stream = client.connect(&host).await;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn h2(client: Client, host: String, stop: Arc<AtomicBool>, tally: Arc<Tally>) {
    let mut connection = client.http2(&host).await;
    while !stop.load(Ordering::Relaxed) {
        match connection.get(&host, "/api/v1/tenant").await {
            Ok(answer) => {
                assert_eq!(answer.status, 200, "{answer:?}");
                tally.done.fetch_add(1, Ordering::Relaxed);
            }
            Err(e) => {
                assert!(
                    e.is_go_away() || e.reason() == Some(h2::Reason::REFUSED_STREAM) || is_closed(&e),
                    "{e:?}"
                );
                tally.sent_again.fetch_add(1, Ordering::Relaxed);
                connection = client.http2(&host).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// The library's word for a connection that took no more streams: nothing of the request was sent.
fn is_closed(e: &h2::Error) -> bool {
    e.is_io() || e.to_string().contains("not a result of an error")
}

async fn websocket(client: Client, host: String, stop: Arc<AtomicBool>, tally: Arc<Tally>) {
    while !stop.load(Ordering::Relaxed) {
        let mut stream = client.connect(&host).await;
        open_websocket(&mut stream, &host).await;
        for _ in 0..20 {
            echoes(&mut stream, b"still there?").await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        tally.done.fetch_add(1, Ordering::Relaxed);
    }
}

async fn slow_upload(client: Client, host: String, stop: Arc<AtomicBool>, tally: Arc<Tally>) {
    let body = serde_json::json!({ "email": "nobody@example.org", "password": "x".repeat(200) }).to_string();
    while !stop.load(Ordering::Relaxed) {
        let mut stream = client.connect(&host).await;
        let whole = request("POST", &host, "/api/v1/auth/login", &[("Connection", "close")], Some(&body));
        for piece in whole.chunks(40) {
            stream.write_all(piece).await.expect("sent");
            stream.flush().await.expect("sent");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let mut back = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut back)).await;
        read.expect("in time").expect("read");
        assert!(matches!(status(&back), Some(401 | 429)), "{}", String::from_utf8_lossy(&back));
        tally.done.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn l01_upgrades_under_load_fail_no_request() {
    // More of them in the longer suite.
    let upgrades = std::env::var("GMAH_TEST_UPGRADES").ok().and_then(|n| n.parse().ok()).unwrap_or(3);
    let dev = Dev::start().await;
    let mut router = Process::start(&dev).await;
    let client = dev.client.at(router.https);
    let host = dev.host("paris");
    let stop = Arc::new(AtomicBool::new(false));
    let tallies: [Arc<Tally>; 5] = std::array::from_fn(|_| Arc::default());
    let mut load = Vec::new();
    for n in 0..2 {
        let (c, h, s) = (|| client.clone(), || host.clone(), || stop.clone());
        load.push(tasks::detach("h1", h1(c(), h(), true, s(), tallies[0].clone())));
        load.push(tasks::detach("h1-close", h1(c(), h(), false, s(), tallies[1].clone())));
        load.push(tasks::detach("h2", h2(c(), h(), s(), tallies[2].clone())));
        load.push(tasks::detach("websocket", websocket(c(), h(), s(), tallies[3].clone())));
        if n == 0 {
            load.push(tasks::detach("upload", slow_upload(c(), h(), s(), tallies[4].clone())));
        }
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    for _ in 0..upgrades {
        router.upgrade().await;
        router.until_ready().await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    stop.store(true, Ordering::Relaxed);
    for task in load {
        task.await.expect("no request failed");
    }
    let done = tallies.each_ref().map(|t| t.done.load(Ordering::Relaxed));
    let again = tallies.each_ref().map(|t| t.sent_again.load(Ordering::Relaxed));
    println!(
        "{upgrades} upgrades: h1, h1 close, h2, websockets, uploads: done {done:?}, sent again {again:?}, failed 0"
    );
    assert!(done.iter().all(|n| *n > 0), "{done:?}");
    router.signal(Signal::TERM);
    assert!(router.child.wait().await.expect("wait").success());
}

#[tokio::test(flavor = "multi_thread")]
async fn l03_sighup_and_successors_that_fail() {
    let dev = Dev::start().await;
    let mut router = Process::start(&dev).await;
    let client = dev.client.at(router.https);
    let host = dev.host("paris");
    let ask = |path: &'static str| {
        let (client, host) = (client.clone(), host.clone());
        async move { client.get(&host, path, &[]).await.status }
    };
    assert_eq!(ask("/api/v1/tenant").await, 200);
    // A fault in the file: nothing changes, also of what is right in it.
    let good = std::fs::read_to_string(&router.file).expect("file");
    let moved = good.replace("prefix = \"/\"\n", "prefix = \"/moved/\"\n");
    std::fs::write(&router.file, format!("{moved}\nnonsense = 1\n")).expect("written");
    router.signal(Signal::HUP);
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(ask("/api/v1/tenant").await, 200);
    // A successor that cannot start leaves the running one as it is.
    let out = spawn(&router.file, &["--upgrade"]).wait_with_output().await.expect("output");
    assert_eq!(out.status.code(), Some(2));
    std::fs::write(&router.file, good.replace(&router.https.to_string(), "127.0.0.1:9")).expect("written");
    let out = spawn(&router.file, &["--upgrade"]).wait_with_output().await.expect("output");
    assert_eq!(out.status.code(), Some(1), "it listens elsewhere");
    assert_eq!(ask("/api/v1/tenant").await, 200);
    // Not everybody who comes to the socket is a successor.
    let socket = dev.folder().join("router.sock");
    let mut stranger = tokio::net::UnixStream::connect(&socket).await.expect("connect");
    assert!(talk(&mut stranger, b"GET / HTTP/1.1\r\n\r\n").await.is_empty());
    // The file is sound again: taken, and an upgrade goes as it should.
    std::fs::write(&router.file, &moved).expect("written");
    router.signal(Signal::HUP);
    eventually("taken", Duration::from_secs(5), || ask("/api/v1/tenant"), |s| *s == 404).await;
    std::fs::write(&router.file, &good).expect("written");
    router.upgrade().await;
    assert_eq!(ask("/api/v1/tenant").await, 200);
    assert!(ConfigFile::load(&router.file).is_ok());
    // A successor of none.
    router.signal(Signal::TERM);
    assert!(router.child.wait().await.expect("wait").success());
    let out = spawn(&router.file, &["--upgrade"]).wait_with_output().await.expect("output");
    assert_eq!(out.status.code(), Some(1), "there is nobody to take over from");
}
