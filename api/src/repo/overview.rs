//! Sums over a whole organisation.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

use crate::db::{DbError, Query};

/// A society at a glance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LoansOverview {
    /// How many there are.
    pub members: i64,
    /// Loans that are paid out and not back.
    pub active_loans: i64,
    /// Minor units that are to come back, by currency.
    pub outstanding: Vec<Sum>,
    /// When this was so. RFC 3339, UTC.
    #[serde(with = "time::serde::rfc3339")]
    pub computed_at: OffsetDateTime,
}

/// A hospital at a glance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PatientsOverview {
    /// How many there are.
    pub patients: i64,
    /// How many are in hospital.
    pub hospitalized: i64,
    /// Minor units that are to be paid, by currency.
    pub outstanding: Vec<Sum>,
    /// When this was so. RFC 3339, UTC.
    #[serde(with = "time::serde::rfc3339")]
    pub computed_at: OffsetDateTime,
}

/// A sum of money.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Sum {
    /// Minor units.
    pub amount: i64,
    /// ISO 4217.
    pub currency: String,
}

/// Computes a society's.
///
/// # Errors
/// [`DbError`].
pub async fn loans(db: &mut impl Query) -> Result<LoansOverview, DbError> {
    let counts = db.query(LOANS_COUNTS, &[]).await?;
    let count = |n: usize| counts.first().map_or(0, |r| r.get(n));
    Ok(LoansOverview {
        members: count(0),
        active_loans: count(1),
        outstanding: sums(db, LOANS_OUTSTANDING).await?,
        computed_at: OffsetDateTime::now_utc(),
    })
}

/// Computes a hospital's.
///
/// # Errors
/// [`DbError`].
pub async fn patients(db: &mut impl Query) -> Result<PatientsOverview, DbError> {
    let counts = db.query(PATIENTS_COUNTS, &[]).await?;
    let count = |n: usize| counts.first().map_or(0, |r| r.get(n));
    Ok(PatientsOverview {
        patients: count(0),
        hospitalized: count(1),
        outstanding: sums(db, PATIENTS_OUTSTANDING).await?,
        computed_at: OffsetDateTime::now_utc(),
    })
}

async fn sums(db: &mut impl Query, sql: &'static str) -> Result<Vec<Sum>, DbError> {
    let sum = |r: &tokio_postgres::Row| Sum { amount: r.get("amount"), currency: r.get("currency") };
    Ok(db.query(sql, &[]).await?.iter().map(sum).collect())
}

pub(super) const LOANS_COUNTS: &str =
    "select (select count(*) from members), (select count(*) from loans where status = 'active')";
pub(super) const PATIENTS_COUNTS: &str = "select (select count(*) from patients), (select count(*) from hospitalizations where discharged_at is null)";
pub(super) const LOANS_OUTSTANDING: &str = include_str!("sql/overview/loans.sql");
pub(super) const PATIENTS_OUTSTANDING: &str = include_str!("sql/overview/patients.sql");
