//! Customers' own names: proven, certified, served, checked again, taken back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use gmah_shared::tasks;
use rustls::pki_types::CertificateDer;

use crate::harness::acme::Edge;
use crate::harness::dev::{Metrics, address};
use crate::harness::http::{Client, exchange, is_closed, plain, request};
use crate::harness::{Dev, eventually, roles};

async fn leaf(client: &Client, sni: &str) -> CertificateDer<'static> {
    let stream = client.connect(sni).await;
    stream.get_ref().1.peer_certificates().expect("certificates")[0].clone().into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn t10_a_name_from_its_claim_to_its_first_request_and_beyond() {
    let edge = Edge::start("http-01").await;
    let (dev, name) = (&edge.dev, "shop.example.org");
    // Another router in front of the same api: whoever comes first orders, both serve.
    let api = [address(&dev.info["api"])];
    let (other, other_client) = roles::router(dev, &api, |_, _| {}).await;
    let other_client = edge.client.at(other_client.address());

    let added = dev.cli_json(&["domain", "add", "paris", name]).await;
    assert_eq!((added["status"].as_str(), added["slug"].as_str()), (Some("pending"), Some("paris")));
    let again = dev.cli_json(&["domain", "add", "paris", name]).await;
    assert_eq!(again["txt_value"], added["txt_value"], "claimed again it is the same claim");
    let refused = dev.cli(&["domain", "verify", name]).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("_gmah-verify.shop.example.org"));
    assert!(edge.client.try_connect(name, &[]).await.is_err(), "nothing is served for a claim");

    edge.prove("paris", name).await;
    let verified = dev.cli_json(&["domain", "verify", name]).await;
    assert!(["verified", "active"].contains(&verified["status"].as_str().expect("status")), "{verified}");
    edge.until("paris", name, "active").await;
    for client in [&edge.client, &other_client] {
        let seen = client.get(name, "/api/v1/tenant", &[]).await;
        assert_eq!(seen.slug(), (200, "paris".into()));
    }
    assert_eq!(
        dev.value("gmah_master", "select count(*) from acme_orders").await,
        "1",
        "one order, two routers"
    );
    assert_eq!(leaf(&edge.client, name).await, leaf(&other_client, name).await);
    let http = address(&dev.info["http"]);
    let mut tcp = tokio::net::TcpStream::connect(http).await.expect("connect");
    assert_eq!(exchange(&mut tcp, &request("GET", name, "/x", &[], None)).await.status, 308);
    // T-02: its certificate is for that name only.
    let mut stream = edge.client.connect(name).await;
    let seen = exchange(&mut stream, &request("GET", &dev.host("lyon"), "/api/v1/tenant", &[], None)).await;
    assert_eq!((seen.status, seen.code()), (421, "misdirected_request".into()));
    // The keys lie sealed.
    for sql in [
        "select count(*) from certificates where position('PRIVATE' in encode(private_key, 'escape')) > 0",
        "select count(*) from acme_accounts where position('key' in encode(credentials, 'escape')) > 0",
    ] {
        assert_eq!(dev.value("gmah_master", sql).await, "0");
    }
    assert!(!dev.log().contains("PRIVATE KEY"));

    // Renewed when it is due, under requests, none of which fails.
    let before = leaf(&edge.client, name).await;
    let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let load: Vec<_> = (0..3)
        .map(|_| {
            let (client, stop, served) = (edge.client.clone(), stop.clone(), served.clone());
            tasks::detach("load", async move {
                while !stop.load(Ordering::Relaxed) {
                    assert_eq!(client.get(name, "/api/v1/tenant", &[]).await.status, 200);
                    served.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let renew = "update certificate_orders set due_at = now(); notify gmah_catalog, 'orders'";
    dev.execute("gmah_master", renew).await;
    let replaced = || async { leaf(&edge.client, name).await != before };
    eventually("replaced", Duration::from_secs(40), replaced, |r| *r).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    stop.store(true, Ordering::Relaxed);
    for task in load {
        task.await.expect("no request failed");
    }
    assert!(served.load(Ordering::Relaxed) > 10);
    assert_eq!(dev.value("gmah_master", "select count(*) from acme_orders").await, "2");
    let kept = || dev.value("gmah_master", "select count(*) from certificates");
    eventually("the old one goes", Duration::from_secs(5), kept, |n| n == "1").await;

    // Given up: not served from then on, by anybody.
    assert!(dev.cli(&["domain", "remove", name]).await.status.success());
    for client in [&edge.client, &other_client] {
        let gone = || async { client.try_connect(name, &[]).await.is_err() };
        eventually("gone", Duration::from_secs(3), gone, |g| *g).await;
    }
    assert_eq!(dev.cli(&["domain", "verify", name]).await.status.code(), Some(1), "a tombstone");
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t13_t14_t15_by_tls_and_whose_a_name_is() {
    let edge = Edge::start("tls-alpn-01").await;
    let (dev, name) = (&edge.dev, "www.example.net");
    edge.prove("paris", name).await;
    dev.cli_json(&["domain", "verify", "paris", name]).await;
    edge.until("paris", name, "active").await;
    assert_eq!(edge.client.get(name, "/api/v1/tenant", &[]).await.slug(), (200, "paris".into()));
    // T-13: nobody else gets a proof, and nobody gets HTTP with one.
    for sni in [name, "unknown.example.net", "paris.gmah.localhost"] {
        assert!(edge.client.try_connect(sni, &[b"acme-tls/1"]).await.is_err(), "{sni}");
    }

    // Another organisation: while it is held, the name is refused, and so is its parent.
    for claimed in [name, "example.net"] {
        let refused = dev.cli(&["domain", "add", "lyon", claimed]).await;
        assert_eq!(refused.status.code(), Some(1), "{claimed}");
    }
    // T-14: given up by the one, its CNAME still there: the other needs a proof of its own.
    assert!(dev.cli(&["domain", "remove", "paris", name]).await.status.success());
    let added = dev.cli_json(&["domain", "add", "lyon", name]).await;
    let refused = dev.cli(&["domain", "verify", "lyon", name]).await;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("TXT"), "{refused:?}");
    assert!(edge.client.try_connect(name, &[]).await.is_err());
    let again = dev.cli_json(&["domain", "add", "paris", name]).await;
    assert_ne!(again["txt_value"], added["txt_value"], "each its own");

    // T-15: both can prove it at once: one has it, the other is told.
    for slug in ["lyon", "paris"] {
        edge.prove(slug, name).await;
    }
    let verify = |slug: &'static str| async move { dev.cli(&["domain", "verify", slug, name]).await };
    let both = tokio::join!(verify("lyon"), verify("paris"));
    let held = || {
        dev.value(
            "gmah_master",
            "select count(*) from organization_domains where hostname = 'www.example.net'
             and status in ('verified', 'active', 'moved')",
        )
    };
    eventually("one has it", Duration::from_secs(20), held, |n| n == "1").await;
    assert!(!(both.0.status.success() && both.1.status.success()), "{both:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn t09_orders_that_fail_are_put_off_and_harm_nobody() {
    let edge = Edge::start("http-01").await;
    let (dev, good, bad) = (&edge.dev, "good.example.com", "bad.example.com");
    edge.prove("paris", good).await;
    dev.cli_json(&["domain", "verify", good]).await;
    edge.until("paris", good, "active").await;
    // Proven to us, but the authority finds nobody there.
    let added = dev.cli_json(&["domain", "add", "lyon", bad]).await;
    let field = |name: &str| added[name].as_str().expect("text").to_owned();
    edge.prove("lyon", bad).await;
    edge.dns.set_addresses(&field("cname"), &["127.0.0.77"]).await;
    dev.cli_json(&["domain", "verify", bad]).await;
    let tried = || dev.value("gmah_master", "select max(attempts) from certificate_orders");
    eventually("tried", Duration::from_secs(40), tried, |n| n.parse::<u32>().is_ok_and(|n| n >= 2)).await;
    let (status, reason) = edge.state("lyon", bad).await;
    assert_eq!(status, "verified");
    assert!(reason.contains("certificate authority"), "{reason}");
    assert!(edge.client.try_connect(bad, &[]).await.is_err());
    assert_eq!(edge.client.get(good, "/api/v1/tenant", &[]).await.slug(), (200, "paris".into()));
    // Handshakes order nothing: only the clock does.
    let orders =
        || dev.value("gmah_master", "select count(*) from acme_orders where hostname = 'bad.example.com'");
    let before: u32 = orders().await.parse().expect("number");
    for _ in 0..200 {
        assert!(edge.client.try_connect(bad, &[]).await.is_err());
    }
    let after: u32 = orders().await.parse().expect("number");
    assert!(after <= before + 3, "{before} -> {after}");
    assert!(dev.metrics("admin").await.sum("gmah_router_certificate_orders_total", &["failed"]) >= 1.0);
    // Mended, it comes by itself.
    edge.dns.set_addresses(&field("cname"), &["127.0.0.1"]).await;
    dev.execute(
        "gmah_master",
        "update certificate_orders set due_at = now() where due_at < now() + interval '1 day'",
    )
    .await;
    edge.until("lyon", bad, "active").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_of_an_hour_have_a_bound() {
    let edge = Edge::start("http-01").await;
    let (dev, name) = (&edge.dev, "shop.example.org");
    // As many as the configuration's default allows.
    dev.execute("gmah_master", "insert into acme_orders (hostname) select 'x' from generate_series(1, 100)")
        .await;
    edge.prove("paris", name).await;
    dev.cli_json(&["domain", "verify", name]).await;
    let state = || edge.state("paris", name);
    let (status, reason) =
        eventually("told", Duration::from_secs(15), state, |(_, r)| r.contains("orders of this hour")).await;
    assert_eq!(status, "verified", "{reason}");
    assert_eq!(dev.value("gmah_master", "select count(*) from acme_orders").await, "100");
    assert_eq!(
        dev.value("gmah_master", "select attempts from certificate_orders").await,
        "0",
        "not a failure"
    );
    dev.execute("gmah_master", "delete from acme_orders; update certificate_orders set due_at = now()").await;
    edge.until("paris", name, "active").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t18_a_name_that_moved_away_goes_after_its_grace() {
    let edge = Edge::start("http-01").await;
    let (dev, name) = (&edge.dev, "shop.example.org");
    edge.prove("paris", name).await;
    // Without a command: it is looked at again and again.
    edge.until("paris", name, "active").await;
    edge.dns.clear_text("_gmah-verify.shop.example.org").await;
    let reason = edge.until("paris", name, "moved").await;
    assert!(reason.contains("TXT"), "{reason}");
    assert_eq!(edge.client.get(name, "/api/v1/tenant", &[]).await.status, 200, "in its grace it is served");
    edge.until("paris", name, "removed").await;
    let gone = || async { edge.client.try_connect(name, &[]).await.is_err() };
    eventually("not served", Duration::from_secs(3), gone, |g| *g).await;
    assert_eq!(dev.value("gmah_master", "select count(*) from acme_orders").await, "1", "nothing is renewed");
}

#[tokio::test(flavor = "multi_thread")]
async fn t16_names_that_are_nobodys_to_claim() {
    let dev = Dev::start().await;
    for (name, code) in [
        ("gmah.localhost", 2),
        ("paris.gmah.localhost", 2),
        ("x.edge.gmah.localhost", 2),
        ("admin.gmah.localhost", 2),
        ("localhost", 2),
        ("router.internal", 2),
        ("printer.local", 2),
        ("co.uk", 2),
        ("com", 2),
        ("github.io", 2),
        ("*.shop.example.org", 2),
        ("127.0.0.1", 2),
        ("2001:db8::1", 2),
        ("", 2),
        ("shop..example.org", 2),
        ("shop.example.org:443", 2),
    ] {
        let out = dev.cli(&["domain", "add", "paris", name]).await;
        assert_eq!(out.status.code(), Some(code), "{name}: {}", String::from_utf8_lossy(&out.stderr));
    }
    // Written in any way, it is one name.
    let added = dev.cli_json(&["domain", "add", "paris", "Shop.EXAMPLE.org.", "--www"]).await;
    let names: Vec<_> = added.as_array().expect("two").iter().map(|d| d["hostname"].clone()).collect();
    assert_eq!(names, ["shop.example.org", "www.shop.example.org"]);
    assert!(added[0]["cname"].as_str().expect("text").ends_with(".edge.gmah.localhost"));
    assert_ne!(added[0]["cname"], added[1]["cname"], "a target of its own");
    for (args, code) in [
        (vec!["domain", "add", "nobody", "a.example.org"], 1),
        (vec!["domain", "verify", "never.example.org"], 1),
        (vec!["domain", "remove", "never.example.org"], 1),
        (vec!["domain", "list", "nobody"], 1),
        (vec!["domain", "remove"], 2),
    ] {
        assert_eq!(dev.cli(&args).await.status.code(), Some(code), "{args:?}");
    }
    // So many names and no more.
    dev.execute(
        "gmah_master",
        "insert into organization_domains (hostname, organization_id, status)
         select 'n' || n || '.example.com', (select id from organizations where slug = 'lyon'), 'failed'
         from generate_series(1, 99) n",
    )
    .await;
    assert!(dev.cli(&["domain", "add", "lyon", "hundredth.example.org"]).await.status.success());
    let refused = dev.cli(&["domain", "add", "lyon", "one-more.example.org"]).await;
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    // Without an authority a proven name needs nothing more; here it is not proven, which each is told.
    let out = dev.cli(&["domain", "verify"]).await;
    assert_eq!(out.status.code(), Some(3));
}

/// Handshakes with these names, twenty at a time; how many were done.
async fn knock(client: &Client, names: impl Iterator<Item = String>) -> usize {
    let names: Vec<String> = names.collect();
    let parts: Vec<_> = names
        .chunks(names.len().div_ceil(20))
        .map(|part| {
            let (client, part) = (client.clone(), part.to_vec());
            tasks::detach("knock", async move {
                let mut done = 0;
                for name in part {
                    done += usize::from(client.try_connect(&name, &[]).await.is_ok());
                }
                done
            })
        })
        .collect();
    let mut done = 0;
    for part in parts {
        done += part.await.expect("joined");
    }
    done
}

/// Resident memory of the process, in KiB (proc(5)).
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse().expect("number")
}

#[tokio::test(flavor = "multi_thread")]
async fn t07_ten_thousand_random_names() {
    let dev = Dev::start().await;
    let loads =
        || async { dev.metrics("admin").await.sum("gmah_catalog_loads_total", &["cache=\"certificates\""]) };
    let evil = |n: u32| format!("r{n}.evil.test");
    // Warm: what one connection leaves behind, and the threads' own memory.
    assert_eq!(knock(&dev.client, (0..1000).map(|n| format!("w{n}.gmah.localhost"))).await, 1000);
    assert_eq!(knock(&dev.client, (0..1000).map(|n| evil(1_000_000 + n))).await, 0);
    let (before, warm) = (loads().await, resident(dev.pid()));
    // The base domain's own: no question at all.
    assert_eq!(knock(&dev.client, (0..4000).map(|n| format!("r{n}.gmah.localhost"))).await, 4000);
    assert_eq!(loads().await, before);
    // A hundred names thirty times: one question a name. The last to be forgotten are asked about again at most once.
    assert_eq!(knock(&dev.client, (0..3000).map(|n| evil(n % 100))).await, 0);
    let asked = loads().await - before;
    assert!((100.0..=200.0).contains(&asked), "{asked}");
    // Ever other names: one each, and nothing is left of them.
    assert_eq!(knock(&dev.client, (0..3000).map(|n| evil(1000 + n))).await, 0);
    let asked = loads().await - before - asked;
    assert!((3000.0..=3001.0).contains(&asked), "{asked}");
    let grown = resident(dev.pid()).saturating_sub(warm);
    assert!(grown < 16 << 10, "{grown} KiB more than {warm} KiB, for 10,000 handshakes");
    assert_eq!(dev.value("gmah_master", "select count(*) from acme_orders").await, "0");
    assert_eq!(dev.get("paris", "/api/v1/tenant").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_of_one_router_resumes_on_another() {
    let dev = Dev::start().await;
    let api = [address(&dev.info["api"])];
    let (one, a) = roles::router(&dev, &api, |_, _| {}).await;
    let (two, b) = roles::router(&dev, &api, |_, _| {}).await;
    let host = dev.host("paris");
    // The client of the test keeps tickets by name, so the next connection offers what the first was given.
    let resumed = || async {
        for client in [&a, &b] {
            let mut stream = client.connect(&host).await;
            let seen = exchange(&mut stream, &request("GET", &host, "/api/v1/tenant", &[], None)).await;
            assert_eq!(seen.status, 200);
            if client.address() == b.address() {
                return stream.get_ref().1.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
            }
        }
        false
    };
    eventually("resumed", Duration::from_secs(30), resumed, |r| *r).await;
    let mut closing = a.connect(&host).await;
    drop(plain(one.admin, "/healthz").await);
    one.stop().await;
    assert!(is_closed(&mut closing).await);
    assert!(Metrics(plain(two.admin, "/metrics").await.body).series() > 0);
    two.stop().await;
}
