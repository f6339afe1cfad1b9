//! What is known of an organisation from within, and what it has used: as the collector and the routers wrote it down.

use gmah_shared::tenant::{TenantId, TenantSlug};
use serde::Serialize;
use serde_json::Value;
use time::{Date, OffsetDateTime};
use utoipa::ToSchema;

use super::tenants::Summary;
use super::{Control, ControlError, During as _};

/// An organisation with its figures.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = OrganizationDetailed)]
pub struct Detailed {
    /// As in a listing.
    #[serde(flatten)]
    pub summary: Summary,
    /// None before the first round of the collector.
    pub figures: Option<Figures>,
    /// The newest month first, at most a year.
    pub usage: Vec<Usage>,
}

/// What was found in an organisation's database. None: not known yet, or no such module.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = OrganizationFigures)]
pub struct Figures {
    /// When.
    #[serde(with = "time::serde::rfc3339::option")]
    pub collected_at: Option<OffsetDateTime>,
    /// Why the newest try brought nothing.
    pub error: Option<String>,
    /// `healthy`, `warning` or `critical`.
    pub health: String,
    /// Why it is not healthy.
    pub reasons: Vec<String>,
    /// Size of the database.
    pub database_bytes: Option<i64>,
    /// Connections to it.
    pub connections: Option<i32>,
    /// Users that may log in.
    pub users: Option<i64>,
    /// Members or patients.
    pub members: Option<i64>,
    /// Loans that are paid out and not back.
    pub active_loans: Option<i64>,
    /// Payments of this month.
    pub month_transactions: Option<i64>,
    /// Bytes of files.
    pub storage_bytes: Option<i64>,
    /// When somebody did something last.
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_activity_at: Option<OffsetDateTime>,
    /// Version of each set of migrations.
    #[schema(value_type = Object)]
    pub schema: Value,
}

/// What was used in a month.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = OrganizationUsage)]
pub struct Usage {
    /// `YYYY-MM`, UTC.
    pub month: String,
    /// Requests at the edge.
    pub requests: i64,
    /// Bytes of their bodies.
    pub bytes_in: i64,
    /// Bytes of the answers' bodies.
    pub bytes_out: i64,
    /// Most bytes of files.
    pub storage_bytes: i64,
    /// Most bytes of the database.
    pub database_bytes: i64,
    /// Most users.
    pub users: i64,
    /// Most members or patients.
    pub members: i64,
}

impl Control {
    /// One organisation with its figures.
    ///
    /// # Errors
    /// [`ControlError::NoTenant`].
    pub async fn tenant_detailed(&self, slug: &TenantSlug) -> Result<Detailed, ControlError> {
        let summary = self.tenant(slug).await?;
        let figures = self.figures(summary.id).await?;
        let usage = self.usage(summary.id, 12).await?;
        Ok(Detailed { summary, figures, usage })
    }

    async fn figures(&self, id: TenantId) -> Result<Option<Figures>, ControlError> {
        let row = self
            .master
            .query_opt(
                "select collected_at, error, health, reasons, database_bytes, connections, users, members, active_loans,
                     month_transactions, storage_bytes, last_activity_at, schema
                 from organization_figures where organization_id = $1 and tried_at is not null",
                &[&id.as_uuid()],
            )
            .await
            .during("reading the figures")?;
        Ok(row.map(|r| Figures {
            collected_at: r.get("collected_at"),
            error: r.get("error"),
            health: r.get("health"),
            reasons: r.get("reasons"),
            database_bytes: r.get("database_bytes"),
            connections: r.get("connections"),
            users: r.get("users"),
            members: r.get("members"),
            active_loans: r.get("active_loans"),
            month_transactions: r.get("month_transactions"),
            storage_bytes: r.get("storage_bytes"),
            last_activity_at: r.get("last_activity_at"),
            schema: r.get("schema"),
        }))
    }

    /// What an organisation has used, the newest month first.
    ///
    /// # Errors
    /// [`ControlError`] when the master is away.
    pub async fn usage(&self, id: TenantId, months: i64) -> Result<Vec<Usage>, ControlError> {
        let rows = self
            .master
            .query(
                "select month, requests, bytes_in, bytes_out, storage_bytes, database_bytes, users, members
                 from organization_usage where organization_id = $1 order by month desc limit $2",
                &[&id.as_uuid(), &months],
            )
            .await
            .during("reading what was used")?;
        Ok(rows
            .iter()
            .map(|r| {
                let month: Date = r.get("month");
                Usage {
                    month: format!("{:04}-{:02}", month.year(), u8::from(month.month())),
                    requests: r.get("requests"),
                    bytes_in: r.get("bytes_in"),
                    bytes_out: r.get("bytes_out"),
                    storage_bytes: r.get("storage_bytes"),
                    database_bytes: r.get("database_bytes"),
                    users: r.get("users"),
                    members: r.get("members"),
                }
            })
            .collect())
    }

    /// Somebody looks at an organisation soon: what is known of it has just changed.
    pub(crate) async fn figures_are_due(&self, id: TenantId) -> Result<(), ControlError> {
        self.master
            .execute(
                "update organization_figures set due_at = now() where organization_id = $1",
                &[&id.as_uuid()],
            )
            .await
            .during("asking for figures")?;
        Ok(())
    }
}
