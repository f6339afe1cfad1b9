//! Idempotency keys: the same request twice happens once, and is answered the same.

use uuid::Uuid;

use crate::db::{DbError, Query};

/// What is known of a key.
#[derive(Debug, Clone, PartialEq)]
pub enum Begun {
    /// First use: go on, and [`finish`] in the same transaction.
    First,
    /// Used for this very request: its answer.
    Answered {
        /// Status.
        status: u16,
        /// Body.
        body: serde_json::Value,
    },
    /// Used for another request.
    Other,
}

/// Claims a key within a transaction. A second request with the same key waits for the first to end.
///
/// # Errors
/// [`DbError`].
pub async fn begin(
    tx: &mut impl Query,
    user: Uuid,
    key: &str,
    request_hash: &[u8],
) -> Result<Begun, DbError> {
    tx.execute(DELETE_EXPIRED, &[&user]).await?;
    if tx.execute(INSERT, &[&user, &key, &request_hash]).await? == 1 {
        return Ok(Begun::First);
    }
    let rows = tx.query(GET, &[&user, &key]).await?;
    let Some(row) = rows.first() else {
        return Ok(Begun::Other);
    };
    if row.get::<_, Vec<u8>>("request_hash") != request_hash {
        return Ok(Begun::Other);
    }
    let status = u16::try_from(row.get::<_, i32>("status")).unwrap_or(500);
    Ok(Begun::Answered { status, body: row.get("body") })
}

/// Stores the answer of a claimed key.
///
/// # Errors
/// [`DbError`].
pub async fn finish(
    tx: &mut impl Query,
    user: Uuid,
    key: &str,
    status: u16,
    body: &serde_json::Value,
) -> Result<(), DbError> {
    tx.execute(FINISH, &[&user, &key, &i32::from(status), body]).await?;
    Ok(())
}

pub(super) const INSERT: &str = include_str!("sql/idempotency/insert.sql");
pub(super) const GET: &str = include_str!("sql/idempotency/get.sql");
pub(super) const FINISH: &str = include_str!("sql/idempotency/finish.sql");
pub(super) const DELETE_EXPIRED: &str = include_str!("sql/idempotency/delete_expired.sql");
