//! Listing organisations, and moving them between states.

use gmah_shared::migrate::OWN;
use gmah_shared::tenant::{TenantId, TenantSlug, TenantStatus};
use serde::Serialize;
use time::OffsetDateTime;
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{Control, ControlError, During as _};
use crate::modules;

/// An organisation, as operators see it.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Organization)]
pub struct Summary {
    /// Id.
    #[schema(value_type = Uuid)]
    pub id: TenantId,
    /// Slug.
    pub slug: String,
    /// Display name.
    pub name: String,
    /// Where it stands.
    #[schema(value_type = String)]
    pub status: TenantStatus,
    /// Why it is suspended.
    pub status_reason: Option<String>,
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
    #[schema(value_type = Object)]
    pub limits: serde_json::Value,
    /// Its own in place of shared pools.
    #[schema(value_type = Object)]
    pub pools: serde_json::Value,
    /// How pages look that the edge writes for it, where it is its own.
    #[schema(value_type = Object)]
    pub branding: serde_json::Value,
    /// `healthy`, `warning` or `critical`, as it was found last.
    pub health: String,
    /// Version of each set of migrations, as it was found last.
    #[schema(value_type = Object)]
    pub schema: serde_json::Value,
    /// When it was created.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    #[serde(skip)]
    pub(crate) server_id: Uuid,
    /// Highest file of its own.
    #[serde(skip)]
    pub(crate) own_version: i32,
}

/// Which organisations.
#[derive(Debug, Default)]
pub struct Listing {
    /// Only those made after the one of this id.
    pub after: Option<Uuid>,
    /// Only those that stand so.
    pub status: Option<String>,
    /// Only those that were found so.
    pub health: Option<String>,
    /// Part of a slug or a name.
    pub search: Option<String>,
    /// Most of them.
    pub limit: i64,
}

/// What an organisation may have, by default. None: no limit.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Plan {
    /// Key.
    pub key: String,
    /// For people.
    pub name: String,
    /// A month, in minor units; none: by quote.
    pub price_cents: Option<i32>,
    /// ISO 4217.
    pub currency: String,
    /// Members.
    pub max_members: Option<i32>,
    /// Users that may log in.
    pub max_users: Option<i32>,
    /// Bytes of files.
    pub max_storage_bytes: Option<i64>,
    /// At the edge.
    pub requests_per_second: Option<i32>,
    /// At once, after a quiet time.
    pub request_burst: Option<i32>,
    /// In flight.
    pub concurrent_requests: Option<i32>,
    /// Of one request.
    pub max_body_bytes: Option<i64>,
    /// Share of an edge that has too much to do.
    pub weight: i32,
}

/// Something that was done on the platform.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = PlatformAuditEntry)]
pub struct Done {
    /// Number, rising.
    pub id: i64,
    /// RFC 3339, UTC.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// `admin:EMAIL`, `cli:USER` or `worker`.
    pub actor: String,
    /// `noun.verb`.
    pub action: String,
    /// The organisation, if it is about one.
    pub slug: Option<String>,
    /// Whatever belongs to it; never a secret.
    #[schema(value_type = Object)]
    pub detail: serde_json::Value,
}

/// How far an organisation's schema has come, beside this program's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Nobody has looked yet.
    Unknown,
    /// `gmah tenant migrate` has something to do.
    Behind,
    /// As this program has it.
    Current,
    /// A newer program was there.
    Ahead,
}

impl Standing {
    /// For a listing.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Behind => "behind",
            Self::Current => "current",
            Self::Ahead => "ahead",
        }
    }
}

impl Summary {
    /// As it was found last.
    pub fn schema_standing(&self) -> Standing {
        if self.schema.as_object().is_none_or(serde_json::Map::is_empty) {
            return Standing::Unknown;
        }
        let mut standing = Standing::Current;
        let sets = modules::migrations(&self.modules).into_iter().map(|set| (set.name, set.latest()));
        for (name, latest) in sets.chain([(OWN, self.own_version)]) {
            let found = self.schema[name].as_i64().unwrap_or(0);
            match found.cmp(&i64::from(latest)) {
                std::cmp::Ordering::Less => return Standing::Behind,
                std::cmp::Ordering::Greater => standing = Standing::Ahead,
                std::cmp::Ordering::Equal => {}
            }
        }
        standing
    }
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

