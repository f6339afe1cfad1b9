//! Metrics of the router. A label value comes from an enum or is the slug of a tenant that exists; never a host.

mod tenants;

use std::sync::Arc;
use std::time::SystemTime;

use gmah_shared::telemetry::{self, names};
use prometheus::{
    Gauge, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use crate::reject::Rejection;

pub use tenants::{TenantSeries, Tenants};

/// Every metric of the role.
pub struct Metrics {
    /// Where they are registered.
    pub registry: Registry,
    /// Per tenant.
    pub tenants: Tenants,
    /// Time to answer, by pool.
    pub upstream_seconds: HistogramVec,
    /// Backends by pool and state.
    pub backends: IntGaugeVec,
    /// Open connections.
    pub connections: IntGauge,
    /// Whether notices of change come in.
    pub catalog_connected: IntGauge,
    /// For how many seconds they have not come.
    pub catalog_staleness: Gauge,
    /// Attempts that were tried again.
    pub retries: IntCounter,
    /// Lines of the access log that were not written, because the disk was too slow.
    pub access_log_dropped: IntCounter,
    /// Whether counters are shared with other routers right now.
    pub shared_limits: IntGauge,
    /// Questions to the shared counters without an answer.
    pub shared_limits_failures: IntCounter,
    rejections: IntCounterVec,
    handshakes: IntCounterVec,
    refused_connections: IntCounterVec,
    certificate_reloads: IntCounterVec,
    orders: IntCounterVec,
    staples: IntCounterVec,
    certificate_ends: IntGaugeVec,
    /// Exports of traces.
    pub trace_exports: IntCounterVec,
    /// New certificates that the listener did not serve, and that were taken back. Somebody must look.
    pub certificate_probe_failures: IntCounter,
}

/// What came of an order for a certificate.
#[derive(Debug, Clone, Copy)]
pub enum OrderResult {
    /// Installed and served.
    Done,
    /// Refused, or not in time.
    Failed,
    /// The account's orders of this hour are used up, or the authority asked for a pause.
    Paused,
}

impl OrderResult {
    const ALL: [Self; 3] = [Self::Done, Self::Failed, Self::Paused];

    const fn label(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Paused => "paused",
        }
    }
}

/// What came of a TLS handshake.
#[derive(Debug, Clone, Copy)]
pub enum Handshake {
    /// Done.
    Done,
    /// A proof for the certificate authority.
    Proof,
    /// SNI absent or unknown.
    UnknownName,
    /// Not in time.
    Timeout,
    /// Anything else.
    Failed,
}

/// Why a connection was closed before a word of its client was heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Its address has as many as it may have.
    Address,
    /// Its address opens them too fast.
    Rate,
    /// There are as many as there may be.
    Total,
    /// A proxy did not say whose it is.
    ProxyHeader,
}

impl Refused {
    const ALL: [Self; 4] = [Self::Address, Self::Rate, Self::Total, Self::ProxyHeader];

    const fn label(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Rate => "rate",
            Self::Total => "total",
            Self::ProxyHeader => "proxy_header",
        }
    }
}

impl Handshake {
    const fn label(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Proof => "proof",
            Self::UnknownName => "unknown_name",
            Self::Timeout => "timeout",
            Self::Failed => "failed",
        }
    }
}

impl Metrics {
    /// All of it, in the exposition format of Prometheus.
    ///
    /// # Errors
    /// Only when a metric is malformed, which registering it has checked.
    pub fn text(&self) -> Result<String, prometheus::Error> {
        let mut text = telemetry::encode(&self.registry)?;
        self.tenants.write(&mut text);
        Ok(text)
    }

