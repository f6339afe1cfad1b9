//! Step 2: the certificate, from files, exchanged while running.
//!
//! The files are looked at every `router.certificate_poll`. What does not parse, or a key that is not the
//! certificate's, leaves the old pair in place and says so; so a half-written file costs nothing. Session tickets
//! outlive an exchange.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use gmah_shared::hostname::Hostname;
use rustls::ServerConfig;
use rustls::crypto::ring as provider;
use rustls::server::ProducesTickets;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::metrics::Metrics;

/// The certificate of the base domain.
pub struct Certificates {
    files: Files,
    tickets: Arc<dyn ProducesTickets>,
    current: ArcSwap<Served>,
    metrics: Arc<Metrics>,
}

/// What a connection is served with.
pub struct Served {
    /// For the handshake.
    pub config: Arc<ServerConfig>,
    /// DNS names of the certificate, in lower case.
    pub names: Arc<[String]>,
    /// When the files were last changed, as they were read.
    stamp: Stamp,
}

#[derive(Debug, Clone)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

type Stamp = [Option<(SystemTime, u64)>; 2];

/// Why a pair of files is not served.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read, or is no PEM of the right kind.
    #[error("{}: {message}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// The pair cannot be used.
    #[error("certificate and key: {0}")]
    Pair(#[from] rustls::Error),
    /// The certificate has no DNS name.
    #[error("the certificate has no DNS name")]
    NoNames,
}

impl Certificates {
    /// Reads both files.
    ///
    /// # Errors
    /// [`CertificateError`]; at the start there is no old pair to go on with.
    pub fn load(certificate: &Path, key: &Path, metrics: Arc<Metrics>) -> Result<Self, CertificateError> {
        let files = Files { certificate: certificate.to_owned(), key: key.to_owned() };
        let tickets = provider::Ticketer::new()?;
        let served = files.read(&tickets)?;
        Ok(Self { files, tickets, current: ArcSwap::from_pointee(served), metrics })
    }

    /// What to serve for an SNI, if the certificate covers it. A connection without SNI gets nothing.
    pub fn for_sni(&self, sni: Option<&str>) -> Option<Arc<Served>> {
        let host = Hostname::parse(sni?).ok()?;
        let served = self.current.load();
        served.names.iter().any(|n| host.is_covered_by(n)).then(|| served.clone())
    }

    /// Looks at the files for as long as the program runs.
    pub async fn watch(self: Arc<Self>, every: Duration) -> std::convert::Infallible {
        let mut refused: Option<Stamp> = None;
        loop {
            tokio::time::sleep(every).await;
            let stamp = self.files.stamp();
            if stamp == self.current.load().stamp || refused == Some(stamp) {
                continue;
            }
            match self.files.read(&self.tickets) {
                Ok(served) => {
                    tracing::info!(names = ?served.names, "certificate exchanged");
                    self.current.store(Arc::new(served));
                    self.metrics.certificate(true);
                    refused = None;
                }
                Err(e) => {
                    tracing::error!(error = %e, "changed certificate refused; the old one is served on");
                    self.metrics.certificate(false);
                    // Said once for each change.
                    refused = Some(stamp);
                }
            }
        }
    }
}

impl Files {
    fn stamp(&self) -> Stamp {
        [&self.certificate, &self.key].map(|path| {
            let meta = std::fs::metadata(path).ok()?;
            Some((meta.modified().ok()?, meta.len()))
        })
    }

    fn read(&self, tickets: &Arc<dyn ProducesTickets>) -> Result<Served, CertificateError> {
        // Before the contents: a change in between is seen by the next look.
        let stamp = self.stamp();
        let fault = |path: &Path, message: String| CertificateError::File { path: path.to_owned(), message };
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&self.certificate)
            .and_then(Iterator::collect)
            .map_err(|e| fault(&self.certificate, e.to_string()))?;
        let leaf = chain.first().ok_or_else(|| fault(&self.certificate, "no certificate in it".into()))?;
        let names = dns_names(leaf).map_err(|message| fault(&self.certificate, message))?;
        if names.is_empty() {
            return Err(CertificateError::NoNames);
        }
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|e| fault(&self.key, e.to_string()))?;
        let pair = CertifiedKey::new(chain, provider::sign::any_supported_type(&key)?);
        pair.keys_match()?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(provider::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(pair)));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.ticketer = tickets.clone();
        config.send_tls13_tickets = 1;
        // 0-RTT data could be replayed (RFC 8470), so none is taken.
        config.max_early_data_size = 0;
        Ok(Served { config: Arc::new(config), names: names.into(), stamp })
    }
}

/// The DNS names of a certificate's subjectAltName (RFC 5280, section 4.2.1.6); the common name is no host name.
fn dns_names(leaf: &CertificateDer<'_>) -> Result<Vec<String>, String> {
    use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};
    let (_, cert) = X509Certificate::from_der(leaf).map_err(|e| e.to_string())?;
    let san = cert.subject_alternative_name().map_err(|e| e.to_string())?;
    let names = san.map_or(&[][..], |s| &s.value.general_names[..]);
    Ok(names
        .iter()
        .filter_map(|n| match n {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            _ => None,
        })
        .collect())
}
