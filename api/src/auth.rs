//! Who the user is.
//!
//! Access tokens are opaque: 256 random bits, stored as SHA-256 over organisation id and token, so that a row copied
//! to another organisation's database opens nothing there. They come as a bearer, or from browsers in a cookie; keys of
//! programs come as a bearer too, and are told by how they begin.

pub mod client;
pub mod cookies;
pub mod password;
pub mod places;
pub mod rights;
pub mod throttle;

use axum::extract::FromRequestParts;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use gmah_shared::tenant::TenantId;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use http::request::Parts;
use uuid::Uuid;

use self::client::Client;
use self::cookies::Proof;
use self::rights::Rights;
use crate::context::TenantContext;
use crate::db::{Opening, TenantDb};
use crate::error::ApiError;
use crate::repo::audit::Actor;
use crate::repo::users::User;
use crate::repo::{api_keys, sessions};
use crate::routes::Route;

/// How keys of programs begin, so that people and scanners know one when they see it.
pub const KEY_PREFIX: &str = "gmahk_";
/// Characters of 32 bytes in base64 without padding.
const SECRET: usize = 43;

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
    /// By what the user is known.
    pub caller: Caller,
    /// What was asked for.
    pub route: &'static Route,
}

/// By what a user is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// A login.
    Session(Uuid),
    /// A program's key.
    Key {
        /// Its id.
        id: Uuid,
        /// Its name.
        name: String,
    },
    /// The platform's support, in the user's name: it reads and does nothing else.
    Support {
        /// Id of the session.
        id: Uuid,
        /// Who it is.
        by: String,
    },
}

impl Caller {
    /// Id of the session or key.
    pub fn id(&self) -> Uuid {
        match self {
            Self::Session(id) | Self::Key { id, .. } | Self::Support { id, .. } => *id,
        }
    }
}

/// What a request brings along, that nobody has looked up yet. A handler with a body takes this, reads the body, and only
/// then opens a [`Session`]: a body that trickles in must not hold a connection.
pub struct Credentials {
    ctx: TenantContext,
    client: Client,
    hash: Vec<u8>,
    kind: Kind,
    route: &'static Route,
}

enum Kind {
    Bearer,
    Key,
    /// With what must prove a change.
    Cookie(Proof),
}

impl Credentials {
    /// The session of the token, if its user may ask for this route here.
    ///
    /// # Errors
    /// [`ApiError::Unauthenticated`], [`ApiError::ModuleDisabled`], [`ApiError::Forbidden`], [`ApiError::CsrfFailed`], or
    /// what opening a connection refuses.
    pub async fn session(self) -> Result<Session, ApiError> {
        let Self { ctx, client, hash, kind, route } = self;
        let mut opening = Opening::of(&ctx);
        let since = ctx.detail().sessions_since;
        let (caller, user) = if matches!(kind, Kind::Key) {
            let found = api_keys::by_hash(&mut opening, &hash, since).await?;
            let (id, name, user) = found.ok_or(ApiError::Unauthenticated)?;
            (Caller::Key { id, name }, user)
        } else {
            let found = sessions::by_access_hash(&mut opening, &hash, since).await?;
            let (id, mut user, impersonator) = found.ok_or(ApiError::Unauthenticated)?;
            match impersonator {
                None => (Caller::Session(id), user),
                Some(_) if route.is_write() => return Err(ApiError::Forbidden),
                Some(by) => {
                    user.permissions = user.permissions.meet(&Rights::new(vec!["*.read".into()]));
                    (Caller::Support { id, by }, user)
                }
            }
        };
        let mut db = opening.opened()?;
        if let Kind::Cookie(proof) = &kind
            && route.is_write()
        {
            let (key, tenant) = (&ctx.app().derived()?.csrf, ctx.detail().tenant.id);
            proof.check(ctx.host().as_str(), key, tenant, caller.id())?;
        }
        if let Some(module) = route.module {
            ctx.require_module(module)?;
        }
        let is_person = matches!(caller, Caller::Session(_));
        let may = route.permission.is_none_or(|wanted| user.permissions.allow(wanted));
        if !may || (route.is_personal && !is_person) {
            return Err(ApiError::Forbidden);
        }
        // Who asks is looked up where nothing is late: a login that has ended has ended.
        if route.reads_only {
            db.read_at_copy(&ctx).await;
        }
        Ok(Session { ctx, client, db, user, caller, route })
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Credentials {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let ctx = TenantContext::from_request_parts(parts, state).await?;
        let (token, kind) = brought(&parts.headers)?;
        let hash = bearer_hash(ctx.detail().tenant.id, token);
        // Absent only on a route that somebody put beside the table: then nobody may.
        let route = *parts.extensions.get::<&'static Route>().ok_or(ApiError::Forbidden)?;
        let client = Client::of(&parts.headers);
        Ok(Self { ctx, client, hash, kind, route })
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
        let name = match &self.caller {
            Caller::Session(_) | Caller::Support { .. } => self.user.email.clone(),
            Caller::Key { name, .. } => format!("{name} ({})", self.user.email).chars().take(254).collect(),
        };
        Actor { id: Some(self.user.id), name }
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

/// `Authorization: Bearer …` (RFC 6750, section 2.1), exactly once, of a length that ours have; or else a cookie.
fn brought(headers: &HeaderMap) -> Result<(&str, Kind), ApiError> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (first, second) = (values.next(), values.next());
    let Some(value) = first.filter(|_| second.is_none()) else {
        let cookie = cookies::access(headers).filter(|token| first.is_none() && token.len() == SECRET);
        let token = cookie.ok_or(ApiError::Unauthenticated)?;
        return Ok((token, Kind::Cookie(Proof::of(headers))));
    };
    let text = value.to_str().map_err(|_| ApiError::Unauthenticated)?;
    let (scheme, token) = text.split_once(' ').ok_or(ApiError::Unauthenticated)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(ApiError::Unauthenticated);
    }
    match token.strip_prefix(KEY_PREFIX) {
        Some(secret) if secret.len() == SECRET => Ok((token, Kind::Key)),
        _ if token.len() == SECRET => Ok((token, Kind::Bearer)),
        _ => Err(ApiError::Unauthenticated),
    }
}
