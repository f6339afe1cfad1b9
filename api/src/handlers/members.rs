//! `/api/v1/members`, of module `loans`.

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query as Params};
use axum::response::{IntoResponse as _, Response};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Body;
use crate::auth::{Credentials, Session};
use crate::error::ApiError;
use crate::modules::LOANS;
use crate::repo::idempotency::{self, Begun};
use crate::repo::members::{self, Member, NewMember};

/// Query of [`list`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Page {
    limit: Option<u32>,
    cursor: Option<String>,
}

/// Response of [`list`].
#[derive(Serialize)]
pub struct List {
    items: Vec<Member>,
    next_cursor: Option<String>,
}

/// Request of [`create`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Create {
    first_name: String,
    last_name: String,
    #[serde(default)]
    email: Option<String>,
    #[serde(default)]
    phone: Option<String>,
}

const LIST: &str = "members";
const DEFAULT_LIMIT: u32 = 50;
const MAX_LIMIT: u32 = 200;
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Says that an answer is that of an earlier request.
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// 200 with a page, oldest first. 400 for a cursor of another list, 422 for a limit outside 1 to 200.
pub async fn list(
    mut session: Session,
    params: Result<Params<Page>, QueryRejection>,
) -> Result<Json<List>, ApiError> {
    session.ctx.require_module(LOANS)?;
    let Params(page) = params.map_err(|_| ApiError::Malformed("the query cannot be read".into()))?;
    let limit = page.limit.unwrap_or(DEFAULT_LIMIT);
    if !(1..=MAX_LIMIT).contains(&limit) {
        return Err(invalid("limit", "must be from 1 to 200"));
    }
    let tenant = session.ctx.detail().tenant.id;
    let app = session.ctx.app().clone();
    let after = page.cursor.map(|c| app.cursors.decode(tenant, LIST, &c)).transpose()?;
    // One more than asked for says whether there is another page.
    let mut items = members::list(&mut session.db, after, i64::from(limit) + 1).await?;
    let more = items.len() > limit as usize;
    items.truncate(limit as usize);
    let next_cursor = items.last().filter(|_| more).map(|last| app.cursors.encode(tenant, LIST, last.id));
    Ok(Json(List { items, next_cursor }))
}

/// 200 with the member; 404 for any id that is not one here.
pub async fn show(
    mut session: Session,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Member>, ApiError> {
    session.ctx.require_module(LOANS)?;
    let Path(id) = id.map_err(|_| ApiError::NotFound)?;
    let id = Uuid::try_parse(&id).map_err(|_| ApiError::NotFound)?;
    members::get(&mut session.db, id).await?.map(Json).ok_or(ApiError::NotFound)
}

/// 201 with the member. With an `Idempotency-Key`, the same request again is answered the same and creates nothing;
/// another request with that key is 422. 409 `plan_limit_reached` at the plan's number of members.
pub async fn create(
    credentials: Credentials,
    headers: HeaderMap,
    body: Body<Create>,
) -> Result<Response, ApiError> {
    let mut session = credentials.session().await?;
    session.ctx.require_module(LOANS)?;
    session.require_writer()?;
    let key = idempotency_key(&headers)?;
    let new = check(body.value)?;
    let user = session.user.id;
    let detail = session.ctx.detail().clone();
    let mut tx = session.db.transaction().await?;
    if let Some(key) = &key {
        let hash =
            ring::digest::digest(&ring::digest::SHA256, &[b"POST /api/v1/members\n", &body.raw[..]].concat());
        match idempotency::begin(&mut tx, user, key, hash.as_ref()).await? {
            Begun::First => {}
            Begun::Answered { status, body } => {
                tx.rollback().await?;
                let status = StatusCode::from_u16(status).map_err(|_| ApiError::Internal)?;
                let mut response = (status, Json(body)).into_response();
                response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
                return Ok(response);
            }
            Begun::Other => {
                tx.rollback().await?;
                return Err(ApiError::IdempotencyKeyReused);
            }
        }
    }
    if let Some(allowed) = detail.max_members {
        let current = members::count_locked(&mut tx).await?;
        if current >= allowed {
            tx.rollback().await?;
            return Err(ApiError::PlanLimit { limit: "members", allowed, current, plan: detail.plan });
        }
    }
    let member = members::insert(&mut tx, &new).await?.ok_or(ApiError::Internal)?;
    let answer = serde_json::to_value(&member).map_err(|_| ApiError::Internal)?;
    if let Some(key) = &key {
        idempotency::finish(&mut tx, user, key, StatusCode::CREATED.as_u16(), &answer).await?;
    }
    tx.commit().await?;
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}

/// 1 to 255 visible ASCII characters, at most once.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let text = value.to_str().unwrap_or_default();
    let fine = (1..=255).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    if values.next().is_some() || !fine {
        return Err(ApiError::Malformed("Idempotency-Key must be 1 to 255 visible ASCII characters".into()));
    }
    Ok(Some(text.to_owned()))
}

fn check(raw: Create) -> Result<NewMember, ApiError> {
    let optional = |value: Option<String>| value.map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
    let new = NewMember {
        first_name: raw.first_name.trim().to_owned(),
        last_name: raw.last_name.trim().to_owned(),
        email: optional(raw.email),
        phone: optional(raw.phone),
    };
    for (field, value) in [("first_name", &new.first_name), ("last_name", &new.last_name)] {
        if value.is_empty() || value.chars().count() > 100 {
            return Err(invalid(field, "must have 1 to 100 characters"));
        }
        if value.chars().any(char::is_control) {
            return Err(invalid(field, "must not have control characters"));
        }
    }
    if new.email.as_deref().is_some_and(|e| !crate::repo::users::is_email(e)) {
        return Err(invalid("email", "must be an e-mail address"));
    }
    let phone = |p: &str| {
        (5..=32).contains(&p.len())
            && p.bytes().all(|b| b.is_ascii_digit() || b"+ ()-./".contains(&b))
            && p.bytes().filter(u8::is_ascii_digit).count() >= 4
    };
    if new.phone.as_deref().is_some_and(|p| !phone(p)) {
        return Err(invalid("phone", "must be a telephone number"));
    }
    Ok(new)
}

fn invalid(field: &str, message: &str) -> ApiError {
    ApiError::Invalid { field: field.into(), message: message.into() }
}
