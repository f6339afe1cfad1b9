//! Loans without interest.
//!
//! `0 <= repaid <= paid out <= amount` holds after every transaction: whoever pays or reverses holds the loan's lock and
//! reads the sums after it.

use serde::Serialize;
use time::{Date, OffsetDateTime};
use tokio_postgres::Row;
use utoipa::ToSchema;
use uuid::Uuid;

use super::date;
use crate::db::{DbError, Query};

/// Where a loan stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = LoanStatus)]
pub enum Status {
    /// Asked for.
    Draft,
    /// Agreed to; nothing is paid yet.
    Approved,
    /// Paid out, in part at least, and not all of it back.
    Active,
    /// All of it is back.
    Repaid,
    /// What is missing is given up.
    WrittenOff,
}

impl Status {
    /// As it is stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Draft => "draft",
            Self::Approved => "approved",
            Self::Active => "active",
            Self::Repaid => "repaid",
            Self::WrittenOff => "written_off",
        }
    }

    fn parse(text: &str) -> Self {
        match text {
            "approved" => Self::Approved,
            "active" => Self::Active,
            "repaid" => Self::Repaid,
            "written_off" => Self::WrittenOff,
            // The table allows nothing else.
            _ => Self::Draft,
        }
    }

    /// Where a loan stands that was to be paid out or is, by what was paid.
    pub fn after_payments(amount: i64, paid_out: i64, repaid: i64) -> Self {
        match paid_out {
            0 => Self::Approved,
            out if out == amount && repaid == amount => Self::Repaid,
            _ => Self::Active,
        }
    }
}

/// A loan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Loan {
    /// Id, ordered by time of creation.
    pub id: Uuid,
    /// Who borrows.
    pub member_id: Uuid,
    /// Who answers for it.
    pub guarantor_ids: Vec<Uuid>,
    /// Minor units.
    pub amount: i64,
    /// ISO 4217.
    pub currency: String,
    /// In how many parts it comes back, a month apart.
    pub installments: i32,
    /// When the first is due.
    #[serde(with = "date::option")]
    pub first_due_on: Option<Date>,
    /// What it is for.
    pub purpose: Option<String>,
    /// Where it stands.
    pub status: Status,
    /// Minor units that went to the borrower.
    pub paid_out: i64,
    /// Minor units that came back.
    pub repaid: i64,
    /// Minor units that are still to come back.
    pub balance: i64,
    /// RFC 3339, UTC.
    #[serde(with = "crate::json::rfc3339")]
    pub created_at: OffsetDateTime,
    /// RFC 3339, UTC.
    #[serde(with = "crate::json::rfc3339")]
    pub updated_at: OffsetDateTime,
}

/// What a new loan is made of. Checked by the handler.
#[derive(Debug)]
pub struct NewLoan {
    /// Who borrows.
    pub member_id: Uuid,
    /// Who answers for it: others than the borrower, each once.
    pub guarantor_ids: Vec<Uuid>,
    /// Minor units.
    pub amount: i64,
    /// ISO 4217.
    pub currency: String,
    /// Parts.
    pub installments: i32,
    /// When the first is due.
    pub first_due_on: Option<Date>,
    /// What it is for.
    pub purpose: Option<String>,
}

/// Who of a new loan is no member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stranger {
    /// Who borrows.
    Borrower,
    /// Somebody who is to answer for it.
    Guarantor,
}

/// Up to `limit` loans after `after`, in order of their ids; those of a member, and of a status, if these are named.
///
/// # Errors
/// [`DbError`].
pub async fn list(
    db: &mut impl Query,
    member: Option<Uuid>,
    status: Option<Status>,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Loan>, DbError> {
    let after = after.unwrap_or(Uuid::nil());
    let status = status.map(Status::as_str);
    Ok(db.query(LIST, &[&after, &limit, &member, &status]).await?.iter().map(loan).collect())
}

/// The loan of an id.
///
/// # Errors
/// [`DbError`].
pub async fn get(db: &mut impl Query, id: Uuid) -> Result<Option<Loan>, DbError> {
    Ok(db.query(GET, &[&id]).await?.first().map(loan))
}

/// The loan of an id, with nobody else changing it or paying until the transaction ends.
///
/// # Errors
/// [`DbError`].
pub async fn get_locked(tx: &mut impl Query, id: Uuid) -> Result<Option<Loan>, DbError> {
    // Two statements: the sums must be read after the lock was had, not before it was waited for.
    if tx.query(LOCK, &[&id]).await?.is_empty() { Ok(None) } else { get(tx, id).await }
}

/// Stores a new loan.
///
/// # Errors
/// [`DbError`]; within it, who is no member.
pub async fn insert(tx: &mut impl Query, new: &NewLoan) -> Result<Result<Uuid, Stranger>, DbError> {
    let id = Uuid::now_v7();
    let made = tx
        .execute(
            INSERT,
            &[
                &id,
                &new.member_id,
                &new.amount,
                &new.currency,
                &new.installments,
                &new.first_due_on,
                &new.purpose,
            ],
        )
        .await?;
    if made == 0 {
        return Ok(Err(Stranger::Borrower));
    }
    let guarantors = tx.execute(INSERT_GUARANTORS, &[&id, &new.guarantor_ids]).await?;
    if guarantors == new.guarantor_ids.len() as u64 { Ok(Ok(id)) } else { Ok(Err(Stranger::Guarantor)) }
}

/// How many loans of a member are approved or active, with nobody else approving one until the transaction ends.
///
/// # Errors
/// [`DbError`].
pub async fn count_open(tx: &mut impl Query, member: Uuid) -> Result<i64, DbError> {
    tx.query(LOCK_MEMBER, &[&member]).await?;
    Ok(tx.query(COUNT_OPEN, &[&member]).await?.first().map_or(0, |r| r.get(0)))
}

/// Moves a loan to another status.
///
/// # Errors
/// [`DbError`].
pub async fn set_status(tx: &mut impl Query, id: Uuid, status: Status) -> Result<(), DbError> {
    tx.execute(SET_STATUS, &[&id, &status.as_str()]).await.map(drop)
}

fn loan(row: &Row) -> Loan {
    let (paid_out, repaid): (i64, i64) = (row.get("paid_out"), row.get("repaid"));
    Loan {
        id: row.get("id"),
        member_id: row.get("member_id"),
        guarantor_ids: row.get("guarantor_ids"),
        amount: row.get("amount"),
        currency: row.get("currency"),
        installments: row.get("installments"),
        first_due_on: row.get("first_due_on"),
        purpose: row.get("purpose"),
        status: Status::parse(row.get("status")),
        paid_out,
        repaid,
        balance: paid_out - repaid,
        created_at: row.get("created_at"),
        updated_at: row.get("updated_at"),
    }
}

pub(super) const LOCK_MEMBER: &str = "select 1 from members where id = $1 for no key update";
pub(super) const COUNT_OPEN: &str =
    "select count(*) from loans where member_id = $1 and status in ('approved', 'active')";
pub(super) const LIST: &str = include_str!("sql/loans/list.sql");
pub(super) const GET: &str = include_str!("sql/loans/get.sql");
pub(super) const INSERT: &str = include_str!("sql/loans/insert.sql");
pub(super) const INSERT_GUARANTORS: &str = include_str!("sql/loans/insert_guarantors.sql");
pub(super) const LOCK: &str = "select 1 from loans where id = $1 for update";
pub(super) const SET_STATUS: &str = "update loans set status = $2, updated_at = now() where id = $1";
