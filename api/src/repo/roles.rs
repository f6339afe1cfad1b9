//! Roles: names for what users may do.

use serde::Serialize;
use tokio_postgres::Row;
use utoipa::ToSchema;

use crate::auth::rights::Rights;
use crate::db::{DbError, Query};

/// A role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Role {
    /// Key.
    pub key: String,
    /// For people.
    pub title: String,
    /// What it may do.
    pub permissions: Rights,
    /// Every organisation has it, and it cannot be changed.
    pub is_builtin: bool,
}

/// Every role, by key.
///
/// # Errors
/// [`DbError`].
pub async fn list(db: &mut impl Query) -> Result<Vec<Role>, DbError> {
    Ok(db.query(LIST, &[]).await?.iter().map(role).collect())
}

/// The role of a key, with nobody changing it until the transaction ends.
///
/// # Errors
/// [`DbError`].
pub async fn get_locked(tx: &mut impl Query, key: &str) -> Result<Option<Role>, DbError> {
    Ok(tx.query(GET, &[&key]).await?.first().map(role))
}

/// Stores a new role; false when the key is taken, or there are a hundred.
///
/// # Errors
/// [`DbError`].
pub async fn insert(db: &mut impl Query, key: &str, title: &str, rights: &Rights) -> Result<bool, DbError> {
    Ok(db.execute(INSERT, &[&key, &title, &rights.patterns()]).await? == 1)
}

/// Changes a role; what is none stays.
///
/// # Errors
/// [`DbError`].
pub async fn update(
    db: &mut impl Query,
    key: &str,
    title: Option<&str>,
    rights: Option<&Rights>,
) -> Result<(), DbError> {
    db.execute(UPDATE, &[&key, &title, &rights.map(Rights::patterns)]).await.map(drop)
}

/// Whether any user has it.
///
/// # Errors
/// [`DbError`].
pub async fn is_used(db: &mut impl Query, key: &str) -> Result<bool, DbError> {
    Ok(!db.query(IS_USED, &[&key]).await?.is_empty())
}

/// Removes a role that nobody has.
///
/// # Errors
/// [`DbError`].
pub async fn delete(db: &mut impl Query, key: &str) -> Result<(), DbError> {
    db.execute(DELETE, &[&key]).await.map(drop)
}

fn role(row: &Row) -> Role {
    Role {
        key: row.get("key"),
        title: row.get("title"),
        permissions: Rights::new(row.get("permissions")),
        is_builtin: row.get("is_builtin"),
    }
}

pub(super) const LIST: &str = include_str!("sql/roles/list.sql");
pub(super) const GET: &str =
    "select key, title, permissions, is_builtin from roles where key = $1 limit 1 for update";
pub(super) const INSERT: &str = include_str!("sql/roles/insert.sql");
pub(super) const UPDATE: &str = include_str!("sql/roles/update.sql");
pub(super) const IS_USED: &str = "select 1 from users where role = $1 limit 1";
pub(super) const DELETE: &str = "delete from roles where key = $1";
