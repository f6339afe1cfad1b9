//! Clients: HTTP/1.1 by hand, so that a test can send any bytes; HTTP/2 through its library.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const PATIENCE: Duration = Duration::from_secs(10);

/// One response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// The slug that `/api/v1/tenant` answers with.
    pub(crate) fn slug(&self) -> (u16, String) {
        let slug = if self.status == 200 {
            self.json()["slug"].as_str().unwrap_or("").to_owned()
        } else {
            String::new()
        };
        (self.status, slug)
    }

    pub(crate) fn code(&self) -> String {
        self.json()["code"].as_str().unwrap_or("").to_owned()
    }
}

/// Talks to a router over TLS.
#[derive(Clone)]
pub(crate) struct Client {
    https: SocketAddr,
    tls: Arc<ClientConfig>,
}

impl Client {
    pub(crate) fn new(https: SocketAddr, tls: ClientConfig) -> Self {
        Self { https, tls: Arc::new(tls) }
    }

    /// The same trust, another router.
    pub(crate) fn at(&self, https: SocketAddr) -> Self {
        Self { https, tls: self.tls.clone() }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.https
    }

    /// The same router, another trust.
    pub(crate) fn trusting(&self, tls: ClientConfig) -> Self {
        Self { https: self.https, tls: Arc::new(tls) }
    }

    pub(crate) async fn connect(&self, sni: &str) -> TlsStream<TcpStream> {
        self.try_connect(sni, &[]).await.expect("handshake")
    }

    pub(crate) async fn try_connect(
        &self,
        sni: &str,
        alpn: &[&[u8]],
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut config = (*self.tls).clone();
        config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
        let tcp = TcpStream::connect(self.https).await?;
        tcp.set_nodelay(true)?;
        Self::shake(config, tcp, sni).await
    }

    /// TLS over a connection that something was sent on already.
    pub(crate) async fn over(&self, tcp: TcpStream, sni: &str) -> std::io::Result<TlsStream<TcpStream>> {
        Self::shake((*self.tls).clone(), tcp, sni).await
    }

    async fn shake(config: ClientConfig, tcp: TcpStream, sni: &str) -> std::io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(sni.to_owned()).expect("SNI");
        let shaken =
            tokio::time::timeout(PATIENCE, TlsConnector::from(Arc::new(config)).connect(name, tcp)).await;
        shaken.expect("handshake in time")
    }

    pub(crate) async fn get(&self, host: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.send("GET", host, path, headers, None).await
    }

    /// One request on a connection of its own.
    pub(crate) async fn send(
        &self,
        method: &str,
        host: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&str>,
    ) -> Answer {
        let mut stream = self.connect(host).await;
        exchange(&mut stream, &request(method, host, path, headers, body)).await
    }

    /// Any bytes on a fresh connection; everything that comes back until it closes or falls silent.
    pub(crate) async fn raw(&self, sni: &str, bytes: &[u8]) -> Vec<u8> {
        let mut stream = self.connect(sni).await;
        talk(&mut stream, bytes).await
    }

    /// An HTTP/2 connection.
    pub(crate) async fn http2(&self, sni: &str) -> Http2 {
        let stream = self.try_connect(sni, &[b"h2"]).await.expect("handshake");
        let (sender, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
        drop(gmah_shared::tasks::detach("http2-client", connection));
        Http2(sender)
    }
}

/// What this process has sent: requests, and whatever else was put on a connection.
static SENT: AtomicU64 = AtomicU64::new(0);

pub(crate) fn count() {
    SENT.fetch_add(1, Ordering::Relaxed);
}

/// How much that was.
pub(crate) fn sent() -> u64 {
    SENT.load(Ordering::Relaxed)
}

/// An HTTP/2 connection, to be shared by many requests.
#[derive(Clone)]
pub(crate) struct Http2(h2::client::SendRequest<Bytes>);

impl Http2 {
    /// One request; the error where the stream or connection was refused.
    pub(crate) async fn send(
        &self,
        request: http::Request<()>,
        body: &'static str,
    ) -> Result<Answer, h2::Error> {
        count();
        let mut sender = self.0.clone().ready().await?;
        let (response, mut stream) = sender.send_request(request, body.is_empty())?;
        if !body.is_empty() {
            stream.send_data(Bytes::from_static(body.as_bytes()), true)?;
        }
        let response = tokio::time::timeout(PATIENCE, response).await.expect("answer in time")?;
        let (parts, mut incoming) = response.into_parts();
        let mut body = Vec::new();
        while let Some(piece) = incoming.data().await {
            let piece = piece?;
            let _ = incoming.flow_control().release_capacity(piece.len());
            body.extend(piece);
        }
        let headers =
            parts.headers.iter().map(|(n, v)| (n.to_string(), String::from_utf8_lossy(v.as_bytes()).into()));
        Ok(Answer {
            status: parts.status.as_u16(),
            headers: headers.collect(),
            body: String::from_utf8_lossy(&body).into_owned(),
        })
    }

