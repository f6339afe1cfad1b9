//! Links that work once: to accept an invitation, and to choose a new password.

use time::OffsetDateTime;
use uuid::Uuid;

use crate::db::{DbError, Query};

/// What a link is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A first password.
    Invitation,
    /// Another password.
    Reset,
}

impl Purpose {
    /// As it is stored, and as it stands in links.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invitation => "invitation",
            Self::Reset => "reset",
        }
    }

    /// How long a link of it works.
    pub fn life(self) -> time::Duration {
        match self {
            Self::Invitation => time::Duration::days(7),
            Self::Reset => time::Duration::hours(1),
        }
    }
}

/// Stores a link of a user, in place of an earlier one for the same; false where that is too young: an invitation's a
/// minute, a reset's ten.
///
/// # Errors
/// [`DbError`].
pub async fn put(
    tx: &mut impl Query,
    user: Uuid,
    purpose: Purpose,
    hash: &[u8],
    expires_at: OffsetDateTime,
) -> Result<bool, DbError> {
    Ok(tx.execute(PUT, &[&user, &purpose.as_str(), &hash, &expires_at]).await? == 1)
}

/// Whether a link works; without using it.
///
/// # Errors
/// [`DbError`].
pub async fn works(db: &mut impl Query, hash: &[u8]) -> Result<bool, DbError> {
    Ok(!db.query(WORKS, &[&hash]).await?.is_empty())
}

/// Uses a link: its user, if it works. All links of that user are over with it.
///
/// # Errors
/// [`DbError`].
pub async fn take(tx: &mut impl Query, hash: &[u8]) -> Result<Option<(Uuid, String)>, DbError> {
    let rows = tx.query(TAKE, &[&hash]).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let user: Uuid = row.get("id");
    tx.execute(DELETE_ALL, &[&user]).await?;
    Ok(Some((user, row.get("email"))))
}

/// Ends all links of a user.
///
/// # Errors
/// [`DbError`].
pub async fn delete_all(tx: &mut impl Query, user: Uuid) -> Result<(), DbError> {
    tx.execute(DELETE_ALL, &[&user]).await.map(drop)
}

/// Removes links that do not work any more.
///
/// # Errors
/// [`DbError`].
pub async fn delete_expired(db: &mut impl Query) -> Result<u64, DbError> {
    db.execute(DELETE_EXPIRED, &[]).await
}

pub(crate) const PUT: &str = include_str!("sql/links/put.sql");
pub(super) const WORKS: &str = include_str!("sql/links/works.sql");
pub(super) const TAKE: &str = include_str!("sql/links/take.sql");
pub(super) const DELETE_ALL: &str = "delete from account_links where user_id = $1";
pub(super) const DELETE_EXPIRED: &str = "delete from account_links where expires_at < now()";
