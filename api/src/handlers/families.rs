//! `/api/v1/families`, of module `loans`.

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query as Params};
use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;
use serde::Deserialize;
use utoipa::ToSchema;

use super::etag::Entity;
use super::{Answer, Asked, Body, List, Page, field, once};
use crate::auth::{Credentials, Session};
use crate::error::{ApiError, Conflict};
use crate::json::Json;
use crate::repo::families::{self, Family};

/// Request of [`create`] and [`rename`].
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FamilyName {
    #[schema(min_length = 1, max_length = 200)]
    name: String,
}

/// 200 with a page, oldest first.
pub async fn list(
    mut session: Session,
    params: Result<Params<Page>, QueryRejection>,
) -> Result<Json<List<Family>>, ApiError> {
    let read = async |db: &mut _, after, limit| families::list(db, after, limit).await;
    Page::read(params)?.of(&mut session, "families", read, |f| f.id).await
}

/// 200 with the family; 404 for any id that is not one here.
pub async fn show(
    mut session: Session,
    id: Result<Path<String>, PathRejection>,
) -> Result<Entity<Family>, ApiError> {
    let id = super::id(id)?;
    families::get(&mut session.db, id).await?.map(Entity).ok_or(ApiError::NotFound)
}

/// 201 with the family.
pub async fn create(
    credentials: Credentials,
    asked: Asked,
    body: Body<FamilyName>,
) -> Result<Response, ApiError> {
    let mut session = credentials.session().await?;
    let name = field::name("name", &body.value.name, 200)?;
    once(&mut session, &asked, &body.raw, async move |tx| {
        let made = families::insert(tx, &name).await?.ok_or(ApiError::Internal)?;
        tx.record("families.create", made.id, &(), &made).await?;
        Answer::new(StatusCode::CREATED, &made)
    })
    .await
}

/// 200 with the family; 412 when `If-Match` names another state of it.
pub async fn rename(
    credentials: Credentials,
    asked: Asked,
    id: Result<Path<String>, PathRejection>,
    body: Body<FamilyName>,
) -> Result<Response, ApiError> {
    let mut session = credentials.session().await?;
    let id = super::id(id)?;
    let name = field::name("name", &body.value.name, 200)?;
    once(&mut session, &asked, &body.raw, async move |tx| {
        let before = families::get_locked(tx, id).await?.ok_or(ApiError::NotFound)?;
        tx.matches(&before)?;
        let after = families::rename(tx, id, &name).await?.ok_or(ApiError::NotFound)?;
        tx.record("families.update", id, &before, &after).await?;
        Answer::new(StatusCode::OK, &after)
    })
    .await
}

/// 204; 409 `family_in_use` while members belong to it.
pub async fn delete(
    credentials: Credentials,
    asked: Asked,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let mut session = credentials.session().await?;
    let id = super::id(id)?;
    once(&mut session, &asked, &Bytes::new(), async move |tx| {
        let before = families::get_locked(tx, id).await?.ok_or(ApiError::NotFound)?;
        tx.matches(&before)?;
        if families::is_used(tx, id).await? {
            return Err(ApiError::Conflict(Conflict::FamilyInUse));
        }
        families::delete(tx, id).await?;
        tx.record("families.delete", id, &before, &()).await?;
        Ok(Answer::nothing())
    })
    .await
}
