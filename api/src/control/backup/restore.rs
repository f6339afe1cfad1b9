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

use bytes::Bytes;
use futures::Stream;
use gmah_shared::migrate;
use gmah_shared::pg::quote_identifier;
use gmah_shared::tenant::{TenantId, TenantSlug, TenantStatus};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio_postgres::Client;
use uuid::Uuid;

use super::contents::{self, Contents};
use super::{Manifest, dump_path, file_path, hex};
use crate::control::operations::{Again, Ask, Kind, Operation, Subject};
use crate::control::provision::{ensure_role, hold_on_server};
use crate::control::remove::drop_database;
use crate::control::servers::Access;
use crate::control::tenants::Summary;
use crate::control::{Control, ControlError, During as _, fence};
use crate::modules;

/// How long a database that was replaced is kept.
pub(crate) const KEPT_DAYS: i32 = 7;

/// Groups that dumps grant something to.
pub(super) const GROUPS: &str =
    "do $$ begin create role gmah_tenant nologin; exception when duplicate_object then null; end $$;
    do $$ begin create role gmah_readers nologin; exception when duplicate_object then null; end $$";

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

/// Where to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) server: Uuid,
    pub(crate) database: String,
    pub(crate) placement: i32,
    /// What is used until then.
    pub(crate) before: Before,
    /// Of a move: how long and how many requests waited before, if it is the move that makes them wait.
    #[serde(default)]
    pub(crate) held: Option<(i32, i32)>,
}

