//! Step 1: sockets. The accept loop is ours, because the framework's own knows neither a handshake deadline, nor caps,
//! nor a refusal before the handshake; the HTTP behind it is the framework's.

mod addresses;
mod proxy_protocol;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use gmah_shared::tasks;
use pingora_core::listeners::tls::Acceptor;
use pingora_core::protocols::l4::stream::Stream as L4Stream;
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::{ALPN, GetProxyDigest as _, GetSocketDigest as _, SocketDigest, Ssl as _};
use pingora_http::ResponseHeader;
use rustls::server::Acceptor as HelloReader;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::certs::challenges::ACME_TLS;
use crate::certs::{Certificates, Choice, Served};
use crate::config::Limits;
use crate::connection::{self, Http};
use crate::ctx::ConnectionInfo;
use crate::live;
use crate::metrics::{Handshake, Metrics, Refused};

pub use addresses::{Addresses, Counted, Counts, Place, Requests};

/// Whether a listener speaks TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// HTTPS: public.
    Tls,
    /// Plain HTTP: public, redirects only.
    Plain,
}

/// What all listeners share.
pub struct Gate {
    /// What goes for connections that begin now.
    pub live: live::Handle,
    /// Certificates.
    pub certificates: Arc<Certificates>,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Connections by address.
    pub addresses: Addresses,
}

