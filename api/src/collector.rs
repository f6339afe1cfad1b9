//! Figures of every organisation, collected into the master by the api nodes in turns, and shown by all of them.
//!
//! ```text
//! whose turn it is ─► sizes, one question to each server ─► figures, one database at a time ─► health ─► master ─► /metrics
//! ```
//!
//! The master says whose turn it is; of several nodes each takes some. Every database has a deadline, and those that could not
//! be reached the last time are in a lane of their own, so that none of them keeps the others waiting.

pub mod health;
mod shown;

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream;
use gmah_shared::catalog::Store;
use gmah_shared::tenant::TenantId;
use serde_json::json;
use time::OffsetDateTime;
use tokio_postgres::Row;
use uuid::Uuid;

use self::health::{Backed, Health, Judged};
pub use self::shown::Figure;
use crate::context::TenantContext;
use crate::control::servers::{self, TENANT_GROUP};
use crate::db::TenantDb;
use crate::modules::{LOANS, PATIENTS};
use crate::pool::PoolError;
use crate::pool::breaker::Failure;
use crate::repo::figures;
use crate::server::App;

/// Organisations that one node takes at once.
const BATCH: i64 = 50;
/// Of those, at the same time: their places are others' who wait for an answer.
const AT_ONCE: usize = 2;
/// For one organisation's database.
const PATIENCE: Duration = Duration::from_secs(10);
/// For one question to the master.
const ASKED: Duration = Duration::from_secs(20);
/// For one question to a server.
const SIZED: Duration = Duration::from_secs(5);

/// What was found in an organisation's database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Figures {
    /// Users that may log in.
    pub users: i64,
    /// Members or patients, of whatever modules.
    pub members: i64,
    /// Loans that are paid out and not back; none without that module.
    pub active_loans: Option<i64>,
    /// Payments of this month, UTC.
    pub month_transactions: i64,
    /// Bytes of files.
    pub storage_bytes: i64,
    /// When somebody did something last.
    pub last_activity_at: Option<OffsetDateTime>,
    /// Version of each set of migrations.
    pub schema: BTreeMap<String, i32>,
}

/// Whose turn it is.
struct Turn {
    id: TenantId,
    is_served: bool,
    server: Uuid,
    database: String,
    backed: Backed,
}

/// What a server says of a database.
#[derive(Debug, Clone, Copy)]
struct Size {
    bytes: i64,
    connections: i32,
}

/// Collects for as long as the program runs.
pub async fn run(app: Arc<App>, store: Store, every: Duration) -> Infallible {
    let (well, failing, show) =
        (lane(&app, &store, every, false), lane(&app, &store, every, true), shown::keep(&app, &store, every));
    tokio::select! {
        never = well => never,
        never = failing => never,
        never = show => never,
    }
}

/// A quarter of what everybody waits for, so that nobody is much late.
fn pause(every: Duration) -> Duration {
    (every / 4)
        .clamp(Duration::from_millis(500), Duration::from_secs(15))
        .mul_f64(rand::random_range(0.8..1.2))
}

async fn lane(app: &Arc<App>, store: &Store, every: Duration, failing: bool) -> Infallible {
    loop {
        let taken = match within(ASKED, take(app, store, every, failing)).await {
            Ok(turns) => turns,
            Err(e) => {
                tracing::debug!(error = e, "no turns taken");
                Vec::new()
            }
        };
        let is_full = i64::try_from(taken.len()).unwrap_or(i64::MAX) == BATCH;
        round(app, store, taken).await;
        if !is_full {
            tokio::time::sleep(pause(every)).await;
        }
    }
}

async fn within<T>(patience: Duration, asked: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    tokio::time::timeout(patience, asked).await.unwrap_or_else(|_| Err("no answer in time".into()))
}

async fn take(app: &App, store: &Store, every: Duration, failing: bool) -> Result<Vec<Turn>, String> {
    let client = store.pool().get().await.map_err(|e| e.to_string())?;
    let rows =
        client.query(TAKE, &[&BATCH, &every.as_secs_f64(), &failing]).await.map_err(|e| e.to_string())?;
    let backups = app.config.control.backups.as_ref().and_then(|b| b.every.as_ref());
    let every = backups.and_then(|every| time::Duration::try_from(**every).ok());
    Ok(rows.iter().map(|row| turn(row, every)).collect())
}

fn turn(row: &Row, every: Option<time::Duration>) -> Turn {
    Turn {
        id: TenantId::from_uuid(row.get("id")),
        is_served: row.get("is_served"),
        server: row.get("server_id"),
        database: row.get("database_name"),
        backed: Backed {
            every,
            since: row.get("created_at"),
            newest_at: row.get("backup_at"),
            is_well: row.get("backup_is_well"),
        },
    }
}

