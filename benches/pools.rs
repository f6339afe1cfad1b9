//! How many requests a second go through the pools, when there are many more databases than connections?
//!
//! Run by the script `benches/pools`, which makes the databases and says in the environment what is to be measured: ours,
//! with one node or two, or PgBouncer in one of two modes. Every request picks a database, gets a connection and reads
//! twenty members. Or what a new connection costs, step by step. One line of JSON comes out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use gmah_api::config::ApiConfig;
use gmah_api::pool::proof;
use gmah_api::server::{self, RunningApi};
use gmah_shared::catalog::{Lookup, TenantDetail};
use gmah_shared::config::{ConfigFile, HumanDuration, Settings, Within};
use gmah_shared::pg;
use gmah_shared::tenant::TenantId;
use secrecy::ExposeSecret as _;
use tokio_postgres::NoTls;

/// The same in as many words as there are statements: each is prepared for itself.
const READS: [&str; 4] = [
    "select id, first_name, last_name, email, phone, created_at, updated_at from members order by id limit 20",
    "select id, first_name, last_name, email, phone, created_at, updated_at from members order by id limit 21",
    "select id, first_name, last_name, email, phone, created_at, updated_at from members order by id limit 22",
    "select id, first_name, last_name, email, phone, created_at, updated_at from members order by id limit 23",
];
const READ: &str = READS[0];

struct Plan {
    settings: Settings,
    config: ApiConfig,
    mode: String,
    requests: usize,
    seconds: Duration,
    workers: usize,
    budget: usize,
    statements: usize,
    zipf: bool,
    tenants: Vec<(TenantId, String)>,
    pgbouncer: u16,
}

