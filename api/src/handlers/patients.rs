//! `/api/v1/patients`, of module `patients`. Whoever reads a record, or looks through the list, is written down.

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query as Params};
use axum::response::Response;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use time::Date;
use tokio_postgres::Row;
use utoipa::ToSchema;
use uuid::Uuid;

use super::csv::{Exported, export};
use super::etag::Entity;
use super::{Answer, Asked, Body, List, Page, field, once, query};
use crate::auth::{Credentials, Session};
use crate::context::TenantContext;
use crate::db::{DbError, TenantDb};
use crate::error::{ApiError, Conflict};
use crate::json::Json;
use crate::repo::audit::{self, By};
use crate::repo::date;
use crate::repo::patients::{self, NewPatient, Patient};
use crate::routes::Parameter;

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
    /// Letters and digits; spaces, dots and dashes are left out.
    #[serde(default)]
    #[schema(max_length = 60)]
    national_id: Option<String>,
    #[serde(default)]
    #[schema(max_length = 500)]
    address: Option<String>,
    #[serde(default)]
    #[schema(max_length = 10_000)]
    notes: Option<String>,
}

/// Request of [`update`]: what is left out stays, what is null is cleared.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = PatientUpdate)]
pub struct Update {
    #[serde(default, deserialize_with = "field::given")]
    #[schema(value_type = String, required = false, min_length = 1, max_length = 100)]
    first_name: Option<String>,
    #[serde(default, deserialize_with = "field::given")]
    #[schema(value_type = String, required = false, min_length = 1, max_length = 100)]
    last_name: Option<String>,
    #[serde(default, deserialize_with = "field::given_day")]
    #[schema(value_type = String, required = false, format = Date)]
    birth_date: Option<Date>,
    #[serde(default, deserialize_with = "field::some")]
    #[schema(value_type = Option<String>)]
    phone: Option<Option<String>>,
    #[serde(default, deserialize_with = "field::some")]
    #[schema(value_type = Option<String>, max_length = 60)]
    national_id: Option<Option<String>>,
    #[serde(default, deserialize_with = "field::some")]
    #[schema(value_type = Option<String>, max_length = 500)]
    address: Option<Option<String>>,
    #[serde(default, deserialize_with = "field::some")]
    #[schema(value_type = Option<String>, max_length = 10_000)]
    notes: Option<Option<String>>,
}

/// Query of [`list`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    limit: Option<u32>,
    cursor: Option<String>,
    national_id: Option<String>,
}

/// What may be asked for.
pub const QUERY: &[Parameter] = &[Parameter {
    name: "national_id",
    about: "Only the patient of that national id.",
    schema: r#"{"type": "string", "minLength": 1, "maxLength": 60}"#,
    is_required: false,
}];

/// 200 with a page, oldest first, without what is sealed.
pub async fn list(
    mut session: Session,
    params: Result<Params<Wanted>, QueryRejection>,
) -> Result<Json<List<Patient>>, ApiError> {
    let Wanted { limit, cursor, national_id } = query(params)?;
    let ctx = session.ctx.clone();
    let by_national_id = national_id.is_some();
    let national_id = national_id.map(|n| known_by("national_id", &n)).transpose()?;
    let index = national_id.map(|n| patients::national_id_index(&ctx, &n)).transpose()?;
    let (app, tenant, by) = (ctx.app().clone(), ctx.detail().tenant.id, By::of(&session));
    let wanted = Page::new(limit, cursor).check(&app.derived()?.cursors, tenant, "patients")?;
    let found = patients::list(&mut session.db, index.as_deref(), wanted.after, wanted.rows()).await?;
    let page = wanted.page(found, |r| r.id);
    let seen = json!({
        "count": page.items.len(), "by_national_id": by_national_id,
        "first": page.items.first().map(|p| p.id), "last": page.items.last().map(|p| p.id),
    });
    audit::insert(&mut session.db, &by, "patients.list", None, &Value::Null, &seen).await?;
    audit::log(&ctx, &by, "patients.list", None);
    Ok(Json(page))
}

/// 200 with the record; 404 for any id that is not one here.
pub async fn show(
    mut session: Session,
    id: Result<Path<String>, PathRejection>,
) -> Result<Entity<patients::PatientRecord>, ApiError> {
    let id = super::id(id)?;
    let (ctx, by) = (session.ctx.clone(), By::of(&session));
    let record = patients::get(&mut session.db, &ctx, id).await?.ok_or(ApiError::NotFound)?;
    let (id, none) = (id.to_string(), Value::Null);
    audit::insert(&mut session.db, &by, "patients.read", Some(&id), &none, &none).await?;
    audit::log(&ctx, &by, "patients.read", Some(&id));
    Ok(Entity(record))
}

