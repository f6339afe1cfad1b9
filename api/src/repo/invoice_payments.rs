//! Payments of invoices: made, and reversed, and never anything else.

use serde::Serialize;
use time::{Date, OffsetDateTime};
use tokio_postgres::Row;
use utoipa::ToSchema;
use uuid::Uuid;

use super::date;
use crate::db::{DbError, Query};

/// A payment of an invoice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct InvoicePayment {
    /// Id, ordered by time of creation.
    pub id: Uuid,
    /// Of which invoice.
    pub invoice_id: Uuid,
    /// Minor units.
    pub amount: i64,
    /// ISO 4217.
    pub currency: String,
    /// On which day.
    #[serde(with = "date")]
    pub paid_on: Date,
    /// For people.
    pub note: Option<String>,
    /// The payment that this one takes back.
    pub reverses: Option<Uuid>,
    /// The payment that takes this one back.
    pub reversed_by: Option<Uuid>,
    /// RFC 3339, UTC.
    #[serde(with = "crate::json::rfc3339")]
    pub created_at: OffsetDateTime,
}

/// What a new payment is made of. Checked by the handler, against the invoice.
#[derive(Debug)]
pub struct NewInvoicePayment {
    /// Of which invoice.
    pub invoice_id: Uuid,
    /// Minor units.
    pub amount: i64,
    /// The invoice's.
    pub currency: String,
    /// On which day.
    pub paid_on: Date,
    /// For people.
    pub note: Option<String>,
    /// What it takes back.
    pub reverses: Option<Uuid>,
    /// Who wrote it down.
    pub created_by: Uuid,
}

/// Up to `limit` payments of an invoice after `after`, in order of their ids.
///
/// # Errors
/// [`DbError`].
pub async fn list(
    db: &mut impl Query,
    invoice: Uuid,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<InvoicePayment>, DbError> {
    let after = after.unwrap_or(Uuid::nil());
    Ok(db.query(LIST, &[&invoice, &after, &limit]).await?.iter().map(payment).collect())
}

/// A payment of an invoice.
///
/// # Errors
/// [`DbError`].
pub async fn get(db: &mut impl Query, invoice: Uuid, id: Uuid) -> Result<Option<InvoicePayment>, DbError> {
    Ok(db.query(GET, &[&invoice, &id]).await?.first().map(payment))
}

/// Stores a new payment.
///
/// # Errors
/// [`DbError`].
pub async fn insert(tx: &mut impl Query, new: &NewInvoicePayment) -> Result<Option<InvoicePayment>, DbError> {
    let id = Uuid::now_v7();
    tx.execute(
        INSERT,
        &[
            &id,
            &new.invoice_id,
            &new.amount,
            &new.currency,
            &new.paid_on,
            &new.note,
            &new.reverses,
            &new.created_by,
        ],
    )
    .await?;
    get(tx, new.invoice_id, id).await
}

fn payment(row: &Row) -> InvoicePayment {
    InvoicePayment {
        id: row.get("id"),
        invoice_id: row.get("invoice_id"),
        amount: row.get("amount"),
        currency: row.get("currency"),
        paid_on: row.get("paid_on"),
        note: row.get("note"),
        reverses: row.get("reverses"),
        reversed_by: row.get("reversed_by"),
        created_at: row.get("created_at"),
    }
}

pub(super) const LIST: &str = include_str!("sql/invoice_payments/list.sql");
pub(super) const GET: &str = include_str!("sql/invoice_payments/get.sql");
pub(super) const INSERT: &str = "insert into invoice_payments (id, invoice_id, amount, currency, paid_on, note, reverses, created_by) values ($1, $2, $3, $4, $5, $6, $7, $8)";
