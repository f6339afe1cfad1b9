//! One connection to a tenant's database: made, proved, cleaned between uses, and closed so that the budget knows.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::ClientWrapper;
use gmah_shared::catalog::TenantDetail;
use gmah_shared::pg::Transport;
use gmah_shared::tasks;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use tokio_postgres::NoTls;
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;

use super::breaker::Failure;
use super::budget::{Held, Slot, Usable};
use super::proof::{self, ProofError};
use super::socket::{LINGER, Lingering, Socket};
use crate::config::Pool as PoolConfig;
use crate::db::{Answer, Question};
use crate::modules;

/// Why there is no new connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The socket.
    #[error("cannot reach the server")]
    Io(#[from] io::Error),
    /// Start-up or authentication.
    #[error("the server refused the connection")]
    Postgres(#[from] tokio_postgres::Error),
    /// It is not the database that it should be.
    #[error("wrong database")]
    Proof(#[source] ProofError),
    /// It is the right one, and was not migrated, or by a later program.
    #[error("the schema is none that this program serves: {0}")]
    Schema(String),
    /// A member of a cluster that takes no writes.
    #[error("the host takes no writes")]
    ReadOnly,
    /// Nothing within the deadline.
    #[error("no answer in time")]
    Timeout,
}

impl ConnectError {
    /// Whether the database is that of nobody.
    pub(super) fn has_no_identity(&self) -> bool {
        matches!(self, Self::Proof(ProofError::NoIdentity))
    }

    /// Whose fault it is, as far as one can tell (PostgreSQL, appendix A).
    pub fn failure(&self) -> Failure {
        match self {
            Self::Io(_) => Failure::Unreachable,
            Self::Timeout => Failure::Silent,
            // A cluster between two leaders.
            Self::ReadOnly => Failure::Busy,
            Self::Schema(_) => Failure::Schema,
            Self::Postgres(e) | Self::Proof(ProofError::Query(_, e)) => match e.code() {
                None => Failure::Unreachable,
                Some(code) if *code == SqlState::INVALID_CATALOG_NAME => Failure::Closed,
                // A database that allows no connections.
                Some(code) if *code == SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE => Failure::Closed,
                Some(code) if code.code().starts_with("28") => Failure::Authentication,
                Some(code) if ["08", "53", "57", "58"].iter().any(|c| code.code().starts_with(c)) => {
                    Failure::Busy
                }
                Some(_) => Failure::Refused,
            },
            Self::Proof(_) => Failure::WrongDatabase,
        }
    }
}

/// Why a connection cannot be used again.
pub(super) enum CleanError {
    /// It is over.
    Ended(tokio_postgres::Error),
    /// Nobody answers.
    Silent,
}

/// A proved connection. Dropping it says goodbye to the server; its slot is free once the server has left too.
pub struct Connection {
    pub(super) client: ClientWrapper,
    host: Box<str>,
    port: u16,
    /// Whether its session may be in another state than at first.
    pub(super) is_altered: bool,
    _alive: oneshot::Sender<std::convert::Infallible>,
}

impl Usable for Connection {
    fn is_alive(&self) -> bool {
        !self.client.is_closed()
    }
}

/// `ROLLBACK` first: the rest would fail in a broken transaction and hide in an open one. Prepared statements stay,
/// they belong to the connection and not to a session's state (`DISCARD ALL` would throw them away).
const CLEAN: &str = "rollback; set session authorization default; reset all; close all; unlisten *; \
                     select pg_advisory_unlock_all(); discard temp; discard sequences";

/// Statements that a connection keeps prepared. Only texts of this program are prepared, so this is never reached;
/// it is here so that it stays so.
const MAX_STATEMENTS: usize = 512;

impl Connection {
    /// Undoes whatever the last use left behind. Where that was nothing the query is empty, which costs the server next to
    /// nothing: its answer shows that somebody is there, before a request relies on it. The first question is sent along, and
    /// waited for once somebody is known to be there, which `is_there` hears of.
    ///
    /// # Errors
    /// [`CleanError`]: then it is of no use, and there is no answer.
    pub(super) async fn clean(
        &mut self,
        patience: Duration,
        first: Option<&Question<'_>>,
        is_there: impl FnOnce(),
    ) -> Result<Option<Answer>, CleanError> {
        if self.client.statement_cache.size() > MAX_STATEMENTS {
            self.client.statement_cache.clear();
        }
        let statement = if self.is_altered { CLEAN } else { "" };
        let client = &self.client;
        let mut cleaning = pin!(tokio::time::timeout(patience, client.simple_query(statement)));
        let mut asking = pin!(async {
            match first {
                Some(question) => Some(question.ask(client).await),
                None => None,
            }
        });
        // In this order to the server, which answers in the order in which it was asked.
        let (cleaned, answer) = tokio::select! {
            biased;
            cleaned = &mut cleaning => (cleaned, None),
            answer = &mut asking => (cleaning.await, Some(answer)),
        };
        cleaned.map_err(|_| CleanError::Silent)?.map_err(CleanError::Ended)?;
        // Not after the question: what others find out meanwhile counts for more.
        is_there();
        let answer = match answer {
            Some(answer) => answer,
            None => asking.await,
        };
        self.is_altered = false;
        Ok(answer)
    }
}

/// The hosts' own deadlines come first.
const MARGIN: Duration = Duration::from_millis(50);

/// Opens a connection in that place, on a task of its own: if the request goes away meanwhile, the next one has it.
/// `ended` hears how it went.
pub(super) fn open_in(
    slot: Slot<Connection>,
    detail: Arc<TenantDetail>,
    config: Arc<PoolConfig>,
    ended: impl FnOnce(&Result<(), ConnectError>) + Send + 'static,
) -> oneshot::Receiver<Result<Held<Connection>, ConnectError>> {
    let (tx, rx) = oneshot::channel();
    tasks::detach("tenant-connect", async move {
        let slot = Arc::new(slot);
        // Whether any host was left in the middle of something.
        let mut timed_out = false;
        let opening = open(&detail, &config, slot.clone(), &mut timed_out);
        let opened = tokio::time::timeout(*config.connect_timeout + MARGIN, opening).await;
        let timed_out = timed_out || opened.is_err();
        let mut held = None;
        let outcome = match opened {
            Ok(Ok(connection)) => {
                held = Some(slot.holds(connection));
                Ok(())
            }
            Ok(Err(e)) => Err(e),
            Err(_) => Err(ConnectError::Timeout),
        };
        ended(&outcome);
        let answer = match (outcome, held) {
            (Ok(()), Some(held)) => Ok(held),
            (Err(e), _) => Err(e),
            (Ok(()), None) => Err(ConnectError::Timeout),
        };
        // What nobody takes any more is dropped here, and goes back to its pool.
        let _ = tx.send(answer);
        if timed_out {
            // The server may still be working on the attempt that was given up.
            tokio::time::sleep(LINGER).await;
        }
        drop(slot);
    });
    rx
}

/// Connects, proves, and leaves a driver behind that holds the slot. Of several hosts, the first that takes writes; of a
/// copy's, the first.
async fn open(
    detail: &TenantDetail,
    config: &PoolConfig,
    slot: Arc<Slot<Connection>>,
    timed_out: &mut bool,
) -> Result<Connection, ConnectError> {
    let p = &detail.placement;
    let hosts: Vec<_> = p.hosts.iter().collect();
    let mut last = ConnectError::Timeout;
    for (n, (host, port)) in hosts.iter().enumerate() {
        // One that is silent must leave time for the next.
        let patience = *config.connect_timeout / u32::try_from(hosts.len() - n).unwrap_or(1);
        let opening = open_at(detail, config, slot.clone(), host, *port);
        match tokio::time::timeout(patience, opening).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(e)) => {
                tracing::debug!(host, port, error = %e, "not this host");
                last = e;
            }
            Err(_) => {
                *timed_out = true;
                last = ConnectError::Timeout;
            }
        }
    }
    Err(last)
}

