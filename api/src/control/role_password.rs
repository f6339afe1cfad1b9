//! The password with which the api enters an organisation's database, exchanged without a request that fails.
//!
//! ```text
//! make (nodes learn of both) ─► server (the role has the new one) ─► switch (nodes know the new one only)
//! ```
//!
//! Between `make` and `switch` a node that is refused with the one tries the other ([`crate::pool`]). Connections that are
//! there stay: PostgreSQL asks for a password once.

use std::time::Duration;

use gmah_shared::pg::{quote_identifier, quote_literal, verifier_of_random};
use gmah_shared::secret::random_password;
use gmah_shared::tenant::{TenantId, TenantSlug};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::operations::{Ask, Kind};
use super::provision::hold_on_server;
use super::remove::mark;
use super::{Control, ControlError, During as _};

/// What came of an exchange.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Exchanged {
    /// Slug.
    pub slug: String,
    /// Role that has another password now.
    pub role: String,
}

/// For notices to arrive. Whoever has heard nothing by then reads the row anew when the server refuses it.
const NOTICES: Duration = Duration::from_millis(500);

impl Control {
    /// Exchanges the password of an organisation's role. Killed at any moment, another run goes on where this one was.
    ///
    /// # Errors
    /// [`ControlError`]; one of the two passwords works in any case, and every node tries both.
    pub async fn rotate_role_password(&mut self, slug: &TenantSlug) -> Result<Exchanged, ControlError> {
        self.rotate_role_password_of(slug, None).await
    }

    pub(crate) async fn rotate_role_password_of(
        &mut self,
        slug: &TenantSlug,
        resume: Option<Uuid>,
    ) -> Result<Exchanged, ControlError> {
        let tenant = self.there(slug).await?;
        let ask = Ask::of(Kind::RolePassword, &tenant, resume);
        let (exchanged, _) = self
            .operate(ask, async |control, operation| {
                // Under the lock: what was read before may be what another operation has left.
                let tenant = control.there(slug).await?;
                operation.step(&control.master, "make", control.make_next_password(tenant.id)).await?;
                let exchanged = async {
                    // Whatever an earlier runner has done: somebody may have given the role its older one again.
                    operation.again(&control.master, "server", control.give_next_password(tenant.id)).await?;
                    operation.step(&control.master, "switch", control.switch_password(tenant.id)).await
                };
                let role: String = exchanged.await.map_err(|cause: ControlError| ControlError::HalfDone {
                    cause: cause.to_string(),
                    // Nothing else is done to the organisation before that.
                    left: format!("gmah operation resume {}", operation.id()),
                })?;
                Ok(Exchanged { slug: tenant.slug, role })
            })
            .await?;
        Ok(exchanged)
    }

    /// One that an earlier run made stays: the server may have it already.
    async fn make_next_password(&self, id: TenantId) -> Result<(), ControlError> {
        let password = random_password();
        let context = format!("organizations/{id}/role");
        let sealed = self.settings.master_key.seal(&context, password.expose_secret().as_bytes())?;
        self.master
            .execute(
                "update organizations set role_password_next = $2 where id = $1 and role_password_next is null",
                &[&id.as_uuid(), &sealed],
            )
            .await
            .during("making the password")?;
        tokio::time::sleep(NOTICES).await;
        Ok(())
    }

    /// The next password, while there is one.
    async fn next_password(&self, id: TenantId) -> Result<Option<SecretString>, ControlError> {
        let row = self
            .master
            .query_one("select role_password_next from organizations where id = $1", &[&id.as_uuid()])
            .await
            .during("reading the password")?;
        let context = format!("organizations/{id}/role");
        let sealed: Option<Vec<u8>> = row.get(0);
        Ok(sealed.map(|sealed| self.settings.master_key.open_text(&context, &sealed)).transpose()?)
    }

    async fn give_next_password(&self, id: TenantId) -> Result<(), ControlError> {
        let what = "changing the role's password";
        // None: an earlier run was killed right after the switch.
        let Some(password) = self.next_password(id).await? else { return Ok(()) };
        let reserved = self.reserved_of(id).await?;
        let server = self.access(reserved.server).await?.connect("postgres").await?;
        hold_on_server(&server, id).await?;
        let found = server
            .query_opt(
                "select shobj_description(oid, 'pg_authid') as mark from pg_roles where rolname = $1",
                &[&reserved.role],
            )
            .await
            .during(what)?;
        if found.and_then(|row| row.get::<_, Option<String>>("mark")) != Some(mark(id)) {
            return Err(ControlError::Foreign(format!(
                "the role {} is not this organisation's: gmah doctor",
                reserved.role
            )));
        }
        // The server gets a verifier and never the password: its log may show statements.
        let (role, verifier) =
            (quote_identifier(&reserved.role), quote_literal(&verifier_of_random(&password)));
        server.batch_execute(&format!("alter role {role} password {verifier}")).await.during(what)
    }

    async fn switch_password(&self, id: TenantId) -> Result<String, ControlError> {
        let what = "switching to the password";
        self.master
            .execute(
                "with switched as (
                     update organizations set role_password = role_password_next, role_password_next = null
                     where id = $1 and role_password_next is not null returning id)
                 insert into audit_log (actor, action, organization_id)
                 select $2, 'key.rotate_tenant', id from switched",
                &[&id.as_uuid(), &self.actor],
            )
            .await
            .during(what)?;
        Ok(self.reserved_of(id).await?.role)
    }
}
