//! `/api/v1/users`: who may log in, and as what.

use std::time::Instant;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query as Params};
use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;
use secrecy::SecretString;
use serde::Deserialize;
use serde_json::json;
use utoipa::ToSchema;

use super::etag::Entity;
use super::passwords::send_link;
use super::{Answer, Asked, Body, List, Page, Work, field, once};
use crate::auth::rights::Rights;
use crate::auth::{Credentials, Session};
use crate::context::TenantContext;
use crate::db::TenantDb;
use crate::error::{ApiError, Conflict};
use crate::json::Json;
use crate::repo::links::{self, Purpose};
use crate::repo::users::{self, Change, NewUser, User};
use crate::repo::{api_keys, roles, sessions, totp};

/// Request of [`create`].
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = UserCreate)]
pub struct Create {
    #[schema(format = Email, max_length = 254)]
    email: String,
    #[schema(min_length = 1, max_length = 200)]
    name: String,
    #[schema(pattern = "^[a-z][a-z0-9_]{0,62}$")]
    role: String,
    /// Without one the user gets a letter, to choose it.
    #[serde(default)]
    #[schema(value_type = Option<String>, min_length = 8, max_length = 1024)]
    password: Option<SecretString>,
}

/// Request of [`update`]: what is left out stays.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = UserUpdate)]
pub struct Update {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    #[schema(pattern = "^[a-z][a-z0-9_]{0,62}$")]
    role: Option<String>,
    #[serde(default)]
    disabled: Option<bool>,
}

/// 200 with a page, oldest first.
pub async fn list(
    mut session: Session,
    params: Result<Params<Page>, QueryRejection>,
) -> Result<Json<List<User>>, ApiError> {
    let read = async |db: &mut TenantDb, after, limit| users::list(db, after, limit).await;
    Page::read(params)?.of(&mut session, "users", read, |u| u.id).await
}

/// 200 with the user; 404 for any id that is not one here.
pub async fn show(
    mut session: Session,
    id: Result<Path<String>, PathRejection>,
) -> Result<Entity<User>, ApiError> {
    let id = super::id(id)?;
    users::get(&mut session.db, id).await?.map(|(user, _)| Entity(user)).ok_or(ApiError::NotFound)
}

/// 201 with the user; 409 `email_taken`; 422 for a role that there is not; 403 for one that may do what the caller may
/// not.
pub async fn create(
    credentials: Credentials,
    asked: Asked,
    body: Body<Create>,
) -> Result<Response, ApiError> {
    let mut session = credentials.session().await?;
    let Create { email, name, role, password } = body.value;
    let email = email.trim().to_lowercase();
    if !users::is_email(&email) {
        return Err(ApiError::invalid("email", "must be an e-mail address"));
    }
    let name = field::name("name", &name, 200)?;
    let password_hash = match password {
        Some(password) => {
            let tenant = session.ctx.detail().tenant.id;
            let hasher = session.ctx.app().hasher.clone();
            // Hashing waits its turn, and must not hold a connection meanwhile.
            let hash = hasher.hash(tenant, password);
            Some(session.without_connection(hash).await??)
        }
        None => None,
    };
    let (ctx, language) = (session.ctx.clone(), session.client.language);
    if password_hash.is_none() {
        letter_allowed(&ctx)?;
    }
    let mailed = ctx.clone();
    let made = once(&mut session, &asked, &body.raw, async move |tx| {
        let own = tx.rights_now().await?;
        grantable(tx, &own, &role).await?;
        room(tx, &ctx).await?;
        let new = NewUser { email, name, role, password_hash };
        let made = users::insert(tx, &new).await?.ok_or(ApiError::Conflict(Conflict::EmailTaken))?;
        if new.password_hash.is_none() {
            send_link(tx, &ctx, language, &made, Purpose::Invitation).await?;
        }
        tx.record("users.create", made.id, &(), &made).await?;
        Answer::new(StatusCode::CREATED, &made)
    })
    .await?;
    mailed.app().mailer.hint(mailed.detail().tenant.id);
    Ok(made)
}

/// 202; the user gets another letter with a link, and the one before does not work any more. 409 `user_disabled`; 403 for
/// a user who may do what the caller may not.
pub async fn invite(
    credentials: Credentials,
    asked: Asked,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let mut session = credentials.session().await?;
    let id = super::id(id)?;
    let (ctx, language) = (session.ctx.clone(), session.client.language);
    letter_allowed(&ctx)?;
    let mailed = ctx.clone();
    let invited = once(&mut session, &asked, &Bytes::new(), async move |tx| {
        let own = tx.rights_now().await?;
        let (user, _) = users::get(tx, id).await?.ok_or(ApiError::NotFound)?;
        if !own.cover(&user.permissions) {
            return Err(ApiError::Forbidden);
        }
        if user.disabled {
            return Err(ApiError::Conflict(Conflict::UserDisabled));
        }
        if !send_link(tx, &ctx, language, &user, Purpose::Invitation).await? {
            return Err(ApiError::Conflict(Conflict::LinkRecent));
        }
        tx.record("users.invite", id, &(), &()).await?;
        Ok(Answer::later())
    })
    .await?;
    mailed.app().mailer.hint(mailed.detail().tenant.id);
    Ok(invited)
}

