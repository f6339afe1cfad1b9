//! `/api/v1/hospitalizations`, of module `patients`: admission, ward, discharge.

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query as Params};
use axum::response::Response;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use utoipa::ToSchema;
use uuid::Uuid;

use super::etag::Entity;
use super::{Answer, Asked, Body, List, Page, Work, field, once, query};
use crate::auth::{Credentials, Session};
use crate::error::{ApiError, Conflict};
use crate::json::Json;
use crate::repo::audit::{self, By};
use crate::repo::hospitalizations::{self, Admission, Filter, Hospitalization};
use crate::repo::patients;
use crate::routes::Parameter;
use crate::settings::{self, PatientsSettings};

/// Request of [`admit`].
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Admit {
    patient_id: Uuid,
    #[schema(min_length = 1, max_length = 100)]
    ward: String,
    #[serde(default)]
    #[schema(max_length = 2000)]
    reason: Option<String>,
    /// Now, if left out.
    #[serde(default, with = "time::serde::rfc3339::option")]
    admitted_at: Option<OffsetDateTime>,
}

/// Request of [`transfer`].
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Transfer {
    #[schema(min_length = 1, max_length = 100)]
    ward: String,
}

/// Request of [`discharge`].
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Discharge {
    /// Now, if left out.
    #[serde(default, with = "time::serde::rfc3339::option")]
    discharged_at: Option<OffsetDateTime>,
}

/// Query of [`list`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    limit: Option<u32>,
    cursor: Option<String>,
    patient_id: Option<Uuid>,
    ward: Option<String>,
    current: Option<bool>,
}

/// What may be asked for.
pub const QUERY: &[Parameter] = &[
    Parameter {
        name: "patient_id",
        about: "Only stays of that patient.",
        schema: r#"{"type": "string", "format": "uuid"}"#,
        is_required: false,
    },
    Parameter {
        name: "ward",
        about: "Only stays in that ward.",
        schema: r#"{"type": "string", "minLength": 1, "maxLength": 100}"#,
        is_required: false,
    },
    Parameter {
        name: "current",
        about: "Only stays that go on, or only those that are over.",
        schema: r#"{"type": "boolean"}"#,
        is_required: false,
    },
];

/// 200 with a page, oldest first.
pub async fn list(
    mut session: Session,
    params: Result<Params<Wanted>, QueryRejection>,
) -> Result<Json<List<Hospitalization>>, ApiError> {
    let Wanted { limit, cursor, patient_id, ward, current } = query(params)?;
    let ward = ward.map(|w| field::name("ward", &w, 100)).transpose()?;
    let (ctx, by) = (session.ctx.clone(), By::of(&session));
    let wanted = Page::new(limit, cursor).check(
        &ctx.app().derived()?.cursors,
        ctx.detail().tenant.id,
        "hospitalizations",
    )?;
    let filter = Filter { patient_id, ward, is_current: current };
    let found = hospitalizations::list(&mut session.db, &ctx, &filter, wanted.after, wanted.rows()).await?;
    let page = wanted.page(found, |r| r.id);
    let seen = json!({
        "count": page.items.len(), "patient_id": patient_id,
        "first": page.items.first().map(|h| h.id), "last": page.items.last().map(|h| h.id),
    });
    audit::insert(&mut session.db, &by, "hospitalizations.list", None, &Value::Null, &seen).await?;
    audit::log(&ctx, &by, "hospitalizations.list", None);
    Ok(Json(page))
}

/// 200 with the stay; 404 for any id that is not one here.
pub async fn show(
    mut session: Session,
    id: Result<Path<String>, PathRejection>,
) -> Result<Entity<Hospitalization>, ApiError> {
    let id = super::id(id)?;
    let (ctx, by) = (session.ctx.clone(), By::of(&session));
    let stay = hospitalizations::get(&mut session.db, &ctx, id).await?.ok_or(ApiError::NotFound)?;
    let (id, none) = (id.to_string(), Value::Null);
    audit::insert(&mut session.db, &by, "hospitalizations.read", Some(&id), &none, &none).await?;
    audit::log(&ctx, &by, "hospitalizations.read", Some(&id));
    Ok(Entity(stay))
}

