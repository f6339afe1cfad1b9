//! Patients of a hospital. What only the program may read is sealed for its row.

use gmah_shared::secret::data::Place;
use serde::Serialize;
use serde_json::{Value, json};
use time::{Date, OffsetDateTime};
use tokio_postgres::Row;
use utoipa::ToSchema;
use uuid::Uuid;

use super::date;
use crate::context::TenantContext;
use crate::db::{DbError, Query};
use crate::error::ApiError;

/// A patient, as lists show one.
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
    #[serde(with = "crate::json::rfc3339")]
    pub created_at: OffsetDateTime,
    /// RFC 3339, UTC.
    #[serde(with = "crate::json::rfc3339")]
    pub updated_at: OffsetDateTime,
}

/// A patient's record: with what is sealed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct PatientRecord {
    /// What lists show.
    #[serde(flatten)]
    pub patient: Patient,
    /// Number by which the state knows the patient.
    pub national_id: Option<String>,
    /// Address.
    pub address: Option<String>,
    /// What whoever treats the patient must know.
    pub notes: Option<String>,
}

/// What a patient is made of. Checked by the handler.
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
    /// Letters and digits.
    pub national_id: Option<String>,
    /// Address.
    pub address: Option<String>,
    /// Notes.
    pub notes: Option<String>,
}

impl PatientRecord {
    /// Whether it is just that already.
    pub fn is(&self, to: &NewPatient) -> bool {
        let patient = &self.patient;
        patient.first_name == to.first_name
            && patient.last_name == to.last_name
            && patient.birth_date == to.birth_date
            && patient.phone == to.phone
            && self.national_id == to.national_id
            && self.address == to.address
            && self.notes == to.notes
    }

    /// For the audit: that a sealed field is there and whether it changed, and nothing of what is in it.
    ///
    /// # Errors
    /// [`ApiError::Internal`], or where the organisation has no key.
    pub fn redacted(&self, ctx: &TenantContext) -> Result<Value, ApiError> {
        let keys = ctx.data_keys()?;
        let mut value = serde_json::to_value(&self.patient).map_err(|_| ApiError::Internal)?;
        for (column, field) in
            [("national_id", &self.national_id), ("address", &self.address), ("notes", &self.notes)]
        {
            let mark = field.as_ref().map(|text| {
                let tag = keys.blind_index("audit", &format!("{column} {}", self.patient.id), text);
                let hex: String = tag.iter().take(8).map(|b| format!("{b:02x}")).collect();
                format!("sealed {hex}")
            });
            value[column] = json!(mark);
        }
        Ok(value)
    }
}

/// What finds a patient by the national id, and by nobody without the organisation's key.
///
/// # Errors
/// Where the organisation has no key.
pub fn national_id_index(ctx: &TenantContext, national_id: &str) -> Result<Vec<u8>, ApiError> {
    Ok(ctx.data_keys()?.blind_index("patients", "national_id", national_id))
}

