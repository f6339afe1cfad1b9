//! Going on with an operation that was left unfinished, or giving it up.

use std::time::Duration;

use gmah_shared::tenant::TenantId;
use secrecy::SecretString;
use uuid::Uuid;

use super::{Kind, Shown};
use crate::control::backup::restore;
use crate::control::delete::Deletion;
use crate::control::fleet::Fleet;
use crate::control::portable::NewFromExport;
use crate::control::provision::NewTenant;
use crate::control::relocate;
use crate::control::{Control, ControlError, During as _, parse_slug};

/// For nodes that are to learn of a key.
const PATIENCE: Duration = Duration::from_secs(50);

/// What came of going on.
#[derive(Debug)]
pub struct Resumed {
    /// The operation, as it is now.
    pub operation: Shown,
    /// Password of the administrator that it made, if it made one.
    pub admin_password: Option<SecretString>,
}

impl Control {
    /// Goes on with an operation that a killed runner left, or that failed.
    ///
    /// # Errors
    /// [`ControlError::Refused`] when it is done or given up, or still has its runner; and what the operation itself may
    /// fail with.
    pub async fn resume_operation(&mut self, id: Uuid) -> Result<Resumed, ControlError> {
        let shown = self.operation(id).await?;
        let kind = resumable(&shown)?;
        let (resume, input) = (Some(id), &shown.input);
        let tenant = |slug: &serde_json::Value| parse_slug(slug.as_str().unwrap_or_default());
        let mut admin_password = None;
        match kind {
            Kind::Create => {
                let created = self.create(NewTenant::of_journal(input)?, resume).await?;
                admin_password = created.admin_password;
            }
            Kind::Migrate => drop(self.migrate_again(input.clone(), resume, Fleet::default(), |_| {}).await?),
            Kind::Backup => {
                let tenant = self.tenant(&tenant(&input["slug"])?).await?;
                self.backup_of(&tenant, resume).await?;
            }
            Kind::Restore => {
                let order = restore::Order::of_journal(input)?;
                self.restore_in_place(&tenant(&input["slug"])?, order, resume).await?;
            }
            Kind::Undo => drop(self.undo_restore_of(&tenant(&input["slug"])?, resume).await?),
            Kind::Import => {
                let imported = self.import_as(NewFromExport::of_journal(input)?, resume).await?;
                admin_password = imported.admin_password;
            }
            Kind::Delete => {
                let grace = Duration::from_secs(input["grace_seconds"].as_u64().unwrap_or_default());
                let order = Deletion { grace, backup: input["backup"].as_bool().unwrap_or(true) };
                self.delete_of(&tenant(&input["slug"])?, order, resume).await?;
            }
            Kind::Move => {
                let server = relocate::server_of_journal(input).to_owned();
                self.move_of(&tenant(&input["slug"])?, &server, resume).await?;
            }
            Kind::RolePassword => drop(self.rotate_role_password_of(&tenant(&input["slug"])?, resume).await?),
            Kind::Modules => {
                let keys: Vec<String> = serde_json::from_value(input["modules"].clone()).unwrap_or_default();
                let on = input["enabled"].as_bool().unwrap_or_default();
                self.switch_modules(&tenant(&input["slug"])?, &keys, on, resume).await?;
            }
            Kind::DataKey => drop(self.rotate_data_key_of(&tenant(&input["slug"])?, resume).await?),
            Kind::SigningKey => drop(self.rotate_signing_key_as(PATIENCE, resume).await?),
            Kind::MasterKey => {
                // What was asked for is noted with the key, once there is one.
                self.rotate_master_key_as(false, PATIENCE, resume).await?;
            }
            Kind::Undelete => drop(self.undelete_of(&tenant(&input["slug"])?, resume).await?),
            Kind::Purge => {
                let id = input["id"].as_str().and_then(|id| id.parse().ok()).unwrap_or_default();
                self.purge_of(TenantId::from_uuid(id), resume).await?;
            }
            Kind::RestoreAs => {
                let order = restore::Order::of_journal(input)?;
                admin_password = self.restore_under(order, tenant(&input["as"])?, resume).await?.1;
            }
        }
        Ok(Resumed { operation: self.operation(id).await?, admin_password })
    }

