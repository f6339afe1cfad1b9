//! Which keys this node knows, told to the master: an exchange waits until every node can do with the new one.

use uuid::Uuid;

use super::{Store, StoreError};
use crate::secret::Derivation;
use crate::token::Keyring;

/// This process, as whoever exchanges a key sees it.
#[derive(Debug, Clone)]
pub struct Holder {
    /// Of this start of the program.
    pub id: Uuid,
    /// `router` or `api`.
    pub role: &'static str,
    /// Where it listens; for people.
    pub address: String,
}

/// How often a node says which keys it knows, even if nothing changed.
pub const TOLD_EVERY: std::time::Duration = std::time::Duration::from_secs(20);
/// What was told longer ago is of a node that ended without a word: none may serve for so long without the master.
const FORGET_AFTER_SECONDS: f64 = 7.0 * 86_400.0;

impl Store {
    /// Reads the master key's file again, and the ring. With `private`, the signing key is opened as well.
    ///
    /// # Errors
    /// As [`Store::keyring`].
    pub async fn refresh_keys(&self, private: bool) -> Result<Keyring, StoreError> {
        if let Err(e) = self.master_key().reload() {
            tracing::warn!(error = %e, "the node goes on with the master keys that it has");
        }
        self.keyring(private).await
    }

    /// Tells the master what this node knows, once it goes by that. That it could not be told is logged, and costs whoever
    /// exchanges a key some patience.
    pub async fn tell_keys(&self, holder: &Holder, ring: &Keyring) {
        let (ids, kids) = (self.master_key().ids(), ring.kids());
        let Holder { id, role, address } = holder;
        if let Err(e) = self.many(TELL, &[id, role, address, &ids, &kids, &FORGET_AFTER_SECONDS]).await {
            tracing::warn!(error = %e, "the master was not told which keys this node knows");
        }
    }

    /// Says that this node knows nothing any more, because it ends.
    pub async fn forget_holder(&self, id: Uuid) {
        if let Err(e) = self.many(FORGET, &[&id]).await {
            tracing::debug!(error = %e, "the master was not told that this node ends");
        }
    }

    /// What keys for other purposes are derived from; made by the first who asks.
    ///
    /// # Errors
    /// [`StoreError`] when the master gave no answer or the secret does not open.
    pub async fn derivation(&self) -> Result<Derivation, StoreError> {
        let mut rows = self.many(DERIVATION, &[]).await?;
        if rows.is_empty() {
            let sealed = self.master_key().seal(CONTEXT, &rand::random::<[u8; 32]>())?;
            // Of two who make it at once, one does; both read what is there then.
            self.many(MAKE_DERIVATION, &[&sealed]).await?;
            rows = self.many(DERIVATION, &[]).await?;
        }
        let row = rows.first().ok_or_else(|| StoreError::Row("platform_secrets: no derivation".into()))?;
        let bytes = zeroize::Zeroizing::new(self.master_key().open(CONTEXT, row.get("secret"))?);
        Ok(Derivation::new(&bytes))
    }
}

const CONTEXT: &str = "platform_secrets/derivation";

/// Primary key.
pub(super) const DERIVATION: &str = "select secret from platform_secrets where name = 'derivation'";

/// Primary key.
pub(super) const MAKE_DERIVATION: &str =
    "insert into platform_secrets (name, secret) values ('derivation', $1) on conflict do nothing";

/// Primary key, and key_holders_seen_at for those that are long gone.
pub(super) const TELL: &str = "with gone as (delete from key_holders
        where seen_at < now() - make_interval(secs => $6) and node_id <> $1)
    insert into key_holders (node_id, role, address, master_keys, signing_keys) values ($1, $2, $3, $4, $5)
    on conflict (node_id) do update
        set (role, address, master_keys, signing_keys, seen_at)
          = (excluded.role, excluded.address, excluded.master_keys, excluded.signing_keys, now())";

/// Primary key.
pub(super) const FORGET: &str = "delete from key_holders where node_id = $1";