impl Plan {
    /// From where an organisation is now.
    pub(crate) fn new(tenant: &Summary, server: Uuid, database: String, placement: i32) -> Self {
        let before = Before {
            server: tenant.server_id,
            database: tenant.database.clone(),
            placement: tenant.placement,
        };
        Self { server, database, placement, before, held: None }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Before {
    pub(crate) server: Uuid,
    pub(crate) database: String,
    pub(crate) placement: i32,
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
            kind: Kind::Restore,
            subject: Subject::Organization(tenant.id),
            organization: Some(tenant.id),
            about: tenant.slug.clone(),
            input: json!({ "slug": tenant.slug, "backup": order.backup }),
            again: Again::Yes,
            resume,
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
        let ask = Ask {
            kind: Kind::Undo,
            subject: Subject::Organization(tenant.id),
            organization: Some(tenant.id),
            about: tenant.slug.clone(),
            input: json!({ "slug": tenant.slug }),
            again: Again::Yes,
            resume,
        };
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

    /// A number that the organisation never had.
    pub(crate) async fn next_placement(&self, tenant: &Summary) -> Result<i32, ControlError> {
        let highest: i32 = self
            .master
            .query_one(
                "select greatest((select max(placement) from organization_placements where organization_id = $1),
                                 (select placement from organizations where id = $1))",
                &[&tenant.id.as_uuid()],
            )
            .await
            .during("reading the placements")?
            .get(0);
        Ok(highest + 1)
    }

    /// Where the organisation goes, and from where: a number that it never had, and a name that nobody has.
    async fn plan(&self, tenant: &Summary, to: Option<(Uuid, String)>) -> Result<Plan, ControlError> {
        let placement = self.next_placement(tenant).await?;
        let slug = TenantSlug::parse(&tenant.slug)
            .map_err(|e| ControlError::Foreign(format!("slug {} in the master: {e}", tenant.slug)))?;
        let (server, database) =
            to.unwrap_or_else(|| (tenant.server_id, slug.later_database_name(tenant.id, placement)));
        Ok(Plan::new(tenant, server, database, placement))
    }

    /// Shuts the database before, and lets everybody use the other one. Logins of the one before may be no logins of the other.
    pub(crate) async fn take_over(
        &mut self,
        id: TenantId,
        plan: &Plan,
        held: &Client,
        operation: &mut Operation,
        ends_sessions: bool,
    ) -> Result<(), ControlError> {
        let before = self.access(plan.before.server).await?;
        let other = match plan.before.server == plan.server {
            true => None,
            false => {
                let server = before.connect("postgres").await?;
                hold_on_server(&server, id).await?;
                Some(server)
            }
        };
        let server = other.as_ref().unwrap_or(held);
        operation.step(&self.master, "fence", fence::shut(&before, server, &plan.before.database)).await?;
        operation.begin(&self.master, "switch").await?;
        let (kind, actor) = (operation.kind(), self.actor.clone());
        let what = "switching to the database";
        let tx = self.master.transaction().await.during(what)?;
        let changed = tx
            .execute(
                "update organizations set server_id = $2, database_name = $3, placement = $4,
                     sessions_since = case when $6 then generation + 1 else sessions_since end
                 where id = $1 and placement = $5",
                &[
                    &id.as_uuid(),
                    &plan.server,
                    &plan.database,
                    &plan.placement,
                    &plan.before.placement,
                    &ends_sessions,
                ],
            )
            .await
            .during(what)?;
        if changed == 0 {
            // An earlier runner was killed right after this; or it is not what was planned for any more.
            let row = tx
                .query_one(
                    "select server_id = $2 and database_name = $3 and placement = $4 from organizations where id = $1",
                    &[&id.as_uuid(), &plan.server, &plan.database, &plan.placement],
                )
                .await
                .during(what)?;
            if !row.get::<_, bool>(0) {
                return Err(ControlError::Foreign(
                    "the organisation has another database than was planned for".into(),
                ));
            }
        } else {
            tx.execute(
                "delete from organization_placements where organization_id = $1 and database_name = $2",
                &[&id.as_uuid(), &plan.database],
            )
            .await
            .during(what)?;
            tx.execute(
                "insert into organization_placements
                     (organization_id, placement, server_id, database_name, reason, kept_until)
                 values ($1, $2, $3, $4, $5, now() + make_interval(days => $6))",
                &[
                    &id.as_uuid(),
                    &plan.before.placement,
                    &plan.before.server,
                    &plan.before.database,
                    &kind.as_str(),
                    &KEPT_DAYS,
                ],
            )
            .await
            .during(what)?;
            tx.execute(
                "insert into audit_log (actor, action, organization_id, detail)
                 values ($1, $2, $3, jsonb_build_object('operation', $4::uuid, 'placement', $5::int))",
                &[&actor, &kind.as_str(), &id.as_uuid(), &operation.id(), &plan.placement],
            )
            .await
            .during(what)?;
        }
        tx.commit().await.during(what)?;
        operation.did("switch", &())
    }

    /// Goes back after a failure.
    async fn undone<T>(
        &self,
        made: Result<T, ControlError>,
        operation: &mut Operation,
    ) -> Result<T, ControlError> {
        let Err(cause) = made else { return made };
        let back = async {
            operation.forget(&self.master, "plan").await?;
            self.go_back(operation.id()).await.map(drop)
        };
        ControlError::after_undoing(cause, back.await)
    }

    /// Gives up a restore that did not come to its switch: the database before is as it was.
    pub(crate) async fn cancel_restore(&mut self, operation: Uuid) -> Result<(), ControlError> {
        self.go_back(operation).await.map(drop)
    }

    /// Opens the database before and puts the other one away; answers the plan, if there was one.
    pub(crate) async fn go_back(&self, operation: Uuid) -> Result<Option<Plan>, ControlError> {
        let what = "reading the plan";
        let row = self
            .master
            .query_opt(
                "select o.kind, o.organization_id, s.detail from operations o
                 join operation_steps s on s.operation_id = o.id
                 where o.id = $1 and s.name = 'plan' and s.detail <> 'null' order by s.position desc limit 1",
                &[&operation],
            )
            .await
            .during(what)?;
        // Nothing was made without a plan.
        let Some(row) = row else { return Ok(None) };
        let (kind, id): (String, Uuid) = (row.get(0), row.get(1));
        let id = TenantId::from_uuid(id);
        let plan: Plan = serde_json::from_value(row.get(2))
            .map_err(|e| ControlError::Foreign(format!("the journal has a plan that is none: {e}")))?;
        let now: i32 = self
            .master
            .query_one("select placement from organizations where id = $1", &[&id.as_uuid()])
            .await
            .during(what)?
            .get(0);
        if now != plan.before.placement {
            return Err(ControlError::Refused(
                "the switch is done: gmah operation resume, and then --undo".into(),
            ));
        }
        let before = self.access(plan.before.server).await?;
        let server = before.connect("postgres").await?;
        hold_on_server(&server, id).await?;
        fence::open(&before, &server, &plan.before.database, id, plan.before.placement).await?;
        let access = self.access(plan.server).await?;
        let server = match plan.server == plan.before.server {
            true => server,
            false => access.connect("postgres").await?,
        };
        if kind == Kind::Undo.as_str() {
            fence::shut(&access, &server, &plan.database).await?;
        } else {
            drop_database(&server, &plan.database, id).await?;
        }
        Ok(Some(plan))
    }

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
    async fn bring_missing(&self, db: &Client, id: TenantId) -> Result<usize, ControlError> {
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
    if !migrate::pending(db, &sets).await.during("migrations")?.is_empty() {
        migrate::run(db, &sets, Default::default()).await.during("migrations")?;
    }
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
