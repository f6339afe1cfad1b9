//! What there is in an organisation's database, in numbers.

use std::collections::BTreeMap;

use time::OffsetDateTime;
use uuid::Uuid;

use crate::db::{DbError, Query};

/// What every organisation has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CoreFigures {
    /// Users that may log in.
    pub users: i64,
    /// Bytes of files.
    pub storage_bytes: i64,
    /// When somebody did something last.
    pub last_activity_at: Option<OffsetDateTime>,
}

/// What a module has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModuleFigures {
    /// Members of a society, or patients of a hospital.
    pub members: i64,
    /// Loans that are paid out and not back.
    pub active_loans: Option<i64>,
    /// Payments since the time that was asked for.
    pub transactions: i64,
}

/// # Errors
/// [`DbError`].
pub async fn core(db: &mut impl Query) -> Result<CoreFigures, DbError> {
    let rows = db.query(CORE, &[]).await?;
    Ok(rows.first().map_or(CoreFigures { users: 0, storage_bytes: 0, last_activity_at: None }, |r| {
        CoreFigures { users: r.get(0), storage_bytes: r.get(1), last_activity_at: r.get(2) }
    }))
}

/// Of a society. Payments count from `since` on: the first id of that moment ([`first_id`]).
///
/// # Errors
/// [`DbError`].
pub async fn loans(db: &mut impl Query, since: Uuid) -> Result<ModuleFigures, DbError> {
    let rows = db.query(LOANS, &[&since]).await?;
    Ok(rows.first().map_or_else(ModuleFigures::default, |r| ModuleFigures {
        members: r.get(0),
        active_loans: Some(r.get(1)),
        transactions: r.get(2),
    }))
}

/// Of a hospital, as [`loans`].
///
/// # Errors
/// [`DbError`].
pub async fn patients(db: &mut impl Query, since: Uuid) -> Result<ModuleFigures, DbError> {
    let rows = db.query(PATIENTS, &[&since]).await?;
    Ok(rows.first().map_or_else(ModuleFigures::default, |r| ModuleFigures {
        members: r.get(0),
        active_loans: None,
        transactions: r.get(1),
    }))
}

/// Version of each set of migrations. Empty where the database does not say yet.
///
/// # Errors
/// [`DbError`].
pub async fn schema(db: &mut impl Query) -> Result<BTreeMap<String, i32>, DbError> {
    match db.query(SCHEMA, &[]).await {
        Ok(rows) => Ok(rows.iter().map(|r| (r.get(0), r.get(1))).collect()),
        // Undefined function (PostgreSQL, appendix A): a schema from before there was one.
        Err(e) if e.as_db_error().is_some_and(|d| d.code().code() == "42883") => Ok(BTreeMap::new()),
        Err(e) => Err(e),
    }
}

/// The least id (UUID version 7, RFC 9562 section 5.7) that is made at that time or later: what is ordered by id is ordered
/// by time.
pub fn first_id(at: OffsetDateTime) -> Uuid {
    let milliseconds = u64::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap_or(0);
    uuid::Builder::from_unix_timestamp_millis(milliseconds, &[0; 10]).into_uuid()
}

pub(super) const CORE: &str = include_str!("sql/figures/core.sql");
pub(super) const LOANS: &str = include_str!("sql/figures/loans.sql");
pub(super) const PATIENTS: &str = include_str!("sql/figures/patients.sql");
pub(super) const SCHEMA: &str = "select set_name, version from schema_versions()";
