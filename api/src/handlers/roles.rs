//! `/api/v1/roles`: what users may do, by name.

use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;
use serde::Deserialize;
use utoipa::ToSchema;

use super::{Answer, Asked, Body, List, field, once};
use crate::auth::rights::{Rights, is_known};
use crate::auth::{Credentials, Session};
use crate::error::{ApiError, Conflict};
use crate::json::Json;
use crate::repo::roles::{self, Role};

/// Request of [`create`].
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RoleCreate)]
pub struct Create {
    #[schema(pattern = "^[a-z][a-z0-9_]{0,62}$")]
    key: String,
    #[schema(min_length = 1, max_length = 100)]
    title: String,
    #[schema(max_items = 200)]
    permissions: Vec<String>,
}

/// Request of [`update`]: what is left out stays.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RoleUpdate)]
pub struct Update {
    #[serde(default)]
    title: Option<String>,
    #[serde(default)]
    permissions: Option<Vec<String>>,
}

/// 200 with every role, by key: at most a hundred of an organisation's own, so there are no pages.
pub async fn list(mut session: Session) -> Result<Json<List<Role>>, ApiError> {
    Ok(Json(List::all(roles::list(&mut session.db).await?)))
}

/// 201 with the role; 409 `role_taken`; 403 for permissions that the caller has not.
pub async fn create(
    credentials: Credentials,
    asked: Asked,
    body: Body<Create>,
) -> Result<Response, ApiError> {
    let mut session = credentials.session().await?;
    let Create { key, title, permissions } = body.value;
    let well_formed = key.len() <= 63
        && key.starts_with(|c: char| c.is_ascii_lowercase())
        && key.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if !well_formed {
        return Err(ApiError::invalid("key", "begins with a letter and holds only a-z, 0-9 and _"));
    }
    let title = field::name("title", &title, 100)?;
    let rights = known("permissions", permissions)?;
    once(&mut session, &asked, &body.raw, async move |tx| {
        covered(&tx.rights_now().await?, &rights)?;
        if !roles::insert(tx, &key, &title, &rights).await? {
            return Err(ApiError::Conflict(Conflict::RoleTaken));
        }
        let made = roles::get_locked(tx, &key).await?.ok_or(ApiError::Internal)?;
        tx.record("roles.create", &key, &(), &made).await?;
        Answer::new(StatusCode::CREATED, &made)
    })
    .await
}

/// 200 with the role, which goes for its users at once; 409 `role_builtin`; 403 for permissions that the caller has not,
/// or that the role has and the caller has not.
pub async fn update(
    credentials: Credentials,
    asked: Asked,
    key: Result<Path<String>, PathRejection>,
    body: Body<Update>,
) -> Result<Response, ApiError> {
    let mut session = credentials.session().await?;
    let Path(key) = key.map_err(|_| ApiError::NotFound)?;
    let Update { title, permissions } = body.value;
    if title.is_none() && permissions.is_none() {
        return Err(ApiError::invalid(".", "must change something"));
    }
    let title = title.map(|t| field::name("title", &t, 100)).transpose()?;
    let rights = permissions.map(|p| known("permissions", p)).transpose()?;
    once(&mut session, &asked, &body.raw, async move |tx| {
        let own = tx.rights_now().await?;
        if let Some(rights) = &rights {
            covered(&own, rights)?;
        }
        let before = changeable(roles::get_locked(tx, &key).await?, &own)?;
        tx.matches(&before)?;
        roles::update(tx, &key, title.as_deref(), rights.as_ref()).await?;
        let after = roles::get_locked(tx, &key).await?.ok_or(ApiError::NotFound)?;
        tx.record("roles.update", &key, &before, &after).await?;
        Answer::new(StatusCode::OK, &after)
    })
    .await
}

/// 204; 409 `role_in_use` while a user has it, `role_builtin`.
pub async fn delete(
    credentials: Credentials,
    asked: Asked,
    key: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let mut session = credentials.session().await?;
    let Path(key) = key.map_err(|_| ApiError::NotFound)?;
    once(&mut session, &asked, &Bytes::new(), async move |tx| {
        let own = tx.rights_now().await?;
        let before = changeable(roles::get_locked(tx, &key).await?, &own)?;
        tx.matches(&before)?;
        if roles::is_used(tx, &key).await? {
            return Err(ApiError::Conflict(Conflict::RoleInUse));
        }
        roles::delete(tx, &key).await?;
        tx.record("roles.delete", &key, &before, &()).await?;
        Ok(Answer::nothing())
    })
    .await
}

/// The permissions, if they mean something.
pub(super) fn known(field: &str, permissions: Vec<String>) -> Result<Rights, ApiError> {
    if permissions.len() > 200 {
        return Err(ApiError::invalid(field, "must be at most 200"));
    }
    if let Some(n) = permissions.iter().position(|p| !is_known(p)) {
        return Err(ApiError::invalid(
            &format!("{field}[{n}]"),
            "must be a permission, or a pattern of some",
        ));
    }
    Ok(Rights::new(permissions))
}

/// Nobody gives away what they do not have.
pub(super) fn covered(own: &Rights, rights: &Rights) -> Result<(), ApiError> {
    if own.cover(rights) { Ok(()) } else { Err(ApiError::Forbidden) }
}

fn changeable(role: Option<Role>, own: &Rights) -> Result<Role, ApiError> {
    let role = role.ok_or(ApiError::NotFound)?;
    if role.is_builtin {
        return Err(ApiError::Conflict(Conflict::RoleBuiltin));
    }
    if own.cover(&role.permissions) { Ok(role) } else { Err(ApiError::Forbidden) }
}
