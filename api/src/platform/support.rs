//! Looking into an organisation in the name of one of its users, for a quarter of an hour, and seen by it.

use std::sync::Arc;

use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::organizations::slug;
use super::session::Administrator;
use super::work::seen;
use crate::auth::Bearer;
use crate::context::TenantContext;
use crate::db::TenantDb;
use crate::error::ApiError;
use crate::handlers::Body;
use crate::json::Json;
use crate::repo::audit::{self, Actor, By};
use crate::repo::sessions;

/// Request of [`impersonate`].
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Impersonate)]
pub(super) struct Impersonate {
    /// For the organisation, which sees it.
    #[schema(min_length = 1, max_length = 500)]
    reason: String,
    /// In whose name; default: the administrator who was there first.
    #[serde(default)]
    #[schema(max_length = 254)]
    email: Option<String>,
}

/// Response of [`impersonate`].
#[derive(Serialize, ToSchema)]
#[schema(as = Impersonation)]
pub(super) struct Impersonation {
    /// Shown once; it reads, and does nothing else.
    access_token: String,
    token_type: &'static str,
    /// Seconds.
    expires_in: u64,
    /// Where it is good.
    host: String,
    /// In whose name.
    email: String,
}

const IMPERSONATION: u64 = 900;

/// 201 with a token that looks into the organisation in a user's name for a quarter of an hour. It is in the organisation's
/// own audit, and among the user's sessions.
pub(super) async fn impersonate(
    admin: Administrator,
    path: Result<Path<String>, PathRejection>,
    body: Body<Impersonate>,
) -> Result<(StatusCode, Json<Impersonation>), ApiError> {
    let (slug, Impersonate { reason, email }) = (slug(path)?, body.value);
    if reason.trim().is_empty() || reason.chars().count() > 500 || reason.contains('\0') {
        return Err(ApiError::invalid("reason", "has 1 to 500 characters"));
    }
    let email = email.map(|e| crate::control::parse_email(&e)).transpose();
    let email = email.map_err(|e| ApiError::invalid("email", &e.to_string()))?;
    // Before anything is done: what is not written down did not happen.
    let about = json!({ "reason": reason, "email": email });
    let id = seen(&admin, slug, about).await?;
    let app: &Arc<_> = &admin.app;
    // What is suspended or closed for work on it shows nothing to anybody.
    let closed = |e| match e {
        ApiError::Unavailable => ApiError::Refused("the organisation is not served right now".into()),
        other => other,
    };
    let ctx = TenantContext::of_task(app, id).await.map_err(closed)?;
    let (access, unknown) = (Bearer::generate(id), Bearer::generate(id));
    let mut db = TenantDb::open(&ctx).await?;
    let mut tx = db.transaction().await?;
    let by = admin.admin.email.clone();
    let generation = ctx.detail().tenant.generation;
    let made = sessions::impersonate(
        &mut tx,
        email.as_deref(),
        (&access, &unknown),
        &admin.client.origin(),
        generation,
        &by,
    )
    .await?;
    let Some((session, user, name)) = made else {
        tx.rollback().await?;
        return Err(ApiError::invalid("email", "is nobody's who can log in"));
    };
    let written =
        By::new(Actor { id: Some(user), name: name.clone() }, &ctx, &admin.client).impersonated_by(&by);
    let (entity, after) = (session.to_string(), json!({ "reason": reason }));
    audit::insert(&mut tx, &written, "sessions.impersonate", Some(&entity), &Value::Null, &after).await?;
    tx.commit().await?;
    audit::log(&ctx, &written, "sessions.impersonate", Some(&entity));
    let host = app.names.authority(&ctx.detail().tenant.slug, ctx.host());
    let made = Impersonation {
        access_token: access.text,
        token_type: "Bearer",
        expires_in: IMPERSONATION,
        host,
        email: name,
    };
    Ok((StatusCode::CREATED, Json(made)))
}
