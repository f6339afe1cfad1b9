//! `/api/v1/files`: brought, fetched, removed.

use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query as Params, Request};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use gmah_shared::tenant::TenantId;
use http::header::{CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG};
use http::header::{HeaderValue, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::Value;
use uuid::Uuid;

use super::etag::Entity;
use super::{Answer, Asked, List, Page, field, once, query};
use crate::auth::{Credentials, Session};
use crate::db::TenantDb;
use crate::error::ApiError;
use crate::files::{Files, Stored};
use crate::json::Json;
use crate::repo::audit::{self, By};
use crate::repo::files::{self, File, Reservation};
use crate::repo::idempotency;
use crate::routes::Parameter;

/// For the next piece of an upload.
const PIECE: Duration = Duration::from_secs(20);
/// For removing what is no file: what is not gone by then the chores remove.
const DISCARD: Duration = Duration::from_secs(2);
/// Media type of an upload: what is in it is looked at, not what somebody says of it.
pub const MEDIA_TYPE: &str = "application/octet-stream";

/// Query of [`create`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    name: String,
    attached_to: Option<Uuid>,
}

/// What may be said of a file.
pub const ABOUT: &[Parameter] = &[
    Parameter::required(
        "name",
        "Name of the file.",
        r#"{"type": "string", "minLength": 1, "maxLength": 200, "pattern": "^[^/\\\\\\x00-\\x1f]+$"}"#,
    ),
    Parameter {
        name: "attached_to",
        about: "Id of what it is about.",
        schema: r#"{"type": "string", "format": "uuid"}"#,
        is_required: false,
    },
];

/// Query of [`list`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    limit: Option<u32>,
    cursor: Option<String>,
    attached_to: Option<Uuid>,
}

/// What may be asked for.
pub const QUERY: &[Parameter] = &[Parameter {
    name: "attached_to",
    about: "Only files about that.",
    schema: r#"{"type": "string", "format": "uuid"}"#,
    is_required: false,
}];

/// 200 with a page, oldest first.
pub async fn list(
    mut session: Session,
    params: Result<Params<Wanted>, QueryRejection>,
) -> Result<Json<List<File>>, ApiError> {
    let Wanted { limit, cursor, attached_to } = query(params)?;
    let read = async |db: &mut TenantDb, after, limit| files::list(db, attached_to, after, limit).await;
    Page::new(limit, cursor).of(&mut session, "files", read, |f| f.id).await
}

/// 200 with what the file is; 404 for any id that is not one here.
pub async fn show(
    mut session: Session,
    id: Result<Path<String>, PathRejection>,
) -> Result<Entity<File>, ApiError> {
    let id = super::id(id)?;
    files::get(&mut session.db, id).await?.map(Entity).ok_or(ApiError::NotFound)
}

/// 201 with what the file is, of a body of any size up to the limit, which is stored as it comes in. 409
/// `plan_limit_reached` at the plan's number of bytes, 413 over the limit of one file.
pub async fn create(
    credentials: Credentials,
    asked: Asked,
    params: Result<Params<About>, QueryRejection>,
    request: Request,
) -> Result<Response, ApiError> {
    let mut session = credentials.session().await?;
    let About { name, attached_to } = query(params)?;
    let name = file_name(&name)?;
    if !is_bytes(request.headers()) {
        return Err(ApiError::UnsupportedMediaType);
    }
    let (ctx, tenant) = (session.ctx.clone(), session.ctx.detail().tenant.id);
    let store = ctx.app().files.clone().ok_or(ApiError::Unavailable)?;
    let declared = declared(request.headers())?;
    if declared.is_some_and(|n| n > store.max_bytes()) {
        return Err(ApiError::TooLarge);
    }
    // While bytes come in: one organisation's slow clients are not all that a node does.
    let _place = ctx.app().transfers.enter(tenant).ok_or(ApiError::Unavailable)?;
    let id = Uuid::now_v7();
    let new = Reservation { id, name, attached_to, created_by: session.user.id, size: 0 };
    let room = reserve(&mut session, &asked, new, declared, store.max_bytes()).await?;
    let coming = store.put(tenant, id, room.bytes, pieces(request.into_body()));
    let received = session.without_connection(coming).await;
    let kept = match received {
        Ok(Ok(stored)) if ctx.is_current().await => keep(&mut session, &asked, id, stored).await,
        Ok(Ok(_)) => Err(ApiError::Unavailable),
        // It said nothing of its length, and the plan had no room for more.
        Ok(Err(ApiError::TooLarge)) => Err(room.full.unwrap_or(ApiError::TooLarge)),
        Ok(Err(refused)) => Err(refused),
        Err(e) => Err(e),
    };
    match kept {
        Ok((response, true)) => Ok(response),
        // Refused, or an earlier request's answer: this one leaves nothing. What cannot be removed now the chores remove.
        Ok((response, false)) => {
            discard(&mut session, &store, tenant, id).await;
            Ok(response)
        }
        Err(refused) => {
            discard(&mut session, &store, tenant, id).await;
            Err(refused)
        }
    }
}

