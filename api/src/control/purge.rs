//! Destroying what is left of a deleted organisation, once its grace is over.
//!
//! ```text
//! files ─► databases ─► role ─► keys (and the certificate of what was destroyed)
//! ```

use std::collections::BTreeSet;

use gmah_shared::tenant::TenantId;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::OffsetDateTime;
use uuid::Uuid;

use super::operations::{Again, Ask, Kind, Operation, Subject};
use super::provision::{Reserved, hold_on_server};
use super::remove::{drop_database, drop_role};
use super::{Control, ControlError, During as _, fence};

/// What was destroyed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Certificate {
    /// Slug.
    pub slug: String,
    /// Id, which nobody has again.
    pub id: TenantId,
    /// When it was deleted.
    #[serde(with = "time::serde::rfc3339::option")]
    pub deleted_at: Option<OffsetDateTime>,
    /// When all of this was gone.
    #[serde(with = "time::serde::rfc3339")]
    pub purged_at: OffsetDateTime,
    /// Databases that were dropped.
    pub databases: Vec<String>,
    /// The role that was dropped.
    pub role: Option<String>,
    /// Files whose bytes were removed.
    pub files: usize,
    /// Names that were given up, with their certificates.
    pub domains: Vec<String>,
    /// Keys that were destroyed: what they sealed opens nowhere any more, in no backup either.
    pub keys: i64,
    /// When the last backup is removed.
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_backup_expires_at: Option<OffsetDateTime>,
}

impl Control {
    /// Destroys what is left of a deleted organisation: nothing of this can be undone.
    ///
    /// # Errors
    /// [`ControlError`]; another run goes on.
    pub async fn purge(&mut self, id: TenantId) -> Result<Certificate, ControlError> {
        self.purge_of(id, None).await
    }

    pub(crate) async fn purge_of(
        &mut self,
        id: TenantId,
        resume: Option<Uuid>,
    ) -> Result<Certificate, ControlError> {
        let row = self
            .master
            .query_opt(
                "select slug from organizations where id = $1 and status = 'deleted' and purge_after <= now()",
                &[&id.as_uuid()],
            )
            .await
            .during("looking for the organisation")?;
        let row = row.ok_or_else(|| ControlError::Refused(format!("{id} is not due to be destroyed")))?;
        let slug: String = row.get(0);
        let ask = Ask {
            kind: Kind::Purge,
            subject: Subject::Organization(id),
            organization: Some(id),
            about: slug.clone(),
            input: json!({ "id": id, "slug": slug }),
            again: Again::Yes,
            resume,
        };
        let (certificate, _) =
            self.operate(ask, async |control, operation| control.purge_steps(id, operation).await).await?;
        Ok(certificate)
    }

    async fn purge_steps(
        &mut self,
        id: TenantId,
        operation: &mut Operation,
    ) -> Result<Certificate, ControlError> {
        // Under the lock: an undelete, or a deletion that failed, may have been faster.
        let due = self
            .master
            .query_opt(
                "select 1 from organizations where id = $1 and status = 'deleted' and purge_after <= now()",
                &[&id.as_uuid()],
            )
            .await
            .during("looking for the organisation")?;
        if due.is_none() {
            return Err(ControlError::Refused("it is not due to be destroyed any more".into()));
        }
        let r = self.reserved_of(id).await?;
        let server = self.access(r.server).await?.connect("postgres").await?;
        hold_on_server(&server, id).await?;
        let files: Vec<Uuid> = operation.step(&self.master, "files", self.remove_files(id)).await?;
        let databases: Vec<String> =
            operation.step(&self.master, "databases", self.drop_databases(&r)).await?;
        operation.step(&self.master, "role", drop_role(&server, &r.role, id)).await?;
        let destroy = self.destroy_keys(id, &r, files.len(), databases, operation.id());
        operation.step(&self.master, "keys", destroy).await
    }

    /// Removes the bytes of all files of an organisation.
    pub(crate) async fn remove_files(&self, id: TenantId) -> Result<Vec<Uuid>, ControlError> {
        let Some(store) = self.files()? else { return Ok(Vec::new()) };
        let mut removed =
            store.all_of(id).await.map_err(|_| ControlError::Silent("the store of files".into()))?;
        removed.sort();
        for file in &removed {
            store.remove(id, *file).await.map_err(|_| ControlError::Silent("the store of files".into()))?;
        }
        Ok(removed)
    }

