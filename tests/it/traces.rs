//! Traces: what a collector is sent, what a backend is told, and whom neither believes.

use std::time::Duration;

use gmah_shared::config::{HumanDuration, Within};
use gmah_shared::telemetry::traces::TraceSettings;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;

use crate::harness::origin::{Origin, answer};
use crate::harness::{Dev, eventually, roles};

fn settings(collector: &Origin, sample: usize) -> TraceSettings {
    TraceSettings {
        endpoint: format!("http://{}/v1/traces", collector.address),
        sample_per_10_000: Within::new(sample),
        ca_file: None,
        authorization_file: None,
        authorization_env: None,
        authorization: Some("Bearer of-the-test".to_owned().into()),
        timeout: HumanDuration::from_secs(2),
        max_queue: Within::new(64),
        delay: HumanDuration::from_millis(50),
    }
}

fn spans(collector: &Origin) -> Vec<Span> {
    let mut spans = Vec::new();
    for request in collector.take() {
        assert_eq!(request.target(), "/v1/traces");
        assert_eq!(request.all("content-type"), ["application/x-protobuf"]);
        assert_eq!(request.all("authorization"), ["Bearer of-the-test"]);
        let export = ExportTraceServiceRequest::decode(&request.body[..]).expect("protobuf");
        for resource in export.resource_spans {
            let attributes = format!("{:?}", resource.resource);
            assert!(
                (attributes.contains("gmah-router") || attributes.contains("gmah-api"))
                    && attributes.contains("service.instance.id"),
                "{attributes}"
            );
            spans.extend(resource.scope_spans.into_iter().flat_map(|s| s.spans));
        }
    }
    spans
}

