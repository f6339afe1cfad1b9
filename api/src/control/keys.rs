//! The keys that sign tenant tokens.

use gmah_shared::token::SigningKey;

use super::{Control, ControlError, During as _};

impl Control {
    /// Makes the first signing key, if there is none.
    ///
    /// # Errors
    /// [`ControlError`] when the master refuses.
    pub async fn ensure_signing_key(&self) -> Result<(), ControlError> {
        let key = SigningKey::generate()?;
        let sealed = self.settings.master_key.seal(&format!("signing_keys/{}", key.kid()), key.pkcs8())?;
        // Of two who make the first key at once, one wins by the index on the active key.
        self.master
            .execute(
                "insert into signing_keys (kid, public_key, private_key)
                 select $1, $2, $3 where not exists (select 1 from signing_keys where state = 'active')
                 on conflict do nothing",
                &[&key.kid(), &&key.public()[..], &sealed],
            )
            .await
            .during("making a signing key")?;
        Ok(())
    }
}
