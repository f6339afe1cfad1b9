//! How far a server is, and how far its copy has come (PostgreSQL, section 9.28).

use crate::db::{DbError, Query, TenantDb};

/// A position says something only within one cluster and one of its histories.
pub(super) const POSITION: &str = "select pg_current_wal_flush_lsn()::text, \
    (select system_identifier from pg_control_system()), (select timeline_id from pg_control_checkpoint())";
pub(super) const HAS_REPLAYED: &str = "select pg_is_in_recovery() and pg_last_wal_replay_lsn() >= $1::text::pg_lsn \
    and (select system_identifier from pg_control_system()) = $2 \
    and (select timeline_id from pg_control_checkpoint()) = $3";

/// Where a server's log is.
#[derive(Debug)]
pub struct Position {
    lsn: String,
    cluster: i64,
    timeline: i32,
}

/// Where the server's log is: everything that was committed is before it.
///
/// # Errors
/// [`DbError`].
pub async fn position(db: &mut TenantDb) -> Result<Option<Position>, DbError> {
    let row = db.query_opt(POSITION, &[]).await?;
    Ok(row.map(|row| Position { lsn: row.get(0), cluster: row.get(1), timeline: row.get(2) }))
}

/// Whether a copy shows everything that is before that position. One that takes writes, or follows another history, is no
/// copy any more.
///
/// # Errors
/// [`DbError`].
pub async fn has_replayed(db: &mut TenantDb, position: &Position) -> Result<bool, DbError> {
    let Position { lsn, cluster, timeline } = position;
    let row = db.query_opt(HAS_REPLAYED, &[lsn, cluster, timeline]).await?;
    Ok(row.and_then(|row| row.get(0)).unwrap_or(false))
}
