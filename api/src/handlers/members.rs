//! `/api/v1/members`, of module `loans`.

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query as Params};
use axum::response::Response;
use http::StatusCode;
use serde::Deserialize;
use utoipa::ToSchema;

use super::{Answer, Asked, Body, List, Page, once};
use crate::auth::{Credentials, Session};
use crate::error::ApiError;
use crate::repo::members::{self, Member, NewMember};

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
}

const LIST: &str = "members";

/// 200 with a page, oldest first. 400 for a cursor of another list, 422 for a limit outside 1 to 200.
pub async fn list(
    mut session: Session,
    params: Result<Params<Page>, QueryRejection>,
) -> Result<Json<List<Member>>, ApiError> {
    let (app, tenant) = (session.ctx.app().clone(), session.ctx.detail().tenant.id);
    let wanted = Page::wanted(params, &app.cursors, tenant, LIST)?;
    let found = members::list(&mut session.db, wanted.after, wanted.rows()).await?;
    Ok(Json(wanted.page(found, |m| m.id)))
}

/// 200 with the member; 404 for any id that is not one here.
pub async fn show(
    mut session: Session,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Member>, ApiError> {
    let id = super::id(id)?;
    members::get(&mut session.db, id).await?.map(Json).ok_or(ApiError::NotFound)
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
    let (allowed, plan) = (session.ctx.detail().max_members, session.ctx.detail().plan.clone());
    once(&mut session, &asked, &body.raw, async move |tx| {
        if let Some(allowed) = allowed {
            let current = members::count_locked(tx).await?;
            if current >= allowed {
                return Err(ApiError::PlanLimit { limit: "members", allowed, current, plan });
            }
        }
        let member = members::insert(tx, &new).await?.ok_or(ApiError::Internal)?;
        tx.record("members.create", member.id, &(), &member).await?;
        Answer::new(StatusCode::CREATED, &member)
    })
    .await
}

fn check(raw: Create) -> Result<NewMember, ApiError> {
    let new = NewMember {
        first_name: super::name("first_name", &raw.first_name, 100)?,
        last_name: super::name("last_name", &raw.last_name, 100)?,
        email: super::optional(raw.email),
        phone: super::phone(raw.phone)?,
    };
    if new.email.as_deref().is_some_and(|e| !crate::repo::users::is_email(e)) {
        return Err(ApiError::invalid("email", "must be an e-mail address"));
    }
    Ok(new)
}
