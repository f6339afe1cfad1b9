//! Another database in the place of the one before: shut, switched in one transaction, and kept for a way back.

use gmah_shared::tenant::{TenantId, TenantSlug};
use serde::{Deserialize, Serialize};
use tokio_postgres::Client;
use uuid::Uuid;

use crate::control::operations::{Kind, Operation};
use crate::control::provision::hold_on_server;
use crate::control::remove::drop_database;
use crate::control::tenants::Summary;
use crate::control::{Control, ControlError, During as _, fence};

/// How long a database that was replaced is kept.
pub(crate) const KEPT_DAYS: i32 = 7;

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
    pub(super) async fn plan(
        &self,
        tenant: &Summary,
        to: Option<(Uuid, String)>,
    ) -> Result<Plan, ControlError> {
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
    pub(super) async fn undone<T>(
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
}
