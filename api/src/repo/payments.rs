//! Payments of loans: made, and reversed, and never anything else.

use serde::Serialize;
use time::{Date, OffsetDateTime};
use tokio_postgres::Row;
use utoipa::ToSchema;
use uuid::Uuid;

use super::date;
use crate::db::{DbError, Query};

/// Which way the money goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// To the borrower.
    Out,
    /// From the borrower.
    In,
}

impl Direction {
    fn as_str(self) -> &'static str {
        match self {
            Self::Out => "out",
            Self::In => "in",
        }
    }
}

/// A payment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Payment {
    /// Id, ordered by time of creation.
    pub id: Uuid,
    /// Of which loan.
    pub loan_id: Uuid,
    /// Which way; a reversal has that of what it reverses.
    pub direction: Direction,
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

/// What a new payment is made of. Checked by the handler, against the loan.
#[derive(Debug)]
pub struct NewPayment {
    /// Of which loan.
    pub loan_id: Uuid,
    /// Which way.
    pub direction: Direction,
    /// Minor units.
    pub amount: i64,
    /// The loan's.
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

/// Up to `limit` payments of a loan after `after`, in order of their ids.
///
/// # Errors
/// [`DbError`].
pub async fn list(
    db: &mut impl Query,
    loan: Uuid,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Payment>, DbError> {
    let after = after.unwrap_or(Uuid::nil());
    Ok(db.query(LIST, &[&loan, &after, &limit]).await?.iter().map(payment).collect())
}

/// A payment of a loan.
///
/// # Errors
/// [`DbError`].
pub async fn get(db: &mut impl Query, loan: Uuid, id: Uuid) -> Result<Option<Payment>, DbError> {
    Ok(db.query(GET, &[&loan, &id]).await?.first().map(payment))
}

/// Stores a new payment.
///
/// # Errors
/// [`DbError`].
pub async fn insert(tx: &mut impl Query, new: &NewPayment) -> Result<Option<Payment>, DbError> {
    let id = Uuid::now_v7();
    tx.execute(
        INSERT,
        &[
            &id,
            &new.loan_id,
            &new.direction.as_str(),
            &new.amount,
            &new.currency,
            &new.paid_on,
            &new.note,
            &new.reverses,
            &new.created_by,
        ],
    )
    .await?;
    get(tx, new.loan_id, id).await
}

fn payment(row: &Row) -> Payment {
    Payment {
        id: row.get("id"),
        loan_id: row.get("loan_id"),
        // The table allows nothing else.
        direction: if row.get::<_, &str>("direction") == "out" { Direction::Out } else { Direction::In },
        amount: row.get("amount"),
        currency: row.get("currency"),
        paid_on: row.get("paid_on"),
        note: row.get("note"),
        reverses: row.get("reverses"),
        reversed_by: row.get("reversed_by"),
        created_at: row.get("created_at"),
    }
}

pub(super) const LIST: &str = include_str!("sql/payments/list.sql");
pub(super) const GET: &str = include_str!("sql/payments/get.sql");
pub(super) const INSERT: &str = include_str!("sql/payments/insert.sql");
