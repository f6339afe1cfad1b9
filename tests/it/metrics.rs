//! Metrics: the contract's names, clean for Prometheus, bounded.

use std::time::Duration;

use tokio::io::AsyncWriteExt as _;

use crate::harness::Dev;

pub(crate) async fn promtool(text: &str) -> String {
    let mut child = tokio::process::Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("promtool (Debian package prometheus)");
    child.stdin.take().expect("stdin").write_all(text.as_bytes()).await.expect("sent");
    let out = child.wait_with_output().await.expect("output");
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_the_contracts_and_promtool_is_clean() {
    let dev = Dev::start().await;
    let token = dev.login("paris").await;
    // Several: what is remembered of a token is forgotten when the keys are read anew.
    for _ in 0..4 {
        dev.get_as("paris", "/api/v1/members", &token).await;
    }
    dev.get("nobody", "/").await;
    // A request is counted when it has ended, which is after its answer was read.
    let counted = |m: &crate::harness::dev::Metrics| {
        m.sum("gmah_router_tenant_requests_total", &["_unknown", "4xx"]) > 0.0
    };
    let router =
        crate::harness::eventually("counted", Duration::from_secs(2), || dev.metrics("admin"), counted).await;
    let api = dev.metrics("api_admin").await;
    for (metrics, name, labels) in [
        (&router, "gmah_router_tenant_requests_total", vec!["tenant=\"paris\"", "class=\"2xx\""]),
        (&router, "gmah_router_tenant_requests_total", vec!["tenant=\"_unknown\"", "class=\"4xx\""]),
        (&router, "gmah_router_tenant_request_duration_seconds_count", vec!["tenant=\"paris\""]),
        (&router, "gmah_router_tenant_bytes_total", vec!["tenant=\"paris\"", "direction=\"out\""]),
        (&router, "gmah_router_rejections_total", vec!["reason=\"not_found\""]),
        (&router, "gmah_router_handshakes_total", vec!["result=\"done\""]),
        (&router, "gmah_catalog_lookups_total", vec!["cache=\"hosts\""]),
        (&router, "gmah_catalog_listening", vec![]),
        (&api, "gmah_api_tenant_requests_total", vec!["tenant=\"paris\"", "class=\"2xx\""]),
        (&api, "gmah_api_pool_connections", vec!["tenant=\"paris\"", "state=\"idle\""]),
        (&api, "gmah_api_tokens_total", vec!["result=\"remembered\""]),
        (&api, "gmah_api_request_duration_seconds_count", vec!["route=\"/api/v1/members\""]),
    ] {
        assert!(metrics.sum(name, &labels) > 0.0, "{name} {labels:?} in\n{}", metrics.0);
    }
    assert_eq!(promtool(&router.0).await, "");
    assert_eq!(promtool(&api.0).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_hosts_add_no_series() {
    let dev = Dev::start().await;
    dev.get("paris", "/api/v1/tenant").await;
    dev.get("nobody", "/").await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let before = [dev.metrics("admin").await.series(), dev.metrics("api_admin").await.series()];
    let h2 = dev.client.http2(&dev.host("paris")).await;
    for batch in 0..100 {
        let asks: Vec<_> = (0..100)
            .map(|n| {
                let (h2, host) = (h2.clone(), dev.host(&format!("r{batch}x{n}")));
                gmah_shared::tasks::detach(
                    "ask",
                    async move { h2.get(&host, "/").await.expect("answer").status },
                )
            })
            .collect();
        for ask in asks {
            let status = ask.await.expect("joined");
            assert!(matches!(status, 404 | 503), "{status}");
        }
    }
    assert_eq!([dev.metrics("admin").await.series(), dev.metrics("api_admin").await.series()], before);
}
