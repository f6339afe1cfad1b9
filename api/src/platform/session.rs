//! Who administers the platform: logins, their sessions, and what each may do.
//!
//! As with organisations' users, tokens are opaque and stored as digests; attempts are held back by account and by address,
//! under a name that is no organisation's.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Extension;
use axum::extract::FromRequestParts;
use axum::extract::State;
use gmah_shared::tenant::TenantId;
use http::StatusCode;
use http::header::AUTHORIZATION;
use http::request::Parts;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Row, error::SqlState};
use totp_rs::{Builder, Totp};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::auth::client::Client;
use crate::auth::throttle::Attempt;
use crate::auth::{Bearer, bearer_hash, password};
use crate::context;
use crate::control::admins::{Admin, Role, admin};
use crate::error::{ApiError, Conflict};
use crate::handlers::Body;
use crate::json::Json;
use crate::routes::{Access, Route};
use crate::server::App;

/// How long a login lasts.
const LIFE: Duration = Duration::from_secs(8 * 3600);
/// For one question to the master.
pub(super) const ASKED: Duration = Duration::from_secs(5);
const TOKEN: usize = 43;

/// Where organisations have an id, the platform has none.
pub(super) fn nobody() -> TenantId {
    TenantId::from_uuid(Uuid::nil())
}

/// An administrator who is logged in and may ask for the route.
pub(super) struct Administrator {
    /// What all requests share.
    pub(super) app: Arc<App>,
    /// Who.
    pub(super) admin: Admin,
    /// Of the login.
    pub(super) session: Uuid,
    /// Where from.
    pub(super) client: Client,
    /// Id of the request.
    pub(super) request_id: String,
    /// What is asked for.
    pub(super) route: &'static Route,
}

impl Administrator {
    /// As the journal and the audit name it.
    pub(super) fn actor(&self) -> String {
        format!("admin:{}", self.admin.email)
    }
}

impl FromRequestParts<Arc<App>> for Administrator {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        // Absent only on a route that somebody put beside the table: then nobody may.
        let route = *parts.extensions.get::<&'static Route>().ok_or(ApiError::Forbidden)?;
        let mut values = parts.headers.get_all(AUTHORIZATION).iter();
        let (Some(value), None) = (values.next(), values.next()) else {
            return Err(ApiError::Unauthenticated);
        };
        let text = value.to_str().map_err(|_| ApiError::Unauthenticated)?;
        let (scheme, token) = text.split_once(' ').ok_or(ApiError::Unauthenticated)?;
        if !scheme.eq_ignore_ascii_case("bearer") || token.len() != TOKEN {
            return Err(ApiError::Unauthenticated);
        }
        let row = rows(app, BY_TOKEN, &[&bearer_hash(nobody(), token)]).await?.into_iter().next();
        let row = row.ok_or(ApiError::Unauthenticated)?;
        let admin = admin(&row).map_err(|_| ApiError::Forbidden)?;
        let needed: Role = match route.permission {
            Some(role) => role.parse().map_err(|_| ApiError::Forbidden)?,
            None if route.access == Access::User => Role::ReadOnly,
            None => return Err(ApiError::Forbidden),
        };
        if admin.role < needed {
            return Err(ApiError::Forbidden);
        }
        Ok(Self {
            app: app.clone(),
            admin,
            session: row.get("session_id"),
            client: Client::of(&parts.headers),
            request_id: context::request_id(&parts.headers),
            route,
        })
    }
}

/// Rows of the master, within a deadline.
pub(super) async fn rows(app: &App, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, ApiError> {
    let asked = async {
        let client = app.master.get().await.map_err(|e| {
            tracing::warn!(error = %e, "the master is away");
            ApiError::Unavailable
        })?;
        client.query(sql, params).await.map_err(|e| match e.code() {
            Some(code) if *code == SqlState::CHARACTER_NOT_IN_REPERTOIRE => {
                ApiError::Malformed("a text holds what no text may hold".into())
            }
            Some(_) => {
                tracing::error!(error = %e, "the master refused a statement");
                ApiError::Internal
            }
            None => ApiError::Unavailable,
        })
    };
    tokio::time::timeout(ASKED, asked).await.map_err(|_| ApiError::Unavailable)?
}

/// Request of [`login`].
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = AdministratorLogin)]
pub(super) struct Login {
    #[schema(max_length = 254)]
    email: String,
    #[schema(value_type = String)]
    password: SecretString,
    /// Of the second factor, where there is one.
    #[serde(default)]
    #[schema(value_type = Option<String>, max_length = 6)]
    code: Option<SecretString>,
}

