//! Sessions: what a bearer token stands for.

use time::OffsetDateTime;
use uuid::Uuid;

use super::users::{User, user};
use crate::auth::Bearer;
use crate::db::{DbError, Query};

/// When the two tokens of a session end.
#[derive(Debug, Clone, Copy)]
pub struct Lives {
    /// Access token.
    pub access: OffsetDateTime,
    /// Refresh token.
    pub refresh: OffsetDateTime,
}

/// Stores a new session.
///
/// # Errors
/// [`DbError`].
pub async fn insert(
    db: &mut impl Query,
    user: Uuid,
    access: &Bearer,
    refresh: &Bearer,
    lives: Lives,
) -> Result<(), DbError> {
    let id = Uuid::now_v7();
    db.execute(INSERT, &[&id, &user, &access.hash, &lives.access, &refresh.hash, &lives.refresh]).await?;
    Ok(())
}

/// The session and user of an access token.
///
/// # Errors
/// [`DbError`].
pub async fn by_access_hash(db: &mut impl Query, hash: &[u8]) -> Result<Option<(Uuid, User)>, DbError> {
    let rows = db.query(BY_ACCESS_HASH, &[&hash]).await?;
    Ok(rows.first().map(|r| (r.get("session_id"), user(r))))
}

/// Exchanges a refresh token for new tokens of the same session; false when it is unknown, used or expired.
///
/// # Errors
/// [`DbError`].
pub async fn rotate(
    db: &mut impl Query,
    old: &[u8],
    access: &Bearer,
    refresh: &Bearer,
    lives: Lives,
) -> Result<bool, DbError> {
    let changed =
        db.execute(ROTATE, &[&old, &access.hash, &lives.access, &refresh.hash, &lives.refresh]).await?;
    Ok(changed == 1)
}

/// Ends a session.
///
/// # Errors
/// [`DbError`].
pub async fn delete(db: &mut impl Query, id: Uuid) -> Result<(), DbError> {
    db.execute(DELETE, &[&id]).await?;
    Ok(())
}

/// Clears away a few sessions that have ended.
///
/// # Errors
/// [`DbError`].
pub async fn delete_expired(db: &mut impl Query) -> Result<u64, DbError> {
    db.execute(DELETE_EXPIRED, &[]).await
}

pub(super) const INSERT: &str = include_str!("sql/sessions/insert.sql");
pub(super) const BY_ACCESS_HASH: &str = include_str!("sql/sessions/by_access_hash.sql");
pub(super) const ROTATE: &str = include_str!("sql/sessions/rotate.sql");
pub(super) const DELETE: &str = "delete from sessions where id = $1";
pub(super) const DELETE_EXPIRED: &str = include_str!("sql/sessions/delete_expired.sql");