    /// The one that it had, and those that are kept of restores.
    async fn drop_databases(&self, r: &Reserved) -> Result<Vec<String>, ControlError> {
        let what = "dropping the databases";
        let kept = self
            .master
            .query(
                "select server_id, database_name from organization_placements where organization_id = $1
                 order by placement limit 10000",
                &[&r.id.as_uuid()],
            )
            .await
            .during(what)?;
        let mut all: Vec<(Uuid, String)> = kept.iter().map(|k| (k.get(0), k.get(1))).collect();
        all.push((r.server, r.database.clone()));
        let mut dropped = Vec::new();
        let left: BTreeSet<Uuid> = kept.iter().map(|k| k.get(0)).filter(|s| *s != r.server).collect();
        for (server, database) in all {
            let access = self.access(server).await?;
            let server = access.connect("postgres").await?;
            fence::clear(&access, &server, &database).await?;
            if drop_database(&server, &database, r.id).await? {
                dropped.push(database);
            }
        }
        // On servers that it was moved away from.
        for server in left {
            let server = self.access(server).await?.connect("postgres").await?;
            drop_role(&server, &r.role, r.id).await?;
        }
        self.master
            .execute("delete from organization_placements where organization_id = $1", &[&r.id.as_uuid()])
            .await
            .during(what)?;
        Ok(dropped)
    }

    async fn destroy_keys(
        &self,
        id: TenantId,
        r: &Reserved,
        files: usize,
        databases: Vec<String>,
        operation: Uuid,
    ) -> Result<Certificate, ControlError> {
        let what = "destroying the organisation's keys";
        let keep_for = self.config.backups.as_ref().map_or(0.0, |b| b.keep_for.as_secs_f64());
        let row = self
            .master
            .query_one(
                "select slug, deleted_at, certificate, now() as now,
                     (select count(*) from organization_keys where organization_id = o.id) as keys,
                     array(select hostname from organization_domains where organization_id = o.id order by 1) as domains,
                     (select max(created_at) + make_interval(secs => $2) from backups
                      where organization_id = o.id and state = 'done') as last_backup
                 from organizations o where id = $1",
                &[&id.as_uuid(), &keep_for],
            )
            .await
            .during(what)?;
        // An earlier runner was killed right after this.
        if let Some(known) = row.get::<_, Option<Value>>("certificate") {
            return serde_json::from_value(known)
                .map_err(|e| ControlError::Foreign(format!("the certificate in the master: {e}")));
        }
        let certificate = Certificate {
            slug: row.get("slug"),
            id,
            deleted_at: row.get("deleted_at"),
            purged_at: row.get("now"),
            databases,
            role: Some(r.role.clone()),
            files,
            domains: row.get("domains"),
            keys: row.get("keys"),
            last_backup_expires_at: row.get("last_backup"),
        };
        let value = serde_json::to_value(&certificate)
            .map_err(|e| ControlError::Foreign(format!("no JSON of the certificate: {e}")))?;
        self.master
            .execute(
                "with gone as (
                     update organizations set purged_at = now(), certificate = $2, role_password = ''::bytea,
                         role_password_next = null
                     where id = $1 returning id),
                 keys as (delete from organization_keys where organization_id = (select id from gone)),
                 domains as (delete from organization_domains where organization_id = (select id from gone)),
                 chores as (delete from organization_chores where organization_id = (select id from gone)),
                 own as (delete from organization_migrations where organization_id = (select id from gone)),
                 -- Nobody can go on with what failed.
                 failed as (update operations set state = 'cancelled', fence = fence + 1, updated_at = now()
                     where organization_id = (select id from gone) and state = 'failed' and id <> $4)
                 insert into audit_log (actor, action, organization_id, detail)
                 select $3, 'tenant.purge', id, jsonb_build_object('operation', $4::uuid, 'certificate', $2::jsonb)
                 from gone",
                &[&id.as_uuid(), &value, &self.actor, &operation],
            )
            .await
            .during(what)?;
        Ok(certificate)
    }

    /// What is on record of an organisation that was destroyed.
    ///
    /// # Errors
    /// [`ControlError`] when the master is away.
    pub async fn certificate(&self, id: TenantId) -> Result<Option<Value>, ControlError> {
        let row = self
            .master
            .query_opt("select certificate from organizations where id = $1", &[&id.as_uuid()])
            .await
            .during("reading the certificate")?;
        Ok(row.and_then(|r| r.get(0)))
    }

    /// Deleted organisations whose grace is over.
    pub(crate) async fn due_for_purge(&self) -> Result<Vec<TenantId>, ControlError> {
        let rows = self
            .master
            .query(
                "select id from organizations
                 where status = 'deleted' and purged_at is null and purge_after <= now()
                 order by purge_after limit 1000",
                &[],
            )
            .await
            .during("looking for what is to be destroyed")?;
        Ok(rows.iter().map(|r| TenantId::from_uuid(r.get(0))).collect())
    }
}
