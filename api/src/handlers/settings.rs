//! `/api/v1/settings/{module}`: what an organisation settles for itself.

use axum::response::Response;
use http::StatusCode;

use super::etag::Entity;
use super::{Answer, Asked, Body, once};
use crate::auth::{Credentials, Session};
use crate::error::ApiError;
use crate::repo::settings;
use crate::settings::{Settings, of};

/// 200 with the settings, also with those that are by default.
pub async fn show<T: Settings>(mut session: Session) -> Result<Entity<T>, ApiError> {
    Ok(Entity(of(&mut session.db).await?))
}

/// 200 with the settings, which go from now on. What is left out is by default. 422 for what is no rule, 412 when
/// `If-Match` names others than there are.
pub async fn replace<T: Settings>(
    credentials: Credentials,
    asked: Asked,
    body: Body<T>,
) -> Result<Response, ApiError> {
    let mut session = credentials.session().await?;
    body.value.check()?;
    once(&mut session, &asked, &body.raw, async move |tx| {
        settings::lock(tx, T::MODULE).await?;
        let before: T = of(tx).await?;
        tx.matches(&before)?;
        let value = serde_json::to_value(&body.value).map_err(|_| ApiError::Internal)?;
        settings::put(tx, T::MODULE, &value).await?;
        tx.record("settings.replace", T::MODULE, &before, &body.value).await?;
        Answer::new(StatusCode::OK, &body.value)
    })
    .await
}
