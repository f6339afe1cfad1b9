//! `/api/v1/auth/totp`: a second factor, for who wants one (RFC 6238: SHA-1, six digits, thirty seconds, which is what
//! every program on a telephone does).

use axum::response::Response;
use http::StatusCode;
use rand::RngExt as _;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::json;
use time::OffsetDateTime;
use totp_rs::{Builder, Totp};
use utoipa::ToSchema;
use uuid::Uuid;

use super::auth::attempt;
use super::{Answer, Asked, Body, once};
use crate::auth::{Credentials, password};
use crate::context::TenantContext;
use crate::db::Query;
use crate::error::{ApiError, Conflict};
use crate::repo::{totp, users};

/// Request of [`begin`].
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TotpBegin {
    #[schema(value_type = String)]
    password: SecretString,
}

/// Response of [`begin`].
#[derive(Serialize, ToSchema)]
pub struct TotpBegun {
    /// In base32, to be typed.
    secret: String,
    /// `otpauth://…`, to be shown as a QR code.
    uri: String,
}

/// Request of [`confirm`] and [`end`].
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TotpCode {
    #[schema(value_type = String, min_length = 6, max_length = 32)]
    code: SecretString,
}

/// Response of [`confirm`].
#[derive(Serialize, ToSchema)]
pub struct RecoveryCodes {
    /// Each works once in place of a code, for when the device is lost. They are not shown again.
    recovery_codes: Vec<String>,
}

const CODES: usize = 10;
/// Digits and letters that nobody takes for one another.
const ALPHABET: &[u8; 31] = b"23456789abcdefghjkmnpqrstuvwxyz";

/// 201 with a secret. Nothing is asked for before it is confirmed. 401 `bad_credentials` for a wrong password: who has
/// found an open browser does not lock its owner out. 409 `totp_active`.
pub async fn begin(
    credentials: Credentials,
    asked: Asked,
    body: Body<TotpBegin>,
) -> Result<Response, ApiError> {
    let mut session = credentials.session().await?;
    let own = format!("own {}", session.user.id);
    let attempt = attempt(session.ctx.app(), session.ctx.detail().tenant.id, &own, &session.client)?;
    let (_, stored) = users::get(&mut session.db, session.user.id).await?.ok_or(ApiError::Unauthenticated)?;
    let password = body.value.password;
    if password.expose_secret().len() > password::MAX_BYTES {
        return Err(ApiError::BadCredentials);
    }
    let (app, tenant) = (session.ctx.app().clone(), session.ctx.detail().tenant.id);
    let verified = session.without_connection(app.hasher.verify(tenant, password, stored)).await?;
    match verified {
        Ok(true) => app.throttle.succeeded(&attempt),
        Ok(false) => return Err(ApiError::BadCredentials),
        Err(e) => {
            app.throttle.undecided(&attempt);
            return Err(e);
        }
    }
    let secret: [u8; 20] = rand::random();
    let (ctx, user) = (session.ctx.clone(), session.user.clone());
    let totp = factor(&ctx, &user.email, &secret)?;
    let uri = totp.to_url().map_err(|_| ApiError::Internal)?;
    let begun = TotpBegun { secret: totp.secret().to_base32(), uri };
    let sealed = ctx.seal(totp::place(user.id), &secret)?;
    once(&mut session, &asked, &body.raw, async move |tx| {
        if !totp::begin(tx, user.id, &sealed).await? {
            return Err(ApiError::Conflict(Conflict::TotpActive));
        }
        tx.record("users.begin_totp", user.id, &(), &()).await?;
        Answer::new(StatusCode::CREATED, &begun)
    })
    .await
}

/// 200 with codes for when the device is lost; from now on logins need a code. 401 `bad_credentials` for a wrong one, 409
/// `totp_not_begun`, `totp_active`.
pub async fn confirm(
    credentials: Credentials,
    asked: Asked,
    body: Body<TotpCode>,
) -> Result<Response, ApiError> {
    let mut session = credentials.session().await?;
    let (ctx, user) = (session.ctx.clone(), session.user.clone());
    let (app, tenant) = (ctx.app().clone(), ctx.detail().tenant.id);
    let attempt = attempt(&app, tenant, &format!("own {}", user.id), &session.client)?;
    let code = body.value.code;
    let confirmed = once(&mut session, &asked, &body.raw, async |tx| {
        let found = totp::get(tx, user.id).await?.ok_or(ApiError::Conflict(Conflict::TotpNotBegun))?;
        if found.is_confirmed {
            return Err(ApiError::Conflict(Conflict::TotpActive));
        }
        if !use_code(tx, &ctx, user.id, &found.secret, &code).await? {
            return Err(ApiError::BadCredentials);
        }
        let codes: Vec<_> = (0..CODES).map(|_| recovery_code()).collect();
        let hashes = codes.iter().map(|c| code_hash(&ctx, user.id, c)).collect::<Result<Vec<_>, _>>()?;
        totp::confirm(tx, user.id, &hashes).await?;
        tx.record("users.confirm_totp", user.id, &(), &json!({"totp": true})).await?;
        Answer::new(StatusCode::OK, &RecoveryCodes { recovery_codes: codes })
    })
    .await;
    if !matches!(confirmed, Err(ApiError::BadCredentials)) {
        app.throttle.undecided(&attempt);
    }
    confirmed
}

