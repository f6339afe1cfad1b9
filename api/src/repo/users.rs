//! Users.

use serde::Serialize;
use tokio_postgres::Row;
use uuid::Uuid;

use crate::db::{DbError, Query};

/// A user, without anything secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct User {
    /// Id.
    pub id: Uuid,
    /// Lower case.
    pub email: String,
    /// Display name.
    pub name: String,
    /// `administrator`, `manager`, `member` or `read_only`.
    pub role: String,
}

pub(super) fn user(row: &Row) -> User {
    User { id: row.get("id"), email: row.get("email"), name: row.get("name"), role: row.get("role") }
}

/// The user of an e-mail address (lower case) and the stored password hash.
///
/// # Errors
/// [`DbError`].
pub async fn by_email(db: &mut impl Query, email: &str) -> Result<Option<(User, Option<String>)>, DbError> {
    let rows = db.query(BY_EMAIL, &[&email]).await?;
    Ok(rows.first().map(|r| (user(r), r.get("password_hash"))))
}

pub(super) const BY_EMAIL: &str = include_str!("sql/users/by_email.sql");

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
}
