//! `/api/v1/auth`: log in, refresh, log out, who am I.

use std::time::Instant;

use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::response::{IntoResponse as _, Response};
use gmah_shared::tenant::TenantId;
use http::{HeaderMap, StatusCode};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::OffsetDateTime;
use utoipa::ToSchema;
use uuid::Uuid;

use super::totp::check_code;
use super::{Body, List};
use crate::auth::client::Client;
use crate::auth::cookies::{self, Issued, Proof};
use crate::auth::throttle::Attempt;
use crate::auth::{Bearer, Session, bearer_hash, password};
use crate::context::TenantContext;
use crate::db::TenantDb;
use crate::error::ApiError;
use crate::json::Json;
use crate::repo::audit::{self, Actor, By};
use crate::repo::sessions::{self, Listed, Lives};
use crate::repo::users::{self, User};
use crate::server::App;

/// Request of [`login`].
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Login {
    #[schema(max_length = 254)]
    email: String,
    #[schema(value_type = String)]
    password: SecretString,
    /// Of the second factor, where there is one; or a code for when the device is lost.
    #[serde(default)]
    #[schema(value_type = Option<String>, max_length = 32)]
    code: Option<SecretString>,
    /// Puts the tokens into cookies instead of the answer, for browsers.
    #[serde(default)]
    cookie: bool,
}

/// Request of [`refresh`].
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Refresh {
    /// Left out where it is in a cookie.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    refresh_token: Option<SecretString>,
}

/// Response of [`login`] and [`refresh`].
#[derive(Serialize, ToSchema)]
pub struct Tokens {
    /// For `Authorization`; not where it is in a cookie.
    #[serde(skip_serializing_if = "Option::is_none")]
    access_token: Option<String>,
    token_type: &'static str,
    /// Seconds.
    expires_in: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    refresh_token: Option<String>,
    /// For `X-CSRF-Token` of every change; only where the others are in cookies.
    #[serde(skip_serializing_if = "Option::is_none")]
    csrf_token: Option<String>,
}

/// 200 with tokens; 401 `bad_credentials`, and `totp_required` where only a code is missing; 422 when the body breaks the
/// type; 429 `too_many_attempts` after too many failures for the account or from the address.
pub async fn login(ctx: TenantContext, client: Client, body: Body<Login>) -> Result<Response, ApiError> {
    let app = ctx.app().clone();
    if body.value.cookie && app.names.is_neutral(ctx.host()) {
        return Err(ApiError::invalid("cookie", "must be false at a host that is nobody's own"));
    }
    let email = body.value.email.trim().to_lowercase();
    let attempt = attempt(&app, ctx.detail().tenant.id, &email, &client)?;
    let outcome = enter(&ctx, &client, &email, body.value).await;
    match &outcome {
        Ok(_) => app.throttle.succeeded(&attempt),
        Err(ApiError::BadCredentials) => {}
        // No verdict, or none of what was guessed.
        Err(_) => app.throttle.undecided(&attempt),
    }
    outcome
}

async fn enter(
    ctx: &TenantContext,
    client: &Client,
    email: &str,
    login: Login,
) -> Result<Response, ApiError> {
    let Login { password, code, cookie, .. } = login;
    let (app, tenant) = (ctx.app(), ctx.detail().tenant.id);
    // What cannot be an account is refused as if it were one that does not exist.
    let possible = email.len() <= 254 && !email.contains('\0');
    let found = {
        // Given back before the hash is computed: hashing waits its turn, and must not hold a connection meanwhile.
        let mut db = TenantDb::open(ctx).await?;
        if possible { users::by_email(&mut db, email).await? } else { None }
    };
    if password.expose_secret().len() > password::MAX_BYTES {
        return Err(ApiError::BadCredentials);
    }
    let (user, stored) = found.map_or((None, None), |(user, stored)| (Some(user), stored));
    let verified = app.hasher.verify(tenant, password, stored.clone()).await?;
    let Some(user) = user.filter(|_| verified) else {
        return Err(ApiError::BadCredentials);
    };
    let (access, refresh) = (Bearer::generate(tenant), Bearer::generate(tenant));
    let mut db = TenantDb::open(ctx).await?;
    sessions::delete_expired(&mut db).await?;
    let mut tx = db.transaction().await?;
    if let Err(refused) = check_code(&mut tx, ctx, user.id, code.as_ref()).await {
        tx.rollback().await?;
        return Err(refused);
    }
    let (checked, generation) = ((&user, stored.as_deref()), ctx.detail().tenant.generation);
    let origin = client.origin();
    let made = sessions::insert(&mut tx, checked, &access, &refresh, lives(app), &origin, generation).await?;
    // None where the user changed while the password was being checked.
    let Some(session) = made else {
        tx.rollback().await?;
        return Err(ApiError::BadCredentials);
    };
    let by = By::new(Actor { id: Some(user.id), name: user.email }, ctx, client);
    audit::insert(
        &mut tx,
        &by,
        "sessions.begin",
        Some(&session.to_string()),
        &Value::Null,
        &json!({"cookie": cookie}),
    )
    .await?;
    tx.commit().await?;
    audit::log(ctx, &by, "sessions.begin", Some(&session.to_string()));
    tokens(ctx, session, &access, &refresh, cookie)
}

