//! [`TenantDb`]: the only door from a tenant's context to SQL.

use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use deadpool_postgres::ClientWrapper;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Row, Statement};

use crate::context::TenantContext;
use crate::error::ApiError;
use crate::pool::{Lease, PoolError};
use crate::repo;

/// A connection to the database of one tenant, for one request.
pub struct TenantDb {
    /// None after it was given back.
    lease: Option<Lease>,
    patience: Duration,
    /// Until the first statement was answered: whose it is.
    untried: Option<TenantContext>,
}

/// A transaction on it. Rolled back unless committed.
pub struct TenantTx<'a> {
    tx: deadpool_postgres::Transaction<'a>,
    busy: &'a mut bool,
    silent: Arc<AtomicBool>,
    patience: Duration,
}

/// A statement failed.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// The driver or the server says so.
    #[error("statement failed")]
    Postgres(#[from] tokio_postgres::Error),
    /// No answer, although the server was told to give up before.
    #[error("no answer in time")]
    Silent,
    /// Asked after the connection was given back, which is a fault of ours.
    #[error("the connection was given back")]
    GivenBack,
}

impl DbError {
    /// Whether the database, and not the statement, is the trouble.
    pub fn is_unavailable(&self) -> bool {
        match self.as_db_error() {
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

    /// Whether the connection had ended, or was ended by an operator while nothing ran (57P01).
    fn is_ended(&self) -> bool {
        match self {
            Self::Postgres(e) => e.code().is_none_or(|code| code.code() == "57P01"),
            Self::Silent | Self::GivenBack => false,
        }
    }

    /// Whether another transaction was faster: what was looked for is gone, or what was not there is (classes 23 and 40).
    pub fn is_race(&self) -> bool {
        self.as_db_error().is_some_and(|e| ["23503", "23505", "40001", "40P01"].contains(&e.code().code()))
    }

    /// Whether a text had what PostgreSQL keeps in none, which is the zero byte (SQLSTATE 22021).
    pub fn is_unstorable(&self) -> bool {
        self.as_db_error().is_some_and(|e| e.code().code() == "22021")
    }

    /// What the server said, if it said something.
    pub fn as_db_error(&self) -> Option<&tokio_postgres::error::DbError> {
        match self {
            Self::Postgres(e) => e.as_db_error(),
            Self::Silent | Self::GivenBack => None,
        }
    }

    /// The error and its causes on one line, for the log. Never for a client.
    pub fn chain(&self) -> String {
        match self {
            // Its detail may quote a row.
            Self::Postgres(e) if e.as_db_error().is_some() => e.as_db_error().map_or_else(String::new, |d| {
                let constraint = d.constraint().map_or_else(String::new, |c| format!(" ({c})"));
                format!("{}: {}{constraint}", d.code().code(), d.message())
            }),
            Self::Postgres(e) => {
                let cause = e.source().map_or_else(String::new, |c| format!(": {c}"));
                format!("{e}{cause}")
            }
            Self::Silent | Self::GivenBack => self.to_string(),
        }
    }
}

/// Longer than `statement_timeout`, so that a server that is well answers first.
const MARGIN: Duration = Duration::from_secs(1);

/// What a statement of a transaction or connection says, or that it says nothing.
async fn within<T>(
    patience: Duration,
    asked: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, DbError> {
    Ok(tokio::time::timeout(patience, asked).await.map_err(|_| DbError::Silent)??)
}

/// Asked before a transaction that nothing was asked before: its `BEGIN` cannot be asked twice.
const PROBE: &str = "select 1";

/// Whether a statement may be asked twice.
fn reads(sql: &str) -> bool {
    let code = sql.lines().find(|l| !l.trim_start().starts_with("--")).unwrap_or_default().trim_start();
    code.get(..6).is_some_and(|word| word.eq_ignore_ascii_case("select"))
}

/// Sessions are not cleaned after statements that a test has looked through, so there are no others.
fn known(sql: &'static str) {
    let is_known = || sql == PROBE || repo::STATEMENTS.iter().any(|(_, known)| *known == sql);
    debug_assert!(is_known(), "not in `STATEMENTS`: {sql}");
}

type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

/// What a statement is asked for.
trait Asked: Sized + Send {
    fn ask(
        client: &ClientWrapper,
        statement: &Statement,
        params: Params<'_>,
    ) -> impl Future<Output = Result<Self, tokio_postgres::Error>> + Send;
}

impl Asked for Vec<Row> {
    async fn ask(
        c: &ClientWrapper,
        s: &Statement,
        params: Params<'_>,
    ) -> Result<Self, tokio_postgres::Error> {
        c.query(s, params).await
    }
}

impl Asked for u64 {
    async fn ask(
        c: &ClientWrapper,
        s: &Statement,
        params: Params<'_>,
    ) -> Result<Self, tokio_postgres::Error> {
        c.execute(s, params).await
    }
}

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
        let app = ctx.app();
        let mut lasting = ctx.clone();
        let lease = match app.pools.lease(ctx.detail()).await {
            // Its password may have been changed a moment ago: look once more, and only once.
            Err(PoolError::Authentication(cause)) => match ctx.reread().await {
                Some(newer) => {
                    lasting = newer;
                    app.pools.lease(lasting.detail()).await?
                }
                None => return Err(PoolError::Authentication(cause).into()),
            },
            other => other?,
        };
        let untried = lease.was_used().then_some(lasting);
        Ok(Self { lease: Some(lease), patience: *app.config.pool.statement_timeout + MARGIN, untried })
    }

    /// Gives the connection back before this ends; there is no other afterwards.
    pub fn give_back(&mut self) {
        self.lease = None;
    }

    /// Begins a transaction.
    ///
    /// # Errors
    /// [`DbError`] when the connection is gone.
    pub async fn transaction(&mut self) -> Result<TenantTx<'_>, DbError> {
        if self.untried.is_some() {
            self.query(PROBE, &[]).await?;
        }
        // Until commit or rollback the lease counts as busy: dropped in between, its connection is not reused.
        let patience = self.patience;
        let lease = self.lease.as_mut().ok_or(DbError::GivenBack)?;
        let silent = lease.silent();
        let (client, busy) = lease.unaltered_parts();
        *busy = true;
        let begun = within(patience, client.transaction()).await;
        silent.fetch_or(matches!(begun, Err(DbError::Silent)), Ordering::AcqRel);
        Ok(TenantTx { tx: begun?, busy, silent, patience })
    }

