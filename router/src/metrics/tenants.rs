//! Series per tenant, bounded: counters that a request reaches through its route, without a look-up by label.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gmah_shared::telemetry::names;
use gmah_shared::tenant::TenantSlug;

/// What is counted for one tenant.
#[derive(Default)]
pub struct TenantSeries {
    by_class: [AtomicU64; 5],
    nanoseconds: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
}

impl TenantSeries {
    /// Counts a request that has ended.
    pub fn request(&self, status: u16, took: Duration, bytes_in: u64, bytes_out: u64) {
        let order = Ordering::Relaxed;
        self.by_class[names::class_index(status)].fetch_add(1, order);
        self.nanoseconds.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), order);
        if bytes_in > 0 {
            self.bytes_in.fetch_add(bytes_in, order);
        }
        self.bytes_out.fetch_add(bytes_out, order);
    }
}

/// The series of all tenants. Cheap to clone.
#[derive(Clone)]
pub struct Tenants(Arc<Inner>);

struct Inner {
    max: usize,
    known: Mutex<HashMap<TenantSlug, Arc<TenantSeries>>>,
    other: Arc<TenantSeries>,
    unknown: Arc<TenantSeries>,
}

const REQUESTS_HELP: &str = "Requests by tenant and class of status.";
const SECONDS_HELP: &str = "Seconds from the end of a request's head to the end of its response.";
const BYTES_HELP: &str = "Body bytes by tenant and direction.";

impl Tenants {
    /// No tenant yet; at most `max` get series of their own.
    pub fn new(max: usize) -> Self {
        Self(Arc::new(Inner { max, known: Mutex::default(), other: Arc::default(), unknown: Arc::default() }))
    }

    /// The series of a tenant that exists; beyond the bound, those of all the rest.
    pub fn of(&self, slug: &TenantSlug) -> Arc<TenantSeries> {
        let mut known = self.0.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(series) = known.get(slug) {
            return series.clone();
        }
        if known.len() >= self.0.max {
            return self.0.other.clone();
        }
        known.entry(slug.clone()).or_default().clone()
    }

    /// The series of what is no organisation's, and of organisations beyond the bound.
    pub fn other(&self) -> Arc<TenantSeries> {
        self.0.other.clone()
    }

    /// The series of hosts that are nobody's.
    pub fn unknown(&self) -> Arc<TenantSeries> {
        self.0.unknown.clone()
    }
}

impl Tenants {
    /// Appends their series in the exposition format of Prometheus, each as it is read: as a list of metrics that have lists
    /// of labels they would take several MiB for a moment.
    pub fn write(&self, out: &mut String) {
        let mut all: Vec<(TenantSlug, Arc<TenantSeries>)> = {
            let known = self.0.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.iter().map(|(slug, series)| (slug.clone(), series.clone())).collect()
        };
        all.sort_by(|a, b| a.0.as_str().cmp(b.0.as_str()));
        let rest = [(names::OTHER, &self.0.other), (names::UNKNOWN, &self.0.unknown)];
        let named = all.iter().map(|(slug, series)| (slug.as_str(), series));
        let all = || rest.into_iter().chain(named.clone());
        let lines = names::CLASSES.len() + 4;
        out.reserve(all().map(|(tenant, _)| lines * (LINE + tenant.len())).sum());
        let read = |n: &AtomicU64| n.load(Ordering::Relaxed);

        let name = names::ROUTER_TENANT_REQUESTS;
        head(out, name, REQUESTS_HELP, "counter");
        for (tenant, series) in all() {
            for (class, count) in names::CLASSES.iter().zip(&series.by_class) {
                line(out, format_args!("{name}{{tenant=\"{tenant}\",class=\"{class}\"}} {}", read(count)));
            }
        }
        let name = names::ROUTER_TENANT_SECONDS;
        head(out, name, SECONDS_HELP, "summary");
        for (tenant, series) in all() {
            let count: u64 = series.by_class.iter().map(read).sum();
            let seconds = read(&series.nanoseconds) as f64 / 1e9;
            line(out, format_args!("{name}_sum{{tenant=\"{tenant}\"}} {seconds}"));
            line(out, format_args!("{name}_count{{tenant=\"{tenant}\"}} {count}"));
        }
        let name = names::ROUTER_TENANT_BYTES;
        head(out, name, BYTES_HELP, "counter");
        for (tenant, series) in all() {
            for (direction, n) in [("in", &series.bytes_in), ("out", &series.bytes_out)] {
                line(
                    out,
                    format_args!("{name}{{tenant=\"{tenant}\",direction=\"{direction}\"}} {}", read(n)),
                );
            }
        }
    }
}

/// What a line has beside its tenant, with a number of a usual length.
const LINE: usize = 80;

fn head(out: &mut String, name: &str, help: &str, kind: &str) {
    line(out, format_args!("# HELP {name} {help}\n# TYPE {name} {kind}"));
}

fn line(out: &mut String, text: fmt::Arguments<'_>) {
    // A text takes whatever is written.
    let _ = writeln!(out, "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_beyond_the_bound_share_one_series() {
        let tenants = Tenants::new(2);
        let slug = |s: &str| TenantSlug::parse(s).expect("slug");
        for (n, name) in ["paris", "lyon", "nice", "metz"].iter().enumerate() {
            tenants.of(&slug(name)).request(200, Duration::from_millis(500), n as u64, 10);
        }
        let mut text = "before\n".to_owned();
        tenants.write(&mut text);
        assert!(text.starts_with("before\n# HELP ") && text.ends_with('\n'));
        for line in [
            "gmah_router_tenant_requests_total{tenant=\"paris\",class=\"2xx\"} 1",
            "gmah_router_tenant_requests_total{tenant=\"_other\",class=\"2xx\"} 2",
            "gmah_router_tenant_request_duration_seconds_sum{tenant=\"_other\"} 1",
            "gmah_router_tenant_request_duration_seconds_count{tenant=\"lyon\"} 1",
            "gmah_router_tenant_bytes_total{tenant=\"_other\",direction=\"in\"} 5",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        assert!(!text.contains("nice") && !text.contains("quantile"));
    }
}
