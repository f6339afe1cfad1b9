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
use std::time::{Duration, Instant, SystemTime};

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
        metrics.certificate_ends("files", read.as_ref().map(|r| r.served.not_after));
        Ok(Self {
            files: ArcSwapOption::from_pointee(read),
            ordered: ArcSwapOption::empty(),
            tickets,
            stored,
            challenges: Arc::default(),
            metrics,
        })
    }

    /// Reads another pair of files, with what it asks to be stapled, without serving it yet.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub async fn read(&self, files: Option<&Files>) -> Result<Option<FromFiles>, CertificateError> {
        let Some(files) = files else { return Ok(None) };
        let current = self.files.load_full();
        self.stapled(files.read(&self.tickets)?, current.as_deref()).await.map(Some)
    }

    /// With what it asks to be stapled. Some clients leave at once where that is missing, so a pair that cannot have it
    /// does not take the place of one that is whole.
    async fn stapled(
        &self,
        read: FromFiles,
        current: Option<&FromFiles>,
    ) -> Result<FromFiles, CertificateError> {
        let mut read = read.with_staple_of(current);
        if let Err(e) = staple::first(&mut read).await {
            let now = SystemTime::now();
            if !read.served.is_whole(now) && current.is_some_and(|c| c.served.is_whole(now)) {
                return Err(CertificateError::Staple(e.to_string()));
            }
            tracing::error!(error = %e, "no new response to staple to a changed certificate");
        }
        Ok(read)
    }

    /// Serves what was read.
    pub fn exchange(&self, read: Option<FromFiles>) {
        let read = read.map(|read| read.with_staple_of(self.files.load().as_deref()));
        self.metrics.certificate_ends("files", read.as_ref().map(|r| r.served.not_after));
        self.files.store(read.map(Arc::new));
    }

    /// Whether the base domain has a certificate that was ordered, and holds.
    pub fn has_ordered(&self) -> bool {
        self.ordered.load().as_ref().is_some_and(|o| o.holds(SystemTime::now()))
    }

    /// Whether the base domain has a certificate.
    pub fn has_base(&self) -> bool {
        self.files.load().is_some() || self.has_ordered()
    }

    /// Fetches what the certificate from files asks to be stapled to it, if it does.
    pub async fn first_staple(&self) {
        let Some(current) = self.files.load_full() else { return };
        let mut read = (*current).clone();
        match staple::first(&mut read).await {
            Ok(()) => drop(self.files.compare_and_swap(&Some(current), Some(Arc::new(read)))),
            Err(e) => tracing::error!(error = %e, "served without the staple that it asks for"),
        }
    }

    /// Serves what was ordered for the base domain; the files again where there is nothing.
    ///
    /// # Errors
    /// [`CertificateError`]; then nothing has changed.
    pub fn exchange_ordered(&self, pair: Option<&KeyPair>) -> Result<(), CertificateError> {
        let served = pair.map(|pair| self.served(pair)).transpose()?;
        self.metrics.certificate_ends("ordered", served.as_ref().map(|s| s.not_after));
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
        let ordered = self.ordered.load();
        let ordered = ordered.as_ref().filter(|o| o.covers(host));
        let files = self.files.load();
        let from_files = files.as_ref().map(|f| &f.served).filter(|s| s.covers(host));
        match (ordered, from_files) {
            // What has ended is better than nothing only.
            (Some(ordered), Some(files)) if !ordered.holds(SystemTime::now()) => Some(files.clone()),
            (ordered, files) => ordered.or(files).cloned(),
        }
    }

    /// Looks at the files for as long as the program runs.
    pub async fn watch(self: Arc<Self>, every: Duration) -> std::convert::Infallible {
        let mut refused: Option<Stamp> = None;
        let mut without_staple: Option<(Stamp, Instant)> = None;
        loop {
            tokio::time::sleep(every).await;
            let Some(current) = self.files.load_full() else { continue };
            let stamp = current.files.stamp();
            if stamp == current.stamp || refused == Some(stamp) {
                continue;
            }
            let tried = without_staple.filter(|(tried, _)| *tried == stamp).map(|(_, at)| at);
            if tried.is_some_and(|at| at.elapsed() < STAPLE_RETRY)
                && current.served.is_whole(SystemTime::now())
            {
                continue;
            }
            let read = match current.files.read(&self.tickets) {
                // The old pair is served for as long as it takes to ask.
                Ok(read) => self.stapled(read, Some(&current)).await,
                Err(e) => Err(e),
            };
            match read {
                Ok(read) => {
                    let (names, ends) = (read.served.names.clone(), read.served.not_after);
                    let previous = self.files.compare_and_swap(&Some(current.clone()), Some(Arc::new(read)));
                    if !previous.as_ref().is_some_and(|p| Arc::ptr_eq(p, &current)) {
                        // Another configuration, or another staple, came meanwhile: looked at anew.
                        continue;
                    }
                    tracing::info!(?names, "certificate exchanged");
                    self.metrics.certificate(true);
                    self.metrics.certificate_ends("files", Some(ends));
                    refused = None;
                }
                Err(e) => {
                    tracing::error!(error = %e, "changed certificate refused; the old one is served on");
                    self.metrics.certificate(false);
                    match e {
                        // It may be had later.
                        CertificateError::Staple(_) => without_staple = Some((stamp, Instant::now())),
                        // Said once for each change.
                        _ => refused = Some(stamp),
                    }
                }
            }
        }
    }
}

