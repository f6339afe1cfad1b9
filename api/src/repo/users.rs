//! Users.

use serde::Serialize;
use time::OffsetDateTime;
use tokio_postgres::Row;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::auth::rights::Rights;
use crate::db::{DbError, Query};

/// A user, without anything secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct User {
    /// Id.
    pub id: Uuid,
    /// Lower case.
    pub email: String,
    /// Display name.
    pub name: String,
    /// Key of a role.
    pub role: String,
    /// Whether nobody can log in as this user.
    pub disabled: bool,
    /// What the role may do.
    pub permissions: Rights,
    /// RFC 3339, UTC.
    #[serde(with = "crate::json::rfc3339")]
    pub created_at: OffsetDateTime,
    /// RFC 3339, UTC.
    #[serde(with = "crate::json::rfc3339")]
    pub updated_at: OffsetDateTime,
}

/// The role that may do everything, of which one user at least always has it.
pub const ADMINISTRATOR: &str = "administrator";

pub(super) fn user(row: &Row) -> User {
    User {
        id: row.get("id"),
        email: row.get("email"),
        name: row.get("name"),
        role: row.get("role"),
        disabled: row.get("disabled"),
        permissions: Rights::new(row.get("permissions")),
        created_at: row.get("created_at"),
        updated_at: row.get("updated_at"),
    }
}

/// What a new user is made of. Checked by the handler.
#[derive(Debug)]
pub struct NewUser {
    /// Lower case.
    pub email: String,
    /// Display name.
    pub name: String,
    /// Key of a role that exists.
    pub role: String,
    /// Hash; none means that nobody can log in yet.
    pub password_hash: Option<String>,
}

/// What changes of a user; what is none stays.
#[derive(Debug, Default)]
pub struct Change {
    /// Display name.
    pub name: Option<String>,
    /// Key of a role that exists.
    pub role: Option<String>,
    /// Whether nobody can log in any more.
    pub disabled: Option<bool>,
}

/// The user of an e-mail address (lower case) and the stored password hash.
///
/// # Errors
/// [`DbError`].
pub async fn by_email(db: &mut impl Query, email: &str) -> Result<Option<(User, Option<String>)>, DbError> {
    let rows = db.query(BY_EMAIL, &[&email]).await?;
    Ok(rows.first().map(|r| (user(r), r.get("password_hash"))))
}

/// The user of an id and the stored password hash.
///
/// # Errors
/// [`DbError`].
pub async fn get(db: &mut impl Query, id: Uuid) -> Result<Option<(User, Option<String>)>, DbError> {
    let rows = db.query(GET, &[&id]).await?;
    Ok(rows.first().map(|r| (user(r), r.get("password_hash"))))
}

/// Up to `limit` users after `after`, in order of their ids.
///
/// # Errors
/// [`DbError`].
pub async fn list(db: &mut impl Query, after: Option<Uuid>, limit: i64) -> Result<Vec<User>, DbError> {
    let after = after.unwrap_or(Uuid::nil());
    Ok(db.query(LIST, &[&after, &limit]).await?.iter().map(user).collect())
}

/// Stores a new user; none when the address is taken.
///
/// # Errors
/// [`DbError`].
pub async fn insert(db: &mut impl Query, new: &NewUser) -> Result<Option<User>, DbError> {
    let id = Uuid::now_v7();
    let made = db.execute(INSERT, &[&id, &new.email, &new.name, &new.role, &new.password_hash]).await?;
    if made == 0 { Ok(None) } else { Ok(get(db, id).await?.map(|(user, _)| user)) }
}

/// Changes a user; false when there is none.
///
/// # Errors
/// [`DbError`].
pub async fn update(db: &mut impl Query, id: Uuid, change: &Change) -> Result<bool, DbError> {
    Ok(db.execute(UPDATE, &[&id, &change.name, &change.role, &change.disabled]).await? == 1)
}

/// Stores another password hash.
///
/// # Errors
/// [`DbError`].
pub async fn set_password(db: &mut impl Query, id: Uuid, hash: &str) -> Result<(), DbError> {
    db.execute(SET_PASSWORD, &[&id, &hash]).await.map(drop)
}

/// Keeps others from changing who is an administrator until the transaction ends.
///
/// # Errors
/// [`DbError`].
pub async fn lock_administrators(tx: &mut impl Query) -> Result<(), DbError> {
    tx.query(LOCK, &[]).await.map(drop)
}

/// Whether anybody who may do everything is left.
///
/// # Errors
/// [`DbError`].
pub async fn has_administrator(tx: &mut impl Query) -> Result<bool, DbError> {
    Ok(tx.query(ADMINISTRATORS, &[]).await?.first().is_some_and(|r| r.get::<_, i64>(0) > 0))
}

/// How many users may log in, or may once they have a password.
///
/// # Errors
/// [`DbError`].
pub async fn count(tx: &mut impl Query) -> Result<i64, DbError> {
    Ok(tx.query(COUNT, &[]).await?.first().map_or(0, |r| r.get(0)))
}

pub(super) const COUNT: &str = "select count(*) from users where disabled_at is null";
pub(super) const BY_EMAIL: &str = include_str!("sql/users/by_email.sql");
pub(super) const GET: &str = include_str!("sql/users/get.sql");
pub(super) const LIST: &str = include_str!("sql/users/list.sql");
pub(super) const INSERT: &str = include_str!("sql/users/insert.sql");
pub(super) const UPDATE: &str = include_str!("sql/users/update.sql");
pub(super) const ADMINISTRATORS: &str = include_str!("sql/users/administrators.sql");
pub(super) const SET_PASSWORD: &str = "update users set password_hash = $2, updated_at = now() where id = $1";
/// `admins` in ASCII.
pub(super) const LOCK: &str = "select pg_advisory_xact_lock(107117253750387)";

/// Whether a text can be an e-mail address: something, an at sign, a domain (RFC 5321 leaves more to the receiver
/// than a form should).
pub fn is_email(text: &str) -> bool {
    let Some((local, domain)) = text.rsplit_once('@') else { return false };
    text.len() <= 254
        && !local.is_empty()
        && local.len() <= 64
        && !text.chars().any(|c| c.is_control() || c.is_whitespace())
        && !local.contains(['@', '"', '<', '>', '(', ')', ',', ';', ':', '\\'])
        && domain.contains('.')
        && gmah_shared::hostname::Hostname::parse(domain).is_ok()
        // What no letter can be written to is none.
        && text.parse::<lettre::Address>().is_ok()
}
