//! Pages of lists: `?limit=` from 1 to 200 and `?cursor=`.

use axum::extract::Query as Params;
use axum::extract::rejection::QueryRejection;
use gmah_shared::tenant::TenantId;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Cursors;
use crate::auth::Session;
use crate::db::{DbError, TenantDb};
use crate::error::ApiError;
use crate::json::Json;

/// Query of a list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Page {
    limit: Option<u32>,
    cursor: Option<String>,
}

/// Response of a list.
#[derive(Debug, Serialize)]
pub struct List<T> {
    pub(super) items: Vec<T>,
    next_cursor: Option<String>,
}

/// A query, if it can be read.
///
/// # Errors
/// [`ApiError::Malformed`].
pub fn query<T>(params: Result<Params<T>, QueryRejection>) -> Result<T, ApiError> {
    let Params(asked) = params.map_err(|_| ApiError::Malformed("the query cannot be read".into()))?;
    Ok(asked)
}

impl<T> List<T> {
    /// The only page of a list that is short by nature.
    pub fn all(items: Vec<T>) -> Self {
        Self { items, next_cursor: None }
    }
}

/// A page that can be asked for.
pub struct Wanted<'a> {
    cursors: &'a Cursors,
    tenant: TenantId,
    list: &'static str,
    limit: usize,
    /// The id after which it begins.
    pub after: Option<Uuid>,
}

const DEFAULT_LIMIT: u32 = 50;
const MAX_LIMIT: u32 = 200;

impl Page {
    /// The query, if it can be read.
    ///
    /// # Errors
    /// [`ApiError::Malformed`].
    pub fn read(params: Result<Params<Self>, QueryRejection>) -> Result<Self, ApiError> {
        query(params)
    }

    /// What a query with more than these two has of them.
    pub fn new(limit: Option<u32>, cursor: Option<String>) -> Self {
        Self { limit, cursor }
    }

    /// Checks a query of `list`.
    ///
    /// # Errors
    /// 400 for a cursor of another list, 422 for a limit outside 1 to 200.
    pub fn check<'a>(
        self,
        cursors: &'a Cursors,
        tenant: TenantId,
        list: &'static str,
    ) -> Result<Wanted<'a>, ApiError> {
        let limit = self.limit.unwrap_or(DEFAULT_LIMIT);
        if !(1..=MAX_LIMIT).contains(&limit) {
            return Err(ApiError::invalid("limit", "must be from 1 to 200"));
        }
        let after = self.cursor.map(|c| cursors.decode(tenant, list, &c)).transpose()?;
        Ok(Wanted { cursors, tenant, list, limit: limit as usize, after })
    }
}

impl Page {
    /// A page of `list`, of what `read` finds after an id.
    ///
    /// # Errors
    /// As [`Page::check`], and the database's.
    pub async fn of<T>(
        self,
        session: &mut Session,
        list: &'static str,
        read: impl AsyncFnOnce(&mut TenantDb, Option<Uuid>, i64) -> Result<Vec<T>, DbError>,
        id: impl Fn(&T) -> Uuid,
    ) -> Result<Json<List<T>>, ApiError> {
        let (app, tenant) = (session.ctx.app().clone(), session.ctx.detail().tenant.id);
        let wanted = self.check(&app.derived()?.cursors, tenant, list)?;
        let found = read(&mut session.db, wanted.after, wanted.rows()).await?;
        Ok(Json(wanted.page(found, id)))
    }
}

impl Wanted<'_> {
    /// How many rows to read: one more than asked for says whether there is another page.
    pub fn rows(&self) -> i64 {
        self.limit as i64 + 1
    }

    /// The page out of those rows.
    pub fn page<T>(&self, mut items: Vec<T>, id: impl Fn(&T) -> Uuid) -> List<T> {
        let more = items.len() > self.limit;
        items.truncate(self.limit);
        let last = items.last().filter(|_| more);
        let next_cursor = last.map(|last| self.cursors.encode(self.tenant, self.list, id(last)));
        List { items, next_cursor }
    }
}
