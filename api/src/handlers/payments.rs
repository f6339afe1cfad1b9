//! `/api/v1/loans/{id}/payments`, of module `loans`.

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query as Params};
use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;
use serde::Deserialize;
use time::{Date, OffsetDateTime};
use utoipa::ToSchema;

use super::{Answer, Asked, Body, List, Page, Work, field, ids, once};
use crate::auth::{Credentials, Session};
use crate::db::TenantDb;
use crate::error::{ApiError, Conflict};
use crate::json::Json;
use crate::repo::date;
use crate::repo::loans::{self, Loan, Status};
use crate::repo::payments::{self, Direction, NewPayment, Payment};

/// Request of [`create`].
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = PaymentCreate)]
pub struct Create {
    direction: Direction,
    /// Minor units.
    #[schema(minimum = 1, maximum = 1_000_000_000_000_i64)]
    amount: i64,
    /// The loan's; may be left out.
    #[serde(default)]
    currency: Option<String>,
    /// Today, if left out.
    #[serde(default, with = "date::option")]
    paid_on: Option<Date>,
    #[serde(default)]
    note: Option<String>,
}

/// 200 with a page, oldest first; 404 for any loan that is not one here.
pub async fn list(
    mut session: Session,
    id: Result<Path<String>, PathRejection>,
    params: Result<Params<Page>, QueryRejection>,
) -> Result<Json<List<Payment>>, ApiError> {
    let loan = super::id(id)?;
    let page = Page::read(params)?;
    loans::get(&mut session.db, loan).await?.ok_or(ApiError::NotFound)?;
    let read = async |db: &mut TenantDb, after, limit| payments::list(db, loan, after, limit).await;
    page.of(&mut session, "payments", read, |p| p.id).await
}

/// 201 with the payment. Out: of an approved or active loan, up to its amount. In: of an active loan, up to its balance.
/// 409 `loan_status` otherwise, 422 for more than that.
pub async fn create(
    credentials: Credentials,
    asked: Asked,
    id: Result<Path<String>, PathRejection>,
    body: Body<Create>,
) -> Result<Response, ApiError> {
    let mut session = credentials.session().await?;
    let loan_id = super::id(id)?;
    let Create { direction, amount, currency, paid_on, note } = body.value;
    let amount = field::amount("amount", amount)?;
    let paid_on = field::paid_on("paid_on", paid_on)?;
    let note = field::optional_name("note", note, 500)?;
    let created_by = session.user.id;
    once(&mut session, &asked, &body.raw, async move |tx| {
        let loan = loans::get_locked(tx, loan_id).await?.ok_or(ApiError::NotFound)?;
        if currency.is_some_and(|c| c != loan.currency) {
            return Err(ApiError::invalid("currency", "must be the loan's"));
        }
        let room = match (direction, loan.status) {
            (Direction::Out, Status::Approved | Status::Active) => loan.amount - loan.paid_out,
            (Direction::In, Status::Active) => loan.balance,
            _ => return Err(ApiError::Conflict(Conflict::LoanStatus)),
        };
        if amount > room {
            return Err(ApiError::invalid("amount", &format!("must be at most {room}")));
        }
        let currency = loan.currency.clone();
        let new =
            NewPayment { loan_id, direction, amount, currency, paid_on, note, reverses: None, created_by };
        paid(tx, &loan, &new).await
    })
    .await
}

/// 201 with the payment that takes another one back. 409 `payment_reversed` for one that is taken back already or takes
/// back itself, `loan_status` for a loan that is written off, `payment_needed` when more would have come back than went
/// out.
pub async fn reverse(
    credentials: Credentials,
    asked: Asked,
    path: Result<Path<(String, String)>, PathRejection>,
) -> Result<Response, ApiError> {
    let mut session = credentials.session().await?;
    let (loan_id, payment_id) = ids(path)?;
    let created_by = session.user.id;
    once(&mut session, &asked, &Bytes::new(), async move |tx| {
        let loan = loans::get_locked(tx, loan_id).await?.ok_or(ApiError::NotFound)?;
        let payment = payments::get(tx, loan_id, payment_id).await?.ok_or(ApiError::NotFound)?;
        if payment.reverses.is_some() || payment.reversed_by.is_some() {
            return Err(ApiError::Conflict(Conflict::PaymentReversed));
        }
        if loan.status == Status::WrittenOff {
            return Err(ApiError::Conflict(Conflict::LoanStatus));
        }
        if payment.direction == Direction::Out && loan.balance < payment.amount {
            return Err(ApiError::Conflict(Conflict::PaymentNeeded));
        }
        let new = NewPayment {
            loan_id,
            direction: payment.direction,
            amount: payment.amount,
            currency: payment.currency,
            paid_on: OffsetDateTime::now_utc().date(),
            note: None,
            reverses: Some(payment_id),
            created_by,
        };
        paid(tx, &loan, &new).await
    })
    .await
}

/// Writes a payment down, and where its loan stands after it.
async fn paid(tx: &mut Work<'_, '_>, loan: &Loan, new: &NewPayment) -> Result<Answer, ApiError> {
    let made = payments::insert(tx, new).await?.ok_or(ApiError::Internal)?;
    let after = loans::get(tx, loan.id).await?.ok_or(ApiError::Internal)?;
    let status = Status::after_payments(after.amount, after.paid_out, after.repaid);
    if status != after.status {
        loans::set_status(tx, loan.id, status).await?;
    }
    let action = if new.reverses.is_some() { "payments.reverse" } else { "payments.create" };
    tx.record(action, made.id, &(), &made).await?;
    Answer::new(StatusCode::CREATED, &made)
}
