//! Connections to PostgreSQL: one way to build them, every wait with a deadline.

mod hosts;
pub mod programs;
mod scram;
mod transport;

use std::pin::Pin;
use std::time::Duration;

use deadpool_postgres::{
    Connect, Manager, ManagerConfig, Pool, PoolConfig, RecyclingMethod, Runtime, Timeouts,
};
use futures::future::BoxFuture;
use secrecy::ExposeSecret as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_postgres::config::{SslMode, TargetSessionAttrs};
use tokio_postgres::{AsyncMessage, Client, Connection, NoTls};

use crate::config::Postgres;

pub use hosts::{Hosts, HostsError};
pub use scram::verifier_of_random;
pub use transport::{Transport, Verified};

/// Connection parameters for one host, as the driver takes them. `application_name` shows in `pg_stat_activity`.
fn client_config(pg: &Postgres, host: &str, port: u16, application_name: &str) -> tokio_postgres::Config {
    let mut c = tokio_postgres::Config::new();
    if pg.hosts.are_several() {
        c.target_session_attrs(TargetSessionAttrs::ReadWrite);
    }
    c.host(host)
        .port(port)
        .user(&pg.user)
        .dbname(&pg.database)
        .application_name(application_name)
        .connect_timeout(pg.timeout)
        .keepalives_idle(Duration::from_secs(30))
        .tcp_user_timeout(Duration::from_secs(15))
        .ssl_mode(match pg.transport {
            Transport::Plain => SslMode::Disable,
            // Never without it, whatever the server says.
            Transport::Verified(_) => SslMode::Require,
        });
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
    let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
    let opens = Opens { pg: pg.clone(), application_name: application_name.to_owned() };
    let manager = Manager::from_connect(tokio_postgres::Config::new(), opens, recycling);
    let timeouts = Timeouts { wait: Some(pg.timeout), create: Some(pg.timeout), recycle: Some(pg.timeout) };
    Pool::builder(manager)
        .config(PoolConfig { max_size: pg.max_connections, timeouts, ..PoolConfig::default() })
        .runtime(Runtime::Tokio1)
        .build()
}

/// Opens the connections of a pool.
struct Opens {
    pg: Postgres,
    application_name: String,
}

impl Connect for Opens {
    fn connect(
        &self,
        _: &tokio_postgres::Config,
    ) -> BoxFuture<'_, Result<(Client, JoinHandle<()>), tokio_postgres::Error>> {
        Box::pin(async move {
            let timeout = self.pg.timeout.as_millis();
            let bounds = format!("-c statement_timeout={timeout}");
            match open(&self.pg, &self.application_name, Some(&bounds), None).await {
                Ok((client, driver)) => Ok((client, crate::tasks::detach("pg-connection", driver))),
                Err(ConnectError::Postgres(e)) => Err(e),
                // The pool has the same deadline, and says so by itself.
                Err(ConnectError::Timeout) => std::future::pending().await,
            }
        })
    }
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
pub async fn connect(pg: &Postgres, application_name: &str) -> Result<Client, ConnectError> {
    let (client, driver) = open(pg, application_name, None, None).await?;
    crate::tasks::detach("pg-connection", driver);
    Ok(client)
}

type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Connects within `pg.timeout`, to the first host that will have us: the driver's own deadline is for the socket only, and
/// a server that accepts and never answers would hold us.
async fn open(
    pg: &Postgres,
    application_name: &str,
    options: Option<&str>,
    notices: Option<mpsc::Sender<String>>,
) -> Result<(Client, Driver), ConnectError> {
    let hosts: Vec<_> = pg.hosts.iter().collect();
    let mut last = ConnectError::Timeout;
    for (n, (host, port)) in hosts.iter().enumerate() {
        let mut config = client_config(pg, host, *port, application_name);
        config.options(options.unwrap_or_default());
        // One that is silent must leave time for the next.
        let patience = pg.timeout / u32::try_from(hosts.len() - n).unwrap_or(1);
        match tokio::time::timeout(patience, open_at(&config, &pg.transport, notices.clone())).await {
            Ok(Ok(opened)) => return Ok(opened),
            Ok(Err(e)) => last = e.into(),
            Err(_) => last = ConnectError::Timeout,
        }
    }
    Err(last)
}

async fn open_at(
    config: &tokio_postgres::Config,
    transport: &Transport,
    notices: Option<mpsc::Sender<String>>,
) -> Result<(Client, Driver), tokio_postgres::Error> {
    Ok(match transport {
        Transport::Plain => {
            let (client, connection) = config.connect(NoTls).await?;
            (client, drive(connection, notices))
        }
        Transport::Verified(tls) => {
            let (client, connection) = config.connect(tls.connector()).await?;
            (client, drive(connection, notices))
        }
    })
}

/// What keeps a connection going, until its client is dropped or nobody keeps up with the notices.
fn drive<S, T>(mut connection: Connection<S, T>, notices: Option<mpsc::Sender<String>>) -> Driver
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    Box::pin(async move {
        loop {
            match std::future::poll_fn(|cx| connection.poll_message(cx)).await {
                Some(Ok(AsyncMessage::Notification(n))) => {
                    if notices.as_ref().is_some_and(|tx| tx.try_send(n.payload().to_owned()).is_err()) {
                        return;
                    }
                }
                Some(Ok(_)) => {}
                Some(Err(e)) => return tracing::debug!(error = %e, "connection to PostgreSQL ended"),
                None => return,
            }
        }
    })
}

/// A direct connection that hears notices (PostgreSQL, chapter "NOTIFY"). It ends when this is dropped.
pub struct Listening {
    /// For statements.
    pub client: Client,
    /// Payloads of what is said on the channel. Ends with the connection, and when more than the queue holds are unread:
    /// whoever falls behind starts over.
    pub notices: mpsc::Receiver<String>,
    driver: JoinHandle<()>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Connects and listens on a channel, with a queue of so many notices.
///
/// # Errors
/// As [`connect`].
pub async fn listen(
    pg: &Postgres,
    application_name: &str,
    channel: &'static str,
    queue: usize,
) -> Result<Listening, ConnectError> {
    let (tx, notices) = mpsc::channel(queue);
    let (client, driver) = open(pg, application_name, None, Some(tx)).await?;
    let driver = crate::tasks::detach("pg-listening", driver);
    let listening = Listening { client, notices, driver };
    let listen = format!("listen {channel}");
    let begun = listening.client.batch_execute(&listen);
    tokio::time::timeout(pg.timeout, begun).await.map_err(|_| ConnectError::Timeout)??;
    Ok(listening)
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