    /// A request whose body is not finished.
    pub(crate) async fn begin(
        &self,
        request: http::Request<()>,
    ) -> (h2::client::ResponseFuture, h2::SendStream<Bytes>) {
        count();
        let mut sender = self.0.clone().ready().await.expect("ready");
        sender.send_request(request, false).expect("sent")
    }

    pub(crate) async fn get(&self, authority: &str, path: &str) -> Result<Answer, h2::Error> {
        let uri = format!("https://{authority}{path}");
        self.send(http::Request::get(uri).body(()).expect("request"), "").await
    }
}

/// A request as bytes, with what HTTP/1.1 asks for.
pub(crate) fn request(
    method: &str,
    host: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<&str>,
) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    if let Some(body) = body {
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type")) {
            text.push_str("Content-Type: application/json\r\n");
        }
        text.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    text.push_str("\r\n");
    text.push_str(body.unwrap_or(""));
    text.into_bytes()
}

/// GET without TLS.
pub(crate) async fn plain(address: SocketAddr, path: &str) -> Answer {
    let mut stream = TcpStream::connect(address).await.expect("connect");
    exchange(&mut stream, &request("GET", "localhost", path, &[], None)).await
}

/// The same, or nothing where nobody listens.
pub(crate) async fn try_plain(address: SocketAddr, path: &str) -> Option<Answer> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    Some(exchange(&mut stream, &request("GET", "localhost", path, &[], None)).await)
}

/// Sends a request and reads exactly one response.
pub(crate) async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, request: &[u8]) -> Answer {
    count();
    stream.write_all(request).await.expect("sent");
    let mut buf = Vec::new();
    let read = async {
        loop {
            if let Some(answer) = parse(&buf) {
                return answer;
            }
            let n = stream.read_buf(&mut buf).await.expect("read");
            assert!(n > 0, "closed after {:?}", String::from_utf8_lossy(&buf));
        }
    };
    tokio::time::timeout(PATIENCE, read).await.expect("answer in time")
}

/// One response, or nothing where the other side goes away before.
pub(crate) async fn try_read<S: AsyncRead + Unpin>(stream: &mut S) -> Option<Answer> {
    let mut buf = Vec::new();
    loop {
        if let Some(answer) = parse(&buf) {
            return Some(answer);
        }
        if stream.read_buf(&mut buf).await.ok()? == 0 {
            return None;
        }
    }
}

/// Sends bytes; everything that comes back until the other side closes, or nothing comes for a while.
pub(crate) async fn talk<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8]) -> Vec<u8> {
    count();
    // The other side may close while we are still sending.
    let _ = stream.write_all(bytes).await;
    let mut out = Vec::new();
    loop {
        // Once a whole response is there, only what would be one too many is waited for.
        let patience = if parse(&out).is_some() { 120 } else { 2500 };
        match tokio::time::timeout(Duration::from_millis(patience), stream.read_buf(&mut out)).await {
            Ok(Ok(n)) if n > 0 => {}
            _ => break,
        }
    }
    out
}

/// Whether the other side has closed the connection, or does so soon.
pub(crate) async fn is_closed<S: AsyncRead + Unpin>(stream: &mut S) -> bool {
    let mut rest = Vec::new();
    tokio::time::timeout(Duration::from_secs(3), stream.read_to_end(&mut rest)).await.is_ok()
}

/// Status of the first response in `raw`.
pub(crate) fn status(raw: &[u8]) -> Option<u16> {
    let text = String::from_utf8_lossy(raw);
    text.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()
}

/// How many responses there are in `raw`.
pub(crate) fn responses(raw: &[u8]) -> usize {
    String::from_utf8_lossy(raw).matches("HTTP/1.1 ").count()
}

fn parse(buf: &[u8]) -> Option<Answer> {
    let end = memchr::memmem::find(buf, b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&buf[..end]);
    let rest = &buf[end + 4..];
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers: Vec<(String, String)> = lines
        .filter_map(|l| l.split_once(':'))
        .map(|(n, v)| (n.to_lowercase(), v.trim().to_owned()))
        .collect();
    let find = |name: &str| headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
    let body = if find("transfer-encoding").is_some() {
        unchunk(rest)?
    } else {
        let length: usize = find("content-length").map_or(0, |v| v.parse().expect("length"));
        rest.get(..length)?.to_vec()
    };
    Some(Answer { status, headers, body: String::from_utf8_lossy(&body).into_owned() })
}

fn unchunk(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = memchr::memmem::find(rest, b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).ok()?, 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        let after = &rest[end + 2..];
        body.extend(after.get(..size)?);
        rest = after.get(size + 2..)?;
    }
}
