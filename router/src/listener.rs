//! Step 1: sockets. The accept loop is ours, because the framework's own knows neither a handshake deadline, nor caps,
//! nor a refusal before the handshake; the HTTP behind it is the framework's.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
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

use crate::certs::{Certificates, Served};
use crate::config::Limits;
use crate::connection::{self, Http};
use crate::ctx::ConnectionInfo;
use crate::metrics::{Handshake, Metrics};

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
    /// Bounds.
    pub limits: Limits,
    /// Certificates.
    pub certificates: Arc<Certificates>,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Connections by address.
    pub addresses: Addresses,
}

/// Counts connections by address, within the caps.
#[derive(Clone)]
pub struct Addresses {
    open: Arc<Mutex<Open>>,
    per_address: usize,
    total: usize,
}

#[derive(Default)]
struct Open {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// A connection's place; given back when dropped.
pub struct Place {
    addresses: Addresses,
    key: IpAddr,
    metrics: Arc<Metrics>,
}

impl Addresses {
    /// No connection yet.
    pub fn new(limits: &Limits) -> Self {
        Self {
            open: Arc::default(),
            per_address: limits.max_connections_per_address.get(),
            total: limits.max_connections.get(),
        }
    }

    /// A place for a connection from that address, unless a cap is reached.
    pub fn enter(&self, address: IpAddr, metrics: &Arc<Metrics>) -> Option<Place> {
        let key = network(address);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let here = open.by_address.get(&key).copied().unwrap_or(0);
        if open.total >= self.total || here >= self.per_address {
            let reason = if open.total >= self.total { "total" } else { "address" };
            drop(open);
            metrics.refused_connection(reason);
            return None;
        }
        open.total += 1;
        open.by_address.insert(key, here + 1);
        metrics.connections.inc();
        Some(Place { addresses: self.clone(), key, metrics: metrics.clone() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.addresses.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.total -= 1;
        if let Some(n) = open.by_address.get_mut(&self.key) {
            *n -= 1;
            if *n == 0 {
                open.by_address.remove(&self.key);
            }
        }
        self.metrics.connections.dec();
    }
}

/// One client has a whole IPv6 network of 64 bits; an IPv4 address mapped into IPv6 is that address.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) & (u128::MAX << 64)).into()),
        v4 => v4,
    }
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
            Ok((stream, client)) => {
                let Some(place) = gate.addresses.enter(client.ip(), &gate.metrics) else {
                    continue;
                };
                let (gate, http) = (gate.clone(), http.clone());
                let tracker = http.tracker().clone();
                let connection = tracker.track_future(async move {
                    serve(stream, client, kind, &gate, http).await;
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

async fn serve<H: Http>(stream: TcpStream, client: SocketAddr, kind: Kind, gate: &Gate, http: Arc<H>) {
    // The framework writes heads without a deadline: the kernel ends a connection whose other side takes nothing.
    let patience = Some(*gate.limits.write_timeout);
    if stream.set_nodelay(true).is_err()
        || socket2::SockRef::from(&stream).set_tcp_user_timeout(patience).is_err()
    {
        return;
    }
    match kind {
        Kind::Plain => {
            let stream = prepared(stream, client, None, &[]);
            connection::http1(Box::new(stream), client.ip(), &gate.limits, http).await;
        }
        Kind::Tls => {
            let handshake = tokio::time::timeout(*gate.limits.handshake_timeout, tls(stream, client, gate));
            let stream = match handshake.await {
                Ok(Ok(Some(stream))) => stream,
                Ok(Ok(None)) => return gate.metrics.handshake(Handshake::UnknownName),
                Ok(Err(e)) => {
                    tracing::debug!(error = %e, "handshake failed");
                    return gate.metrics.handshake(Handshake::Failed);
                }
                Err(_) => return gate.metrics.handshake(Handshake::Timeout),
            };
            gate.metrics.handshake(Handshake::Done);
            if matches!(stream.selected_alpn_proto(), Some(ALPN::H2)) {
                connection::http2(Box::new(stream), &gate.limits, http).await;
            } else {
                connection::http1(Box::new(stream), client.ip(), &gate.limits, http).await;
            }
        }
    }
}

type TlsStream = pingora_core::protocols::tls::TlsStream<L4Stream>;

/// Reads the ClientHello, picks the certificate, shakes hands. Nothing where no certificate is ours to give.
async fn tls(
    mut stream: TcpStream,
    client: SocketAddr,
    gate: &Gate,
) -> Result<Option<TlsStream>, HandshakeError> {
    let (hello, sni) = read_hello(&mut stream).await?;
    let Some(served) = gate.certificates.for_sni(sni.as_deref()) else {
        // rustls would say access_denied; the client is owed unrecognized_name (RFC 6066, section 3).
        stream.write_all(&UNRECOGNIZED_NAME).await?;
        stream.shutdown().await?;
        return Ok(None);
    };
    let stream = prepared(stream, client, Some(&served), &hello);
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
}

/// Connections that are still taken after the stop: as many as the kernel may have held.
const LATE: usize = 4096;
/// Fatal alert 112 in a TLS 1.2 record, which every version reads.
const UNRECOGNIZED_NAME: [u8; 7] = [0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 0x70];
/// A ClientHello is at most this long: one handshake message of four records.
const MAX_HELLO: usize = 64 * 1024;

/// The bytes of the ClientHello, to be read again by the handshake, and its SNI.
async fn read_hello(stream: &mut TcpStream) -> Result<(Vec<u8>, Option<String>), HandshakeError> {
    let mut reader = HelloReader::default();
    let mut bytes = Vec::with_capacity(2048);
    loop {
        let before = bytes.len();
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        if bytes.len() > MAX_HELLO {
            return Err(io::Error::from(io::ErrorKind::InvalidData).into());
        }
        let mut fresh = &bytes[before..];
        while !fresh.is_empty() {
            reader.read_tls(&mut fresh)?;
        }
        match reader.accept() {
            Ok(Some(accepted)) => {
                let sni = accepted.client_hello().server_name().map(str::to_owned);
                return Ok((bytes, sni));
            }
            Ok(None) => {}
            Err((error, mut alert)) => {
                let mut out = Vec::new();
                alert.write_all(&mut out)?;
                stream.write_all(&out).await?;
                return Err(error.into());
            }
        }
    }
}

/// A stream as the framework wants it: with the client's address, what we know of the connection, and the bytes that
/// were read already.
fn prepared(stream: TcpStream, client: SocketAddr, served: Option<&Served>, read: &[u8]) -> L4Stream {
    use std::os::fd::AsRawFd as _;
    let digest = SocketDigest::from_raw_fd(stream.as_raw_fd());
    // Known here, so the framework need not ask the kernel.
    let _ = digest.peer_addr.set(Some(client.into()));
    let mut stream = L4Stream::from(stream);
    stream.set_socket_digest(digest);
    let info = ConnectionInfo { client: client.ip(), certificate_names: served.map(|s| s.names.clone()) };
    if let Ok(head) = ResponseHeader::build(200, Some(0)) {
        stream.set_proxy_digest(ProxyDigest::new(Box::new(head), Some(Box::new(info))));
    }
    stream.rewind(read);
    stream
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t22_caps_count_and_give_back() {
        let limits = Limits {
            max_connections_per_address: gmah_shared::config::Within::new(2),
            max_connections: gmah_shared::config::Within::new(3),
            ..Limits::default()
        };
        let metrics = Metrics::new(1).expect("metrics");
        let addresses = Addresses::new(&limits);
        let enter = |a: &str| addresses.enter(a.parse().expect("address"), &metrics);
        let first = enter("2001:db8::1").expect("first");
        let _second = enter("2001:db8::ffff").expect("second of the same network");
        assert!(enter("2001:db8::2").is_none());
        let _third = enter("127.0.0.1").expect("another address");
        assert!(enter("127.0.0.2").is_none(), "in all");
        drop(first);
        assert!(enter("::ffff:127.0.0.1").is_some());
        assert_eq!(metrics.connections.get(), 2);
    }
}
