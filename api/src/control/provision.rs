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

use gmah_shared::hostname::Hostname;
use gmah_shared::probe::Probe;
use gmah_shared::secret::random_password;
use gmah_shared::tenant::{TenantId, TenantSlug};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use uuid::Uuid;

use super::operations::{Again, Ask, Kind, Operation, Subject};
use super::{Control, ControlError, During as _, data_keys, features, remove};
use crate::auth::password;
use crate::language::Language;
use crate::modules;
use crate::server::Names;

mod ensure;
mod welcome;

pub(crate) use ensure::{ensure_database, ensure_identity, ensure_role, hold_on_server};
use welcome::{Welcome, ensure_administrator};

/// How long a router may take to hear of somebody.
const SERVED: Duration = Duration::from_secs(5);

/// What is asked for.
#[derive(Debug)]
pub struct NewTenant {
    /// Slug.
    pub slug: TenantSlug,
    /// Display name, 1 to 200 characters.
    pub name: String,
    /// E-mail address of the administrator.
    pub admin_email: String,
    /// Password of the administrator; a random one otherwise, and then a letter with a link to choose another.
    pub admin_password: Option<SecretString>,
    /// Of that letter; none: whoever asks tells the administrator by other means.
    pub language: Option<Language>,
    /// Custom domain, to be verified later.
    pub domain: Option<Hostname>,
    /// Key of a plan.
    pub plan: String,
    /// Keys of modules.
    pub modules: Vec<String>,
    /// Name of a server; the emptiest otherwise.
    pub server: Option<String>,
}

impl NewTenant {
    /// What an operation of the journal was asked for.
    pub(crate) fn of_journal(input: &Value) -> Result<Self, ControlError> {
        #[derive(serde::Deserialize)]
        struct Input {
            slug: String,
            name: String,
            admin_email: String,
            plan: String,
            modules: Vec<String>,
            server: Option<String>,
            domain: Option<Hostname>,
        }
        let input: Input = serde_json::from_value(input.clone())
            .map_err(|e| ControlError::Foreign(format!("the journal has an order that is none: {e}")))?;
        let slug = super::parse_slug(&input.slug)?;
        let Input { name, admin_email, plan, modules, server, domain, .. } = input;
        let (admin_password, language) = (None, Some(Language::default()));
        Ok(Self { slug, name, admin_email, admin_password, language, domain, plan, modules, server })
    }
}

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