/// How many bytes may come.
struct Room {
    bytes: u64,
    /// What more would be, where it is the plan that has no room for them.
    full: Option<ApiError>,
}

/// Reserves what the plan has room for: what the upload says that it is, or as much as any may be. One that is asked for
/// again needs none: nothing more will be stored.
async fn reserve(
    session: &mut Session,
    asked: &Asked,
    mut new: Reservation,
    declared: Option<u64>,
    most: u64,
) -> Result<Room, ApiError> {
    let (ctx, user) = (session.ctx.clone(), session.user.id);
    let detail = ctx.detail();
    let mut tx = session.db.transaction().await?;
    let current = files::used_locked(&mut tx).await?;
    let is_again = match asked.key() {
        Some(key) => idempotency::is_known(&mut tx, user, key).await?,
        None => false,
    };
    let mut room = Room { bytes: declared.unwrap_or(most), full: None };
    if let Some(allowed) = detail.max_storage_bytes.filter(|_| !is_again) {
        let plan = detail.plan.clone();
        let full = ApiError::PlanLimit { limit: "storage_bytes", allowed, current, plan };
        let rest = u64::try_from(allowed - current).unwrap_or(0);
        if declared.unwrap_or(1).max(1) > rest {
            tx.rollback().await?;
            return Err(full);
        }
        if room.bytes > rest {
            room = Room { bytes: rest, full: Some(full) };
        }
        new.size = i64::try_from(room.bytes).map_err(|_| ApiError::TooLarge)?;
    }
    files::reserve(&mut tx, &new).await?;
    tx.commit().await?;
    Ok(room)
}

/// Makes a file that came in one of the organisation's; false when an earlier request with the same key did.
async fn keep(
    session: &mut Session,
    asked: &Asked,
    id: Uuid,
    stored: Stored,
) -> Result<(Response, bool), ApiError> {
    let detail = session.ctx.clone();
    let detail = detail.detail();
    let what = Bytes::from(stored.sha256.clone());
    let mut is_ours = false;
    let response = once(session, asked, &what, async |tx| {
        // It may have taken minutes: the user, and where the organisation is, may be others by now.
        tx.rights_now().await?;
        let made = files::stored(tx, id, &stored).await?.ok_or(ApiError::Unavailable)?;
        // Of uploads that did not say how long they are, several may have had the same room.
        let current = files::used_locked(tx).await?;
        if let Some(allowed) = detail.max_storage_bytes.filter(|allowed| current > *allowed) {
            let (current, plan) = (current - made.size, detail.plan.clone());
            return Err(ApiError::PlanLimit { limit: "storage_bytes", allowed, current, plan });
        }
        tx.record("files.create", id, &(), &made).await?;
        is_ours = true;
        Answer::new(StatusCode::CREATED, &made)
    })
    .await?;
    Ok((response, is_ours))
}

/// Removes what is no file of the organisation's. Whether it is one is asked first: a commit whose answer was lost may have
/// made it one.
async fn discard(session: &mut Session, store: &Files, tenant: TenantId, id: Uuid) {
    session.db.give_back();
    let discarded = async {
        let is_given_up = files::give_up(&mut TenantDb::open(&session.ctx).await?, id).await?;
        if is_given_up {
            store.remove(tenant, id).await?;
            files::forget(&mut TenantDb::open(&session.ctx).await?, id).await?;
        }
        Ok::<_, ApiError>(())
    };
    match tokio::time::timeout(DISCARD, discarded).await {
        Ok(Ok(())) => {}
        Ok(Err(e)) => tracing::debug!(code = e.parts().1, "bytes are left to the chores"),
        Err(_) => tracing::debug!("bytes are left to the chores"),
    }
}

