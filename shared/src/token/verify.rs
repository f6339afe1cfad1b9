//! Checking. Bounds come first, then the header, then the signature, then each claim.

use std::sync::Arc;

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, Validation};
use serde::Deserialize;

use super::{Claims, ISSUER, Keyring, LEEWAY_SECONDS, MAX_LIFE_SECONDS, MAX_TOKEN_BYTES};
use crate::hostname::Hostname;
use crate::tenant::{Generation, TenantId, TenantSlug};

/// A token whose signature and claims have been checked. Whether its host is the request's own, and whether its
/// generation is the current one, is for the holder of the request and of the catalog.
#[derive(Debug, Clone)]
pub struct VerifiedToken {
    /// Organisation.
    pub tenant: TenantId,
    /// Slug at the time of signing, for logs.
    pub slug: TenantSlug,
    /// The authority that the token was minted for.
    pub host: Hostname,
    /// Generation as the router knew it.
    pub generation: Generation,
    /// Not valid from this second on.
    pub expires: u64,
}

/// Which check failed. For the log; from outside all are one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Over [`MAX_TOKEN_BYTES`].
    #[error("token is too long")]
    TooLong,
    /// Not three base64url parts, or a header that is not ours to the letter.
    #[error("token or its header is malformed")]
    Malformed,
    /// `alg` is not `EdDSA`.
    #[error("algorithm is not EdDSA")]
    Algorithm,
    /// `kid` is not in the ring.
    #[error("key id is not known")]
    UnknownKey,
    /// The signature is not this key's over these bytes.
    #[error("signature does not verify")]
    Signature,
    /// A claim is missing, twice there, or of another type.
    #[error("a claim is missing or of another type")]
    Claims,
    /// `iss` or `aud` is another's.
    #[error("issuer or audience is another's")]
    Audience,
    /// Past `exp`, before `iat`, or longer than a token may live.
    #[error("token is expired, issued in the future, or too long-lived")]
    Time,
}

/// Verifies tokens for one audience.
#[derive(Clone)]
pub struct Verifier {
    keyring: Arc<ArcSwap<Keyring>>,
    audience: Arc<str>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StrictHeader<'a> {
    #[serde(borrow)]
    alg: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    kid: std::borrow::Cow<'a, str>,
    #[serde(borrow, default)]
    typ: Option<std::borrow::Cow<'a, str>>,
}

impl Verifier {
    /// A verifier for `audience` over a ring that others may exchange.
    pub fn new(keyring: Arc<ArcSwap<Keyring>>, audience: &str) -> Self {
        Self { keyring, audience: audience.into() }
    }

    /// Whether there is a key at all. Without one nothing is known of any token, good or bad.
    pub fn has_keys(&self) -> bool {
        !self.keyring.load().is_empty()
    }

    /// Checks a token against the clock `now` (seconds since the epoch).
    ///
    /// # Errors
    /// [`TokenError`], for the log only.
    pub fn verify(&self, token: &str, now: u64) -> Result<VerifiedToken, TokenError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::TooLong);
        }
        let (head, _) = token.split_once('.').ok_or(TokenError::Malformed)?;
        let head = URL_SAFE_NO_PAD.decode(head).map_err(|_| TokenError::Malformed)?;
        let header: StrictHeader<'_> = serde_json::from_slice(&head).map_err(|_| TokenError::Malformed)?;
        if header.alg != "EdDSA" {
            return Err(TokenError::Algorithm);
        }
        if header.typ.is_some_and(|t| t != "JWT") {
            return Err(TokenError::Malformed);
        }
        let ring = self.keyring.load();
        let key = ring.verifying(&header.kid).ok_or(TokenError::UnknownKey)?;
        let data = jsonwebtoken::decode::<Claims>(token, &key.decoding, &signature_only()).map_err(|e| {
            use jsonwebtoken::errors::ErrorKind;
            match e.kind() {
                ErrorKind::InvalidSignature => TokenError::Signature,
                ErrorKind::Json(_) | ErrorKind::Utf8(_) | ErrorKind::MissingRequiredClaim(_) => {
                    TokenError::Claims
                }
                _ => TokenError::Malformed,
            }
        })?;
        self.check_claims(data.claims, now)
    }

    fn check_claims(&self, claims: Claims, now: u64) -> Result<VerifiedToken, TokenError> {
        if claims.iss != ISSUER || claims.aud != *self.audience {
            return Err(TokenError::Audience);
        }
        let life = claims.exp.checked_sub(claims.iat).ok_or(TokenError::Time)?;
        let expired = now >= claims.exp.saturating_add(LEEWAY_SECONDS);
        let premature = claims.iat > now.saturating_add(LEEWAY_SECONDS);
        if life > MAX_LIFE_SECONDS || life == 0 || expired || premature {
            return Err(TokenError::Time);
        }
        let host = Hostname::parse(&claims.host).map_err(|_| TokenError::Claims)?;
        if host.as_str() != claims.host {
            return Err(TokenError::Claims);
        }
        Ok(VerifiedToken {
            tenant: claims.sub,
            slug: TenantSlug::parse(&claims.slug).map_err(|_| TokenError::Claims)?,
            host,
            generation: claims.generation,
            expires: claims.exp,
        })
    }
}

/// The library checks the signature; claims are checked here, every one, with a leeway of our own.
fn signature_only() -> Validation {
    let mut v = Validation::new(Algorithm::EdDSA);
    v.required_spec_claims.clear();
    v.validate_exp = false;
    v.validate_aud = false;
    v.validate_nbf = false;
    v
}
