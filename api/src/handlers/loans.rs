//! `/api/v1/loans`, of module `loans`.
//!
//! ```text
//! draft ─► approved ─► active ─► repaid
//!                         └────► written_off
//! ```
//!
//! Payments move a loan from `approved` to `active` and on to `repaid`, and their reversals back.

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query as Params};
use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use time::{Date, Month};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{Answer, Asked, Body, List, Page, Work, field, once, query};
use crate::auth::{Credentials, Session};
use crate::db::TenantDb;
use crate::error::{ApiError, Conflict};
use crate::json::Json;
use crate::repo::date;
use crate::repo::loans::{self, Loan, NewLoan, Status, Stranger};
use crate::routes::Parameter;
use crate::settings::{self, LoansSettings};

/// Query of [`list`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    limit: Option<u32>,
    cursor: Option<String>,
    member_id: Option<Uuid>,
    status: Option<Status>,
}

/// What may be asked for.
pub const QUERY: &[Parameter] = &[
    Parameter {
        name: "member_id",
        about: "Only loans to that member.",
        schema: r#"{"type": "string", "format": "uuid"}"#,
        is_required: false,
    },
    Parameter {
        name: "status",
        about: "Only loans that stand there.",
        schema: r#"{"type": "string", "enum": ["draft", "approved", "active", "repaid", "written_off"]}"#,
        is_required: false,
    },
];

/// Request of [`create`].
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = LoanCreate)]
pub struct Create {
    member_id: Uuid,
    /// Minor units.
    #[schema(minimum = 1, maximum = 1_000_000_000_000_i64)]
    amount: i64,
    /// ISO 4217.
    #[schema(pattern = "^[A-Z]{3}$")]
    currency: String,
    #[schema(minimum = 1, maximum = 240)]
    installments: i32,
    #[serde(default, with = "date::option")]
    first_due_on: Option<Date>,
    #[serde(default)]
    purpose: Option<String>,
    /// Each once, and not the borrower.
    #[serde(default)]
    #[schema(max_items = 20)]
    guarantor_ids: Vec<Uuid>,
}

/// Response of [`show`]: the loan, and what is due when.
#[derive(Serialize, ToSchema)]
#[schema(as = LoanShown)]
pub struct Shown {
    #[serde(flatten)]
    loan: Loan,
    schedule: Vec<Installment>,
}

/// One part of a loan.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Installment {
    /// From 1.
    number: i32,
    /// Minor units.
    amount: i64,
    /// None while no first day is agreed.
    #[serde(with = "date::option")]
    due_on: Option<Date>,
}

/// 200 with a page, oldest first.
pub async fn list(
    mut session: Session,
    params: Result<Params<Wanted>, QueryRejection>,
) -> Result<Json<List<Loan>>, ApiError> {
    let Wanted { limit, cursor, member_id, status } = query(params)?;
    let read = async |db: &mut TenantDb, after, limit| loans::list(db, member_id, status, after, limit).await;
    Page::new(limit, cursor).of(&mut session, "loans", read, |l| l.id).await
}

