//! Creating an organisation.
//!
//! ```text
//! reserve ─► role ─► database ─► identity ─► migrations ─► administrator ─► active ─► served
//! ```
//!
//! `reserve` writes every name into the master in one transaction, with the journal entry; the rest are steps that
//! find out what is there and do what is missing. A second run with the same inputs goes on where the first was
//! killed, or finds everything done; with other inputs the slug is taken.

use std::time::Duration;

use gmah_shared::probe::Probe;
use gmah_shared::secret::random_password;
use gmah_shared::tenant::TenantId;
use secrecy::SecretString;
use tokio::time::Instant;
use uuid::Uuid;

use super::operations::{Again, Ask, Kind, Operation, Subject};
use super::{Control, ControlError, During as _, remove};
use crate::auth::password;
use crate::modules;
use crate::server::Names;

mod ensure;
mod order;
mod reserve;
mod welcome;

pub(crate) use ensure::{
    ensure_database, ensure_identity, ensure_role, enters, hold_on_server, only_in_the_group,
};
pub use order::NewTenant;
pub(crate) use order::check_name;
use order::{check, input};
pub(crate) use reserve::Reserved;
use welcome::{Welcome, ensure_administrator};

/// How long a router may take to hear of somebody.
const SERVED: Duration = Duration::from_secs(5);

/// What came of it.
#[derive(Debug)]
pub struct Created {
    /// Organisation id.
    pub id: TenantId,
    /// Where it answers.
    pub host: String,
    /// The administrator's password, if this run made it.
    pub admin_password: Option<SecretString>,
    /// False when everything had been there.
    pub is_new: bool,
    /// Whether a router serves it, if one was asked.
    pub served: Option<bool>,
}

impl Control {
    /// Creates an organisation, or goes on creating it.
    ///
    /// # Errors
    /// [`ControlError::Usage`] and [`ControlError::Refused`] change nothing; after any other error another run goes
    /// on.
    pub async fn create_tenant(&mut self, new: NewTenant) -> Result<Created, ControlError> {
        self.create(new, None).await
    }

    pub(crate) async fn create(
        &mut self,
        mut new: NewTenant,
        resume: Option<Uuid>,
    ) -> Result<Created, ControlError> {
        new.modules.sort();
        new.modules.dedup();
        check(self, &new).await?;
        let host = format!("{}.{}", new.slug, self.settings.base_domain);
        let ask = Ask {
            kind: Kind::Create,
            subject: Subject::Slug(new.slug.clone()),
            organization: None,
            about: new.slug.to_string(),
            input: input(&new),
            again: Again::UnlessTaken,
            resume,
        };
        if self.taken(&new.slug).await?.is_none() {
            // Before anything is written: a server that there is not, or none with room.
            self.place(new.server.as_deref()).await?;
        }
        let admin_password = new.admin_password.clone().unwrap_or_else(random_password);
        let (mut let_in, mut served) = (false, None);
        let (id, is_new) = self
            .operate(ask, async |control, operation| {
                let id = control.build(&new, &admin_password, operation, &mut let_in).await?;
                if control.config.provision.probe.is_some() {
                    let answered = control.is_served(&host);
                    served = Some(operation.step(&control.master, "served", answered).await?);
                }
                Ok(id)
            })
            .await?;
        Ok(Created { id, host, admin_password: let_in.then_some(admin_password), is_new, served })
    }

    async fn build(
        &mut self,
        new: &NewTenant,
        admin_password: &SecretString,
        operation: &mut Operation,
        let_in: &mut bool,
    ) -> Result<TenantId, ControlError> {
        // Takes a core for tens of milliseconds; the server works meanwhile.
        let to_hash = admin_password.clone();
        let hashing = tokio::task::spawn_blocking(move || password::hash(&to_hash));
        if operation.recorded::<TenantId>("reserve")?.is_none() {
            operation.begin(&self.master, "reserve").await?;
            let id = self.reserve(new, operation.id()).await?;
            operation.did("reserve", &id)?;
        }
        let r = self.reserved(operation.id()).await?;
        let access = self.access(r.server).await?;
        let server = access.connect("postgres").await?;
        hold_on_server(&server, r.id).await?;
        operation.step(&self.master, "role", ensure_role(&server, &r)).await?;
        let sets = modules::migrations(&new.modules);
        operation.step(&self.master, "database", ensure_database(&access, &server, &r, &sets)).await?;
        let mut db = access.connect(&r.database).await?;
        operation.step(&self.master, "identity", ensure_identity(&db, &r)).await?;
        operation
            .step(&self.master, "migrations", async {
                if !gmah_shared::migrate::pending(&db, &sets).await.during("migrations")?.is_empty() {
                    gmah_shared::migrate::run(&mut db, &sets, Default::default())
                        .await
                        .during("migrations")?;
                }
                Ok(())
            })
            .await?;
        let welcome = self.welcome(new, &r).await?;
        // Also when an earlier run has: the password that it made was never shown.
        *let_in = operation
            .again(&self.master, "administrator", async {
                let hash =
                    hashing.await.map_err(|_| ControlError::Password(password::HashError::Failed))??;
                ensure_administrator(&mut db, r.id, &new.admin_email, &hash, welcome.as_ref()).await
            })
            .await?;
        operation.begin(&self.master, "active").await?;
        self.activate(r.id, operation).await?;
        if welcome.is_some() {
            self.letters_are_due(r.id).await?;
        }
        operation.did("active", &())?;
        Ok(r.id)
    }