    /// Runs something on the client. A connection that its server ended while nobody used it is found out by the first
    /// statement: where that only reads, another one answers it.
    async fn run<T: Asked>(&mut self, sql: &'static str, params: Params<'_>) -> Result<T, DbError> {
        known(sql);
        loop {
            let answer = self.run_once::<T>(sql, params).await;
            let Some(ctx) = self.untried.take() else { return answer };
            let was_ended = matches!(&answer, Err(e) if e.is_ended()) && reads(sql);
            if !was_ended {
                return answer;
            }
            // What has ended is not kept, so that there are as many of them as a pool holds, at most.
            if let Some(ended) = self.lease.take() {
                ended.end();
            }
            let Ok(lease) = ctx.app().pools.lease(ctx.detail()).await else { return answer };
            self.untried = lease.was_used().then_some(ctx);
            self.lease = Some(lease);
        }
    }

    /// Whoever goes away meanwhile leaves a busy lease behind.
    async fn run_once<T: Asked>(&mut self, sql: &'static str, params: Params<'_>) -> Result<T, DbError> {
        let patience = self.patience;
        let lease = self.lease.as_mut().ok_or(DbError::GivenBack)?;
        let (client, busy) = lease.unaltered_parts();
        *busy = true;
        let answer = match within(patience, client.prepare_cached(sql)).await {
            Ok(statement) => within(patience, T::ask(client, &statement, params)).await,
            Err(e) => Err(e),
        };
        if matches!(answer, Err(DbError::Silent)) {
            lease.went_silent();
        } else {
            // Answered, well or badly: nothing is running any more.
            *busy = false;
        }
        answer
    }
}

impl Query for TenantDb {
    async fn query(&mut self, sql: &'static str, params: Params<'_>) -> Result<Vec<Row>, DbError> {
        self.run(sql, params).await
    }

    async fn execute(&mut self, sql: &'static str, params: Params<'_>) -> Result<u64, DbError> {
        self.run(sql, params).await
    }
}

impl Query for TenantTx<'_> {
    async fn query(&mut self, sql: &'static str, params: Params<'_>) -> Result<Vec<Row>, DbError> {
        known(sql);
        let statement = self.heard(within(self.patience, self.tx.prepare_cached(sql)).await)?;
        self.heard(within(self.patience, self.tx.query(&statement, params)).await)
    }

    async fn execute(&mut self, sql: &'static str, params: Params<'_>) -> Result<u64, DbError> {
        known(sql);
        let statement = self.heard(within(self.patience, self.tx.prepare_cached(sql)).await)?;
        self.heard(within(self.patience, self.tx.execute(&statement, params)).await)
    }
}

impl TenantTx<'_> {
    /// Leaves word when there was no answer.
    fn heard<T>(&self, answer: Result<T, DbError>) -> Result<T, DbError> {
        self.silent.fetch_or(matches!(answer, Err(DbError::Silent)), Ordering::AcqRel);
        answer
    }

    /// Makes it durable.
    ///
    /// # Errors
    /// [`DbError`]: then it is not known to be durable, and the client gets no success.
    pub async fn commit(self) -> Result<(), DbError> {
        let outcome = within(self.patience, self.tx.commit()).await;
        *self.busy = matches!(outcome, Err(DbError::Silent));
        self.silent.fetch_or(*self.busy, Ordering::AcqRel);
        outcome
    }

    /// Undoes it.
    ///
    /// # Errors
    /// [`DbError`] when the connection is gone, which undoes it too.
    pub async fn rollback(self) -> Result<(), DbError> {
        let outcome = within(self.patience, self.tx.rollback()).await;
        *self.busy = matches!(outcome, Err(DbError::Silent));
        self.silent.fetch_or(*self.busy, Ordering::AcqRel);
        outcome
    }
}
