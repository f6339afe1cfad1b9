//! Step 2: the certificate for a ClientHello.
//!
//! The base domain's own comes from files, exchanged while running, or was ordered and lies in the master; customers' come
//! from there too, when a ClientHello first asks for them: memory, then the names that are known to have none, then one
//! query, however many wait. With the master away those that are known go on being served. Nothing is ever ordered
//! because somebody knocked.

pub mod challenges;
mod served;
mod staple;
pub mod tickets;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use gmah_shared::catalog::{Cache, KeyPair, Loader, Lookup, Record, Store, StoreError, StoredCertificate};
use gmah_shared::hostname::Hostname;
use gmah_shared::tenant::TenantId;
use rustls::ServerConfig;
use rustls::server::ProducesTickets;
use secrecy::ExposeSecret as _;

use crate::metrics::Metrics;
use challenges::Challenges;

pub use served::{CertificateError, Served};
pub use staple::keep as keep_staples;

/// All certificates.
pub struct Certificates {
    tickets: Arc<dyn ProducesTickets>,
    files: ArcSwapOption<FromFiles>,
    /// The base domain's, where it was ordered. Goes before the files.
    ordered: ArcSwapOption<Served>,
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
#[derive(Clone)]
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

/// Where a certificate and its key lie, as PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The chain, leaf first.
    pub certificate: PathBuf,
    /// The key.
    pub key: PathBuf,
}

type Stamp = [Option<(SystemTime, u64)>; 2];

impl Certificates {
    /// Reads the files, if there are any.
    ///
    /// # Errors
    /// [`CertificateError`]; at the start there is no old pair to go on with.
    pub fn load(
        files: Option<&Files>,
        tickets: Arc<dyn ProducesTickets>,
        stored: Cache<Hostname, Stored>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, CertificateError> {
        let read = files.map(|f| f.read(&tickets)).transpose()?;
        Ok(Self {
            files: ArcSwapOption::from_pointee(read),
            ordered: ArcSwapOption::empty(),
            tickets,
            stored,
            challenges: Arc::default(),
            metrics,
        })
    }

    /// Reads another pair of files, without serving it yet.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn read(&self, files: Option<&Files>) -> Result<Option<FromFiles>, CertificateError> {
        files.map(|f| f.read(&self.tickets)).transpose()
    }

    /// Serves what was read.
    pub fn exchange(&self, read: Option<FromFiles>) {
        self.files.store(read.map(Arc::new));
    }

    /// Serves what was ordered for the base domain; the files again where there is nothing.
    ///
    /// # Errors
    /// [`CertificateError`]; then nothing has changed.
    pub fn exchange_ordered(&self, pair: Option<&KeyPair>) -> Result<(), CertificateError> {
        let served = pair.map(|pair| self.served(pair)).transpose()?;
        self.ordered.store(served.map(Arc::new));
        Ok(())
    }

    fn served(&self, pair: &KeyPair) -> Result<Served, CertificateError> {
        let key = pair.key_pem.expose_secret().as_bytes();
        Served::from_pem(pair.chain_pem.as_bytes(), key, self.tickets.clone())
    }

    /// Reads one name's certificate from the master: one indexed query.
    pub fn loader(store: Store, tickets: Arc<dyn ProducesTickets>) -> Loader<Hostname, Stored> {
        Box::new(move |host| {
            let (asked, tickets, host) = (store.certificate(host.clone()), tickets.clone(), host.clone());
            Box::pin(async move {
                let Some(StoredCertificate { organization, revision, pair }) = asked.await? else {
                    return Ok(None);
                };
                let key = pair.key_pem.expose_secret().as_bytes();
                let served = Served::from_pem(pair.chain_pem.as_bytes(), key, tickets)
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
        if let Some(served) = self.base(&host) {
            return Choice::Serve(served);
        }
        match self.stored.get(&host).await {
            // What is in the master is checked like everything else: a certificate for other names is none.
            Lookup::Found(stored) if stored.served.covers(&host) => Choice::Serve(stored.served.clone()),
            Lookup::Found(_) | Lookup::Unknown | Lookup::Unavailable => Choice::Refuse,
        }
    }

    fn base(&self, host: &Hostname) -> Option<Arc<Served>> {
        if let Some(ordered) = self.ordered.load().as_ref().filter(|o| o.covers(host)) {
            return Some(ordered.clone());
        }
        self.files.load().as_ref().map(|f| &f.served).filter(|s| s.covers(host)).cloned()
    }

    /// Looks at the files for as long as the program runs.
    pub async fn watch(self: Arc<Self>, every: Duration) -> std::convert::Infallible {
        let mut refused: Option<Stamp> = None;
        loop {
            tokio::time::sleep(every).await;
            let Some(current) = self.files.load_full() else { continue };
            let stamp = current.files.stamp();
            if stamp == current.stamp || refused == Some(stamp) {
                continue;
            }
            match current.files.read(&self.tickets) {
                Ok(mut read) => {
                    // The old pair is served until the new one has everything that it asks for.
                    if let Err(e) = staple::first(&mut read).await {
                        tracing::error!(error = %e, "served without the staple that it asks for");
                    }
                    tracing::info!(names = ?read.served.names, "certificate exchanged");
                    self.files.store(Some(Arc::new(read)));
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
