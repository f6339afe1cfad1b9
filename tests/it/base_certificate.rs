//! The base domain's own certificate, proven by the DNS and ordered: once, for every router, without a pause.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::harness::acme::Edge;
use crate::harness::dev::address;
use crate::harness::{Dev, eventually, roles};

/// A hook that sets records of the test's DNS, says what it saw, and fails for as long as a file lies beside it.
const HOOK: &str = r#"#!/bin/sh
cd "$(dirname "$0")" || exit 1
env >> hook.env
echo "$@" >> hook.calls
[ -e fail ] && { echo "the zone is locked" >&2; exit 3; }
[ -e "hang-$2" ] && exec sleep 600
case "$2" in
    present) body="{\"host\":\"$3\",\"value\":\"$4\"}"; to=set-txt ;;
    cleanup) body="{\"host\":\"$3\"}"; to=clear-txt ;;
esac
exec curl -sf --noproxy '*' -d "$body" "http://MANAGEMENT/$to"
"#;

async fn started() -> Edge {
    // Not below localhost, of which no resolver asks anybody (RFC 6761, section 6.3).
    Edge::start_with("http-01", "gmah.example", |dns, folder| {
        let (hook, fail) = (folder.join("hook"), folder.join("fail"));
        std::fs::write(&hook, HOOK.replace("MANAGEMENT", &dns.management.to_string())).expect("written");
        std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755)).expect("mode");
        std::fs::write(fail, "").expect("written");
        let hook = hook.display();
        format!(
            "[acme.wildcard]\nhook = [\"{hook}\", \"first\"]\nhook_env = [\"CARGO_PKG_NAME\"]\n\
             hook_timeout = \"3s\"\nsettle = \"100ms\"\npropagation_timeout = \"5s\"\n"
        )
    })
    .await
}

