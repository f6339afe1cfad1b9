//! Metrics of the api role. Labels are slugs of tenants that exist, route patterns, or words of this file.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use gmah_shared::telemetry::names;
use gmah_shared::tenant::TenantSlug;
use prometheus::{
    Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
};

use crate::collector::Figure;
use crate::pool::PoolError;
use crate::pool::breaker::{Failure, Standing};

/// Every metric of the role.
pub struct Metrics {
    /// Where they are registered.
    pub registry: Registry,
    /// Connections that proved to be another database's.
    pub identity_mismatches: IntCounter,
    /// Token checks by result: `verified`, `remembered`, `refused`.
    tokens: IntCounterVec,
    tenant_requests: IntCounterVec,
    pool_connections: IntGaugeVec,
    pool_failures: IntCounterVec,
    breakers: IntGaugeVec,
    breakers_opened: IntCounterVec,
    server_slots: IntGaugeVec,
    server_waiting: IntGaugeVec,
    routes: HistogramVec,
    /// Exports of traces.
    pub trace_exports: IntCounterVec,
    replica_reads: IntCounterVec,
    /// Letters by what came of handing them over: `sent`, `failed`.
    pub letters: IntCounterVec,
    /// Whether notices of change come in.
    pub catalog_connected: IntGauge,
    /// For how many seconds they have not come.
    pub catalog_staleness: Gauge,
    figures: Vec<(&'static str, GaugeVec)>,
    schema: GaugeVec,
    shown: Mutex<Option<Vec<Figure>>>,
    max_tenants: usize,
    handles: Mutex<HashMap<TenantSlug, Arc<TenantCounters>>>,
}

/// The counters of one tenant, resolved once.
pub struct TenantCounters {
    by_class: [IntCounter; 5],
}

impl TenantCounters {
    /// Counts a response.
    pub fn response(&self, status: u16) {
        self.by_class[names::class_index(status)].inc();
    }
}

impl Metrics {
    /// Registers everything.
    ///
    /// # Errors
    /// When a name is taken, which is a fault of this file.
    pub fn new(max_tenants: usize) -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let metrics = Self {
            identity_mismatches: IntCounter::new(
                "gmah_api_identity_mismatches_total",
                "Connections refused because the database was not the organisation's. Any is an alarm.",
            )?,
            tokens: IntCounterVec::new(
                Opts::new("gmah_api_tokens_total", "Tenant tokens by result."),
                &["result"],
            )?,
            tenant_requests: IntCounterVec::new(
                Opts::new(names::API_TENANT_REQUESTS, "Requests by tenant and class of status."),
                &[names::TENANT, "class"],
            )?,
            pool_connections: IntGaugeVec::new(
                Opts::new(names::API_POOL_CONNECTIONS, "Connections of tenants' pools by state."),
                &[names::TENANT, "state"],
            )?,
            pool_failures: IntCounterVec::new(
                Opts::new("gmah_api_pool_failures_total", "Requests that got no connection, by reason."),
                &["reason"],
            )?,
            breakers: IntGaugeVec::new(
                Opts::new("gmah_api_breakers", "Breakers of tenants' pools and of servers by state."),
                &["scope", "state"],
            )?,
            breakers_opened: IntCounterVec::new(
                Opts::new("gmah_api_breakers_opened_total", "Breakers that opened, by scope and reason."),
                &["scope", "reason"],
            )?,
            server_slots: IntGaugeVec::new(
                Opts::new(
                    "gmah_api_server_connections",
                    "Connections to a PostgreSQL server: what this node may have (limit) and has (used).",
                ),
                &["server", "state"],
            )?,
            server_waiting: IntGaugeVec::new(
                Opts::new(
                    "gmah_api_server_waiting_requests",
                    "Requests that wait for a connection to a server.",
                ),
                &["server"],
            )?,
            routes: HistogramVec::new(
                HistogramOpts::new("gmah_api_request_duration_seconds", "Time to answer, by route.")
                    // From a cached read to the request deadline.
                    .buckets(vec![
                        0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 30.0,
                    ]),
                &["route"],
            )?,
            trace_exports: IntCounterVec::new(
                Opts::new("gmah_api_trace_exports_total", "Exports of traces by result."),
                &["result"],
            )?,
            replica_reads: IntCounterVec::new(
                Opts::new(
                    "gmah_api_replica_reads_total",
                    "Requests that only read and whose server has a copy, by whether that served them.",
                ),
                &["result"],
            )?,
            letters: IntCounterVec::new(
                Opts::new("gmah_api_letters_total", "Letters by what came of handing them to the relay."),
                &["result"],
            )?,
            catalog_connected: IntGauge::new(
                "gmah_catalog_listening",
                "1 while notices of change come in from the master database.",
            )?,
            catalog_staleness: Gauge::new(
                "gmah_catalog_staleness_seconds",
                "For how long changes may have gone unnoticed; 0 while notices come in.",
            )?,
            figures: FIGURES
                .iter()
                .map(|(name, help)| Ok((*name, GaugeVec::new(Opts::new(*name, *help), &[names::TENANT])?)))
                .collect::<Result<_, prometheus::Error>>()?,
            schema: GaugeVec::new(
                Opts::new(names::TENANT_SCHEMA, "Newest migration of each set in a tenant's database."),
                &[names::TENANT, "set"],
            )?,
            shown: Mutex::default(),
            max_tenants,
            handles: Mutex::default(),
            registry,
        };
        let r = &metrics.registry;
        r.register(Box::new(metrics.identity_mismatches.clone()))?;
        r.register(Box::new(metrics.tokens.clone()))?;
        r.register(Box::new(metrics.tenant_requests.clone()))?;
        r.register(Box::new(metrics.pool_connections.clone()))?;
        r.register(Box::new(metrics.pool_failures.clone()))?;
        r.register(Box::new(metrics.breakers.clone()))?;
        r.register(Box::new(metrics.breakers_opened.clone()))?;
        r.register(Box::new(metrics.server_slots.clone()))?;
        r.register(Box::new(metrics.server_waiting.clone()))?;
        r.register(Box::new(metrics.routes.clone()))?;
        r.register(Box::new(metrics.letters.clone()))?;
        r.register(Box::new(metrics.trace_exports.clone()))?;
        r.register(Box::new(metrics.replica_reads.clone()))?;
        for (_, gauge) in &metrics.figures {
            r.register(Box::new(gauge.clone()))?;
        }
        r.register(Box::new(metrics.schema.clone()))?;
        for result in ["served", "late", "failed"] {
            metrics.replica_reads.with_label_values(&[result]);
        }
        for result in ["sent", "failed"] {
            metrics.letters.with_label_values(&[result]);
        }
        r.register(Box::new(metrics.catalog_connected.clone()))?;
        r.register(Box::new(metrics.catalog_staleness.clone()))?;
        for result in ["verified", "remembered", "refused"] {
            metrics.tokens.with_label_values(&[result]);
        }
        for reason in REASONS {
            metrics.pool_failures.with_label_values(&[reason]);
        }
        for scope in SCOPES {
            for why in Failure::ALL {
                metrics.breakers_opened.with_label_values(&[scope, why.as_str()]);
            }
        }
        Ok(metrics)
    }

