//! Restoring as another organisation: with keys, tokens and an identity of its own, and the people and records of the backup.

use gmah_shared::secret::random_password;
use gmah_shared::tenant::{TenantId, TenantSlug};
use secrecy::SecretString;
use serde_json::json;
use uuid::Uuid;

use super::Manifest;
use super::restore::{Order, Restored, settle};
use crate::auth::password;
use crate::control::operations::{Again, Ask, Kind, Operation, Subject};
use crate::control::provision::{NewTenant, ensure_role, hold_on_server};
use crate::control::{Control, ControlError, During as _, features, scrub, template};
use crate::modules;

impl Control {
    /// Makes a new organisation out of a backup.
    ///
    /// # Errors
    /// [`ControlError`]; what had been made is removed, the slug is free.
    pub async fn restore_as(&mut self, order: Order, slug: TenantSlug) -> Result<Restored, ControlError> {
        self.restore_under(order, slug, None).await.map(|(restored, _)| restored)
    }

    /// Makes a copy of an organisation without what is personal. Answers with the password of its administrator, if this run
    /// made it.
    ///
    /// # Errors
    /// [`ControlError`]; what had been made is removed, the slug is free.
    pub async fn clone_tenant(
        &mut self,
        of: &TenantSlug,
        slug: TenantSlug,
        admin_email: String,
    ) -> Result<(Restored, Option<SecretString>), ControlError> {
        // Before the work of a backup.
        if let Some(reason) = self.taken(&slug).await? {
            return Err(reason);
        }
        let made = self.backup(of).await?;
        let order = Order { backup: made.backup_id, scrubbed_for: Some(admin_email) };
        self.restore_under(order, slug, None).await
    }

    pub(crate) async fn restore_under(
        &mut self,
        order: Order,
        slug: TenantSlug,
        resume: Option<Uuid>,
    ) -> Result<(Restored, Option<SecretString>), ControlError> {
        let manifest = self.manifest_of(order.backup).await?;
        for key in &manifest.modules {
            if modules::find(key).is_none() {
                return Err(ControlError::Refused(format!("this program has no module {key}")));
            }
        }
        features::complete("modules", manifest.modules.iter().map(String::as_str).collect())?;
        let ask = Ask {
            kind: Kind::RestoreAs,
            subject: Subject::Slug(slug.clone()),
            organization: None,
            about: slug.to_string(),
            input: json!({
                "slug": manifest.slug, "as": slug, "backup": order.backup, "scrubbed_for": order.scrubbed_for,
            }),
            again: Again::UnlessTaken,
            resume,
        };
        let (password, mut let_in) = (random_password(), false);
        let (restored, _) = self
            .operate(ask, async |control, operation| {
                let scrub = order.scrubbed_for.as_deref().map(|email| (email, &password));
                let restored = control.become_another(&manifest, &slug, scrub, operation, &mut let_in).await;
                let Err(cause) = restored else { return restored };
                let undone = async {
                    operation.forget(&control.master, "reserve").await?;
                    control.unmake(operation.id()).await
                };
                ControlError::after_undoing(cause, undone.await)
            })
            .await?;
        Ok((restored, let_in.then_some(password)))
    }

    async fn become_another(
        &mut self,
        manifest: &Manifest,
        slug: &TenantSlug,
        scrub_for: Option<(&str, &SecretString)>,
        operation: &mut Operation,
        let_in: &mut bool,
    ) -> Result<Restored, ControlError> {
        if operation.recorded::<TenantId>("reserve")?.is_none() {
            operation.begin(&self.master, "reserve").await?;
            let new = NewTenant {
                slug: slug.clone(),
                name: manifest.name.clone(),
                admin_email: String::new(),
                admin_password: None,
                language: None,
                domain: None,
                plan: manifest.plan.clone(),
                modules: manifest.modules.clone(),
                server: None,
            };
            let id = self.reserve(&new, operation.id()).await?;
            operation.did("reserve", &id)?;
        }
        let r = self.reserved(operation.id()).await?;
        let access = self.access(r.server).await?;
        let server = access.connect("postgres").await?;
        hold_on_server(&server, r.id).await?;
        operation.step(&self.master, "role", ensure_role(&server, &r)).await?;
        let load = async {
            // Somebody may be using it already: it is not loaded anew.
            if self.is_used(r.id).await? {
                return Ok(false);
            }
            // Nothing is sealed with it yet.
            self.copy_key(manifest.organization, r.id).await?;
            let owner = (r.id, r.role.clone());
            self.load(&access, &server, &r.database, &owner, manifest).await?;
            let mut db = access.connect(&r.database).await?;
            // Answers and keys that were given in the other's name.
            db.batch_execute("delete from idempotency_keys; delete from api_keys")
                .await
                .during("ending what was the other's")?;
            settle(&mut db, r.id, r.placement, &manifest.modules, true).await?;
            match scrub_for {
                None => {
                    self.copy_own_migrations(&db, manifest.organization, r.id).await?;
                    self.reseal_all(&db, manifest.organization, r.id).await.map(|_| false)
                }
                Some((email, password)) => {
                    let to_hash = password.clone();
                    let hashing = tokio::task::spawn_blocking(move || password::hash(&to_hash));
                    let hash =
                        hashing.await.map_err(|_| ControlError::Password(password::HashError::Failed))??;
                    // Those of modules that are switched off stay, too.
                    let ran = db
                        .query("select distinct set_name from schema_migrations", &[])
                        .await
                        .during("reading which modules it has")?;
                    let ran: Vec<String> = ran.iter().map(|r| r.get(0)).collect();
                    let sets = modules::migrations(&ran);
                    let known = template::in_scratch(&access, &server, &sets, scrub::known).await?;
                    scrub::all(&mut db, &known, email, &hash).await.map(|()| true)
                }
            }
        };
        let was_loaded = operation.recorded::<bool>("load")?.is_some();
        *let_in = operation.step(&self.master, "load", load).await? && !was_loaded;
        let files = match scrub_for {
            None => operation.step(&self.master, "files", self.bring_files(r.id, manifest)).await?,
            Some(_) => 0,
        };
        operation.begin(&self.master, "active").await?;
        self.activate(r.id, operation).await?;
        operation.did("active", &())?;
        Ok(Restored {
            slug: slug.to_string(),
            backup_id: Some(manifest.id),
            database: r.database,
            placement: r.placement,
            rows: manifest.tables.values().map(|t| t.rows).sum(),
            files,
        })
    }
}