/// 204; logins need no code any more. 401 `bad_credentials` for a wrong code, 404 when there is no second factor.
pub async fn end(credentials: Credentials, asked: Asked, body: Body<TotpCode>) -> Result<Response, ApiError> {
    let mut session = credentials.session().await?;
    let (ctx, user) = (session.ctx.clone(), session.user.clone());
    let (app, tenant) = (ctx.app().clone(), ctx.detail().tenant.id);
    let attempt = attempt(&app, tenant, &format!("own {}", user.id), &session.client)?;
    let code = body.value.code;
    let ended = once(&mut session, &asked, &body.raw, async |tx| {
        let found = totp::get(tx, user.id).await?.filter(|f| f.is_confirmed).ok_or(ApiError::NotFound)?;
        if !use_code(tx, &ctx, user.id, &found.secret, &code).await? {
            return Err(ApiError::BadCredentials);
        }
        totp::delete(tx, user.id).await?;
        tx.record("users.end_totp", user.id, &json!({"totp": true}), &()).await?;
        Ok(Answer::nothing())
    })
    .await;
    if !matches!(ended, Err(ApiError::BadCredentials)) {
        app.throttle.undecided(&attempt);
    }
    ended
}

/// Asks for a code where the user has a second factor.
pub(super) async fn check_code(
    tx: &mut impl Query,
    ctx: &TenantContext,
    user: Uuid,
    code: Option<&SecretString>,
) -> Result<(), ApiError> {
    let Some(found) = totp::get(tx, user).await?.filter(|f| f.is_confirmed) else { return Ok(()) };
    let code = code.ok_or(ApiError::TotpRequired)?;
    if use_code(tx, ctx, user, &found.secret, code).await? { Ok(()) } else { Err(ApiError::BadCredentials) }
}

/// Uses a code of the device, or one for when it is lost; false when it is none, or was used before.
async fn use_code(
    tx: &mut impl Query,
    ctx: &TenantContext,
    user: Uuid,
    sealed: &[u8],
    code: &SecretString,
) -> Result<bool, ApiError> {
    let code = code.expose_secret().trim();
    if code.len() != 6 {
        let hash = code_hash(ctx, user, &code.to_ascii_lowercase())?;
        return Ok(totp::use_code(tx, user, &hash).await?);
    }
    let secret = ctx.open_sealed(totp::place(user), sealed)?;
    let now = u64::try_from(OffsetDateTime::now_utc().unix_timestamp()).map_err(|_| ApiError::Internal)?;
    let Some(step) = factor(ctx, "", &secret)?.check(code, now) else { return Ok(false) };
    let step = i64::try_from(step).map_err(|_| ApiError::Internal)?;
    Ok(totp::use_step(tx, user, step).await?)
}

/// Under the organisation's key: a copy of the database is no help in finding codes that are this short.
fn code_hash(ctx: &TenantContext, user: Uuid, code: &str) -> Result<Vec<u8>, ApiError> {
    Ok(ctx.data_keys()?.blind_index("recovery_codes", &user.to_string(), code))
}

fn factor(ctx: &TenantContext, account: &str, secret: &[u8]) -> Result<Totp, ApiError> {
    let builder = Builder::new()
        .with_secret(secret.to_vec())
        .with_account_name(account.replace(':', " "))
        .with_issuer(Some(ctx.detail().name.replace(':', " ")));
    builder.build().map_err(|_| ApiError::Internal)
}

/// `xxxxx-xxxxx`: 49 bits, guessed at under the throttle.
fn recovery_code() -> String {
    let mut rng = rand::rng();
    let mut half =
        || -> String { (0..5).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])).collect() };
    format!("{}-{}", half(), half())
}
