//! Who the user is.
//!
//! Access tokens are opaque: 256 random bits, stored as SHA-256 over organisation id and token, so that a row copied
//! to another organisation's database opens nothing there.

pub mod client;
pub mod password;
pub mod rights;
pub mod throttle;

use axum::extract::FromRequestParts;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use gmah_shared::tenant::TenantId;
use http::header::AUTHORIZATION;
use http::request::Parts;

use self::client::Client;
use crate::context::TenantContext;
use crate::db::TenantDb;
use crate::error::ApiError;
use crate::repo::audit::Actor;
use crate::repo::sessions;
use crate::repo::users::User;
use crate::routes::Route;

/// A fresh bearer token and what is stored of it.
pub struct Bearer {
    /// For the client, once.
    pub text: String,
    /// For the database.
    pub hash: Vec<u8>,
}

impl Bearer {
    /// A new random token of an organisation.
    pub fn generate(tenant: TenantId) -> Self {
        let text = URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>());
        Self { hash: bearer_hash(tenant, &text), text }
    }
}

/// What is stored of a token: SHA-256 over the organisation's id and the token.
pub fn bearer_hash(tenant: TenantId, token: &str) -> Vec<u8> {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    context.update(tenant.as_uuid().as_bytes());
    context.update(token.as_bytes());
    context.finish().as_ref().to_vec()
}

/// A logged-in user, with the connection that the question was asked on.
pub struct Session {
    /// The organisation.
    pub ctx: TenantContext,
    /// Who asks.
    pub client: Client,
    /// Its database.
    pub db: TenantDb,
    /// The user.
    pub user: User,
    /// The session's id.
    pub id: uuid::Uuid,
    /// What was asked for.
    pub route: &'static Route,
}

/// A bearer token that nobody has looked up yet. A handler with a body takes this, reads the body, and only then opens
/// a [`Session`]: a body that trickles in must not hold a connection.
pub struct Credentials {
    ctx: TenantContext,
    client: Client,
    hash: Vec<u8>,
    route: &'static Route,
}

impl Credentials {
    /// The session of the token, if its user may ask for this route here.
    ///
    /// # Errors
    /// [`ApiError::Unauthenticated`], [`ApiError::ModuleDisabled`], [`ApiError::Forbidden`], or what opening a connection
    /// refuses.
    pub async fn session(self) -> Result<Session, ApiError> {
        let Self { ctx, client, hash, route } = self;
        let mut db = TenantDb::open(&ctx).await?;
        let since = ctx.detail().sessions_since;
        let found = sessions::by_access_hash(&mut db, &hash, since).await?;
        let (id, user) = found.ok_or(ApiError::Unauthenticated)?;
        if let Some(module) = route.module {
            ctx.require_module(module)?;
        }
        if route.permission.is_some_and(|wanted| !user.permissions.allow(wanted)) {
            return Err(ApiError::Forbidden);
        }
        Ok(Session { ctx, client, db, user, id, route })
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Credentials {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let ctx = TenantContext::from_request_parts(parts, state).await?;
        let hash = bearer_hash(ctx.detail().tenant.id, bearer(parts)?);
        // Absent only on a route that somebody put beside the table: then nobody may.
        let route = *parts.extensions.get::<&'static Route>().ok_or(ApiError::Forbidden)?;
        let client = Client::of(&parts.headers);
        Ok(Self { ctx, client, hash, route })
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Session {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        Credentials::from_request_parts(parts, state).await?.session().await
    }
}

impl Session {
    /// What is written down of the caller beside what it changes.
    pub fn actor(&self) -> Actor {
        Actor { id: Some(self.user.id), name: self.user.email.clone() }
    }

    /// Waits for something with the connection given back, and takes another one afterwards.
    ///
    /// # Errors
    /// What opening a connection refuses.
    pub async fn without_connection<T>(&mut self, wait: impl Future<Output = T>) -> Result<T, ApiError> {
        self.db.give_back();
        let waited = wait.await;
        self.db = TenantDb::open(&self.ctx).await?;
        Ok(waited)
    }
}

/// `Authorization: Bearer …` (RFC 6750, section 2.1), exactly once, of the length that ours have.
fn bearer(parts: &Parts) -> Result<&str, ApiError> {
    let mut values = parts.headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(ApiError::Unauthenticated);
    };
    let text = value.to_str().map_err(|_| ApiError::Unauthenticated)?;
    let (scheme, token) = text.split_once(' ').ok_or(ApiError::Unauthenticated)?;
    if scheme.eq_ignore_ascii_case("bearer") && token.len() == 43 {
        Ok(token)
    } else {
        Err(ApiError::Unauthenticated)
    }
}
