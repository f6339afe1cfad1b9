//! Idempotency keys: the same request twice happens once, and is answered the same.

use gmah_shared::secret::data::Place;
use uuid::Uuid;

use crate::db::{DbError, Query};

/// What is known of a key.
#[derive(Debug, Clone)]
pub enum Begun {
    /// First use: go on, and [`finish`] in the same transaction, with the answer sealed for this place.
    First(Place),
    /// Used for this very request: its answer.
    Answered {
        /// Status.
        status: u16,
        /// Body.
        body: Kept,
    },
    /// Used for another request.
    Other,
}

/// A body, as it is kept.
#[derive(Debug, Clone)]
pub enum Kept {
    /// For a place.
    Sealed(Place, Vec<u8>),
    /// By the version before this one, within the last day.
    Plain(serde_json::Value),
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
    let row = Uuid::now_v7();
    if tx.execute(INSERT, &[&user, &key, &request_hash, &row]).await? == 1 {
        return Ok(Begun::First(place(row)));
    }
    let rows = tx.query(GET, &[&user, &key]).await?;
    let Some(row) = rows.first() else {
        return Ok(Begun::Other);
    };
    if row.get::<_, Vec<u8>>("request_hash") != request_hash {
        return Ok(Begun::Other);
    }
    let status = u16::try_from(row.get::<_, i32>("status")).unwrap_or(500);
    let body = match row.get("answer") {
        Some(sealed) => Kept::Sealed(place(row.get("place")), sealed),
        None => Kept::Plain(row.get::<_, Option<_>>("body").unwrap_or_default()),
    };
    Ok(Begun::Answered { status, body })
}

/// Whether a key was used, for whatever.
///
/// # Errors
/// [`DbError`].
pub async fn is_known(db: &mut impl Query, user: Uuid, key: &str) -> Result<bool, DbError> {
    Ok(!db.query(IS_KNOWN, &[&user, &key]).await?.is_empty())
}

/// Stores the answer of a claimed key.
///
/// # Errors
/// [`DbError`].
pub async fn finish(tx: &mut impl Query, place: Uuid, status: u16, sealed: &[u8]) -> Result<(), DbError> {
    tx.execute(FINISH, &[&place, &i32::from(status), &sealed]).await?;
    Ok(())
}

/// Removes keys of yesterday, whoever's; a few thousand at a time.
///
/// # Errors
/// [`DbError`].
pub async fn delete_old(db: &mut impl Query) -> Result<u64, DbError> {
    db.execute(DELETE_OLD, &[]).await
}

fn place(row: Uuid) -> Place {
    Place { table: "idempotency_keys", column: "answer", row }
}

pub(super) const IS_KNOWN: &str = "select 1 from idempotency_keys where user_id = $1 and key = $2";
pub(super) const DELETE_OLD: &str = include_str!("sql/idempotency/delete_old.sql");
pub(super) const INSERT: &str = include_str!("sql/idempotency/insert.sql");
pub(super) const GET: &str = include_str!("sql/idempotency/get.sql");
pub(super) const FINISH: &str = include_str!("sql/idempotency/finish.sql");
pub(super) const DELETE_EXPIRED: &str = include_str!("sql/idempotency/delete_expired.sql");