    /// Counts what only reads, where its server has a copy: `served` there, or `late`, or `failed`.
    pub fn replica(&self, result: &'static str) {
        self.replica_reads.with_label_values(&[result]).inc();
    }

    /// Counts a token check.
    pub fn token(&self, result: &'static str) {
        self.tokens.with_label_values(&[result]).inc();
    }

    /// Counts a request that got no connection.
    pub fn pool_failures(&self, error: &PoolError) {
        let reason = match error {
            PoolError::Queue => "queue",
            PoolError::Wait => "wait",
            PoolError::Resting(_) => "resting",
            PoolError::Authentication(_) => "authentication",
            PoolError::Silent => "silent",
            PoolError::Connect(_) => "connect",
            PoolError::WrongDatabase => "wrong_database",
            PoolError::Schema => "schema",
            PoolError::Superseded(_) => "superseded",
            PoolError::Closed => "closed",
        };
        self.pool_failures.with_label_values(&[reason]).inc();
    }

    /// Counts a breaker that opened.
    pub fn breaker_opened(&self, scope: &'static str, why: Failure) {
        self.breakers_opened.with_label_values(&[scope, why.as_str()]).inc();
    }

    /// Seconds that a route took.
    pub fn route(&self, route: &str, seconds: f64) {
        self.routes.with_label_values(&[route]).observe(seconds);
    }

    /// The counters of a tenant; those beyond `metrics.max_tenants` share `_other`.
    pub fn tenant(&self, slug: &TenantSlug) -> Arc<TenantCounters> {
        let mut handles = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(counters) = handles.get(slug) {
            return counters.clone();
        }
        let full = handles.len() >= self.max_tenants;
        let label = if full { names::OTHER } else { slug.as_str() };
        let counters = Arc::new(TenantCounters {
            by_class: names::CLASSES.map(|class| self.tenant_requests.with_label_values(&[label, class])),
        });
        if !full {
            handles.insert(slug.clone(), counters.clone());
        }
        counters
    }

    /// How many tenants get series of their own.
    pub fn max_tenants(&self) -> usize {
        self.max_tenants
    }

