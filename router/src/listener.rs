//! Step 1: sockets. The accept loop is ours, because the framework's own knows neither a handshake deadline, nor caps,
//! nor a refusal before the handshake; the HTTP behind it is the framework's.

mod addresses;
mod proxy_protocol;
mod stream;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use gmah_shared::tasks;
use rustls::server::Acceptor;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::certs::challenges::ACME_TLS;
use crate::certs::{Certificates, Choice};
use crate::config::Limits;
use crate::connection::{self, Http};
use crate::ctx::ConnectionInfo;
use crate::live;
use crate::metrics::{Handshake, Metrics, Refused};

use stream::{ClientStream, Digests, Socket};

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
    let Accepted { stream, client, requests, read } = socket;
    let socket = Socket::new(stream, read);
    let fd = socket.fd();
    let digests = |certificate_names| {
        let info =
            ConnectionInfo { client: client.ip().into(), requests, certificate_names, end: end.clone() };
        Digests::new(fd, client, info).ok()
    };
    // Each part is boxed by itself: in one piece, all of them would be moved several times before the first byte is read.
    match kind {
        Kind::Plain => {
            let Some(digests) = digests(None) else { return };
            let stream = Box::new(ClientStream::new(socket, digests));
            Box::pin(connection::http1(stream, client.ip(), limits, &end, http)).await;
        }
        Kind::Tls => {
            let handshake = tokio::time::timeout(*limits.handshake_timeout, Box::pin(tls(socket, gate)));
            let (stream, names) = match handshake.await {
                Ok(Ok(Some(shaken))) => shaken,
                Ok(Ok(None)) => return gate.metrics.handshake(Handshake::UnknownName),
                Ok(Err(HandshakeError::Proof)) => return gate.metrics.handshake(Handshake::Proof),
                Ok(Err(HandshakeError::Io(e))) => {
                    tracing::debug!(error = %e, "handshake failed");
                    return gate.metrics.handshake(Handshake::Failed);
                }
                Err(_) => return gate.metrics.handshake(Handshake::Timeout),
            };
            gate.metrics.handshake(Handshake::Done);
            let is_http2 = stream.get_ref().1.alpn_protocol() == Some(HTTP_2);
            let Some(digests) = digests(Some(names)) else { return };
            let stream = Box::new(ClientStream::new(stream, digests));
            if is_http2 {
                Box::pin(connection::http2(stream, limits, http)).await;
            } else {
                Box::pin(connection::http1(stream, client.ip(), limits, &end, http)).await;
            }
        }
    }
}

/// Reads the ClientHello, picks the certificate, shakes hands; answers with the names of the certificate. Nothing where
/// none is ours to give.
async fn tls(
    socket: Socket,
    gate: &Gate,
) -> Result<Option<(TlsStream<Socket>, Arc<[String]>)>, HandshakeError> {
    let mut hello = LazyConfigAcceptor::new(Acceptor::default(), socket).await?;
    let said = hello.client_hello();
    let sni = said.server_name().map(str::to_owned);
    // The certificate authority comes for a proof: it offers that protocol and no other.
    let is_proof = said.alpn().is_some_and(|mut p| p.next() == Some(ACME_TLS) && p.next().is_none());
    match gate.certificates.choose(sni.as_deref(), is_proof).await {
        Choice::Serve(served) => {
            Ok(Some((hello.into_stream(served.config.clone()).await?, served.names.clone())))
        }
        Choice::Prove(config) => {
            // The handshake is the proof; there is never HTTP after it (RFC 8737, section 3).
            let _ = hello.into_stream(config).await?.shutdown().await;
            Err(HandshakeError::Proof)
        }
        Choice::Refuse => {
            // rustls would say access_denied; the client is owed unrecognized_name (RFC 6066, section 3).
            hello.io.write_all(&UNRECOGNIZED_NAME).await?;
            hello.io.shutdown().await?;
            Ok(None)
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum HandshakeError {
    /// Of the socket, or of what was said on it.
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the certificate authority was shown a proof")]
    Proof,
}

/// Connections that are still taken after the stop: as many as the kernel may have held.
const LATE: usize = 4096;
/// Fatal alert 112 in a TLS 1.2 record, which every version reads.
const UNRECOGNIZED_NAME: [u8; 7] = [0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 0x70];
/// ALPN (RFC 9113, section 3.2).
const HTTP_2: &[u8] = b"h2";
