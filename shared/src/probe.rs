//! Asks a router for an organisation as a browser would, wherever its name leads by now.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// For one question and the beginning of its answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// A router, and whose certificates it is to show.
pub struct Probe {
    router: String,
    tls: TlsConnector,
}

impl Probe {
    /// Of a router at `host:port`; `ca_file` as in [`crate::https::connector`].
    ///
    /// # Errors
    /// When the file cannot be read, with its path.
    pub fn new(router: String, ca_file: Option<&Path>) -> Result<Self, String> {
        Ok(Self { router, tls: TlsConnector::from(Arc::new(crate::https::client_config(ca_file)?)) })
    }

    /// What `GET /api/v1/tenant` is answered at that host.
    ///
    /// # Errors
    /// When nothing is, or no certificate for the host is shown.
    pub async fn status(&self, host: &str) -> io::Result<u16> {
        tokio::time::timeout(PATIENCE, self.ask(host)).await.map_err(|_| io::ErrorKind::TimedOut)?
    }

    async fn ask(&self, host: &str) -> io::Result<u16> {
        let none = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let tcp = TcpStream::connect(&self.router).await?;
        let name = ServerName::try_from(host.to_owned()).map_err(|_| none("no name of a host"))?;
        let mut tls = self.tls.connect(name, tcp).await?;
        let request = format!("GET /api/v1/tenant HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        tls.write_all(request.as_bytes()).await?;
        let mut answer = [0u8; 12];
        tls.read_exact(&mut answer).await?;
        let status =
            answer.strip_prefix(b"HTTP/1.1 ").and_then(|s| std::str::from_utf8(s).ok()?.parse().ok());
        status.ok_or_else(|| none("no answer in HTTP/1.1"))
    }
}
