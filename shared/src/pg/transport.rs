//! How the way to a PostgreSQL server is protected.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres_rustls::MakeRustlsConnect;

/// Plain, or TLS with a verified name. There is no TLS without verification: it protects from nobody who matters.
#[derive(Clone, Default)]
pub enum Transport {
    /// For a Unix socket, loopback, or a network that is private all the way.
    #[default]
    Plain,
    /// Certificate and name are checked (`sslmode=verify-full`).
    Verified(Verified),
}

/// TLS, and whom it trusts.
#[derive(Clone)]
pub struct Verified {
    /// Certificates of authorities in PEM; without them, those of the system count.
    ca_pem: Option<Arc<str>>,
    connector: MakeRustlsConnect,
}

/// Every row of the catalog names its server's way: those of one trust are one, and share what TLS remembers of servers.
static KNOWN: Mutex<Vec<Verified>> = Mutex::new(Vec::new());
/// As many authorities of servers as anybody has; more are read anew each time.
const MOST_KNOWN: usize = 64;

impl Transport {
    /// TLS that trusts those authorities, or those of the system.
    ///
    /// # Errors
    /// A sentence, when the PEM holds no certificate.
    pub fn verified(ca_pem: Option<&str>) -> Result<Self, String> {
        let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(same) = known().iter().find(|k| k.ca_pem.as_deref() == ca_pem) {
            return Ok(Self::Verified(same.clone()));
        }
        let made = Self::make(ca_pem)?;
        let mut known = known();
        if known.len() < MOST_KNOWN {
            known.push(made.clone());
        }
        Ok(Self::Verified(made))
    }

    fn make(ca_pem: Option<&str>) -> Result<Verified, String> {
        let mut roots = RootCertStore::empty();
        match ca_pem {
            Some(pem) => {
                for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                    let certificate = certificate.map_err(|e| e.to_string())?;
                    roots.add(certificate).map_err(|e| e.to_string())?;
                }
                if roots.is_empty() {
                    return Err("holds no certificate".into());
                }
            }
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Verified { ca_pem: ca_pem.map(Into::into), connector: MakeRustlsConnect::new(config) })
    }

    /// Whom TLS trusts, where there is TLS: authorities in PEM, or the system's.
    pub fn ca_pem(&self) -> Option<Option<&str>> {
        match self {
            Self::Plain => None,
            Self::Verified(verified) => Some(verified.ca_pem.as_deref()),
        }
    }

    /// From the words of the configuration and the master: `disable` or `verify-full`.
    ///
    /// # Errors
    /// As [`Transport::verified`], and for any other word.
    pub fn parse(mode: &str, ca_pem: Option<&str>) -> Result<Self, String> {
        match mode {
            "disable" => Ok(Self::Plain),
            "verify-full" => Self::verified(ca_pem),
            other => Err(format!("{other:?} is neither disable nor verify-full")),
        }
    }
}

impl Verified {
    /// What the driver takes.
    pub fn connector(&self) -> MakeRustlsConnect {
        self.connector.clone()
    }

    /// What the driver takes for a socket that leads to `host`, whose certificate must name it.
    pub fn for_host<S>(
        &self,
        host: &str,
    ) -> impl TlsConnect<S, Stream: Send, Error = io::Error, Future: Send> + use<S>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        MakeTlsConnect::<S>::make_tls_connect(&mut self.connector.clone(), host)
            .expect("making a connector never fails; the name is looked at when it connects")
    }
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Plain => "disable",
            Self::Verified(_) => "verify-full",
        })
    }
}

impl PartialEq for Transport {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Plain, Self::Plain) => true,
            (Self::Verified(a), Self::Verified(b)) => a.ca_pem == b.ca_pem,
            (Self::Plain, Self::Verified(_)) | (Self::Verified(_), Self::Plain) => false,
        }
    }
}
