//! `/api/v1/patients`, of module `patients`.

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query as Params};
use axum::response::Response;
use http::StatusCode;
use serde::Deserialize;
use time::{Date, OffsetDateTime};
use utoipa::ToSchema;

use super::{Answer, Asked, Body, List, Page, once};
use crate::auth::{Credentials, Session};
use crate::error::ApiError;
use crate::repo::date;
use crate::repo::patients::{self, NewPatient, Patient};

const LIST: &str = "patients";

/// Request of [`create`].
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = PatientCreate)]
pub struct Create {
    #[schema(min_length = 1, max_length = 100)]
    first_name: String,
    #[schema(min_length = 1, max_length = 100)]
    last_name: String,
    /// `YYYY-MM-DD`.
    #[serde(with = "date")]
    birth_date: Date,
    #[serde(default)]
    phone: Option<String>,
}

/// 200 with a page, oldest first.
pub async fn list(
    mut session: Session,
    params: Result<Params<Page>, QueryRejection>,
) -> Result<Json<List<Patient>>, ApiError> {
    let (app, tenant) = (session.ctx.app().clone(), session.ctx.detail().tenant.id);
    let wanted = Page::wanted(params, &app.cursors, tenant, LIST)?;
    let found = patients::list(&mut session.db, wanted.after, wanted.rows()).await?;
    Ok(Json(wanted.page(found, |p| p.id)))
}

/// 200 with the patient; 404 for any id that is not one here.
pub async fn show(
    mut session: Session,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Patient>, ApiError> {
    let id = super::id(id)?;
    patients::get(&mut session.db, id).await?.map(Json).ok_or(ApiError::NotFound)
}

/// 201 with the patient.
pub async fn create(
    credentials: Credentials,
    asked: Asked,
    body: Body<Create>,
) -> Result<Response, ApiError> {
    let mut session = credentials.session().await?;
    let Create { first_name, last_name, birth_date, phone } = body.value;
    let tomorrow = OffsetDateTime::now_utc().date().next_day();
    if birth_date.year() < 1850 || tomorrow.is_some_and(|t| birth_date > t) {
        return Err(ApiError::invalid("birth_date", "must be a day from 1850 until today"));
    }
    let new = NewPatient {
        first_name: super::name("first_name", &first_name, 100)?,
        last_name: super::name("last_name", &last_name, 100)?,
        birth_date,
        phone: super::phone(phone)?,
    };
    once(&mut session, &asked, &body.raw, async move |tx| {
        let made = patients::insert(tx, &new).await?.ok_or(ApiError::Internal)?;
        tx.record("patients.create", made.id, &(), &made).await?;
        Answer::new(StatusCode::CREATED, &made)
    })
    .await
}
