//! What the master has of all organisations, read now and then by every node, for its `/metrics`.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use gmah_shared::catalog::Store;
use gmah_shared::telemetry::names;

use super::{ASKED, pause, within};
use crate::server::App;

/// The figures of one organisation, or of all those that have no series of their own.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Figure {
    /// Slug, or `_other`.
    pub tenant: String,
    /// By the name of the metric; one that is not known has no sample.
    pub values: Vec<(&'static str, f64)>,
    /// Version of each set of migrations.
    pub schema: Vec<(String, f64)>,
}

/// Reads them for as long as the program runs.
pub(super) async fn keep(app: &Arc<App>, store: &Store, every: Duration) -> Infallible {
    loop {
        match within(ASKED, read(store, app.metrics.max_tenants())).await {
            Ok(figures) => app.metrics.show_figures(figures),
            // The last ones are shown on: their time is among them.
            Err(e) => tracing::debug!(error = e, "figures not read"),
        }
        tokio::time::sleep(pause(every)).await;
    }
}

async fn read(store: &Store, max_tenants: usize) -> Result<Vec<Figure>, String> {
    let client = store.pool().get().await.map_err(|e| e.to_string())?;
    let most = i64::try_from(max_tenants).unwrap_or(i64::MAX);
    let rows = client.query(READ, &[&most, &names::OTHER]).await.map_err(|e| e.to_string())?;
    let mut figures = Vec::with_capacity(rows.len());
    for row in &rows {
        let value = |column: &str| row.get::<_, Option<f64>>(column);
        let values = COLUMNS.iter().filter_map(|(name, column)| Some((*name, value(column)?)));
        let schema: Option<serde_json::Value> = row.get("schema");
        let versions = schema.as_ref().and_then(|s| s.as_object()).into_iter().flatten();
        figures.push(Figure {
            tenant: row.get("tenant"),
            values: values.collect(),
            schema: versions.filter_map(|(set, v)| Some((set.clone(), v.as_f64()?))).collect(),
        });
    }
    Ok(figures)
}

/// Metrics and the columns of [`READ`] that they show.
const COLUMNS: &[(&str, &str)] = &[
    (names::TENANT_DATABASE_SIZE, "database_bytes"),
    (names::TENANT_CONNECTIONS, "connections"),
    (names::TENANT_USERS, "users"),
    (names::TENANT_MEMBERS, "members"),
    (names::TENANT_ACTIVE_LOANS, "active_loans"),
    (names::TENANT_TRANSACTIONS, "month_transactions"),
    (names::TENANT_STORAGE, "storage_bytes"),
    (names::TENANT_LAST_ACTIVITY, "last_activity"),
    (names::TENANT_HEALTH, "health"),
    (names::TENANT_CLOSED, "closed"),
    (names::TENANT_COLLECTED, "collected"),
    (names::TENANT_LAST_BACKUP, "last_backup"),
    (names::TENANT_BACKUP_VERIFIED, "backup_verified"),
];

/// Of those beyond the bound, in order of their slugs: sums, the newest activity, the oldest of what should be recent, the worst
/// health.
const READ: &str = "select tenant, sum(database_bytes)::float8 as database_bytes, sum(connections)::float8 as connections,
        sum(users)::float8 as users, sum(members)::float8 as members, sum(active_loans)::float8 as active_loans,
        sum(month_transactions)::float8 as month_transactions, sum(storage_bytes)::float8 as storage_bytes,
        extract(epoch from max(last_activity_at))::float8 as last_activity, max(health)::float8 as health,
        extract(epoch from min(coalesce(collected_at, 'epoch')))::float8 as collected,
        max(closed)::float8 as closed,
        extract(epoch from min(backup_at))::float8 as last_backup, min(verified)::float8 as backup_verified,
        case when count(*) = 1 then (array_agg(schema))[1] end as schema
    from (
        select case when row_number() over (order by o.slug) <= $1 then o.slug else $2 end as tenant,
            f.database_bytes, f.connections, f.users, f.members, f.active_loans, f.month_transactions, f.storage_bytes,
            f.last_activity_at, f.collected_at, f.schema,
            (o.status <> 'active' or o.maintenance_mode is not null)::int as closed,
            array_position(array['healthy', 'warning', 'critical'], f.health) - 1 as health,
            b.created_at as backup_at,
            case when b.verified_at is not null then (b.verification is null)::int end as verified
        from organizations o join organization_figures f on f.organization_id = o.id
        left join lateral (select created_at, verified_at, verification from backups
            where organization_id = o.id and state = 'done' order by created_at desc limit 1) b on true
        where o.status in ('active', 'suspended', 'maintenance') and f.tried_at is not null) f
    group by tenant";