/// 200 with the bytes, to be saved and not shown: never as something that a browser runs in the organisation's name.
pub async fn content(
    mut session: Session,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let id = super::id(id)?;
    let file = files::get(&mut session.db, id).await?.ok_or(ApiError::NotFound)?;
    let (by, none) = (By::of(&session), Value::Null);
    audit::insert(&mut session.db, &by, "files.read", Some(&id.to_string()), &none, &none).await?;
    audit::log(&session.ctx, &by, "files.read", Some(&id.to_string()));
    session.db.give_back();
    let (app, tenant) = (session.ctx.app(), session.ctx.detail().tenant.id);
    let store = app.files.clone().ok_or(ApiError::Unavailable)?;
    let place = app.transfers.enter(tenant).ok_or(ApiError::Unavailable)?;
    let bytes = store.get(tenant, id).await?;
    let pieces = bytes.into_stream().map(move |piece| {
        let _held = &place;
        piece.map_err(std::io::Error::other)
    });
    let mut response = Body::from_stream(pieces).into_response();
    let headers = response.headers_mut();
    let mut set = |name, value: String| headers.extend(HeaderValue::try_from(value).ok().map(|v| (name, v)));
    set(CONTENT_TYPE, file.media_type);
    set(CONTENT_LENGTH, file.size.to_string());
    set(CONTENT_DISPOSITION, disposition(&file.name));
    set(ETAG, format!("\"{}\"", file.sha256));
    set(X_CONTENT_TYPE_OPTIONS, "nosniff".into());
    set(CONTENT_SECURITY_POLICY, "sandbox; default-src 'none'".into());
    Ok(response)
}

/// 204; 404 for any id that is not one here.
pub async fn delete(
    credentials: Credentials,
    asked: Asked,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let mut session = credentials.session().await?;
    let id = super::id(id)?;
    let done = once(&mut session, &asked, &Bytes::new(), async move |tx| {
        let gone = files::delete(tx, id).await?.ok_or(ApiError::NotFound)?;
        tx.matches(&gone)?;
        tx.record("files.delete", id, &gone, &()).await?;
        Ok(Answer::nothing())
    })
    .await?;
    let (ctx, tenant) = (session.ctx.clone(), session.ctx.detail().tenant.id);
    if let Some(store) = &ctx.app().files {
        discard(&mut session, store, tenant, id).await;
    }
    Ok(done)
}

/// The body in pieces, each of which must come in time.
fn pieces(body: Body) -> impl Stream<Item = Result<Bytes, ApiError>> {
    let early = |_| ApiError::Malformed("the body ended early".into());
    stream::unfold(body.into_data_stream(), move |mut body| async move {
        match tokio::time::timeout(PIECE, body.next()).await {
            Ok(None) => None,
            Ok(Some(piece)) => Some((piece.map_err(early), body)),
            Err(_) => Some((Err(ApiError::Malformed("the body came too slowly".into())), body)),
        }
    })
}

fn is_bytes(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(MEDIA_TYPE.as_bytes()))
}

/// How long the body says it is.
fn declared(headers: &HeaderMap) -> Result<Option<u64>, ApiError> {
    let Some(value) = headers.get(CONTENT_LENGTH) else { return Ok(None) };
    let length = value.to_str().ok().and_then(|v| v.parse().ok());
    length.map(Some).ok_or_else(|| ApiError::Malformed("Content-Length cannot be read".into()))
}

/// A name, and no path.
fn file_name(raw: &str) -> Result<String, ApiError> {
    let name = field::name("name", raw, 200)?;
    if name.contains(['/', '\\']) || name == "." || name == ".." {
        return Err(ApiError::invalid("name", "must be a name without a path"));
    }
    Ok(name)
}

/// RFC 6266, with the name as RFC 8187 writes what is not ASCII.
fn disposition(name: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
    let mut out = String::from("attachment; filename*=UTF-8''");
    for byte in name.bytes() {
        if plain(byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
