//! `/api/v1/members`, of module `loans`.

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query as Params};
use axum::response::{IntoResponse as _, Response};
use http::StatusCode;
use serde::Deserialize;
use serde_json::json;
use utoipa::ToSchema;
use uuid::Uuid;

use super::csv::{self, CsvBody, Exported, Import, ImportReport, Row, export};
use super::etag::Entity;
use super::page::query;
use super::{Answer, Asked, Body, List, Page, Work, field, once};
use crate::auth::{Credentials, Session};
use crate::context::TenantContext;
use crate::db::{DbError, TenantDb};
use crate::error::ApiError;
use crate::json::Json;
use crate::repo::members::{self, Filter, Member, NewMember};
use crate::routes::Parameter;

/// Request of [`create`].
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = MemberCreate)]
pub struct Create {
    #[schema(min_length = 1, max_length = 100)]
    first_name: String,
    #[schema(min_length = 1, max_length = 100)]
    last_name: String,
    #[serde(default)]
    email: Option<String>,
    #[serde(default)]
    phone: Option<String>,
    #[serde(default)]
    family_id: Option<Uuid>,
}

/// Request of [`update`]: what is left out stays, what is null is cleared.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = MemberUpdate)]
pub struct Update {
    #[serde(default, deserialize_with = "field::given")]
    #[schema(value_type = String, required = false, min_length = 1, max_length = 100)]
    first_name: Option<String>,
    #[serde(default, deserialize_with = "field::given")]
    #[schema(value_type = String, required = false, min_length = 1, max_length = 100)]
    last_name: Option<String>,
    #[serde(default, deserialize_with = "field::some")]
    #[schema(value_type = Option<String>)]
    email: Option<Option<String>>,
    #[serde(default, deserialize_with = "field::some")]
    #[schema(value_type = Option<String>)]
    phone: Option<Option<String>>,
    #[serde(default, deserialize_with = "field::some")]
    #[schema(value_type = Option<Uuid>)]
    family_id: Option<Option<Uuid>>,
}

/// Query of [`list`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    limit: Option<u32>,
    cursor: Option<String>,
    family_id: Option<Uuid>,
    search: Option<String>,
}

/// What may be asked for.
pub const QUERY: &[Parameter] = &[
    Parameter {
        name: "family_id",
        about: "Only members of that family.",
        schema: r#"{"type": "string", "format": "uuid"}"#,
        is_required: false,
    },
    Parameter {
        name: "search",
        about: "Only members with this in their name or e-mail address, in whatever case.",
        schema: r#"{"type": "string", "minLength": 1, "maxLength": 100}"#,
        is_required: false,
    },
];

/// 200 with a page, oldest first. 400 for a cursor of another list, 422 for a limit outside 1 to 200.
pub async fn list(
    mut session: Session,
    params: Result<Params<Wanted>, QueryRejection>,
) -> Result<Json<List<Member>>, ApiError> {
    let Wanted { limit, cursor, family_id, search } = query(params)?;
    let search = search.map(|s| field::name("search", &s, 100)).transpose()?;
    let page = Page::new(limit, cursor);
    let filter = Filter { family_id, search };
    let read = async |db: &mut TenantDb, after, limit| match &filter {
        Filter { family_id: None, search: None } => members::list(db, after, limit).await,
        filter => members::find(db, filter, after, limit).await,
    };
    page.of(&mut session, "members", read, |m| m.id).await
}

/// 200 with the member; 404 for any id that is not one here.
pub async fn show(
    mut session: Session,
    id: Result<Path<String>, PathRejection>,
) -> Result<Entity<Member>, ApiError> {
    let id = super::id(id)?;
    members::get(&mut session.db, id).await?.map(Entity).ok_or(ApiError::NotFound)
}

/// 201 with the member. With an `Idempotency-Key`, the same request again is answered the same and creates nothing;
/// another request with that key is 422. 409 `plan_limit_reached` at the plan's number of members.
pub async fn create(
    credentials: Credentials,
    asked: Asked,
    body: Body<Create>,
) -> Result<Response, ApiError> {
    let mut session = credentials.session().await?;
    let new = check(body.value)?;
    let ctx = session.ctx.clone();
    once(&mut session, &asked, &body.raw, async move |tx| {
        room(tx, &ctx, 1).await?;
        let member = members::insert(tx, &new).await?.ok_or_else(no_family)?;
        tx.record("members.create", member.id, &(), &member).await?;
        Answer::new(StatusCode::CREATED, &member)
    })
    .await
}

