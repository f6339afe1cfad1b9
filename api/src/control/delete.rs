//! Deleting an organisation, and having it back.
//!
//! ```text
//! delete     close ─► drain ─► dump ─► files ─► manifest ─► fence ─► rename ─► (grace) ─► destroyed (super::purge)
//! undelete   rename ─► open ─► active
//! ```
//!
//! `close` is what everybody sees: the host answers 404. Whatever fails before `rename` is undone; after it nothing is lost
//! until the grace is over.

use std::time::Duration;

use gmah_shared::pg::quote_identifier;
use gmah_shared::tenant::{TenantId, TenantSlug};
use serde::{Deserialize, Serialize};
use serde_json::json;
use time::OffsetDateTime;
use tokio_postgres::Client;
use uuid::Uuid;

use super::backup::restore::settle;
use super::fence::{self, shut_out};
use super::operations::{Ask, Kind, Operation};
use super::provision::{ensure_role, hold_on_server};
use super::tenants::Summary;
use super::{Control, ControlError, During as _};

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
            input: json!({ "slug": tenant.slug, "grace_seconds": order.grace.as_secs(), "backup": order.backup }),
            ..Ask::of(Kind::Delete, &tenant, resume)
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
        operation
            .step(&self.master, "drain", shut_out(&server, &role, &tenant.database, Duration::ZERO))
            .await?;
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
        let ask = Ask::of(Kind::Undelete, &tenant, resume);
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

    /// An organisation of that slug, also a deleted one that can still be had back.
    pub(crate) async fn any_tenant(&self, slug: &TenantSlug) -> Result<Summary, ControlError> {
        self.tenant_where("o.slug = $1 and o.purged_at is null", slug).await
    }
}

/// Name of a deleted organisation's database.
fn aside(id: TenantId) -> String {
    format!("gmah_deleted_{}", id.as_uuid().simple())
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
