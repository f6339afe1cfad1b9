//! From PEM to what a handshake needs.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use gmah_shared::hostname::Hostname;
use rustls::crypto::ring as provider;
use rustls::server::ProducesTickets;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CipherSuite, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::staple::Asks;

/// What a connection is served with.
pub struct Served {
    /// For the handshake.
    pub config: Arc<ServerConfig>,
    /// DNS names of the certificate, in lower case.
    pub names: Arc<[String]>,
    /// When its leaf ends.
    pub not_after: SystemTime,
    /// What its leaf asks to be stapled to it.
    pub(super) asks: Option<Box<Asks>>,
}

impl Served {
    /// Reads a chain, leaf first, and its key. Session tickets outlive an exchange.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn from_pem(
        chain: &[u8],
        key: &[u8],
        tickets: Arc<dyn ProducesTickets>,
    ) -> Result<Self, CertificateError> {
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<_, _>>()
            .map_err(|e| CertificateError::Pem("certificate", e.to_string()))?;
        let leaf =
            chain.first().ok_or_else(|| CertificateError::Pem("certificate", "there is none".into()))?;
        let (names, not_after) =
            described(leaf).map_err(|message| CertificateError::Pem("certificate", message))?;
        if names.is_empty() {
            return Err(CertificateError::NoNames);
        }
        let key =
            PrivateKeyDer::from_pem_slice(key).map_err(|e| CertificateError::Pem("key", e.to_string()))?;
        let pair = CertifiedKey::new(chain, provider::sign::any_supported_type(&key)?);
        pair.keys_match()?;
        let asks = Asks::of(&pair).map_err(|message| CertificateError::Pem("certificate", message))?;
        let names: Arc<[String]> = names.into();
        let asks = asks.map(Box::new);
        Ok(Self { config: configured(pair, tickets)?, names, not_after, asks })
    }

    /// Whether its time is not over.
    pub fn holds(&self, now: SystemTime) -> bool {
        now < self.not_after
    }

    /// Whether nothing is amiss: its time is not over, and it has the staple that it asks for, if it does.
    pub(super) fn is_whole(&self, now: SystemTime) -> bool {
        self.holds(now) && self.asks.as_deref().is_none_or(|asks| asks.is_stapled(now))
    }

    /// Whether the certificate is for that name.
    pub fn covers(&self, host: &Hostname) -> bool {
        self.names.iter().any(|n| host.is_covered_by(n))
    }
}

pub(super) fn configured(
    pair: CertifiedKey,
    tickets: Arc<dyn ProducesTickets>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut provider = provider::default_provider();
    // As others order them who have chosen: AES-128 is as strong as the key exchange, and SHA-256 makes a handshake
    // cheaper than SHA-384.
    provider.cipher_suites.sort_by_key(|suite| !AES_128.contains(&suite.suite()));
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(pair)));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ticketer = tickets;
    config.send_tls13_tickets = 1;
    // Ours goes first among what a client offers.
    config.ignore_client_order = true;
    // 0-RTT data could be replayed (RFC 8470), so none is taken.
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

const AES_128: [CipherSuite; 3] = [
    CipherSuite::TLS13_AES_128_GCM_SHA256,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
];

/// Why a pair of files is not served.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read.
    #[error("{}: {message}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// No PEM of the right kind.
    #[error("{0}: {1}")]
    Pem(&'static str, String),
    /// The pair cannot be used.
    #[error("certificate and key: {0}")]
    Pair(#[from] rustls::Error),
    /// The certificate has no DNS name.
    #[error("the certificate has no DNS name")]
    NoNames,
    /// It asks for a staple that was not to be had, and the pair that is served lacks nothing.
    #[error("the certificate asks for a staple: {0}; the old one is served on")]
    Staple(String),
}

/// The DNS names of a certificate's subjectAltName (RFC 5280, section 4.2.1.6), and when it ends; the common name is no
/// host name.
fn described(leaf: &CertificateDer<'_>) -> Result<(Vec<String>, SystemTime), String> {
    use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};
    let (_, cert) = X509Certificate::from_der(leaf).map_err(|e| e.to_string())?;
    let san = cert.subject_alternative_name().map_err(|e| e.to_string())?;
    let names = san.map_or(&[][..], |s| &s.value.general_names[..]);
    let names = names.iter().filter_map(|n| match n {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    });
    let ends = u64::try_from(cert.validity().not_after.timestamp()).unwrap_or(0);
    Ok((names.collect(), SystemTime::UNIX_EPOCH + Duration::from_secs(ends)))
}
