//! Deleting an organisation, having it back, and destroying it.
//!
//! ```text
//! delete     close ─► drain ─► dump ─► files ─► manifest ─► fence ─► rename ─► (grace) ─► purge
//! undelete   rename ─► open ─► active
//! purge      databases ─► role ─► files ─► keys
//! ```
//!
//! `close` is what everybody sees: the host answers 404. Whatever fails before `rename` is undone; after it nothing is lost
//! until the grace is over.

use std::collections::BTreeSet;
use std::time::Duration;

use gmah_shared::pg::quote_identifier;
use gmah_shared::tenant::{TenantId, TenantSlug};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::time::Instant;
use tokio_postgres::Client;
use uuid::Uuid;

use super::backup::restore::settle;
use super::operations::{Again, Ask, Kind, Operation, Subject};
use super::provision::{Reserved, ensure_role, hold_on_server};
use super::remove::{drop_database, drop_role};
use super::tenants::Summary;
use super::{Control, ControlError, During as _, fence};

/// For sessions of the organisation's role to end.
const DRAIN: Duration = Duration::from_secs(20);

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Deletion {
    /// How long it can be had back.
    pub grace: Duration,
    /// Whether there is a last backup.
    pub backup: bool,
}

/// What came of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Deleted {
    /// Slug.
    pub slug: String,
    /// Id.
    pub id: TenantId,
    /// The last backup, if there is one.
    pub backup_id: Option<Uuid>,
    /// When it is destroyed.
    #[serde(with = "time::serde::rfc3339")]
    pub purge_after: OffsetDateTime,
}

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
    /// Deletes an organisation: it is served no more, and destroyed once the grace is over.
    ///
    /// # Errors
    /// [`ControlError`]; then it is as it was.
    pub async fn delete_tenant(
        &mut self,
        slug: &TenantSlug,
        order: Deletion,
    ) -> Result<Deleted, ControlError> {
        self.delete_of(slug, order, None).await
    }

    pub(crate) async fn delete_of(
        &mut self,
        slug: &TenantSlug,
        order: Deletion,
        resume: Option<Uuid>,
    ) -> Result<Deleted, ControlError> {
        let tenant = match resume {
            None => self.there(slug).await?,
            Some(_) => self.any_tenant(slug).await?,
        };
        if order.backup {
            self.vault()?;
            self.programs()?;
        }
        let ask = Ask {
            kind: Kind::Delete,
            subject: Subject::Organization(tenant.id),
            organization: Some(tenant.id),
            about: tenant.slug.clone(),
            input: json!({ "slug": tenant.slug, "grace_seconds": order.grace.as_secs(), "backup": order.backup }),
            again: Again::Yes,
            resume,
        };
        let (deleted, _) = self
            .operate(ask, async |control, operation| {
                // Under the lock: it may have another database by now.
                let tenant = control.any_tenant(slug).await?;
                let deleted = control.delete_steps(&tenant, order, operation).await;
                let Err(cause) = deleted else { return deleted };
                let undone = async {
                    operation.forget(&control.master, "").await?;
                    control.undelete_half(tenant.id).await
                };
                ControlError::after_undoing(cause, undone.await)
            })
            .await?;
        if order.grace.is_zero() {
            self.purge(tenant.id).await?;
        }
        Ok(deleted)
    }

    async fn delete_steps(
        &mut self,
        tenant: &Summary,
        order: Deletion,
        operation: &mut Operation,
    ) -> Result<Deleted, ControlError> {
        operation.step(&self.master, "close", self.close(tenant.id, operation.id())).await?;
        let access = self.access(tenant.server_id).await?;
        let server = access.connect("postgres").await?;
        hold_on_server(&server, tenant.id).await?;
        let (_, role) = self.role_of(tenant.id).await?;
        operation.step(&self.master, "drain", drain(&server, &role, &tenant.database)).await?;
        let mut backup_id = None;
        if order.backup {
            let begin = self.note_backup(tenant, operation.id());
            let id: Uuid = operation.step(&self.master, "begin", begin).await?;
            let made = self.make_noted(tenant, id, operation).await;
            if let Err(e) = &made {
                operation.forget(&self.master, "").await?;
                self.unmake_backup(tenant.id, id, &e.to_string()).await;
            }
            made?;
            backup_id = Some(id);
        }
        operation.step(&self.master, "fence", fence::shut(&access, &server, &tenant.database)).await?;
        operation.step(&self.master, "rename", self.put_aside(tenant, &server)).await?;
        // Last: what has no such moment is not destroyed.
        let row = self
            .master
            .query_opt(
                "update organizations set purge_after = coalesce(purge_after, now() + make_interval(secs => $2))
                 where id = $1 and status = 'deleted' returning purge_after",
                &[&tenant.id.as_uuid(), &order.grace.as_secs_f64()],
            )
            .await
            .during("noting the deletion")?;
        let row =
            row.ok_or_else(|| ControlError::Foreign(format!("{} is not deleted any more", tenant.slug)))?;
        Ok(Deleted { slug: tenant.slug.clone(), id: tenant.id, backup_id, purge_after: row.get(0) })
    }

    /// Nobody is served any more.
    async fn close(&self, id: TenantId, operation: Uuid) -> Result<(), ControlError> {
        self.master
            .execute(
                "with closed as (
                     update organizations set status_before = status, database_before = database_name,
                         status = 'deleted', deleted_at = now(), sessions_since = generation + 1
                     where id = $1 and status <> 'deleted' returning id)
                 insert into audit_log (actor, action, organization_id, detail)
                 select $2, 'tenant.delete', id, jsonb_build_object('operation', $3::uuid) from closed",
                &[&id.as_uuid(), &self.actor, &operation],
            )
            .await
            .during("closing the organisation")?;
        Ok(())
    }

    /// Gives the database another name, so that one of the same slug is free to have its own.
    async fn put_aside(&self, tenant: &Summary, server: &Client) -> Result<(), ControlError> {
        let aside = aside(tenant.id);
        if tenant.database == aside {
            return Ok(());
        }
        rename(server, &tenant.database, &aside).await?;
        self.master
            .execute(
                "update organizations set database_name = $2 where id = $1",
                &[&tenant.id.as_uuid(), &aside],
            )
            .await
            .during("noting where the database is")?;
        Ok(())
    }

    /// Has an organisation back that was deleted and is not destroyed yet.
    ///
    /// # Errors
    /// [`ControlError::Refused`] when there is none of that slug, or its grace is over.
    pub async fn undelete_tenant(&mut self, slug: &TenantSlug) -> Result<Summary, ControlError> {
        self.undelete_of(slug, None).await
    }

    pub(crate) async fn undelete_of(
        &mut self,
        slug: &TenantSlug,
        resume: Option<Uuid>,
    ) -> Result<Summary, ControlError> {
        let tenant = self.any_tenant(slug).await?;
        let row = self
            .master
            .query_one(
                "select status = 'deleted' as is_deleted, purge_after < now() as is_over from organizations where id = $1",
                &[&tenant.id.as_uuid()],
            )
            .await
            .during("looking for the organisation")?;
        if !row.get::<_, bool>("is_deleted") && resume.is_none() {
            return Err(ControlError::Refused(format!("{slug} is not deleted")));
        }
        // One that was begun in time comes to its end.
        if resume.is_none() && row.get::<_, Option<bool>>("is_over").unwrap_or(false) {
            return Err(ControlError::Refused(format!("the grace of {slug} is over: it is being destroyed")));
        }
        let ask = Ask {
            kind: Kind::Undelete,
            subject: Subject::Organization(tenant.id),
            organization: Some(tenant.id),
            about: tenant.slug.clone(),
            input: json!({ "slug": tenant.slug }),
            again: Again::Yes,
            resume,
        };
        self.operate(ask, async |control, operation| {
            // Under the lock: somebody may have begun to destroy it.
            control.is_whole(tenant.id).await?;
            let reopen = control.reopen(tenant.id);
            operation.step(&control.master, "open", reopen).await?;
            let back = control.come_back(tenant.id, Some(operation.id()));
            operation.step(&control.master, "active", back).await
        })
        .await?;
        self.tenant(slug).await
    }

    /// Refuses an organisation of which a part may be destroyed already.
    async fn is_whole(&self, id: TenantId) -> Result<(), ControlError> {
        let row = self
            .master
            .query_one(
                "select (purged_at is not null or exists (
                     select from operations p join operation_steps s on s.operation_id = p.id
                     where p.organization_id = o.id and p.kind = $2)) as is_broken
                 from organizations o where id = $1",
                &[&id.as_uuid(), &Kind::Purge.as_str()],
            )
            .await
            .during("looking for the organisation")?;
        match row.get("is_broken") {
            true => Err(ControlError::Refused("it is being destroyed".into())),
            false => Ok(()),
        }
    }

    /// Gives up a deletion that was left half-way.
    pub(crate) async fn cancel_deletion(&mut self, operation: Uuid) -> Result<(), ControlError> {
        self.cancel_backup(operation).await?;
        let row = self
            .master
            .query_one("select organization_id from operations where id = $1", &[&operation])
            .await
            .during("reading the journal")?;
        match row.get::<_, Option<Uuid>>(0) {
            Some(id) => self.undelete_half(TenantId::from_uuid(id)).await,
            None => Ok(()),
        }
    }

    /// After a failure: as it was.
    pub(crate) async fn undelete_half(&self, id: TenantId) -> Result<(), ControlError> {
        self.reopen(id).await?;
        self.come_back(id, None).await
    }

    /// Its database is under its own name, and its role may come in.
    async fn reopen(&self, id: TenantId) -> Result<(), ControlError> {
        let what = "reading the organisation";
        let row = self
            .master
            .query_one(
                "select server_id, placement, coalesce(database_before, database_name) as database,
                     array(select f.module from organization_features f where f.organization_id = o.id and f.enabled) as modules
                 from organizations o where id = $1",
                &[&id.as_uuid()],
            )
            .await
            .during(what)?;
        let database: String = row.get("database");
        let access = self.access(row.get("server_id")).await?;
        let server = access.connect("postgres").await?;
        hold_on_server(&server, id).await?;
        rename(&server, &aside(id), &database).await?;
        self.master
            .execute("update organizations set database_name = $2 where id = $1", &[&id.as_uuid(), &database])
            .await
            .during("noting where the database is")?;
        ensure_role(&server, &self.reserved_of(id).await?).await?;
        let placement: i32 = row.get("placement");
        fence::open(&access, &server, &database, id, placement).await?;
        let modules: Vec<String> = row.get("modules");
        let mut db = access.connect(&database).await?;
        settle(&mut db, id, placement, &modules, false).await
    }

    async fn come_back(&self, id: TenantId, operation: Option<Uuid>) -> Result<(), ControlError> {
        self.master
            .execute(
                "with back as (
                     update organizations set status = coalesce(status_before, 'active'), deleted_at = null,
                         purge_after = null, status_before = null, database_before = null
                     where id = $1 and status = 'deleted' and purged_at is null returning id)
                 insert into audit_log (actor, action, organization_id, detail)
                 select $2, 'tenant.undelete', id, jsonb_build_object('operation', $3::uuid) from back",
                &[&id.as_uuid(), &self.actor, &operation],
            )
            .await
            .during("opening the organisation")?;
        Ok(())
    }

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
                 chores as (delete from organization_chores where organization_id = (select id from gone))
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

    /// An organisation of that slug, also a deleted one that can still be had back.
    pub(crate) async fn any_tenant(&self, slug: &TenantSlug) -> Result<Summary, ControlError> {
        self.tenant_where("o.slug = $1 and o.purged_at is null", slug).await
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

/// Name of a deleted organisation's database.
fn aside(id: TenantId) -> String {
    format!("gmah_deleted_{}", id.as_uuid().simple())
}

/// Nobody logs in with the role any more, and who has is out.
async fn drain(server: &Client, role: &str, database: &str) -> Result<(), ControlError> {
    let what = "ending the organisation's sessions";
    let exists =
        server.query_opt("select 1 from pg_roles where rolname = $1", &[&role]).await.during(what)?;
    if exists.is_some() {
        server
            .batch_execute(&format!("alter role {} with nologin", quote_identifier(role)))
            .await
            .during(what)?;
    }
    let deadline = Instant::now() + DRAIN;
    loop {
        let left: i64 = server
            .query_one(
                "select count(pg_terminate_backend(pid)) from pg_stat_activity where datname = $1 and usename = $2",
                &[&database, &role],
            )
            .await
            .during(what)?
            .get(0);
        if left == 0 {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(ControlError::Silent(format!("{left} sessions of {database} do not end")));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Renames a database, unless that has been done.
async fn rename(server: &Client, from: &str, to: &str) -> Result<(), ControlError> {
    let what = "renaming the database";
    let there = server
        .query("select datname from pg_database where datname in ($1, $2)", &[&from, &to])
        .await
        .during(what)?;
    let there: Vec<String> = there.iter().map(|r| r.get(0)).collect();
    match (there.iter().any(|n| n == from), there.iter().any(|n| n == to)) {
        (true, false) => {
            let (from, to) = (quote_identifier(from), quote_identifier(to));
            super::template::retry_in_use(server, &format!("alter database {from} rename to {to}"))
                .await
                .during(what)
        }
        (false, true) => Ok(()),
        (true, true) => Err(ControlError::Foreign(format!("databases {from} and {to} are both there"))),
        (false, false) => Err(ControlError::Foreign(format!("there is neither {from} nor {to}"))),
    }
}
