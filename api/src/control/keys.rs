//! The keys that sign tenant tokens, and who knows which keys.

use std::time::Duration;

use gmah_shared::token::SigningKey;
use serde::Serialize;
use tokio::time::Instant;

use super::{Control, ControlError, During as _};

/// What came of an exchange.
#[derive(Debug, Serialize)]
pub struct Signs {
    /// Id of the key that signs now.
    pub kid: String,
    /// Id of the one before; tokens of it are good for twenty more minutes.
    pub retired: Option<String>,
}

impl Control {
    /// Makes the first signing key, if there is none.
    ///
    /// # Errors
    /// [`ControlError`] when the master refuses.
    pub async fn ensure_signing_key(&self) -> Result<(), ControlError> {
        // Of two who make the first key at once, one wins by the index on the active key.
        self.make_signing_key("active").await.map(drop)
    }

    /// Exchanges the key that signs: all nodes know the new one before it does. Killed at any moment, another run goes
    /// on where this one was.
    ///
    /// # Errors
    /// [`ControlError::Refused`] when a node does not learn of the new key; the older one signs on.
    pub async fn rotate_signing_key(&mut self, patience: Duration) -> Result<Signs, ControlError> {
        let (what, actor) = ("exchanging the signing key", self.actor.clone());
        self.ensure_signing_key().await?;
        self.make_signing_key("next").await?;
        let row = self
            .master
            .query_one("select kid from signing_keys where state = 'next' order by created_at limit 1", &[])
            .await
            .during(what)?;
        let kid: String = row.get(0);
        self.wait_for_nodes("$1 = any (signing_keys)", &kid, &format!("signing key {kid}"), patience).await?;
        let tx = self.master.transaction().await.during(what)?;
        let retired = tx
            .query_opt(
                "update signing_keys set state = 'retired', retired_at = now() where state = 'active' returning kid",
                &[],
            )
            .await
            .during(what)?
            .map(|r| r.get(0));
        let active = tx
            .execute("update signing_keys set state = 'active' where kid = $1 and state = 'next'", &[&kid])
            .await
            .during(what)?;
        if active != 1 {
            return Err(ControlError::Refused("somebody else exchanges the signing key right now".into()));
        }
        tx.execute(
            "insert into audit_log (actor, action, detail)
             values ($3, 'key.rotate_signing', jsonb_build_object('kid', $1::text, 'retired', $2::text))",
            &[&kid, &retired, &actor],
        )
        .await
        .during(what)?;
        tx.commit().await.during(what)?;
        Ok(Signs { kid, retired })
    }

    /// Forgets nodes at that address which have said nothing for a minute: the operator knows that they are gone.
    ///
    /// # Errors
    /// [`ControlError::Refused`] when there is none.
    pub async fn forget_node(&self, address: &str) -> Result<(), ControlError> {
        let gone = self
            .master
            .execute(
                "delete from key_holders where address = $1 and seen_at < now() - interval '1 minute'",
                &[&address],
            )
            .await
            .during("forgetting a node")?;
        match gone {
            0 => Err(ControlError::Refused(format!("no node at {address} has been silent for a minute"))),
            _ => Ok(()),
        }
    }

    /// A key of that state, if there is none.
    async fn make_signing_key(&self, state: &str) -> Result<(), ControlError> {
        let key = SigningKey::generate()?;
        let sealed = self.settings.master_key.seal(&format!("signing_keys/{}", key.kid()), key.pkcs8())?;
        self.master
            .execute(
                "insert into signing_keys (kid, public_key, private_key, state)
                 select $1, $2, $3, $4 where not exists (select 1 from signing_keys where state = $4)
                 on conflict do nothing",
                &[&key.kid(), &&key.public()[..], &sealed, &state],
            )
            .await
            .during("making a signing key")?;
        Ok(())
    }

    /// Until each node satisfies `knows`, a condition on `key_holders` with one parameter. One that ended without a word
    /// counts for as long as nodes serve without the master: it may be there, and cut off.
    pub(super) async fn wait_for_nodes(
        &self,
        knows: &str,
        key: &str,
        what: &str,
        patience: Duration,
    ) -> Result<(), ControlError> {
        let told = "asking the nodes which keys they know";
        let lagging = format!(
            "select role || ' ' || address || ' (heard of ' || extract(epoch from now() - seen_at)::int || ' s ago)'
             from key_holders where seen_at > now() - make_interval(secs => $2) and not ({knows}) order by 1"
        );
        let catalog = &self.settings.catalog;
        let serves_for = catalog.max_stale.max(*catalog.ttl).as_secs_f64();
        let until = Instant::now() + patience;
        loop {
            self.master.execute("select pg_notify('gmah_catalog', 'keys')", &[]).await.during(told)?;
            tokio::time::sleep(ASK_EVERY).await;
            let rows = self.master.query(&lagging, &[&key, &serves_for]).await.during(told)?;
            if rows.is_empty() {
                return Ok(());
            }
            if Instant::now() > until {
                let names: Vec<String> = rows.iter().map(|r| r.get(0)).collect();
                return Err(ControlError::Refused(format!(
                    "{what} is not known yet by {}: nothing is lost, and another run goes on from here; of a node that is \
                     gone for good say --gone ADDRESS",
                    names.join(", ")
                )));
            }
        }
    }
}

/// How often nodes are asked again.
const ASK_EVERY: Duration = Duration::from_millis(300);
