//! `/api/v1/loans`, of module `loans`.
//!
//! ```text
//! draft ─► approved ─► active ─► repaid
//!                         └────► written_off
//! ```
//!
//! Payments move a loan from `approved` to `active` and on to `repaid`, and their reversals back.

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query as Params};
use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use time::{Date, Month};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{Answer, Asked, Body, List, Page, once};
use crate::auth::{Credentials, Session};
use crate::error::{ApiError, Conflict};
use crate::repo::date;
use crate::repo::loans::{self, Loan, NewLoan, Status, Stranger};

const LIST: &str = "loans";
/// Most that anything may amount to, in minor units.
pub(super) const MOST: i64 = 1_000_000_000_000;

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
    #[serde(default)]
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
    params: Result<Params<Page>, QueryRejection>,
) -> Result<Json<List<Loan>>, ApiError> {
    let (app, tenant) = (session.ctx.app().clone(), session.ctx.detail().tenant.id);
    let wanted = Page::wanted(params, &app.cursors, tenant, LIST)?;
    let found = loans::list(&mut session.db, wanted.after, wanted.rows()).await?;
    Ok(Json(wanted.page(found, |l| l.id)))
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

/// 200 with the loan; 409 `loan_status` unless it is a draft.
pub async fn approve(
    credentials: Credentials,
    asked: Asked,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    step(credentials, asked, id, (Status::Draft, Status::Approved), "loans.approve").await
}

/// 200 with the loan; 409 `loan_status` unless it is active.
pub async fn write_off(
    credentials: Credentials,
    asked: Asked,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    step(credentials, asked, id, (Status::Active, Status::WrittenOff), "loans.write_off").await
}

async fn step(
    credentials: Credentials,
    asked: Asked,
    id: Result<Path<String>, PathRejection>,
    (from, to): (Status, Status),
    action: &'static str,
) -> Result<Response, ApiError> {
    let mut session = credentials.session().await?;
    let id = super::id(id)?;
    once(&mut session, &asked, &Bytes::new(), async move |tx| {
        let loan = loans::get_locked(tx, id).await?.ok_or(ApiError::NotFound)?;
        if loan.status != from {
            return Err(ApiError::Conflict(Conflict::LoanStatus));
        }
        loans::set_status(tx, id, to).await?;
        let after = loans::get(tx, id).await?.ok_or(ApiError::Internal)?;
        tx.record(action, id, &loan, &after).await?;
        Answer::new(StatusCode::OK, &after)
    })
    .await
}

fn check(raw: Create) -> Result<NewLoan, ApiError> {
    if !(1..=MOST).contains(&raw.amount) {
        return Err(ApiError::invalid("amount", "must be from 1 to 1000000000000 minor units"));
    }
    if raw.currency.len() != 3 || !raw.currency.bytes().all(|b| b.is_ascii_uppercase()) {
        return Err(ApiError::invalid("currency", "must be a code of ISO 4217"));
    }
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
        amount: raw.amount,
        currency: raw.currency,
        installments: raw.installments,
        first_due_on: raw.first_due_on,
        purpose: super::optional(raw.purpose).map(|p| super::name("purpose", &p, 500)).transpose()?,
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
        for amount in [1, 7, 100, 99_999, MOST] {
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
