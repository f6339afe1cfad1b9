//! Moving an organisation to another server.
//!
//! ```text
//! plan ─► role ─► close (requests wait) ─► drain (nobody writes) ─► copy ─► fence ─► switch ─► open
//! ```
//!
//! Whatever was acknowledged before `drain` is in what `copy` takes along, and nothing is written between the two. The copy is
//! compared with what it was made of before anybody is sent to it. The database that was left is kept, shut, for a while.
//! Requests wait for as long as it takes, up to a minute and so many at once; beyond that they are answered 503.

use std::time::Duration;

use gmah_shared::tenant::{TenantId, TenantSlug, TenantStatus};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio_postgres::{Client, IsolationLevel};
use uuid::Uuid;

use super::backup::contents;
use super::backup::restore::{Plan, settle};
use super::fence::shut_out;
use super::operations::{Ask, Kind, Operation};
use super::provision::{ensure_role, hold_on_server};
use super::remove::drop_role;
use super::tenants::Summary;
use super::{Control, ControlError, During as _};

/// What came of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Moved {
    /// Slug.
    pub slug: String,
    /// Server that has it now.
    pub server: String,
    /// Database.
    pub database: String,
    /// Number of its placement.
    pub placement: i32,
    /// Rows of all tables.
    pub rows: i64,
}

/// How long a statement that is under way may take before it is ended.
const DRAIN: Duration = Duration::from_secs(10);
/// How long requests wait, and how many at once.
const HOLD: (i32, i32) = (60, 1000);

impl Control {
    /// Moves an organisation to another server.
    ///
    /// # Errors
    /// [`ControlError`]; until the switch it is served where it was.
    pub async fn move_tenant(&mut self, slug: &TenantSlug, server: &str) -> Result<Moved, ControlError> {
        self.move_of(slug, server, None).await
    }

    pub(crate) async fn move_of(
        &mut self,
        slug: &TenantSlug,
        server: &str,
        resume: Option<Uuid>,
    ) -> Result<Moved, ControlError> {
        let tenant = self.there(slug).await?;
        if resume.is_none() {
            if tenant.server == server {
                return Err(ControlError::Refused(format!("{slug} is on {server} already")));
            }
            // Before anything is written: a server that there is not, or without room.
            self.place(Some(server)).await?;
        }
        let ask = Ask {
            input: json!({ "slug": tenant.slug, "server": server }),
            ..Ask::of(Kind::Move, &tenant, resume)
        };
        let (moved, _) = self
            .operate(ask, async |control, operation| {
                let moved = control.move_steps(slug, server, operation).await;
                let Err(cause) = moved else { return moved };
                let back = async {
                    operation.forget(&control.master, "plan").await?;
                    control.move_back(operation.id()).await
                };
                ControlError::after_undoing(cause, back.await)
            })
            .await?;
        Ok(moved)
    }

    async fn move_steps(
        &mut self,
        slug: &TenantSlug,
        to: &str,
        operation: &mut Operation,
    ) -> Result<Moved, ControlError> {
        // Under the lock: what was read before may be what another operation has left.
        let tenant = &self.there(slug).await?;
        let plan = async {
            let server = self.place(Some(to)).await?;
            let placement = self.next_placement(tenant).await?;
            let database = slug.later_database_name(tenant.id, placement);
            let held = self.numbers_of_hold(tenant).await?;
            Ok(Plan { held, ..Plan::new(tenant, server, database, placement) })
        };
        let plan: Plan = operation.step(&self.master, "plan", plan).await?;
        let access = self.access(plan.server).await?;
        let server = access.connect("postgres").await?;
        hold_on_server(&server, tenant.id).await?;
        let reserved = self.reserved_of(tenant.id).await?;
        operation.step(&self.master, "role", ensure_role(&server, &reserved)).await?;
        let from = self.access(plan.before.server).await?;
        let old = from.connect("postgres").await?;
        hold_on_server(&old, tenant.id).await?;
        operation.step(&self.master, "close", self.hold_requests(tenant.id, &plan)).await?;
        let nobody = shut_out(&old, &reserved.role, &plan.before.database, DRAIN);
        operation.step(&self.master, "drain", nobody).await?;
        let copy = async {
            // One that failed after its switch is gone on with: what was copied is the organisation's own by now.
            if self.there(slug).await?.database == plan.database {
                return Ok(0);
            }
            self.copy_database(tenant, &plan, &reserved.role, &server).await
        };
        let rows: i64 = operation.step(&self.master, "copy", copy).await?;
        // It takes the lock there by itself.
        drop(old);
        self.take_over(tenant.id, &plan, &server, operation, false).await?;
        operation.step(&self.master, "open", self.release_requests(tenant.id, &plan)).await?;
        Ok(Moved {
            slug: tenant.slug.clone(),
            server: to.to_owned(),
            database: plan.database,
            placement: plan.placement,
            rows,
        })
    }

