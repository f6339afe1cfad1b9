//! Step 2: the certificate for a ClientHello.
//!
//! The base domain's own comes from files and is exchanged while running; customers' come from the master, when a
//! ClientHello first asks for them: memory, then the names that are known to have none, then one query, however many
//! wait. With the master away those that are known go on being served. Nothing is ever ordered because somebody knocked.

pub mod challenges;
mod served;
pub mod tickets;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use gmah_shared::catalog::{Cache, Loader, Lookup, Record, Store, StoreError, StoredCertificate};
use gmah_shared::hostname::Hostname;
use gmah_shared::tenant::TenantId;
use rustls::ServerConfig;
use rustls::server::ProducesTickets;
use secrecy::ExposeSecret as _;

use crate::metrics::Metrics;
use challenges::Challenges;

pub use served::{CertificateError, Served};

/// All certificates.
pub struct Certificates {
    tickets: Arc<dyn ProducesTickets>,
    current: ArcSwap<FromFiles>,
    stored: Cache<Hostname, Stored>,
    /// Proofs for the authority.
    pub challenges: Arc<Challenges>,
    metrics: Arc<Metrics>,
}

/// What a ClientHello gets.
pub enum Choice {
    /// A certificate.
    Serve(Arc<Served>),
    /// A proof for the authority, and nothing after it.
    Prove(Arc<ServerConfig>),
    /// The alert `unrecognized_name`.
    Refuse,
}

/// What was read from files.
pub struct FromFiles {
    files: Files,
    served: Arc<Served>,
    /// When the files were last changed, as they were read.
    stamp: Stamp,
}

/// A customer's certificate, in the cache.
pub struct Stored {
    organization: TenantId,
    revision: i64,
    served: Arc<Served>,
}

impl Record for Stored {
    fn id(&self) -> TenantId {
        self.organization
    }

    fn revision(&self) -> i64 {
        self.revision
    }
}

#[derive(Debug, Clone)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

type Stamp = [Option<(SystemTime, u64)>; 2];

impl Certificates {
    /// Reads both files.
    ///
    /// # Errors
    /// [`CertificateError`]; at the start there is no old pair to go on with.
    pub fn load(
        certificate: &Path,
        key: &Path,
        tickets: Arc<dyn ProducesTickets>,
        stored: Cache<Hostname, Stored>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, CertificateError> {
        let files = Files { certificate: certificate.to_owned(), key: key.to_owned() };
        let current = ArcSwap::from_pointee(files.read(&tickets)?);
        Ok(Self { tickets, current, stored, challenges: Arc::default(), metrics })
    }

    /// Reads another pair of files, without serving it yet.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn read(&self, certificate: &Path, key: &Path) -> Result<FromFiles, CertificateError> {
        Files { certificate: certificate.to_owned(), key: key.to_owned() }.read(&self.tickets)
    }

    /// Serves what was read.
    pub fn exchange(&self, read: FromFiles) {
        self.current.store(Arc::new(read));
    }

    /// Reads one name's certificate from the master: one indexed query.
    pub fn loader(store: Store, tickets: Arc<dyn ProducesTickets>) -> Loader<Hostname, Stored> {
        Box::new(move |host| {
            let (asked, tickets, host) = (store.certificate(host.clone()), tickets.clone(), host.clone());
            Box::pin(async move {
                let Some(StoredCertificate { organization, revision, chain_pem, key_pem }) = asked.await?
                else {
                    return Ok(None);
                };
                let served =
                    Served::from_pem(chain_pem.as_bytes(), key_pem.expose_secret().as_bytes(), tickets)
                        .map_err(|e| StoreError::Row(format!("certificate of {host}: {e}")))?;
                Ok(Some(Stored { organization, revision, served: Arc::new(served) }))
            })
        })
    }

    /// What a ClientHello gets. One without SNI gets nothing.
    pub async fn choose(&self, sni: Option<&str>, is_proof: bool) -> Choice {
        let Some(host) = sni.and_then(|sni| Hostname::parse(sni).ok()) else { return Choice::Refuse };
        if is_proof {
            return self.challenges.certificate(&host).map_or(Choice::Refuse, Choice::Prove);
        }
        let files = self.current.load();
        if files.served.covers(&host) {
            return Choice::Serve(files.served.clone());
        }
        drop(files);
        match self.stored.get(&host).await {
            // What is in the master is checked like everything else: a certificate for other names is none.
            Lookup::Found(stored) if stored.served.covers(&host) => Choice::Serve(stored.served.clone()),
            Lookup::Found(_) | Lookup::Unknown | Lookup::Unavailable => Choice::Refuse,
        }
    }

    /// Looks at the files for as long as the program runs.
    pub async fn watch(self: Arc<Self>, every: Duration) -> std::convert::Infallible {
        let mut refused: Option<Stamp> = None;
        loop {
            tokio::time::sleep(every).await;
            let files = self.current.load().files.clone();
            let stamp = files.stamp();
            if stamp == self.current.load().stamp || refused == Some(stamp) {
                continue;
            }
            match files.read(&self.tickets) {
                Ok(served) => {
                    tracing::info!(names = ?served.served.names, "certificate exchanged");
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

    fn read(&self, tickets: &Arc<dyn ProducesTickets>) -> Result<FromFiles, CertificateError> {
        // Before the contents: a change in between is seen by the next look.
        let stamp = self.stamp();
        let read = |path: &Path| {
            std::fs::read(path)
                .map_err(|e| CertificateError::File { path: path.to_owned(), message: e.to_string() })
        };
        let (chain, key) = (read(&self.certificate)?, zeroize::Zeroizing::new(read(&self.key)?));
        Ok(FromFiles {
            files: self.clone(),
            served: Arc::new(Served::from_pem(&chain, &key, tickets.clone())?),
            stamp,
        })
    }
}
