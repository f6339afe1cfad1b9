//! `/api/v1/audit`: what was done here, and by whom.

use axum::extract::Query as Params;
use axum::extract::rejection::QueryRejection;
use serde::Deserialize;
use uuid::Uuid;

use super::{List, Page, field, query};
use crate::auth::Session;
use crate::db::TenantDb;
use crate::error::ApiError;
use crate::json::Json;
use crate::repo::audit::{self, Entry, Filter};
use crate::routes::Parameter;

/// What may be asked for.
pub const QUERY: &[Parameter] = &[
    Parameter {
        name: "actor_id",
        about: "Only what that user did.",
        schema: r#"{"type": "string", "format": "uuid"}"#,
        is_required: false,
    },
    Parameter {
        name: "action",
        about: "Only such actions, as `members.create`.",
        schema: r#"{"type": "string", "minLength": 1, "maxLength": 100}"#,
        is_required: false,
    },
    Parameter {
        name: "entity_id",
        about: "Only what was done to that.",
        schema: r#"{"type": "string", "minLength": 1, "maxLength": 200}"#,
        is_required: false,
    },
];

/// Query of [`list`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    limit: Option<u32>,
    cursor: Option<String>,
    actor_id: Option<Uuid>,
    action: Option<String>,
    entity_id: Option<String>,
}

/// 200 with a page, the newest first.
pub async fn list(
    mut session: Session,
    params: Result<Params<Asked>, QueryRejection>,
) -> Result<Json<List<Entry>>, ApiError> {
    let Asked { limit, cursor, actor_id, action, entity_id } = query(params)?;
    let action = action.map(|a| field::name("action", &a, 100)).transpose()?;
    let entity_id = entity_id.map(|e| field::name("entity_id", &e, 200)).transpose()?;
    let filter = Filter { actor_id, action, entity_id };
    let read = async |db: &mut TenantDb, before, limit| audit::list(db, &filter, before, limit).await;
    Page::new(limit, cursor).of(&mut session, "audit", read, |e| e.id).await
}
