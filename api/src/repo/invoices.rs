//! Invoices of a hospital.
//!
//! `0 <= paid <= amount` holds after every transaction: whoever pays, reverses or cancels holds the invoice's lock and reads
//! the sum after it.

use serde::{Deserialize, Serialize};
use time::{Date, OffsetDateTime};
use tokio_postgres::Row;
use utoipa::ToSchema;
use uuid::Uuid;

use super::date;
use crate::db::{DbError, Query};

/// Where an invoice stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum InvoiceStatus {
    /// Something is to be paid.
    Open,
    /// All of it is.
    Paid,
    /// Nothing is to be paid.
    Cancelled,
}

impl InvoiceStatus {
    fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Paid => "paid",
            Self::Cancelled => "cancelled",
        }
    }
}

/// An invoice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Invoice {
    /// Id, ordered by time of creation.
    pub id: Uuid,
    /// Who pays.
    pub patient_id: Uuid,
    /// For which stay.
    pub hospitalization_id: Option<Uuid>,
    /// Minor units.
    pub amount: i64,
    /// ISO 4217.
    pub currency: String,
    /// For people.
    pub description: Option<String>,
    /// Until when.
    #[serde(with = "date::option")]
    pub due_on: Option<Date>,
    /// Where it stands.
    pub status: InvoiceStatus,
    /// Minor units that were paid.
    pub paid: i64,
    /// Minor units that are still to be paid.
    pub balance: i64,
    /// RFC 3339, UTC.
    #[serde(with = "crate::json::rfc3339")]
    pub created_at: OffsetDateTime,
    /// RFC 3339, UTC.
    #[serde(with = "crate::json::rfc3339")]
    pub updated_at: OffsetDateTime,
}

/// What a new invoice is made of. Checked by the handler.
#[derive(Debug)]
pub struct NewInvoice {
    /// Who pays.
    pub patient_id: Uuid,
    /// For which stay of that patient.
    pub hospitalization_id: Option<Uuid>,
    /// Minor units.
    pub amount: i64,
    /// ISO 4217.
    pub currency: String,
    /// For people.
    pub description: Option<String>,
    /// Until when.
    pub due_on: Option<Date>,
}

/// Up to `limit` invoices after `after`, in order of their ids; those of a patient, and of a status, if these are named.
///
/// # Errors
/// [`DbError`].
pub async fn list(
    db: &mut impl Query,
    patient: Option<Uuid>,
    status: Option<InvoiceStatus>,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Invoice>, DbError> {
    let after = after.unwrap_or(Uuid::nil());
    let rows = match status {
        Some(InvoiceStatus::Open) => db.query(LIST_OPEN, &[&after, &limit, &patient]).await?,
        status => {
            let status = status.map(InvoiceStatus::as_str);
            db.query(LIST, &[&after, &limit, &patient, &status]).await?
        }
    };
    Ok(rows.iter().map(invoice).collect())
}

/// The invoice of an id.
///
/// # Errors
/// [`DbError`].
pub async fn get(db: &mut impl Query, id: Uuid) -> Result<Option<Invoice>, DbError> {
    Ok(db.query(GET, &[&id]).await?.first().map(invoice))
}

/// The invoice of an id, with nobody else changing it or paying until the transaction ends.
///
/// # Errors
/// [`DbError`].
pub async fn get_locked(tx: &mut impl Query, id: Uuid) -> Result<Option<Invoice>, DbError> {
    // Two statements: the sum must be read after the lock was had, not before it was waited for.
    if tx.query(LOCK, &[&id]).await?.is_empty() { Ok(None) } else { get(tx, id).await }
}

/// Stores a new invoice; none when there is no such patient, or no such stay of that patient.
///
/// # Errors
/// [`DbError`].
pub async fn insert(tx: &mut impl Query, new: &NewInvoice) -> Result<Option<Invoice>, DbError> {
    let id = Uuid::now_v7();
    let made = tx
        .execute(
            INSERT,
            &[
                &id,
                &new.patient_id,
                &new.hospitalization_id,
                &new.amount,
                &new.currency,
                &new.description,
                &new.due_on,
            ],
        )
        .await?;
    if made == 0 { Ok(None) } else { get(tx, id).await }
}

/// Whether all of an invoice is paid.
///
/// # Errors
/// [`DbError`].
pub async fn set_settled(tx: &mut impl Query, id: Uuid, is_settled: bool) -> Result<(), DbError> {
    tx.execute(SET_SETTLED, &[&id, &is_settled]).await.map(drop)
}

/// Cancels an invoice.
///
/// # Errors
/// [`DbError`].
pub async fn cancel(tx: &mut impl Query, id: Uuid) -> Result<(), DbError> {
    tx.execute(CANCEL, &[&id]).await.map(drop)
}

fn invoice(row: &Row) -> Invoice {
    let (amount, paid): (i64, i64) = (row.get("amount"), row.get("paid"));
    let is = |column| row.get::<_, Option<OffsetDateTime>>(column).is_some();
    let status = match (is("cancelled_at"), is("settled_at")) {
        (true, _) => InvoiceStatus::Cancelled,
        (false, true) => InvoiceStatus::Paid,
        (false, false) => InvoiceStatus::Open,
    };
    Invoice {
        id: row.get("id"),
        patient_id: row.get("patient_id"),
        hospitalization_id: row.get("hospitalization_id"),
        amount,
        currency: row.get("currency"),
        description: row.get("description"),
        due_on: row.get("due_on"),
        status,
        paid,
        balance: if status == InvoiceStatus::Cancelled { 0 } else { amount - paid },
        created_at: row.get("created_at"),
        updated_at: row.get("updated_at"),
    }
}

pub(super) const LIST: &str = include_str!("sql/invoices/list.sql");
pub(super) const LIST_OPEN: &str = include_str!("sql/invoices/list_open.sql");
pub(super) const SET_SETTLED: &str =
    "update invoices set settled_at = case when $2 then now() end, updated_at = now() where id = $1";
pub(super) const GET: &str = include_str!("sql/invoices/get.sql");
pub(super) const INSERT: &str = include_str!("sql/invoices/insert.sql");
pub(super) const LOCK: &str = "select 1 from invoices where id = $1 for update";
pub(super) const CANCEL: &str = "update invoices set cancelled_at = now(), updated_at = now() where id = $1";
