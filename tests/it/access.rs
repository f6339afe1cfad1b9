//! The access log: who was really served, one line each, whatever the client writes.

use std::path::Path;
use std::time::Duration;

use gmah_router::config::{AccessLog, Part};
use serde_json::Value;

use crate::harness::http::{request, talk};
use crate::harness::origin::Origin;
use crate::harness::{Dev, eventually, roles};

/// The lines of all files whose names begin so.
fn lines(folder: &Path, name: &str) -> Vec<Value> {
    let files = std::fs::read_dir(folder).expect("folder").map(|e| e.expect("entry").path());
    let files =
        files.filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&format!("{name}-"))));
    let text: String = files.map(|p| std::fs::read_to_string(p).expect("file")).collect();
    text.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_line_a_request_with_who_was_served() {
    let dev = Dev::start().await;
    let origin = Origin::ok().await;
    let folder = tempfile::tempdir().expect("folder");
    let (all, own) = (folder.path().join("access.log"), folder.path().join("tenants"));
    let (router, client) = roles::router(&dev, &[origin.address], |_, c| {
        c.router.access_log = Some(AccessLog {
            file: Some(all.clone()),
            per_tenant: Some(own.clone()),
            ..AccessLog::default()
        });
    })
    .await;
    let (paris, lyon, nobody) = (dev.host("paris"), dev.host("lyon"), dev.host("nobody"));
    client.get(&paris, "/a%0d%0a%22?secret=1", &[("User-Agent", "\"}{\"tenant.slug\":\"lyon\"}")]).await;
    client.send("POST", &lyon, "/b", &[], Some("{\"a\":1}")).await;
    client.get(&nobody, "/c", &[]).await;
    let mut stream = client.connect(&paris).await;
    talk(&mut stream, &request("TRACE", &paris, "/", &[], None)).await;
    let seen = || async { lines(folder.path(), "access") };
    let seen = eventually("three lines", Duration::from_secs(5), seen, |l| l.len() >= 3).await;
    assert_eq!(seen.len(), 3, "what never became a request has no line: {seen:?}");
    let by_path = |path: &str| seen.iter().find(|l| l["path"] == path).expect(path);
    let a = by_path("/a%0d%0a%22");
    assert_eq!(
        (&a["tenant.slug"], &a["status"], &a["protocol"]),
        (&"paris".into(), &200.into(), &"HTTP/1.1".into())
    );
    assert!(a["upstream_ms"].as_f64().expect("number") <= a["duration_ms"].as_f64().expect("number"));
    let b = by_path("/b");
    assert_eq!((&b["tenant.slug"], &b["bytes_in"], &b["bytes_out"]), (&"lyon".into(), &7.into(), &2.into()));
    let c = by_path("/c");
    assert_eq!(
        (&c["tenant.slug"], &c["status"], &c["reason"]),
        (&Value::Null, &404.into(), &"not_found".into())
    );
    for (slug, path) in [("paris", "/a%0d%0a%22"), ("lyon", "/b")] {
        let mine = lines(&own, slug);
        assert_eq!(mine.iter().map(|l| l["path"].clone()).collect::<Vec<_>>(), [path]);
    }
    router.stop().await;

    // A sample of none: what failed is written all the same.
    let folder = tempfile::tempdir().expect("folder");
    let (router, client) = roles::router(&dev, &[origin.address], |_, c| {
        let file = Some(folder.path().join("access.log"));
        c.router.access_log = Some(AccessLog { file, sample: Part(0.0), ..AccessLog::default() });
    })
    .await;
    for _ in 0..5 {
        client.get(&paris, "/x", &[]).await;
    }
    client.get(&nobody, "/y", &[]).await;
    let seen = || async { lines(folder.path(), "access") };
    let seen = eventually("one line", Duration::from_secs(5), seen, |l| !l.is_empty()).await;
    assert_eq!(seen.iter().map(|l| l["path"].clone()).collect::<Vec<_>>(), ["/y"]);
    router.stop().await;
}
