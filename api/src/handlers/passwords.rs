//! `/api/v1/auth/password`: changed by who knows it, and chosen anew by who has a link.

use std::time::Duration;

use http::StatusCode;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use utoipa::ToSchema;
use uuid::Uuid;

use super::Body;
use super::auth::attempt;
use crate::auth::client::Client;
use crate::auth::{Bearer, Caller, Credentials, bearer_hash, password};
use crate::context::TenantContext;
use crate::db::{Query, TenantDb};
use crate::error::ApiError;
use crate::language::Language;
use crate::mail;
use crate::repo::audit::{self, Actor, By};
use crate::repo::links::{self, Purpose};
use crate::repo::users::{self, User};
use crate::repo::{api_keys, outbox, sessions};
use crate::settings::{self, CoreSettings};

/// Request of [`change`].
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangePassword {
    #[schema(value_type = String)]
    current_password: SecretString,
    #[schema(value_type = String, min_length = 8, max_length = 1024)]
    new_password: SecretString,
}

/// Request of [`forgotten`].
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ForgottenPassword {
    #[schema(max_length = 254)]
    email: String,
}

/// Request of [`set`].
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetPassword {
    /// Out of the link.
    #[schema(value_type = String)]
    token: SecretString,
    #[schema(value_type = String, min_length = 8, max_length = 1024)]
    new_password: SecretString,
}

/// 204; the password is another, and all other sessions and all keys of the user end. 401 `bad_credentials` when the
/// current one is wrong, 422 when the new one is too short or too long, 429 as for a login.
pub async fn change(
    credentials: Credentials,
    client: Client,
    body: Body<ChangePassword>,
) -> Result<StatusCode, ApiError> {
    let mut session = credentials.session().await?;
    let (app, tenant) = (session.ctx.app().clone(), session.ctx.detail().tenant.id);
    // Counted apart from logins: strangers who guess do not keep anybody from this.
    let attempt = attempt(&app, tenant, &format!("own {}", session.user.id), &client)?;
    let (_, stored) = users::get(&mut session.db, session.user.id).await?.ok_or(ApiError::Unauthenticated)?;
    let ChangePassword { current_password, new_password } = body.value;
    if current_password.expose_secret().len() > password::MAX_BYTES {
        return Err(ApiError::BadCredentials);
    }
    let hashing = async {
        let verified = app.hasher.verify(tenant, current_password, stored.clone()).await;
        match verified {
            Ok(true) => app.throttle.succeeded(&attempt),
            Ok(false) => return Err(ApiError::BadCredentials),
            Err(e) => {
                app.throttle.undecided(&attempt);
                return Err(e);
            }
        }
        app.hasher.hash(tenant, new_password).await.map_err(named("new_password"))
    };
    let hash = session.without_connection(hashing).await??;
    let (by, user, caller) = (By::of(&session), session.user.id, session.caller.clone());
    let mut tx = session.db.transaction().await?;
    users::lock_administrators(&mut tx).await?;
    // While the hashes were computed somebody may have chosen another, or ended this session.
    let still = sessions::rights(&mut tx, caller.id()).await?.is_some()
        && users::get(&mut tx, user).await?.is_some_and(|(_, now)| now == stored);
    if !still {
        tx.rollback().await?;
        return Err(ApiError::Unauthenticated);
    }
    another(&mut tx, &by, "users.change_password", user, &hash, Some(&caller)).await?;
    tx.commit().await?;
    audit::log(&session.ctx, &by, "users.change_password", Some(&user.to_string()));
    Ok(StatusCode::NO_CONTENT)
}

/// 202 whoever asks, and at once, so that nothing tells which accounts there are. If the account exists its owner gets a
/// letter with a link that works once, for an hour. 429 as for a login.
pub async fn forgotten(
    ctx: TenantContext,
    client: Client,
    body: Body<ForgottenPassword>,
) -> Result<StatusCode, ApiError> {
    let app = ctx.app().clone();
    let email = body.value.email.trim().to_lowercase();
    // Counted apart from logins: who floods somebody with letters does not keep them from logging in.
    attempt(&app, ctx.detail().tenant.id, &format!("forgotten {email}"), &client)?;
    if email.len() > 254 || email.contains('\0') {
        return Ok(StatusCode::ACCEPTED);
    }
    let place = app.letters.enter(ctx.detail().tenant.id).ok_or(ApiError::Unavailable)?;
    app.tasks.spawn("forgotten-password", async move {
        // Nobody waits for it, and nobody will ask again who was told that it will be done.
        for pause in PAUSES {
            tokio::time::sleep(pause).await;
            match write_reset(&ctx, &client, &email).await {
                Ok(()) => break,
                Err(e) => {
                    tracing::warn!(tenant = %ctx.detail().tenant.slug, code = e.parts().1, "no letter was written");
                }
            }
        }
        drop(place);
    });
    Ok(StatusCode::ACCEPTED)
}

/// Before each try at writing a letter.
const PAUSES: [Duration; 4] =
    [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(9)];