    /// Asks the router until it serves the host, or for a while. What is not served then is there all the same.
    async fn is_served(&self, host: &str) -> Result<bool, ControlError> {
        let provision = &self.config.provision;
        let Some(router) = &provision.probe else { return Ok(false) };
        let probe = match Probe::new(router.clone(), provision.probe_ca_file.as_deref()) {
            Ok(probe) => probe,
            Err(e) => {
                tracing::warn!(error = e, "[provision] probe_ca_file: no router is asked");
                return Ok(false);
            }
        };
        let deadline = Instant::now() + SERVED;
        loop {
            match probe.status(host).await {
                Ok(200) => return Ok(true),
                // It has not heard yet.
                Ok(_) if Instant::now() < deadline => tokio::time::sleep(Duration::from_millis(20)).await,
                Ok(status) => {
                    tracing::warn!(router, host, status, "the router does not serve whoever is new");
                    return Ok(false);
                }
                Err(e) => {
                    tracing::warn!(router, host, error = %e, "the router does not answer for whoever is new");
                    return Ok(false);
                }
            }
        }
    }

    /// The administrator's letter, where letters are sent and the password is not known already.
    async fn welcome<'a>(
        &self,
        new: &'a NewTenant,
        r: &Reserved,
    ) -> Result<Option<Welcome<'a>>, ControlError> {
        let (Some(mail), None, Some(language)) = (&self.config.mail, &new.admin_password, new.language)
        else {
            return Ok(None);
        };
        let names = Names::new(&self.settings);
        let link = mail.link.replace("{host}", &names.authority(&new.slug, &names.host_of(&new.slug)));
        let keys = self.data_keys(r.id).await?;
        Ok(Some(Welcome { organization: &new.name, language, link, keys }))
    }

    /// Takes away what an operation had made of an organisation that never was active.
    pub(crate) async fn unmake(&mut self, operation: Uuid) -> Result<(), ControlError> {
        let what = "reading what is reserved";
        let known = self
            .master
            .query_one("select organization_id from operations where id = $1", &[&operation])
            .await
            .during(what)?;
        if known.get::<_, Option<Uuid>>(0).is_none() {
            return Ok(());
        }
        let r = self.reserved(operation).await?;
        // In the master first: one that has become active meanwhile is nobody's to take away.
        let ours = self
            .master
            .execute(
                "update organizations set status = 'deleted', deleted_at = now()
                 where id = $1 and purged_at is null
                     and (status = 'provisioning' or status = 'deleted' and purge_after is null)",
                &[&r.id.as_uuid()],
            )
            .await
            .during("freeing the slug")?;
        if ours == 0 {
            return Err(ControlError::Refused(
                "the organisation is there and active: gmah operation resume, and then gmah tenant delete"
                    .into(),
            ));
        }
        let server = self.access(r.server).await?.connect("postgres").await?;
        hold_on_server(&server, r.id).await?;
        self.remove_files(r.id).await?;
        remove::drop_database(&server, &r.database, r.id).await?;
        remove::drop_role(&server, &r.role, r.id).await?;
        self.master
            .execute(
                "with gone as (update organizations set purged_at = now() where id = $1 returning id),
                 domains as (delete from organization_domains where organization_id = (select id from gone)),
                 chores as (delete from organization_chores where organization_id = (select id from gone)),
                 own as (delete from organization_migrations where organization_id = (select id from gone))
                 delete from organization_keys where organization_id = (select id from gone)",
                &[&r.id.as_uuid()],
            )
            .await
            .during("freeing the slug")?;
        Ok(())
    }

    /// An api node comes by for its letters soon, and not when its next turn is.
    async fn letters_are_due(&self, id: TenantId) -> Result<(), ControlError> {
        self.master
            .execute(
                "update organization_chores set due_at = now() where organization_id = $1",
                &[&id.as_uuid()],
            )
            .await
            .during("asking for letters to be sent")?;
        Ok(())
    }

    pub(crate) async fn activate(&mut self, id: TenantId, operation: &Operation) -> Result<(), ControlError> {
        self.master
            .execute(
                "with active as (
                     update organizations set status = 'active' where id = $1 and status = 'provisioning'
                     returning id)
                 insert into audit_log (actor, action, organization_id, detail)
                 select $2, $3, id, jsonb_build_object('operation', $4::uuid) from active",
                &[&id.as_uuid(), &self.actor, &operation.kind().as_str(), &operation.id()],
            )
            .await
            .during("activating the organisation")?;
        self.figures_are_due(id).await
    }
}