    /// A page of them, in the order in which they were made.
    ///
    /// # Errors
    /// [`ControlError`] when the master is away.
    pub async fn tenants_page(&self, listing: &Listing) -> Result<Vec<Summary>, ControlError> {
        let sql = format!(
            "{SUMMARY} where o.status <> 'deleted' and o.id > $1 and ($2::text is null or o.status = $2)
                 and ($3::text is null or coalesce(n.health, 'healthy') = $3)
                 and ($4::text is null or o.slug like $4 or lower(o.name) like $4)
             order by o.id limit $5"
        );
        let after = listing.after.unwrap_or(Uuid::nil());
        let pattern = listing.search.as_deref().map(crate::repo::pattern);
        let rows = self
            .master
            .query(&sql, &[&after, &listing.status, &listing.health, &pattern, &listing.limit])
            .await
            .during("listing organisations")?;
        rows.iter().map(summary).collect()
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
        let row = self
            .master
            .query_typed_opt(&sql, &[(&slug.as_str(), Type::TEXT)])
            .await
            .during("looking for the organisation")?;
        summary(&row.ok_or_else(|| ControlError::NoTenant(slug.to_string()))?)
    }

    /// Moves an organisation to `to`, if it may go there from where it is, for a reason that operators see. Nothing happens
    /// when it is there already.
    ///
    /// # Errors
    /// [`ControlError::Refused`] with the state that it is in.
    pub async fn set_status(
        &self,
        slug: &TenantSlug,
        to: TenantStatus,
        reason: Option<&str>,
    ) -> Result<Summary, ControlError> {
        if reason.is_some_and(|r| r.trim().is_empty() || r.chars().count() > 500) {
            return Err(ControlError::field("reason", "a reason has 1 to 500 characters"));
        }
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
                     update organizations set status = $2, status_reason = $5, maintenance_mode = null,
                         maintenance_bypass = null,
                         sessions_since = case $2 when 'suspended' then generation + 1 else sessions_since end
                     where slug = $1 and status = any($3) and status <> $2 returning id),
                 logged as (
                     insert into audit_log (actor, action, organization_id, detail)
                     select $4, 'tenant.' || $2, id, jsonb_strip_nulls(jsonb_build_object('reason', $5::text)) from change)
                 select 1 from change",
                &[&slug.as_str(), &to.as_str(), &from, &self.actor, &reason],
            )
            .await
            .during("changing the status")?;
        let now = self.tenant(slug).await?;
        if changed == 0 && now.status != to {
            return Err(ControlError::Refused(format!("{slug} is {} and cannot become {to}", now.status)));
        }
        Ok(now)
    }

    /// Puts an organisation on another plan: its numbers hold from the next request on. What it has beyond them stays.
    ///
    /// # Errors
    /// [`ControlError::Usage`] for a plan that there is not.
    pub async fn set_plan(&self, slug: &TenantSlug, plan: &str) -> Result<Summary, ControlError> {
        self.check_plan(plan).await?;
        self.master
            .execute(
                "with before as (select id, plan from organizations where slug = $1 and status <> 'deleted' for update),
                 change as (
                     update organizations o set plan = $2 from before b where o.id = b.id and b.plan <> $2
                     returning o.id, b.plan as before)
                 insert into audit_log (actor, action, organization_id, detail)
                 select $3, 'tenant.plan', id, jsonb_build_object('before', before, 'after', $2::text) from change",
                &[&slug.as_str(), &plan, &self.actor],
            )
            .await
            .during("changing the plan")?;
        self.tenant(slug).await
    }

    /// Plans, the smallest first.
    ///
    /// # Errors
    /// [`ControlError`] when the master is away.
    pub async fn plans(&self) -> Result<Vec<Plan>, ControlError> {
        let rows = self
            .master
            .query(
                "select key, name, price_cents, currency, max_members, max_users, max_storage_bytes,
                     requests_per_second, request_burst, concurrent_requests, max_body_bytes, weight
                 from plans order by position limit 1000",
                &[],
            )
            .await
            .during("reading the plans")?;
        Ok(rows
            .iter()
            .map(|r| Plan {
                key: r.get("key"),
                name: r.get("name"),
                price_cents: r.get("price_cents"),
                currency: r.get("currency"),
                max_members: r.get("max_members"),
                max_users: r.get("max_users"),
                max_storage_bytes: r.get("max_storage_bytes"),
                requests_per_second: r.get("requests_per_second"),
                request_burst: r.get("request_burst"),
                concurrent_requests: r.get("concurrent_requests"),
                max_body_bytes: r.get("max_body_bytes"),
                weight: r.get("weight"),
            })
            .collect())
    }

    /// Writes down what is done, in the name of whoever has this session.
    pub(crate) async fn note(
        &self,
        action: &str,
        of: Option<TenantId>,
        detail: &serde_json::Value,
    ) -> Result<(), ControlError> {
        self.master
            .execute(
                "insert into audit_log (actor, action, organization_id, detail) values ($1, $2, $3, $4)",
                &[&self.actor, &action, &of.map(|id| id.as_uuid()), &detail],
            )
            .await
            .during("writing the audit log")?;
        Ok(())
    }

    /// What was done to an organisation, or to anything, the newest first; `before` is the id of an entry.
    ///
    /// # Errors
    /// [`ControlError`] when the master is away.
    pub async fn history(
        &self,
        of: Option<TenantId>,
        before: Option<i64>,
        limit: i64,
    ) -> Result<Vec<Done>, ControlError> {
        let rows = self
            .master
            .query(
                "select a.id, a.at, a.actor, a.action, o.slug, a.detail
                 from audit_log a left join organizations o on o.id = a.organization_id
                 where ($1::uuid is null or a.organization_id = $1) and ($2::bigint is null or a.id < $2)
                 order by a.id desc limit $3",
                &[&of.map(|id| id.as_uuid()), &before, &limit],
            )
            .await
            .during("reading the audit log")?;
        Ok(rows
            .iter()
            .map(|r| Done {
                id: r.get("id"),
                at: r.get("at"),
                actor: r.get("actor"),
                action: r.get("action"),
                slug: r.get("slug"),
                detail: r.get("detail"),
            })
            .collect())
    }
}

