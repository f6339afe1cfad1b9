//! Members of a free-loan society.

use serde::Serialize;
use time::OffsetDateTime;
use tokio_postgres::Row;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::db::{DbError, Query};

/// A member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Member {
    /// Id, ordered by time of creation.
    pub id: Uuid,
    /// First name.
    pub first_name: String,
    /// Last name.
    pub last_name: String,
    /// E-mail, if known.
    pub email: Option<String>,
    /// Telephone, if known.
    pub phone: Option<String>,
    /// RFC 3339, UTC.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// RFC 3339, UTC.
    #[serde(with = "time::serde::rfc3339")]
    pub updated_at: OffsetDateTime,
}

/// What a new member is made of. Checked by the handler.
#[derive(Debug, Clone)]
pub struct NewMember {
    /// First name.
    pub first_name: String,
    /// Last name.
    pub last_name: String,
    /// E-mail.
    pub email: Option<String>,
    /// Telephone.
    pub phone: Option<String>,
}

/// Up to `limit` members after `after`, in order of their ids.
///
/// # Errors
/// [`DbError`].
pub async fn list(db: &mut impl Query, after: Option<Uuid>, limit: i64) -> Result<Vec<Member>, DbError> {
    let after = after.unwrap_or(Uuid::nil());
    Ok(db.query(LIST, &[&after, &limit]).await?.iter().map(member).collect())
}

/// The member of an id.
///
/// # Errors
/// [`DbError`].
pub async fn get(db: &mut impl Query, id: Uuid) -> Result<Option<Member>, DbError> {
    Ok(db.query(GET, &[&id]).await?.first().map(member))
}

/// How many there are, with nobody adding meanwhile: holds a lock until the transaction ends.
///
/// # Errors
/// [`DbError`].
pub async fn count_locked(tx: &mut impl Query) -> Result<i64, DbError> {
    tx.query(LOCK, &[]).await?;
    Ok(tx.query(COUNT, &[]).await?.first().map_or(0, |r| r.get(0)))
}

/// Stores a new member.
///
/// # Errors
/// [`DbError`].
pub async fn insert(db: &mut impl Query, new: &NewMember) -> Result<Option<Member>, DbError> {
    let id = Uuid::now_v7();
    let rows = db.query(INSERT, &[&id, &new.first_name, &new.last_name, &new.email, &new.phone]).await?;
    Ok(rows.first().map(member))
}

fn member(row: &Row) -> Member {
    Member {
        id: row.get("id"),
        first_name: row.get("first_name"),
        last_name: row.get("last_name"),
        email: row.get("email"),
        phone: row.get("phone"),
        created_at: row.get("created_at"),
        updated_at: row.get("updated_at"),
    }
}

pub(super) const LIST: &str = include_str!("sql/members/list.sql");
pub(super) const GET: &str = include_str!("sql/members/get.sql");
pub(super) const INSERT: &str = include_str!("sql/members/insert.sql");
pub(super) const COUNT: &str = include_str!("sql/members/count.sql");
/// `member` in ASCII: one who adds at a time, per organisation.
pub(super) const LOCK: &str = "select pg_advisory_xact_lock(120308823025010)";