/// 200 with the member; 412 when `If-Match` names another state of it.
pub async fn update(
    credentials: Credentials,
    asked: Asked,
    id: Result<Path<String>, PathRejection>,
    body: Body<Update>,
) -> Result<Response, ApiError> {
    let mut session = credentials.session().await?;
    let id = super::id(id)?;
    let change = body.value;
    once(&mut session, &asked, &body.raw, async move |tx| {
        let before = members::get_locked(tx, id).await?.ok_or(ApiError::NotFound)?;
        tx.matches(&before)?;
        let to = check(Create {
            first_name: change.first_name.unwrap_or_else(|| before.first_name.clone()),
            last_name: change.last_name.unwrap_or_else(|| before.last_name.clone()),
            email: change.email.unwrap_or_else(|| before.email.clone()),
            phone: change.phone.unwrap_or_else(|| before.phone.clone()),
            family_id: change.family_id.unwrap_or(before.family_id),
        })?;
        if before.is(&to) {
            tx.changes_nothing();
            return Answer::new(StatusCode::OK, &before);
        }
        let after = members::update(tx, id, &to).await?.ok_or_else(no_family)?;
        tx.record("members.update", id, &before, &after).await?;
        Answer::new(StatusCode::OK, &after)
    })
    .await
}

const COLUMNS: &[&str] = &["first_name", "last_name", "email", "phone"];

/// 200 with a report, of a file whose first line names `first_name,last_name,email,phone`. All of it or nothing: 422
/// `import_invalid` names the lines that break a rule; 409 `plan_limit_reached`.
pub async fn import(
    credentials: Credentials,
    asked: Asked,
    params: Result<Params<Import>, QueryRejection>,
    CsvBody(raw): CsvBody,
) -> Result<Response, ApiError> {
    let mut session = credentials.session().await?;
    let Import { dry_run } = query(params)?;
    let rows = csv::read(&raw, COLUMNS, &["first_name", "last_name"])?;
    let (new, errors) = csv::parse(&rows, parse);
    let report = ImportReport { rows: rows.len(), created: 0, dry_run, errors };
    let ctx = session.ctx.clone();
    if dry_run {
        // To count is for those whose plan has a limit.
        if report.errors.is_empty() && ctx.detail().max_members.is_some() {
            let current = members::count(&mut session.db).await?;
            has_room(&ctx, current, new.len() as i64)?;
        }
        return Ok(Json(report).into_response());
    }
    if !report.errors.is_empty() {
        return Err(ApiError::Import(report.errors));
    }
    once(&mut session, &asked, &raw, async move |tx| {
        room(tx, &ctx, new.len() as i64).await?;
        let created = members::insert_many(tx, &new).await?;
        tx.record("members.import", "", &(), &json!({ "created": created })).await?;
        Answer::new(StatusCode::OK, &ImportReport { created, ..report })
    })
    .await
}

fn parse(row: &Row) -> Result<NewMember, ApiError> {
    check(Create {
        first_name: row.cell("first_name").unwrap_or_default(),
        last_name: row.cell("last_name").unwrap_or_default(),
        email: row.cell("email"),
        phone: row.cell("phone"),
        family_id: None,
    })
}

/// 200 with all members as a file, which [`import`] takes.
pub async fn export_all(session: Session) -> Result<Response, ApiError> {
    export::<Member>(session, "members.export").await
}

impl Exported for Member {
    const COLUMNS: &'static [&'static str] = COLUMNS;
    const FILE: &'static str = "members.csv";

    async fn fetch(db: &mut TenantDb, after: Option<Uuid>, limit: i64) -> Result<Vec<Self>, DbError> {
        members::list(db, after, limit).await
    }

    fn id(&self) -> Uuid {
        self.id
    }

    fn cells(&self, _: &TenantContext) -> Result<Vec<String>, ApiError> {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        Ok(vec![self.first_name.clone(), self.last_name.clone(), text(&self.email), text(&self.phone)])
    }
}

/// Refuses when the plan has no room for so many more.
async fn room(tx: &mut Work<'_, '_>, ctx: &TenantContext, more: i64) -> Result<(), ApiError> {
    if ctx.detail().max_members.is_none() {
        return Ok(());
    }
    has_room(ctx, members::count_locked(tx).await?, more)
}

fn has_room(ctx: &TenantContext, current: i64, more: i64) -> Result<(), ApiError> {
    let detail = ctx.detail();
    let Some(allowed) = detail.max_members else { return Ok(()) };
    if current + more > allowed {
        return Err(ApiError::PlanLimit { limit: "members", allowed, current, plan: detail.plan.clone() });
    }
    Ok(())
}

fn no_family() -> ApiError {
    ApiError::invalid("family_id", "must be a family")
}

fn check(raw: Create) -> Result<NewMember, ApiError> {
    Ok(NewMember {
        first_name: field::name("first_name", &raw.first_name, 100)?,
        last_name: field::name("last_name", &raw.last_name, 100)?,
        email: field::email(raw.email)?,
        phone: field::phone(raw.phone)?,
        family_id: raw.family_id,
    })
}
