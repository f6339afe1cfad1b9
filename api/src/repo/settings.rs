//! Settings by module, as JSON; [`crate::settings`] knows their shapes.

use serde_json::Value;

use crate::db::{DbError, Query};

/// What is stored for a module.
///
/// # Errors
/// [`DbError`].
pub async fn get(db: &mut impl Query, module: &str) -> Result<Option<Value>, DbError> {
    Ok(db.query(GET, &[&module]).await?.first().map(|r| r.get("value")))
}

/// Keeps others from changing a module's settings until the transaction ends, whether there are any yet or not.
///
/// # Errors
/// [`DbError`].
pub async fn lock(tx: &mut impl Query, module: &str) -> Result<(), DbError> {
    tx.query(LOCK, &[&module]).await.map(drop)
}

/// Stores settings of a module in place of those before.
///
/// # Errors
/// [`DbError`].
pub async fn put(tx: &mut impl Query, module: &str, value: &Value) -> Result<(), DbError> {
    tx.execute(PUT, &[&module, &value]).await.map(drop)
}

pub(super) const GET: &str = "select value from settings where module = $1";
pub(super) const LOCK: &str = "select pg_advisory_xact_lock(hashtextextended('settings ' || $1, 0))";
pub(super) const PUT: &str = include_str!("sql/settings/put.sql");
