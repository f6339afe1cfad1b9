//! Stays in hospital.

use gmah_shared::secret::data::Place;
use serde::Serialize;
use time::OffsetDateTime;
use tokio_postgres::Row;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::context::TenantContext;
use crate::db::Query;
use crate::error::ApiError;

/// A stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Hospitalization {
    /// Id, ordered by time of creation.
    pub id: Uuid,
    /// Whose.
    pub patient_id: Uuid,
    /// Where the patient is, or was last.
    pub ward: String,
    /// Why.
    pub reason: Option<String>,
    /// RFC 3339, UTC.
    #[serde(with = "crate::json::rfc3339")]
    pub admitted_at: OffsetDateTime,
    /// RFC 3339, UTC; none while the patient is here.
    #[serde(with = "crate::json::rfc3339::option")]
    pub discharged_at: Option<OffsetDateTime>,
    /// RFC 3339, UTC.
    #[serde(with = "crate::json::rfc3339")]
    pub created_at: OffsetDateTime,
    /// RFC 3339, UTC.
    #[serde(with = "crate::json::rfc3339")]
    pub updated_at: OffsetDateTime,
}

impl Hospitalization {
    /// For the audit: without why.
    pub fn redacted(&self) -> Self {
        Self { reason: self.reason.as_ref().map(|_| "sealed".into()), ..self.clone() }
    }
}

/// Which stays.
#[derive(Debug, Default)]
pub struct Filter {
    /// Of one patient.
    pub patient_id: Option<Uuid>,
    /// In one ward.
    pub ward: Option<String>,
    /// Those that go on, or those that are over.
    pub is_current: Option<bool>,
}

/// What a new stay is made of. Checked by the handler.
#[derive(Debug)]
pub struct Admission {
    /// Whose.
    pub patient_id: Uuid,
    /// Where.
    pub ward: String,
    /// Why.
    pub reason: Option<String>,
    /// Since when.
    pub admitted_at: OffsetDateTime,
}

/// Up to `limit` stays after `after`, in order of their ids.
///
/// # Errors
/// The database's, and where a sealed value does not open.
pub async fn list(
    db: &mut impl Query,
    ctx: &TenantContext,
    filter: &Filter,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Hospitalization>, ApiError> {
    let after = after.unwrap_or(Uuid::nil());
    let Filter { patient_id, ward, is_current } = filter;
    let rows = match is_current {
        Some(true) => db.query(LIST_CURRENT, &[&after, &limit, patient_id, ward]).await?,
        other => db.query(LIST, &[&after, &limit, patient_id, ward, &(*other == Some(false))]).await?,
    };
    rows.iter().map(|row| stay(row, ctx)).collect()
}

/// The stay of an id.
///
/// # Errors
/// As [`list`].
pub async fn get(
    db: &mut impl Query,
    ctx: &TenantContext,
    id: Uuid,
) -> Result<Option<Hospitalization>, ApiError> {
    db.query(GET, &[&id]).await?.first().map(|row| stay(row, ctx)).transpose()
}

/// The stay of an id, with nobody else changing it until the transaction ends.
///
/// # Errors
/// As [`list`].
pub async fn get_locked(
    tx: &mut impl Query,
    ctx: &TenantContext,
    id: Uuid,
) -> Result<Option<Hospitalization>, ApiError> {
    tx.query(GET_LOCKED, &[&id]).await?.first().map(|row| stay(row, ctx)).transpose()
}

/// Begins a stay; none when there is no such patient, or one is in hospital already, or was then.
///
/// # Errors
/// As [`list`].
pub async fn insert(
    tx: &mut impl Query,
    ctx: &TenantContext,
    new: &Admission,
) -> Result<Option<Hospitalization>, ApiError> {
    lock_patient(tx, new.patient_id).await?;
    let id = Uuid::now_v7();
    let reason = new.reason.as_ref().map(|r| ctx.seal(place(id), r.as_bytes())).transpose()?;
    let rows = tx.query(INSERT, &[&id, &new.patient_id, &new.ward, &reason, &new.admitted_at]).await?;
    rows.first().map(|row| stay(row, ctx)).transpose()
}

/// One who admits or discharges a patient at a time.
///
/// # Errors
/// The database's.
pub async fn lock_patient(tx: &mut impl Query, patient: Uuid) -> Result<(), ApiError> {
    Ok(tx.query(LOCK_PATIENT, &[&patient]).await.map(drop)?)
}

/// Moves a patient to another ward.
///
/// # Errors
/// The database's.
pub async fn set_ward(tx: &mut impl Query, id: Uuid, ward: &str) -> Result<(), ApiError> {
    Ok(tx.execute(SET_WARD, &[&id, &ward]).await.map(drop)?)
}

/// Ends a stay.
///
/// # Errors
/// The database's.
pub async fn discharge(tx: &mut impl Query, id: Uuid, at: OffsetDateTime) -> Result<(), ApiError> {
    Ok(tx.execute(DISCHARGE, &[&id, &at]).await.map(drop)?)
}

fn place(row: Uuid) -> Place {
    Place { table: "hospitalizations", column: "reason", row }
}

fn stay(row: &Row, ctx: &TenantContext) -> Result<Hospitalization, ApiError> {
    let id = row.get("id");
    let reason: Option<&[u8]> = row.get("reason");
    let reason = reason.map(|sealed| ctx.open_sealed(place(id), sealed)).transpose()?;
    Ok(Hospitalization {
        id,
        patient_id: row.get("patient_id"),
        ward: row.get("ward"),
        reason: reason.map(|r| String::from_utf8(r.to_vec()).map_err(|_| ApiError::Internal)).transpose()?,
        admitted_at: row.get("admitted_at"),
        discharged_at: row.get("discharged_at"),
        created_at: row.get("created_at"),
        updated_at: row.get("updated_at"),
    })
}

pub(super) const LIST: &str = include_str!("sql/hospitalizations/list.sql");
pub(super) const LIST_CURRENT: &str = include_str!("sql/hospitalizations/list_current.sql");
pub(super) const LOCK_PATIENT: &str = "select 1 from patients where id = $1 for no key update";
pub(super) const GET: &str = include_str!("sql/hospitalizations/get.sql");
pub(super) const GET_LOCKED: &str = include_str!("sql/hospitalizations/get_locked.sql");
pub(super) const INSERT: &str = include_str!("sql/hospitalizations/insert.sql");
pub(super) const SET_WARD: &str = "update hospitalizations set ward = $2, updated_at = now() where id = $1";
pub(super) const DISCHARGE: &str =
    "update hospitalizations set discharged_at = $2, updated_at = now() where id = $1";