/// After a changed certificate got no staple, and before it is tried again.
const STAPLE_RETRY: Duration = Duration::from_secs(60);

impl Files {
    fn stamp(&self) -> Stamp {
        [&self.certificate, &self.key].map(|path| {
            let meta = std::fs::metadata(path).ok()?;
            Some((meta.modified().ok()?, meta.len()))
        })
    }

    /// Whether they are there, and one goes with the other.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn check(&self) -> Result<(), CertificateError> {
        let tickets: Arc<dyn ProducesTickets> = tickets::Tickets::new();
        self.read(&tickets).map(drop)
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

#[cfg(test)]
mod tests {
    use gmah_shared::catalog::CacheMetrics;
    use gmah_shared::config::CatalogSettings;
    use rcgen::{CertificateParams, KeyPair as Key};

    use super::tickets::Tickets;
    use super::*;

    fn pair(year: i32) -> KeyPair {
        let key = Key::generate().expect("key");
        let mut params = CertificateParams::new(vec!["*.gmah.example".to_owned()]).expect("names");
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        let chain_pem = params.self_signed(&key).expect("signed").pem();
        KeyPair { chain_pem, key_pem: key.serialize_pem().into() }
    }

    #[tokio::test]
    async fn what_was_ordered_goes_before_the_files_until_it_has_ended() {
        let folder = tempfile::tempdir().expect("folder");
        let files =
            Files { certificate: folder.path().join("chain.pem"), key: folder.path().join("key.pem") };
        let written = pair(2090);
        std::fs::write(&files.certificate, &written.chain_pem).expect("written");
        std::fs::write(&files.key, written.key_pem.expose_secret()).expect("written");
        let metrics = Metrics::new(10).expect("metrics");
        let counts = CacheMetrics::register(&metrics.registry, "certificates").expect("metrics");
        let cache = Cache::new(
            CatalogSettings::default(),
            Box::new(|_: &Hostname| Box::pin(async { Ok(None) })),
            Box::new(|| Box::pin(async { Ok(0) })),
            counts,
        );
        let certificates = Certificates::load(Some(&files), Tickets::new(), cache, metrics).expect("loaded");
        let ends = || async {
            match certificates.choose(Some("paris.gmah.example"), false).await {
                Choice::Serve(served) => Some(served.not_after),
                _ => None,
            }
        };
        let from_files = ends().await.expect("served");
        certificates.exchange_ordered(Some(&pair(2095))).expect("taken");
        assert!(ends().await.expect("served") > from_files);
        assert!(certificates.has_ordered());
        certificates.exchange_ordered(Some(&pair(2020))).expect("taken");
        assert_eq!(ends().await, Some(from_files), "it has ended");
        assert!(!certificates.has_ordered());
        // Better than nothing.
        certificates.exchange(None);
        assert!(ends().await.is_some_and(|e| e < SystemTime::now()));
        let bad = KeyPair { chain_pem: "junk".into(), ..pair(2095) };
        assert!(certificates.exchange_ordered(Some(&bad)).is_err());
        assert!(ends().await.is_some(), "nothing has changed");
        certificates.exchange_ordered(None).expect("taken");
        assert!(ends().await.is_none() && !certificates.has_base());
    }
}