    /// Registers everything; series with fixed labels start at zero.
    ///
    /// # Errors
    /// When a name is taken, which is a fault of this file.
    pub fn new(max_tenants: usize) -> Result<Arc<Self>, prometheus::Error> {
        let registry = Registry::new();
        let counters =
            |name: &str, help: &str, label: &str| IntCounterVec::new(Opts::new(name, help), &[label]);
        let metrics = Self {
            tenants: Tenants::new(max_tenants),
            upstream_seconds: HistogramVec::new(
                HistogramOpts::new(
                    "gmah_router_request_duration_seconds",
                    "Time from the end of a request's head to the end of its response.",
                )
                // From a cached read to the read deadline of the pool.
                .buckets(vec![
                    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 35.0,
                ]),
                &["pool"],
            )?,
            backends: IntGaugeVec::new(
                Opts::new("gmah_router_backends", "Backends by pool and state."),
                &["pool", "state"],
            )?,
            connections: IntGauge::new("gmah_router_connections", "Open client connections.")?,
            catalog_connected: IntGauge::new(
                "gmah_catalog_listening",
                "1 while notices of change come in from the master database.",
            )?,
            catalog_staleness: Gauge::new(
                "gmah_catalog_staleness_seconds",
                "For how long changes may have gone unnoticed; 0 while notices come in.",
            )?,
            retries: IntCounter::new(
                "gmah_router_retries_total",
                "Attempts at a backend that were tried again.",
            )?,
            access_log_dropped: IntCounter::new(
                "gmah_router_access_log_dropped_total",
                "Lines of the access log that were not written.",
            )?,
            shared_limits: IntGauge::new(
                "gmah_router_shared_limits_connected",
                "1 while counters are shared with other routers.",
            )?,
            shared_limits_failures: IntCounter::new(
                "gmah_router_shared_limits_failures_total",
                "Questions to the shared counters without an answer.",
            )?,
            rejections: counters("gmah_router_rejections_total", "Requests answered by the edge.", "reason")?,
            handshakes: counters("gmah_router_handshakes_total", "TLS handshakes by result.", "result")?,
            refused_connections: counters(
                "gmah_router_refused_connections_total",
                "Connections closed at once, by reason.",
                "reason",
            )?,
            orders: counters("gmah_router_certificate_orders_total", "Orders by result.", "result")?,
            certificate_ends: IntGaugeVec::new(
                prometheus::Opts::new(
                    "gmah_router_certificate_not_after_seconds",
                    "When the base domain's certificate ends, in seconds since 1970, by source; 0 where there is none.",
                ),
                &["source"],
            )?,
            trace_exports: counters(
                "gmah_router_trace_exports_total",
                "Exports of traces by result.",
                "result",
            )?,
            staples: counters(
                "gmah_router_ocsp_responses_total",
                "Responses for certificates that ask for one, by result.",
                "result",
            )?,
            certificate_probe_failures: IntCounter::new(
                "gmah_router_certificate_probe_failures_total",
                "New certificates that were not served, and were taken back.",
            )?,
            certificate_reloads: counters(
                "gmah_router_certificate_reloads_total",
                "Changed certificate files by result.",
                "result",
            )?,
            registry,
        };
        let r = &metrics.registry;
        r.register(Box::new(metrics.upstream_seconds.clone()))?;
        r.register(Box::new(metrics.backends.clone()))?;
        r.register(Box::new(metrics.connections.clone()))?;
        r.register(Box::new(metrics.catalog_connected.clone()))?;
        r.register(Box::new(metrics.catalog_staleness.clone()))?;
        r.register(Box::new(metrics.retries.clone()))?;
        r.register(Box::new(metrics.access_log_dropped.clone()))?;
        r.register(Box::new(metrics.shared_limits.clone()))?;
        r.register(Box::new(metrics.shared_limits_failures.clone()))?;
        for vec in [
            &metrics.rejections,
            &metrics.handshakes,
            &metrics.refused_connections,
            &metrics.certificate_reloads,
            &metrics.staples,
            &metrics.trace_exports,
            &metrics.orders,
        ] {
            r.register(Box::new(vec.clone()))?;
        }
        r.register(Box::new(metrics.certificate_probe_failures.clone()))?;
        r.register(Box::new(metrics.certificate_ends.clone()))?;
        for result in OrderResult::ALL {
            metrics.orders.with_label_values(&[result.label()]);
        }
        for rejection in Rejection::ALL {
            metrics.rejections.with_label_values(&[rejection.label()]);
        }
        for result in
            [Handshake::Done, Handshake::Proof, Handshake::UnknownName, Handshake::Timeout, Handshake::Failed]
        {
            metrics.handshakes.with_label_values(&[result.label()]);
        }
        for reason in Refused::ALL {
            metrics.refused_connections.with_label_values(&[reason.label()]);
        }
        for result in ["loaded", "refused"] {
            metrics.certificate_reloads.with_label_values(&[result]);
            metrics.staples.with_label_values(&[result]);
        }
        for result in ["done", "failed"] {
            metrics.trace_exports.with_label_values(&[result]);
        }
        Ok(Arc::new(metrics))
    }

    /// Counts a refusal.
    pub fn rejected(&self, rejection: Rejection) {
        self.rejections.with_label_values(&[rejection.label()]).inc();
    }

    /// Counts a handshake.
    pub fn handshake(&self, result: Handshake) {
        self.handshakes.with_label_values(&[result.label()]).inc();
    }

    /// Counts a connection that was closed at once.
    pub fn refused_connection(&self, reason: Refused) {
        self.refused_connections.with_label_values(&[reason.label()]).inc();
    }

    /// Counts an order for a certificate.
    pub fn order(&self, result: OrderResult) {
        self.orders.with_label_values(&[result.label()]).inc();
    }

    /// Says when the base domain's certificate from there ends, if there is one.
    pub fn certificate_ends(&self, source: &str, ends: Option<SystemTime>) {
        let seconds = ends.and_then(|e| e.duration_since(SystemTime::UNIX_EPOCH).ok()).unwrap_or_default();
        let seconds = i64::try_from(seconds.as_secs()).unwrap_or(i64::MAX);
        self.certificate_ends.with_label_values(&[source]).set(seconds);
    }

    /// Counts a response that a certificate asks to be stapled to it.
    pub fn staple(&self, loaded: bool) {
        self.staples.with_label_values(&[if loaded { "loaded" } else { "refused" }]).inc();
    }

    /// Counts a changed certificate.
    pub fn certificate(&self, loaded: bool) {
        let result = if loaded { "loaded" } else { "refused" };
        self.certificate_reloads.with_label_values(&[result]).inc();
    }
}

/// The label of requests for hosts that are nobody's.
pub const UNKNOWN: &str = names::UNKNOWN;
