//! Patients of a hospital.

use serde::Serialize;
use time::{Date, OffsetDateTime};
use tokio_postgres::Row;
use utoipa::ToSchema;
use uuid::Uuid;

use super::date;
use crate::db::{DbError, Query};

/// A patient.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Patient {
    /// Id, ordered by time of creation.
    pub id: Uuid,
    /// First name.
    pub first_name: String,
    /// Last name.
    pub last_name: String,
    /// `YYYY-MM-DD`.
    #[serde(with = "date")]
    pub birth_date: Date,
    /// Telephone, if known.
    pub phone: Option<String>,
    /// RFC 3339, UTC.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// RFC 3339, UTC.
    #[serde(with = "time::serde::rfc3339")]
    pub updated_at: OffsetDateTime,
}

/// What a new patient is made of. Checked by the handler.
#[derive(Debug, Clone)]
pub struct NewPatient {
    /// First name.
    pub first_name: String,
    /// Last name.
    pub last_name: String,
    /// Day of birth.
    pub birth_date: Date,
    /// Telephone.
    pub phone: Option<String>,
}

/// Up to `limit` patients after `after`, in order of their ids.
///
/// # Errors
/// [`DbError`].
pub async fn list(db: &mut impl Query, after: Option<Uuid>, limit: i64) -> Result<Vec<Patient>, DbError> {
    let after = after.unwrap_or(Uuid::nil());
    Ok(db.query(LIST, &[&after, &limit]).await?.iter().map(patient).collect())
}

/// The patient of an id.
///
/// # Errors
/// [`DbError`].
pub async fn get(db: &mut impl Query, id: Uuid) -> Result<Option<Patient>, DbError> {
    Ok(db.query(GET, &[&id]).await?.first().map(patient))
}

/// Stores a new patient.
///
/// # Errors
/// [`DbError`].
pub async fn insert(db: &mut impl Query, new: &NewPatient) -> Result<Option<Patient>, DbError> {
    let id = Uuid::now_v7();
    let rows = db.query(INSERT, &[&id, &new.first_name, &new.last_name, &new.birth_date, &new.phone]).await?;
    Ok(rows.first().map(patient))
}

fn patient(row: &Row) -> Patient {
    Patient {
        id: row.get("id"),
        first_name: row.get("first_name"),
        last_name: row.get("last_name"),
        birth_date: row.get("birth_date"),
        phone: row.get("phone"),
        created_at: row.get("created_at"),
        updated_at: row.get("updated_at"),
    }
}

pub(super) const LIST: &str = include_str!("sql/patients/list.sql");
pub(super) const GET: &str = include_str!("sql/patients/get.sql");
pub(super) const INSERT: &str = include_str!("sql/patients/insert.sql");