async fn open_at(
    detail: &TenantDetail,
    config: &PoolConfig,
    slot: Arc<Slot<Connection>>,
    host: &str,
    port: u16,
) -> Result<Connection, ConnectError> {
    let p = &detail.placement;
    match open_with(detail, config, slot.clone(), (host, port), &p.password).await {
        // It is being exchanged, and the server has the other one by now.
        Err(e) if e.failure() == Failure::Authentication => match &p.next_password {
            Some(next) => open_with(detail, config, slot, (host, port), next).await,
            None => Err(e),
        },
        other => other,
    }
}

async fn open_with(
    detail: &TenantDetail,
    config: &PoolConfig,
    slot: Arc<Slot<Connection>>,
    (host, port): (&str, u16),
    password: &SecretString,
) -> Result<Connection, ConnectError> {
    let p = &detail.placement;
    let mut pg = tokio_postgres::Config::new();
    pg.user(&p.role)
        .password(password.expose_secret())
        .dbname(&p.database)
        .application_name("gmah api")
        .options(format!(
            "-c statement_timeout={0} -c idle_in_transaction_session_timeout={0} -c lock_timeout={0} \
             -c client_min_messages=error -c search_path=public -c timezone=UTC",
            config.statement_timeout.as_millis()
        ));
    let socket = Lingering::new(Socket::connect(host, port).await?);
    let last_words = *config.statement_timeout + LINGER;
    let (client, alive) = match &p.transport {
        Transport::Plain => {
            pg.ssl_mode(SslMode::Disable);
            let (client, connection) = pg.connect_raw(socket, NoTls).await?;
            (client, drive(connection, slot, last_words))
        }
        Transport::Verified(tls) => {
            pg.ssl_mode(SslMode::Require);
            let (client, connection) = pg.connect_raw(socket, tls.for_host(host)).await?;
            (client, drive(connection, slot, last_words))
        }
    };
    let proved = proof::prove(&client, detail).await.map_err(ConnectError::Proof)?;
    modules::serves(&detail.modules, &proved.schema).map_err(ConnectError::Schema)?;
    if p.hosts.are_several() && !p.is_replica && !proved.takes_writes {
        return Err(ConnectError::ReadOnly);
    }
    // deadpool's wrapper aborts the task it is given; the real driver must live on to say goodbye.
    let client = ClientWrapper::new(client, tasks::detach("nothing", async {}));
    Ok(Connection { client, host: host.into(), port, is_altered: false, _alive: alive })
}

