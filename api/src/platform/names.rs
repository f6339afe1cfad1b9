//! Modules and names of an organisation, as administrators of the platform switch and claim them.

use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use gmah_shared::hostname::Hostname;
use gmah_shared::tenant::TenantSlug;
use http::StatusCode;
use serde::Deserialize;
use utoipa::ToSchema;

use super::organizations::slug;
use super::session::Administrator;
use super::work::{ask, change};
use crate::control::domains::Domain;
use crate::control::tenants::Summary;
use crate::error::ApiError;
use crate::handlers::{Body, List};
use crate::json::Json;

/// An organisation and something else of a path.
fn pair(path: Result<Path<(String, String)>, PathRejection>) -> Result<(TenantSlug, String), ApiError> {
    let Path((first, second)) = path.map_err(|_| ApiError::NotFound)?;
    Ok((TenantSlug::parse(&first).map_err(|_| ApiError::NotFound)?, second))
}

/// 200; the module is on, with its tables.
pub(super) async fn enable_module(
    admin: Administrator,
    path: Result<Path<(String, String)>, PathRejection>,
) -> Result<Json<Summary>, ApiError> {
    let (slug, module) = pair(path)?;
    let name = slug.clone();
    let changed = change(&admin, &slug, async move |control| control.enable_modules(&name, &[module]).await);
    Ok(Json(changed.await?))
}

/// 200; the module is off, and what is in its tables stays.
pub(super) async fn disable_module(
    admin: Administrator,
    path: Result<Path<(String, String)>, PathRejection>,
) -> Result<Json<Summary>, ApiError> {
    let (slug, module) = pair(path)?;
    let name = slug.clone();
    let changed = change(&admin, &slug, async move |control| control.disable_modules(&name, &[module]).await);
    Ok(Json(changed.await?))
}

/// 200 with the names that it has or wants.
pub(super) async fn domains(
    admin: Administrator,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<List<Domain>>, ApiError> {
    let slug = slug(path)?;
    let found = ask(&admin, async move |control| {
        control.tenant(&slug).await?;
        control.domains_of(Some(&slug), None).await
    });
    Ok(Json(List::all(found.await?)))
}

/// Request of [`add_domain`].
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = DomainAdd)]
pub(super) struct AddDomain {
    #[schema(max_length = 253)]
    hostname: String,
}

/// 201 with what its zone has to say.
pub(super) async fn add_domain(
    admin: Administrator,
    path: Result<Path<String>, PathRejection>,
    body: Body<AddDomain>,
) -> Result<(StatusCode, Json<Domain>), ApiError> {
    let slug = slug(path)?;
    let hostname =
        Hostname::parse(&body.value.hostname).map_err(|e| ApiError::invalid("hostname", &e.to_string()))?;
    let name = slug.clone();
    let added = change(&admin, &slug, async move |control| control.add_domain(&name, &hostname).await);
    Ok((StatusCode::CREATED, Json(added.await?)))
}

/// 200 with how it stands, looked up now.
pub(super) async fn verify_domain(
    admin: Administrator,
    path: Result<Path<(String, String)>, PathRejection>,
) -> Result<Json<Domain>, ApiError> {
    let (slug, hostname) = pair(path)?;
    let hostname = Hostname::parse(&hostname).map_err(|_| ApiError::NotFound)?;
    let name = slug.clone();
    let verified = change(&admin, &slug, async move |control| {
        let domain = control.one_domain(Some(&name), &hostname).await?;
        control.verify_domain(&domain).await
    });
    Ok(Json(verified.await?))
}

/// 204; the name is not served any more.
pub(super) async fn remove_domain(
    admin: Administrator,
    path: Result<Path<(String, String)>, PathRejection>,
) -> Result<StatusCode, ApiError> {
    let (slug, hostname) = pair(path)?;
    let hostname = Hostname::parse(&hostname).map_err(|_| ApiError::NotFound)?;
    let name = slug.clone();
    let removed = change(&admin, &slug, async move |control| {
        control.remove_domain(Some(&name), &hostname).await.map(drop)
    });
    removed.await?;
    Ok(StatusCode::NO_CONTENT)
}
