//! Members of a free-loan society.

use serde::Serialize;
use time::OffsetDateTime;
use tokio_postgres::Row;
use utoipa::ToSchema;
use uuid::Uuid;

use super::at::At;
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
    /// Family, if any.
    pub family_id: Option<Uuid>,
    /// RFC 3339, UTC.
    #[serde(with = "crate::json::rfc3339")]
    pub created_at: OffsetDateTime,
    /// RFC 3339, UTC.
    #[serde(with = "crate::json::rfc3339")]
    pub updated_at: OffsetDateTime,
}

impl Member {
    /// Whether it is just that already.
    pub fn is(&self, to: &NewMember) -> bool {
        self.first_name == to.first_name
            && self.last_name == to.last_name
            && self.email == to.email
            && self.phone == to.phone
            && self.family_id == to.family_id
    }
}

/// What a member is made of. Checked by the handler.
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
    /// A family that there is.
    pub family_id: Option<Uuid>,
}

/// Which members.
#[derive(Debug, Default)]
pub struct Filter {
    /// Of one family.
    pub family_id: Option<Uuid>,
    /// With this somewhere in their name or e-mail address, in whatever case.
    pub search: Option<String>,
}

/// Up to `limit` members after `after`, in order of their ids.
///
/// # Errors
/// [`DbError`].
pub async fn list(db: &mut impl Query, after: Option<Uuid>, limit: i64) -> Result<Vec<Member>, DbError> {
    let after = after.unwrap_or(Uuid::nil());
    Ok(db.query(LIST, &[&after, &limit]).await?.iter().map(member).collect())
}

/// The same, of those that a filter lets through.
///
/// # Errors
/// [`DbError`].
pub async fn find(
    db: &mut impl Query,
    filter: &Filter,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Member>, DbError> {
    let after = after.unwrap_or(Uuid::nil());
    let pattern = filter.search.as_deref().map(super::pattern);
    Ok(db.query(FIND, &[&after, &limit, &filter.family_id, &pattern]).await?.iter().map(member).collect())
}

/// The member of an id.
///
/// # Errors
/// [`DbError`].
pub async fn get(db: &mut impl Query, id: Uuid) -> Result<Option<Member>, DbError> {
    Ok(db.query(GET, &[&id]).await?.first().map(member))
}

/// The member of an id, with nobody else changing it until the transaction ends.
///
/// # Errors
/// [`DbError`].
pub async fn get_locked(tx: &mut impl Query, id: Uuid) -> Result<Option<Member>, DbError> {
    Ok(tx.query(GET_LOCKED, &[&id]).await?.first().map(member))
}

/// Stores a new member; none when there is no such family.
///
/// # Errors
/// [`DbError`].
pub async fn insert(db: &mut impl Query, new: &NewMember) -> Result<Option<Member>, DbError> {
    let id = Uuid::now_v7();
    let rows = db
        .query(INSERT, &[&id, &new.first_name, &new.last_name, &new.email, &new.phone, &new.family_id])
        .await?;
    Ok(rows.first().map(member))
}

/// Stores many new members at once.
///
/// # Errors
/// [`DbError`].
pub async fn insert_many(tx: &mut impl Query, new: &[NewMember]) -> Result<u64, DbError> {
    let ids: Vec<_> = new.iter().map(|_| Uuid::now_v7()).collect();
    let first: Vec<_> = new.iter().map(|m| m.first_name.as_str()).collect();
    let last: Vec<_> = new.iter().map(|m| m.last_name.as_str()).collect();
    let email: Vec<_> = new.iter().map(|m| m.email.as_deref()).collect();
    let phone: Vec<_> = new.iter().map(|m| m.phone.as_deref()).collect();
    tx.execute(INSERT_MANY, &[&ids, &first, &last, &email, &phone]).await
}

/// Changes a member; none when there is no such family.
///
/// # Errors
/// [`DbError`].
pub async fn update(tx: &mut impl Query, id: Uuid, to: &NewMember) -> Result<Option<Member>, DbError> {
    let rows =
        tx.query(UPDATE, &[&id, &to.first_name, &to.last_name, &to.email, &to.phone, &to.family_id]).await?;
    Ok(rows.first().map(member))
}

/// How many members there are.
///
/// # Errors
/// [`DbError`].
pub async fn count(db: &mut impl Query) -> Result<i64, DbError> {
    Ok(db.query(COUNT, &[]).await?.first().map_or(0, |r| r.get(0)))
}

/// How many members there are, with nobody else adding one until the transaction ends: the plan's number holds also
/// under a hundred requests at once.
///
/// # Errors
/// [`DbError`].
pub async fn count_locked(tx: &mut impl Query) -> Result<i64, DbError> {
    tx.query(LOCK, &[]).await?;
    count(tx).await
}

/// By their places, as every statement here has them: a name would be looked for in every row.
fn member(row: &Row) -> Member {
    Member {
        id: row.get(0),
        first_name: row.get(1),
        last_name: row.get(2),
        email: row.get(3),
        phone: row.get(4),
        family_id: row.get(5),
        created_at: row.get::<_, At>(6).0,
        updated_at: row.get::<_, At>(7).0,
    }
}

pub(super) const LIST: &str = include_str!("sql/members/list.sql");
pub(super) const FIND: &str = include_str!("sql/members/find.sql");
pub(super) const GET: &str = include_str!("sql/members/get.sql");
pub(super) const GET_LOCKED: &str = include_str!("sql/members/get_locked.sql");
pub(super) const INSERT: &str = include_str!("sql/members/insert.sql");
pub(super) const INSERT_MANY: &str = include_str!("sql/members/insert_many.sql");
pub(super) const UPDATE: &str = include_str!("sql/members/update.sql");
pub(super) const COUNT: &str = include_str!("sql/members/count.sql");
/// `member` in ASCII: one who adds at a time, per organisation.
pub(super) const LOCK: &str = "select pg_advisory_xact_lock(120308823025010)";

#[cfg(test)]
mod tests {
    #[test]
    fn every_statement_has_the_columns_in_their_places() {
        use super::{FIND, GET, GET_LOCKED, INSERT, LIST, UPDATE};
        for sql in [LIST, FIND, GET, GET_LOCKED, INSERT, UPDATE] {
            let columns = "id, first_name, last_name, email, phone, family_id, created_at, updated_at";
            let lines = ["select ", "returning "].map(|verb| format!("{verb}{columns}"));
            assert!(sql.lines().any(|line| lines.iter().any(|wanted| line == wanted)), "{sql}");
        }
    }
}
