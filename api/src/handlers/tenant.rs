//! `GET /api/v1/tenant`: what an organisation may know of itself. Touches no tenant database.

use gmah_shared::tenant::{Generation, TenantId, TenantStatus};
use serde::Serialize;
use utoipa::ToSchema;

use crate::context::TenantContext;
use crate::json::Json;

/// The response.
#[derive(Serialize, ToSchema)]
#[schema(as = Tenant)]
pub struct Show {
    #[schema(value_type = uuid::Uuid)]
    id: TenantId,
    slug: String,
    name: String,
    plan: String,
    #[schema(value_type = String)]
    status: TenantStatus,
    #[schema(value_type = i64)]
    generation: Generation,
    modules: Vec<String>,
    limits: serde_json::Value,
    branding: serde_json::Value,
}

/// Always 200.
pub async fn show(ctx: TenantContext) -> Json<Show> {
    let d = ctx.detail();
    let mut limits = d.limits.clone();
    if let Some(map) = limits.as_object_mut() {
        map.insert("members".into(), d.max_members.into());
        map.insert("users".into(), d.max_users.into());
        map.insert("storage_bytes".into(), d.max_storage_bytes.into());
    }
    Json(Show {
        id: d.tenant.id,
        slug: d.tenant.slug.to_string(),
        name: d.name.clone(),
        plan: d.plan.clone(),
        status: d.tenant.status,
        generation: d.tenant.generation,
        modules: d.modules.clone(),
        limits,
        branding: d.settings.get("branding").cloned().unwrap_or_else(|| serde_json::json!({})),
    })
}
