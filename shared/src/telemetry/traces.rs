//! Traces over OTLP (OpenTelemetry Protocol 1.x, HTTP with protobuf).
//!
//! Spans that were sampled wait in a bounded queue for a thread of their own; beyond it they are dropped, and no request
//! ever waits for a collector.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider,
};
use prometheus::IntCounterVec;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use tokio::runtime::Handle;

use crate::config::{HumanDuration, Within};
use crate::{https, tasks};

/// `[traces]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TraceSettings {
    /// Where the collector takes spans, like `http://127.0.0.1:4318/v1/traces`.
    pub endpoint: String,
    /// How many of 10,000 requests are traced. A proxy that may name the client may also say that a request is. Default 100.
    #[serde(default = "per_ten_thousand")]
    pub sample_per_10_000: Within<0, 10_000>,
    /// PEM file with the authority that signed the collector's certificate. Default: those of the system.
    pub ca_file: Option<PathBuf>,
    /// File with the value of an `Authorization` header.
    pub authorization_file: Option<PathBuf>,
    /// Variable with it.
    pub authorization_env: Option<String>,
    /// The header, read.
    #[serde(skip)]
    pub authorization: Option<SecretString>,
    /// Deadline of one export. Default 10 s.
    #[serde(default = "timeout")]
    pub timeout: HumanDuration,
    /// Spans that wait at most; beyond it they are dropped. Default 4096.
    #[serde(default = "max_queue")]
    pub max_queue: Within<1, 1_000_000>,
    /// How long they wait at most. Default 5 s.
    #[serde(default = "delay")]
    pub delay: HumanDuration,
}

/// A process's traces.
#[derive(Debug)]
pub struct Traces {
    provider: SdkTracerProvider,
}

impl Traces {
    /// Exports on the current runtime. `exports` counts what became of each attempt: `done`, `failed`.
    ///
    /// # Errors
    /// A sentence that begins with the key at fault.
    pub fn start(
        settings: &TraceSettings,
        service: &'static str,
        exports: IntCounterVec,
    ) -> Result<Self, String> {
        let connector = https::connector(settings.ca_file.as_deref(), true)
            .map_err(|e| format!("traces.ca_file: {e}"))?;
        let client = Http {
            client: Client::builder(TokioExecutor::new()).build(connector),
            runtime: Handle::current(),
            timeout: *settings.timeout,
            exports,
        };
        let mut headers = std::collections::HashMap::new();
        if let Some(value) = &settings.authorization {
            headers.insert("authorization".to_owned(), value.expose_secret().to_owned());
        }
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_shared_http_client(Arc::new(client))
            .with_endpoint(&settings.endpoint)
            .with_timeout(*settings.timeout)
            .with_headers(headers)
            .build()
            .map_err(|e| format!("traces: {e}"))?;
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(settings.max_queue.get())
            .with_max_export_batch_size(settings.max_queue.get().min(MAX_BATCH))
            .with_scheduled_delay(*settings.delay)
            .build();
        let share = settings.sample_per_10_000.get() as f64 / 10_000.0;
        let resource = Resource::builder_empty()
            .with_service_name(service)
            .with_attributes([
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
                KeyValue::new("service.instance.id", uuid::Uuid::new_v4().to_string()),
            ])
            .build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(BatchSpanProcessor::builder(exporter).with_batch_config(batches).build())
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(share))))
            .with_resource(resource)
            .build();
        Ok(Self { provider })
    }

    /// What begins spans.
    pub fn tracer(&self) -> SdkTracer {
        self.provider.tracer("gmah")
    }

    /// Exports what waits, within some seconds.
    pub async fn stop(self) {
        // It blocks; on this thread it would keep the export from going on.
        let stopped = tokio::task::spawn_blocking(move || self.provider.shutdown_with_timeout(STOP_TIMEOUT));
        if let Ok(Err(e)) = stopped.await {
            tracing::warn!(error = %e, "the last traces may be lost");
        }
    }
}

/// The span that a request says is its parent (W3C Trace Context), or none. Who may say so is the caller's business.
pub fn parent(headers: &http::HeaderMap) -> Context {
    TraceContextPropagator::new().extract_with_context(&Context::new(), &Fields(headers))
}

/// For the propagator. A field that stands there twice is none (section 3.2.1).
struct Fields<'a>(&'a http::HeaderMap);

impl opentelemetry::propagation::Extractor for Fields<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        let mut values = self.0.get_all(key).iter();
        match (values.next(), values.next()) {
            (Some(value), None) => value.to_str().ok(),
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

/// The exporter's way out, whichever thread it runs on.
#[derive(Debug)]
struct Http {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    runtime: Handle,
    timeout: Duration,
    exports: IntCounterVec,
}

#[async_trait::async_trait]
impl HttpClient for Http {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let asked = self.client.request(request.map(Full::new));
        let timeout = self.timeout;
        let exchange = async move {
            let exchange = async {
                let (head, body) = asked.await?.into_parts();
                let body = Limited::new(body, MAX_ANSWER).collect().await?.to_bytes();
                Ok::<_, HttpError>(Response::from_parts(head, body))
            };
            tokio::time::timeout(timeout, exchange).await?
        };
        let running = {
            let _entered = self.runtime.enter();
            tasks::detach("traces-export", exchange)
        };
        let answer = running.await?;
        let is_done = answer.as_ref().is_ok_and(|a| a.status().is_success());
        self.exports.with_label_values(&[if is_done { "done" } else { "failed" }]).inc();
        answer
    }
}

const MAX_BATCH: usize = 512;
/// Bytes of the collector's answer that are read.
const MAX_ANSWER: usize = 64 << 10;
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

fn per_ten_thousand() -> Within<0, 10_000> {
    Within::new(100)
}

fn timeout() -> HumanDuration {
    HumanDuration::from_secs(10)
}

fn max_queue() -> Within<1, 1_000_000> {
    Within::new(4096)
}

fn delay() -> HumanDuration {
    HumanDuration::from_secs(5)
}
