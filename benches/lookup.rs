//! What does a hot lookup cost: a host that is known, to its tenant? To reach: 200 ns.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use gmah_shared::catalog::{Cache, CacheMetrics, Loader, Record};
use gmah_shared::config::CatalogSettings;
use gmah_shared::tenant::{TenantId, TenantSlug};
use prometheus::Registry;

struct Row(TenantId);

impl Record for Row {
    fn id(&self) -> TenantId {
        self.0
    }

    fn revision(&self) -> i64 {
        1
    }
}

fn lookup(c: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let _entered = runtime.enter();
    let load: Loader<TenantSlug, Row> = Box::new(|_| Box::pin(async { Ok(Some(Row(TenantId::generate()))) }));
    let metrics = CacheMetrics::register(&Registry::new(), "bench").expect("metrics");
    let cache = Cache::new(CatalogSettings::default(), load, Box::new(|| Box::pin(async { Ok(1) })), metrics);
    let slugs: Vec<_> = (0..10_000).map(|n| TenantSlug::parse(&format!("t{n:05}")).expect("slug")).collect();
    runtime.block_on(async {
        for slug in &slugs {
            cache.get(slug).await;
        }
    });
    let mut n = 0;
    c.bench_function("hot lookup, 10,000 tenants", |b| {
        b.iter(|| {
            n = (n + 7919) % slugs.len();
            black_box(cache.peek(&slugs[n]).is_some())
        });
    });
}

criterion_group!(benches, lookup);
criterion_main!(benches);