fn value(span: &Span, key: &str) -> String {
    let found = span.attributes.iter().find(|a| a.key == key).and_then(|a| a.value.clone());
    found.map(|v| format!("{:?}", v.value)).unwrap_or_default()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_a_tree_of_spans_and_strangers_do_not_plant_it() {
    let dev = Dev::start().await;
    let (collector, backend) =
        (Origin::start(Box::new(|_| Some(answer(200, "", "")))).await, Origin::ok().await);
    let (router, client) = roles::router(&dev, &[backend.address], |s, _| {
        s.traces = Some(settings(&collector, 10_000));
    })
    .await;
    let theirs = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let fields = [("traceparent", theirs), ("tracestate", "a=b")];
    let seen = client.get("paris.gmah.localhost", "/api/v1/tenant?secret=x", &fields).await;
    assert_eq!(seen.status, 200);
    let told = backend.take().pop().expect("forwarded");
    let parent = told.all("traceparent");
    assert_eq!(parent.len(), 1, "{}", told.head);
    assert!(!parent[0].contains("0af7651916cd43dd8448eb211c80319c"), "a stranger's trace: {parent:?}");
    assert!(told.all("tracestate").is_empty());

    let mut all = Vec::new();
    let come = || {
        all.extend(spans(&collector));
        std::future::ready(all.len())
    };
    eventually("spans", Duration::from_secs(10), come, |n| *n >= 3).await;
    let request = all.iter().find(|s| s.parent_span_id.is_empty()).expect("a root");
    let kinds = |kind: i32| all.iter().filter(move |s| s.kind == kind).collect::<Vec<_>>();
    let (server, attempts) = (kinds(2), kinds(3));
    assert_eq!((server.len(), attempts.len(), all.len()), (1, 1, 3), "{all:#?}");
    assert_eq!(server[0].span_id, request.span_id);
    assert!(all.iter().all(|s| s.trace_id == request.trace_id));
    assert!(all.iter().all(|s| s.span_id == request.span_id || s.parent_span_id == request.span_id));
    // The backend's spans hang below the attempt.
    assert_eq!(parent[0], format!("00-{}-{}-01", hex(&request.trace_id), hex(&attempts[0].span_id)));
    assert_eq!(request.name, "GET");
    assert!(value(request, "gmah.tenant.slug").contains("paris"));
    assert!(value(request, "http.response.status_code").contains("200"));
    assert!(value(request, "url.path").contains("/api/v1/tenant") && !format!("{all:?}").contains("secret"));
    assert!(value(attempts[0], "server.port").contains(&backend.address.port().to_string()));
    assert!(request.start_time_unix_nano <= attempts[0].start_time_unix_nano);
    assert!(request.end_time_unix_nano >= attempts[0].end_time_unix_nano);

    // A refusal is a trace as well, and says why.
    assert_eq!(client.get("nobody.gmah.localhost", "/", &[]).await.status, 404);
    all.clear();
    let come = || {
        all.extend(spans(&collector));
        std::future::ready(all.iter().any(|s| {
            value(s, "error.type").contains("not_found") || value(s, "error.type").contains("unknown_host")
        }))
    };
    eventually("the refusal", Duration::from_secs(10), come, |s| *s).await;
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configured_proxy_may_say_what_is_traced() {
    let dev = Dev::start().await;
    let (collector, backend) =
        (Origin::start(Box::new(|_| Some(answer(200, "", "")))).await, Origin::ok().await);
    let (router, client) = roles::router(&dev, &[backend.address], |s, c| {
        s.traces = Some(settings(&collector, 0));
        c.router.proxies.forwarded_from = vec!["127.0.0.0/8".parse().expect("network")];
    })
    .await;
    let ask =
        |fields: &'static [(&'static str, &'static str)]| client.get("paris.gmah.localhost", "/", fields);
    // Nothing of itself; the backend hears that it is not recorded.
    assert_eq!(ask(&[]).await.status, 200);
    assert!(backend.take()[0].all("traceparent")[0].ends_with("-00"));
    for bad in [
        "junk",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    ] {
        assert_eq!(client.get("paris.gmah.localhost", "/", &[("traceparent", bad)]).await.status, 200);
        let told = backend.take()[0].all("traceparent");
        assert!(told.len() == 1 && told[0].ends_with("-00"), "{bad}: {told:?}");
    }
    let recorded =
        &[("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), ("tracestate", "a=b")];
    assert_eq!(ask(recorded).await.status, 200);
    let told = backend.take().pop().expect("forwarded");
    assert!(told.all("traceparent")[0].starts_with("00-0af7651916cd43dd8448eb211c80319c-"));
    assert_eq!(told.all("tracestate"), ["a=b"]);
    // What waits is sent at the end.
    router.stop().await;
    let all = spans(&collector);
    assert_eq!(all.len(), 3, "{all:?}");
    assert!(all.iter().all(|s| hex(&s.trace_id) == "0af7651916cd43dd8448eb211c80319c"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_keeps_nobody_waiting() {
    let dev = Dev::start().await;
    // It takes what comes and never answers.
    let collector = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let backend = Origin::ok().await;
    let (router, client) = roles::router(&dev, &[backend.address], |s, _| {
        let mut traces = settings(&backend, 10_000);
        traces.endpoint = format!("http://{}/v1/traces", collector.local_addr().expect("address"));
        s.traces = Some(traces);
    })
    .await;
    for _ in 0..300 {
        assert_eq!(client.get("paris.gmah.localhost", "/", &[]).await.status, 200);
    }
    let failed = || async {
        let text = router.metrics.text().expect("metrics");
        crate::harness::dev::Metrics(text).sum("gmah_router_trace_exports_total", &["failed"])
    };
    eventually("counted", Duration::from_secs(10), failed, |n| *n >= 1.0).await;
    let stopped = tokio::time::timeout(Duration::from_secs(10), router.stop()).await;
    assert!(stopped.is_ok(), "it ends all the same");
    for (endpoint, key) in
        [("\"ftp://x/\"", "endpoint"), ("\"http://x/\"\nsample_per_10_000 = 10001", "sample")]
    {
        let text = std::fs::read_to_string(dev.config().path()).expect("configuration");
        let file = dev.folder().join("data/changed.toml");
        std::fs::write(&file, format!("{text}\n[traces]\nendpoint = {endpoint}\n")).expect("written");
        let out = dev.cli(&["--config", &file.display().to_string(), "config", "check"]).await;
        assert_eq!(out.status.code(), Some(2), "{endpoint}");
        assert!(String::from_utf8_lossy(&out.stderr).contains(key), "{endpoint}: {out:?}");
    }
}

/// The api goes on with the router's trace.
#[tokio::test(flavor = "multi_thread")]
async fn the_api_is_part_of_the_trace() {
    let dev = Dev::start().await;
    let collector = Origin::start(Box::new(|_| Some(answer(200, "", "")))).await;
    let api = roles::api(&dev, |s, _| s.traces = Some(settings(&collector, 10_000))).await;
    let (router, client) = roles::router(&dev, &[api.address], |s, _| {
        s.traces = Some(settings(&collector, 10_000));
    })
    .await;
    assert_eq!(client.get("paris.gmah.localhost", "/api/v1/auth/me?secret=x", &[]).await.status, 401);
    let mut all = Vec::new();
    let come = || {
        all.extend(spans(&collector));
        std::future::ready(all.len())
    };
    eventually("spans", Duration::from_secs(10), come, |n| *n >= 4).await;
    let attempt = all.iter().find(|s| s.kind == 3).expect("the router's attempt");
    let served = all.iter().find(|s| s.parent_span_id == attempt.span_id).expect("the api's span");
    assert_eq!((served.kind, served.name.as_str()), (2, "GET /api/v1/auth/me"));
    assert_eq!(served.trace_id, attempt.trace_id);
    assert!(value(served, "gmah.tenant.slug").contains("paris"));
    assert!(value(served, "http.response.status_code").contains("401"));
    assert!(!format!("{all:?}").contains("secret"));
    router.stop().await;
    api.stop().await;
}
