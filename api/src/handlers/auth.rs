//! `/api/v1/auth`: log in, refresh, log out, who am I.

use axum::Json;
use http::StatusCode;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::Body;
use crate::auth::{Bearer, Session, bearer_hash, password};
use crate::context::TenantContext;
use crate::db::TenantDb;
use crate::error::ApiError;
use crate::repo::sessions::{self, Lives};
use crate::repo::users::{self, User};
use crate::server::App;

/// Request of [`login`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Login {
    email: String,
    password: SecretString,
}

/// Request of [`refresh`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refresh {
    refresh_token: SecretString,
}

/// Response of [`login`] and [`refresh`].
#[derive(Serialize)]
pub struct Tokens {
    access_token: String,
    token_type: &'static str,
    /// Seconds.
    expires_in: u64,
    refresh_token: String,
}

/// 200 with tokens; 401 `bad_credentials`; 422 when the body breaks the type.
pub async fn login(ctx: TenantContext, body: Body<Login>) -> Result<Json<Tokens>, ApiError> {
    let app = ctx.app().clone();
    let Login { email, password } = body.value;
    let email = email.trim().to_lowercase();
    // What cannot be an account is refused as if it were one that does not exist.
    let possible = email.len() <= 254 && !email.contains('\0');
    let long = secrecy::ExposeSecret::expose_secret(&password).len() > password::MAX_BYTES;
    let found = {
        // Given back before the hash is computed: hashing waits its turn, and must not hold a connection meanwhile.
        let mut db = TenantDb::open(&ctx).await?;
        if possible { users::by_email(&mut db, &email).await? } else { None }
    };
    if long {
        return Err(ApiError::BadCredentials);
    }
    let (user, stored) = found.map_or((None, None), |(user, stored)| (Some(user), stored));
    let tenant = ctx.detail().tenant.id;
    let verified = app.hasher.verify(tenant, password, stored).await?;
    let Some(user) = user.filter(|_| verified) else {
        return Err(ApiError::BadCredentials);
    };
    let (access, refresh) = (Bearer::generate(tenant), Bearer::generate(tenant));
    let mut db = TenantDb::open(&ctx).await?;
    sessions::delete_expired(&mut db).await?;
    sessions::insert(&mut db, user.id, &access, &refresh, lives(&app)).await?;
    Ok(tokens(&app, access, refresh))
}

/// 200 with new tokens; the old ones end. 401 when the token is unknown, used or expired.
pub async fn refresh(ctx: TenantContext, body: Body<Refresh>) -> Result<Json<Tokens>, ApiError> {
    let app = ctx.app().clone();
    let tenant = ctx.detail().tenant.id;
    let old = secrecy::ExposeSecret::expose_secret(&body.value.refresh_token);
    if old.len() != 43 {
        return Err(ApiError::Unauthenticated);
    }
    let old = bearer_hash(tenant, old);
    let (access, refresh) = (Bearer::generate(tenant), Bearer::generate(tenant));
    let mut db = TenantDb::open(&ctx).await?;
    if sessions::rotate(&mut db, &old, &access, &refresh, lives(&app)).await? {
        Ok(tokens(&app, access, refresh))
    } else {
        Err(ApiError::Unauthenticated)
    }
}

/// 204; the session's tokens end.
pub async fn logout(mut session: Session) -> Result<StatusCode, ApiError> {
    sessions::delete(&mut session.db, session.id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// 200 with the user.
pub async fn me(session: Session) -> Json<User> {
    Json(session.user)
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