/// Keeps a connection going; its slot is free when the server has left.
fn drive<T>(
    connection: tokio_postgres::Connection<Lingering, T>,
    slot: Arc<Slot<Connection>>,
    last_words: Duration,
) -> oneshot::Sender<std::convert::Infallible>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (alive, gone) = oneshot::channel::<std::convert::Infallible>();
    tasks::detach("tenant-connection", async move {
        // Once nobody holds the connection, a server that owes an answer gets the time of one statement.
        let abandoned = async {
            let _ = gone.await;
            tokio::time::sleep(last_words).await;
        };
        tokio::select! {
            ended = connection => if let Err(e) = ended {
                tracing::debug!(error = %e, "connection to a tenant database ended");
            },
            () = abandoned => tracing::warn!("a tenant database's server did not let a connection go"),
        }
        drop(slot);
    });
    alive
}

/// Asks the server to cancel what a connection is doing, then lets the connection go.
pub(super) async fn cancel_and_close(conn: Connection, transport: Transport) {
    let token = conn.client.cancel_token();
    let cancelled = tokio::time::timeout(Duration::from_secs(2), async {
        let socket = Socket::connect(&conn.host, conn.port).await?;
        match &transport {
            Transport::Plain => token.cancel_query_raw(socket, NoTls).await,
            Transport::Verified(tls) => token.cancel_query_raw(socket, tls.for_host(&conn.host)).await,
        }
        .map_err(io::Error::other)
    });
    if let Ok(Err(e)) = cancelled.await {
        tracing::debug!(error = %e, "query of a client that went away was not cancelled");
    }
    drop(conn);
}
