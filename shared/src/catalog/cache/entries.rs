//! How many names a cache holds, counted when somebody asks: names also go by themselves, with time.

use std::hash::Hash;
use std::sync::{Arc, OnceLock};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntGauge, Opts};

type Count = Box<dyn Fn() -> u64 + Send + Sync>;

/// A gauge that counts when it is read.
#[derive(Clone)]
pub(super) struct Entries {
    gauge: IntGauge,
    count: Arc<OnceLock<Count>>,
}

impl Entries {
    pub(super) fn new(opts: Opts) -> Result<Self, prometheus::Error> {
        Ok(Self { gauge: IntGauge::with_opts(opts)?, count: Arc::default() })
    }

    /// Whose entries they are.
    pub(super) fn are_of<K, V>(&self, cache: moka::sync::Cache<K, V>)
    where
        K: Hash + Eq + Send + Sync + 'static,
        V: Clone + Send + Sync + 'static,
    {
        let count: Count = Box::new(move || {
            // What has been written and what has expired is counted in batches, later.
            cache.run_pending_tasks();
            cache.entry_count()
        });
        // One cache has one set of metrics.
        let _ = self.count.set(count);
    }
}

impl Collector for Entries {
    fn desc(&self) -> Vec<&Desc> {
        self.gauge.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        if let Some(count) = self.count.get() {
            self.gauge.set(i64::try_from(count()).unwrap_or(i64::MAX));
        }
        self.gauge.collect()
    }
}
