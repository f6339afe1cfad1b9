//! Several api nodes, one PostgreSQL server: its connections are shared out, and never too many.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use gmah_api::server::RunningApi;
use gmah_shared::config::{HumanDuration, Within};
use tokio::process::{Child, Command};

use crate::harness::{Dev, dev, eventually, http, roles};

const BUDGET: usize = 6;

/// Another `gmah api`, in a process of its own.
async fn child(dev: &Dev) -> (Child, std::net::SocketAddr, std::net::SocketAddr) {
    // Below those that outgoing connections take.
    let mut ports = Vec::new();
    while ports.len() < 2 {
        let port = std::net::SocketAddr::from(([127, 0, 0, 1], rand::random_range(2_000..10_000)));
        if tokio::net::TcpListener::bind(port).await.is_ok() && !ports.contains(&port) {
            ports.push(port);
        }
    }
    let text = std::fs::read_to_string(dev::text(&dev.info["config"])).expect("configuration");
    let text = text
        .replace(dev::text(&dev.info["api"]), &ports[0].to_string())
        .replace(dev::text(&dev.info["api_admin"]), &ports[1].to_string())
        .replace("max_per_server = 40", &format!("max_per_server = {BUDGET}"))
        .replace("max_per_tenant = 8", "max_per_tenant = 3");
    // Beside the other, whose paths are relative to it.
    let path = std::path::Path::new(dev::text(&dev.info["config"])).with_file_name("second.toml");
    std::fs::write(&path, text).expect("configuration");
    let log = std::fs::File::create(dev.folder().join("second.log")).expect("log");
    let child = Command::new(dev::BINARY)
        .arg("--config")
        .arg(path)
        .arg("api")
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("log"))
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .expect("gmah api starts");
    let ready = || async { http::try_plain(ports[1], "/readyz").await.map(|a| a.status) };
    eventually("second node", Duration::from_secs(20), ready, |s| *s == Some(200)).await;
    (child, ports[0], ports[1])
}

fn limit(api: &RunningApi) -> usize {
    api.app().pools.budgets().iter().map(|(_, budget)| budget.limit()).sum()
}

async fn limit_of(admin: std::net::SocketAddr) -> usize {
    let Some(answer) = http::try_plain(admin, "/metrics").await else { return 0 };
    dev::Metrics(answer.body).sum("gmah_api_server_connections", &["limit"]) as usize
}

/// Q-08 over nodes: whoever joins gets its part, all together never have too many, and what a node had that was killed
/// is the others' within a heartbeat.
#[tokio::test(flavor = "multi_thread")]
async fn q08_nodes_share_one_budget() {
    let dev = Arc::new(Dev::start().await);
    for n in 0..5 {
        dev.create(&format!("many{n}")).await;
    }
    let first = Arc::new(
        roles::api(&dev, |_, c| {
            c.pool.max_per_server = Within::new(BUDGET);
            c.pool.max_per_tenant = Within::new(3);
            c.pool.wait_timeout = HumanDuration::from_secs(20);
        })
        .await,
    );
    let (mut second, address, admin) = child(&dev).await;
    let (stop, peak) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let sampler = {
        let (client, stop, peak) = (dev.superuser("postgres").await, stop.clone(), peak.clone());
        gmah_shared::tasks::detach("sampler", async move {
            while !stop.load(Ordering::Acquire) {
                let n: i64 = client.query_one(super::pools::BACKENDS, &[]).await.expect("sample").get(0);
                peak.fetch_max(n as usize, Ordering::AcqRel);
            }
        })
    };
    // The demo's own node has connections from making it, as `gmah dev` asked for a token; it gives them back.
    let asking = |to: std::net::SocketAddr| {
        let (dev, stop) = (dev.clone(), stop.clone());
        gmah_shared::tasks::detach("load", async move {
            let (router, client) = roles::router(&dev, &[to], |_, _| {}).await;
            let mut answered = [0; 2];
            for n in 0.. {
                if stop.load(Ordering::Acquire) {
                    break;
                }
                let host = dev.host(&format!("many{}", n % 5));
                let body = serde_json::json!({"refresh_token": "x".repeat(43)}).to_string();
                let seen = client.send("POST", &host, "/api/v1/auth/refresh", &[], Some(&body)).await;
                answered[usize::from(seen.status != 401)] += 1;
            }
            router.stop().await;
            answered
        })
    };
    let load: Vec<_> = [first.address, address, first.address, address].map(asking).into();
    eventually(
        "both have a part",
        Duration::from_secs(10),
        || async { (limit(&first), limit_of(admin).await) },
        |(a, b)| *a >= 2 && *b >= 2 && a + b <= BUDGET,
    )
    .await;
    let asked = std::time::Instant::now();
    while asked.elapsed() < Duration::from_secs(3) {
        let (a, b) = (limit(&first), limit_of(admin).await);
        assert!(a + b <= BUDGET, "{a} and {b}");
    }
    stop.store(true, Ordering::Release);
    for task in load {
        let [served, refused] = task.await.expect("joined");
        assert!(served > 0 && refused == 0, "served {served}, refused {refused}");
    }
    sampler.await.expect("sampled");
    let peak = peak.load(Ordering::Acquire);
    assert!((2..=BUDGET).contains(&peak), "{peak} connections on a budget of {BUDGET}");

    second.kill().await.expect("killed");
    let before = limit(&first);
    // A heartbeat; and another one, because a busy machine keeps no time.
    let patience = *first.app().config.pool.heartbeat * 2;
    let demo = || async { (limit(&first), limit_of(dev::address(&dev.info["api_admin"])).await) };
    // What is nobody's is shared among those who are left, of whom the demo's own node may be one.
    let (now, demo) = eventually("within a heartbeat", patience, demo, |(a, b)| a + b == BUDGET).await;
    assert!(now > before || demo > 0, "{before}, then {now} and {demo}");
}

/// Whoever starts where a node has ended in good order has its connections at once.
#[tokio::test(flavor = "multi_thread")]
async fn q08_a_node_that_ends_gives_its_part_back() {
    let dev = Dev::start().await;
    let id = super::pools::id(&dev, "lyon").await;
    let nodes = || dev.value("gmah_master", "select count(*) from nodes");
    let parts = || dev.value("gmah_master", "select count(*) from node_slots where slots > 0");
    let (before, parts_before) = (nodes().await, parts().await);
    for _ in 0..3 {
        let api = roles::api(&dev, |_, _| {}).await;
        let gmah_shared::catalog::Lookup::Found(row) = api.app().catalog.get(&id).await else {
            panic!("lyon")
        };
        drop(api.app().pools.lease(&row.0).await.expect("a connection within pool.wait_timeout"));
        assert_ne!(nodes().await, before);
        api.stop().await;
        assert_eq!((nodes().await, parts().await), (before.clone(), parts_before.clone()));
    }
}