async fn leaf(edge: &Edge, router: std::net::SocketAddr) -> Option<CertificateDer<'static>> {
    let stream = edge.client.at(router).try_connect("paris.gmah.example", &[]).await.ok()?;
    Some(stream.get_ref().1.peer_certificates()?[0].clone().into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wildcard_is_ordered_once_and_replaced_without_a_pause() {
    let edge = started().await;
    let dev: &Dev = &edge.dev;
    let api = [address(&dev.info["api"])];
    // A router that has no files at all: it serves what was ordered, as soon as there is something.
    let (other, _) = roles::router(dev, &api, |_, c| {
        (c.router.certificate_file, c.router.key_file) = (None, None);
    })
    .await;
    assert!(leaf(&edge, other.https).await.is_none(), "nothing is served that is not there");

    // A hook that fails says why, and until it does not, the files are served.
    let said = || dev.value("gmah_master", "select coalesce(max(last_error), '') from certificate_orders");
    let said = eventually("told", Duration::from_secs(30), said, |e| e.contains("the zone is locked")).await;
    assert!(said.contains("exit status: 3"), "{said}");
    assert_eq!(dev.get("paris", "/api/v1/tenant").await.slug(), (200, "paris".into()));
    std::fs::remove_file(dev.folder().join("fail")).expect("removed");
    let due = "update certificate_orders set due_at = now(); notify gmah_catalog, 'orders'";
    dev.execute("gmah_master", due).await;

    let routers = [edge.client.address(), other.https];
    for router in routers {
        let served = || async {
            let why = "select coalesce(max(last_error), '') from certificate_orders";
            (leaf(&edge, router).await.is_some(), dev.value("gmah_master", why).await)
        };
        eventually("served", Duration::from_secs(60), served, |s| s.0).await;
        let seen = edge.client.at(router).get("paris.gmah.example", "/api/v1/tenant", &[]).await;
        assert_eq!(seen.slug(), (200, "paris".into()));
    }
    let first = leaf(&edge, routers[0]).await.expect("served");
    assert_eq!(Some(&first), leaf(&edge, routers[1]).await.as_ref());
    let (_, parsed) = X509Certificate::from_der(&first).expect("certificate");
    let names = format!("{:?}", parsed.subject_alternative_name().expect("readable"));
    assert!(names.contains("\"gmah.example\"") && names.contains("\"*.gmah.example\""), "{names}");

    // The program was told what the convention says, knows nothing else of us, and cleaned up behind itself.
    let read = |name: &str| std::fs::read_to_string(dev.folder().join(name)).expect(name);
    let calls = read("hook.calls");
    let of = |what: &str| calls.matches(&format!("first {what} _acme-challenge.gmah.example. ")).count();
    assert!(of("present") >= 2 && of("cleanup") >= of("present"), "{calls}");
    let known: Vec<String> =
        read("hook.env").lines().map(|l| l.split('=').next().unwrap_or("").into()).collect();
    assert!(known.iter().any(|n| n == "CARGO_PKG_NAME"), "{known:?}");
    assert!(known.iter().any(|n| n == "PATH") && !known.iter().any(|n| n == "HOME"), "{known:?}");
    let sealed =
        "select count(*) from certificates where position('PRIVATE' in encode(private_key, 'escape')) > 0";
    assert_eq!(dev.value("gmah_master", sealed).await, "0");

    // Replaced when it is due, on both.
    let over = || dev.value("gmah_master", "select count(*) from certificate_orders where holder is null");
    eventually("the order is over", Duration::from_secs(15), over, |n| n == "1").await;
    let orders: u32 =
        dev.value("gmah_master", "select count(*) from acme_orders").await.parse().expect("number");
    dev.execute("gmah_master", due).await;
    for router in routers {
        let replaced = || async {
            let seen = edge.client.at(router).get("paris.gmah.example", "/api/v1/tenant", &[]).await;
            assert_eq!(seen.status, 200, "served throughout");
            leaf(&edge, router).await.is_some_and(|l| l != first)
        };
        eventually("replaced", Duration::from_secs(60), replaced, |r| *r).await;
    }
    let after: u32 =
        dev.value("gmah_master", "select count(*) from acme_orders").await.parse().expect("number");
    assert_eq!(after, orders + 1, "one order, two routers");
    let kept = || dev.value("gmah_master", "select count(*) from certificates");
    eventually("the old one goes", Duration::from_secs(5), kept, |n| n == "1").await;
    // What a dead router left, and a hook that does not come to an end: the order is not lost to it.
    let hang = dev.folder().join("hang-cleanup");
    std::fs::write(&hang, "").expect("written");
    let second = leaf(&edge, routers[0]).await.expect("served");
    dev.execute("gmah_master", "update certificate_orders set shown = '{a,b,c,d,e,f,g,h}'").await;
    dev.execute("gmah_master", due).await;
    let replaced = || async { leaf(&edge, routers[0]).await.is_some_and(|l| l != second) };
    eventually("replaced", Duration::from_secs(60), replaced, |r| *r).await;
    let calls = read("hook.calls");
    let tried = ["a", "b", "c", "d", "e", "f", "g", "h"]
        .iter()
        .filter(|v| calls.contains(&format!("cleanup _acme-challenge.gmah.example. {v}\n")))
        .count();
    assert!((1..=3).contains(&tried), "in the time of two runs: {tried}");
    let left = "select cardinality(shown) from certificate_orders";
    assert_eq!(dev.value("gmah_master", left).await, "10", "known, and left for the next one");
    std::fs::remove_file(&hang).expect("removed");
    eventually("the order is over", Duration::from_secs(30), over, |n| n == "1").await;
    dev.execute("gmah_master", due).await;
    eventually("taken away", Duration::from_secs(60), || dev.value("gmah_master", left), |n| n == "0").await;
    // One that does not open, or is none, changes nothing.
    dev.execute("gmah_master", "update certificates set chain_pem = 'junk'").await;
    let said = || std::future::ready(dev.log());
    eventually("said", Duration::from_secs(10), said, |l| l.contains("the old one is served on")).await;
    for router in routers {
        let seen = edge.client.at(router).get("paris.gmah.example", "/api/v1/tenant", &[]).await;
        assert_eq!(seen.status, 200, "the one before is served on");
    }
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_files_and_without_a_hook_there_is_no_start() {
    let dev = Dev::start().await;
    let text = std::fs::read_to_string(dev.config().path()).expect("configuration");
    let checked = |text: String| async {
        let file = dev.folder().join("data/changed.toml");
        std::fs::write(&file, text).expect("written");
        let out = dev.cli(&["--config", &file.display().to_string(), "config", "check"]).await;
        (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let without = |key: &str| {
        let lines = text.lines().filter(|l| !(l.starts_with(key) && l.contains("/certs/")));
        lines.collect::<Vec<_>>().join("\n")
    };
    let (code, said) = checked(without("key_file")).await;
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("certificate_file") && said.contains("key_file"), "{said}");
    let none = without("key_file")
        .lines()
        .filter(|l| !l.starts_with("certificate_file"))
        .collect::<Vec<_>>()
        .join("\n");
    let (code, said) = checked(none.clone()).await;
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("[acme.wildcard]"), "{said}");
    let acme = "\n[acme]\ndirectory = \"https://localhost:1/dir\"\n[acme.wildcard]\n";
    assert_eq!(checked(format!("{none}{acme}hook = [\"/bin/true\"]\n")).await.0, Some(0));
    for (bad, key) in [
        ("hook = []\n", "hook"),
        ("hook = [\"\"]\n", "hook"),
        ("hook = [\"/bin/true\"]\npropagation_timeout = \"1h\"\n", "propagation_timeout"),
        ("hook = [\"/bin/true\"]\nshell = true\n", "shell"),
    ] {
        let (code, said) = checked(format!("{none}{acme}{bad}")).await;
        assert_eq!(code, Some(2), "{bad}: {said}");
        assert!(said.contains(key), "{bad}: {said}");
    }
}