fn summary(row: &Row) -> Result<Summary, ControlError> {
    let status: String = row.get("status");
    Ok(Summary {
        id: TenantId::from_uuid(row.get("id")),
        slug: row.get("slug"),
        name: row.get("name"),
        status: status.parse().map_err(|_| ControlError::Foreign(format!("status {status} is unknown")))?,
        status_reason: row.get("status_reason"),
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
        branding: row.get("branding"),
        health: row.get("health"),
        schema: row.get("schema"),
        created_at: row.get("created_at"),
        server_id: row.get("server_id"),
        own_version: row.get("own_version"),
    })
}

/// Index: organizations_slug, then primary keys.
const SUMMARY: &str =
    "select o.id, o.slug, o.name, o.status, o.status_reason, o.plan, o.domain, s.name as server, o.server_id,
    o.database_name, o.placement, o.generation, o.created_at, o.maintenance_mode, o.limits, o.pools,
    coalesce(nullif(o.settings -> 'branding', 'null'), '{}') as branding,
    array(select f.module from organization_features f
          where f.organization_id = o.id and f.enabled order by f.module) as modules,
    coalesce(n.health, 'healthy') as health, coalesce(n.schema, '{}') as schema,
    coalesce((select max(m.version) from organization_migrations m where m.organization_id = o.id), 0) as own_version
    from organizations o join database_servers s on s.id = o.server_id
    left join organization_figures n on n.organization_id = o.id";
