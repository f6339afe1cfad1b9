//! `/api/v1/overview/{module}`: an organisation at a glance, at most as old as the cache keeps it.

use crate::auth::Session;
use crate::db::TenantDb;
use crate::error::ApiError;
use crate::json::Json;
use crate::repo::overview::{self, LoansOverview, PatientsOverview};

/// 200 with a society's sums.
pub async fn loans(mut session: Session) -> Result<Json<LoansOverview>, ApiError> {
    let (ctx, tenant) = (session.ctx.clone(), session.ctx.detail().tenant.id);
    // Asking the cache may take a while, and must not hold a connection meanwhile.
    session.db.give_back();
    let compute = async || Ok(overview::loans(&mut TenantDb::open_to_read(&ctx).await?).await?);
    Ok(Json(ctx.app().cache.get(tenant, "overview.loans", compute).await?))
}

/// 200 with a hospital's sums.
pub async fn patients(mut session: Session) -> Result<Json<PatientsOverview>, ApiError> {
    let (ctx, tenant) = (session.ctx.clone(), session.ctx.detail().tenant.id);
    session.db.give_back();
    let compute = async || Ok(overview::patients(&mut TenantDb::open_to_read(&ctx).await?).await?);
    Ok(Json(ctx.app().cache.get(tenant, "overview.patients", compute).await?))
}
