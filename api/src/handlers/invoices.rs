//! `/api/v1/invoices`, of module `patients`.

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query as Params};
use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;
use serde::Deserialize;
use time::{Date, Duration, OffsetDateTime};
use utoipa::ToSchema;
use uuid::Uuid;

use super::etag::Entity;
use super::{Answer, Asked, Body, List, Page, field, once, query};
use crate::auth::{Credentials, Session};
use crate::db::TenantDb;
use crate::error::{ApiError, Conflict};
use crate::json::Json;
use crate::repo::date;
use crate::repo::invoices::{self, Invoice, InvoiceStatus, NewInvoice};
use crate::routes::Parameter;
use crate::settings::{self, PatientsSettings};

/// Request of [`create`].
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = InvoiceCreate)]
pub struct Create {
    patient_id: Uuid,
    #[serde(default)]
    hospitalization_id: Option<Uuid>,
    /// Minor units.
    #[schema(minimum = 1, maximum = 1_000_000_000_000_i64)]
    amount: i64,
    /// ISO 4217; the hospital's, if left out.
    #[serde(default)]
    #[schema(pattern = "^[A-Z]{3}$")]
    currency: Option<String>,
    #[serde(default)]
    #[schema(max_length = 500)]
    description: Option<String>,
    /// So many days from today as the hospital says, if left out.
    #[serde(default, with = "date::option")]
    due_on: Option<Date>,
}

/// Query of [`list`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    limit: Option<u32>,
    cursor: Option<String>,
    patient_id: Option<Uuid>,
    status: Option<InvoiceStatus>,
}

/// What may be asked for.
pub const QUERY: &[Parameter] = &[
    Parameter {
        name: "patient_id",
        about: "Only invoices to that patient.",
        schema: r#"{"type": "string", "format": "uuid"}"#,
        is_required: false,
    },
    Parameter {
        name: "status",
        about: "Only invoices that stand there.",
        schema: r#"{"type": "string", "enum": ["open", "paid", "cancelled"]}"#,
        is_required: false,
    },
];

/// 200 with a page, oldest first.
pub async fn list(
    mut session: Session,
    params: Result<Params<Wanted>, QueryRejection>,
) -> Result<Json<List<Invoice>>, ApiError> {
    let Wanted { limit, cursor, patient_id, status } = query(params)?;
    let read =
        async |db: &mut TenantDb, after, limit| invoices::list(db, patient_id, status, after, limit).await;
    Page::new(limit, cursor).of(&mut session, "invoices", read, |i| i.id).await
}

/// 200 with the invoice; 404 for any id that is not one here.
pub async fn show(
    mut session: Session,
    id: Result<Path<String>, PathRejection>,
) -> Result<Entity<Invoice>, ApiError> {
    let id = super::id(id)?;
    invoices::get(&mut session.db, id).await?.map(Entity).ok_or(ApiError::NotFound)
}

/// 201 with an open invoice; 422 for what is no sum, no currency, no patient, or no stay of that patient.
pub async fn create(
    credentials: Credentials,
    asked: Asked,
    body: Body<Create>,
) -> Result<Response, ApiError> {
    let mut session = credentials.session().await?;
    let raw = body.value;
    let amount = field::amount("amount", raw.amount)?;
    let currency = raw.currency.map(|c| field::currency("currency", c)).transpose()?;
    let description = field::optional_name("description", raw.description, 500)?;
    if raw.due_on.is_some_and(|d| !(1900..=9000).contains(&d.year())) {
        return Err(ApiError::invalid("due_on", "must be a day from 1900 to 9000"));
    }
    once(&mut session, &asked, &body.raw, async move |tx| {
        let rules: PatientsSettings = settings::of(tx).await?;
        let due = || {
            let today = OffsetDateTime::now_utc().date();
            today.checked_add(Duration::days(rules.invoice_due_days.into()))
        };
        let new = NewInvoice {
            patient_id: raw.patient_id,
            hospitalization_id: raw.hospitalization_id,
            amount,
            currency: currency.unwrap_or(rules.currency),
            description,
            due_on: raw.due_on.or_else(due),
        };
        let field = if new.hospitalization_id.is_some() { "hospitalization_id" } else { "patient_id" };
        let made = invoices::insert(tx, &new)
            .await?
            .ok_or_else(|| ApiError::invalid(field, "must be a patient, and a stay of that patient"))?;
        tx.record("invoices.create", made.id, &(), &made).await?;
        Answer::new(StatusCode::CREATED, &made)
    })
    .await
}

/// 200 with the invoice; 409 `invoice_status` once something is paid, or when it is cancelled already.
pub async fn cancel(
    credentials: Credentials,
    asked: Asked,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let mut session = credentials.session().await?;
    let id = super::id(id)?;
    once(&mut session, &asked, &Bytes::new(), async move |tx| {
        let before = invoices::get_locked(tx, id).await?.ok_or(ApiError::NotFound)?;
        tx.matches(&before)?;
        if before.status != InvoiceStatus::Open || before.paid > 0 {
            return Err(ApiError::Conflict(Conflict::InvoiceStatus));
        }
        invoices::cancel(tx, id).await?;
        let after = invoices::get(tx, id).await?.ok_or(ApiError::Internal)?;
        tx.record("invoices.cancel", id, &before, &after).await?;
        Answer::new(StatusCode::OK, &after)
    })
    .await
}
