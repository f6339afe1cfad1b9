//! [`TenantDb`]: the only door from a tenant's context to SQL.

use std::error::Error as _;

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use crate::context::TenantContext;
use crate::error::ApiError;
use crate::pool::Lease;

/// A connection to the database of one tenant, for one request.
pub struct TenantDb {
    lease: Lease,
}

/// A transaction on it. Rolled back unless committed.
pub struct TenantTx<'a> {
    tx: deadpool_postgres::Transaction<'a>,
    busy: &'a mut bool,
}

/// A statement failed.
#[derive(Debug, thiserror::Error)]
#[error("statement failed")]
pub struct DbError(#[from] tokio_postgres::Error);

impl DbError {
    /// Whether the database, and not the statement, is the trouble.
    pub fn is_unavailable(&self) -> bool {
        match self.0.as_db_error() {
            None => true,
            // Connection exception, insufficient resources, operator intervention, system error; and "the database is
            // read-only", which a server says while it is being moved; and a table or column that is not there, in a database
            // whose schema is not this program's (PostgreSQL, appendix A).
            Some(e) => {
                ["08", "53", "57", "58"].iter().any(|class| e.code().code().starts_with(class))
                    || ["25006", "42P01", "42703"].contains(&e.code().code())
            }
        }
    }

    /// The error and its causes on one line, for the log. Never for a client.
    pub fn chain(&self) -> String {
        let cause = self.0.source().map_or_else(String::new, |c| format!(": {c}"));
        format!("{}{cause}", self.0)
    }
}

type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

/// What both a connection and a transaction can do.
pub trait Query {
    /// Runs a statement that is prepared once per connection.
    fn query(
        &mut self,
        sql: &'static str,
        params: Params<'_>,
    ) -> impl Future<Output = Result<Vec<Row>, DbError>> + Send;

    /// The first row, if any.
    fn query_opt(
        &mut self,
        sql: &'static str,
        params: Params<'_>,
    ) -> impl Future<Output = Result<Option<Row>, DbError>> + Send
    where
        Self: Send,
    {
        async move { Ok(self.query(sql, params).await?.into_iter().next()) }
    }

    /// How many rows it touched.
    fn execute(
        &mut self,
        sql: &'static str,
        params: Params<'_>,
    ) -> impl Future<Output = Result<u64, DbError>> + Send;
}

impl TenantDb {
    /// A connection for this request, or 503.
    ///
    /// # Errors
    /// [`ApiError::Unavailable`], or a stale generation.
    pub async fn open(ctx: &TenantContext) -> Result<Self, ApiError> {
        Ok(Self { lease: ctx.app().pools.lease(ctx.detail()).await? })
    }

    /// Begins a transaction.
    ///
    /// # Errors
    /// [`DbError`] when the connection is gone.
    pub async fn transaction(&mut self) -> Result<TenantTx<'_>, DbError> {
        // Until commit or rollback the lease counts as busy: dropped in between, its connection is not reused.
        let (client, busy) = self.lease.parts();
        *busy = true;
        Ok(TenantTx { tx: client.transaction().await?, busy })
    }
}

impl Query for TenantDb {
    async fn query(&mut self, sql: &'static str, params: Params<'_>) -> Result<Vec<Row>, DbError> {
        let (client, busy) = self.lease.parts();
        *busy = true;
        let statement = client.prepare_cached(sql).await;
        let rows = match statement {
            Ok(statement) => client.query(&statement, params).await,
            Err(e) => Err(e),
        };
        // Answered, well or badly: nothing is running any more.
        *busy = false;
        Ok(rows?)
    }

    async fn execute(&mut self, sql: &'static str, params: Params<'_>) -> Result<u64, DbError> {
        let (client, busy) = self.lease.parts();
        *busy = true;
        let statement = client.prepare_cached(sql).await;
        let count = match statement {
            Ok(statement) => client.execute(&statement, params).await,
            Err(e) => Err(e),
        };
        *busy = false;
        Ok(count?)
    }
}

impl Query for TenantTx<'_> {
    async fn query(&mut self, sql: &'static str, params: Params<'_>) -> Result<Vec<Row>, DbError> {
        let statement = self.tx.prepare_cached(sql).await?;
        Ok(self.tx.query(&statement, params).await?)
    }

    async fn execute(&mut self, sql: &'static str, params: Params<'_>) -> Result<u64, DbError> {
        let statement = self.tx.prepare_cached(sql).await?;
        Ok(self.tx.execute(&statement, params).await?)
    }
}

impl TenantTx<'_> {
    /// Makes it durable.
    ///
    /// # Errors
    /// [`DbError`]: then it is not known to be durable, and the client gets no success.
    pub async fn commit(self) -> Result<(), DbError> {
        let outcome = self.tx.commit().await;
        *self.busy = false;
        Ok(outcome?)
    }

    /// Undoes it.
    ///
    /// # Errors
    /// [`DbError`] when the connection is gone, which undoes it too.
    pub async fn rollback(self) -> Result<(), DbError> {
        let outcome = self.tx.rollback().await;
        *self.busy = false;
        Ok(outcome?)
    }
}
