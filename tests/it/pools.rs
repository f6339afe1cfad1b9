//! Family Q: pools, budget, and what a connection carries from one use to the next.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use gmah_api::server::RunningApi;
use gmah_shared::catalog::Lookup;
use gmah_shared::config::{HumanDuration, Within};
use gmah_shared::tenant::TenantId;

use crate::harness::{Dev, eventually, roles};

pub(crate) async fn id(dev: &Dev, slug: &str) -> TenantId {
    let text = dev.get(slug, "/api/v1/tenant").await.json()["id"].as_str().expect("id").to_owned();
    TenantId::parse(&text).expect("id")
}

async fn lease(api: &RunningApi, id: TenantId) -> Result<gmah_api::pool::Lease, gmah_api::pool::PoolError> {
    let app = api.app();
    let Lookup::Found(row) = app.catalog.get(&id).await else { panic!("not found") };
    app.pools.lease(&row.0).await
}

pub(crate) const BACKENDS: &str =
    "select count(*) from pg_stat_activity where application_name = 'gmah api' and datname like 'gmah_org_%'";

/// Many tenants on a budget smaller than their number, at once: the server never sees more connections than the
/// budget, every answer is the right tenant's, none is an error.
#[tokio::test(flavor = "multi_thread")]
async fn q06_many_tenants_on_a_small_budget() {
    let dev = Arc::new(Dev::start().await);
    let mut ids = vec![id(&dev, "paris").await, id(&dev, "lyon").await];
    for n in 0..8 {
        let slug = format!("many{n}");
        dev.create(&slug).await;
        ids.push(id(&dev, &slug).await);
    }
    let api = Arc::new(
        roles::api(&dev, |_, c| {
            c.pool.max_per_server = Within::new(4);
            c.pool.max_per_tenant = Within::new(2);
            c.pool.wait_timeout = HumanDuration::from_secs(20);
        })
        .await,
    );
    let (stop, peak) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let sampler = {
        let (client, stop, peak) = (dev.superuser("postgres").await, stop.clone(), peak.clone());
        gmah_shared::tasks::detach("sampler", async move {
            while !stop.load(Ordering::Acquire) {
                let n: i64 = client.query_one(BACKENDS, &[]).await.expect("sample").get(0);
                peak.fetch_max(n as usize, Ordering::AcqRel);
            }
        })
    };
    let tasks: Vec<_> = (0..10)
        .map(|k: usize| {
            let (api, ids) = (api.clone(), ids.clone());
            gmah_shared::tasks::detach("load", async move {
                for j in 0..30 {
                    let id = ids[(j * 7 + k * 3) % ids.len()];
                    let mut lease = lease(&api, id).await.expect("a connection");
                    let (client, _) = lease.parts();
                    let row = client
                        .query_one("select organization_id from gmah_identity", &[])
                        .await
                        .expect("row");
                    assert_eq!(row.get::<_, uuid::Uuid>(0), id.as_uuid());
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no error, nobody else's database");
    }
    stop.store(true, Ordering::Release);
    sampler.await.expect("sampled");
    let peak = peak.load(Ordering::Acquire);
    assert!((2..=4).contains(&peak), "{peak} connections on a budget of 4");
}

#[tokio::test(flavor = "multi_thread")]
async fn q01_q03_q04_nothing_is_carried_to_the_next_use() {
    let dev = Dev::start().await;
    let id = id(&dev, "paris").await;
    let api = roles::api(&dev, |_, c| c.pool.max_per_tenant = Within::new(1)).await;
    let settings = "select current_setting('timezone') || current_setting('search_path') || current_user ||
                    current_setting('statement_timeout') || coalesce(current_setting('app.x', true), '')";
    async fn read(api: &RunningApi, id: TenantId, sql: &str) -> String {
        let mut l = lease(api, id).await.expect("lease");
        let (client, _) = l.parts();
        client.query_one(sql, &[]).await.expect(sql).get::<_, String>(0)
    }
    let backend = "select pg_backend_pid()::text";
    let (before, pid) = (read(&api, id, settings).await, read(&api, id, backend).await);
    for dirt in [
        "set timezone = 'Asia/Tokyo'; set search_path = pg_catalog; set statement_timeout = 0; set app.x = 'y'",
        "set role gmah_tenant",
        "set session authorization default; create temp table t (x int); select pg_advisory_lock(7); listen x",
        "begin; insert into members (id, first_name, last_name) values (gen_random_uuid(), 'DIRT', 'x')",
        "begin; select 1/0",
    ] {
        let mut l = lease(&api, id).await.expect("lease");
        let (client, _) = l.parts();
        let _ = client.batch_execute(dirt).await;
        drop(l);
        assert_eq!(read(&api, id, settings).await, before, "{dirt}");
        let left = "select (select count(*) from members where first_name = 'DIRT')::text
                    || (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid())
                    || (to_regclass('pg_temp.t') is not null)";
        assert_eq!(read(&api, id, left).await, "00false", "{dirt}");
    }
    assert_eq!(read(&api, id, backend).await, pid, "cleaned, not thrown away");

    // A request that goes away in the middle of a statement: the next one gets its own rows.
    let mut l = lease(&api, id).await.expect("lease");
    let gone = {
        let (client, busy) = l.parts();
        *busy = true;
        tokio::time::timeout(Duration::from_millis(100), client.query_one("select 'A' || pg_sleep(30)", &[]))
            .await
    };
    assert!(gone.is_err());
    drop(l);
    assert_eq!(read(&api, id, "select 'B'").await, "B");
    let sleeping = "select count(*) from pg_stat_activity where query like '%pg_sleep(30)%' and state = 'active' and pid <> pg_backend_pid()";
    eventually("cancelled", Duration::from_secs(5), || dev.value("postgres", sleeping), |n| n == "0").await;
}

/// Connections that their server ended while nobody used them are found out, and replaced, by whoever comes next: reading or
/// writing, nobody is told to come again.
#[tokio::test(flavor = "multi_thread")]
async fn q10_connections_that_ended_while_idle_cost_nobody_an_answer() {
    let dev = Dev::start().await;
    let bearer = format!("Bearer {}", dev.login("paris").await);
    let auth = [("Authorization", bearer.as_str())];
    let list = || dev.client.get("paris.gmah.localhost", "/api/v1/members?limit=1", &auth);
    let gone = "select count(pg_terminate_backend(pid, 5000)) from pg_stat_activity where usename = 'gmah_org_paris'";
    for n in 0..10 {
        // Several, so that the next one, too, may have ended.
        let statuses: Vec<_> = futures::future::join_all((0..6).map(|_| list())).await;
        assert!(statuses.iter().all(|a| a.status == 200), "{n}: {statuses:?}");
        assert_ne!(dev.value("postgres", gone).await, "0", "some were open");
        if n % 2 == 0 {
            let body = serde_json::json!({"first_name": "Ada", "last_name": format!("L{n}"), "email": null, "phone": null});
            let made = dev.post("paris", "/api/v1/members", &auth, &body).await;
            assert_eq!(made.status, 201, "{n}: {made:?}");
        }
    }
}

/// A client that hangs up in the middle of a write: nothing half done, nothing left open.
#[tokio::test(flavor = "multi_thread")]
async fn q03_a_client_that_goes_away() {
    let dev = Dev::start().await;
    let token = dev.login("paris").await;
    let lock = dev.superuser("gmah_org_paris").await;
    lock.batch_execute("begin; lock table members in access exclusive mode").await.expect("locked");
    let body = serde_json::json!({"first_name": "GONE", "last_name": "x"}).to_string();
    let bearer = format!("Bearer {token}");
    let request = crate::harness::http::request(
        "POST",
        &dev.host("paris"),
        "/api/v1/members",
        &[("Authorization", &bearer)],
        Some(&body),
    );
    let mut stream = dev.client.connect(&dev.host("paris")).await;
    tokio::io::AsyncWriteExt::write_all(&mut stream, &request).await.expect("sent");
    let waiting = "select count(*) from pg_stat_activity where application_name = 'gmah api' and wait_event_type = 'Lock'";
    eventually("it waits", Duration::from_secs(5), || dev.value("postgres", waiting), |n| n == "1").await;
    drop(stream);
    eventually("cancelled", Duration::from_secs(10), || dev.value("postgres", waiting), |n| n == "0").await;
    lock.batch_execute("rollback").await.expect("unlocked");
    let idle = "select count(*) from pg_stat_activity where state like 'idle in transaction%'";
    assert_eq!(dev.value("postgres", idle).await, "0");
    assert_eq!(
        dev.value("gmah_org_paris", "select count(*) from members where first_name = 'GONE'").await,
        "0"
    );
    assert_eq!(dev.get_as("paris", "/api/v1/members", &token).await.status, 200);
}

/// one tenant takes all that it may, and waits; the others do not notice.
#[tokio::test(flavor = "multi_thread")]
async fn q08_a_greedy_tenant_waits_alone() {
    let dev = Dev::start().await;
    let (paris, lyon) = (id(&dev, "paris").await, id(&dev, "lyon").await);
    let api = Arc::new(
        roles::api(&dev, |_, c| {
            c.pool.max_per_server = Within::new(4);
            c.pool.max_per_tenant = Within::new(2);
            c.pool.max_waiting = Within::new(3);
            c.pool.wait_timeout = HumanDuration::from_millis(400);
        })
        .await,
    );
    let held = [lease(&api, paris).await.expect("first"), lease(&api, paris).await.expect("second")];
    let waiting: Vec<_> = (0..6)
        .map(|_| {
            let api = api.clone();
            gmah_shared::tasks::detach("waits", async move {
                lease(&api, paris).await.err().map(|e| e.to_string())
            })
        })
        .collect();
    for _ in 0..5 {
        drop(lease(&api, lyon).await.expect("lyon is not touched"));
    }
    let mut why = BTreeSet::new();
    for task in waiting {
        why.insert(task.await.expect("joined").expect("refused"));
    }
    let expected = ["no connection became free in time", "the tenant's queue for connections is full"];
    assert_eq!(why.iter().map(String::as_str).collect::<Vec<_>>(), expected, "bounded in time and in number");
    drop(held);
    lease(&api, paris).await.expect("free again");
}

#[tokio::test(flavor = "multi_thread")]
async fn q09_idle_connections_and_pools_end() {
    let dev = Dev::start().await;
    let ids = [id(&dev, "paris").await, id(&dev, "lyon").await];
    let api = roles::api(&dev, |_, c| c.pool.idle_timeout = HumanDuration::from_millis(300)).await;
    for id in ids {
        drop(lease(&api, id).await.expect("lease"));
    }
    assert_eq!(api.app().pools.gauges().connections.len(), 2);
    eventually(
        "reaped",
        Duration::from_secs(5),
        || async { (api.app().pools.gauges().connections.len(), dev.value("postgres", BACKENDS).await) },
        |(pools, backends)| *pools == 0 && backends == "0",
    )
    .await;
    drop(lease(&api, ids[0]).await.expect("opened again"));
}

/// A pool belongs to a generation: an older row never gets a connection once a newer one was seen.
#[tokio::test(flavor = "multi_thread")]
async fn rule_4_no_pool_of_another_generation() {
    let dev = Dev::start().await;
    let paris = id(&dev, "paris").await;
    let api = roles::api(&dev, |_, _| {}).await;
    let app = api.app();
    let Lookup::Found(old) = app.catalog.get(&paris).await else { panic!("not found") };
    drop(app.pools.lease(&old.0).await.expect("lease"));
    let mut newer = old.0.clone();
    newer.tenant.generation.0 += 1;
    drop(app.pools.lease(&newer).await.expect("lease"));
    let refused = app.pools.lease(&old.0).await.err().expect("refused");
    assert!(
        matches!(refused, gmah_api::pool::PoolError::Superseded(g) if g == newer.tenant.generation),
        "{refused}"
    );
}

/// A body that trickles in holds no connection: with every connection allowed, others of the same tenant are served.
#[tokio::test(flavor = "multi_thread")]
async fn q08_a_slow_body_holds_no_connection() {
    let dev = Dev::start().await;
    let token = dev.login("paris").await;
    let head = format!(
        "POST /api/v1/members HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n\
         Content-Length: 1000\r\n\r\n{{",
        dev.host("paris")
    );
    let mut slow = Vec::new();
    for _ in 0..20 {
        let mut stream = dev.client.connect(&dev.host("paris")).await;
        tokio::io::AsyncWriteExt::write_all(&mut stream, head.as_bytes()).await.expect("sent");
        slow.push(stream);
    }
    for _ in 0..10 {
        assert_eq!(dev.get_as("paris", "/api/v1/members", &token).await.status, 200);
    }
    let leased = dev.metrics("api_admin").await.sum("gmah_api_pool_connections", &["leased"]);
    assert_eq!(leased, 0.0);
}
