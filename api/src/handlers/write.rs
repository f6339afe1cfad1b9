//! Writes: one transaction each, and with an `Idempotency-Key` each of them once.

use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use gmah_shared::tenant::TenantId;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use ring::hmac;
use serde::Serialize;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::etag;
use crate::auth::rights::Rights;
use crate::auth::{Caller, Session};
use crate::db::{DbError, Query, TenantTx};
use crate::error::ApiError;
use crate::json::as_json;
use crate::repo::audit::{self, By};
use crate::repo::idempotency::{self, Begun, Kept};
use crate::repo::{api_keys, sessions, users};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Says that an answer is that of an earlier request.
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// What tells one request from another.
#[derive(Debug)]
pub struct Asked {
    method: Method,
    path: String,
    key: Option<String>,
    if_match: Option<String>,
}

impl Asked {
    /// The `Idempotency-Key`, if there is one.
    pub fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }
}

impl<S: Send + Sync> axum::extract::FromRequestParts<S> for Asked {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut http::request::Parts, _: &S) -> Result<Self, ApiError> {
        let path = |uri: &Uri| uri.path_and_query().map_or_else(String::new, ToString::to_string);
        Ok(Self {
            method: parts.method.clone(),
            path: path(&parts.uri),
            key: idempotency_key(&parts.headers)?,
            if_match: etag::if_match(&parts.headers)?,
        })
    }
}

/// What a write answers.
pub struct Answer(StatusCode, serde_json::Value);

impl Answer {
    /// A status and a body.
    ///
    /// # Errors
    /// [`ApiError::Internal`] when the body is none.
    pub fn new(status: StatusCode, body: &impl Serialize) -> Result<Self, ApiError> {
        Ok(Self(status, serde_json::to_value(body).map_err(|_| ApiError::Internal)?))
    }

    /// 204.
    pub fn nothing() -> Self {
        Self(StatusCode::NO_CONTENT, serde_json::Value::Null)
    }

    /// 202.
    pub fn later() -> Self {
        Self(StatusCode::ACCEPTED, serde_json::Value::Null)
    }

    /// The body, as it is sent and kept.
    fn json(&self) -> Result<Vec<u8>, ApiError> {
        serde_json::to_vec(&self.1).map_err(|_| ApiError::Internal)
    }
}

/// An answer, of a body that [`Answer::json`] wrote.
fn response(status: StatusCode, json: Vec<u8>) -> Response {
    match status {
        StatusCode::NO_CONTENT | StatusCode::ACCEPTED => status.into_response(),
        // What is made may be a secret that is shown once: without a tag nobody may store it.
        StatusCode::CREATED => as_json(status, json),
        status => etag::tagged(status, json),
    }
}

/// One transaction, by somebody: what it changes and who changed it are durable together.
pub struct Work<'a, 't> {
    tx: &'a mut TenantTx<'t>,
    by: By,
    tenant: TenantId,
    caller: Caller,
    permission: Option<&'static str>,
    recorded: Vec<(&'static str, String)>,
    changes_nothing: bool,
    if_match: Option<&'a str>,
}

impl Work<'_, '_> {
    /// What the caller may do, with nobody changing users or roles until the transaction ends: while a request waited, its
    /// user may have become another.
    ///
    /// # Errors
    /// [`ApiError::Unauthenticated`] or [`ApiError::Forbidden`].
    pub async fn rights_now(&mut self) -> Result<Rights, ApiError> {
        users::lock_administrators(self).await?;
        let own = match self.caller {
            // What support may not do at all was refused before.
            Caller::Session(id) | Caller::Support { id, .. } => sessions::rights(self, id).await?,
            Caller::Key { id, .. } => api_keys::rights(self, id).await?,
        };
        let own = own.ok_or(ApiError::Unauthenticated)?;
        if self.permission.is_none_or(|wanted| own.allow(wanted)) {
            Ok(own)
        } else {
            Err(ApiError::Forbidden)
        }
    }

    /// Refuses when `If-Match` names another state than the one that is to be changed.
    ///
    /// # Errors
    /// [`ApiError::PreconditionFailed`].
    pub fn matches(&mut self, before: &impl Serialize) -> Result<(), ApiError> {
        let Some(wanted) = self.if_match.take() else { return Ok(()) };
        let before = serde_json::to_value(before).and_then(|value| serde_json::to_vec(&value));
        let before = before.map_err(|_| ApiError::Internal)?;
        let tag = etag::of(&before).and_then(|tag| etag::bound(self.tenant, &tag));
        let is_same = tag.is_some_and(|tag| etag::is_among(wanted, &tag));
        if is_same { Ok(()) } else { Err(ApiError::PreconditionFailed) }
    }