/// 200 with new tokens; the old ones end. 401 when the token is unknown, used or expired; one that comes again after it
/// was exchanged ends its session.
pub async fn refresh(
    ctx: TenantContext,
    client: Client,
    headers: HeaderMap,
    body: Body<Refresh>,
) -> Result<Response, ApiError> {
    let tenant = ctx.detail().tenant.id;
    let told = body.value.refresh_token;
    let is_cookie = told.is_none();
    let old = match &told {
        Some(token) => token.expose_secret(),
        None => {
            Proof::of(&headers).own_origin(ctx.host().as_str())?;
            cookies::refresh(&headers).ok_or(ApiError::Unauthenticated)?
        }
    };
    if old.len() != 43 {
        return Err(ApiError::Unauthenticated);
    }
    let old = bearer_hash(tenant, old);
    let (access, refresh) = (Bearer::generate(tenant), Bearer::generate(tenant));
    let since = ctx.detail().sessions_since;
    let mut db = TenantDb::open(&ctx).await?;
    let lives = lives(ctx.app());
    let session = sessions::rotate(&mut db, &old, &access, &refresh, lives, &client.origin(), since).await?;
    let session = session.ok_or(ApiError::Unauthenticated)?;
    tokens(&ctx, session, &access, &refresh, is_cookie)
}

/// 204; the session's tokens end, and cookies are forgotten.
pub async fn logout(mut session: Session) -> Result<Response, ApiError> {
    let id = session.caller.id();
    finish(&mut session, id).await?;
    let mut response = StatusCode::NO_CONTENT.into_response();
    cookies::clear(response.headers_mut());
    Ok(response)
}

/// 200 with the user; for a key, with what it may do.
pub async fn me(session: Session) -> Json<User> {
    Json(session.user)
}

/// 200 with the user's own sessions, oldest first.
pub async fn list(mut session: Session) -> Result<Json<List<Listed>>, ApiError> {
    let (user, since) = (session.user.id, session.ctx.detail().sessions_since);
    let items = sessions::list(&mut session.db, user, session.caller.id(), since).await?;
    Ok(Json(List::all(items)))
}

/// 204; one of the user's own sessions ends. 404 for any other.
pub async fn end(
    mut session: Session,
    id: Result<Path<String>, PathRejection>,
) -> Result<StatusCode, ApiError> {
    let id = super::id(id)?;
    if finish(&mut session, id).await? { Ok(StatusCode::NO_CONTENT) } else { Err(ApiError::NotFound) }
}

/// Ends a session of the user's own; false when it is none.
async fn finish(session: &mut Session, id: Uuid) -> Result<bool, ApiError> {
    let (by, user) = (By::of(session), session.user.id);
    let mut tx = session.db.transaction().await?;
    let is_theirs = sessions::delete(&mut tx, user, id).await?;
    if is_theirs {
        let none = Value::Null;
        audit::insert(&mut tx, &by, "sessions.end", Some(&id.to_string()), &none, &none).await?;
    }
    tx.commit().await?;
    if is_theirs {
        audit::log(&session.ctx, &by, "sessions.end", Some(&id.to_string()));
    }
    Ok(is_theirs)
}

/// Whether another password may be tried.
pub(super) fn attempt(
    app: &App,
    tenant: TenantId,
    account: &str,
    client: &Client,
) -> Result<Attempt, ApiError> {
    app.throttle.admit(tenant, account, client.address, Instant::now()).map_err(|wait| {
        let seconds = u32::try_from(wait.as_secs()).unwrap_or(u32::MAX).saturating_add(1);
        ApiError::TooManyAttempts { seconds }
    })
}

fn lives(app: &App) -> Lives {
    let now = OffsetDateTime::now_utc();
    Lives {
        access: now + *app.config.api.access_token_life,
        refresh: now + *app.config.api.refresh_token_life,
    }
}

fn tokens(
    ctx: &TenantContext,
    session: Uuid,
    access: &Bearer,
    refresh: &Bearer,
    is_cookie: bool,
) -> Result<Response, ApiError> {
    let api = &ctx.app().config.api;
    let expires_in = api.access_token_life.as_secs();
    if !is_cookie {
        return Ok(Json(Tokens {
            access_token: Some(access.text.clone()),
            token_type: "Bearer",
            expires_in,
            refresh_token: Some(refresh.text.clone()),
            csrf_token: None,
        })
        .into_response());
    }
    let csrf = cookies::csrf(&ctx.app().derived()?.csrf, ctx.detail().tenant.id, session);
    let issued = Issued {
        access: (&access.text, expires_in),
        refresh: (&refresh.text, api.refresh_token_life.as_secs()),
        csrf: &csrf,
    };
    let mut headers = HeaderMap::new();
    cookies::set(&mut headers, issued);
    let body = Tokens {
        access_token: None,
        token_type: "Cookie",
        expires_in,
        refresh_token: None,
        csrf_token: Some(csrf.clone()),
    };
    Ok((headers, Json(body)).into_response())
}