async fn round(app: &Arc<App>, store: &Store, turns: Vec<Turn>) {
    let mut servers: HashMap<Uuid, Vec<&str>> = HashMap::new();
    for turn in &turns {
        servers.entry(turn.server).or_default().push(&turn.database);
    }
    let asked = servers.into_iter().map(|(server, databases)| async move {
        match within(SIZED, sizes(store, server, &databases)).await {
            Ok(sizes) => sizes,
            Err(e) => {
                tracing::warn!(server = %server, error = e, "a server did not say how large its databases are");
                Vec::new()
            }
        }
    });
    let sizes: Vec<_> = futures::future::join_all(asked).await;
    let sizes: HashMap<(Uuid, String), Size> = sizes.into_iter().flatten().collect();
    stream::iter(&turns)
        .for_each_concurrent(AT_ONCE, |turn| {
            let size = sizes.get(&(turn.server, turn.database.clone())).copied();
            async move {
                if let Err(e) = one(app, store, turn, size).await {
                    tracing::debug!(tenant = %turn.id, error = e, "figures not kept");
                }
            }
        })
        .await;
}

/// One question for all databases of a server: nobody but its administrator sees other databases than its own.
async fn sizes(
    store: &Store,
    server: Uuid,
    databases: &[&str],
) -> Result<Vec<((Uuid, String), Size)>, String> {
    let access = {
        let client = store.pool().get().await.map_err(|e| e.to_string())?;
        servers::access(&client, store.master_key(), server).await.map_err(|e| e.to_string())?
    };
    let client = access.connect("postgres").await.map_err(|e| e.to_string())?;
    let rows = client.query(SIZES, &[&databases, &TENANT_GROUP]).await.map_err(|e| e.to_string())?;
    Ok(rows.iter().map(|r| ((server, r.get(0)), Size { bytes: r.get(1), connections: r.get(2) })).collect())
}

async fn one(app: &Arc<App>, store: &Store, turn: &Turn, size: Option<Size>) -> Result<(), String> {
    let now = OffsetDateTime::now_utc();
    // Nobody is served who could find it unwell otherwise; how large it is can be said all the same.
    let found = match turn.is_served {
        true => Some(tokio::time::timeout(PATIENCE, look(app, turn, now)).await.unwrap_or(Err(Why::Failed))),
        false => None,
    };
    let (figures, judged, error) = match found {
        Some(Ok((figures, judged))) => (Some(figures), judged, None),
        Some(Err(why)) => {
            let Some((health, reason)) = why.reason() else { return Ok(()) };
            (None, health::without(Some((health, reason)), &turn.backed, now), Some(reason))
        }
        // In the lane of those that keep others waiting.
        None => (None, health::without(None, &turn.backed, now), size.is_none().then_some("server_silent")),
    };
    within(ASKED, keep(store, turn, size, figures.as_ref(), &judged, error)).await
}

/// Why there are no figures.
enum Why {
    /// The organisation is not where it was when its turn came, or everybody is busy: the next time.
    NotNow,
    /// It was entered, and did not say all of it in time.
    Failed,
    Unreachable,
    WrongDatabase,
    Schema,
}

impl Why {
    /// What is said of the organisation, if it is its fault.
    const fn reason(&self) -> Option<(Health, &'static str)> {
        match self {
            Self::NotNow => None,
            Self::Failed => Some((Health::Warning, "figures_failed")),
            Self::Unreachable => Some((Health::Critical, "database_unreachable")),
            Self::WrongDatabase => Some((Health::Critical, "wrong_database")),
            Self::Schema => Some((Health::Critical, "schema_unsupported")),
        }
    }
}

impl From<PoolError> for Why {
    fn from(e: PoolError) -> Self {
        match e {
            PoolError::Queue | PoolError::Wait | PoolError::Superseded(_) | PoolError::Closed => Self::NotNow,
            PoolError::WrongDatabase => Self::WrongDatabase,
            PoolError::Schema | PoolError::Resting(Failure::Schema) => Self::Schema,
            PoolError::Resting(_)
            | PoolError::Authentication(_)
            | PoolError::Silent
            | PoolError::Connect(_) => Self::Unreachable,
        }
    }
}

