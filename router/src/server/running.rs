//! A running role: what it can be asked, and its end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use gmah_shared::catalog::Store;
use gmah_shared::tasks::Tasks;
use gmah_shared::telemetry::traces::Traces;
use gmah_shared::token::Keyring;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::StartError;
use super::reload::{ReloadError, Reloadable};
use super::sockets::Legacy;
use crate::acme::Acme;
use crate::certs::Certificates;
use crate::config::RouterConfig;
use crate::metrics::Metrics;

/// A running role.
pub struct RunningRouter {
    /// HTTPS.
    pub https: SocketAddr,
    /// Plain HTTP.
    pub http: SocketAddr,
    /// Metrics, health, JWKS.
    pub admin: SocketAddr,
    /// What the role counts.
    pub metrics: Arc<Metrics>,
    /// Cancelled when a successor has taken the sockets over and serves.
    pub handed_over: CancellationToken,
    pub(super) legacy: Option<Legacy>,
    pub(super) keyring: Arc<ArcSwap<Keyring>>,
    pub(super) reloadable: Reloadable,
    pub(super) draining: Arc<AtomicBool>,
    pub(super) stop: CancellationToken,
    pub(super) shutdown: watch::Sender<bool>,
    pub(super) hard_stop: CancellationToken,
    pub(super) tracker: TaskTracker,
    pub(super) tasks: Tasks,
    pub(super) holding: (Store, uuid::Uuid),
    pub(super) orders: Tasks,
    pub(super) orderers: Vec<Arc<Acme>>,
    pub(super) certificates: Arc<Certificates>,
    pub(super) traces: Option<Traces>,
    pub(super) drain_delay: Duration,
    pub(super) drain_timeout: Duration,
}

impl RunningRouter {
    /// Takes another configuration, as a whole or not at all.
    ///
    /// # Errors
    /// [`ReloadError`]; then nothing has changed.
    pub async fn reload(&self, config: RouterConfig) -> Result<(), ReloadError> {
        self.reloadable.reload(config).await
    }

    /// From now on a successor may take over, where the configuration says how.
    ///
    /// # Errors
    /// [`StartError::UpgradeSocket`].
    pub fn await_successor(&self) -> Result<(), StartError> {
        let Some(legacy) = &self.legacy else { return Ok(()) };
        let fault = |cause| StartError::UpgradeSocket { path: legacy.path().to_owned(), cause };
        let predecessor = legacy.offer().map_err(fault)?;
        let told = self.handed_over.clone();
        // It blocks in the kernel until a successor comes, or the process ends.
        let thread = std::thread::Builder::new().name("upgrade-socket".into());
        thread.spawn(move || predecessor.wait(|| told.cancel())).map_err(StartError::Worker)?;
        Ok(())
    }

    /// Returns when requests can be served, or after that long.
    pub async fn ready(&self, patience: Duration) -> bool {
        let until = tokio::time::Instant::now() + patience;
        while self.keyring.load().signing().is_none() || !self.certificates.has_base() {
            if tokio::time::Instant::now() > until {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        true
    }

    /// Readiness off, no new connections, requests in flight finish; returns as soon as nothing runs.
    pub async fn stop(self) {
        self.draining.store(true, Ordering::Release);
        self.orders.stop(Duration::from_secs(1)).await;
        for orderer in &self.orderers {
            // What was begun is somebody else's from now on.
            orderer.release().await;
        }
        if !self.handed_over.is_cancelled() {
            // Nobody need notice where a successor listens on the same sockets.
            tokio::time::sleep(self.drain_delay).await;
        }
        // Nobody receives only when every worker is gone already.
        let _ = self.shutdown.send(true);
        self.stop.cancel();
        self.tracker.close();
        if tokio::time::timeout(self.drain_timeout, self.tracker.wait()).await.is_err() {
            tracing::warn!(connections = self.tracker.len(), "not everything finished in time");
        }
        self.hard_stop.cancel();
        let (_, watchers) = self.reloadable.current.into_inner();
        watchers.stop(Duration::from_secs(1)).await;
        self.tasks.stop(Duration::from_secs(5)).await;
        let (store, id) = self.holding;
        store.forget_holder(id).await;
        if let Some(traces) = self.traces {
            traces.stop().await;
        }
        tracing::info!("router stopped");
    }
}
