//! A backend that records every request as bytes, and answers what the test says.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use gmah_shared::tasks::Tasks;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// Decides the answer to a request, as bytes; none closes the connection without a word.
pub(crate) type Script = Box<dyn Fn(&Recorded) -> Option<Vec<u8>> + Send + Sync>;

/// A request as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Recorded {
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Recorded {
    /// All values of a field, by its name in lower case.
    pub(crate) fn all(&self, name: &str) -> Vec<String> {
        self.fields().into_iter().filter(|(n, _)| n == name).map(|(_, v)| v).collect()
    }

    pub(crate) fn fields(&self) -> Vec<(String, String)> {
        let lines = self.head.split("\r\n").skip(1).filter_map(|l| l.split_once(':'));
        lines.map(|(n, v)| (n.to_lowercase(), v.trim().to_owned())).collect()
    }

    pub(crate) fn target(&self) -> String {
        self.head.split(' ').nth(1).unwrap_or("").to_owned()
    }
}

pub(crate) struct Origin {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Recorded>>>,
    connections: Tasks,
    _tasks: Tasks,
}

impl Origin {
    pub(crate) async fn start(script: Script) -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), script).await
    }

    /// At an address that another one may have had.
    pub(crate) async fn start_at(address: SocketAddr, script: Script) -> Self {
        Self::serve(address, script, None).await
    }

    /// Over TLS.
    pub(crate) async fn tls(config: rustls::ServerConfig, script: Script) -> Self {
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        Self::serve(SocketAddr::from(([127, 0, 0, 1], 0)), script, Some(acceptor)).await
    }

    async fn serve(address: SocketAddr, script: Script, tls: Option<tokio_rustls::TlsAcceptor>) -> Self {
        let listener = bind(address);
        let address = listener.local_addr().expect("address");
        let seen: Arc<Mutex<Vec<Recorded>>> = Arc::default();
        let (tasks, connections, script) = (Tasks::new(), Tasks::new(), Arc::new(script));
        let (recorded, spawner) = (seen.clone(), connections.clone());
        tasks.spawn_forever("origin", async move {
            loop {
                let (stream, _) = listener.accept().await.expect("accept");
                let (recorded, script) = (recorded.clone(), script.clone());
                match tls.clone() {
                    None => spawner.spawn("origin-connection", serve(stream, recorded, script)),
                    Some(tls) => spawner.spawn("origin-connection", async move {
                        if let Ok(stream) = tls.accept(stream).await {
                            serve(stream, recorded, script).await;
                        }
                    }),
                }
            }
        });
        Self { address, seen, connections, _tasks: tasks }
    }

    /// Gone at once, with every connection, as if it had been killed; answers what it had recorded.
    pub(crate) async fn kill(self) -> Vec<Recorded> {
        let seen = self.take();
        self._tasks.stop(std::time::Duration::ZERO).await;
        self.connections.stop(std::time::Duration::ZERO).await;
        [seen, self.take()].concat()
    }

    /// Answers 200 with an empty JSON object.
    pub(crate) async fn ok() -> Self {
        Self::start(Box::new(|_| Some(answer(200, "", "{}")))).await
    }

    /// What has been recorded since the last call.
    pub(crate) fn take(&self) -> Vec<Recorded> {
        std::mem::take(&mut self.seen.lock().expect("lock"))
    }
}

/// A response as bytes; `fields` end in CR LF each.
pub(crate) fn answer(status: u16, fields: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n{fields}\r\n{body}", body.len()).into_bytes()
}

fn bind(address: SocketAddr) -> TcpListener {
    let socket = tokio::net::TcpSocket::new_v4().expect("socket");
    socket.set_reuseaddr(true).expect("option");
    socket.bind(address).expect("bind");
    socket.listen(1024).expect("listen")
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    seen: Arc<Mutex<Vec<Recorded>>>,
    script: Arc<Script>,
) {
    let mut buf = Vec::new();
    while let Some(request) = next(&mut stream, &mut buf).await {
        seen.lock().expect("lock").push(request.clone());
        let Some(bytes) = script(&request) else { return };
        if stream.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

async fn next<S: AsyncRead + Unpin>(stream: &mut S, buf: &mut Vec<u8>) -> Option<Recorded> {
    loop {
        if let Some((request, length)) = parse(buf) {
            buf.drain(..length);
            return Some(request);
        }
        if stream.read_buf(buf).await.ok()? == 0 {
            return None;
        }
    }
}

fn parse(buf: &[u8]) -> Option<(Recorded, usize)> {
    let end = buf.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&buf[..end]).into_owned();
    let mut request = Recorded { head, body: Vec::new() };
    let length = if request.all("transfer-encoding").is_empty() {
        let length = request.all("content-length").first().and_then(|v| v.parse().ok()).unwrap_or(0);
        end + length
    } else {
        end + buf[end..].windows(5).position(|w| w == b"0\r\n\r\n")? + 5
    };
    request.body = buf.get(end..length)?.to_vec();
    Some((request, length))
}
