//! Restoring: always into another database, which takes the place of the one before only when all of it is there.
//!
//! ```text
//! in place    plan ─► load ─► files ─► fence ─► switch          (the one before is kept, shut, for `--undo`)
//! undo        plan ─► open ─► fence ─► switch
//! another     reserve ─► role ─► load ─► files ─► active
//! ```
//!
//! `load` is all of: an empty database, the dump, the comparison with the manifest, this program's migrations, the identity
//! row, and the end of what must not come back (sessions, links, letters).

mod load;
mod swap;

use gmah_shared::tenant::{TenantId, TenantSlug, TenantStatus};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::Manifest;
use crate::control::operations::{Ask, Kind, Operation};
use crate::control::provision::{ensure_role, hold_on_server};
use crate::control::tenants::Summary;
use crate::control::{Control, ControlError, During as _, fence};
pub(crate) use load::{GROUPS, settle};
pub(crate) use swap::Plan;

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Order {
    /// The backup.
    pub backup: Uuid,
    /// As another organisation, without what is personal: the e-mail address of its administrator.
    pub scrubbed_for: Option<String>,
}

impl Order {
    pub(crate) fn of_journal(input: &Value) -> Result<Self, ControlError> {
        let backup = input["backup"].as_str().and_then(|b| b.parse().ok());
        let backup =
            backup.ok_or_else(|| ControlError::Foreign("the journal has an order that is none".into()))?;
        Ok(Self { backup, scrubbed_for: input["scrubbed_for"].as_str().map(str::to_owned) })
    }
}

/// What came of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Restored {
    /// Slug.
    pub slug: String,
    /// The backup, if one was restored.
    pub backup_id: Option<Uuid>,
    /// Database that is used now.
    pub database: String,
    /// Number of its placement.
    pub placement: i32,
    /// Rows of all tables, as the backup had them.
    pub rows: i64,
    /// Files whose bytes were brought back.
    pub files: usize,
}

impl Control {
    /// Puts a backup in the place of what an organisation has. The database that it had is kept for `undo`.
    ///
    /// # Errors
    /// [`ControlError`]; until the switch nothing of the organisation has changed.
    pub async fn restore(&mut self, slug: &TenantSlug, order: Order) -> Result<Restored, ControlError> {
        self.restore_in_place(slug, order, None).await
    }

    pub(crate) async fn restore_in_place(
        &mut self,
        slug: &TenantSlug,
        order: Order,
        resume: Option<Uuid>,
    ) -> Result<Restored, ControlError> {
        let tenant = self.there(slug).await?;
        let manifest = self.manifest_of(order.backup).await?;
        if manifest.organization != tenant.id {
            return Err(ControlError::Refused(format!(
                "backup {} is of {} and not of {slug}: restore it --as another",
                manifest.id, manifest.slug
            )));
        }
        let ask = Ask {
            input: json!({ "slug": tenant.slug, "backup": order.backup }),
            ..Ask::of(Kind::Restore, &tenant, resume)
        };
        let (restored, _) = self
            .operate(ask, async |control, operation| {
                let restored = control.put_in_place(slug, &manifest, operation).await;
                control.undone(restored, operation).await
            })
            .await?;
        Ok(restored)
    }

    async fn put_in_place(
        &mut self,
        slug: &TenantSlug,
        manifest: &Manifest,
        operation: &mut Operation,
    ) -> Result<Restored, ControlError> {
        // Under the lock: what was read before may be what another operation has left.
        let tenant = &self.there(slug).await?;
        let plan: Plan = operation.step(&self.master, "plan", self.plan(tenant, None)).await?;
        let access = self.access(plan.server).await?;
        let server = access.connect("postgres").await?;
        hold_on_server(&server, tenant.id).await?;
        let owner = self.role_of(tenant.id).await?;
        let load = async {
            // One that failed after its switch is gone on with: what was loaded is the organisation's own by now.
            if self.there(slug).await?.database == plan.database {
                return Ok(());
            }
            self.load(&access, &server, &plan.database, &owner, manifest).await?;
            let mut db = access.connect(&plan.database).await?;
            settle(&mut db, tenant.id, plan.placement, &tenant.modules, true).await
        };
        operation.step(&self.master, "load", load).await?;
        let files: usize =
            operation.step(&self.master, "files", self.bring_files(tenant.id, manifest)).await?;
        self.take_over(tenant.id, &plan, &server, operation, true).await?;
        // What somebody removed while it was still the other database's.
        let db = access.connect(&plan.database).await?;
        let missing = self.bring_missing(&db, tenant.id);
        let more: usize = operation.step(&self.master, "files_again", missing).await?;
        let files = files + more;
        Ok(Restored {
            slug: tenant.slug.clone(),
            backup_id: Some(manifest.id),
            database: plan.database,
            placement: plan.placement,
            rows: manifest.tables.values().map(|t| t.rows).sum(),
            files,
        })
    }

