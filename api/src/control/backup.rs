//! Backups of organisations: made while everything runs, of one moment, encrypted, tried by restoring them.
//!
//! ```text
//! begin ─► dump ─► files ─► manifest
//! ```
//!
//! One transaction holds the moment still: what is counted for the manifest is what `pg_dump` writes. Files never change, so
//! that a later backup shares what an earlier one brought.

pub mod config;
pub(crate) mod contents;
mod copy;
pub mod list;
mod make;
mod programs;
pub mod restore;
mod vault;
pub(crate) mod verify;

use std::sync::{Mutex, PoisonError};

use gmah_shared::tenant::{TenantId, TenantSlug};
use object_store::path::Path;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

pub use contents::{Content, Contents};
pub use list::Listed;
pub use verify::Verified;

use self::programs::Programs;
pub(crate) use self::vault::hex;
use self::vault::{Vault, Written};
use super::fleet::{self, Fleet};
use super::operations::{Again, Ask, Kind, Subject};
use super::tenants::Summary;
use super::{Control, ControlError};
use crate::files::Files;

/// What is in a backup. It lies beside it, in clear: names of tables and numbers of rows, and nothing of what they hold.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Manifest {
    /// 1
    pub format: u32,
    /// The backup.
    pub id: Uuid,
    /// Whose it is.
    pub organization: TenantId,
    /// Slug at that time.
    pub slug: String,
    /// Name at that time.
    pub name: String,
    /// Plan at that time.
    pub plan: String,
    /// Modules at that time.
    pub modules: Vec<String>,
    /// The moment that it shows.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// `server_version` of the server.
    pub server_version: String,
    /// Highest migration of each set.
    pub schema: std::collections::BTreeMap<String, i32>,
    /// Recipient of age that can open it.
    pub recipient: String,
    /// The dump, as it is stored.
    dump: Written,
    /// Each table.
    pub tables: Contents,
    /// Each file whose bytes belong to it.
    pub files: Vec<Kept>,
}

/// A file of an organisation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Kept {
    /// Id.
    pub id: Uuid,
    /// Bytes.
    pub size: i64,
    /// SHA-256 in hexadecimal digits.
    pub sha256: String,
}

/// What came of a backup.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Made {
    /// The backup.
    pub backup_id: Uuid,
    /// Slug.
    pub slug: String,
    /// Bytes that it added to the store.
    pub size_bytes: u64,
    /// Tables.
    pub tables: usize,
    /// Rows of all tables.
    pub rows: i64,
    /// Files.
    pub files: usize,
    /// How many older ones were removed for it.
    pub removed: usize,
}

pub(crate) fn dump_path(organization: TenantId, backup: Uuid) -> Path {
    Path::from(format!("{}/{}/dump.age", organization.as_uuid().simple(), backup.simple()))
}

fn manifest_path(organization: TenantId, backup: Uuid) -> Path {
    Path::from(format!("{}/{}/manifest.json", organization.as_uuid().simple(), backup.simple()))
}

/// With the key that it is encrypted to: what is encrypted to one that is not used any more is not shared.
pub(crate) fn file_path(organization: TenantId, file: Uuid, recipient: &str) -> Path {
    let key = hex(ring::digest::digest(&ring::digest::SHA256, recipient.as_bytes()).as_ref());
    let key = key.get(..8).unwrap_or_default();
    Path::from(format!("{}/files/{}.{key}.age", organization.as_uuid().simple(), file.simple()))
}

impl Control {
    /// Makes a backup of an organisation.
    ///
    /// # Errors
    /// [`ControlError`]; what had been stored of it is removed.
    pub async fn backup(&mut self, slug: &TenantSlug) -> Result<Made, ControlError> {
        let tenant = self.there(slug).await?;
        self.backup_of(&tenant, None).await
    }

    pub(crate) async fn backup_of(
        &mut self,
        tenant: &Summary,
        resume: Option<Uuid>,
    ) -> Result<Made, ControlError> {
        // What is wrong with the machine or the configuration is said before anything is noted.
        self.vault()?;
        self.programs()?;
        let slug = super::parse_slug(&tenant.slug)?;
        let ask = Ask { again: Again::Anew, ..Ask::of(Kind::Backup, tenant, resume) };
        let (made, _) = self
            .operate(ask, async |control, operation| {
                // Under the lock: it may have another database by now.
                let tenant = control.there(&slug).await?;
                control.make_backup(&tenant, operation).await
            })
            .await?;
        Ok(made)
    }

    /// Makes backups of many, a bounded number at once on each server. `done` hears of each as it ends.
    ///
    /// # Errors
    /// [`ControlError::Refused`] while another such run is under way. What fails of an organisation is in the outcome.
    pub async fn backup_fleet(
        &self,
        tenants: Vec<Summary>,
        fleet: Fleet,
        done: impl FnMut(&fleet::Outcome<Made>),
    ) -> Result<Vec<fleet::Outcome<Made>>, ControlError> {
        let subject = Subject::Fleet("backup".into());
        if !self.try_hold(&subject).await? {
            return Err(ControlError::Refused("another run of backups is under way".into()));
        }
        // An operation is held by its session: those that are over lend theirs to the next.
        let free: Mutex<Vec<Self>> = Mutex::default();
        let work = |tenant: Summary| {
            let free = &free;
            async move {
                let lent = free.lock().unwrap_or_else(PoisonError::into_inner).pop();
                let mut session = match lent {
                    Some(session) => session,
                    None => self.another().await?,
                };
                let made = session.backup_of(&tenant, None).await;
                // Of one that failed nobody knows what its session still holds.
                if made.is_ok() {
                    free.lock().unwrap_or_else(PoisonError::into_inner).push(session);
                }
                made
            }
        };
        let outcomes = fleet::over(tenants, fleet, work, done).await;
        self.release(&subject).await;
        Ok(outcomes)
    }

    /// Where backups lie.
    pub(crate) fn vault(&self) -> Result<Vault, ControlError> {
        let none = || ControlError::Usage("there is no [backups] in the configuration".into());
        Vault::open(self.config.backups.as_ref().ok_or_else(none)?)
    }

    /// PostgreSQL's programs.
    pub(crate) fn programs(&self) -> Result<Programs, ControlError> {
        Programs::find(self.config.backups.as_ref().and_then(|b| b.programs.as_ref()))
    }

    /// Where organisations' files lie, if they have any.
    pub(crate) fn files(&self) -> Result<Option<Files>, ControlError> {
        self.config.files.as_ref().map(Files::new).transpose().map_err(ControlError::Usage)
    }
}
