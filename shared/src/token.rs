//! The signed header between the router and the backends: a JWT (RFC 7519) signed with Ed25519 (RFC 8037).
//!
//! ```text
//! X-Tenant-Token: <header>.<claims>.<signature>
//! header  {"typ":"JWT","alg":"EdDSA","kid":"<RFC 7638 thumbprint of the public key>"}
//! claims  {"iss":"gmah-router","aud":"gmah-api","sub":"<organisation id>","slug":"paris",
//!          "host":"paris.gmah.com","gen":7,"iat":1767225600,"exp":1767225660}
//! ```
//!
//! Threats and answers:
//!
//! * *The client sends the header itself.* The router removes it and every spelling of it, and sets its own last.
//! * *Somebody reaches the api directly.* Without a key of the ring nothing verifies; only `EdDSA` exists here, the
//!   algorithm is never taken from the token, and `kid` is looked up in a map in memory, never a path or a query.
//! * *A backend replays the token to another.* Each pool has its own audience.
//! * *A token for one host is used under another.* `host` is signed and must equal the request's own authority.
//! * *An old token outlives a suspension or a move.* `gen` is compared with the catalog; a token lives 60 s at most.
//!
//! All refusals look the same from outside: which check failed is for the log only. A token is a bearer within its
//! minute, so the hop between router and backends is private or TLS.
//!
//! Keys rotate by overlap: a new key is published before it signs, an old one verifies until its tokens are dead.

mod keyring;
mod provider;
mod sign;
mod verify;

use serde::{Deserialize, Serialize};

use crate::tenant::{Generation, TenantId};

pub use keyring::{KeyError, Keyring, SigningKey, VerifyingKey};
pub use sign::{SignError, Signer};
pub use verify::{TokenError, VerifiedToken, Verifier};

/// The header that carries the token.
pub const HEADER: &str = "x-tenant-token";
/// `iss` of every token.
pub const ISSUER: &str = "gmah-router";
/// `aud` for the pool `api`.
pub const AUDIENCE_API: &str = "gmah-api";
/// `aud` for the platform's own host.
pub const AUDIENCE_PLATFORM: &str = "gmah-platform";
/// Longest life of a token in seconds.
pub const MAX_LIFE_SECONDS: u64 = 60;
/// How far two clocks may differ, in seconds.
pub const LEEWAY_SECONDS: u64 = 5;
/// Longest token in bytes that is looked at.
pub const MAX_TOKEN_BYTES: usize = 2048;

/// What a token says. Every claim is required.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// [`ISSUER`].
    pub iss: String,
    /// Audience of the pool that the request is sent to.
    pub aud: String,
    /// Organisation id.
    pub sub: TenantId,
    /// Slug, for logs and for foreign backends; `sub` decides.
    pub slug: String,
    /// The normalised authority, which is forwarded as `Host`.
    pub host: String,
    /// Generation of the organisation as the router knew it.
    #[serde(rename = "gen")]
    pub generation: Generation,
    /// Issued at, seconds since the epoch.
    pub iat: u64,
    /// Not valid from this second on.
    pub exp: u64,
}

/// What a token for the platform's own host says: it is of no organisation. Every claim is required.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlatformClaims {
    /// [`ISSUER`].
    pub iss: String,
    /// [`AUDIENCE_PLATFORM`].
    pub aud: String,
    /// The platform's host.
    pub host: String,
    /// Issued at, seconds since the epoch.
    pub iat: u64,
    /// Not valid from this second on.
    pub exp: u64,
}

impl Serialize for TenantId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TenantId {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// Seconds since the epoch by this machine's clock.
pub fn now_seconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

#[cfg(test)]
mod tests;
