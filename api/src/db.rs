//! [`TenantDb`]: the only door from a tenant's context to SQL.

mod opening;

use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use deadpool_postgres::ClientWrapper;
use gmah_shared::catalog::TenantDetail;
use tokio::time::{Instant, timeout_at};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Row, Statement};

use crate::context::TenantContext;
use crate::error::ApiError;
use crate::pool::breaker::Failure;
use crate::pool::{Lease, PoolError};
use crate::repo::replica::Position;
use crate::repo::{self, replica};
use crate::server::App;

pub use opening::{Opening, Question};

/// A connection to the database of one tenant, for one request.
pub struct TenantDb {
    /// None after it was given back.
    lease: Option<Lease>,
    patience: Duration,
    is_replica: bool,
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
    /// A copy of the server had to give a reader up, to go on with what the server did.
    #[error("the copy of the server went on")]
    Overtaken,
    /// There is no connection to ask on.
    #[error("no connection")]
    NoConnection(#[from] PoolError),
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
            Self::Silent | Self::GivenBack | Self::Overtaken | Self::NoConnection(_) => None,
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
            Self::NoConnection(e) => e.to_string(),
            Self::Silent | Self::GivenBack | Self::Overtaken => self.to_string(),
        }
    }
}

/// For one question to the master.
const LOOKS: Duration = Duration::from_millis(50);
/// Longer than `statement_timeout`, so that a server that is well answers first.
const MARGIN: Duration = Duration::from_secs(1);

/// What a statement of a transaction or connection says, or that it says nothing.
async fn within<T>(
    patience: Duration,
    asked: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, DbError> {
    Ok(tokio::time::timeout(patience, asked).await.map_err(|_| DbError::Silent)??)
}

/// Sessions are not cleaned after statements that a test has looked through, so there are no others.
fn known(sql: &'static str) {
    debug_assert!(repo::STATEMENTS.iter().any(|(_, known)| *known == sql), "not in `STATEMENTS`: {sql}");
}

type Params<'a> = &'a [&'a (dyn ToSql + Sync)];
/// To a question.
pub(crate) type Answer = Result<Vec<Row>, DbError>;

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
        Ok(Self::open_or_why(ctx).await?)
    }

    /// The same, for who wants to know why there is none.
    ///
    /// # Errors
    /// [`PoolError`].
    pub async fn open_or_why(ctx: &TenantContext) -> Result<Self, PoolError> {
        Ok(Self::open_with(ctx, None).await?.0)
    }

    /// The same, and the answer to the first question, if there is one.
    async fn open_with(
        ctx: &TenantContext,
        first: Option<&Question<'_>>,
    ) -> Result<(Self, Option<Answer>), PoolError> {
        let app = ctx.app();
        let (mut lease, answer) = match app.pools.lease_and_ask(ctx.detail(), first).await {
            // Its password may have been changed a moment ago: look once more, and only once.
            Err(PoolError::Authentication(cause)) => match ctx.reread().await {
                Some(newer) => app.pools.lease_and_ask(newer.detail(), first).await?,
                None => return Err(PoolError::Authentication(cause)),
            },
            // Somebody else was refused a moment ago, and is looking.
            Err(PoolError::Resting(Failure::Authentication)) => {
                tokio::time::sleep(LOOKS).await;
                match ctx.newer().await {
                    Some(newer) => app.pools.lease_and_ask(newer.detail(), first).await?,
                    None => return Err(PoolError::Resting(Failure::Authentication)),
                }
            }
            other => other?,
        };
        if matches!(answer, Some(Err(DbError::Silent))) {
            lease.went_silent();
        }
        Ok((Self::on(app, lease, false), answer))
    }

    /// The same for what only reads: at the copy of its server, if that has one.
    ///
    /// # Errors
    /// As [`TenantDb::open`].
    pub async fn open_to_read(ctx: &TenantContext) -> Result<Self, ApiError> {
        let mut db = Self::open(ctx).await?;
        db.read_at_copy(ctx).await;
        Ok(db)
    }

    fn on(app: &App, lease: Lease, is_replica: bool) -> Self {
        let patience = *app.config.pool.statement_timeout + MARGIN;
        Self { lease: Some(lease), patience, is_replica }
    }

    /// Goes on at the copy of the server, if it has one that shows in time whatever was committed when this was called: to
    /// who asks, the two look the same (on a server that has `synchronous_commit` on, as they have). From then on there are
    /// only reads. Where the copy is late or away, nothing changes.
    pub async fn read_at_copy(&mut self, ctx: &TenantContext) {
        let (app, Some(copy)) = (ctx.app(), &ctx.detail().replica) else { return };
        let result = if app.pools.rests(&copy.placement.server) {
            "late"
        } else {
            match replica::position(self).await {
                Ok(Some(position)) => self.go_to_copy(app, copy, &position).await,
                Ok(None) => "failed",
                Err(e) => {
                    // The server itself is a copy right now, most likely: a request that reads need not care.
                    tracing::debug!(error = %e.chain(), "no position");
                    "failed"
                }
            }
        };
        app.metrics.replica(result);
    }

    /// What came of it: `served`, `late` or `failed`. This keeps what it has until the other is found fit.
    async fn go_to_copy(&mut self, app: &App, copy: &TenantDetail, position: &Position) -> &'static str {
        let until = Instant::now() + *app.config.pool.replica_patience;
        let lease = match timeout_at(until, app.pools.lease(copy)).await {
            Ok(Ok(lease)) => lease,
            // One organisation's queue, or its first connection: no reason for others to keep away.
            Err(_) => return "late",
            Ok(Err(e)) => {
                if e.is_servers() {
                    app.pools.let_rest(&copy.placement.server);
                }
                return "failed";
            }
        };
        let mut db = Self::on(app, lease, true);
        let mut pause = Duration::from_millis(1);
        let result = loop {
            match timeout_at(until + MARGIN, replica::has_replayed(&mut db, position)).await {
                Ok(Ok(true)) => break "served",
                Ok(Ok(false)) if Instant::now() + pause < until => {}
                Ok(Ok(false)) | Err(_) => break "late",
                Ok(Err(e)) => {
                    tracing::debug!(error = %e.chain(), "no copy");
                    break "failed";
                }
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        };
        if result == "served" {
            *self = db;
        } else {
            app.pools.let_rest(&copy.placement.server);
        }
        result
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

    /// Runs something on the client; whoever goes away meanwhile leaves a busy lease behind.
    async fn run<T>(
        &mut self,
        sql: &'static str,
        ask: impl AsyncFnOnce(&ClientWrapper, &Statement) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, DbError> {
        known(sql);
        let patience = self.patience;
        let lease = self.lease.as_mut().ok_or(DbError::GivenBack)?;
        let (client, busy) = lease.unaltered_parts();
        *busy = true;
        let answer = match within(patience, client.prepare_cached(sql)).await {
            Ok(statement) => within(patience, ask(client, &statement)).await,
            Err(e) => Err(e),
        };
        // It is no race with anybody who writes what is read here.
        let answer = match answer {
            Err(DbError::Postgres(e))
                if self.is_replica && e.code() == Some(&SqlState::T_R_SERIALIZATION_FAILURE) =>
            {
                Err(DbError::Overtaken)
            }
            other => other,
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
        self.run(sql, async |client, statement| client.query(statement, params).await).await
    }

    async fn execute(&mut self, sql: &'static str, params: Params<'_>) -> Result<u64, DbError> {
        self.run(sql, async |client, statement| client.execute(statement, params).await).await
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
