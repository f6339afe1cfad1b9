//! `/api/v1/invoices/{id}/payments`, of module `patients`.

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query as Params};
use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;
use serde::Deserialize;
use time::{Date, OffsetDateTime};
use utoipa::ToSchema;

use super::{Answer, Asked, Body, List, Page, field, ids, once};
use crate::auth::{Credentials, Session};
use crate::db::TenantDb;
use crate::error::{ApiError, Conflict};
use crate::json::Json;
use crate::repo::date;
use crate::repo::invoice_payments::{self, InvoicePayment, NewInvoicePayment};
use crate::repo::invoices::{self, InvoiceStatus};

/// Request of [`create`].
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = InvoicePaymentCreate)]
pub struct Create {
    /// Minor units.
    #[schema(minimum = 1, maximum = 1_000_000_000_000_i64)]
    amount: i64,
    /// The invoice's; may be left out.
    #[serde(default)]
    #[schema(pattern = "^[A-Z]{3}$")]
    currency: Option<String>,
    /// Today, if left out.
    #[serde(default, with = "date::option")]
    paid_on: Option<Date>,
    #[serde(default)]
    #[schema(max_length = 500)]
    note: Option<String>,
}

/// 200 with a page, oldest first; 404 for any invoice that is not one here.
pub async fn list(
    mut session: Session,
    id: Result<Path<String>, PathRejection>,
    params: Result<Params<Page>, QueryRejection>,
) -> Result<Json<List<InvoicePayment>>, ApiError> {
    let invoice = super::id(id)?;
    let page = Page::read(params)?;
    invoices::get(&mut session.db, invoice).await?.ok_or(ApiError::NotFound)?;
    let read =
        async |db: &mut TenantDb, after, limit| invoice_payments::list(db, invoice, after, limit).await;
    page.of(&mut session, "invoice-payments", read, |p| p.id).await
}

/// 201 with the payment, up to what is still to be paid: 422 for more, 409 `invoice_status` unless the invoice is open.
pub async fn create(
    credentials: Credentials,
    asked: Asked,
    id: Result<Path<String>, PathRejection>,
    body: Body<Create>,
) -> Result<Response, ApiError> {
    let mut session = credentials.session().await?;
    let invoice_id = super::id(id)?;
    let Create { amount, currency, paid_on, note } = body.value;
    let amount = field::amount("amount", amount)?;
    let paid_on = field::paid_on("paid_on", paid_on)?;
    let note = field::optional_name("note", note, 500)?;
    let created_by = session.user.id;
    once(&mut session, &asked, &body.raw, async move |tx| {
        let invoice = invoices::get_locked(tx, invoice_id).await?.ok_or(ApiError::NotFound)?;
        if currency.is_some_and(|c| c != invoice.currency) {
            return Err(ApiError::invalid("currency", "must be the invoice's"));
        }
        if invoice.status != InvoiceStatus::Open {
            return Err(ApiError::Conflict(Conflict::InvoiceStatus));
        }
        if amount > invoice.balance {
            return Err(ApiError::invalid("amount", &format!("must be at most {}", invoice.balance)));
        }
        let currency = invoice.currency;
        let new =
            NewInvoicePayment { invoice_id, amount, currency, paid_on, note, reverses: None, created_by };
        let made = invoice_payments::insert(tx, &new).await?.ok_or(ApiError::Internal)?;
        if amount == invoice.balance {
            invoices::set_settled(tx, invoice_id, true).await?;
        }
        tx.record("invoice_payments.create", made.id, &(), &made).await?;
        Answer::new(StatusCode::CREATED, &made)
    })
    .await
}

/// 201 with the payment that takes another one back. 409 `payment_reversed` for one that is taken back already or takes
/// back itself.
pub async fn reverse(
    credentials: Credentials,
    asked: Asked,
    path: Result<Path<(String, String)>, PathRejection>,
) -> Result<Response, ApiError> {
    let mut session = credentials.session().await?;
    let (invoice_id, payment_id) = ids(path)?;
    let created_by = session.user.id;
    once(&mut session, &asked, &Bytes::new(), async move |tx| {
        let invoice = invoices::get_locked(tx, invoice_id).await?.ok_or(ApiError::NotFound)?;
        let payment = invoice_payments::get(tx, invoice_id, payment_id).await?.ok_or(ApiError::NotFound)?;
        if payment.reverses.is_some() || payment.reversed_by.is_some() {
            return Err(ApiError::Conflict(Conflict::PaymentReversed));
        }
        let new = NewInvoicePayment {
            invoice_id,
            amount: payment.amount,
            currency: payment.currency,
            paid_on: OffsetDateTime::now_utc().date(),
            note: None,
            reverses: Some(payment_id),
            created_by,
        };
        let made = invoice_payments::insert(tx, &new).await?.ok_or(ApiError::Internal)?;
        if invoice.status == InvoiceStatus::Paid {
            invoices::set_settled(tx, invoice_id, false).await?;
        }
        tx.record("invoice_payments.reverse", made.id, &(), &made).await?;
        Answer::new(StatusCode::CREATED, &made)
    })
    .await
}
