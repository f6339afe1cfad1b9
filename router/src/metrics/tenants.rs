//! Series per tenant, bounded: counters that a request reaches through its route, without a look-up by label.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gmah_shared::telemetry::names;
use gmah_shared::tenant::TenantSlug;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{Counter, LabelPair, Metric, MetricFamily, MetricType, Summary};

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

/// The series of all tenants, and the collector that shows them. Cheap to clone.
#[derive(Clone)]
pub struct Tenants(Arc<Inner>);

struct Inner {
    max: usize,
    known: Mutex<HashMap<TenantSlug, Arc<TenantSeries>>>,
    other: Arc<TenantSeries>,
    unknown: Arc<TenantSeries>,
    descs: Vec<Desc>,
}

const REQUESTS_HELP: &str = "Requests by tenant and class of status.";
const SECONDS_HELP: &str = "Seconds from the end of a request's head to the end of its response.";
const BYTES_HELP: &str = "Body bytes by tenant and direction.";

impl Tenants {
    /// No tenant yet; at most `max` get series of their own.
    ///
    /// # Errors
    /// Never with these names.
    pub fn new(max: usize) -> Result<Self, prometheus::Error> {
        let label = |more: Option<&str>| {
            [Some(names::TENANT), more].into_iter().flatten().map(str::to_owned).collect::<Vec<_>>()
        };
        let desc =
            |name: &str, help: &str, labels| Desc::new(name.into(), help.into(), labels, HashMap::new());
        Ok(Self(Arc::new(Inner {
            max,
            known: Mutex::default(),
            other: Arc::default(),
            unknown: Arc::default(),
            descs: vec![
                desc(names::ROUTER_TENANT_REQUESTS, REQUESTS_HELP, label(Some("class")))?,
                desc(names::ROUTER_TENANT_SECONDS, SECONDS_HELP, label(None))?,
                desc(names::ROUTER_TENANT_BYTES, BYTES_HELP, label(Some("direction")))?,
            ],
        })))
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

impl Collector for Tenants {
    fn desc(&self) -> Vec<&Desc> {
        self.0.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut all: Vec<(String, Arc<TenantSeries>)> = {
            let known = self.0.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.iter().map(|(slug, series)| (slug.to_string(), series.clone())).collect()
        };
        all.push((names::OTHER.into(), self.0.other.clone()));
        all.push((names::UNKNOWN.into(), self.0.unknown.clone()));
        all.sort_by(|a, b| a.0.cmp(&b.0));
        let family = |name, help, kind, series| family(name, help, kind, series * all.len());
        let classes = names::CLASSES.len();
        let mut requests = family(names::ROUTER_TENANT_REQUESTS, REQUESTS_HELP, MetricType::COUNTER, classes);
        let mut seconds = family(names::ROUTER_TENANT_SECONDS, SECONDS_HELP, MetricType::SUMMARY, 1);
        let mut bytes = family(names::ROUTER_TENANT_BYTES, BYTES_HELP, MetricType::COUNTER, 2);
        for (tenant, series) in &all {
            let read = |n: &AtomicU64| n.load(Ordering::Relaxed);
            let mut total = 0;
            for (class, count) in names::CLASSES.iter().zip(&series.by_class) {
                let count = read(count);
                total += count;
                requests.mut_metric().push(counter(&[(names::TENANT, tenant), ("class", class)], count));
            }
            let mut summary = Summary::default();
            summary.set_sample_count(total);
            summary.set_sample_sum(read(&series.nanoseconds) as f64 / 1e9);
            let mut metric = labelled(&[(names::TENANT, tenant)]);
            metric.set_summary(summary);
            seconds.mut_metric().push(metric);
            for (direction, n) in [("in", &series.bytes_in), ("out", &series.bytes_out)] {
                bytes
                    .mut_metric()
                    .push(counter(&[(names::TENANT, tenant), ("direction", direction)], read(n)));
            }
        }
        vec![requests, seconds, bytes]
    }
}

/// With room for so many series: a list that grows takes twice its place meanwhile.
fn family(name: &str, help: &str, kind: MetricType, series: usize) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.into());
    family.set_help(help.into());
    family.set_field_type(kind);
    family.mut_metric().reserve_exact(series);
    family
}

fn labelled(labels: &[(&str, &str)]) -> Metric {
    let pairs = labels.iter().map(|(name, value)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).into());
        pair.set_value((*value).into());
        pair
    });
    let mut metric = Metric::default();
    metric.set_label(pairs.collect());
    metric
}

fn counter(labels: &[(&str, &str)], value: u64) -> Metric {
    let mut metric = labelled(labels);
    let mut counter = Counter::default();
    counter.set_value(value as f64);
    metric.set_counter(counter);
    metric
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_beyond_the_bound_share_one_series() {
        let tenants = Tenants::new(2).expect("names");
        let registry = prometheus::Registry::new();
        registry.register(Box::new(tenants.clone())).expect("registered");
        let slug = |s: &str| TenantSlug::parse(s).expect("slug");
        for (n, name) in ["paris", "lyon", "nice", "metz"].iter().enumerate() {
            tenants.of(&slug(name)).request(200, Duration::from_millis(500), n as u64, 10);
        }
        let text = gmah_shared::telemetry::encode(&registry).expect("text");
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
