//! One connection to a tenant's database: made, proved, cleaned between uses, and closed so that the budget knows.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use deadpool::managed::{self, Metrics, RecycleError, RecycleResult};
use deadpool_postgres::ClientWrapper;
use gmah_shared::catalog::TenantDetail;
use gmah_shared::tasks;
use secrecy::ExposeSecret as _;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;
use tokio_postgres::NoTls;

use super::budget::{Budget, Closing, GivesUp, Slot};
use super::proof::{self, ProofError};
use crate::config::Pool as PoolConfig;

/// Why there is no new connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No slot in the server's budget within the deadline.
    #[error("the server's budget is spent")]
    Budget,
    /// The socket.
    #[error("cannot reach the server")]
    Io(#[from] io::Error),
    /// Start-up or authentication.
    #[error("the server refused the connection")]
    Postgres(#[from] tokio_postgres::Error),
    /// It is not the database that it should be.
    #[error("wrong database")]
    Proof(#[source] ProofError),
    /// Nothing within the deadline.
    #[error("no answer in time")]
    Timeout,
}

/// Makes and cleans the connections of one tenant's pool.
pub struct Manager {
    pub(super) detail: TenantDetail,
    pub(super) budget: Arc<Budget>,
    pub(super) config: Arc<PoolConfig>,
    pub(super) owner: Weak<dyn GivesUp>,
}

/// A proved connection. Dropping it says goodbye to the server; its slot is free once the server has left too.
pub struct Connection {
    pub(super) client: ClientWrapper,
    pub(super) closing: Closing,
    _alive: oneshot::Sender<std::convert::Infallible>,
}

/// `ROLLBACK` first: the rest would fail in a broken transaction and hide in an open one. Prepared statements stay,
/// they belong to the connection and not to a session's state (`DISCARD ALL` would throw them away).
const CLEAN: &str = "rollback; set session authorization default; reset all; close all; unlisten *; \
                     select pg_advisory_unlock_all(); discard temp; discard sequences";

impl managed::Manager for Manager {
    type Type = Connection;
    type Error = ConnectError;

    async fn create(&self) -> Result<Connection, ConnectError> {
        let patience = *self.config.wait_timeout;
        let slot = self
            .budget
            .acquire(self.detail.tenant.id, self.owner.clone(), patience)
            .await
            .ok_or(ConnectError::Budget)?;
        // On its own: if the request goes away meanwhile, the connection is closed in good order and its slot counts
        // until then.
        let (tx, rx) = oneshot::channel();
        let (detail, config) = (self.detail.clone(), self.config.clone());
        tasks::detach("tenant-connect", async move {
            let slot = Arc::new(slot);
            let made =
                tokio::time::timeout(*config.connect_timeout, open(&detail, &config, slot.clone())).await;
            let timed_out = made.is_err();
            let _ = tx.send(made.unwrap_or(Err(ConnectError::Timeout)));
            if timed_out {
                // The server may still be working on the attempt that was given up.
                tokio::time::sleep(LINGER).await;
            }
            drop(slot);
        });
        rx.await.unwrap_or(Err(ConnectError::Timeout))
    }

    async fn recycle(&self, conn: &mut Connection, metrics: &Metrics) -> RecycleResult<ConnectError> {
        if conn.client.is_closed() || metrics.age() > *self.config.max_lifetime {
            return Err(RecycleError::message("closed or too old"));
        }
        conn.client.simple_query(CLEAN).await.map_err(|e| RecycleError::Backend(e.into()))?;
        Ok(())
    }
}

/// Connects, proves, and leaves a driver behind that holds the slot.
async fn open(
    detail: &TenantDetail,
    config: &PoolConfig,
    slot: Arc<Slot>,
) -> Result<Connection, ConnectError> {
    let p = &detail.placement;
    let mut pg = tokio_postgres::Config::new();
    pg.user(&p.role)
        .password(p.password.expose_secret())
        .dbname(&p.database)
        .application_name("gmah api")
        .options(format!(
            "-c statement_timeout={0} -c idle_in_transaction_session_timeout={0} -c lock_timeout={0} \
             -c client_min_messages=error -c search_path=public -c timezone=UTC",
            config.statement_timeout.as_millis()
        ));
    let socket = Socket::connect(&p.host, p.port).await?;
    let (client, connection) = pg.connect_raw(Lingering::new(socket), NoTls).await?;
    let (alive, gone) = oneshot::channel::<std::convert::Infallible>();
    let last_words = *config.statement_timeout + LINGER;
    let closing = slot.closing();
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
    proof::prove(&client, detail).await.map_err(ConnectError::Proof)?;
    // deadpool's wrapper aborts the task it is given; the real driver must live on to say goodbye.
    let client = ClientWrapper::new(client, tasks::detach("nothing", async {}));
    Ok(Connection { client, closing, _alive: alive })
}

/// Asks the server to cancel what a connection is doing, then lets the connection go.
pub(super) async fn cancel_and_close(conn: Connection, host: String, port: u16) {
    let token = conn.client.cancel_token();
    let cancelled = tokio::time::timeout(Duration::from_secs(2), async {
        let socket = Socket::connect(&host, port).await?;
        token.cancel_query_raw(socket, NoTls).await.map_err(io::Error::other)
    });
    if let Ok(Err(e)) = cancelled.await {
        tracing::debug!(error = %e, "query of a client that went away was not cancelled");
    }
    drop(conn);
}

/// How long a server may leave our bytes unacknowledged.
const SILENCE: Duration = Duration::from_secs(15);

/// TCP or Unix, as the host says.
pub(super) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    pub(super) async fn connect(host: &str, port: u16) -> io::Result<Self> {
        if host.starts_with('/') {
            return Ok(Self::Unix(UnixStream::connect(format!("{host}/.s.PGSQL.{port}")).await?));
        }
        let tcp = TcpStream::connect((host, port)).await?;
        tcp.set_nodelay(true)?;
        // A server that is gone without a word is noticed, busy or idle.
        let socket = socket2::SockRef::from(&tcp);
        socket.set_tcp_user_timeout(Some(SILENCE))?;
        socket
            .set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(SILENCE).with_interval(SILENCE / 3))?;
        Ok(Self::Tcp(tcp))
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_read(cx, buf),
            Self::Unix(s) => Pin::new(s).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_write(cx, buf),
            Self::Unix(s) => Pin::new(s).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_flush(cx),
            Self::Unix(s) => Pin::new(s).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_shutdown(cx),
            Self::Unix(s) => Pin::new(s).poll_shutdown(cx),
        }
    }
}

/// A socket whose shutdown is over only when the other side has closed as well: the backend has left
/// `pg_stat_activity` by then, so a slot that is given back is really free.
struct Lingering {
    socket: Socket,
    deadline: Option<Pin<Box<tokio::time::Sleep>>>,
}

/// How long a backend may take to leave.
const LINGER: Duration = Duration::from_secs(5);

impl Lingering {
    fn new(socket: Socket) -> Self {
        Self { socket, deadline: None }
    }
}

impl AsyncRead for Lingering {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_read(cx, buf)
    }
}

impl AsyncWrite for Lingering {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.deadline.is_none() {
            ready!(Pin::new(&mut this.socket).poll_shutdown(cx))?;
            this.deadline = Some(Box::pin(tokio::time::sleep(LINGER)));
        }
        let mut scratch = [0u8; 512];
        loop {
            let mut buf = ReadBuf::new(&mut scratch);
            match Pin::new(&mut this.socket).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => break,
            }
        }
        match this.deadline.as_mut() {
            Some(deadline) => {
                ready!(std::future::Future::poll(deadline.as_mut(), cx));
                Poll::Ready(Ok(()))
            }
            None => Poll::Pending,
        }
    }
}