/// 200 with the loan and its schedule; 404 for any id that is not one here.
pub async fn show(
    mut session: Session,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Shown>, ApiError> {
    let id = super::id(id)?;
    let loan = loans::get(&mut session.db, id).await?.ok_or(ApiError::NotFound)?;
    let schedule = schedule(loan.amount, loan.installments, loan.first_due_on);
    Ok(Json(Shown { loan, schedule }))
}

/// 201 with a draft; 422 for what is no sum, no currency, or no member.
pub async fn create(
    credentials: Credentials,
    asked: Asked,
    body: Body<Create>,
) -> Result<Response, ApiError> {
    let mut session = credentials.session().await?;
    let new = check(body.value)?;
    once(&mut session, &asked, &body.raw, async move |tx| {
        let rules: LoansSettings = settings::of(tx).await?;
        if rules.currency.as_ref().is_some_and(|c| *c != new.currency) {
            return Err(ApiError::invalid("currency", "must be the organisation's"));
        }
        if let Some(most) = rules.max_amount.filter(|most| new.amount > *most) {
            return Err(ApiError::invalid("amount", &format!("must be at most {most}")));
        }
        if new.installments > rules.max_installments {
            let rule = format!("must be at most {}", rules.max_installments);
            return Err(ApiError::invalid("installments", &rule));
        }
        let id = loans::insert(tx, &new).await?.map_err(|stranger| match stranger {
            Stranger::Borrower => ApiError::invalid("member_id", "must be a member"),
            Stranger::Guarantor => ApiError::invalid("guarantor_ids", "must be members"),
        })?;
        let made = loans::get(tx, id).await?.ok_or(ApiError::Internal)?;
        tx.record("loans.create", id, &(), &made).await?;
        Answer::new(StatusCode::CREATED, &made)
    })
    .await
}

/// 200 with the loan; 409 `loan_status` unless it is a draft, `too_few_guarantors`, `loan_rules` or `too_many_loans` where
/// the organisation's rules do not allow it.
pub async fn approve(
    credentials: Credentials,
    asked: Asked,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    step(credentials, asked, id, (Status::Draft, Status::Approved), "loans.approve", approvable).await
}

/// 200 with the loan; 409 `loan_status` unless it is active.
pub async fn write_off(
    credentials: Credentials,
    asked: Asked,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    step(credentials, asked, id, (Status::Active, Status::WrittenOff), "loans.write_off", always).await
}

async fn step(
    credentials: Credentials,
    asked: Asked,
    id: Result<Path<String>, PathRejection>,
    (from, to): (Status, Status),
    action: &'static str,
    may: impl AsyncFnOnce(&mut Work<'_, '_>, &Loan) -> Result<(), ApiError>,
) -> Result<Response, ApiError> {
    let mut session = credentials.session().await?;
    let id = super::id(id)?;
    once(&mut session, &asked, &Bytes::new(), async move |tx| {
        let loan = loans::get_locked(tx, id).await?.ok_or(ApiError::NotFound)?;
        if loan.status != from {
            return Err(ApiError::Conflict(Conflict::LoanStatus));
        }
        may(tx, &loan).await?;
        loans::set_status(tx, id, to).await?;
        let after = loans::get(tx, id).await?.ok_or(ApiError::Internal)?;
        tx.record(action, id, &loan, &after).await?;
        Answer::new(StatusCode::OK, &after)
    })
    .await
}

async fn always(_: &mut Work<'_, '_>, _: &Loan) -> Result<(), ApiError> {
    Ok(())
}

/// Refuses loans that the organisation's rules do not allow.
async fn approvable(tx: &mut Work<'_, '_>, loan: &Loan) -> Result<(), ApiError> {
    let rules: LoansSettings = settings::of(tx).await?;
    if (loan.guarantor_ids.len() as i64) < i64::from(rules.min_guarantors) {
        return Err(ApiError::Conflict(Conflict::TooFewGuarantors));
    }
    if rules.max_amount.is_some_and(|most| loan.amount > most) || loan.installments > rules.max_installments {
        return Err(ApiError::Conflict(Conflict::LoanRules));
    }
    if let Some(most) = rules.max_open_loans
        && loans::count_open(tx, loan.member_id).await? >= i64::from(most)
    {
        return Err(ApiError::Conflict(Conflict::TooManyLoans));
    }
    Ok(())
}

fn check(raw: Create) -> Result<NewLoan, ApiError> {
    let amount = field::amount("amount", raw.amount)?;
    let currency = field::currency("currency", raw.currency)?;
    if !(1..=240).contains(&raw.installments) || i64::from(raw.installments) > raw.amount {
        return Err(ApiError::invalid(
            "installments",
            "must be from 1 to 240, and no more than there are minor units",
        ));
    }
    if raw.first_due_on.is_some_and(|d| !(1900..=9000).contains(&d.year())) {
        return Err(ApiError::invalid("first_due_on", "must be a day from 1900 to 9000"));
    }
    let mut guarantor_ids = raw.guarantor_ids;
    guarantor_ids.sort();
    let named = guarantor_ids.len();
    guarantor_ids.dedup();
    if named > 20 || named != guarantor_ids.len() || guarantor_ids.contains(&raw.member_id) {
        return Err(ApiError::invalid(
            "guarantor_ids",
            "must be at most 20 others than the borrower, each once",
        ));
    }
    Ok(NewLoan {
        member_id: raw.member_id,
        guarantor_ids,
        amount,
        currency,
        installments: raw.installments,
        first_due_on: raw.first_due_on,
        purpose: field::optional_name("purpose", raw.purpose, 500)?,
    })
}

/// Equal parts a month apart, the odd minor units with the first ones; in a month that is too short, on its last day.
fn schedule(amount: i64, installments: i32, first: Option<Date>) -> Vec<Installment> {
    let (each, odd) = (amount / i64::from(installments), amount % i64::from(installments));
    (0..installments)
        .map(|n| Installment {
            number: n + 1,
            amount: each + i64::from(i64::from(n) < odd),
            due_on: first.and_then(|day| months_after(day, n)),
        })
        .collect()
}

fn months_after(day: Date, months: i32) -> Option<Date> {
    let from_zero = day.year() * 12 + i32::from(u8::from(day.month())) - 1 + months;
    let (year, month) = (from_zero.div_euclid(12), from_zero.rem_euclid(12) + 1);
    let month = Month::try_from(u8::try_from(month).ok()?).ok()?;
    Date::from_calendar_date(year, month, day.day().min(month.length(year))).ok()
}

#[cfg(test)]
mod tests {
    use time::macros::date;

    use super::*;

    #[test]
    fn schedules_add_up() {
        let parts = schedule(1000, 3, Some(date!(2026 - 01 - 31)));
        let expected =
            [(334, date!(2026 - 01 - 31)), (333, date!(2026 - 02 - 28)), (333, date!(2026 - 03 - 31))];
        let seen: Vec<_> = parts.iter().map(|p| (p.amount, p.due_on.expect("day"))).collect();
        assert_eq!(seen, expected);
        for amount in [1, 7, 100, 99_999, field::MOST] {
            for installments in [1, 2, 7, 240] {
                let parts = schedule(amount, installments, None);
                assert_eq!(parts.iter().map(|p| p.amount).sum::<i64>(), amount);
                assert_eq!(parts.len(), installments as usize);
            }
        }
        assert_eq!(months_after(date!(2024 - 12 - 31), 2), Some(date!(2025 - 02 - 28)));
        assert_eq!(months_after(date!(2023 - 12 - 31), 2), Some(date!(2024 - 02 - 29)));
    }

    #[test]
    fn payments_decide_where_it_stands() {
        let at = |out, back| Status::after_payments(100, out, back);
        assert_eq!([at(0, 0), at(40, 0), at(40, 40)], [Status::Approved, Status::Active, Status::Active]);
        assert_eq!([at(100, 99), at(100, 100)], [Status::Active, Status::Repaid]);
    }
}
