//! Checking. Bounds come first, then the header, then the signature, then each claim.

use std::sync::Arc;

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, Validation};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{Claims, ISSUER, Keyring, LEEWAY_SECONDS, MAX_LIFE_SECONDS, MAX_TOKEN_BYTES, PlatformClaims};
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
        let claims: Claims = self.claims(token)?;
        self.check(&claims.iss, &claims.aud, (claims.iat, claims.exp), now)?;
        Ok(VerifiedToken {
            tenant: claims.sub,
            slug: TenantSlug::parse(&claims.slug).map_err(|_| TokenError::Claims)?,
            host: normal(&claims.host)?,
            generation: claims.generation,
            expires: claims.exp,
        })
    }

    /// As [`Verifier::verify`], for a token that is of no organisation; answers the host that it was minted for.
    ///
    /// # Errors
    /// [`TokenError`], for the log only.
    pub fn verify_platform(&self, token: &str, now: u64) -> Result<Hostname, TokenError> {
        let claims: PlatformClaims = self.claims(token)?;
        self.check(&claims.iss, &claims.aud, (claims.iat, claims.exp), now)?;
        normal(&claims.host)
    }

    /// The claims of a token whose signature holds.
    fn claims<T: DeserializeOwned>(&self, token: &str) -> Result<T, TokenError> {
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
        let data = jsonwebtoken::decode::<T>(token, &key.decoding, &signature_only()).map_err(|e| {
            use jsonwebtoken::errors::ErrorKind;
            match e.kind() {
                ErrorKind::InvalidSignature => TokenError::Signature,
                ErrorKind::Json(_) | ErrorKind::Utf8(_) | ErrorKind::MissingRequiredClaim(_) => {
                    TokenError::Claims
                }
                _ => TokenError::Malformed,
            }
        })?;
        Ok(data.claims)
    }

    fn check(&self, iss: &str, aud: &str, (iat, exp): (u64, u64), now: u64) -> Result<(), TokenError> {
        if iss != ISSUER || aud != &*self.audience {
            return Err(TokenError::Audience);
        }
        let life = exp.checked_sub(iat).ok_or(TokenError::Time)?;
        let expired = now >= exp.saturating_add(LEEWAY_SECONDS);
        let premature = iat > now.saturating_add(LEEWAY_SECONDS);
        if life > MAX_LIFE_SECONDS || life == 0 || expired || premature {
            return Err(TokenError::Time);
        }
        Ok(())
    }
}

/// A host as it is signed: in its normal form to the letter.
fn normal(host: &str) -> Result<Hostname, TokenError> {
    let parsed = Hostname::parse(host).map_err(|_| TokenError::Claims)?;
    if parsed.as_str() == host { Ok(parsed) } else { Err(TokenError::Claims) }
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
