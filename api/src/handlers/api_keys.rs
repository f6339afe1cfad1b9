//! `/api/v1/api-keys`: keys by which programs act in one's own name.

use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;
use uuid::Uuid;

use super::roles::{covered, known};
use super::{Answer, Asked, Body, List, field, once};
use crate::auth::{Bearer, Credentials, KEY_PREFIX, Session, bearer_hash};
use crate::error::{ApiError, Conflict};
use crate::json::Json;
use crate::repo::api_keys::{self, ApiKey};

/// Request of [`create`].
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ApiKeyCreate)]
pub struct Create {
    #[schema(min_length = 1, max_length = 100)]
    name: String,
    /// Permissions, or patterns of some; at most what the user may.
    #[schema(min_items = 1, max_items = 200)]
    scopes: Vec<String>,
    /// Never, if left out.
    #[serde(default, with = "time::serde::rfc3339::option")]
    expires_at: Option<OffsetDateTime>,
}

/// Response of [`create`].
#[derive(Serialize, ToSchema)]
#[schema(as = ApiKeyCreated)]
pub struct Created {
    #[serde(flatten)]
    key: ApiKey,
    /// For `Authorization: Bearer`. It is not shown again.
    secret: String,
}

/// 200 with the user's own keys, oldest first: at most fifty, so there are no pages.
pub async fn list(mut session: Session) -> Result<Json<List<ApiKey>>, ApiError> {
    let user = session.user.id;
    Ok(Json(List::all(api_keys::list(&mut session.db, user).await?)))
}

/// 201 with the key and, this once, its secret; 403 for scopes that the user has not, 409 `too_many_keys`.
pub async fn create(
    credentials: Credentials,
    asked: Asked,
    body: Body<Create>,
) -> Result<Response, ApiError> {
    let mut session = credentials.session().await?;
    let Create { name, scopes, expires_at } = body.value;
    let name = field::name("name", &name, 100)?;
    if scopes.is_empty() {
        return Err(ApiError::invalid("scopes", "must be one at least"));
    }
    let scopes = known("scopes", scopes)?;
    let now = OffsetDateTime::now_utc();
    let to_come = |at| {
        let utc = field::utc(at).filter(|at| *at > now);
        utc.ok_or_else(|| ApiError::invalid("expires_at", "must be to come, before the year 9000"))
    };
    let expires_at = expires_at.map(to_come).transpose()?;
    let (tenant, generation) = (session.ctx.detail().tenant.id, session.ctx.detail().tenant.generation);
    let secret = format!("{KEY_PREFIX}{}", Bearer::generate(tenant).text);
    let hash = bearer_hash(tenant, &secret);
    let key = ApiKey {
        id: Uuid::now_v7(),
        user_id: session.user.id,
        name,
        scopes,
        created_at: now,
        expires_at,
        last_used_at: None,
    };
    once(&mut session, &asked, &body.raw, async move |tx| {
        covered(&tx.rights_now().await?, &key.scopes)?;
        let made = api_keys::insert(tx, &key, &hash, generation).await?;
        let key = made.ok_or(ApiError::Conflict(Conflict::TooManyKeys))?;
        tx.record("api_keys.create", key.id, &(), &key).await?;
        Answer::new(StatusCode::CREATED, &Created { key, secret })
    })
    .await
}

/// 204; the key opens nothing any more. 404 for any that is not the user's own.
pub async fn delete(
    credentials: Credentials,
    asked: Asked,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let mut session = credentials.session().await?;
    let (user, id) = (session.user.id, super::id(id)?);
    once(&mut session, &asked, &Bytes::new(), async move |tx| {
        let gone = api_keys::delete(tx, user, id).await?.ok_or(ApiError::NotFound)?;
        tx.record("api_keys.delete", id, &gone, &()).await?;
        Ok(Answer::nothing())
    })
    .await
}