/// Response of [`login`].
#[derive(Serialize, ToSchema)]
#[schema(as = AdministratorToken)]
pub(super) struct Token {
    access_token: String,
    token_type: &'static str,
    /// Seconds.
    expires_in: u64,
}

/// 200 with a token; 401 `bad_credentials`, and `totp_required` where only a code is missing; 429 `too_many_attempts`.
pub(super) async fn login(
    State(app): State<Arc<App>>,
    client: Client,
    body: Body<Login>,
) -> Result<Json<Token>, ApiError> {
    let email = body.value.email.trim().to_lowercase();
    let attempt = attempt(&app, &email, &client)?;
    let entered = enter(&app, &client, &email, body.value).await;
    match &entered {
        Ok(_) => app.throttle.succeeded(&attempt),
        Err(ApiError::BadCredentials) => {}
        Err(_) => app.throttle.undecided(&attempt),
    }
    entered.map(Json)
}

fn attempt(app: &App, account: &str, client: &Client) -> Result<Attempt, ApiError> {
    app.throttle.admit(nobody(), account, client.address, Instant::now()).map_err(|wait| {
        let seconds = u32::try_from(wait.as_secs()).unwrap_or(u32::MAX).saturating_add(1);
        ApiError::TooManyAttempts { seconds }
    })
}

async fn enter(app: &App, client: &Client, email: &str, login: Login) -> Result<Token, ApiError> {
    let possible = email.len() <= 254 && !email.contains('\0');
    let found = match possible {
        true => rows(app, BY_EMAIL, &[&email]).await?.into_iter().next(),
        false => None,
    };
    let stored: Option<String> = found.as_ref().map(|r| r.get("password_hash"));
    check_password(app, login.password, stored.clone()).await?;
    let row = found.ok_or(ApiError::BadCredentials)?;
    let id: Uuid = row.get("id");
    if row.get::<_, Option<OffsetDateTime>>("totp_confirmed_at").is_some() {
        let code = login.code.ok_or(ApiError::TotpRequired)?;
        use_code(app, id, &code).await?;
    }
    let token = Bearer::generate(nobody());
    let origin = client.origin();
    let made = rows(
        app,
        BEGIN,
        &[
            &Uuid::now_v7(),
            &id,
            &token.hash,
            &origin.address,
            &origin.user_agent,
            &LIFE.as_secs_f64(),
            &stored,
            &format!("admin:{email}"),
        ],
    )
    .await?;
    // None where the administrator changed while the password was being checked.
    if made.is_empty() {
        return Err(ApiError::BadCredentials);
    }
    Ok(Token { access_token: token.text, token_type: "Bearer", expires_in: LIFE.as_secs() })
}

async fn check_password(app: &App, given: SecretString, stored: Option<String>) -> Result<(), ApiError> {
    if given.expose_secret().len() > password::MAX_BYTES {
        return Err(ApiError::BadCredentials);
    }
    match app.hasher.verify(nobody(), given, stored).await? {
        true => Ok(()),
        false => Err(ApiError::BadCredentials),
    }
}

/// 204; the token ends.
pub(super) async fn logout(admin: Administrator) -> Result<StatusCode, ApiError> {
    rows(&admin.app, "delete from system_sessions where id = $1", &[&admin.session]).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// 200 with who asks.
pub(super) async fn me(admin: Administrator) -> Json<Admin> {
    Json(admin.admin)
}

/// Request of [`change_password`].
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = AdministratorPassword)]
pub(super) struct ChangePassword {
    #[schema(value_type = String)]
    current_password: SecretString,
    #[schema(value_type = String, min_length = 8, max_length = 1024)]
    new_password: SecretString,
}

