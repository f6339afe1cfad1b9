//! A database out of a dump, compared with what it should be, and made an organisation's own.

use bytes::Bytes;
use futures::Stream;
use gmah_shared::migrate;
use gmah_shared::pg::quote_identifier;
use gmah_shared::tenant::TenantId;
use tokio_postgres::Client;

use super::super::contents::{self, Contents};
use super::super::{Manifest, dump_path, file_path, hex};
use crate::control::remove::drop_database;
use crate::control::servers::Access;
use crate::control::{Control, ControlError, During as _};
use crate::modules;

/// Groups that dumps grant something to. Of two who make one at once, the second hears of it from the index.
pub(crate) const GROUPS: &str =
    "do $$ begin create role gmah_tenant nologin; exception when duplicate_object or unique_violation then null; end $$;
    do $$ begin create role gmah_readers nologin; exception when duplicate_object or unique_violation then null; end $$";

impl Control {
    /// Makes a database out of a backup, which nobody enters but this command. One that a killed run left is made anew.
    pub(crate) async fn load(
        &self,
        access: &Access,
        server: &Client,
        database: &str,
        owner: &(TenantId, String),
        manifest: &Manifest,
    ) -> Result<(), ControlError> {
        let path = dump_path(manifest.organization, manifest.id);
        let dump = self.vault()?.get(&path, Some(manifest.dump.clone())).await?;
        let name = format!("backup {}", manifest.id);
        self.fill(access, server, database, owner, dump, (&manifest.tables, &name)).await
    }

    /// The same, out of a dump that comes from wherever, and must turn out to be what is expected of it.
    pub(crate) async fn fill(
        &self,
        access: &Access,
        server: &Client,
        database: &str,
        owner: &(TenantId, String),
        dump: impl Stream<Item = Result<Bytes, ControlError>>,
        (expected, name): (&Contents, &str),
    ) -> Result<(), ControlError> {
        let what = "creating the database";
        drop_database(server, database, owner.0).await?;
        let (quoted, role) = (quote_identifier(database), quote_identifier(&owner.1));
        server
            .batch_execute(&format!(
                "create database {quoted} owner {role} template template0 encoding 'UTF8'"
            ))
            .await
            .during(what)?;
        // The owner as well, until all of it is there.
        server
            .batch_execute(&format!("revoke all on database {quoted} from public, {role}"))
            .await
            .during(what)?;
        // What a dump grants to these it grants by name.
        server.batch_execute(GROUPS).await.during(what)?;
        self.programs()?.restore(access, database, dump).await?;
        let mut db = access.connect(database).await?;
        let tx = db.transaction().await.during("counting what was restored")?;
        let found = contents::of(&tx).await?;
        tx.rollback().await.during("counting what was restored")?;
        if let Some(difference) = contents::difference(expected, &found) {
            return Err(ControlError::Foreign(format!("{name}: {difference}")));
        }
        // Owners are not part of a dump, and in a new database the schema belongs to the organisation's role.
        db.batch_execute(
            "do $$ begin execute format('alter schema public owner to %I', current_user); end $$;
             revoke all on schema public from public",
        )
        .await
        .during("closing the schema")?;
        server.batch_execute(&format!("grant all on database {quoted} to {role}")).await.during(what)?;
        Ok(())
    }

    /// Brings back bytes of files that are not in the store of files any more; answers of how many.
    pub(crate) async fn bring_files(&self, to: TenantId, manifest: &Manifest) -> Result<usize, ControlError> {
        if manifest.files.is_empty() {
            return Ok(0);
        }
        let store = self.files()?.ok_or_else(|| {
            ControlError::Usage("the backup has files, and [files] is not in the configuration".into())
        })?;
        let vault = self.vault()?;
        let mut brought = 0;
        for file in &manifest.files {
            if store.has(to, file.id).await.map_err(|_| ControlError::Silent("the store of files".into()))? {
                continue;
            }
            let path = file_path(manifest.organization, file.id, &manifest.recipient);
            let plain = vault.get(&path, None).await?;
            store.bring(to, file.id, &file.sha256, plain).await?;
            brought += 1;
        }
        Ok(brought)
    }

    /// Brings back bytes that a database of the organisation names and the store has not, from whichever backup has them.
    pub(super) async fn bring_missing(&self, db: &Client, id: TenantId) -> Result<usize, ControlError> {
        let what = "looking for files";
        let named = db
            .query("select id, sha256 from files where state = 'stored' order by id", &[])
            .await
            .during(what)?;
        let (Some(store), false) = (self.files()?, named.is_empty()) else { return Ok(0) };
        let vault = self.vault()?;
        let mut brought = 0;
        for row in &named {
            let (file, sha256) = (row.get(0), hex(row.get::<_, Option<&[u8]>>(1).unwrap_or_default()));
            if store.has(id, file).await.map_err(|_| ControlError::Silent("the store of files".into()))? {
                continue;
            }
            let mut found = false;
            for recipient in vault.recipients() {
                let path = file_path(id, file, &recipient);
                if vault.has(&path).await? {
                    store.bring(id, file, &sha256, vault.get(&path, None).await?).await?;
                    found = true;
                    break;
                }
            }
            if found {
                brought += 1;
            } else {
                tracing::warn!(tenant = %id, %file, "the bytes of a file are in no backup");
            }
        }
        Ok(brought)
    }
}

/// What a database needs before it is an organisation's: this program's schema, the proof of identity, and, where it is
/// `old`, that nothing comes back which was ended since.
pub(crate) async fn settle(
    db: &mut Client,
    id: TenantId,
    placement: i32,
    modules: &[String],
    old: bool,
) -> Result<(), ControlError> {
    let sets = modules::migrations(modules);
    migrate::run(db, &sets, Default::default()).await.during("migrations")?;
    let what = "writing the identity row";
    let tx = db.transaction().await.during(what)?;
    tx.execute(
        "update gmah_identity set organization_id = $1, placement = $2, tombstoned_at = null",
        &[&id.as_uuid(), &placement],
    )
    .await
    .during(what)?;
    if old {
        // What was still coming in when the backup was made is in no store.
        tx.batch_execute("delete from sessions; delete from account_links; delete from outbox; delete from files where state <> 'stored'")
            .await
            .during(what)?;
    }
    tx.commit().await.during(what)
}