    /// Goes back to the database that the newest restore replaced. The one that is used now is kept in its place.
    ///
    /// # Errors
    /// [`ControlError::Refused`] when none is kept.
    pub async fn undo_restore(&mut self, slug: &TenantSlug) -> Result<Restored, ControlError> {
        self.undo_restore_of(slug, None).await
    }

    pub(crate) async fn undo_restore_of(
        &mut self,
        slug: &TenantSlug,
        resume: Option<Uuid>,
    ) -> Result<Restored, ControlError> {
        let tenant = self.there(slug).await?;
        let ask = Ask::of(Kind::Undo, &tenant, resume);
        let (restored, _) = self
            .operate(ask, async |control, operation| {
                let restored = control.undo_to_kept(slug, operation).await;
                control.undone(restored, operation).await
            })
            .await?;
        Ok(restored)
    }

    async fn undo_to_kept(
        &mut self,
        slug: &TenantSlug,
        operation: &mut Operation,
    ) -> Result<Restored, ControlError> {
        let tenant = &self.there(slug).await?;
        let kept = async {
            let kept = self.kept(tenant).await?;
            self.plan(tenant, Some(kept)).await
        };
        let plan: Plan = operation.step(&self.master, "plan", kept).await?;
        let access = self.access(plan.server).await?;
        let server = access.connect("postgres").await?;
        hold_on_server(&server, tenant.id).await?;
        let open = async {
            // On a server that the organisation has left since it may be shut out.
            ensure_role(&server, &self.reserved_of(tenant.id).await?).await?;
            fence::open(&access, &server, &plan.database, tenant.id, plan.placement).await?;
            let mut db = access.connect(&plan.database).await?;
            settle(&mut db, tenant.id, plan.placement, &tenant.modules, false).await?;
            self.bring_missing(&db, tenant.id).await
        };
        let files: usize = operation.step(&self.master, "open", open).await?;
        self.take_over(tenant.id, &plan, &server, operation, true).await?;
        Ok(Restored {
            slug: tenant.slug.clone(),
            backup_id: None,
            database: plan.database,
            placement: plan.placement,
            rows: 0,
            files,
        })
    }

    /// The database that the newest restore replaced.
    async fn kept(&self, tenant: &Summary) -> Result<(Uuid, String), ControlError> {
        let row = self
            .master
            .query_opt(
                "select server_id, database_name from organization_placements
                 where organization_id = $1 and reason in ($2, $3) order by placement desc limit 1",
                &[&tenant.id.as_uuid(), &Kind::Restore.as_str(), &Kind::Undo.as_str()],
            )
            .await
            .during("looking for the database before")?;
        row.map(|r| (r.get(0), r.get(1))).ok_or_else(|| {
            ControlError::Refused(format!("{}: no database is kept that a restore has replaced", tenant.slug))
        })
    }

    /// An organisation that is there: not one that is still being made.
    pub(crate) async fn there(&self, slug: &TenantSlug) -> Result<Summary, ControlError> {
        let tenant = self.tenant(slug).await?;
        if tenant.status == TenantStatus::Provisioning {
            return Err(ControlError::Refused(format!("{slug} is still being provisioned")));
        }
        Ok(tenant)
    }

    /// An organisation's role on its server.
    pub(crate) async fn role_of(&self, id: TenantId) -> Result<(TenantId, String), ControlError> {
        let row = self
            .master
            .query_one("select role_name from organizations where id = $1", &[&id.as_uuid()])
            .await
            .during("reading the role")?;
        Ok((id, row.get(0)))
    }
}
