//! Asks the demo organisations over HTTPS until they answer: only then is everything ready.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use gmah_shared::probe::Probe;
use tokio::time::Instant;

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
    let probe = Probe::new(https.to_string(), Some(ca)).map_err(anyhow::Error::msg)?;
    let deadline = Instant::now() + patience;
    for host in hosts {
        loop {
            match probe.status(host).await {
                Ok(status) if status != 503 => break,
                Err(e) if is_ordered && is_of_others(&e) => break,
                Ok(_) if Instant::now() > deadline => {
                    tracing::warn!(host, "answers 503");
                    break;
                }
                Err(e) if Instant::now() > deadline => return Err(e).with_context(|| host.clone()),
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
    Ok(())
}

fn is_of_others(error: &std::io::Error) -> bool {
    let tls = error.get_ref();
    let unknown = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
    tls.and_then(|e| e.downcast_ref::<rustls::Error>()).is_some_and(|e| *e == unknown)
}
