//! Letters that wait to be carried.

use std::time::Duration;

use gmah_shared::secret::data::Place;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::context::TenantContext;
use crate::db::{DbError, Query};
use crate::error::ApiError;
use crate::mail::Letter;

/// A letter that somebody has taken to carry it.
#[derive(Debug)]
pub struct Taken {
    /// Id.
    pub id: Uuid,
    /// E-mail address.
    pub recipient: String,
    /// One line.
    pub subject: String,
    /// Sealed.
    pub body: Vec<u8>,
    /// This one included.
    pub attempts: i32,
}

/// Where a letter's text belongs.
pub fn place(id: Uuid) -> Place {
    Place { table: "outbox", column: "body", row: id }
}

/// Stores a letter, for as long as somebody has a use for it.
///
/// # Errors
/// The database's, or that of sealing.
pub async fn insert(
    tx: &mut impl Query,
    ctx: &TenantContext,
    letter: &Letter,
    expires_at: OffsetDateTime,
) -> Result<(), ApiError> {
    let id = Uuid::now_v7();
    let body = ctx.seal(place(id), letter.body.as_bytes())?;
    tx.execute(INSERT, &[&id, &letter.recipient, &letter.subject, &body, &expires_at]).await?;
    Ok(())
}

/// Takes a letter that is due; nobody else does within five minutes.
///
/// # Errors
/// [`DbError`].
pub async fn take(db: &mut impl Query) -> Result<Option<Taken>, DbError> {
    Ok(db.query(TAKE, &[]).await?.first().map(|row| Taken {
        id: row.get("id"),
        recipient: row.get("recipient"),
        subject: row.get("subject"),
        body: row.get("body"),
        attempts: row.get("attempts"),
    }))
}

/// In how long the next one is due, if there is one.
///
/// # Errors
/// [`DbError`].
pub async fn next_attempt(db: &mut impl Query) -> Result<Option<Duration>, DbError> {
    let rows = db.query(NEXT, &[]).await?;
    Ok(rows.first().map(|r| Duration::from_secs_f64(r.get::<_, f64>(0).max(0.0))))
}

/// A letter has left.
///
/// # Errors
/// [`DbError`].
pub async fn remove(db: &mut impl Query, id: Uuid) -> Result<(), DbError> {
    db.execute(REMOVE, &[&id]).await.map(drop)
}

/// A letter has not left.
///
/// # Errors
/// [`DbError`].
pub async fn failed(db: &mut impl Query, id: Uuid, pause: Duration, why: &str) -> Result<(), DbError> {
    let why: String = why.chars().take(500).collect();
    db.execute(FAILED, &[&id, &pause.as_secs_f64(), &why]).await.map(drop)
}

/// Removes letters that nobody has a use for any more.
///
/// # Errors
/// [`DbError`].
pub async fn delete_expired(db: &mut impl Query) -> Result<u64, DbError> {
    db.execute(DELETE_EXPIRED, &[]).await
}

pub(crate) const INSERT: &str =
    "insert into outbox (id, recipient, subject, body, expires_at) values ($1, $2, $3, $4, $5)";
pub(super) const TAKE: &str = include_str!("sql/outbox/take.sql");
pub(super) const NEXT: &str = include_str!("sql/outbox/next.sql");
pub(super) const REMOVE: &str = "delete from outbox where id = $1";
pub(super) const FAILED: &str =
    "update outbox set next_attempt_at = now() + make_interval(secs => $2), last_error = $3 where id = $1";
pub(super) const DELETE_EXPIRED: &str = "delete from outbox where expires_at < now()";