/// The names under which everything is reserved.
pub(crate) struct Reserved {
    pub(crate) id: TenantId,
    pub(crate) server: Uuid,
    pub(crate) database: String,
    pub(crate) role: String,
    role_password: SecretString,
    pub(crate) placement: i32,
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
            again: Again::Unless(self.taken(&new.slug).await?),
            resume,
        };
        if matches!(ask.again, Again::Unless(None)) {
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

    /// Writes all names in one transaction, unless that operation has before.
    pub(crate) async fn reserve(
        &mut self,
        new: &NewTenant,
        operation: Uuid,
    ) -> Result<TenantId, ControlError> {
        let what = "reserving the names";
        let known = self
            .master
            .query_one("select organization_id from operations where id = $1", &[&operation])
            .await
            .during(what)?;
        if let Some(id) = known.get::<_, Option<Uuid>>(0) {
            return Ok(TenantId::from_uuid(id));
        }
        let server = self.place(new.server.as_deref()).await?;
        let id = TenantId::generate();
        let role_password = random_password();
        let context = format!("organizations/{id}/role");
        let sealed = self.settings.master_key.seal(&context, role_password.expose_secret().as_bytes())?;
        let database = new.slug.database_name();
        let domain = new.domain.as_ref().map(Hostname::as_str);
        let tx = self.master.transaction().await.during(what)?;
        let inserted = tx
            .execute(
                "insert into organizations
                     (id, slug, name, domain, plan, server_id, database_name, role_name, role_password)
                 values ($1, $2, $3, $4, $5, $6, $7, $7, $8)",
                &[
                    &id.as_uuid(),
                    &new.slug.as_str(),
                    &new.name,
                    &domain,
                    &new.plan,
                    &server,
                    &database,
                    &sealed,
                ],
            )
            .await;
        match inserted {
            Err(e) if e.code() == Some(&SqlState::UNIQUE_VIOLATION) => {
                return Err(ControlError::Refused(format!("the slug {} is taken", new.slug)));
            }
            other => other.during(what)?,
        };
        tx.execute(
            "insert into organization_features (organization_id, module) select $1, unnest($2::text[])",
            &[&id.as_uuid(), &new.modules],
        )
        .await
        .during(what)?;
        if let Some(domain) = domain {
            tx.execute(
                "insert into organization_domains (hostname, organization_id) values ($1, $2)",
                &[&domain, &id.as_uuid()],
            )
            .await
            .during(what)?;
        }
        data_keys::ensure(&self.settings.master_key, &tx, id).await?;
        tx.execute("update operations set organization_id = $2 where id = $1", &[&operation, &id.as_uuid()])
            .await
            .during(what)?;
        tx.commit().await.during(what)?;
        Ok(id)
    }

    /// What an operation has reserved.
    pub(crate) async fn reserved(&self, operation: Uuid) -> Result<Reserved, ControlError> {
        let r = self
            .master
            .query_one(
                "select o.id, o.server_id, o.database_name, o.role_name, o.role_password, o.placement
                 from operations p join organizations o on o.id = p.organization_id where p.id = $1",
                &[&operation],
            )
            .await
            .during("reading what is reserved")?;
        self.reserved_row(&r)
    }

    fn reserved_row(&self, r: &Row) -> Result<Reserved, ControlError> {
        let id = TenantId::from_uuid(r.get("id"));
        let context = format!("organizations/{id}/role");
        Ok(Reserved {
            id,
            server: r.get("server_id"),
            database: r.get("database_name"),
            role: r.get("role_name"),
            // Destroyed with the organisation.
            role_password: match r.get::<_, &[u8]>("role_password") {
                [] => SecretString::default(),
                sealed => self.settings.master_key.open_text(&context, sealed)?,
            },
            placement: r.get("placement"),
        })
    }

    /// Whether an organisation has become active, or was and is not any more.
    pub(crate) async fn is_used(&self, id: TenantId) -> Result<bool, ControlError> {
        let row = self
            .master
            .query_one("select status <> 'provisioning' from organizations where id = $1", &[&id.as_uuid()])
            .await
            .during("reading the status")?;
        Ok(row.get(0))
    }

    /// What an organisation has.
    pub(crate) async fn reserved_of(&self, id: TenantId) -> Result<Reserved, ControlError> {
        let r = self
            .master
            .query_one(
                "select id, server_id, database_name, role_name, role_password, placement
                 from organizations where id = $1",
                &[&id.as_uuid()],
            )
            .await
            .during("reading what the organisation has")?;
        self.reserved_row(&r)
    }

    /// Why the slug cannot be had, unless by the operation that has it.
    pub(crate) async fn taken(&self, slug: &TenantSlug) -> Result<Option<ControlError>, ControlError> {
        let row = self
            .master
            .query_opt(
                "select status from organizations where slug = $1 and purged_at is null",
                &[&slug.as_str()],
            )
            .await
            .during("looking for the slug")?;
        Ok(row.map(|row| {
            ControlError::Refused(match row.get("status") {
                "deleted" => {
                    format!("the slug {slug} is taken by one that was deleted: gmah tenant undelete {slug}")
                }
                _ => format!("the slug {slug} is taken"),
            })
        }))
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

    /// Refuses what is no plan.
    pub(crate) async fn check_plan(&self, plan: &str) -> Result<(), ControlError> {
        let plans = self
            .master
            .query("select key from plans order by position limit 100", &[])
            .await
            .during("reading the plans")?;
        let plans: Vec<String> = plans.iter().map(|r| r.get(0)).collect();
        if plans.iter().any(|p| p == plan) {
            return Ok(());
        }
        Err(ControlError::Usage(format!("there is no plan {plan}; there are {}", plans.join(", "))))
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

/// Refuses what is no name of an organisation.
pub(crate) fn check_name(name: &str) -> Result<(), ControlError> {
    if name.trim().is_empty() || name.chars().count() > 200 || name.chars().any(char::is_control) {
        return Err(ControlError::Usage("a name has 1 to 200 characters and no control characters".into()));
    }
    Ok(())
}

/// Everything that can be wrong with the request, before anything is written.
async fn check(control: &Control, new: &NewTenant) -> Result<(), ControlError> {
    let usage = |text: String| Err(ControlError::Usage(text));
    check_name(&new.name)?;
    for key in &new.modules {
        if modules::find(key).is_none() {
            let known: Vec<_> = modules::OPTIONAL.iter().map(|m| m.key).collect();
            return usage(format!("there is no module {key}; there are {}", known.join(", ")));
        }
    }
    features::complete(new.modules.iter().map(String::as_str).collect())?;
    if let Some(domain) = &new.domain {
        control.can_be_claimed(domain)?;
    }
    control.check_plan(&new.plan).await
}

/// What two runs must agree on to be the same. Never a secret.
fn input(new: &NewTenant) -> Value {
    json!({
        "slug": new.slug, "name": new.name, "admin_email": new.admin_email, "plan": new.plan,
        "modules": new.modules, "server": new.server, "domain": new.domain,
    })
}