/// 204; every other session of one's own ends. 401 `bad_credentials` for a wrong password.
pub(super) async fn change_password(
    admin: Administrator,
    body: Body<ChangePassword>,
) -> Result<StatusCode, ApiError> {
    let (app, id) = (&admin.app, admin.admin.id);
    let ChangePassword { current_password, new_password } = body.value;
    let attempt = attempt(app, &format!("own {id}"), &admin.client)?;
    let stored = stored(app, id).await?;
    let checked = check_password(app, current_password, Some(stored.clone())).await;
    match &checked {
        Ok(()) => app.throttle.succeeded(&attempt),
        Err(ApiError::BadCredentials) => {}
        Err(_) => app.throttle.undecided(&attempt),
    }
    checked?;
    let hash = app.hasher.hash(nobody(), new_password).await.map_err(|e| match e {
        ApiError::Invalid { message, .. } => ApiError::invalid("new_password", &message),
        other => other,
    })?;
    let changed = rows(app, SET_PASSWORD, &[&id, &hash, &stored, &admin.session, &admin.actor()]).await?;
    if changed.is_empty() { Err(ApiError::Conflict(Conflict::Meanwhile)) } else { Ok(StatusCode::NO_CONTENT) }
}

async fn stored(app: &App, id: Uuid) -> Result<String, ApiError> {
    let found = rows(app, "select password_hash from system_admins where id = $1", &[&id]).await?;
    Ok(found.first().ok_or(ApiError::Unauthenticated)?.get(0))
}

/// Request of [`begin_totp`].
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = AdministratorTotpBegin)]
pub(super) struct TotpBegin {
    #[schema(value_type = String)]
    password: SecretString,
}

/// Response of [`begin_totp`].
#[derive(Serialize, ToSchema)]
#[schema(as = AdministratorTotpBegun)]
pub(super) struct TotpBegun {
    /// Base32 (RFC 4648).
    secret: String,
    /// `otpauth://…`, for a QR code.
    uri: String,
}

/// Request of [`confirm_totp`] and [`end_totp`].
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = AdministratorTotpCode)]
pub(super) struct TotpCode {
    #[schema(value_type = String, min_length = 6, max_length = 6)]
    code: SecretString,
}

/// 201 with what a device needs; logins need no code until it is confirmed. 409 `totp_active`.
pub(super) async fn begin_totp(
    admin: Administrator,
    body: Body<TotpBegin>,
) -> Result<(StatusCode, Json<TotpBegun>), ApiError> {
    let (app, id) = (&admin.app, admin.admin.id);
    let attempt = attempt(app, &format!("own {id}"), &admin.client)?;
    check_password(app, body.value.password, Some(stored(app, id).await?)).await?;
    app.throttle.succeeded(&attempt);
    let secret: [u8; 20] = rand::random();
    let sealed = app.platform.key().seal(&place(id), &secret).map_err(|_| ApiError::Internal)?;
    if rows(app, BEGIN_TOTP, &[&id, &sealed]).await?.is_empty() {
        return Err(ApiError::Conflict(Conflict::TotpActive));
    }
    let totp = factor(&admin.admin.email, &secret)?;
    let uri = totp.to_url().map_err(|_| ApiError::Internal)?;
    Ok((StatusCode::CREATED, Json(TotpBegun { secret: totp.secret().to_base32(), uri })))
}

