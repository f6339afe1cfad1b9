//! L-family: whoever is killed, and whenever, what was acknowledged is there, and once. A set is written by several clients
//! through a router; the api's process, the router's, or one of PostgreSQL (which then recovers as from a crash), is killed
//! again and again; in the end each organisation must have every acknowledged element exactly once, and none that it was not
//! asked for.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};
use tokio::time::Instant;

use crate::harness::dev::BINARY;
use crate::harness::http::{self, Client, request};
use crate::harness::{Dev, dev, eventually};

const WRITERS: usize = 3;

/// `gmah api` or `gmah router` in a process of its own, always at the same address.
struct Node {
    role: &'static str,
    config: PathBuf,
    admin: SocketAddr,
    log: PathBuf,
    child: Option<Child>,
}

/// Both, and where the router listens.
fn nodes(dev: &Dev) -> (Node, Node, SocketAddr) {
    let path = Path::new(dev::text(&dev.info["config"]));
    let mut text = std::fs::read_to_string(path).expect("configuration");
    let mut moved = |name: &str| {
        let address = crate::harness::dns::free();
        text = text.replace(dev::text(&dev.info[name]), &address.to_string());
        address
    };
    let (_api, api_admin) = (moved("api"), moved("api_admin"));
    let (https, _http, admin) = (moved("https"), moved("http"), moved("admin"));
    let config = path.with_file_name("killed.toml");
    std::fs::write(&config, text.replace("[pool]\n", "[pool]\nheartbeat = \"1s\"\n")).expect("configuration");
    let node = |role: &'static str, admin| Node {
        role,
        config: config.clone(),
        admin,
        log: dev.folder().join(format!("killed-{role}.log")),
        child: None,
    };
    (node("api", api_admin), node("router", admin), https)
}

impl Node {
    async fn start(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(&self.log).expect("log");
        let child = Command::new(BINARY)
            .arg("--config")
            .arg(&self.config)
            .arg(self.role)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("log"))
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .expect("it starts");
        self.child = Some(child);
        let admin = self.admin;
        let ready = || async move { http::try_plain(admin, "/readyz").await.map(|a| a.status) };
        eventually(self.role, Duration::from_secs(30), ready, |s| *s == Some(200)).await;
    }

    async fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().await.expect("killed");
        }
    }
}

/// Adds elements until told to stop, each again and again until somebody says that it is there.
struct Writer {
    client: Client,
    host: String,
    bearer: String,
    name: String,
    acknowledged: Arc<Mutex<BTreeSet<String>>>,
    tried_again: Arc<AtomicUsize>,
}

