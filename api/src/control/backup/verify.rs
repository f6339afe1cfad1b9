//! Trying a backup: restored into a database that nobody uses, counted, and dropped again.

use futures::{StreamExt as _, stream};
use gmah_shared::pg::quote_identifier;
use ring::digest;
use serde::Serialize;
use tokio_postgres::Client;
use uuid::Uuid;

use super::restore::GROUPS;
use super::{Manifest, contents, dump_path, file_path, hex};
use crate::control::operations::Subject;
use crate::control::{Control, ControlError, During as _, template};

/// Name of a database for a trial, before the id of the backup.
pub(crate) const SCRATCH: &str = "gmah_verify_";

/// What came of a trial.
#[derive(Debug, Clone, Serialize)]
pub struct Verified {
    /// The backup.
    pub backup_id: Uuid,
    /// Slug.
    pub slug: String,
    /// Rows that were found, all as they should be.
    pub rows: i64,
    /// Files that were found, all as they should be.
    pub files: usize,
}

impl Control {
    /// Tries several, so many at once, and tells `done` of each in their order.
    pub async fn verify_backups(
        &self,
        ids: &[Uuid],
        parallel: usize,
        mut done: impl FnMut(Uuid, Result<Verified, ControlError>),
    ) {
        let mut trials = stream::iter(ids)
            .map(|id| async move { (*id, self.verify_backup(*id).await) })
            .buffered(parallel.max(1));
        while let Some((id, outcome)) = trials.next().await {
            done(id, outcome);
        }
    }

    /// Tries a backup; the result is noted with it.
    ///
    /// # Errors
    /// [`ControlError::Foreign`] says what is not well.
    pub async fn verify_backup(&self, id: Uuid) -> Result<Verified, ControlError> {
        let manifest = self.manifest_of(id).await?;
        let subject = Subject::Fleet(format!("verify/{id}"));
        if !self.try_hold(&subject).await? {
            return Err(ControlError::Refused(format!("backup {id} is being tried by another command")));
        }
        let tried = self.try_backup(&manifest).await;
        self.release(&subject).await;
        let noted = match &tried {
            Ok(_) => None,
            // Of the backup, and not of a server that was away.
            Err(e @ (ControlError::Foreign(_) | ControlError::Refused(_))) => Some(e.to_string()),
            Err(_) => return tried,
        };
        self.master
            .execute(
                "update backups set verified_at = now(), verification = $2 where id = $1",
                &[&id, &noted],
            )
            .await
            .during("noting the trial")?;
        tried
    }

    /// Drops what trials left whose runner was killed.
    pub(crate) async fn sweep_trials(&self, server: &Client) -> Result<(), ControlError> {
        let what = "looking for databases of trials";
        let left = server
            .query("select datname from pg_database where starts_with(datname, $1)", &[&SCRATCH])
            .await
            .during(what)?;
        for row in &left {
            let name: String = row.get(0);
            if self.is_tried(&name).await? {
                continue;
            }
            server
                .batch_execute(&format!("drop database if exists {} with (force)", quote_identifier(&name)))
                .await
                .during("dropping the database of a trial")?;
        }
        Ok(())
    }

    /// Whether a trial is going on in a database of that name.
    pub(crate) async fn is_tried(&self, name: &str) -> Result<bool, ControlError> {
        let id = name.strip_prefix(SCRATCH).and_then(|id| Uuid::try_parse(id).ok());
        let Some(id) = id else { return Ok(false) };
        let subject = Subject::Fleet(format!("verify/{id}"));
        let free = self.try_hold(&subject).await?;
        if free {
            self.release(&subject).await;
        }
        Ok(!free)
    }

    async fn try_backup(&self, manifest: &Manifest) -> Result<Verified, ControlError> {
        let vault = self.vault()?;
        let server = self.place(None).await?;
        let access = self.access(server).await?;
        let admin = access.connect("postgres").await?;
        let scratch = format!("{SCRATCH}{}", manifest.id.simple());
        let quoted = quote_identifier(&scratch);
        let what = "making a database for the trial";
        admin.batch_execute(&format!("drop database if exists {quoted} with (force)")).await.during(what)?;
        let create = format!("create database {quoted} template template0 encoding 'UTF8'");
        template::retry_in_use(&admin, &create).await.during(what)?;
        admin.batch_execute(&format!("revoke all on database {quoted} from public")).await.during(what)?;
        // What a dump grants to these it grants by name.
        admin.batch_execute(GROUPS).await.during(what)?;
        let found = async {
            let path = dump_path(manifest.organization, manifest.id);
            let dump = vault.get(&path, Some(manifest.dump.clone())).await?;
            self.programs()?.restore(&access, &scratch, dump).await?;
            let mut db = access.connect(&scratch).await?;
            let tx = db.transaction().await.during("counting")?;
            let found = contents::of(&tx).await?;
            match contents::difference(&manifest.tables, &found) {
                Some(difference) => {
                    Err(ControlError::Foreign(format!("backup {}: {difference}", manifest.id)))
                }
                None => Ok(()),
            }
        };
        let found = found.await;
        let dropped = admin.batch_execute(&format!("drop database if exists {quoted} with (force)")).await;
        found?;
        dropped.during("dropping the database of the trial")?;
        for file in &manifest.files {
            let mut plain =
                vault.get(&file_path(manifest.organization, file.id, &manifest.recipient), None).await?;
            let mut hash = digest::Context::new(&digest::SHA256);
            while let Some(piece) = plain.next().await {
                hash.update(&piece?);
            }
            if hex(hash.finish().as_ref()) != file.sha256 {
                return Err(ControlError::Foreign(format!("file {} has other bytes", file.id)));
            }
        }
        Ok(Verified {
            backup_id: manifest.id,
            slug: manifest.slug.clone(),
            rows: manifest.tables.values().map(|t| t.rows).sum(),
            files: manifest.files.len(),
        })
    }
}
