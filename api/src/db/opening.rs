//! A connection that is opened by its first question.

use std::time::Duration;

use deadpool_postgres::ClientWrapper;

use super::{Answer, DbError, MARGIN, Params, Query, TenantDb, within};
use crate::context::TenantContext;
use crate::repo;

/// A statement that only reads, so that it may be asked again where it is not known to have been answered.
pub struct Question<'a> {
    sql: &'static str,
    params: Params<'a>,
    patience: Duration,
}

impl Question<'_> {
    /// Asks it on a connection.
    pub(crate) async fn ask(&self, client: &ClientWrapper) -> Answer {
        let statement = within(self.patience, client.prepare_cached(self.sql)).await?;
        within(self.patience, client.query(&statement, self.params)).await
    }
}

/// A connection that is not there yet: what it is asked first, which only reads, goes to the server together with the probe of
/// a connection that was used before.
pub struct Opening<'a> {
    ctx: &'a TenantContext,
    db: Option<TenantDb>,
}

impl<'a> Opening<'a> {
    /// For a request of that organisation.
    pub fn of(ctx: &'a TenantContext) -> Self {
        Self { ctx, db: None }
    }

    /// The connection.
    ///
    /// # Errors
    /// [`DbError::GivenBack`] where nothing was asked.
    pub fn opened(self) -> Result<TenantDb, DbError> {
        self.db.ok_or(DbError::GivenBack)
    }
}

impl Query for Opening<'_> {
    async fn query(&mut self, sql: &'static str, params: Params<'_>) -> Answer {
        if let Some(db) = &mut self.db {
            return db.query(sql, params).await;
        }
        debug_assert!(repo::ASKED_FIRST.contains(&sql), "may change something: {sql}");
        let patience = *self.ctx.app().config.pool.statement_timeout + MARGIN;
        let question = Question { sql, params, patience };
        let (db, answer) = TenantDb::open_with(self.ctx, Some(&question)).await?;
        self.db = Some(db);
        answer.unwrap_or(Err(DbError::GivenBack))
    }

    async fn execute(&mut self, sql: &'static str, params: Params<'_>) -> Result<u64, DbError> {
        let db = match self.db.take() {
            Some(db) => db,
            None => TenantDb::open_or_why(self.ctx).await?,
        };
        self.db.insert(db).execute(sql, params).await
    }
}
