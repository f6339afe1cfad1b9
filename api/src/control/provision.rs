//! Creating an organisation.
//!
//! ```text
//! reserve ─► role ─► database ─► identity ─► migrations ─► administrator ─► active
//! ```
//!
//! `reserve` writes every name into the master in one transaction, with the journal entry; the rest are steps that
//! find out what is there and do what is missing. A second run with the same inputs goes on where the first was
//! killed, or finds everything done; with other inputs the slug is taken.

use std::time::Duration;

use gmah_shared::hostname::Hostname;
use gmah_shared::secret::random_password;
use gmah_shared::tenant::{TenantId, TenantSlug};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_postgres::error::SqlState;
use uuid::Uuid;

use super::journal::{self, Operation};
use super::{Control, ControlError, During as _, data_keys, features};
use crate::auth::password;
use crate::modules;

mod ensure;

use ensure::{ensure_administrator, ensure_database, ensure_identity, ensure_role, hold_on_server};

/// What is asked for.
#[derive(Debug)]
pub struct NewTenant {
    /// Slug.
    pub slug: TenantSlug,
    /// Display name, 1 to 200 characters.
    pub name: String,
    /// E-mail address of the administrator.
    pub admin_email: String,
    /// Password of the administrator; a random one otherwise.
    pub admin_password: Option<SecretString>,
    /// Custom domain, to be verified later.
    pub domain: Option<Hostname>,
    /// Key of a plan.
    pub plan: String,
    /// Keys of modules.
    pub modules: Vec<String>,
    /// Name of a server; the emptiest otherwise.
    pub server: Option<String>,
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
}

const KIND: &str = "tenant.create";

/// The names under which everything is reserved.
struct Reserved {
    id: TenantId,
    server: Uuid,
    database: String,
    role: String,
    role_password: SecretString,
    placement: i32,
}

impl Control {
    /// Creates an organisation, or goes on creating it.
    ///
    /// # Errors
    /// [`ControlError::Usage`] and [`ControlError::Refused`] change nothing; after any other error another run goes
    /// on.
    pub async fn create_tenant(&mut self, mut new: NewTenant) -> Result<Created, ControlError> {
        new.modules.sort();
        new.modules.dedup();
        check(self, &new).await?;
        let input = input(&new);
        // Held until this session ends, also by a kill: one runner per slug.
        self.hold(&new.slug).await?;
        let created = self.create_held(&new, &input).await;
        self.release(&new.slug).await;
        created
    }

    async fn create_held(&mut self, new: &NewTenant, input: &Value) -> Result<Created, ControlError> {
        let host = format!("{}.{}", new.slug, self.settings.base_domain);
        let (reserved, mut operation) = match self.reserved(&new.slug).await? {
            Some(reserved) => {
                let found = journal::latest(&self.master, reserved.id, KIND).await?;
                let Some(found) = found.filter(|f| f.input == *input) else {
                    return Err(ControlError::Refused(format!("the slug {} is taken", new.slug)));
                };
                if found.done {
                    return Ok(Created { id: reserved.id, host, admin_password: None, is_new: false });
                }
                let operation = Operation::take_over(&self.master, found.id).await?;
                (reserved, operation)
            }
            None => self.reserve(new, input).await?,
        };
        let admin_password = new.admin_password.clone().unwrap_or_else(random_password);
        match self.build(new, &reserved, &admin_password, &mut operation).await {
            Ok(()) => {
                Ok(Created { id: reserved.id, host, admin_password: Some(admin_password), is_new: true })
            }
            Err(e) => {
                operation.failed(&self.master, &e).await;
                Err(e)
            }
        }
    }

    async fn build(
        &mut self,
        new: &NewTenant,
        r: &Reserved,
        admin_password: &SecretString,
        operation: &mut Operation,
    ) -> Result<(), ControlError> {
        // Takes a core for tens of milliseconds; the server works meanwhile.
        let to_hash = admin_password.clone();
        let hashing = tokio::task::spawn_blocking(move || password::hash(&to_hash));
        let access = self.access(r.server).await?;
        let server = access.connect("postgres").await?;
        hold_on_server(&server, r).await?;
        operation.step(&self.master, "role").await?;
        ensure_role(&server, r).await?;
        operation.step(&self.master, "database").await?;
        let sets = modules::migrations(&new.modules);
        ensure_database(&access, &server, r, &sets).await?;
        operation.step(&self.master, "identity").await?;
        let mut db = access.connect(&r.database).await?;
        ensure_identity(&db, r).await?;
        operation.step(&self.master, "migrations").await?;
        if !gmah_shared::migrate::pending(&db, &sets).await.during("migrations")?.is_empty() {
            gmah_shared::migrate::run(&mut db, &sets, Default::default()).await.during("migrations")?;
        }
        operation.step(&self.master, "administrator").await?;
        let hash = hashing.await.map_err(|_| ControlError::Password(password::HashError::Failed))??;
        ensure_administrator(&db, &new.admin_email, &hash).await?;
        operation.step(&self.master, "active").await?;
        self.activate(r.id, operation).await
    }

