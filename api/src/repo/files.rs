//! Files: what they are. Their bytes are [`crate::files`]'s.

use serde::Serialize;
use time::OffsetDateTime;
use tokio_postgres::Row;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::db::{DbError, Query};
use crate::files::Stored;

/// A file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct File {
    /// Id, ordered by time of creation.
    pub id: Uuid,
    /// Name.
    pub name: String,
    /// What it is, by what is in it.
    pub media_type: String,
    /// Bytes.
    pub size: i64,
    /// Of all of them, in hexadecimal.
    pub sha256: String,
    /// What it is about.
    pub attached_to: Option<Uuid>,
    /// Who brought it.
    pub created_by: Uuid,
    /// RFC 3339, UTC.
    #[serde(with = "crate::json::rfc3339")]
    pub created_at: OffsetDateTime,
}

/// A file that is about to come in.
#[derive(Debug)]
pub struct Reservation {
    /// Id.
    pub id: Uuid,
    /// Name.
    pub name: String,
    /// What it is about.
    pub attached_to: Option<Uuid>,
    /// Who brings it.
    pub created_by: Uuid,
    /// How many bytes are reserved.
    pub size: i64,
}

/// Up to `limit` files after `after`, in order of their ids; those about something, if it is named.
///
/// # Errors
/// [`DbError`].
pub async fn list(
    db: &mut impl Query,
    attached_to: Option<Uuid>,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<File>, DbError> {
    let after = after.unwrap_or(Uuid::nil());
    Ok(db.query(LIST, &[&after, &limit, &attached_to]).await?.iter().map(file).collect())
}

/// The file of an id.
///
/// # Errors
/// [`DbError`].
pub async fn get(db: &mut impl Query, id: Uuid) -> Result<Option<File>, DbError> {
    Ok(db.query(GET, &[&id]).await?.first().map(file))
}

/// Bytes that are stored or reserved, with nobody else reserving any until the transaction ends.
///
/// # Errors
/// [`DbError`].
pub async fn used_locked(tx: &mut impl Query) -> Result<i64, DbError> {
    tx.query(LOCK, &[]).await?;
    Ok(tx.query(USED, &[]).await?.first().map_or(0, |r| r.get(0)))
}

/// Reserves a file.
///
/// # Errors
/// [`DbError`].
pub async fn reserve(tx: &mut impl Query, r: &Reservation) -> Result<(), DbError> {
    tx.execute(RESERVE, &[&r.id, &r.name, &r.size, &r.attached_to, &r.created_by]).await.map(drop)
}

/// A reserved file is stored.
///
/// # Errors
/// [`DbError`].
pub async fn stored(tx: &mut impl Query, id: Uuid, stored: &Stored) -> Result<Option<File>, DbError> {
    let Stored { size, sha256, media_type } = stored;
    Ok(tx.query(STORED, &[&id, size, sha256, media_type]).await?.first().map(file))
}

/// A stored file is not there any more; its bytes go when the transaction has ended.
///
/// # Errors
/// [`DbError`].
pub async fn delete(tx: &mut impl Query, id: Uuid) -> Result<Option<File>, DbError> {
    Ok(tx.query(DELETE, &[&id]).await?.first().map(file))
}

/// Makes a file that is not stored one that never will be; false when it is stored, or nothing is known of it.
///
/// # Errors
/// [`DbError`].
pub async fn give_up(db: &mut impl Query, id: Uuid) -> Result<bool, DbError> {
    Ok(db.execute(GIVE_UP, &[&id]).await? == 1)
}

/// Forgets a file whose bytes are gone.
///
/// # Errors
/// [`DbError`].
pub async fn forget(db: &mut impl Query, id: Uuid) -> Result<(), DbError> {
    db.execute(FORGET, &[&id]).await.map(drop)
}

/// Files of which bytes may have been left: deleted ones, and those that did not come in within twenty minutes.
///
/// # Errors
/// [`DbError`].
pub async fn left_over(db: &mut impl Query) -> Result<Vec<Uuid>, DbError> {
    Ok(db.query(LEFT_OVER, &[]).await?.iter().map(|r| r.get("id")).collect())
}

fn file(row: &Row) -> File {
    let sha256: Option<Vec<u8>> = row.get("sha256");
    File {
        id: row.get("id"),
        name: row.get("name"),
        media_type: row.get("media_type"),
        size: row.get("size"),
        sha256: sha256.unwrap_or_default().iter().map(|b| format!("{b:02x}")).collect(),
        attached_to: row.get("attached_to"),
        created_by: row.get("created_by"),
        created_at: row.get("created_at"),
    }
}

pub(super) const LIST: &str = include_str!("sql/files/list.sql");
pub(super) const GET: &str = include_str!("sql/files/get.sql");
pub(super) const RESERVE: &str = include_str!("sql/files/reserve.sql");
pub(super) const STORED: &str = include_str!("sql/files/stored.sql");
pub(super) const DELETE: &str = include_str!("sql/files/delete.sql");
pub(super) const LEFT_OVER: &str = include_str!("sql/files/left_over.sql");
pub(super) const GIVE_UP: &str = "update files set state = 'deleted' where id = $1 and state <> 'stored'";
pub(super) const FORGET: &str = "delete from files where id = $1 and state <> 'stored'";
pub(super) const USED: &str = "select coalesce(sum(size), 0)::bigint from files where state <> 'deleted'";
/// `files` in ASCII: one who reserves at a time, per organisation.
pub(super) const LOCK: &str = "select pg_advisory_xact_lock(439788202355)";
