//! Families of members.

use serde::Serialize;
use time::OffsetDateTime;
use tokio_postgres::Row;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::db::{DbError, Query};

/// A family.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Family {
    /// Id, ordered by time of creation.
    pub id: Uuid,
    /// Name.
    pub name: String,
    /// RFC 3339, UTC.
    #[serde(with = "crate::json::rfc3339")]
    pub created_at: OffsetDateTime,
    /// RFC 3339, UTC.
    #[serde(with = "crate::json::rfc3339")]
    pub updated_at: OffsetDateTime,
}

/// Up to `limit` families after `after`, in order of their ids.
///
/// # Errors
/// [`DbError`].
pub async fn list(db: &mut impl Query, after: Option<Uuid>, limit: i64) -> Result<Vec<Family>, DbError> {
    let after = after.unwrap_or(Uuid::nil());
    Ok(db.query(LIST, &[&after, &limit]).await?.iter().map(family).collect())
}

/// The family of an id.
///
/// # Errors
/// [`DbError`].
pub async fn get(db: &mut impl Query, id: Uuid) -> Result<Option<Family>, DbError> {
    Ok(db.query(GET, &[&id]).await?.first().map(family))
}

/// The family of an id, with nobody else changing it until the transaction ends.
///
/// # Errors
/// [`DbError`].
pub async fn get_locked(tx: &mut impl Query, id: Uuid) -> Result<Option<Family>, DbError> {
    Ok(tx.query(GET_LOCKED, &[&id]).await?.first().map(family))
}

/// Stores a new family.
///
/// # Errors
/// [`DbError`].
pub async fn insert(tx: &mut impl Query, name: &str) -> Result<Option<Family>, DbError> {
    Ok(tx.query(INSERT, &[&Uuid::now_v7(), &name]).await?.first().map(family))
}

/// Gives a family another name.
///
/// # Errors
/// [`DbError`].
pub async fn rename(tx: &mut impl Query, id: Uuid, name: &str) -> Result<Option<Family>, DbError> {
    Ok(tx.query(RENAME, &[&id, &name]).await?.first().map(family))
}

/// Whether members belong to a family.
///
/// # Errors
/// [`DbError`].
pub async fn is_used(tx: &mut impl Query, id: Uuid) -> Result<bool, DbError> {
    Ok(!tx.query(IS_USED, &[&id]).await?.is_empty())
}

/// Removes a family without members.
///
/// # Errors
/// [`DbError`].
pub async fn delete(tx: &mut impl Query, id: Uuid) -> Result<(), DbError> {
    tx.execute(DELETE, &[&id]).await.map(drop)
}

fn family(row: &Row) -> Family {
    Family {
        id: row.get("id"),
        name: row.get("name"),
        created_at: row.get("created_at"),
        updated_at: row.get("updated_at"),
    }
}

pub(super) const LIST: &str =
    "select id, name, created_at, updated_at from families where id > $1 order by id limit $2";
pub(super) const GET: &str = "select id, name, created_at, updated_at from families where id = $1";
pub(super) const GET_LOCKED: &str =
    "select id, name, created_at, updated_at from families where id = $1 for update";
pub(super) const INSERT: &str =
    "insert into families (id, name) values ($1, $2) returning id, name, created_at, updated_at";
pub(super) const RENAME: &str = "update families set name = $2, updated_at = now() where id = $1 returning id, name, created_at, updated_at";
pub(super) const IS_USED: &str = "select 1 from members where family_id = $1 limit 1";
pub(super) const DELETE: &str = "delete from families where id = $1";
