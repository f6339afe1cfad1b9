//! The keys that sign tenant tokens, and who knows which keys.
//!
//! ```text
//! make (the next one) ─► known (to every node) ─► switch (it signs)
//! ```

use std::time::Duration;

use gmah_shared::token::SigningKey;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::Instant;
use uuid::Uuid;

use super::operations::{Again, Ask, Kind, Subject};
use super::{Control, ControlError, During as _};

/// What came of an exchange.
#[derive(Debug, Serialize, Deserialize)]
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
        self.rotate_signing_key_as(patience, None).await
    }

    pub(crate) async fn rotate_signing_key_as(
        &mut self,
        patience: Duration,
        resume: Option<Uuid>,
    ) -> Result<Signs, ControlError> {
        let ask = Ask {
            kind: Kind::SigningKey,
            subject: Subject::Fleet("signing-key".into()),
            organization: None,
            about: "the signing key".into(),
            input: json!({}),
            again: Again::Yes,
            resume,
        };
        let mut had_ended = false;
        let (signs, _) = self
            .operate(ask, async |control, operation| {
                let made: Option<String> = operation.recorded("make")?;
                had_ended = control.signs(made.as_deref()).await?;
                let kid = operation.again(&control.master, "make", control.next_signing_key(made)).await?;
                // Whatever an earlier runner saw: there may be other nodes by now.
                let what = format!("signing key {kid}");
                let known = control.wait_for_nodes("$1 = any (signing_keys)", &kid, &what, patience);
                operation.again(&control.master, "known", known).await?;
                let switch = control.switch_signing_key(&kid);
                let retired: Option<String> = operation.step(&control.master, "switch", switch).await?;
                Ok(Signs { kid, retired })
            })
            .await?;
        // Whoever asks for another key gets one: this was the end of an exchange that an earlier run had all but ended.
        if had_ended && resume.is_none() {
            return Box::pin(self.rotate_signing_key_as(patience, None)).await;
        }
        Ok(signs)
    }

    async fn signs(&self, kid: Option<&str>) -> Result<bool, ControlError> {
        let row = self
            .master
            .query_one(
                "select exists (select from signing_keys where kid = $1 and state = 'active')",
                &[&kid],
            )
            .await
            .during("looking which key signs")?;
        Ok(row.get(0))
    }

    /// The key that is to sign next: one that an earlier run made, or another. The one `made` by this operation may sign already.
    async fn next_signing_key(&self, made: Option<String>) -> Result<String, ControlError> {
        let what = "making a signing key";
        let own = self
            .master
            .query_opt(
                "select kid from signing_keys where kid = $1 and state in ('next', 'active')",
                &[&made],
            )
            .await
            .during(what)?;
        if let Some(own) = own {
            return Ok(own.get(0));
        }
        self.ensure_signing_key().await?;
        self.make_signing_key("next").await?;
        let row = self
            .master
            .query_one("select kid from signing_keys where state = 'next' order by created_at limit 1", &[])
            .await
            .during(what)?;
        Ok(row.get(0))
    }

    /// Answers which key it is that signs no more. Also of one that signs already, when an earlier runner was killed.
    async fn switch_signing_key(&self, kid: &str) -> Result<Option<String>, ControlError> {
        // One key is active at any time: the second update counts the first one's rows, and so comes after it.
        let row = self
            .master
            .query_one(
                "with retired as (
                     update signing_keys set state = 'retired', retired_at = now()
                     where state = 'active'
                         and exists (select from signing_keys n where n.kid = $1 and n.state = 'next')
                     returning kid),
                 active as (
                     update signing_keys set state = 'active'
                     where kid = $1 and state = 'next' and (select count(*) from retired) <= 1 returning kid),
                 noted as (
                     insert into audit_log (actor, action, detail)
                     select $2, 'key.rotate_signing', jsonb_build_object('kid', a.kid, 'retired', r.kid)
                     from active a left join retired r on true)
                 select exists (select from active)
                         or exists (select from signing_keys s where s.kid = $1 and s.state = 'active') as signs,
                     coalesce((select kid from retired), (
                         select kid from signing_keys where state = 'retired' order by retired_at desc limit 1)) as retired",
                &[&kid, &self.actor],
            )
            .await
            .during("exchanging the signing key")?;
        if !row.get::<_, bool>("signs") {
            return Err(ControlError::Refused(format!(
                "signing key {kid} is not there any more: ask for another"
            )));
        }
        Ok(row.get("retired"))
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