/// 204; from now on logins need a code. 409 `totp_not_begun`, `totp_active`.
pub(super) async fn confirm_totp(admin: Administrator, body: Body<TotpCode>) -> Result<StatusCode, ApiError> {
    if admin.admin.totp {
        return Err(ApiError::Conflict(Conflict::TotpActive));
    }
    with_code(&admin, &body.value.code).await?;
    rows(&admin.app, CONFIRM_TOTP, &[&admin.admin.id, &admin.actor(), &admin.session]).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// 204; logins need no code any more. 404 when there is no second factor.
pub(super) async fn end_totp(admin: Administrator, body: Body<TotpCode>) -> Result<StatusCode, ApiError> {
    if !admin.admin.totp {
        return Err(ApiError::NotFound);
    }
    with_code(&admin, &body.value.code).await?;
    rows(&admin.app, END_TOTP, &[&admin.admin.id, &admin.actor()]).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn with_code(admin: &Administrator, code: &SecretString) -> Result<(), ApiError> {
    let attempt = attempt(&admin.app, &format!("own {}", admin.admin.id), &admin.client)?;
    let used = use_code(&admin.app, admin.admin.id, code).await;
    if !matches!(used, Err(ApiError::BadCredentials)) {
        admin.app.throttle.undecided(&attempt);
    }
    used
}

/// Uses a code of the device, which was not used before (RFC 6238, section 5.2).
async fn use_code(app: &App, id: Uuid, code: &SecretString) -> Result<(), ApiError> {
    let found = rows(app, "select totp_secret from system_admins where id = $1", &[&id]).await?;
    let sealed: Option<Vec<u8>> = found.first().and_then(|r| r.get(0));
    let sealed = sealed.ok_or(ApiError::Conflict(Conflict::TotpNotBegun))?;
    let secret = app.platform.key().open(&place(id), &sealed).map_err(|_| ApiError::Internal)?;
    let now = u64::try_from(OffsetDateTime::now_utc().unix_timestamp()).map_err(|_| ApiError::Internal)?;
    let step =
        factor("", &secret)?.check(code.expose_secret().trim(), now).ok_or(ApiError::BadCredentials)?;
    let step = i64::try_from(step).map_err(|_| ApiError::Internal)?;
    match rows(app, USE_STEP, &[&id, &step]).await?.is_empty() {
        true => Err(ApiError::BadCredentials),
        false => Ok(()),
    }
}

/// What a secret is sealed for.
fn place(id: Uuid) -> String {
    format!("system_admins/{id}/totp")
}

fn factor(account: &str, secret: &[u8]) -> Result<Totp, ApiError> {
    let builder = Builder::new()
        .with_secret(secret.to_vec())
        .with_account_name(account.replace(':', " "))
        .with_issuer(Some("gmah"));
    builder.build().map_err(|_| ApiError::Internal)
}

/// Puts the table's row where [`Administrator`] finds it.
pub(super) fn known(route: &'static Route) -> Extension<&'static Route> {
    Extension(route)
}

/// Index: system_sessions_token_hash_key. Uses are noted once a minute.
const BY_TOKEN: &str = "with used as (
        update system_sessions set used_at = now()
        where token_hash = $1 and expires_at > now() and used_at < now() - interval '1 minute')
    select s.id as session_id, a.* from system_sessions s join system_admins a on a.id = s.admin_id
    where s.token_hash = $1 and s.expires_at > now() and a.disabled_at is null";
const BY_EMAIL: &str = "select * from system_admins where email = $1 and disabled_at is null";
/// Only while the password is the one that was checked.
const BEGIN: &str = "with old as (delete from system_sessions where expires_at < now()),
    made as (
        insert into system_sessions (id, admin_id, token_hash, address, user_agent, expires_at)
        select $1, id, $3, $4, $5, now() + make_interval(secs => $6) from system_admins
        where id = $2 and password_hash = $7 and disabled_at is null returning admin_id),
    logged as (
        insert into audit_log (actor, action, detail)
        select $8, 'admin.login', jsonb_build_object('address', $4::text) from made)
    select admin_id from made";
const SET_PASSWORD: &str = "with changed as (
        update system_admins set password_hash = $2, updated_at = now()
        where id = $1 and password_hash = $3 returning id),
    ended as (delete from system_sessions where admin_id = (select id from changed) and id <> $4),
    logged as (insert into audit_log (actor, action) select $5, 'admin.password' from changed)
    select id from changed";
const BEGIN_TOTP: &str = "update system_admins set totp_secret = $2, totp_last_step = 0
    where id = $1 and totp_confirmed_at is null returning id";
const CONFIRM_TOTP: &str = "with changed as (
        update system_admins set totp_confirmed_at = now(), updated_at = now()
        where id = $1 and totp_secret is not null returning id),
    -- Whoever logged in without a code logs in again.
    ended as (delete from system_sessions where admin_id = (select id from changed) and id <> $3)
    insert into audit_log (actor, action) select $2, 'admin.totp_begin' from changed";
const END_TOTP: &str = "with changed as (
        update system_admins set totp_secret = null, totp_confirmed_at = null, updated_at = now()
        where id = $1 returning id)
    insert into audit_log (actor, action) select $2, 'admin.totp_end' from changed";
const USE_STEP: &str =
    "update system_admins set totp_last_step = $2 where id = $1 and totp_last_step < $2 returning id";
