//! What a cache counts.

use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

use super::entries::Entries;

/// Counters of one cache. `cache` is the label.
#[derive(Clone)]
pub struct CacheMetrics {
    pub(super) hits: IntCounter,
    pub(super) negative_hits: IntCounter,
    pub(super) stale: IntCounter,
    pub(super) unavailable: IntCounter,
    pub(super) waits: IntCounter,
    pub(super) loads: IntCounter,
    pub(super) load_errors: IntCounter,
    pub(super) not_kept: IntCounter,
    pub(super) regressed: IntCounter,
    pub(super) entries: Entries,
    pub(super) absent: Entries,
}

impl CacheMetrics {
    /// Registers `gmah_catalog_lookups_total{cache,result}` and its neighbours.
    ///
    /// # Errors
    /// When the names are taken.
    pub fn register(registry: &Registry, cache: &str) -> Result<Self, prometheus::Error> {
        let opts = |name: &str, help: &str| Opts::new(name, help).const_label("cache", cache);
        let lookups = IntCounterVec::new(
            opts("gmah_catalog_lookups_total", "Lookups in the catalog cache by result."),
            &["result"],
        )?;
        let counter = |name: &str, help: &str| -> Result<IntCounter, prometheus::Error> {
            let c = IntCounter::with_opts(opts(name, help))?;
            registry.register(Box::new(c.clone()))?;
            Ok(c)
        };
        let entries = Entries::new(opts("gmah_catalog_entries", "Names held by the catalog cache."))?;
        registry.register(Box::new(lookups.clone()))?;
        let absent =
            opts("gmah_catalog_absent_entries", "Names that the catalog cache knows to be nobody's.");
        let absent = Entries::new(absent)?;
        registry.register(Box::new(entries.clone()))?;
        registry.register(Box::new(absent.clone()))?;
        Ok(Self {
            hits: lookups.with_label_values(&["hit"]),
            negative_hits: lookups.with_label_values(&["negative"]),
            stale: lookups.with_label_values(&["stale"]),
            unavailable: lookups.with_label_values(&["unavailable"]),
            waits: lookups.with_label_values(&["wait"]),
            loads: counter("gmah_catalog_loads_total", "Queries to the master database for one name.")?,
            load_errors: counter("gmah_catalog_load_errors_total", "Such queries that gave no answer.")?,
            not_kept: counter(
                "gmah_catalog_loads_not_kept_total",
                "Answers that a notice overtook while they were read.",
            )?,
            regressed: counter(
                "gmah_catalog_regressions_total",
                "Answers older than one seen before: the master was restored from a backup.",
            )?,
            entries,
            absent,
        })
    }
}
