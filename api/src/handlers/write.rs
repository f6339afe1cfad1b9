//! Writes: one transaction each, and with an `Idempotency-Key` each of them once.

use axum::Json;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use ring::hmac;
use serde::Serialize;

use crate::auth::Session;
use crate::db::TenantTx;
use crate::error::ApiError;
use crate::repo::idempotency::{self, Begun};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Says that an answer is that of an earlier request.
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// What tells one request from another.
#[derive(Debug)]
pub struct Asked {
    method: Method,
    path: String,
    key: Option<String>,
}

impl<S: Send + Sync> axum::extract::FromRequestParts<S> for Asked {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut http::request::Parts, _: &S) -> Result<Self, ApiError> {
        let path = |uri: &Uri| uri.path().to_owned();
        Ok(Self {
            method: parts.method.clone(),
            path: path(&parts.uri),
            key: idempotency_key(&parts.headers)?,
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

    fn response(self) -> Response {
        match self.0 {
            StatusCode::NO_CONTENT => self.0.into_response(),
            status => (status, Json(self.1)).into_response(),
        }
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
    work: impl AsyncFnOnce(&mut TenantTx<'_>) -> Result<Answer, ApiError>,
) -> Result<Response, ApiError> {
    let user = session.user.id;
    let mut tx = session.db.transaction().await?;
    if let Some(key) = &asked.key {
        // Under a key: a body may hold a password, and what is stored must not help to guess it.
        let mut what = hmac::Context::with_key(&session.ctx.app().requests);
        what.update(format!("{} {}\n", asked.method, asked.path).as_bytes());
        what.update(raw);
        match idempotency::begin(&mut tx, user, key, what.sign().as_ref()).await? {
            Begun::First => {}
            Begun::Answered { status, body } => {
                tx.rollback().await?;
                let status = StatusCode::from_u16(status).map_err(|_| ApiError::Internal)?;
                let mut response = Answer(status, body).response();
                response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
                return Ok(response);
            }
            Begun::Other => {
                tx.rollback().await?;
                return Err(ApiError::IdempotencyKeyReused);
            }
        }
    }
    let answer = match work(&mut tx).await {
        Ok(answer) => answer,
        Err(refused) => {
            tx.rollback().await?;
            return Err(refused);
        }
    };
    if let Some(key) = &asked.key {
        idempotency::finish(&mut tx, user, key, answer.0.as_u16(), &answer.1).await?;
    }
    tx.commit().await?;
    Ok(answer.response())
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