impl Writer {
    async fn run(self, stop: Arc<AtomicBool>) {
        for n in 0.. {
            if stop.load(Ordering::Acquire) {
                return;
            }
            let element = format!("{}-{n}", self.name);
            while !self.add(&element).await {
                self.tried_again.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            self.acknowledged.lock().expect("lock").insert(element);
        }
    }

    /// Whether it was acknowledged. No answer and a refusal for now are no acknowledgement.
    async fn add(&self, element: &str) -> bool {
        let body = json!({"first_name": element, "last_name": "Set"}).to_string();
        let headers = [("Authorization", self.bearer.as_str()), ("Idempotency-Key", element)];
        let bytes = request("POST", &self.host, "/api/v1/members", &headers, Some(&body));
        let asked = async {
            let mut stream = self.client.try_connect(&self.host, &[b"http/1.1"]).await.ok()?;
            stream.write_all(&bytes).await.ok()?;
            http::try_read(&mut stream).await
        };
        match tokio::time::timeout(Duration::from_secs(20), asked).await {
            Ok(Some(answer)) => {
                assert!([201, 502, 503, 504].contains(&answer.status), "{answer:?}");
                answer.status == 201
            }
            _ => false,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn l02_l05_what_is_acknowledged_is_there_once() {
    let kills: usize = std::env::var("GMAH_TEST_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(4);
    let dev = Dev::start().await;
    dev.execute("gmah_master", "update organizations set plan = 'enterprise'").await;
    let tokens = [("paris", dev.login("paris").await), ("lyon", dev.login("lyon").await)];
    let (mut api, mut router, https) = nodes(&dev);
    api.start().await;
    router.start().await;
    let client = dev.client.at(https);
    let stop = Arc::new(AtomicBool::new(false));
    let tried_again = Arc::new(AtomicUsize::new(0));
    let mut sets = Vec::new();
    let mut writers = Vec::new();
    for (slug, token) in &tokens {
        let acknowledged: Arc<Mutex<BTreeSet<String>>> = Arc::default();
        sets.push((*slug, acknowledged.clone()));
        for n in 0..WRITERS {
            let writer = Writer {
                client: client.clone(),
                host: dev.host(slug),
                bearer: format!("Bearer {token}"),
                name: format!("{slug}-{n}"),
                acknowledged: acknowledged.clone(),
                tried_again: tried_again.clone(),
            };
            writers.push(gmah_shared::tasks::detach("writer", writer.run(stop.clone())));
        }
    }
    let began = Instant::now();
    let (mut of_api, mut of_router, mut of_postgres) = (0, 0, 0);
    let count = || sets.iter().map(|(_, s)| s.lock().expect("lock").len()).sum::<usize>();
    for n in 0..kills.max(3) {
        // Something is acknowledged between any two.
        let before = count();
        eventually("progress", Duration::from_secs(60), || std::future::ready(count()), |n| *n > before)
            .await;
        tokio::time::sleep(Duration::from_millis(rand::random_range(0..200))).await;
        // Each kind is among them.
        let is_nodes = if n < 3 { n < 2 } else { rand::random_bool(0.6) };
        let mut victim = if is_nodes { None } else { backend(&dev).await };
        if n == 2 && victim.is_none() {
            victim =
                eventually("a backend", Duration::from_secs(30), || backend(&dev), Option::is_some).await;
        }
        // Gone by itself meanwhile, it is nobody's.
        if victim.is_some_and(|pid| kill_process(pid, Signal::KILL).is_ok()) {
            of_postgres += 1;
        } else if n == 0 || (n > 1 && rand::random_bool(0.5)) {
            router.kill().await;
            router.start().await;
            of_router += 1;
        } else {
            api.kill().await;
            api.start().await;
            of_api += 1;
        }
    }
    assert!(of_router > 0 && of_api > 0, "{of_router} {of_api}");
    stop.store(true, Ordering::Release);
    for writer in writers {
        writer.await.expect("joined");
    }
    let mut total = 0;
    for (slug, acknowledged) in &sets {
        let acknowledged = acknowledged.lock().expect("lock").clone();
        let database = format!("gmah_org_{slug}");
        let db = dev.superuser(&database).await;
        let rows = db
            .query("select first_name, count(*) from members where last_name = 'Set' group by 1", &[])
            .await
            .expect("rows");
        let there: BTreeSet<String> = rows.iter().map(|r| r.get(0)).collect();
        let twice: Vec<String> = rows.iter().filter(|r| r.get::<_, i64>(1) != 1).map(|r| r.get(0)).collect();
        assert!(twice.is_empty(), "{slug}: twice {twice:?}");
        let lost: Vec<_> = acknowledged.difference(&there).collect();
        assert!(lost.is_empty(), "{slug}: lost {lost:?}");
        // Writers end with an acknowledgement, so nothing else can be there.
        assert_eq!(acknowledged, there, "{slug}");
        // And each has its entry, once.
        let entries = dev.value(&database, "select count(*) from audit_log a join members m on m.id::text = a.entity_id where m.last_name = 'Set' and a.action = 'members.create'").await;
        assert_eq!(entries, there.len().to_string(), "{slug}");
        total += there.len();
    }
    println!(
        "{kills} kills ({of_api} of the api, {of_router} of the router, {of_postgres} of PostgreSQL) in {:.0} s: {total} acknowledged, {} tried again, lost 0, twice 0",
        began.elapsed().as_secs_f64(),
        tried_again.load(Ordering::Relaxed)
    );
    router.kill().await;
    api.kill().await;
}

/// A process of PostgreSQL that serves an organisation right now.
async fn backend(dev: &Dev) -> Option<Pid> {
    let mut settings = dev.settings().master;
    settings.database = "postgres".into();
    // It may be recovering from the time before.
    let client = gmah_shared::pg::connect(&settings, "test").await.ok()?;
    let sql = "select pid from pg_stat_activity where datname like 'gmah_org_%' and backend_type = 'client backend' order by random() limit 1";
    let row = client.query_opt(sql, &[]).await.ok()??;
    Pid::from_raw(row.get(0))
}