async fn look(app: &Arc<App>, turn: &Turn, now: OffsetDateTime) -> Result<(Figures, Judged), Why> {
    let ctx = TenantContext::of_task(app, turn.id).await.map_err(|_| Why::NotNow)?;
    let detail = ctx.detail();
    let mut db = TenantDb::open_or_why(&ctx).await?;
    let month = figures::first_id(month_of(now));
    let failed = |e: crate::db::DbError| {
        tracing::warn!(tenant.slug = %detail.tenant.slug, error = e.chain(), "figures not collected");
        if e.as_db_error().is_none() { Why::Unreachable } else { Why::Failed }
    };
    let schema = figures::schema(&mut db).await.map_err(failed)?;
    let core = figures::core(&mut db).await.map_err(failed)?;
    let mut members = figures::ModuleFigures::default();
    for module in &detail.modules {
        let of_module = match module.as_str() {
            LOANS => figures::loans(&mut db, month).await.map_err(failed)?,
            PATIENTS => figures::patients(&mut db, month).await.map_err(failed)?,
            _ => continue,
        };
        members.members += of_module.members;
        members.transactions += of_module.transactions;
        members.active_loans = of_module.active_loans.or(members.active_loans);
    }
    let figures = Figures {
        users: core.users,
        members: members.members,
        active_loans: members.active_loans,
        month_transactions: members.transactions,
        storage_bytes: core.storage_bytes,
        last_activity_at: core.last_activity_at,
        schema,
    };
    let judged = health::judge(&figures, detail, &turn.backed, now);
    Ok((figures, judged))
}

/// When the month began, UTC.
fn month_of(now: OffsetDateTime) -> OffsetDateTime {
    let first = now.date().replace_day(1).unwrap_or(now.date());
    first.midnight().assume_utc()
}

async fn keep(
    store: &Store,
    turn: &Turn,
    size: Option<Size>,
    figures: Option<&Figures>,
    judged: &Judged,
    error: Option<&str>,
) -> Result<(), String> {
    let client = store.pool().get().await.map_err(|e| e.to_string())?;
    let (bytes, connections) = (size.map(|s| s.bytes), size.map(|s| s.connections));
    let schema = figures.map(|f| json!(f.schema));
    client
        .execute(
            KEEP,
            &[
                &turn.id.as_uuid(),
                &bytes,
                &connections,
                &figures.map(|f| f.users),
                &figures.map(|f| f.members),
                &figures.and_then(|f| f.active_loans),
                &figures.map(|f| f.month_transactions),
                &figures.map(|f| f.storage_bytes),
                &figures.and_then(|f| f.last_activity_at),
                &schema,
                &judged.health.as_str(),
                &&judged.reasons[..],
                &error,
            ],
        )
        .await
        .map(drop)
        .map_err(|e| e.to_string())
}

/// Index: organization_figures_due, backups_organization.
const TAKE: &str = "with taken as (
        update organization_figures set due_at = now() + make_interval(secs => $2 * (0.9 + 0.2 * random())),
            tried_at = now()
        where organization_id in (
            select f.organization_id from organization_figures f join organizations o on o.id = f.organization_id
            where f.due_at <= now() and (f.error is not null) = $3
                and o.status in ('active', 'suspended', 'maintenance')
            order by f.due_at limit $1 for update of f skip locked)
        returning organization_id)
    select o.id, o.status = 'active' as is_served, o.server_id, o.database_name, o.created_at,
        b.created_at as backup_at, case when b.verified_at is not null then b.verification is null end as backup_is_well
    from taken t join organizations o on o.id = t.organization_id
    left join lateral (select created_at, verified_at, verification from backups
        where organization_id = o.id and state = 'done' order by created_at desc limit 1) b on true";

/// Those that belong to an organisation's role, and nobody else's.
const SIZES: &str = "select d.datname::text, pg_database_size(d.oid),
        (select count(*)::int from pg_stat_activity a where a.datid = d.oid)
    from pg_database d join pg_auth_members m on m.member = d.datdba
    join pg_roles g on g.oid = m.roleid and g.rolname = $2
    where d.datname = any($1)";

/// What could not be found out stays as it was; how it is does not. Index: primary keys.
const KEEP: &str = "with figures as (
        update organization_figures set
            database_bytes = coalesce($2, database_bytes), connections = coalesce($3, connections),
            users = coalesce($4, users), members = coalesce($5, members),
            active_loans = case when $4::bigint is null then active_loans else $6 end,
            month_transactions = coalesce($7, month_transactions), storage_bytes = coalesce($8, storage_bytes),
            last_activity_at = greatest($9, last_activity_at), schema = coalesce($10, schema),
            health = $11, reasons = $12, error = $13,
            collected_at = case when $13::text is null and coalesce($2, $4) is not null then now() else collected_at end
        where organization_id = $1 returning database_bytes, users, members, storage_bytes)
    insert into organization_usage as u (organization_id, month, storage_bytes, database_bytes, users, members)
    select $1, date_trunc('month', now() at time zone 'utc')::date, coalesce(storage_bytes, 0),
        coalesce(database_bytes, 0), coalesce(users, 0), coalesce(members, 0) from figures
    on conflict (organization_id, month) do update set
        storage_bytes = greatest(u.storage_bytes, excluded.storage_bytes),
        database_bytes = greatest(u.database_bytes, excluded.database_bytes),
        users = greatest(u.users, excluded.users), members = greatest(u.members, excluded.members)";