async fn write_reset(ctx: &TenantContext, client: &Client, email: &str) -> Result<(), ApiError> {
    let mut db = TenantDb::open(ctx).await?;
    let Some((user, _)) = users::by_email(&mut db, email).await? else { return Ok(()) };
    let by = By::new(Actor { id: None, name: "anonymous".into() }, ctx, client);
    let mut tx = db.transaction().await?;
    // One who has a link that is young needs no other, and nobody keeps anybody from using theirs.
    if !send_link(&mut tx, ctx, client.language, &user, Purpose::Reset).await? {
        return Ok(tx.rollback().await?);
    }
    let id = user.id.to_string();
    audit::insert(&mut tx, &by, "users.forgotten_password", Some(&id), &Value::Null, &Value::Null).await?;
    tx.commit().await?;
    audit::log(ctx, &by, "users.forgotten_password", Some(&id));
    ctx.app().mailer.hint(ctx.detail().tenant.id);
    Ok(())
}

/// 204; the password of the link's user is the new one, and all sessions and keys of the user end. 422 `link_invalid`
/// when the link was used or is over; 422 when the password is too short or too long, and then the link still works.
pub async fn set(
    ctx: TenantContext,
    client: Client,
    body: Body<SetPassword>,
) -> Result<StatusCode, ApiError> {
    let SetPassword { token, new_password } = body.value;
    let (app, tenant) = (ctx.app(), ctx.detail().tenant.id);
    if token.expose_secret().len() != 43 {
        return Err(ApiError::LinkInvalid);
    }
    let link = bearer_hash(tenant, token.expose_secret());
    {
        // Nobody makes us hash without a link.
        let mut db = TenantDb::open(&ctx).await?;
        if !links::works(&mut db, &link).await? {
            return Err(ApiError::LinkInvalid);
        }
    }
    let hash = app.hasher.hash(tenant, new_password).await.map_err(named("new_password"))?;
    let mut db = TenantDb::open(&ctx).await?;
    let mut tx = db.transaction().await?;
    users::lock_administrators(&mut tx).await?;
    let Some((user, email)) = links::take(&mut tx, &link).await? else {
        tx.rollback().await?;
        return Err(ApiError::LinkInvalid);
    };
    let by = By::new(Actor { id: Some(user), name: email }, &ctx, &client);
    another(&mut tx, &by, "users.set_password", user, &hash, None).await?;
    tx.commit().await?;
    audit::log(&ctx, &by, "users.set_password", Some(&user.to_string()));
    Ok(StatusCode::NO_CONTENT)
}

/// Gives a user another password, and ends what was begun with the one before, but for `keep`. Under the lock of whoever
/// makes keys: one that is being made must not survive.
async fn another(
    tx: &mut impl Query,
    by: &By,
    action: &'static str,
    user: Uuid,
    hash: &str,
    keep: Option<&Caller>,
) -> Result<(), ApiError> {
    users::set_password(tx, user, hash).await?;
    sessions::delete_all(tx, user, keep.map(Caller::id)).await?;
    api_keys::delete_all(tx, user).await?;
    links::delete_all(tx, user).await?;
    audit::insert(tx, by, action, Some(&user.to_string()), &Value::Null, &json!({})).await?;
    Ok(())
}

/// Writes a letter with a link that works once; false where there is one so young that another would only get in its way.
pub(super) async fn send_link(
    tx: &mut impl Query,
    ctx: &TenantContext,
    language: Option<Language>,
    user: &User,
    purpose: Purpose,
) -> Result<bool, ApiError> {
    let detail = ctx.detail();
    let token = Bearer::generate(detail.tenant.id);
    let expires_at = OffsetDateTime::now_utc() + purpose.life();
    if !links::put(tx, user.id, purpose, &token.hash, expires_at).await? {
        return Ok(false);
    }
    let app = ctx.app();
    let template = app.config.mail.as_ref().map_or(DEFAULT_LINK, |m| m.link.as_str());
    let link = template
        .replace("{host}", &app.names.authority(&detail.tenant.slug, ctx.host()))
        .replace("{purpose}", purpose.as_str())
        .replace("{token}", &token.text);
    let write = match purpose {
        Purpose::Invitation => mail::invitation,
        Purpose::Reset => mail::reset,
    };
    let language = match language {
        Some(language) => language,
        None => settings::of::<CoreSettings>(tx).await?.language,
    };
    let letter = write(language, &user.email, &user.name, &detail.name, &link);
    outbox::insert(tx, ctx, &letter, expires_at).await?;
    Ok(true)
}

const DEFAULT_LINK: &str = "https://{host}/account#{purpose}={token}";

/// The rule of a password, at the field that broke it.
pub(super) fn named(field: &'static str) -> impl Fn(ApiError) -> ApiError {
    move |e| match e {
        ApiError::Invalid { message, .. } => ApiError::Invalid { field: field.into(), message },
        other => other,
    }
}
