//! Listing organisations, and moving them between states.

use gmah_shared::tenant::{TenantId, TenantSlug, TenantStatus};
use serde::Serialize;
use time::OffsetDateTime;
use tokio_postgres::Row;
use uuid::Uuid;

use super::{Control, ControlError, During as _};

/// An organisation, as operators see it.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// Id.
    pub id: TenantId,
    /// Slug.
    pub slug: String,
    /// Display name.
    pub name: String,
    /// Where it stands.
    pub status: TenantStatus,
    /// Plan.
    pub plan: String,
    /// Modules.
    pub modules: Vec<String>,
    /// Custom domain, if any.
    pub domain: Option<String>,
    /// Server.
    pub server: String,
    /// Database.
    pub database: String,
    /// Number of its placement.
    pub placement: i32,
    /// Generation.
    pub generation: i64,
    /// How it is closed for work on it: `full`, `hold` or `read_only`.
    pub maintenance: Option<String>,
    /// Its own in place of the plan's numbers.
    pub limits: serde_json::Value,
    /// Its own in place of shared pools.
    pub pools: serde_json::Value,
    /// When it was created.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    #[serde(skip)]
    pub(crate) server_id: Uuid,
}

/// Organisations in one page of a listing.
const PAGE: i64 = 1000;

impl Control {
    /// Every organisation that is not deleted, by slug.
    ///
    /// # Errors
    /// [`ControlError`] when the master is away.
    pub async fn tenants(&self) -> Result<Vec<Summary>, ControlError> {
        let mut all = Vec::new();
        let mut after = String::new();
        loop {
            let sql =
                format!("{SUMMARY} where o.status <> 'deleted' and o.slug > $1 order by o.slug limit $2");
            let rows = self.master.query(&sql, &[&after, &PAGE]).await.during("listing organisations")?;
            let Some(last) = rows.last() else { return Ok(all) };
            after = last.get("slug");
            for row in &rows {
                all.push(summary(row)?);
            }
        }
    }

    /// One organisation.
    ///
    /// # Errors
    /// [`ControlError::NoTenant`].
    pub async fn tenant(&self, slug: &TenantSlug) -> Result<Summary, ControlError> {
        self.tenant_where("o.status <> 'deleted' and o.slug = $1", slug).await
    }

    pub(super) async fn tenant_where(&self, which: &str, slug: &TenantSlug) -> Result<Summary, ControlError> {
        let sql = format!("{SUMMARY} where {which}");
        let row =
            self.master.query_opt(&sql, &[&slug.as_str()]).await.during("looking for the organisation")?;
        summary(&row.ok_or_else(|| ControlError::NoTenant(slug.to_string()))?)
    }

    /// Moves an organisation to `to`, if it may go there from where it is. Nothing happens when it is there already.
    ///
    /// # Errors
    /// [`ControlError::Refused`] with the state that it is in.
    pub async fn set_status(&self, slug: &TenantSlug, to: TenantStatus) -> Result<Summary, ControlError> {
        let from: &[&str] = match to {
            TenantStatus::Active => &["suspended", "maintenance", "active"],
            TenantStatus::Suspended => &["active", "maintenance", "suspended"],
            // With its mode, by `set_maintenance`.
            TenantStatus::Maintenance | TenantStatus::Provisioning | TenantStatus::Deleted => &[],
        };
        let changed = self
            .master
            .execute(
                "with change as (
                     update organizations set status = $2, maintenance_mode = null, maintenance_bypass = null,
                         sessions_since = case $2 when 'suspended' then generation + 1 else sessions_since end
                     where slug = $1 and status = any($3) and status <> $2 returning id),
                 logged as (
                     insert into audit_log (actor, action, organization_id)
                     select 'cli', 'tenant.' || $2, id from change)
                 select 1 from change",
                &[&slug.as_str(), &to.as_str(), &from],
            )
            .await
            .during("changing the status")?;
        let now = self.tenant(slug).await?;
        if changed == 0 && now.status != to {
            return Err(ControlError::Refused(format!("{slug} is {} and cannot become {to}", now.status)));
        }
        Ok(now)
    }
}

fn summary(row: &Row) -> Result<Summary, ControlError> {
    let status: String = row.get("status");
    Ok(Summary {
        id: TenantId::from_uuid(row.get("id")),
        slug: row.get("slug"),
        name: row.get("name"),
        status: status.parse().map_err(|_| ControlError::Foreign(format!("status {status} is unknown")))?,
        plan: row.get("plan"),
        modules: row.get("modules"),
        domain: row.get("domain"),
        server: row.get("server"),
        database: row.get("database_name"),
        placement: row.get("placement"),
        generation: row.get("generation"),
        maintenance: row.get("maintenance_mode"),
        limits: row.get("limits"),
        pools: row.get("pools"),
        created_at: row.get("created_at"),
        server_id: row.get("server_id"),
    })
}

/// Index: organizations_slug, then primary keys.
const SUMMARY: &str =
    "select o.id, o.slug, o.name, o.status, o.plan, o.domain, s.name as server, o.server_id,
    o.database_name, o.placement, o.generation, o.created_at, o.maintenance_mode, o.limits, o.pools,
    array(select f.module from organization_features f
          where f.organization_id = o.id and f.enabled order by f.module) as modules
    from organizations o join database_servers s on s.id = o.server_id";
