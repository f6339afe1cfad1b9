//! Family C on the wire: one query for many, notices, floods.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use gmah_shared::config::HumanDuration;
use gmah_shared::pg::Hosts;

use crate::harness::fault::{Fault, Proxy};
use crate::harness::{Dev, dev, eventually, roles};

const LOADS: &str = "gmah_catalog_loads_total";

#[tokio::test(flavor = "multi_thread")]
async fn c04_two_hundred_first_requests_make_one_query() {
    let dev = Dev::start().await;
    dev.create("nice").await;
    // Notices come in the order of their commits: with this one seen, those of the creation are over.
    assert!(dev.cli(&["tenant", "suspend", "lyon"]).await.status.success());
    let suspended = || async { dev.get("lyon", "/api/v1/tenant").await.status };
    eventually("suspended", Duration::from_secs(5), suspended, |s| *s == 403).await;
    let before = dev.metrics("admin").await.sum(LOADS, &["hosts"]);
    let asks: Vec<_> = (0..200)
        .map(|_| {
            let (client, host) = (dev.client.clone(), dev.host("nice"));
            gmah_shared::tasks::detach(
                "ask",
                async move { client.get(&host, "/api/v1/tenant", &[]).await.slug() },
            )
        })
        .collect();
    for ask in asks {
        assert_eq!(ask.await.expect("joined"), (200, "nice".into()));
    }
    assert_eq!(dev.metrics("admin").await.sum(LOADS, &["hosts"]) - before, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn c03_changes_are_seen_within_a_second() {
    let dev = Dev::start().await;
    assert_eq!(dev.get("nice", "/api/v1/tenant").await.status, 404);
    dev.create("nice").await;
    assert_eq!(
        dev.get("nice", "/api/v1/tenant").await.slug(),
        (200, "nice".into()),
        "the negative entry is gone"
    );
    let second = Duration::from_secs(1);
    let becomes = |status: u16| {
        let dev = &dev;
        async move {
            let what = format!("nice answers {status}");
            eventually(
                &what,
                second,
                || async { dev.get("nice", "/api/v1/tenant").await.status },
                |s| *s == status,
            )
            .await
        }
    };
    for (command, status) in [
        (vec!["tenant", "suspend", "nice"], 403),
        (vec!["tenant", "resume", "nice"], 200),
        (vec!["tenant", "maintenance", "nice", "on"], 503),
        (vec!["tenant", "maintenance", "nice", "off"], 200),
    ] {
        assert!(dev.cli(&command).await.status.success(), "{command:?}");
        becomes(status).await;
    }
    // A change of a module is a change of the organisation.
    let sql = "update organization_features set enabled = false where module = 'loans' and organization_id =
               (select id from organizations where slug = 'nice')";
    dev.execute("gmah_master", sql).await;
    eventually(
        "the module is off",
        second,
        || async { dev.get("nice", "/api/v1/tenant").await.json()["modules"].clone() },
        |m| *m == serde_json::json!([]),
    )
    .await;
}

/// A custom domain that is active leads to its organisation; one that is not leads nowhere.
#[tokio::test(flavor = "multi_thread")]
async fn custom_domains_by_their_state() {
    use crate::harness::origin::Origin;
    let dev = Dev::start().await;
    let origin = Origin::ok().await;
    // A certificate that covers the custom domain as well.
    let folder = tempfile::tempdir().expect("folder");
    let pem = crate::tls::certificate(&dev, &["*.gmah.localhost", "shop.paris.test"]);
    std::fs::write(folder.path().join("c.pem"), pem.0).expect("certificate");
    std::fs::write(folder.path().join("k.pem"), pem.1).expect("key");
    let (router, client) = roles::router(&dev, &[origin.address], |_, c| {
        c.router.certificate_file = Some(folder.path().join("c.pem"));
        c.router.key_file = Some(folder.path().join("k.pem"));
    })
    .await;
    let ask = || async { client.get("shop.paris.test", "/", &[]).await.status };
    assert_eq!(ask().await, 404);
    let insert = "insert into organization_domains (hostname, organization_id, status)
                  select 'shop.paris.test', id, 'pending' from organizations where slug = 'paris'";
    dev.execute("gmah_master", insert).await;
    assert_eq!(ask().await, 404, "claimed is not verified");
    dev.execute("gmah_master", "update organization_domains set status = 'active'").await;
    eventually("the domain answers", Duration::from_secs(2), ask, |s| *s == 200).await;
    assert!(origin.take().iter().any(|r| r.all("host") == ["shop.paris.test"]));
    dev.execute("gmah_master", "update organization_domains set status = 'removed'").await;
    eventually("the domain is gone", Duration::from_secs(2), ask, |s| *s == 404).await;
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r12_random_hosts_cost_one_query_each_and_evict_nobody() {
    let dev = Dev::start().await;
    dev.get("paris", "/api/v1/tenant").await;
    let before = dev.metrics("admin").await;
    let h2 = dev.client.http2(&dev.host("paris")).await;
    for n in 0..500 {
        for _ in 0..2 {
            let answer = h2.get(&dev.host(&format!("r{n}x")), "/").await.expect("answer");
            assert_eq!(answer.status, 404);
        }
    }
    let after = dev.metrics("admin").await;
    assert_eq!(after.sum(LOADS, &["hosts"]) - before.sum(LOADS, &["hosts"]), 500.0);
    let hits = |m: &crate::harness::dev::Metrics| m.sum("gmah_catalog_lookups_total", &["hosts", "\"hit\""]);
    dev.get("paris", "/api/v1/tenant").await;
    assert_eq!(hits(&dev.metrics("admin").await) - hits(&after), 1.0, "paris was not evicted");
    assert_eq!(after.series(), before.series(), "no series by host");
    // What cannot be a slug is answered without the master.
    for host in ["a..gmah.localhost", "x.gmah.localhost", "www.gmah.localhost", "no--slug.gmah.localhost"] {
        let _ = h2.get(host, "/").await;
    }
    assert_eq!(dev.metrics("admin").await.sum(LOADS, &["hosts"]), after.sum(LOADS, &["hosts"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_master_is_left_alone_while_nothing_happens() {
    let dev = Dev::start().await;
    let committed = || async {
        let sql = "select xact_commit from pg_stat_database where datname = 'gmah_master'";
        dev.value("gmah_master", sql).await.parse::<u64>().expect("number")
    };
    // What the start asks for is over, and its numbers have arrived.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = committed().await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let asked = committed().await - before;
    // Background tasks look now and then; a notice that begets itself would be thousands.
    assert!(asked < 60, "{asked} transactions in five quiet seconds");
}

/// C-06: two organisations exchange their slugs while both are asked. Whoever is answered is one of the two as a whole: its
/// id, its name and the rows of its own database, never one's name with the other's data.
#[tokio::test(flavor = "multi_thread")]
async fn c06_a_swap_of_slugs_mixes_nobody() {
    let dev = Arc::new(Dev::start().await);
    let mut who = Vec::new();
    for slug in ["paris", "lyon"] {
        let token = dev.login(slug).await;
        let canary = format!("Canary-{slug}");
        let body = serde_json::json!({"first_name": canary, "last_name": "A", "email": null, "phone": null});
        let bearer = format!("Bearer {token}");
        let made = dev.post(slug, "/api/v1/members", &[("Authorization", &bearer)], &body).await;
        assert_eq!(made.status, 201, "{made:?}");
        let row = dev.get(slug, "/api/v1/tenant").await.json();
        let (id, name) = (dev::text(&row["id"]).to_owned(), dev::text(&row["name"]).to_owned());
        who.push((id, name, canary, bearer));
    }
    let (who, over) = (Arc::new(who), Arc::new(AtomicBool::new(false)));
    let asks: Vec<_> = (0..8)
        .map(|n| {
            let (dev, who, over) = (dev.clone(), who.clone(), over.clone());
            gmah_shared::tasks::detach("ask", async move {
                let mut asked = 0;
                while !over.load(Ordering::Acquire) {
                    let slug = ["paris", "lyon"][n % 2];
                    let row = dev.get(slug, "/api/v1/tenant").await;
                    assert_eq!(row.status, 200, "{row:?}");
                    let row = row.json();
                    let (_, name, ..) = who.iter().find(|w| w.0 == row["id"]).expect("one of the two");
                    assert_eq!(dev::text(&row["name"]), name.as_str(), "{slug}");
                    // A login is of one organisation, at whatever name: elsewhere it is none.
                    let (_, _, canary, bearer) = &who[n / 4];
                    let list = "/api/v1/members?search=canary";
                    let list = dev.client.get(&dev.host(slug), list, &[("Authorization", bearer)]).await;
                    assert!(matches!(list.status, 200 | 401), "{list:?}");
                    if list.status == 200 {
                        let others = who.iter().filter(|w| w.2 != *canary).any(|w| list.body.contains(&w.2));
                        assert!(list.body.contains(canary) && !others, "{slug} with {canary}: {list:?}");
                    }
                    asked += 1;
                }
                asked
            })
        })
        .collect();
    let swap = "begin;
        update organizations set slug = 'elsewhere' where slug = 'paris';
        update organizations set slug = 'paris' where slug = 'lyon';
        update organizations set slug = 'lyon' where slug = 'elsewhere';
        commit";
    for n in 1..=6 {
        dev.execute("gmah_master", swap).await;
        let expected = &who[n % 2].0;
        let now = || async { dev.get("paris", "/api/v1/tenant").await.json()["id"].clone() };
        eventually("the swap is seen", Duration::from_secs(2), now, |id| id == expected).await;
    }
    over.store(true, Ordering::Release);
    for ask in asks {
        assert!(ask.await.expect("joined") > 0);
    }
}

/// C-09: a router whose way to the master swallows everything hears of nothing. It finds out by itself, and then knows all that
/// happened meanwhile, though none of it is said again and nothing it holds has run out.
#[tokio::test(flavor = "multi_thread")]
async fn c09_what_happened_while_nobody_listened_is_known_afterwards() {
    let dev = Dev::start().await;
    dev.create("nice").await;
    let proxy = Proxy::start(std::net::SocketAddr::from(([127, 0, 0, 1], dev.postgres_port()))).await;
    // Not the api, which would say that it knows more.
    let origin = crate::harness::origin::Origin::ok().await;
    let (router, client) = roles::router(&dev, &[origin.address], |settings, _| {
        settings.master.hosts = Hosts::parse("127.0.0.1", proxy.address.port()).expect("hosts");
        settings.catalog.ttl = HumanDuration::from_secs(3600);
        settings.catalog.negative_ttl = HumanDuration::from_secs(3600);
    })
    .await;
    let ask = |slug: &'static str| {
        let (client, host) = (client.clone(), dev.host(slug));
        async move { client.get(&host, "/api/v1/tenant", &[]).await.status }
    };
    assert_eq!((ask("paris").await, ask("nice").await, ask("later").await), (200, 200, 404));
    // What is said is heard: the connection stands.
    assert!(dev.cli(&["tenant", "suspend", "lyon"]).await.status.success());
    eventually("a notice", Duration::from_secs(2), || ask("lyon"), |s| *s == 403).await;
    proxy.set(Fault::BlackHole);
    assert!(dev.cli(&["tenant", "suspend", "paris"]).await.status.success());
    assert!(dev.cli(&["tenant", "maintenance", "nice", "on"]).await.status.success());
    assert!(dev.cli(&["tenant", "resume", "lyon"]).await.status.success());
    dev.create("later").await;
    assert_eq!((ask("paris").await, ask("nice").await), (200, 200), "nobody has told the router");
    // Probes come every ten seconds, and five more show that no echo comes.
    let connected = || async { crate::harness::http::plain(router.admin, "/metrics").await.body };
    let deaf = |body: &String| {
        let metrics = dev::Metrics(body.clone());
        let stale = metrics.sum("gmah_catalog_staleness_seconds", &[]);
        metrics.sum("gmah_catalog_listening", &[]) == 0.0 && stale >= 5.0
    };
    eventually("it knows that it is deaf", Duration::from_secs(25), connected, deaf).await;
    proxy.set(Fault::None);
    let all = || async { (ask("paris").await, ask("nice").await, ask("lyon").await, ask("later").await) };
    eventually("all of it", Duration::from_secs(10), all, |seen| *seen == (403, 503, 200, 200)).await;
    router.stop().await;
}
