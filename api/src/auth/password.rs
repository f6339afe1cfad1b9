//! Passwords: argon2id (RFC 9106) with the library's defaults (19 MiB, two passes), off the async threads, and only
//! so many at once.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use argon2::Argon2;
use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _, phc::PasswordHash};
use gmah_shared::tenant::TenantId;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::Semaphore;

use super::places::Places;
use crate::error::ApiError;

/// Longest password in bytes that is hashed.
pub const MAX_BYTES: usize = 1024;
/// How long a login may wait for its turn.
const TURN: Duration = Duration::from_secs(10);

/// Computes hashes, a bounded number at once.
#[derive(Clone)]
pub struct Hasher {
    turns: Arc<Semaphore>,
    /// Who waits or computes, by organisation.
    queued: Places,
}

/// Hashes of one organisation that wait or run; one more is refused at once, so that nobody's flood is everybody's.
const QUEUE: usize = 16;

impl Hasher {
    /// At most `at_once` hashes at a time.
    pub fn new(at_once: usize) -> Self {
        Self { turns: Arc::new(Semaphore::new(at_once)), queued: Places::new(QUEUE, usize::MAX) }
    }

    /// Whether the password belongs to the stored hash. Without a hash it takes as long and says no, so that time
    /// does not tell which accounts exist.
    ///
    /// # Errors
    /// [`ApiError::Unavailable`] when its turn does not come in time, or too many of that organisation wait.
    pub async fn verify(
        &self,
        tenant: TenantId,
        password: SecretString,
        stored: Option<String>,
    ) -> Result<bool, ApiError> {
        let queued = self.queued.enter(tenant).ok_or(ApiError::Unavailable)?;
        self.blocking(move || {
            let known = stored.is_some();
            let text = stored.unwrap_or_else(|| dummy().to_owned());
            let verified = PasswordHash::new(&text).is_ok_and(|hash| {
                Argon2::default().verify_password(password.expose_secret().as_bytes(), &hash).is_ok()
            });
            drop(queued);
            verified && known
        })
        .await
    }

    /// The hash of a new password.
    ///
    /// # Errors
    /// As [`Hasher::verify`]; 422 for a password that is too short or too long.
    pub async fn hash(&self, tenant: TenantId, password: SecretString) -> Result<String, ApiError> {
        let queued = self.queued.enter(tenant).ok_or(ApiError::Unavailable)?;
        let hashed = self
            .blocking(move || {
                let hashed = hash(&password);
                drop(queued);
                hashed
            })
            .await?;
        hashed.map_err(|e| match e {
            HashError::Length => ApiError::invalid("password", &e.to_string()),
            HashError::Failed => ApiError::Internal,
        })
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let turn = tokio::time::timeout(TURN, self.turns.clone().acquire_owned()).await;
        let Ok(Ok(turn)) = turn else {
            return Err(ApiError::Unavailable);
        };
        let done = tokio::task::spawn_blocking(move || {
            // Held until the work ends, even if the request has gone.
            let _turn = turn;
            work()
        });
        done.await.map_err(|_| ApiError::Internal)
    }
}

/// Hashes a password, on the calling thread.
///
/// # Errors
/// A sentence for the operator.
pub fn hash(password: &SecretString) -> Result<String, HashError> {
    let text = password.expose_secret();
    if text.len() < 8 || text.len() > MAX_BYTES {
        return Err(HashError::Length);
    }
    let hash = Argon2::default().hash_password(text.as_bytes()).map_err(|_| HashError::Failed)?;
    Ok(hash.to_string())
}

/// Why a password was not hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HashError {
    /// Too short or too long.
    #[error("a password has 8 to 1024 bytes")]
    Length,
    /// The library refused.
    #[error("the password could not be hashed")]
    Failed,
}

fn dummy() -> &'static str {
    static HASH: OnceLock<String> = OnceLock::new();
    HASH.get_or_init(|| {
        hash(&gmah_shared::secret::random_password()).expect("a random password of 32 bytes is hashed")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn verifies_its_own_and_nothing_else() {
        let (hasher, id) = (Hasher::new(1), TenantId::generate());
        let stored = hash(&"correct horse".to_owned().into()).expect("hash");
        assert!(stored.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"));
        assert!(
            hasher.verify(id, "correct horse".to_owned().into(), Some(stored.clone())).await.expect("turn")
        );
        assert!(!hasher.verify(id, "correct horsf".to_owned().into(), Some(stored)).await.expect("turn"));
        assert!(!hasher.verify(id, "correct horse".to_owned().into(), None).await.expect("turn"));
        assert!(!hasher.verify(id, "x".to_owned().into(), Some("not a hash".into())).await.expect("turn"));
        assert_eq!(hash(&"short".to_owned().into()), Err(HashError::Length));
    }
}
