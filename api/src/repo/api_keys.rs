//! Keys of programs, which act in a user's name within their scopes.

use gmah_shared::tenant::Generation;
use serde::Serialize;
use time::OffsetDateTime;
use tokio_postgres::Row;
use utoipa::ToSchema;
use uuid::Uuid;

use super::users::{User, user};
use crate::auth::rights::Rights;
use crate::db::{DbError, Query};

/// A key, without its secret.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ApiKey {
    /// Id.
    pub id: Uuid,
    /// In whose name it acts.
    pub user_id: Uuid,
    /// For people.
    pub name: String,
    /// What it may do at most; and never more than its user.
    pub scopes: Rights,
    /// RFC 3339, UTC.
    #[serde(with = "crate::json::rfc3339")]
    pub created_at: OffsetDateTime,
    /// After it the key opens nothing.
    #[serde(with = "crate::json::rfc3339::option")]
    pub expires_at: Option<OffsetDateTime>,
    /// To the minute.
    #[serde(with = "crate::json::rfc3339::option")]
    pub last_used_at: Option<OffsetDateTime>,
}

/// Most keys of a user.
pub const MOST: i64 = 50;

/// Stores a key; none when the user has as many as one may.
///
/// # Errors
/// [`DbError`].
pub async fn insert(
    tx: &mut impl Query,
    key: &ApiKey,
    hash: &[u8],
    generation: Generation,
) -> Result<Option<ApiKey>, DbError> {
    let scopes = key.scopes.patterns();
    let made = tx
        .query(
            INSERT,
            &[&key.id, &key.user_id, &key.name, &hash, &scopes, &generation.0, &key.expires_at, &MOST],
        )
        .await?;
    Ok(made.first().map(self::key))
}

/// The key and user of a secret; the user's rights are those of both.
///
/// # Errors
/// [`DbError`].
pub async fn by_hash(
    db: &mut impl Query,
    hash: &[u8],
    since: Generation,
) -> Result<Option<(Uuid, String, User)>, DbError> {
    let rows = db.query(BY_HASH, &[&hash, &since.0]).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let id: Uuid = row.get("key_id");
    if row.get("is_stale") {
        // A database that is being moved takes no note of it, and serves all the same.
        if let Err(e) = db.execute(USED, &[&id]).await {
            tracing::debug!(error = %e.chain(), "use of a key not noted");
        }
    }
    let mut user = user(row);
    user.permissions = user.permissions.meet(&Rights::new(row.get("scopes")));
    Ok(Some((id, row.get("key_name"), user)))
}

/// What a key may do right now; none when it is over.
///
/// # Errors
/// [`DbError`].
pub async fn rights(db: &mut impl Query, id: Uuid) -> Result<Option<Rights>, DbError> {
    let rows = db.query(RIGHTS, &[&id]).await?;
    Ok(rows.first().map(|r| Rights::new(r.get(0)).meet(&Rights::new(r.get(1)))))
}

/// The keys of a user, in order of their making.
///
/// # Errors
/// [`DbError`].
pub async fn list(db: &mut impl Query, user: Uuid) -> Result<Vec<ApiKey>, DbError> {
    Ok(db.query(LIST, &[&user]).await?.iter().map(key).collect())
}

/// Ends a key of a user; none when it is none of theirs.
///
/// # Errors
/// [`DbError`].
pub async fn delete(tx: &mut impl Query, user: Uuid, id: Uuid) -> Result<Option<ApiKey>, DbError> {
    Ok(tx.query(DELETE, &[&user, &id]).await?.first().map(key))
}

/// Ends all keys of a user.
///
/// # Errors
/// [`DbError`].
pub async fn delete_all(tx: &mut impl Query, user: Uuid) -> Result<(), DbError> {
    tx.execute(DELETE_ALL, &[&user]).await.map(drop)
}

fn key(row: &Row) -> ApiKey {
    ApiKey {
        id: row.get("id"),
        user_id: row.get("user_id"),
        name: row.get("name"),
        scopes: Rights::new(row.get("scopes")),
        created_at: row.get("created_at"),
        expires_at: row.get("expires_at"),
        last_used_at: row.get("last_used_at"),
    }
}

pub(super) const INSERT: &str = include_str!("sql/api_keys/insert.sql");
pub(super) const BY_HASH: &str = include_str!("sql/api_keys/by_hash.sql");
pub(super) const RIGHTS: &str = include_str!("sql/api_keys/rights.sql");
pub(super) const USED: &str = "update api_keys set last_used_at = now() where id = $1";
pub(super) const LIST: &str = include_str!("sql/api_keys/list.sql");
pub(super) const DELETE: &str = include_str!("sql/api_keys/delete.sql");
pub(super) const DELETE_ALL: &str = "delete from api_keys where user_id = $1";
