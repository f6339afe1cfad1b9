//! Step 1: the header becomes a [`VerifiedToken`], or 401.
//!
//! A signature is checked once: what verified is remembered until it expires, by the SHA-256 of the token, in a
//! bounded cache that is emptied when the keys change.

use std::sync::Arc;
use std::time::Duration;

use gmah_shared::token::{HEADER, LEEWAY_SECONDS, MAX_LIFE_SECONDS, VerifiedToken, Verifier, now_seconds};
use http::HeaderMap;

use crate::error::ApiError;
use crate::metrics::Metrics;

/// Checks tokens and remembers those that held.
pub struct TokenCheck {
    verifier: Verifier,
    remembered: moka::sync::Cache<[u8; 32], Arc<VerifiedToken>>,
    metrics: Arc<Metrics>,
}

/// Tokens remembered at most: one per organisation and host that is being used.
const REMEMBERED: u64 = 100_000;

impl TokenCheck {
    /// A check with nothing remembered.
    pub fn new(verifier: Verifier, metrics: Arc<Metrics>) -> Self {
        let remembered = moka::sync::Cache::builder()
            .max_capacity(REMEMBERED)
            .time_to_live(Duration::from_secs(MAX_LIFE_SECONDS + LEEWAY_SECONDS))
            .build();
        Self { verifier, remembered, metrics }
    }

    /// Forgets everything, because the keys changed.
    pub fn forget(&self) {
        self.remembered.invalidate_all();
    }

    /// The token of a request.
    ///
    /// # Errors
    /// [`ApiError::InvalidTenantToken`], whichever check failed; [`ApiError::Unavailable`] while no key has been read.
    pub fn check(&self, headers: &HeaderMap) -> Result<Arc<VerifiedToken>, ApiError> {
        if !self.verifier.has_keys() {
            return Err(ApiError::Unavailable);
        }
        match self.look(headers) {
            Ok(token) => Ok(token),
            Err(reason) => {
                self.metrics.token("refused");
                tracing::debug!(reason, "tenant token refused");
                Err(ApiError::InvalidTenantToken)
            }
        }
    }

    fn look(&self, headers: &HeaderMap) -> Result<Arc<VerifiedToken>, &'static str> {
        let mut values = headers.get_all(HEADER).iter();
        let value = values.next().ok_or("absent")?;
        if values.next().is_some() {
            return Err("more than one");
        }
        let text = value.to_str().map_err(|_| "not ASCII")?;
        let now = now_seconds();
        let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
        let key: [u8; 32] = digest.as_ref().try_into().map_err(|_| "digest")?;
        if let Some(token) = self.remembered.get(&key) {
            if now >= token.expires + LEEWAY_SECONDS {
                return Err("expired");
            }
            self.metrics.token("remembered");
            return Ok(token);
        }
        let token = self.verifier.verify(text, now).map_err(|e| {
            tracing::debug!(error = %e, "tenant token");
            "does not verify"
        })?;
        self.metrics.token("verified");
        let token = Arc::new(token);
        self.remembered.insert(key, token.clone());
        Ok(token)
    }
}