fn env(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

fn number(name: &str, default: usize) -> usize {
    env(name, "").parse().unwrap_or(default)
}

fn main() {
    // `cargo bench` runs every bench; without the script there is nothing to measure.
    let Ok(config) = std::env::var("GMAH_BENCH_CONFIG") else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("runtime");
    runtime.block_on(async {
        let file = ConfigFile::load(config.as_ref()).expect("configuration");
        let settings = file.settings().expect("settings");
        let master = pg::connect(&settings.master, "bench").await.expect("master");
        let rows = master
            .query("select id, database_name from organizations where slug like 'bench%' order by slug", &[])
            .await
            .expect("tenants");
        let databases = number("GMAH_BENCH_DATABASES", usize::MAX);
        let tenants =
            rows.iter().take(databases).map(|r| (TenantId::from_uuid(r.get(0)), r.get(1))).collect();
        let plan = Arc::new(Plan {
            config: ApiConfig::from_file(&file).expect("configuration"),
            settings,
            mode: env("GMAH_BENCH_MODE", "ours"),
            requests: number("GMAH_BENCH_REQUESTS", 60_000),
            seconds: Duration::from_secs(number("GMAH_BENCH_SECONDS", 3600) as u64),
            workers: number("GMAH_BENCH_WORKERS", 100),
            budget: number("GMAH_BENCH_BUDGET", 50),
            statements: number("GMAH_BENCH_STATEMENTS", 1).min(READS.len()),
            zipf: env("GMAH_BENCH_PICK", "uniform") == "zipf",
            tenants,
            pgbouncer: number("GMAH_BENCH_PGBOUNCER", 6432) as u16,
        });
        match plan.mode.as_str() {
            "steps" => steps(&plan).await,
            _ => run(plan).await,
        }
    });
}

/// What a request paid besides its own statement.
#[derive(Clone, Copy, Default)]
struct Paid {
    /// It was the first on its connection.
    is_cold: bool,
    /// Its statement was prepared for it.
    has_prepared: bool,
}

/// Where requests go to.
enum Way {
    Ours(Vec<RunningApi>),
    /// A client connection for each database, as an application would hold it; statements are not prepared.
    Transaction(Vec<tokio::sync::Mutex<tokio_postgres::Client>>),
    /// A client connection for each request: one that stays would hold its server connection.
    Session,
}

async fn run(plan: Arc<Plan>) {
    let way = Arc::new(match plan.mode.as_str() {
        "ours" => Way::Ours(vec![node(&plan).await]),
        "two" => Way::Ours(vec![node(&plan).await, node(&plan).await]),
        "transaction" => {
            let mut clients = Vec::new();
            for (_, database) in &plan.tenants {
                // It counts a connection as closed before the server has closed it, and may be refused another.
                let mut tries = 0;
                let client = loop {
                    match through(&plan, database).await {
                        Ok(client) => break client,
                        Err(e) => assert!(tries < 100, "PgBouncer: {e:?}"),
                    }
                    tries += 1;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                };
                clients.push(tokio::sync::Mutex::new(client));
            }
            Way::Transaction(clients)
        }
        "session" => Way::Session,
        other => panic!("GMAH_BENCH_MODE {other}"),
    });
    if let Way::Ours(nodes) = &*way {
        for (n, (id, _)) in plan.tenants.iter().enumerate() {
            let app = nodes[n % nodes.len()].app();
            assert!(matches!(app.catalog.get(id).await, Lookup::Found(_)));
            assert!(matches!(nodes[0].app().catalog.get(id).await, Lookup::Found(_)));
        }
    }
    let cumulated: Vec<f64> = {
        let mut sum = 0.0;
        (1..=plan.tenants.len())
            .map(|rank| {
                sum += if plan.zipf { 1.0 / rank as f64 } else { 1.0 };
                sum
            })
            .collect()
    };
    let (stop, peak) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let sampler = {
        let (stop, peak) = (stop.clone(), peak.clone());
        let client = pg::connect(&plan.settings.master, "bench").await.expect("sampler");
        gmah_shared::tasks::detach("sampler", async move {
            let mut samples = 0;
            while !stop.load(Ordering::Acquire) {
                let sql = "select count(*) from pg_stat_activity where backend_type = 'client backend' and datname like 'gmah_org_bench%'";
                let n: i64 = client.query_one(sql, &[]).await.expect("sample").get(0);
                peak.fetch_max(n as usize, Ordering::AcqRel);
                samples += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            samples
        })
    };
    let before = sessions(&plan).await;
    let next = Arc::new(AtomicUsize::new(0));
    let errors = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let workers: Vec<_> = (0..plan.workers)
        .map(|worker| {
            let (plan, way, next, errors, cumulated) =
                (plan.clone(), way.clone(), next.clone(), errors.clone(), cumulated.clone());
            gmah_shared::tasks::detach("worker", async move {
                let mut took = Vec::new();
                while next.fetch_add(1, Ordering::Relaxed) < plan.requests && began.elapsed() < plan.seconds {
                    let at = rand::random::<f64>() * cumulated.last().copied().unwrap_or(0.0);
                    let picked = cumulated.partition_point(|c| *c < at).min(plan.tenants.len() - 1);
                    let asked = Instant::now();
                    match ask(&plan, &way, worker, picked).await {
                        Ok(paid) => took.push((asked.elapsed(), paid)),
                        Err(e) => {
                            if errors.fetch_add(1, Ordering::AcqRel) < 5 {
                                eprintln!("{e}");
                            }
                        }
                    }
                }
                took
            })
        })
        .collect();
    let mut took = Vec::new();
    for worker in workers {
        took.extend(worker.await.expect("worker"));
    }
    let seconds = began.elapsed().as_secs_f64();
    // The server's statistics come late.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let connects = sessions(&plan).await - before;
    stop.store(true, Ordering::Release);
    let samples: usize = sampler.await.expect("sampled");
    let sorted = |of: &dyn Fn(&Paid) -> bool| {
        let mut of: Vec<_> = took.iter().filter(|(_, paid)| of(paid)).map(|(took, _)| *took).collect();
        of.sort();
        of
    };
    let (all, cold, warm) = (sorted(&|_| true), sorted(&|p| p.is_cold), sorted(&|p| !p.is_cold));
    let prepared = took.iter().filter(|(_, p)| p.has_prepared).count();
    println!(
        "{}",
        serde_json::json!({
            "mode": plan.mode, "pick": if plan.zipf { "zipf" } else { "uniform" }, "databases": plan.tenants.len(),
            "budget": plan.budget, "workers": plan.workers, "requests": took.len(),
            "errors": errors.load(Ordering::Acquire), "per_second": (took.len() as f64 / seconds).round(),
            "p50_ms": ms(&all, 0.5), "p99_ms": ms(&all, 0.99), "peak": peak.load(Ordering::Acquire), "samples": samples,
            "connects": connects, "cold": cold.len(), "cold_p50_ms": ms(&cold, 0.5), "warm_p50_ms": ms(&warm, 0.5),
            "statement_hits": 1.0 - prepared as f64 / took.len().max(1) as f64,
        })
    );
    if let Some(Way::Ours(nodes)) = Arc::into_inner(way) {
        for node in nodes {
            node.stop().await;
        }
    }
}

fn ms(sorted: &[Duration], q: f64) -> f64 {
    sorted.get((sorted.len() as f64 * q) as usize).map_or(0.0, |d| d.as_secs_f64() * 1e3)
}

/// A new connection, the proof that it is the right database, the first read and the second, one organisation after
/// the other and nobody beside it: what is left of a cold request when nothing is to be waited for.
async fn steps(plan: &Plan) {
    let node = node(plan).await;
    let mut took: [Vec<Duration>; 4] = Default::default();
    for n in 0..plan.requests {
        let (id, _) = &plan.tenants[n % plan.tenants.len()];
        let Lookup::Found(row) = node.app().catalog.get(id).await else { panic!("not found") };
        let detail: &TenantDetail = &row.0;
        let p = &detail.placement;
        let (host, port) = p.hosts.iter().next().expect("a host");
        let mut config = tokio_postgres::Config::new();
        config.host(host).port(port).user(&p.role).password(p.password.expose_secret()).dbname(&p.database);
        let mut at = Instant::now();
        let mut step = |of: &mut Vec<Duration>| {
            of.push(at.elapsed());
            at = Instant::now();
        };
        let (client, connection) = config.connect(NoTls).await.expect("a connection");
        gmah_shared::tasks::detach("steps", connection);
        step(&mut took[0]);
        proof::prove(&client, detail).await.expect("the proof");
        step(&mut took[1]);
        let statement = client.prepare(READ).await.expect("a statement");
        client.query(&statement, &[]).await.expect("members");
        step(&mut took[2]);
        client.query(&statement, &[]).await.expect("members");
        step(&mut took[3]);
    }
    let [connect, proof, first, second] = took.map(|mut of| {
        of.sort();
        ms(&of, 0.5)
    });
    println!(
        "{}",
        serde_json::json!({"mode": plan.mode, "connect_ms": connect, "proof_ms": proof, "first_ms": first, "second_ms": second})
    );
    node.stop().await;
}

async fn node(plan: &Plan) -> RunningApi {
    let mut config = plan.config.clone();
    (config.api.listen, config.api.admin) = (([127, 0, 0, 1], 0).into(), ([127, 0, 0, 1], 0).into());
    config.pool.max_per_server = Within::new(plan.budget);
    // Where there is one organisation alone, it may have them all.
    let most = if plan.tenants.len() == 1 { plan.budget } else { 8 };
    config.pool.max_per_tenant = Within::new(most.min(plan.budget));
    config.pool.wait_timeout = HumanDuration::from_secs(30);
    config.pool.max_waiting = Within::new(10_000);
    let mut settings = plan.settings.clone();
    settings.catalog.ttl = HumanDuration::from_secs(3600);
    server::start(&settings, config).await.expect("node")
}

async fn through(plan: &Plan, database: &str) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(plan.pgbouncer).user("gmah").dbname(database).application_name("bench");
    let (client, connection) = config.connect(NoTls).await?;
    gmah_shared::tasks::detach("pgbouncer", connection);
    Ok(client)
}

async fn ask(plan: &Plan, way: &Way, worker: usize, picked: usize) -> Result<Paid, String> {
    let (id, database) = &plan.tenants[picked];
    let mut paid = Paid::default();
    let rows = match way {
        Way::Ours(nodes) => {
            let app = nodes[worker % nodes.len()].app();
            let Lookup::Found(row) = app.catalog.get(id).await else { return Err("not found".into()) };
            let mut lease = app.pools.lease(&row.0).await.map_err(|e| e.to_string())?;
            let (client, busy) = lease.parts();
            *busy = true;
            let known = client.statement_cache.size();
            let statement = client
                .prepare_cached(READS[rand::random_range(0..plan.statements)])
                .await
                .map_err(|e| e.to_string())?;
            paid = Paid { is_cold: known == 0, has_prepared: client.statement_cache.size() > known };
            let rows = client.query(&statement, &[]).await.map_err(|e| e.to_string())?;
            *busy = false;
            rows.len()
        }
        Way::Transaction(clients) => {
            let client = clients[picked].lock().await;
            client.simple_query(READ).await.map_err(|e| e.to_string())?.len()
        }
        Way::Session => {
            let client = through(plan, database).await.map_err(|e| e.to_string())?;
            client.simple_query(READ).await.map_err(|e| e.to_string())?.len()
        }
    };
    if rows < 20 { Err(format!("{rows} rows")) } else { Ok(paid) }
}

/// Connections that the server has seen to those databases.
async fn sessions(plan: &Plan) -> i64 {
    let client = pg::connect(&plan.settings.master, "bench").await.expect("statistics");
    let sql = "select coalesce(sum(sessions), 0)::bigint from pg_stat_database where datname like 'gmah_org_bench%'";
    client.query_one(sql, &[]).await.expect("statistics").get(0)
}
