//! How far a server is, and how far its copy has come (PostgreSQL, section 9.28).

use crate::db::{DbError, Query, TenantDb};

pub(super) const POSITION: &str = "select pg_current_wal_flush_lsn()::text";
pub(super) const HAS_REPLAYED: &str =
    "select pg_is_in_recovery() and pg_last_wal_replay_lsn() >= $1::text::pg_lsn";

/// Where the server's log is: everything that was committed is before it.
///
/// # Errors
/// [`DbError`].
pub async fn position(db: &mut TenantDb) -> Result<String, DbError> {
    let row = db.query_opt(POSITION, &[]).await?;
    Ok(row.map_or_else(String::new, |row| row.get(0)))
}

/// Whether a copy shows everything that is before that position. One that takes writes is no copy any more.
///
/// # Errors
/// [`DbError`].
pub async fn has_replayed(db: &mut TenantDb, position: &str) -> Result<bool, DbError> {
    let row = db.query_opt(HAS_REPLAYED, &[&position]).await?;
    Ok(row.and_then(|row| row.get(0)).unwrap_or(false))
}
