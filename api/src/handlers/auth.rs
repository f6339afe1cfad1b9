//! `/api/v1/auth`: log in, refresh, log out, who am I.

use std::time::Instant;

use axum::Json;
use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use gmah_shared::tenant::TenantId;
use http::StatusCode;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::{Body, List};
use crate::auth::client::Client;
use crate::auth::throttle::Attempt;
use crate::auth::{Bearer, Credentials, Session, bearer_hash, password};
use crate::context::TenantContext;
use crate::db::TenantDb;
use crate::error::ApiError;
use crate::repo::audit::{self, By};
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
}

/// Request of [`refresh`].
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Refresh {
    #[schema(value_type = String)]
    refresh_token: SecretString,
}

/// Request of [`change_password`].
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangePassword {
    #[schema(value_type = String)]
    current_password: SecretString,
    #[schema(value_type = String, min_length = 8, max_length = 1024)]
    new_password: SecretString,
}

/// Response of [`login`] and [`refresh`].
#[derive(Serialize, ToSchema)]
pub struct Tokens {
    access_token: String,
    token_type: &'static str,
    /// Seconds.
    expires_in: u64,
    refresh_token: String,
}

/// 200 with tokens; 401 `bad_credentials`; 422 when the body breaks the type; 429 `too_many_attempts` after too many
/// failures for the account or from the address.
pub async fn login(ctx: TenantContext, client: Client, body: Body<Login>) -> Result<Json<Tokens>, ApiError> {
    let app = ctx.app().clone();
    let Login { email, password } = body.value;
    let email = email.trim().to_lowercase();
    let attempt = attempt(&app, ctx.detail().tenant.id, &email, &client)?;
    let outcome = enter(&ctx, &client, &email, password).await;
    match &outcome {
        Ok(_) => app.throttle.succeeded(&attempt),
        Err(ApiError::BadCredentials) => {}
        // No verdict on the password.
        Err(_) => app.throttle.undecided(&attempt),
    }
    outcome
}

async fn enter(
    ctx: &TenantContext,
    client: &Client,
    email: &str,
    password: SecretString,
) -> Result<Json<Tokens>, ApiError> {
    let (app, tenant) = (ctx.app(), ctx.detail().tenant.id);
    // What cannot be an account is refused as if it were one that does not exist.
    let possible = email.len() <= 254 && !email.contains('\0');
    let found = {
        // Given back before the hash is computed: hashing waits its turn, and must not hold a connection meanwhile.
        let mut db = TenantDb::open(ctx).await?;
        if possible { users::by_email(&mut db, email).await? } else { None }
    };
    if secrecy::ExposeSecret::expose_secret(&password).len() > password::MAX_BYTES {
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
    let (checked, generation) = ((&user, stored.as_deref()), ctx.detail().tenant.generation);
    let origin = client.origin();
    if !sessions::insert(&mut db, checked, &access, &refresh, lives(app), &origin, generation).await? {
        // Changed while the password was being checked.
        return Err(ApiError::BadCredentials);
    }
    Ok(tokens(app, access, refresh))
}

/// 200 with new tokens; the old ones end. 401 when the token is unknown, used or expired; one that comes again after it
/// was exchanged ends its session.
pub async fn refresh(
    ctx: TenantContext,
    client: Client,
    body: Body<Refresh>,
) -> Result<Json<Tokens>, ApiError> {
    let app = ctx.app().clone();
    let tenant = ctx.detail().tenant.id;
    let old = secrecy::ExposeSecret::expose_secret(&body.value.refresh_token);
    if old.len() != 43 {
        return Err(ApiError::Unauthenticated);
    }
    let old = bearer_hash(tenant, old);
    let (access, refresh) = (Bearer::generate(tenant), Bearer::generate(tenant));
    let since = ctx.detail().sessions_since;
    let mut db = TenantDb::open(&ctx).await?;
    if sessions::rotate(&mut db, &old, &access, &refresh, lives(&app), &client.origin(), since).await? {
        Ok(tokens(&app, access, refresh))
    } else {
        Err(ApiError::Unauthenticated)
    }
}

/// 204; the session's tokens end.
pub async fn logout(mut session: Session) -> Result<StatusCode, ApiError> {
    sessions::delete(&mut session.db, session.user.id, session.id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// 200 with the user.
pub async fn me(session: Session) -> Json<User> {
    Json(session.user)
}

/// 200 with the user's own sessions, oldest first.
pub async fn list(mut session: Session) -> Result<Json<List<Listed>>, ApiError> {
    let (user, since) = (session.user.id, session.ctx.detail().sessions_since);
    let items = sessions::list(&mut session.db, user, session.id, since).await?;
    Ok(Json(List::all(items)))
}

/// 204; one of the user's own sessions ends. 404 for any other.
pub async fn end(
    mut session: Session,
    id: Result<Path<String>, PathRejection>,
) -> Result<StatusCode, ApiError> {
    let (user, id) = (session.user.id, super::id(id)?);
    if sessions::delete(&mut session.db, user, id).await? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(ApiError::NotFound)
    }
}

/// 204; the password is another, and all other sessions of the user end. 401 `bad_credentials` when the current one is
/// wrong, 422 when the new one is too short or too long, 429 as for a login.
pub async fn change_password(
    credentials: Credentials,
    client: Client,
    body: Body<ChangePassword>,
) -> Result<StatusCode, ApiError> {
    let mut session = credentials.session().await?;
    let (app, tenant) = (session.ctx.app().clone(), session.ctx.detail().tenant.id);
    let attempt = attempt(&app, tenant, &session.user.email, &client)?;
    let (_, stored) = users::get(&mut session.db, session.user.id).await?.ok_or(ApiError::Unauthenticated)?;
    let ChangePassword { current_password, new_password } = body.value;
    if secrecy::ExposeSecret::expose_secret(&current_password).len() > password::MAX_BYTES {
        return Err(ApiError::BadCredentials);
    }
    let hashing = async {
        let verified = app.hasher.verify(tenant, current_password, stored).await;
        match verified {
            Ok(true) => app.throttle.succeeded(&attempt),
            Ok(false) => return Err(ApiError::BadCredentials),
            Err(e) => {
                app.throttle.undecided(&attempt);
                return Err(e);
            }
        }
        app.hasher.hash(tenant, new_password).await
    };
    let hash = session.without_connection(hashing).await??;
    let (by, user, id) = (By::of(&session), session.user.id, session.id);
    let mut tx = session.db.transaction().await?;
    users::set_password(&mut tx, user, &hash).await?;
    sessions::delete_all(&mut tx, user, Some(id)).await?;
    audit::insert(&mut tx, &by, "users.change_password", Some(&user.to_string()), &Value::Null, &Value::Null)
        .await?;
    tx.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Whether another password may be tried.
fn attempt(app: &App, tenant: TenantId, account: &str, client: &Client) -> Result<Attempt, ApiError> {
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

fn tokens(app: &App, access: Bearer, refresh: Bearer) -> Json<Tokens> {
    Json(Tokens {
        access_token: access.text,
        token_type: "Bearer",
        expires_in: app.config.api.access_token_life.as_secs(),
        refresh_token: refresh.text,
    })
}