    /// Everything was as it is wanted already: there is nothing to write down.
    pub fn changes_nothing(&mut self) {
        self.changes_nothing = true;
    }

    /// Writes down what is done: `nouns.verb`, to what, and how that was before and is after (`&()` for not at all).
    ///
    /// # Errors
    /// [`ApiError::Internal`] for what is no JSON; the database's.
    pub async fn record(
        &mut self,
        action: &'static str,
        id: impl ToString,
        before: &impl Serialize,
        after: &impl Serialize,
    ) -> Result<(), ApiError> {
        let json = |e: serde_json::Result<serde_json::Value>| e.map_err(|_| ApiError::Internal);
        let (before, after) = (json(serde_json::to_value(before))?, json(serde_json::to_value(after))?);
        let id = id.to_string();
        audit::insert(self.tx, &self.by, action, Some(&id), &before, &after).await?;
        self.recorded.push((action, id));
        Ok(())
    }
}

impl Query for Work<'_, '_> {
    async fn query(
        &mut self,
        sql: &'static str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, DbError> {
        self.tx.query(sql, params).await
    }

    async fn execute(&mut self, sql: &'static str, params: &[&(dyn ToSql + Sync)]) -> Result<u64, DbError> {
        self.tx.execute(sql, params).await
    }
}

/// Does a piece of work in one transaction, which is undone when the work is refused. With an `Idempotency-Key` the same
/// request again is answered the same and does nothing; another request with that key is 422.
///
/// # Errors
/// What the work refuses, or the database.
pub async fn once(
    session: &mut Session,
    asked: &Asked,
    raw: &Bytes,
    work: impl AsyncFnOnce(&mut Work<'_, '_>) -> Result<Answer, ApiError>,
) -> Result<Response, ApiError> {
    let (ctx, user) = (session.ctx.clone(), session.user.id);
    let (by, caller, permission) = (By::of(session), session.caller.clone(), session.route.permission);
    let tenant = ctx.detail().tenant.id;
    let mut tx = session.db.transaction().await?;
    let mut place = None;
    if let Some(key) = &asked.key {
        // Under a key: a body may hold a password, and what is stored must not help to guess it.
        let mut what = hmac::Context::with_key(&session.ctx.app().derived()?.requests);
        what.update(format!("{} {}\n", asked.method, asked.path).as_bytes());
        what.update(raw);
        match idempotency::begin(&mut tx, user, key, what.sign().as_ref()).await? {
            Begun::First(at) => place = Some(at),
            Begun::Answered { status, body } => {
                tx.rollback().await?;
                let status = StatusCode::from_u16(status).map_err(|_| ApiError::Internal)?;
                let json = match body {
                    Kept::Plain(body) => Answer(status, body).json()?,
                    Kept::Sealed(place, sealed) => ctx.open_sealed(place, &sealed)?.to_vec(),
                };
                let mut response = response(status, json);
                response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
                return Ok(response);
            }
            Begun::Other => {
                tx.rollback().await?;
                return Err(ApiError::IdempotencyKeyReused);
            }
        }
    }
    let mut doing = Work {
        tx: &mut tx,
        by: by.clone(),
        tenant,
        caller,
        permission,
        recorded: Vec::new(),
        changes_nothing: false,
        if_match: asked.if_match.as_deref(),
    };
    let done = work(&mut doing).await;
    // A condition that nobody looked at is not met: a thing that was found is all that `*` asks for.
    let is_unmet = doing.if_match.is_some_and(|wanted| wanted.trim() != "*");
    let is_noted = doing.changes_nothing || !doing.recorded.is_empty();
    let recorded = doing.recorded;
    let done = if is_unmet && done.is_ok() { Err(ApiError::PreconditionFailed) } else { done };
    let answer = match done {
        Ok(answer) if is_noted => answer,
        outcome => {
            let refused = outcome.err().unwrap_or_else(|| {
                tracing::error!("a change was not written down: it is undone");
                ApiError::Internal
            });
            tx.rollback().await?;
            return Err(refused);
        }
    };
    let json = answer.json()?;
    if let Some(place) = place {
        // Sealed: an answer may hold what is sealed elsewhere, or a secret that is shown once.
        let sealed = ctx.seal(place, &json)?;
        idempotency::finish(&mut tx, place.row, answer.0.as_u16(), &sealed).await?;
    }
    tx.commit().await?;
    for (action, id) in &recorded {
        audit::log(&ctx, &by, action, Some(id));
    }
    Ok(response(answer.0, json))
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