    /// What is shown of organisations from now on; those that are not among them any more are gone.
    pub fn show_figures(&self, figures: Vec<Figure>) {
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = Some(figures);
    }

    /// Sets the gauges of organisations, just before they are read.
    pub fn figures(&self) {
        // Only where there are others than the last time.
        let Some(figures) = self.shown.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        self.figures.iter().for_each(|(_, gauge)| gauge.reset());
        self.schema.reset();
        for figure in &figures {
            for (name, value) in &figure.values {
                if let Some((_, gauge)) = self.figures.iter().find(|(known, _)| known == name) {
                    gauge.with_label_values(&[&figure.tenant]).set(*value);
                }
            }
            for (set, version) in &figure.schema {
                self.schema.with_label_values(&[&figure.tenant, set]).set(*version);
            }
        }
    }

    /// Sets the gauges of the pools, just before they are read.
    pub fn pools(&self, gauges: &PoolGauges) {
        self.pool_connections.reset();
        let mut other = (0, 0);
        let gauge = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        for (server, limit, used, waiting) in &gauges.servers {
            self.server_slots.with_label_values(&[server, "limit"]).set(gauge(*limit));
            self.server_slots.with_label_values(&[server, "used"]).set(gauge(*used));
            self.server_waiting.with_label_values(&[server]).set(gauge(*waiting));
        }
        for scope in SCOPES {
            for state in ["closed", "half_open", "open"] {
                let n = gauges.breakers.get(&(scope, state)).copied().unwrap_or(0);
                self.breakers.with_label_values(&[scope, state]).set(n);
            }
        }
        for (n, (slug, (idle, leased))) in gauges.connections.iter().enumerate() {
            if n < self.max_tenants {
                self.pool_gauge(slug, *idle, *leased);
            } else {
                other = (other.0 + idle, other.1 + leased);
            }
        }
        if other != (0, 0) {
            self.pool_gauge(names::OTHER, other.0, other.1);
        }
    }

    fn pool_gauge(&self, label: &str, idle: usize, leased: usize) {
        for (state, n) in [("idle", idle), ("leased", leased)] {
            self.pool_connections
                .with_label_values(&[label, state])
                .set(i64::try_from(n).unwrap_or(i64::MAX));
        }
    }
}

/// What the master has of organisations ([`crate::collector`]). Every node shows the same: `max by (tenant)`, not `sum`.
const FIGURES: &[(&str, &str)] = &[
    (names::TENANT_DATABASE_SIZE, "Size of a tenant's database."),
    (names::TENANT_CONNECTIONS, "Connections to a tenant's database, whoever has them."),
    (names::TENANT_USERS, "Users of a tenant that may log in."),
    (names::TENANT_MEMBERS, "Members or patients of a tenant."),
    (names::TENANT_ACTIVE_LOANS, "Loans of a tenant that are paid out and not back."),
    (names::TENANT_TRANSACTIONS, "Payments of a tenant in this month, UTC."),
    (names::TENANT_STORAGE, "Bytes of a tenant's files."),
    (names::TENANT_LAST_ACTIVITY, "When somebody of a tenant did something last."),
    (names::TENANT_HEALTH, "How a tenant is: 0 healthy, 1 warning, 2 critical; `gmah tenant show` says why."),
    (names::TENANT_CLOSED, "1 while a tenant is suspended or in maintenance."),
    (names::TENANT_COLLECTED, "When the figures of a tenant were collected."),
    (names::TENANT_LAST_BACKUP, "When a tenant's newest backup was made."),
    (
        names::TENANT_BACKUP_VERIFIED,
        "1 when the newest backup was tried and is well, 0 when it is not; none: not tried.",
    ),
];

const REASONS: [&str; 10] = [
    "queue",
    "wait",
    "resting",
    "connect",
    "authentication",
    "silent",
    "wrong_database",
    "schema",
    "superseded",
    "closed",
];

/// What the pools are like at one moment.
#[derive(Debug, Default)]
pub struct PoolGauges {
    /// By slug: idle, leased.
    pub connections: BTreeMap<String, (usize, usize)>,
    /// Server, its limit, places taken, requests that wait.
    pub servers: Vec<(String, usize, usize, usize)>,
    /// Breakers that are not closed: of tenants, half open and open; of servers, the same.
    breakers: HashMap<(&'static str, &'static str), i64>,
}

impl PoolGauges {
    /// Counts a breaker.
    pub fn breaker(&mut self, scope: &'static str, standing: Standing) {
        let state = match standing {
            Standing::Closed => "closed",
            Standing::Open(_) => "open",
            Standing::HalfOpen(_) => "half_open",
        };
        *self.breakers.entry((scope, state)).or_default() += 1;
    }
}

const SCOPES: [&str; 2] = ["server", "tenant"];