/// Accepts until told to stop, and serves each connection on this thread.
pub async fn accept<H: Http>(listener: TcpListener, kind: Kind, gate: Arc<Gate>, http: Arc<H>) {
    let stop = http.stop().clone();
    let mut late = 0;
    loop {
        let accepted = tokio::select! {
            // What had arrived before the stop is still taken: in the kernel's queue it would be reset.
            biased;
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        if stop.is_cancelled() {
            late += 1;
            if late > LATE {
                return;
            }
        }
        match accepted {
            Ok((stream, peer)) => {
                // Behind a proxy the client is known only once the proxy has named it.
                let live = gate.live.load_full();
                let is_proxy = live.proxies.speaks_proxy_protocol(peer.ip());
                let address = (!is_proxy).then_some(peer.ip());
                let mut place = match gate.addresses.enter(address, &gate.metrics) {
                    Ok(place) => place,
                    Err(reason) => {
                        gate.metrics.refused_connection(reason);
                        continue;
                    }
                };
                let (gate, http) = (gate.clone(), http.clone());
                let tracker = http.tracker().clone();
                let connection = tracker.track_future(async move {
                    let requests = place.requests();
                    let socket = Accepted { stream, client: peer, requests, read: Vec::new() };
                    let socket = match is_proxy {
                        true => behind_proxy(socket, &mut place, &gate, &live.limits).await,
                        false => Some(socket),
                    };
                    if let Some(socket) = socket {
                        serve(socket, kind, &gate, &live.limits, http).await;
                    }
                    drop(place);
                });
                drop(tasks::detach("client-connection", connection));
            }
            Err(e) => {
                // Out of file descriptors, most likely: let some connections end.
                tracing::warn!(error = %e, "accept failed");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

/// A socket, whose client it is, and what has been read of it and is not used up.
struct Accepted {
    stream: TcpStream,
    client: SocketAddr,
    requests: Requests,
    read: Vec<u8>,
}

/// Reads the header that the proxy owes us; then the connection is its client's. Without a readable one there is no
/// telling whose it is, and it ends.
async fn behind_proxy(
    mut socket: Accepted,
    place: &mut Place,
    gate: &Gate,
    limits: &Limits,
) -> Option<Accepted> {
    let header = proxy_protocol::read(&mut socket.stream, &mut socket.read);
    match tokio::time::timeout(*limits.handshake_timeout, header).await {
        Ok(Ok(Some(client))) => socket.client = client,
        // The proxy on its own behalf: a health check.
        Ok(Ok(None)) => {}
        Ok(Err(e)) => {
            tracing::debug!(proxy = %socket.client, error = %e, "no PROXY header");
            gate.metrics.refused_connection(Refused::ProxyHeader);
            return None;
        }
        Err(_) => {
            gate.metrics.refused_connection(Refused::ProxyHeader);
            return None;
        }
    }
    match place.belongs_to(socket.client.ip()) {
        Ok(()) => {
            socket.requests = place.requests();
            Some(socket)
        }
        Err(reason) => {
            gate.metrics.refused_connection(reason);
            None
        }
    }
}

async fn serve<H: Http>(socket: Accepted, kind: Kind, gate: &Gate, limits: &Limits, http: Arc<H>) {
    let client = socket.client;
    // The framework writes heads without a deadline: the kernel ends a connection whose other side takes nothing.
    let patience = Some(*limits.write_timeout);
    if socket.stream.set_nodelay(true).is_err()
        || socket2::SockRef::from(&socket.stream).set_tcp_user_timeout(patience).is_err()
    {
        return;
    }
    // However it ends, what watches over it ends with it.
    let end = CancellationToken::new();
    let _over = end.clone().drop_guard();
    // Each part is boxed by itself: in one piece, all of them would be moved several times before the first byte is read.
    match kind {
        Kind::Plain => {
            let stream = prepared(socket, None, &end);
            Box::pin(connection::http1(Box::new(stream), client.ip(), limits, &end, http)).await;
        }
        Kind::Tls => {
            let handshake =
                tokio::time::timeout(*limits.handshake_timeout, Box::pin(tls(socket, gate, &end)));
            let stream = match handshake.await {
                Ok(Ok(Some(stream))) => stream,
                Ok(Ok(None)) => return gate.metrics.handshake(Handshake::UnknownName),
                Ok(Err(HandshakeError::Proof)) => return gate.metrics.handshake(Handshake::Proof),
                Ok(Err(e)) => {
                    tracing::debug!(error = %e, "handshake failed");
                    return gate.metrics.handshake(Handshake::Failed);
                }
                Err(_) => return gate.metrics.handshake(Handshake::Timeout),
            };
            gate.metrics.handshake(Handshake::Done);
            if matches!(stream.selected_alpn_proto(), Some(ALPN::H2)) {
                Box::pin(connection::http2(Box::new(stream), limits, http)).await;
            } else {
                Box::pin(connection::http1(Box::new(stream), client.ip(), limits, &end, http)).await;
            }
        }
    }
}

type TlsStream = pingora_core::protocols::tls::TlsStream<L4Stream>;

/// Reads the ClientHello, picks the certificate, shakes hands. Nothing where no certificate is ours to give.
async fn tls(
    mut socket: Accepted,
    gate: &Gate,
    end: &CancellationToken,
) -> Result<Option<TlsStream>, HandshakeError> {
    let hello = read_hello(&mut socket).await?;
    let served = match gate.certificates.choose(hello.sni.as_deref(), hello.is_proof).await {
        Choice::Serve(served) => served,
        Choice::Prove(config) => {
            // The handshake is the proof; there is never HTTP after it (RFC 8737, section 3).
            let acceptor = Acceptor::from_server_config(config);
            let stream = prepared(socket, None, end);
            let shaken = acceptor.tls_handshake(stream).await.map_err(|e| HandshakeError::Tls(e.to_string()));
            let _ = shaken?.shutdown().await;
            return Err(HandshakeError::Proof);
        }
        Choice::Refuse => {
            // rustls would say access_denied; the client is owed unrecognized_name (RFC 6066, section 3).
            socket.stream.write_all(&UNRECOGNIZED_NAME).await?;
            socket.stream.shutdown().await?;
            return Ok(None);
        }
    };
    let stream = prepared(socket, Some(&served), end);
    let acceptor = Acceptor::from_server_config(served.config.clone());
    acceptor.tls_handshake(stream).await.map(Some).map_err(|e| HandshakeError::Tls(e.to_string()))
}

#[derive(Debug, thiserror::Error)]
enum HandshakeError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("ClientHello: {0}")]
    Hello(#[from] rustls::Error),
    #[error("{0}")]
    Tls(String),
    #[error("the certificate authority was shown a proof")]
    Proof,
}

/// What a ClientHello says.
struct Hello {
    sni: Option<String>,
    /// The certificate authority comes for a proof: it offers that protocol and no other.
    is_proof: bool,
}

/// Connections that are still taken after the stop: as many as the kernel may have held.
const LATE: usize = 4096;
/// Fatal alert 112 in a TLS 1.2 record, which every version reads.
const UNRECOGNIZED_NAME: [u8; 7] = [0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 0x70];
/// A ClientHello is at most this long: one handshake message of four records.
const MAX_HELLO: usize = 64 * 1024;

/// Reads the ClientHello for its SNI; its bytes stay, to be read again by the handshake.
async fn read_hello(socket: &mut Accepted) -> Result<Hello, HandshakeError> {
    let mut reader = HelloReader::default();
    let bytes = &mut socket.read;
    bytes.reserve(2048);
    let mut used = 0;
    loop {
        // What came with a PROXY header is looked at first.
        if used == bytes.len() && socket.stream.read_buf(bytes).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        if bytes.len() > MAX_HELLO {
            return Err(io::Error::from(io::ErrorKind::InvalidData).into());
        }
        let mut fresh = &bytes[used..];
        while !fresh.is_empty() {
            reader.read_tls(&mut fresh)?;
        }
        used = bytes.len();
        match reader.accept() {
            Ok(Some(accepted)) => {
                let hello = accepted.client_hello();
                let sni = hello.server_name().map(str::to_owned);
                let is_proof =
                    hello.alpn().is_some_and(|mut p| p.next() == Some(ACME_TLS) && p.next().is_none());
                return Ok(Hello { sni, is_proof });
            }
            Ok(None) => {}
            Err((error, mut alert)) => {
                let mut out = Vec::new();
                alert.write_all(&mut out)?;
                socket.stream.write_all(&out).await?;
                return Err(error.into());
            }
        }
    }
}

/// A stream as the framework wants it: with the client's address, what we know of the connection, and the bytes that
/// were read already.
fn prepared(socket: Accepted, served: Option<&Served>, end: &CancellationToken) -> L4Stream {
    use std::os::fd::AsRawFd as _;
    let Accepted { stream, client, requests, read } = socket;
    let digest = SocketDigest::from_raw_fd(stream.as_raw_fd());
    // Known here, so the framework need not ask the kernel.
    let _ = digest.peer_addr.set(Some(client.into()));
    let mut stream = L4Stream::from(stream);
    stream.set_socket_digest(digest);
    let info = ConnectionInfo {
        client: client.ip().into(),
        requests,
        certificate_names: served.map(|s| s.names.clone()),
        end: end.clone(),
    };
    if let Ok(head) = ResponseHeader::build(200, Some(0)) {
        stream.set_proxy_digest(ProxyDigest::new(Box::new(head), Some(Box::new(info))));
    }
    stream.rewind(&read);
    stream
}