/// Up to `limit` patients after `after`, in order of their ids; only the one of a national id's index, if there is one.
///
/// # Errors
/// [`DbError`].
pub async fn list(
    db: &mut impl Query,
    national_id_index: Option<&[u8]>,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Patient>, DbError> {
    let after = after.unwrap_or(Uuid::nil());
    Ok(db.query(LIST, &[&after, &limit, &national_id_index]).await?.iter().map(patient).collect())
}

/// The record of an id.
///
/// # Errors
/// The database's, and where a sealed value does not open.
pub async fn get(
    db: &mut impl Query,
    ctx: &TenantContext,
    id: Uuid,
) -> Result<Option<PatientRecord>, ApiError> {
    db.query(GET, &[&id]).await?.first().map(|row| record(row, ctx)).transpose()
}

/// The record of an id, with nobody else changing it until the transaction ends.
///
/// # Errors
/// As [`get`].
pub async fn get_locked(
    tx: &mut impl Query,
    ctx: &TenantContext,
    id: Uuid,
) -> Result<Option<PatientRecord>, ApiError> {
    tx.query(GET_LOCKED, &[&id]).await?.first().map(|row| record(row, ctx)).transpose()
}

/// Up to `limit` records after `after`, in order of their ids.
///
/// # Errors
/// [`DbError`].
pub async fn records(db: &mut impl Query, after: Option<Uuid>, limit: i64) -> Result<Vec<Row>, DbError> {
    let after = after.unwrap_or(Uuid::nil());
    db.query(RECORDS, &[&after, &limit]).await
}

/// Stores a new patient; none when another has that national id.
///
/// # Errors
/// As [`get`].
pub async fn insert(
    tx: &mut impl Query,
    ctx: &TenantContext,
    new: &NewPatient,
) -> Result<Option<PatientRecord>, ApiError> {
    let id = Uuid::now_v7();
    let [national_id, address, notes] = sealed(ctx, id, new)?;
    let index = new.national_id.as_deref().map(|n| national_id_index(ctx, n)).transpose()?;
    let rows = tx
        .query(
            INSERT,
            &[
                &id,
                &new.first_name,
                &new.last_name,
                &new.birth_date,
                &new.phone,
                &national_id,
                &index,
                &address,
                &notes,
            ],
        )
        .await?;
    rows.first().map(|row| record(row, ctx)).transpose()
}

/// Changes a patient; none when another has that national id.
///
/// # Errors
/// As [`get`].
pub async fn update(
    tx: &mut impl Query,
    ctx: &TenantContext,
    id: Uuid,
    to: &NewPatient,
) -> Result<Option<PatientRecord>, ApiError> {
    let [national_id, address, notes] = sealed(ctx, id, to)?;
    let index = to.national_id.as_deref().map(|n| national_id_index(ctx, n)).transpose()?;
    let rows = tx
        .query(
            UPDATE,
            &[
                &id,
                &to.first_name,
                &to.last_name,
                &to.birth_date,
                &to.phone,
                &national_id,
                &index,
                &address,
                &notes,
            ],
        )
        .await?;
    rows.first().map(|row| record(row, ctx)).transpose()
}

fn place(column: &'static str, row: Uuid) -> Place {
    Place { table: "patients", column, row }
}

/// National id, address and notes, sealed for their row.
fn sealed(ctx: &TenantContext, id: Uuid, new: &NewPatient) -> Result<[Option<Vec<u8>>; 3], ApiError> {
    let seal = |column, value: &Option<String>| {
        value.as_ref().map(|text| ctx.seal(place(column, id), text.as_bytes())).transpose()
    };
    Ok([seal("national_id", &new.national_id)?, seal("address", &new.address)?, seal("notes", &new.notes)?])
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

/// A row of [`records`], opened.
///
/// # Errors
/// Where a sealed value does not open.
pub fn record(row: &Row, ctx: &TenantContext) -> Result<PatientRecord, ApiError> {
    let patient = patient(row);
    let open = |column: &'static str| {
        let sealed: Option<&[u8]> = row.get(column);
        let opened = sealed.map(|s| ctx.open_sealed(place(column, patient.id), s)).transpose()?;
        opened.map(|b| String::from_utf8(b.to_vec()).map_err(|_| ApiError::Internal)).transpose()
    };
    let (national_id, address, notes) = (open("national_id")?, open("address")?, open("notes")?);
    Ok(PatientRecord { patient, national_id, address, notes })
}

pub(super) const LIST: &str = include_str!("sql/patients/list.sql");
pub(super) const GET: &str = include_str!("sql/patients/get.sql");
pub(super) const GET_LOCKED: &str = include_str!("sql/patients/get_locked.sql");
pub(super) const RECORDS: &str = include_str!("sql/patients/records.sql");
pub(super) const INSERT: &str = include_str!("sql/patients/insert.sql");
pub(super) const UPDATE: &str = include_str!("sql/patients/update.sql");