/// 201 with the stay; 409 `already_admitted`; 422 for a patient or a ward that there is not, and for a time to come.
pub async fn admit(credentials: Credentials, asked: Asked, body: Body<Admit>) -> Result<Response, ApiError> {
    let mut session = credentials.session().await?;
    let Admit { patient_id, ward, reason, admitted_at } = body.value;
    let new = Admission {
        patient_id,
        ward: field::name("ward", &ward, 100)?,
        reason: field::text("reason", reason, 2000)?,
        admitted_at: past("admitted_at", admitted_at)?,
    };
    let ctx = session.ctx.clone();
    once(&mut session, &asked, &body.raw, async move |tx| {
        ward_exists(tx, &new.ward).await?;
        let Some(made) = hospitalizations::insert(tx, &ctx, &new).await? else {
            if patients::get(tx, &ctx, new.patient_id).await?.is_none() {
                return Err(ApiError::invalid("patient_id", "must be a patient"));
            }
            let here =
                Filter { patient_id: Some(new.patient_id), is_current: Some(true), ..Filter::default() };
            let is_here = !hospitalizations::list(tx, &ctx, &here, None, 1).await?.is_empty();
            return Err(if is_here {
                ApiError::Conflict(Conflict::AlreadyAdmitted)
            } else {
                ApiError::invalid("admitted_at", "must not be before the patient's last discharge")
            });
        };
        tx.record("hospitalizations.admit", made.id, &(), &made.redacted()).await?;
        Answer::new(StatusCode::CREATED, &made)
    })
    .await
}

/// 200 with the stay; 409 `discharged`, 412 when `If-Match` names another state of it.
pub async fn transfer(
    credentials: Credentials,
    asked: Asked,
    id: Result<Path<String>, PathRejection>,
    body: Body<Transfer>,
) -> Result<Response, ApiError> {
    let mut session = credentials.session().await?;
    let id = super::id(id)?;
    let ward = field::name("ward", &body.value.ward, 100)?;
    let ctx = session.ctx.clone();
    once(&mut session, &asked, &body.raw, async move |tx| {
        let before = hospitalizations::get_locked(tx, &ctx, id).await?.ok_or(ApiError::NotFound)?;
        tx.matches(&before)?;
        goes_on(&before)?;
        ward_exists(tx, &ward).await?;
        hospitalizations::set_ward(tx, id, &ward).await?;
        let after = hospitalizations::get(tx, &ctx, id).await?.ok_or(ApiError::Internal)?;
        tx.record("hospitalizations.transfer", id, &before.redacted(), &after.redacted()).await?;
        Answer::new(StatusCode::OK, &after)
    })
    .await
}

/// 200 with the stay; 409 `discharged`; 422 for a time before the admission, or to come.
pub async fn discharge(
    credentials: Credentials,
    asked: Asked,
    id: Result<Path<String>, PathRejection>,
    body: Body<Discharge>,
) -> Result<Response, ApiError> {
    let mut session = credentials.session().await?;
    let id = super::id(id)?;
    let at = past("discharged_at", body.value.discharged_at)?;
    let ctx = session.ctx.clone();
    once(&mut session, &asked, &body.raw, async move |tx| {
        // Who is admitted meanwhile must not see half of it.
        let stay = hospitalizations::get(tx, &ctx, id).await?.ok_or(ApiError::NotFound)?;
        hospitalizations::lock_patient(tx, stay.patient_id).await?;
        let before = hospitalizations::get_locked(tx, &ctx, id).await?.ok_or(ApiError::NotFound)?;
        tx.matches(&before)?;
        goes_on(&before)?;
        if at < before.admitted_at {
            return Err(ApiError::invalid("discharged_at", "must not be before the admission"));
        }
        hospitalizations::discharge(tx, id, at).await?;
        let after = hospitalizations::get(tx, &ctx, id).await?.ok_or(ApiError::Internal)?;
        tx.record("hospitalizations.discharge", id, &before.redacted(), &after.redacted()).await?;
        Answer::new(StatusCode::OK, &after)
    })
    .await
}

fn goes_on(stay: &Hospitalization) -> Result<(), ApiError> {
    if stay.discharged_at.is_none() { Ok(()) } else { Err(ApiError::Conflict(Conflict::Discharged)) }
}

/// Refuses wards that the hospital has not, if it says which it has.
async fn ward_exists(tx: &mut Work<'_, '_>, ward: &str) -> Result<(), ApiError> {
    let rules: PatientsSettings = settings::of(tx).await?;
    if rules.wards.is_empty() || rules.wards.iter().any(|w| w == ward) {
        Ok(())
    } else {
        Err(ApiError::invalid("ward", "must be a ward of the hospital"))
    }
}

/// A time that is over, to the microsecond, which is what the database keeps; now, if left out.
fn past(path: &str, at: Option<OffsetDateTime>) -> Result<OffsetDateTime, ApiError> {
    let now = OffsetDateTime::now_utc();
    // Clocks differ a little.
    let is_past = |at: &OffsetDateTime| *at <= now + time::Duration::minutes(5);
    field::utc(at.unwrap_or(now))
        .filter(is_past)
        .ok_or_else(|| ApiError::invalid(path, "must be a time from 1900 until now"))
}