/// 204; logins of that user need no code any more: for who has lost the device and the codes. 404 when there is no second
/// factor; 403 for a user who may do what the caller may not.
pub async fn end_totp(
    credentials: Credentials,
    asked: Asked,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let mut session = credentials.session().await?;
    let id = super::id(id)?;
    // One's own needs its code: whoever has found an open browser has none.
    if id == session.user.id {
        return Err(ApiError::Forbidden);
    }
    once(&mut session, &asked, &Bytes::new(), async move |tx| {
        let own = tx.rights_now().await?;
        let (user, _) = users::get(tx, id).await?.ok_or(ApiError::NotFound)?;
        if !own.cover(&user.permissions) {
            return Err(ApiError::Forbidden);
        }
        if !totp::delete(tx, id).await? {
            return Err(ApiError::NotFound);
        }
        sessions::delete_all(tx, id, None).await?;
        tx.record("users.end_totp", id, &json!({"totp": true}), &()).await?;
        Ok(Answer::nothing())
    })
    .await
}

/// 200 with the user. A user that is disabled, or gets another role, is logged out everywhere. 409 `last_administrator`
/// when nobody would be left who may do everything; 403 for users and roles that may do what the caller may not.
pub async fn update(
    credentials: Credentials,
    asked: Asked,
    id: Result<Path<String>, PathRejection>,
    body: Body<Update>,
) -> Result<Response, ApiError> {
    let mut session = credentials.session().await?;
    let id = super::id(id)?;
    let Update { name, role, disabled } = body.value;
    if name.is_none() && role.is_none() && disabled.is_none() {
        return Err(ApiError::invalid(".", "must change something"));
    }
    let name = name.map(|n| field::name("name", &n, 200)).transpose()?;
    let ctx = session.ctx.clone();
    once(&mut session, &asked, &body.raw, async move |tx| {
        let own = tx.rights_now().await?;
        let (before, _) = users::get(tx, id).await?.ok_or(ApiError::NotFound)?;
        if !own.cover(&before.permissions) {
            return Err(ApiError::Forbidden);
        }
        tx.matches(&before)?;
        if before.disabled && disabled == Some(false) {
            room(tx, &ctx).await?;
        }
        if let Some(role) = &role {
            grantable(tx, &own, role).await?;
        }
        let leaves = role.as_ref().is_some_and(|r| *r != before.role) || disabled == Some(true);
        users::update(tx, id, &Change { name, role, disabled }).await?;
        if leaves {
            sessions::delete_all(tx, id, None).await?;
            api_keys::delete_all(tx, id).await?;
            links::delete_all(tx, id).await?;
        }
        if !users::has_administrator(tx).await? {
            return Err(ApiError::Conflict(Conflict::LastAdministrator));
        }
        let (after, _) = users::get(tx, id).await?.ok_or(ApiError::NotFound)?;
        tx.record("users.update", id, &before, &after).await?;
        Answer::new(StatusCode::OK, &after)
    })
    .await
}

/// Refuses when the organisation has had so many letters written that they are no invitations.
fn letter_allowed(ctx: &TenantContext) -> Result<(), ApiError> {
    let wait = ctx.app().throttle.letter(ctx.detail().tenant.id, Instant::now());
    wait.map_err(|wait| ApiError::TooManyAttempts {
        seconds: u32::try_from(wait.as_secs()).unwrap_or(u32::MAX).saturating_add(1),
    })
}

/// Refuses when the plan has no room for another user; under the lock of [`Work::rights_now`].
async fn room(tx: &mut Work<'_, '_>, ctx: &TenantContext) -> Result<(), ApiError> {
    let detail = ctx.detail();
    let Some(allowed) = detail.max_users else { return Ok(()) };
    let current = users::count(tx).await?;
    if current >= allowed {
        return Err(ApiError::PlanLimit { limit: "users", allowed, current, plan: detail.plan.clone() });
    }
    Ok(())
}

/// Refuses roles that there are not, and those that may do what `own` may not.
async fn grantable(tx: &mut Work<'_, '_>, own: &Rights, role: &str) -> Result<(), ApiError> {
    let role =
        roles::get_locked(tx, role).await?.ok_or_else(|| ApiError::invalid("role", "must be a role"))?;
    if own.cover(&role.permissions) { Ok(()) } else { Err(ApiError::Forbidden) }
}
