//! Another configuration for a router that runs: as a whole, or not at all.

use std::sync::Arc;

use arc_swap::ArcSwap;
use gmah_shared::dns::Dns;
use gmah_shared::tasks::Tasks;

use crate::certs::{CertificateError, Certificates};
use crate::config::{Router, RouterConfig};
use crate::headers::Promises;
use crate::limits::Limiters;
use crate::listener::Addresses;
use crate::live::{Handle, Live};
use crate::metrics::Metrics;
use crate::upstream::Pools;

/// Why a configuration was not taken; the old one goes on.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// A key that only a restart, or an upgrade, can change.
    #[error("{0} cannot change while running: restart, or `gmah router --upgrade`")]
    Fixed(&'static str),
    /// A pool of backends.
    #[error("router.pools: {0}")]
    Pools(String),
    /// The base domain would have no certificate at all.
    #[error("router.certificate_file cannot go: no certificate was ordered for the base domain yet")]
    NoCertificate,
    /// The certificate.
    #[error("{0}")]
    Certificate(#[from] CertificateError),
}

/// What a reload works on.
pub(super) struct Reloadable {
    pub(super) live: Handle,
    pub(super) admin_live: Handle,
    pub(super) addresses: Addresses,
    pub(super) limiters: Limiters,
    pub(super) certificates: Arc<Certificates>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) dns: Dns,
    /// As it was at the last load, and who looks after its pools.
    pub(super) current: tokio::sync::Mutex<(Router, Tasks)>,
}

impl Reloadable {
    pub(super) async fn reload(&self, config: RouterConfig) -> Result<(), ReloadError> {
        let config = prepared(config);
        let mut current = self.current.lock().await;
        unchanged(&current.0, &config)?;
        // Everything that can fail comes first.
        let pools = Pools::new(&config, &self.metrics.upstream_seconds).map_err(ReloadError::Pools)?;
        pools.resolve(&self.dns).await.map_err(ReloadError::Pools)?;
        let certificate = self.certificates.read(config.certificate_files().as_ref()).await?;
        if certificate.is_none() && !self.certificates.has_ordered() {
            return Err(ReloadError::NoCertificate);
        }
        let watchers = Tasks::new();
        pools.watch(&self.dns, &watchers);
        self.addresses.rebound(&config.limits);
        self.limiters.rebound(config.limits.max_in_flight.get());
        self.certificates.exchange(certificate);
        self.admin_live.store(Arc::new(live(&config, Pools::none())));
        self.live.store(Arc::new(live(&config, pools)));
        let (_, old_watchers) = std::mem::replace(&mut *current, (config, watchers));
        old_watchers.stop(std::time::Duration::from_secs(1)).await;
        tracing::info!("configuration loaded anew");
        Ok(())
    }
}

/// With what follows from the rest filled in.
pub(super) fn prepared(config: RouterConfig) -> Router {
    let mut config = config.router;
    let slowest = config.pools.values().map(|p| *p.read_timeout).max().unwrap_or_default();
    config.limits.stall_timeout = *config.limits.body_timeout + slowest;
    config
}

pub(super) fn live(config: &Router, pools: Pools) -> Live {
    Live {
        limits: config.limits.clone(),
        proxies: config.proxies.clone(),
        promises: Arc::new(Promises::new(*config.hsts_max_age)),
        pools,
    }
}

pub(super) fn handle(config: &Router, pools: Pools) -> Handle {
    Arc::new(ArcSwap::from_pointee(live(config, pools)))
}

fn unchanged(old: &Router, new: &Router) -> Result<(), ReloadError> {
    use secrecy::ExposeSecret as _;
    let shared = |r: &Router| {
        let address = r.shared_limits.as_ref().and_then(|s| s.get_ref().address.clone());
        address.map(|a| a.expose_secret().to_owned())
    };
    let fixed = [
        ("router.https", old.https == new.https),
        ("router.http", old.http == new.http),
        ("router.admin", old.admin == new.admin),
        ("router.workers", old.workers == new.workers),
        ("router.upstream_idle", old.upstream_idle == new.upstream_idle),
        ("router.upgrade_socket", old.upgrade_socket == new.upgrade_socket),
        ("router.access_log", old.access_log == new.access_log),
        ("router.shared_limits", shared(old) == shared(new)),
    ];
    match fixed.iter().find(|(_, same)| !same) {
        Some((key, _)) => Err(ReloadError::Fixed(key)),
        None => Ok(()),
    }
}
