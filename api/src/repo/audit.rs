//! What was done, by whom: written in the transaction that does it, and never changed.

use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use tokio_postgres::Row;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::auth::client::Client;
use crate::auth::{Caller, Session};
use crate::context::TenantContext;
use crate::db::{DbError, Query};

/// Who does something.
#[derive(Debug, Clone)]
pub struct Actor {
    /// A user's id, if it is one.
    pub id: Option<Uuid>,
    /// E-mail address, or what else names it, as it was at the time.
    pub name: String,
}

/// Who does something, and in which request.
#[derive(Debug, Clone)]
pub struct By {
    actor: Actor,
    request_id: String,
    address: Option<String>,
    impersonator: Option<String>,
}

impl By {
    /// A logged-in user.
    pub fn of(session: &Session) -> Self {
        let by = Self::new(session.actor(), &session.ctx, &session.client);
        match &session.caller {
            Caller::Support { by: support, .. } => by.impersonated_by(support),
            Caller::Session(_) | Caller::Key { .. } => by,
        }
    }

    /// The same, where it is somebody else who acts in that name.
    pub fn impersonated_by(self, support: &str) -> Self {
        Self { impersonator: Some(support.to_owned()), ..self }
    }

    /// Somebody, in a request.
    pub fn new(actor: Actor, ctx: &TenantContext, client: &Client) -> Self {
        Self {
            actor,
            request_id: ctx.request_id().to_owned(),
            address: client.address.map(|a| a.to_string()),
            impersonator: None,
        }
    }
}

/// Says in the log what is durable now: a stream of what is done in each organisation, for whoever collects logs. Never what
/// was changed, only that it was.
pub fn log(ctx: &TenantContext, by: &By, action: &str, entity_id: Option<&str>) {
    tracing::info!(
        target: "gmah::audit",
        tenant = %ctx.detail().tenant.slug,
        actor = by.actor.name,
        action,
        entity_id,
        request_id = by.request_id,
        address = by.address,
        impersonator = by.impersonator,
        "done"
    );
}

/// Something that was done.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = AuditEntry)]
pub struct Entry {
    /// Id, ordered by time.
    pub id: Uuid,
    /// RFC 3339, UTC.
    #[serde(with = "crate::json::rfc3339")]
    pub at: OffsetDateTime,
    /// Who, if it was a user.
    pub actor_id: Option<Uuid>,
    /// Who, by the name of the time.
    pub actor: String,
    /// The operator who acted as that user.
    pub impersonator: Option<String>,
    /// `nouns.verb`.
    pub action: String,
    /// To which of the nouns.
    pub entity_id: Option<String>,
    /// How it was.
    #[schema(value_type = Object, nullable)]
    pub before: Option<Value>,
    /// How it is.
    #[schema(value_type = Object, nullable)]
    pub after: Option<Value>,
    /// The request.
    pub request_id: Option<String>,
    /// Where it came from.
    pub address: Option<String>,
}

/// Which entries.
#[derive(Debug, Default)]
pub struct Filter {
    /// By whom.
    pub actor_id: Option<Uuid>,
    /// `nouns.verb`.
    pub action: Option<String>,
    /// Of one thing.
    pub entity_id: Option<String>,
}

/// Writes down what is done.
///
/// # Errors
/// [`DbError`].
pub async fn insert(
    tx: &mut impl Query,
    by: &By,
    action: &'static str,
    entity_id: Option<&str>,
    before: &Value,
    after: &Value,
) -> Result<(), DbError> {
    let some = |value: &Value| (!value.is_null()).then(|| value.clone());
    tx.execute(
        INSERT,
        &[
            &Uuid::now_v7(),
            &by.actor.id,
            &by.actor.name,
            &action,
            &entity_id,
            &some(before),
            &some(after),
            &by.request_id,
            &by.address,
            &by.impersonator,
        ],
    )
    .await
    .map(drop)
}

/// Up to `limit` entries before `before`, the newest first.
///
/// # Errors
/// [`DbError`].
pub async fn list(
    db: &mut impl Query,
    filter: &Filter,
    before: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Entry>, DbError> {
    let before = before.unwrap_or(Uuid::max());
    let rows =
        db.query(LIST, &[&before, &limit, &filter.actor_id, &filter.action, &filter.entity_id]).await?;
    Ok(rows.iter().map(entry).collect())
}

/// Removes a few entries that are older than so many days; the database keeps thirty at least.
///
/// # Errors
/// [`DbError`].
pub async fn expire(db: &mut impl Query, keep_days: i32) -> Result<i64, DbError> {
    Ok(db.query(EXPIRE, &[&keep_days]).await?.first().map_or(0, |r| r.get(0)))
}

fn entry(row: &Row) -> Entry {
    Entry {
        id: row.get("id"),
        at: row.get("at"),
        actor_id: row.get("actor_id"),
        actor: row.get("actor"),
        impersonator: row.get("impersonator"),
        action: row.get("action"),
        entity_id: row.get("entity_id"),
        before: row.get("before"),
        after: row.get("after"),
        request_id: row.get("request_id"),
        address: row.get("address"),
    }
}

pub(super) const INSERT: &str = include_str!("sql/audit/insert.sql");
pub(super) const EXPIRE: &str = "select audit_log_expire($1, 5000)";
pub(super) const LIST: &str = include_str!("sql/audit/list.sql");