    /// Writes all names, and the journal entry, in one transaction.
    async fn reserve(
        &mut self,
        new: &NewTenant,
        input: &Value,
    ) -> Result<(Reserved, Operation), ControlError> {
        let server = self.place(new.server.as_deref()).await?;
        let id = TenantId::generate();
        let role_password = random_password();
        let context = format!("organizations/{id}/role");
        let sealed = self.settings.master_key.seal(&context, role_password.expose_secret().as_bytes())?;
        let database = new.slug.database_name();
        let operation = Uuid::now_v7();
        let domain = new.domain.as_ref().map(Hostname::as_str);
        let what = "reserving the names";
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
        tx.execute(journal::BEGIN, &[&operation, &KIND, &id.as_uuid(), input, &actor()])
            .await
            .during(what)?;
        tx.commit().await.during(what)?;
        let operation = Operation::take_over(&self.master, operation).await?;
        let role = database.clone();
        Ok((Reserved { id, server, database, role, role_password, placement: 1 }, operation))
    }

    /// What is reserved for a slug.
    async fn reserved(&self, slug: &TenantSlug) -> Result<Option<Reserved>, ControlError> {
        let row = self
            .master
            .query_opt(
                "select id, server_id, database_name, role_name, role_password, placement
                 from organizations where slug = $1 and status <> 'deleted'",
                &[&slug.as_str()],
            )
            .await
            .during("looking for the slug")?;
        row.map(|r| {
            let id = TenantId::from_uuid(r.get("id"));
            let context = format!("organizations/{id}/role");
            Ok(Reserved {
                id,
                server: r.get("server_id"),
                database: r.get("database_name"),
                role: r.get("role_name"),
                role_password: self.settings.master_key.open_text(&context, r.get("role_password"))?,
                placement: r.get("placement"),
            })
        })
        .transpose()
    }

    async fn activate(&mut self, id: TenantId, operation: &Operation) -> Result<(), ControlError> {
        let what = "activating the organisation";
        let tx = self.master.transaction().await.during(what)?;
        tx.execute(
            "update organizations set status = 'active' where id = $1 and status = 'provisioning'",
            &[&id.as_uuid()],
        )
        .await
        .during(what)?;
        tx.execute(journal::DONE, &[&operation.id()]).await.during(what)?;
        tx.execute(
            "insert into audit_log (actor, action, organization_id) values ($1, $2, $3)",
            &[&actor(), &KIND, &id.as_uuid()],
        )
        .await
        .during(what)?;
        tx.commit().await.during(what)
    }

    /// Waits a little for another runner of the same slug: a killed one leaves as soon as the server notices.
    async fn hold(&self, slug: &TenantSlug) -> Result<(), ControlError> {
        let deadline = Instant::now() + HOLD_PATIENCE;
        loop {
            let held: bool = self
                .master
                .query_one("select pg_try_advisory_lock(hashtextextended($1, 0))", &[&lock_name(slug)])
                .await
                .during("taking the lock")?
                .get(0);
            if held {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(ControlError::Refused(format!("{slug} is being created by another command")));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn release(&self, slug: &TenantSlug) {
        let released = self
            .master
            .execute("select pg_advisory_unlock(hashtextextended($1, 0))", &[&lock_name(slug)])
            .await;
        if let Err(e) = released {
            tracing::debug!(error = %e, "lock not released by hand; it ends with the session");
        }
    }
}

const HOLD_PATIENCE: Duration = Duration::from_secs(15);

fn lock_name(slug: &TenantSlug) -> String {
    format!("gmah create {slug}")
}

/// Everything that can be wrong with the request, before anything is written.
async fn check(control: &Control, new: &NewTenant) -> Result<(), ControlError> {
    let usage = |text: String| Err(ControlError::Usage(text));
    if new.name.trim().is_empty() || new.name.chars().count() > 200 || new.name.chars().any(char::is_control)
    {
        return usage("a name has 1 to 200 characters and no control characters".into());
    }
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
    let plans = control
        .master
        .query("select key from plans order by position limit 100", &[])
        .await
        .during("reading the plans")?;
    let plans: Vec<String> = plans.iter().map(|r| r.get(0)).collect();
    if !plans.contains(&new.plan) {
        return usage(format!("there is no plan {}; there are {}", new.plan, plans.join(", ")));
    }
    Ok(())
}

/// What two runs must agree on to be the same. Never a secret.
fn input(new: &NewTenant) -> Value {
    json!({
        "slug": new.slug, "name": new.name, "admin_email": new.admin_email, "plan": new.plan,
        "modules": new.modules, "server": new.server, "domain": new.domain,
    })
}

/// Who asked, for the journal.
fn actor() -> String {
    let user = std::env::var("SUDO_USER").or_else(|_| std::env::var("USER"));
    format!("cli:{}", user.unwrap_or_else(|_| "unknown".into()))
}
