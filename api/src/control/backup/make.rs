//! Making a backup: the steps of it, and what is removed when it comes to nothing.

use futures::StreamExt as _;
use gmah_shared::tenant::TenantId;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, IsolationLevel};
use uuid::Uuid;

use super::contents::{self, Contents};
use super::vault::{Vault, Written, hex};
use super::{Kept, Made, Manifest, dump_path, file_path, manifest_path};
use crate::control::operations::Operation;
use crate::control::tenants::Summary;
use crate::control::{Control, ControlError, During as _};

/// What the step `dump` leaves to those after it.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Dumped {
    #[serde(with = "time::serde::rfc3339")]
    at: OffsetDateTime,
    server_version: String,
    schema: std::collections::BTreeMap<String, i32>,
    dump: Written,
    tables: Contents,
    files: Vec<Kept>,
}

impl Control {
    pub(super) async fn make_backup(
        &mut self,
        tenant: &Summary,
        operation: &mut Operation,
    ) -> Result<Made, ControlError> {
        let begin = self.note_backup(tenant, operation.id());
        let id: Uuid = operation.step(&self.master, "begin", begin).await?;
        let made = self.make_noted(tenant, id, operation).await;
        if let Err(e) = &made {
            operation.forget(&self.master, "").await?;
            self.unmake_backup(tenant.id, id, &e.to_string()).await;
        }
        made
    }

    pub(in crate::control) async fn make_noted(
        &mut self,
        tenant: &Summary,
        id: Uuid,
        operation: &mut Operation,
    ) -> Result<Made, ControlError> {
        let vault = self.vault()?;
        let dump = self.dump(tenant, id, &vault);
        let mut dumped: Dumped = operation.step(&self.master, "dump", dump).await?;
        let files = self.keep_files(tenant, &dumped.files, &vault);
        let (kept, gone): (u64, Vec<Uuid>) = operation.step(&self.master, "files", files).await?;
        dumped.files.retain(|f| !gone.contains(&f.id));
        let size_bytes = dumped.dump.size + kept;
        let made = Made {
            backup_id: id,
            slug: tenant.slug.clone(),
            size_bytes,
            tables: dumped.tables.len(),
            rows: dumped.tables.values().map(|t| t.rows).sum(),
            files: dumped.files.len(),
            removed: 0,
        };
        let manifest = Manifest {
            format: 1,
            id,
            organization: tenant.id,
            slug: tenant.slug.clone(),
            name: tenant.name.clone(),
            plan: tenant.plan.clone(),
            modules: tenant.modules.clone(),
            created_at: dumped.at,
            server_version: dumped.server_version,
            schema: dumped.schema,
            recipient: vault.recipient()?.to_string(),
            dump: dumped.dump,
            tables: dumped.tables,
            files: dumped.files,
        };
        let keep = self.keep_manifest(&manifest, size_bytes, operation.id(), &vault);
        operation.step(&self.master, "manifest", keep).await?;
        // The new one is there; that an old one could not be removed is for the next run.
        let removed = match self.expire_backups(tenant.id, &vault).await {
            Ok(removed) => removed,
            Err(e) => {
                tracing::warn!(tenant.slug = %tenant.slug, error = %e, "older backups were not removed");
                0
            }
        };
        Ok(Made { removed, ..made })
    }

    pub(in crate::control) async fn note_backup(
        &self,
        tenant: &Summary,
        operation: Uuid,
    ) -> Result<Uuid, ControlError> {
        let row = self
            .master
            .query_typed_one(
                "insert into backups (id, organization_id, slug, operation_id) values ($1, $2, $3, $4)
                 on conflict (operation_id) do update set state = 'running', error = null, finished_at = null
                 returning id",
                &[
                    (&Uuid::now_v7(), Type::UUID),
                    (&tenant.id.as_uuid(), Type::UUID),
                    (&tenant.slug, Type::TEXT),
                    (&operation, Type::UUID),
                ],
            )
            .await
            .during("noting the backup")?;
        Ok(row.get(0))
    }

    /// Everything of one moment: numbers of rows, the list of files, and the dump.
    async fn dump(&self, tenant: &Summary, id: Uuid, vault: &Vault) -> Result<Dumped, ControlError> {
        let what = "looking at the database";
        let access = self.access(tenant.server_id).await?;
        let mut db = access.connect(&tenant.database).await?;
        is_of(&db, tenant).await?;
        db.batch_execute("set idle_in_transaction_session_timeout = 0").await.during(what)?;
        let tx = db
            .build_transaction()
            .isolation_level(IsolationLevel::RepeatableRead)
            .read_only(true)
            .start()
            .await
            .during(what)?;
        let row = tx
            .query_typed_one("select pg_export_snapshot(), now(), current_setting('server_version')", &[])
            .await
            .during(what)?;
        let (snapshot, at, server_version): (String, OffsetDateTime, String) =
            (row.get(0), row.get(1), row.get(2));
        let dump = self.programs()?.dump(&access, &tenant.database, &snapshot)?;
        let dump = vault.put(&dump_path(tenant.id, id), dump).await?;
        let schema = tx
            .query_typed(
                "select set_name, max(version) from schema_migrations group by set_name limit 1000",
                &[],
            )
            .await
            .during(what)?;
        let files = tx
            .query_typed("select id, size, sha256 from files where state = 'stored' order by id", &[])
            .await
            .during(what)?;
        let tables = contents::of(&tx).await?;
        tx.rollback().await.during(what)?;
        Ok(Dumped {
            at,
            server_version,
            schema: schema.iter().map(|r| (r.get(0), r.get(1))).collect(),
            dump,
            tables,
            files: files
                .iter()
                .map(|r| Kept {
                    id: r.get(0),
                    size: r.get(1),
                    sha256: hex(r.get::<_, Option<&[u8]>>(2).unwrap_or_default()),
                })
                .collect(),
        })
    }

