//! Asks the demo organisations over HTTPS until they answer: only then is everything ready.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

/// Returns when every host answers something other than 503, which an organisation that was suspended or whose
/// database is away on purpose may do for good; one that never answers at all is an error. Where certificates are ordered
/// elsewhere (`is_ordered`), one that our own authority did not sign is an answer too.
pub(super) async fn until_served(
    https: SocketAddr,
    ca: &Path,
    is_ordered: bool,
    hosts: &[String],
    patience: Duration,
) -> anyhow::Result<()> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).context("certs/ca.pem")?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    let deadline = Instant::now() + patience;
    for host in hosts {
        loop {
            let asked = tokio::time::timeout(Duration::from_secs(5), ask(&connector, https, host)).await;
            match asked {
                Ok(Ok(status)) if status != 503 => break,
                Ok(Err(e)) if is_ordered && is_of_others(&e) => break,
                Ok(Ok(_)) if Instant::now() > deadline => {
                    tracing::warn!(host, "answers 503");
                    break;
                }
                Ok(Err(e)) if Instant::now() > deadline => return Err(e.context(host.clone())),
                Err(_) if Instant::now() > deadline => bail!("{host} does not answer"),
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
    Ok(())
}

fn is_of_others(error: &anyhow::Error) -> bool {
    let tls = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    let unknown = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
    tls.and_then(|e| e.downcast_ref::<rustls::Error>()).is_some_and(|e| *e == unknown)
}

async fn ask(connector: &TlsConnector, https: SocketAddr, host: &str) -> anyhow::Result<u16> {
    let tcp = TcpStream::connect(https).await?;
    let mut tls = connector.connect(ServerName::try_from(host.to_owned())?, tcp).await?;
    let request = format!("GET /api/v1/tenant HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    tls.write_all(request.as_bytes()).await?;
    let mut answer = [0u8; 12];
    tls.read_exact(&mut answer).await?;
    let text = std::str::from_utf8(&answer)?;
    text.strip_prefix("HTTP/1.1 ").and_then(|s| s.parse().ok()).context("no HTTP/1.1 answer")
}
