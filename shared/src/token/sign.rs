//! Minting.

use std::sync::Arc;

use arc_swap::ArcSwap;
use jsonwebtoken::{Algorithm, Header};

use super::{AUDIENCE_PLATFORM, Claims, ISSUER, Keyring, MAX_LIFE_SECONDS, PlatformClaims};
use crate::hostname::Hostname;
use crate::tenant::{Generation, TenantId, TenantSlug};

/// Mints tokens with the key that signs at that moment.
#[derive(Clone)]
pub struct Signer {
    keyring: Arc<ArcSwap<Keyring>>,
}

/// Why no token could be minted.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The ring has no private key.
    #[error("no signing key is loaded")]
    NoKey,
    /// The library refused.
    #[error("signing failed")]
    Failed(#[source] jsonwebtoken::errors::Error),
}

impl Signer {
    /// A signer over a ring that others may exchange.
    pub fn new(keyring: Arc<ArcSwap<Keyring>>) -> Self {
        Self { keyring }
    }

    /// Signs for one organisation under one host, for [`MAX_LIFE_SECONDS`] from `now` (seconds since the epoch).
    ///
    /// # Errors
    /// [`SignError`] when no key is loaded or it does not work.
    pub fn sign(
        &self,
        audience: &str,
        tenant: TenantId,
        slug: &TenantSlug,
        host: &Hostname,
        generation: Generation,
        now: u64,
    ) -> Result<String, SignError> {
        self.sign_claims(&Claims {
            iss: ISSUER.to_owned(),
            aud: audience.to_owned(),
            sub: tenant,
            slug: slug.as_str().to_owned(),
            host: host.as_str().to_owned(),
            generation,
            iat: now,
            exp: now + MAX_LIFE_SECONDS,
        })
    }

    /// Signs for the platform's own host, for [`MAX_LIFE_SECONDS`] from `now`.
    ///
    /// # Errors
    /// As [`Signer::sign`].
    pub fn sign_platform(&self, host: &Hostname, now: u64) -> Result<String, SignError> {
        self.sign_claims(&PlatformClaims {
            iss: ISSUER.to_owned(),
            aud: AUDIENCE_PLATFORM.to_owned(),
            host: host.as_str().to_owned(),
            iat: now,
            exp: now + MAX_LIFE_SECONDS,
        })
    }

    /// Signs claims as they are; the caller answers for them.
    ///
    /// # Errors
    /// As [`Signer::sign`].
    pub fn sign_claims<T: serde::Serialize>(&self, claims: &T) -> Result<String, SignError> {
        let ring = self.keyring.load();
        let key = ring.signing().ok_or(SignError::NoKey)?;
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some(key.kid().to_owned());
        jsonwebtoken::encode(&header, claims, &key.encoding).map_err(SignError::Failed)
    }

    /// Whether the key of that id is the one that signs now. A token of another one is not worth keeping.
    pub fn signs_with(&self, kid: &str) -> bool {
        self.keyring.load().signing().is_some_and(|key| key.kid() == kid)
    }

    /// The id of the key that signs now.
    pub fn kid(&self) -> Option<Arc<str>> {
        self.keyring.load().signing().map(|key| key.kid.clone())
    }

    /// The ring as it is now, for the JWKS document.
    pub fn keyring(&self) -> Arc<Keyring> {
        self.keyring.load_full()
    }
}
