//! Connections to PostgreSQL: one way to build them, every wait with a deadline.

use std::time::Duration;

use deadpool_postgres::{Manager, ManagerConfig, Pool, PoolConfig, RecyclingMethod, Runtime, Timeouts};
use secrecy::ExposeSecret as _;
use tokio_postgres::NoTls;

use crate::config::Postgres;

/// Connection parameters as the driver takes them. `application_name` shows in `pg_stat_activity`.
pub fn client_config(pg: &Postgres, application_name: &str) -> tokio_postgres::Config {
    let mut c = tokio_postgres::Config::new();
    c.host(&pg.host)
        .port(pg.port)
        .user(&pg.user)
        .dbname(&pg.database)
        .application_name(application_name)
        .connect_timeout(pg.timeout)
        .keepalives_idle(Duration::from_secs(30))
        .tcp_user_timeout(Duration::from_secs(15));
    if let Some(password) = &pg.password {
        c.password(password.expose_secret());
    }
    c
}

/// A small pool, for the master database. Statements are bounded by `pg.timeout` on the server's side as well.
///
/// # Errors
/// Only when the numbers make no pool.
pub fn pool(pg: &Postgres, application_name: &str) -> Result<Pool, deadpool_postgres::BuildError> {
    let mut config = client_config(pg, application_name);
    config.options(format!("-c statement_timeout={}", pg.timeout.as_millis()));
    let manager =
        Manager::from_config(config, NoTls, ManagerConfig { recycling_method: RecyclingMethod::Fast });
    let timeouts = Timeouts { wait: Some(pg.timeout), create: Some(pg.timeout), recycle: Some(pg.timeout) };
    Pool::builder(manager)
        .config(PoolConfig { max_size: pg.max_connections, timeouts, ..PoolConfig::default() })
        .runtime(Runtime::Tokio1)
        .build()
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The server did not answer in time.
    #[error("no answer in time")]
    Timeout,
    /// The server refused, or cannot be reached.
    #[error("{0}")]
    Postgres(#[from] tokio_postgres::Error),
}

impl ConnectError {
    /// What the server said, if it said something.
    pub fn as_db_error(&self) -> Option<&tokio_postgres::error::DbError> {
        match self {
            Self::Timeout => None,
            Self::Postgres(e) => e.as_db_error(),
        }
    }
}

/// One direct connection, for work that needs a session of its own: migrations, advisory locks, LISTEN.
/// The driver task ends when the client is dropped.
///
/// # Errors
/// What the driver reports, or that `pg.timeout` is over.
pub async fn connect(pg: &Postgres, application_name: &str) -> Result<tokio_postgres::Client, ConnectError> {
    let config = client_config(pg, application_name);
    // The driver's own deadline is for the socket only; a server that accepts and never answers would hold us.
    let (client, connection) = tokio::time::timeout(pg.timeout, config.connect(NoTls))
        .await
        .map_err(|_| ConnectError::Timeout)??;
    crate::tasks::detach("pg-connection", async move {
        if let Err(e) = connection.await {
            tracing::debug!(error = %e, "connection to PostgreSQL ended");
        }
    });
    Ok(client)
}

/// A quoted SQL identifier, for the few statements that take no parameters (`CREATE DATABASE`).
pub fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A quoted SQL literal, for the same statements. `standard_conforming_strings` is on since PostgreSQL 9.1.
pub fn quote_literal(text: &str) -> String {
    if text.contains('\\') {
        format!(" E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
    } else {
        format!("'{}'", text.replace('\'', "''"))
    }
}