    /// Brings the bytes of files that no earlier backup has brought; answers how many that were, and which files were removed
    /// since the moment that the backup shows.
    async fn keep_files(
        &self,
        tenant: &Summary,
        files: &[Kept],
        vault: &Vault,
    ) -> Result<(u64, Vec<Uuid>), ControlError> {
        let (mut bytes, mut gone) = (0, Vec::new());
        if files.is_empty() {
            return Ok((bytes, gone));
        }
        let store = self.files()?.ok_or_else(|| {
            ControlError::Usage("the organisation has files, and [files] is not in the configuration".into())
        })?;
        let recipient = vault.recipient()?.to_string();
        for file in files {
            let path = file_path(tenant.id, file.id, &recipient);
            if vault.has(&path).await? {
                continue;
            }
            let Ok(found) = store.get(tenant.id, file.id).await else {
                if self.is_removed(tenant, file.id).await? {
                    gone.push(file.id);
                    continue;
                }
                return Err(ControlError::Foreign(format!(
                    "the bytes of file {} are not to be had",
                    file.id
                )));
            };
            let plain = found.into_stream().map(|piece| {
                piece.map_err(|e| ControlError::Foreign(format!("reading a file of the organisation: {e}")))
            });
            bytes += vault.put(&path, plain).await?.size;
        }
        Ok((bytes, gone))
    }

    async fn is_removed(&self, tenant: &Summary, file: Uuid) -> Result<bool, ControlError> {
        let db = self.access(tenant.server_id).await?.connect(&tenant.database).await?;
        let row = db
            .query_opt("select 1 from files where id = $1 and state = 'stored'", &[&file])
            .await
            .during("looking for a file")?;
        Ok(row.is_none())
    }

    async fn keep_manifest(
        &self,
        manifest: &Manifest,
        size_bytes: u64,
        operation: Uuid,
        vault: &Vault,
    ) -> Result<(), ControlError> {
        let value = serde_json::to_value(manifest)
            .map_err(|e| ControlError::Foreign(format!("no JSON of a manifest: {e}")))?;
        let path = manifest_path(manifest.organization, manifest.id);
        vault.put_plain(&path, format!("{value:#}\n").into_bytes()).await?;
        let sha256 = unhex(&manifest.dump.sha256);
        let noted = self
            .master
            .execute_typed(
                "with made as (
                     update backups set state = 'done', manifest = $2, sha256 = $3, size_bytes = $4,
                         created_at = $5, finished_at = now(), error = null
                     where id = $1 and state in ('running', 'done') returning organization_id)
                 insert into audit_log (actor, action, organization_id, detail)
                 select $6, 'tenant.backup', organization_id,
                     jsonb_build_object('backup', $1::uuid, 'operation', $7::uuid) from made",
                &[
                    (&manifest.id, Type::UUID),
                    (&value, Type::JSONB),
                    (&sha256, Type::BYTEA),
                    (&i64::try_from(size_bytes).unwrap_or(i64::MAX), Type::INT8),
                    (&manifest.created_at, Type::TIMESTAMPTZ),
                    (&self.actor, Type::TEXT),
                    (&operation, Type::UUID),
                ],
            )
            .await
            .during("noting the backup")?;
        if noted == 0 {
            return Err(ControlError::Refused(format!("backup {} was given up meanwhile", manifest.id)));
        }
        Ok(())
    }

    /// Removes what was stored of a backup that came to nothing.
    pub(in crate::control) async fn unmake_backup(&self, tenant: TenantId, id: Uuid, why: &str) {
        let removed = async {
            // The row first: what is noted as done keeps its bytes.
            let ours = self
                .master
                .execute(
                    "update backups set state = 'failed', error = $2, finished_at = now()
                     where id = $1 and state = 'running'",
                    &[&id, &why],
                )
                .await
                .during("noting the backup")?;
            if ours == 1 {
                let vault = self.vault()?;
                vault.remove(&manifest_path(tenant, id)).await?;
                vault.remove(&dump_path(tenant, id)).await?;
            }
            Ok::<_, ControlError>(())
        };
        if let Err(e) = removed.await {
            tracing::warn!(backup = %id, error = %e, "a backup that failed may have left something");
        }
    }

    /// Gives up the backup of an operation.
    pub(crate) async fn cancel_backup(&self, operation: Uuid) -> Result<(), ControlError> {
        let rows = self
            .master
            .query(
                "select id, organization_id from backups where operation_id = $1 and state = 'running'",
                &[&operation],
            )
            .await
            .during("looking for the backup")?;
        for row in rows {
            self.unmake_backup(TenantId::from_uuid(row.get(1)), row.get(0), "given up").await;
        }
        Ok(())
    }
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |at: usize| text.get(at..at + 2).and_then(|d| u8::from_str_radix(d, 16).ok());
    (0..text.len()).step_by(2).filter_map(digit).collect()
}

/// Refuses a database that is not that organisation's: a backup of another one would be found out when it is needed.
async fn is_of(db: &Client, tenant: &Summary) -> Result<(), ControlError> {
    let row = db
        .query_typed_opt(
            "select organization_id, placement from gmah_identity where tombstoned_at is null",
            &[],
        )
        .await
        .during("looking at the identity row")?;
    match row {
        Some(row)
            if row.get::<_, Uuid>(0) == tenant.id.as_uuid() && row.get::<_, i32>(1) == tenant.placement =>
        {
            Ok(())
        }
        _ => Err(ControlError::Foreign(format!("{} is not {}'s database", tenant.database, tenant.slug))),
    }
}