    /// All of it, as it stands in one moment after everybody had left, and compared.
    async fn copy_database(
        &self,
        tenant: &Summary,
        plan: &Plan,
        role: &str,
        server: &Client,
    ) -> Result<i64, ControlError> {
        let what = "looking at the database";
        let (from, to) = (self.access(plan.before.server).await?, self.access(plan.server).await?);
        let mut db = from.connect(&plan.before.database).await?;
        db.batch_execute("set idle_in_transaction_session_timeout = 0").await.during(what)?;
        let tx = db
            .build_transaction()
            .isolation_level(IsolationLevel::RepeatableRead)
            .read_only(true)
            .start()
            .await
            .during(what)?;
        let snapshot: String = tx.query_one("select pg_export_snapshot()", &[]).await.during(what)?.get(0);
        let contents = contents::of(&tx).await?;
        let dump = self.programs()?.dump(&from, &plan.before.database, &snapshot)?;
        let owner = (tenant.id, role.to_owned());
        self.fill(&to, server, &plan.database, &owner, dump, (&contents, "the copy")).await?;
        tx.rollback().await.during(what)?;
        let mut copy = to.connect(&plan.database).await?;
        settle(&mut copy, tenant.id, plan.placement, &tenant.modules, false).await?;
        Ok(contents.values().map(|t| t.rows).sum())
    }

    /// What an operator has set for holds, if the organisation is served and nothing holds its requests back yet.
    async fn numbers_of_hold(&self, tenant: &Summary) -> Result<Option<(i32, i32)>, ControlError> {
        if tenant.status != TenantStatus::Active {
            return Ok(None);
        }
        let row = self
            .master
            .query_opt(
                "select maintenance_hold_seconds, maintenance_hold_requests from organizations
                 where id = $1 and maintenance_mode is null",
                &[&tenant.id.as_uuid()],
            )
            .await
            .during("reading how requests are held")?;
        Ok(row.map(|r| (r.get(0), r.get(1))))
    }

    /// Requests wait, unless the organisation is closed in whatever other way.
    async fn hold_requests(&self, id: TenantId, plan: &Plan) -> Result<(), ControlError> {
        if plan.held.is_none() {
            return Ok(());
        }
        self.master
            .execute(
                "update organizations set maintenance_mode = 'hold', maintenance_hold_seconds = $2,
                     maintenance_hold_requests = $3
                 where id = $1 and maintenance_mode is null",
                &[&id.as_uuid(), &HOLD.0, &HOLD.1],
            )
            .await
            .during("holding requests back")?;
        // For routers to hear of it: what passes a moment later is ended, and not acknowledged.
        tokio::time::sleep(Duration::from_millis(300)).await;
        Ok(())
    }

    /// They go on, and holds are again as an operator has set them. What an operator holds stays held.
    async fn release_requests(&self, id: TenantId, plan: &Plan) -> Result<(), ControlError> {
        let Some((seconds, requests)) = plan.held else { return Ok(()) };
        self.master
            .execute(
                "update organizations set maintenance_mode = null, maintenance_hold_seconds = $2,
                     maintenance_hold_requests = $3
                 where id = $1 and maintenance_mode = 'hold'",
                &[&id.as_uuid(), &seconds, &requests],
            )
            .await
            .during("letting requests go on")?;
        Ok(())
    }

    /// Gives up a move that did not come to its switch: the organisation is where it was, and is served.
    pub(crate) async fn move_back(&self, operation: Uuid) -> Result<(), ControlError> {
        let row = self
            .master
            .query_one("select organization_id from operations where id = $1", &[&operation])
            .await
            .during("reading the journal")?;
        let id = TenantId::from_uuid(row.get(0));
        let Some(plan) = self.go_back(operation).await? else { return Ok(()) };
        let reserved = self.reserved_of(id).await?;
        let old = self.access(plan.before.server).await?.connect("postgres").await?;
        hold_on_server(&old, id).await?;
        ensure_role(&old, &reserved).await?;
        // What it owns there is dropped by now.
        let new = self.access(plan.server).await?.connect("postgres").await?;
        hold_on_server(&new, id).await?;
        if !self.keeps_on(id, plan.server).await? {
            drop_role(&new, &reserved.role, id).await?;
        }
        self.release_requests(id, &plan).await
    }

    /// Whether a database of an organisation is kept on a server.
    pub(crate) async fn keeps_on(&self, id: TenantId, server: Uuid) -> Result<bool, ControlError> {
        let row = self
            .master
            .query_one(
                "select exists (select from organization_placements where organization_id = $1 and server_id = $2)
                     or exists (select from organizations where id = $1 and server_id = $2)",
                &[&id.as_uuid(), &server],
            )
            .await
            .during("reading the placements")?;
        Ok(row.get(0))
    }
}

/// What the journal has of an order.
pub(crate) fn server_of_journal(input: &Value) -> &str {
    input["server"].as_str().unwrap_or_default()
}