/// 201 with the record; 409 `national_id_taken`.
pub async fn create(
    credentials: Credentials,
    asked: Asked,
    body: Body<Create>,
) -> Result<Response, ApiError> {
    let mut session = credentials.session().await?;
    let new = check(body.value)?;
    let ctx = session.ctx.clone();
    once(&mut session, &asked, &body.raw, async move |tx| {
        let made = patients::insert(tx, &ctx, &new).await?.ok_or(TAKEN)?;
        tx.record("patients.create", made.patient.id, &(), &made.redacted(&ctx)?).await?;
        Answer::new(StatusCode::CREATED, &made)
    })
    .await
}

/// 200 with the record; 409 `national_id_taken`, 412 when `If-Match` names another state of it.
pub async fn update(
    credentials: Credentials,
    asked: Asked,
    id: Result<Path<String>, PathRejection>,
    body: Body<Update>,
) -> Result<Response, ApiError> {
    let mut session = credentials.session().await?;
    let id = super::id(id)?;
    let (ctx, change) = (session.ctx.clone(), body.value);
    once(&mut session, &asked, &body.raw, async move |tx| {
        let before = patients::get_locked(tx, &ctx, id).await?.ok_or(ApiError::NotFound)?;
        tx.matches(&before)?;
        let was = &before.patient;
        let to = check(Create {
            first_name: change.first_name.unwrap_or_else(|| was.first_name.clone()),
            last_name: change.last_name.unwrap_or_else(|| was.last_name.clone()),
            birth_date: change.birth_date.unwrap_or(was.birth_date),
            phone: change.phone.unwrap_or_else(|| was.phone.clone()),
            national_id: change.national_id.unwrap_or_else(|| before.national_id.clone()),
            address: change.address.unwrap_or_else(|| before.address.clone()),
            notes: change.notes.unwrap_or_else(|| before.notes.clone()),
        })?;
        if before.is(&to) {
            // The answer shows it all the same.
            tx.record("patients.read", id, &(), &()).await?;
            return Answer::new(StatusCode::OK, &before);
        }
        let after = patients::update(tx, &ctx, id, &to).await?.ok_or(TAKEN)?;
        tx.record("patients.update", id, &before.redacted(&ctx)?, &after.redacted(&ctx)?).await?;
        Answer::new(StatusCode::OK, &after)
    })
    .await
}

/// 200 with all records as a file.
pub async fn export_all(session: Session) -> Result<Response, ApiError> {
    export::<Exportable>(session, "patients.export").await
}

/// A row that is opened when it is written.
struct Exportable(Row);

impl Exported for Exportable {
    const COLUMNS: &'static [&'static str] =
        &["id", "first_name", "last_name", "birth_date", "phone", "national_id", "address", "notes"];
    const FILE: &'static str = "patients.csv";

    async fn fetch(db: &mut TenantDb, after: Option<Uuid>, limit: i64) -> Result<Vec<Self>, DbError> {
        Ok(patients::records(db, after, limit).await?.into_iter().map(Self).collect())
    }

    fn id(&self) -> Uuid {
        self.0.get("id")
    }

    fn cells(&self, ctx: &TenantContext) -> Result<Vec<String>, ApiError> {
        let r = patients::record(&self.0, ctx)?;
        let text = |value: Option<String>| value.unwrap_or_default();
        let p = r.patient;
        Ok(vec![
            p.id.to_string(),
            p.first_name,
            p.last_name,
            p.birth_date.to_string(),
            text(p.phone),
            text(r.national_id),
            text(r.address),
            text(r.notes),
        ])
    }
}

const TAKEN: ApiError = ApiError::Conflict(Conflict::NationalIdTaken);

fn check(raw: Create) -> Result<NewPatient, ApiError> {
    Ok(NewPatient {
        first_name: field::name("first_name", &raw.first_name, 100)?,
        last_name: field::name("last_name", &raw.last_name, 100)?,
        birth_date: field::birth_date("birth_date", raw.birth_date)?,
        phone: field::phone(raw.phone)?,
        national_id: field::optional(raw.national_id).map(|n| known_by("national_id", &n)).transpose()?,
        address: field::text("address", raw.address, 500)?,
        notes: field::text("notes", raw.notes, 10_000)?,
    })
}

/// A national id as it is compared: upper case, without what people put between.
fn known_by(path: &str, raw: &str) -> Result<String, ApiError> {
    let plain: String =
        raw.chars().filter(|c| !matches!(c, ' ' | '.' | '-')).map(|c| c.to_ascii_uppercase()).collect();
    if (1..=30).contains(&plain.len()) && plain.bytes().all(|b| b.is_ascii_alphanumeric()) {
        Ok(plain)
    } else {
        Err(ApiError::invalid(path, "must have 1 to 30 letters and digits"))
    }
}
