//! Sessions: what a bearer token stands for.

use gmah_shared::tenant::Generation;
use serde::Serialize;
use time::OffsetDateTime;
use utoipa::ToSchema;
use uuid::Uuid;

use super::users::{User, user};
use crate::auth::Bearer;
use crate::auth::rights::Rights;
use crate::db::{DbError, Query};

/// When the two tokens of a session end.
#[derive(Debug, Clone, Copy)]
pub struct Lives {
    /// Access token.
    pub access: OffsetDateTime,
    /// Refresh token.
    pub refresh: OffsetDateTime,
}

/// Where a session was begun.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// The client's address.
    pub address: Option<String>,
    /// What the client says it is.
    pub user_agent: Option<String>,
}

/// A session, as its user sees it.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Session)]
pub struct Listed {
    /// Id.
    pub id: Uuid,
    /// Whether it is the one that asks.
    pub current: bool,
    /// Where it was begun.
    pub address: Option<String>,
    /// With what.
    pub user_agent: Option<String>,
    /// Whose of the platform it is, if it is not the user's own.
    pub impersonator: Option<String>,
    /// RFC 3339, UTC.
    #[serde(with = "crate::json::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When its tokens were exchanged last.
    #[serde(with = "crate::json::rfc3339")]
    pub used_at: OffsetDateTime,
}

/// Stores a new session of a user, as the user and the password's hash were when the password was checked; none when
/// they are not so any more.
///
/// # Errors
/// [`DbError`].
pub async fn insert(
    tx: &mut impl Query,
    (user, hash): (&User, Option<&str>),
    access: &Bearer,
    refresh: &Bearer,
    lives: Lives,
    origin: &Origin,
    generation: Generation,
) -> Result<Option<Uuid>, DbError> {
    let id = Uuid::now_v7();
    let made = tx
        .execute(
            INSERT,
            &[
                &id,
                &user.id,
                &access.hash,
                &lives.access,
                &refresh.hash,
                &lives.refresh,
                &origin.address,
                &origin.user_agent,
                &generation.0,
                &user.role,
                &hash,
            ],
        )
        .await?;
    Ok((made == 1).then_some(id))
}

/// Begins a session of the platform's support, in the name of a user or of the first administrator; answers whose name that
/// is, and none when there is none such. Its other token is known to nobody.
///
/// # Errors
/// [`DbError`].
pub async fn impersonate(
    tx: &mut impl Query,
    user: Option<&str>,
    (access, unknown): (&Bearer, &Bearer),
    origin: &Origin,
    generation: Generation,
    by: &str,
) -> Result<Option<(Uuid, Uuid, String)>, DbError> {
    let id = Uuid::now_v7();
    let (address, agent) = (&origin.address, &origin.user_agent);
    let rows = tx
        .query(IMPERSONATE, &[&user, &id, &access.hash, &unknown.hash, &address, &agent, &generation.0, &by])
        .await?;
    Ok(rows.first().map(|r| (id, r.get("id"), r.get("email"))))
}

/// What the user of a session may do right now; none when it is over.
///
/// # Errors
/// [`DbError`].
pub async fn rights(db: &mut impl Query, id: Uuid) -> Result<Option<Rights>, DbError> {
    Ok(db.query(RIGHTS, &[&id]).await?.first().map(|r| Rights::new(r.get(0))))
}

/// The session and user of an access token, and who it is that acts in the name of that user, if it is somebody else; `since` is the generation from which on sessions count.
///
/// # Errors
/// [`DbError`].
pub async fn by_access_hash(
    db: &mut impl Query,
    hash: &[u8],
    since: Generation,
) -> Result<Option<(Uuid, User, Option<String>)>, DbError> {
    let rows = db.query(BY_ACCESS_HASH, &[&hash, &since.0]).await?;
    Ok(rows.first().map(|r| (r.get("session_id"), user(r), r.get("impersonator"))))
}

/// Exchanges a refresh token for new tokens of the same session, which is answered; none when it is unknown, used or expired. One that
/// was exchanged before ends its session.
///
/// # Errors
/// [`DbError`].
pub async fn rotate(
    db: &mut impl Query,
    old: &[u8],
    access: &Bearer,
    refresh: &Bearer,
    lives: Lives,
    origin: &Origin,
    since: Generation,
) -> Result<Option<Uuid>, DbError> {
    let (address, agent) = (&origin.address, &origin.user_agent);
    let rows = db
        .query(
            ROTATE,
            &[&old, &access.hash, &lives.access, &refresh.hash, &lives.refresh, &since.0, address, agent],
        )
        .await?;
    let session = rows.first().map(|r| r.get("session_id"));
    if session.is_none() && db.execute(END_REUSED, &[&old, address, agent]).await? > 0 {
        tracing::warn!("a refresh token came a second time: its session is over");
    }
    Ok(session)
}

/// A user's sessions, in order of their beginnings.
///
/// # Errors
/// [`DbError`].
pub async fn list(
    db: &mut impl Query,
    user: Uuid,
    current: Uuid,
    since: Generation,
) -> Result<Vec<Listed>, DbError> {
    let rows = db.query(LIST, &[&user, &since.0]).await?;
    Ok(rows
        .iter()
        .map(|r| {
            let id: Uuid = r.get("id");
            Listed {
                id,
                current: id == current,
                address: r.get("address"),
                user_agent: r.get("user_agent"),
                impersonator: r.get("impersonator"),
                created_at: r.get("created_at"),
                used_at: r.get("used_at"),
            }
        })
        .collect())
}

/// Ends a session of a user; false when it is none of theirs.
///
/// # Errors
/// [`DbError`].
pub async fn delete(db: &mut impl Query, user: Uuid, id: Uuid) -> Result<bool, DbError> {
    Ok(db.execute(DELETE, &[&user, &id]).await? == 1)
}

/// Ends all sessions of a user but one, if one is named.
///
/// # Errors
/// [`DbError`].
pub async fn delete_all(db: &mut impl Query, user: Uuid, but: Option<Uuid>) -> Result<(), DbError> {
    db.execute(DELETE_ALL, &[&user, &but.unwrap_or(Uuid::nil())]).await.map(drop)
}

/// Clears away a few sessions that have ended.
///
/// # Errors
/// [`DbError`].
pub async fn delete_expired(db: &mut impl Query) -> Result<u64, DbError> {
    db.execute(DELETE_EXPIRED, &[]).await
}

pub(super) const INSERT: &str = include_str!("sql/sessions/insert.sql");
pub(super) const IMPERSONATE: &str = include_str!("sql/sessions/impersonate.sql");
pub(super) const BY_ACCESS_HASH: &str = include_str!("sql/sessions/by_access_hash.sql");
pub(super) const ROTATE: &str = include_str!("sql/sessions/rotate.sql");
pub(super) const END_REUSED: &str = include_str!("sql/sessions/end_reused.sql");
pub(super) const RIGHTS: &str = include_str!("sql/sessions/rights.sql");
pub(super) const LIST: &str = include_str!("sql/sessions/list.sql");
pub(super) const DELETE: &str = "delete from sessions where user_id = $1 and id = $2";
pub(super) const DELETE_ALL: &str = "delete from sessions where user_id = $1 and id <> $2";
pub(super) const DELETE_EXPIRED: &str = include_str!("sql/sessions/delete_expired.sql");
