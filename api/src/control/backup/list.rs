//! Which backups there are, and which are there no longer.

use std::collections::HashSet;

use gmah_shared::tenant::{TenantId, TenantSlug};
use object_store::path::Path;
use serde::Serialize;
use time::OffsetDateTime;
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use utoipa::ToSchema;
use uuid::Uuid;

use super::vault::Vault;
use super::{Manifest, dump_path, file_path, manifest_path};
use crate::control::{Control, ControlError, During as _};

/// A backup as operators see it.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Backup)]
pub struct Listed {
    /// Id.
    pub id: Uuid,
    /// Slug of the organisation, as it was.
    pub slug: String,
    /// `running`, `done`, `failed` or `removed`.
    pub state: String,
    /// Bytes that it added to the store.
    pub size_bytes: Option<i64>,
    /// The moment that it shows.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When it was last restored for a trial.
    #[serde(with = "time::serde::rfc3339::option")]
    pub verified_at: Option<OffsetDateTime>,
    /// What was not well then.
    pub verification: Option<String>,
    /// Why it failed.
    pub error: Option<String>,
}

impl Control {
    /// The newest backups, of one organisation or of all.
    ///
    /// # Errors
    /// [`ControlError`] when the master is away.
    pub async fn backups(&self, slug: Option<&TenantSlug>, limit: u16) -> Result<Vec<Listed>, ControlError> {
        let slug = slug.map(TenantSlug::as_str);
        let rows = self
            .master
            .query(
                "select b.id, b.slug, b.state, b.size_bytes, b.created_at, b.verified_at, b.verification, b.error
                 from backups b
                 where $1::text is null or b.slug = $1
                     or b.organization_id in (select id from organizations where slug = $1)
                 order by b.created_at desc, b.id desc limit $2",
                &[&slug, &i64::from(limit)],
            )
            .await
            .during("listing backups")?;
        Ok(rows.iter().map(listed).collect())
    }

    /// The manifest of a backup that is whole.
    ///
    /// # Errors
    /// [`ControlError::Refused`] when there is none, or none any more.
    pub(crate) async fn manifest_of(&self, id: Uuid) -> Result<Manifest, ControlError> {
        let row = self
            .master
            .query_opt("select state, manifest from backups where id = $1", &[&id])
            .await
            .during("looking for the backup")?;
        let row = row.ok_or_else(|| ControlError::Refused(format!("there is no backup {id}")))?;
        let state: String = row.get(0);
        if state != "done" {
            return Err(ControlError::Refused(format!("backup {id} is {state}")));
        }
        serde_json::from_value(row.get(1))
            .map_err(|e| ControlError::Foreign(format!("the manifest of {id} is unreadable: {e}")))
    }

    /// Removes what is beyond the number or the age that is kept; never the newest.
    pub(super) async fn expire_backups(
        &self,
        tenant: TenantId,
        vault: &Vault,
    ) -> Result<usize, ControlError> {
        let what = "looking for older backups";
        let Some(config) = &self.config.backups else { return Ok(0) };
        let keep = i64::try_from(config.keep.get()).unwrap_or(i64::MAX);
        // What another run did not come to the end of.
        let unremoved = self
            .master
            .query_typed(
                "select id from backups where organization_id = $1 and state = 'removed' and removed_at is null",
                &[(&tenant.as_uuid(), Type::UUID)],
            )
            .await
            .during(what)?;
        for row in &unremoved {
            self.remove_backup(tenant, row.get(0), vault).await?;
        }
        let rows = self
            .master
            .query_typed(
                "select id from (
                     select id, created_at, row_number() over (order by created_at desc, id desc) as n
                     from backups where organization_id = $1 and state = 'done') b
                 where n > 1 and (n > $2 or created_at < now() - make_interval(secs => $3))",
                &[
                    (&tenant.as_uuid(), Type::UUID),
                    (&keep, Type::INT8),
                    (&config.keep_for.as_secs_f64(), Type::FLOAT8),
                ],
            )
            .await
            .during(what)?;
        for row in &rows {
            self.remove_backup(tenant, row.get(0), vault).await?;
        }
        Ok(rows.len())
    }

    /// Removes a backup, and the bytes of files that no other one needs.
    pub(crate) async fn remove_backup(
        &self,
        tenant: TenantId,
        id: Uuid,
        vault: &Vault,
    ) -> Result<(), ControlError> {
        let what = "removing a backup";
        // Not to be restored any more, whatever comes of the rest.
        let row = self
            .master
            .query_opt(
                "update backups set state = 'removed' where id = $1 and organization_id = $2 returning manifest",
                &[&id, &tenant.as_uuid()],
            )
            .await
            .during(what)?;
        let files = |manifest: serde_json::Value| -> HashSet<Path> {
            let manifest: Option<Manifest> = serde_json::from_value(manifest).ok();
            let paths = manifest.map(|m| {
                m.files.iter().map(|f| file_path(tenant, f.id, &m.recipient)).collect::<HashSet<_>>()
            });
            paths.unwrap_or_default()
        };
        let mut unneeded =
            row.and_then(|r| r.get::<_, Option<serde_json::Value>>(0)).map(files).unwrap_or_default();
        if !unneeded.is_empty() {
            let others = self
                .master
                .query(
                    "select manifest from backups
                     where organization_id = $1 and state in ('done', 'running') and manifest is not null",
                    &[&tenant.as_uuid()],
                )
                .await
                .during(what)?;
            for other in others {
                for needed in files(other.get(0)) {
                    unneeded.remove(&needed);
                }
            }
        }
        vault.remove(&manifest_path(tenant, id)).await?;
        vault.remove(&dump_path(tenant, id)).await?;
        for file in unneeded {
            vault.remove(&file).await?;
        }
        self.master
            .execute("update backups set removed_at = now() where id = $1", &[&id])
            .await
            .during(what)?;
        Ok(())
    }
}

fn listed(row: &Row) -> Listed {
    Listed {
        id: row.get("id"),
        slug: row.get("slug"),
        state: row.get("state"),
        size_bytes: row.get("size_bytes"),
        created_at: row.get("created_at"),
        verified_at: row.get("verified_at"),
        verification: row.get("verification"),
        error: row.get("error"),
    }
}