    /// Refuses an exchange of a key that is the platform's own: whoever goes on with it, or gives it up, has a shell where the key's
    /// file is.
    ///
    /// # Errors
    /// [`ControlError::Refused`].
    pub(crate) async fn is_of_no_platform_key(&self, id: Uuid) -> Result<(), ControlError> {
        let kind = Kind::parse(&self.operation(id).await?.listed.kind);
        if matches!(kind, Some(Kind::SigningKey | Kind::MasterKey)) {
            return Err(ControlError::Refused(format!(
                "keys of the platform are exchanged on the command line: gmah operation show {id}"
            )));
        }
        Ok(())
    }

    /// Gives up an operation that was left unfinished, and removes what it had made.
    ///
    /// # Errors
    /// [`ControlError::Refused`] when it is done or given up, or still has its runner.
    pub async fn cancel_operation(&mut self, id: Uuid) -> Result<Shown, ControlError> {
        let shown = self.operation(id).await?;
        let kind = resumable(&shown)?;
        let subject = super::Subject::parse(&shown.listed.subject)?;
        self.hold(&subject).await?;
        // Whoever had it may have come to its end meanwhile.
        let undone = match self.operation(id).await {
            Ok(now) if matches!(now.listed.state.as_str(), "running" | "failed") => self.undo(kind, id).await,
            Ok(now) => Err(ControlError::Refused(format!("operation {id} is {}", now.listed.state))),
            Err(e) => Err(e),
        };
        let cancelled = match undone {
            Ok(()) => self.note_cancelled(id).await,
            Err(e) => Err(e),
        };
        self.release(&subject).await;
        cancelled?;
        self.operation(id).await
    }

    /// Takes away what an operation has made.
    pub(super) async fn undo(&mut self, kind: Kind, id: Uuid) -> Result<(), ControlError> {
        match kind {
            Kind::Create | Kind::RestoreAs | Kind::Import => self.unmake(id).await,
            // What ran has run; there is nothing that would go back.
            Kind::Migrate => Ok(()),
            // Whichever key seals or signs goes on; the next exchange takes up the newer one. Without its switch a module is off.
            Kind::SigningKey | Kind::MasterKey | Kind::DataKey | Kind::Modules => Ok(()),
            Kind::Backup => self.cancel_backup(id).await,
            Kind::Restore | Kind::Undo => self.cancel_restore(id).await,
            Kind::Delete => self.cancel_deletion(id).await,
            Kind::Move => self.move_back(id).await,
            Kind::Undelete | Kind::Purge | Kind::RolePassword => Err(ControlError::Refused(format!(
                "{} cannot be given up half-way: gmah operation resume {id}",
                kind.as_str()
            ))),
        }
    }

    pub(super) async fn note_cancelled(&self, id: Uuid) -> Result<(), ControlError> {
        self.master
            .execute(
                "with over as (
                     update operations set state = 'cancelled', fence = fence + 1, finished_at = now(), updated_at = now()
                     where id = $1 and state in ('running', 'failed') returning id, kind, organization_id),
                 steps as (
                     update operation_steps set state = 'failed', finished_at = now()
                     where operation_id = (select id from over) and state = 'running')
                 insert into audit_log (actor, action, organization_id, detail)
                 select $2, 'operation.cancel', organization_id, jsonb_build_object('operation', id, 'kind', kind)
                 from over",
                &[&id, &self.actor],
            )
            .await
            .during("writing the journal")?;
        Ok(())
    }
}

/// What is to be gone on with.
fn resumable(shown: &Shown) -> Result<Kind, ControlError> {
    let listed = &shown.listed;
    let kind = Kind::parse(&listed.kind)
        .ok_or_else(|| ControlError::Refused(format!("this program knows no operation {}", listed.kind)))?;
    match (listed.state.as_str(), listed.abandoned) {
        ("failed", _) if !kind.is_gone_on_with() => Err(ControlError::Refused(format!(
            "operation {} failed, and there is nothing to go on with: ask for another",
            listed.id
        ))),
        ("running", false) => Err(ControlError::Refused(format!("operation {} is running", listed.id))),
        ("running" | "failed", _) => Ok(kind),
        (state, _) => Err(ControlError::Refused(format!("operation {} is {state}", listed.id))),
    }
}
