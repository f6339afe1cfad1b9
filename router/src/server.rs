//! The role: sockets, workers, background tasks, shutdown.
//!
//! The framework's `Server` is not used: it sleeps its whole grace period at shutdown even when idle, never returns,
//! and owns the process, where `gmah dev` runs two roles in one. Its HTTP proxy is, one instance per worker: a worker
//! is a thread with an event loop of its own, its own connections to backends, and no work taken from others.

mod background;
mod reload;
mod sockets;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use gmah_shared::catalog::listen::{self, Listeners};
use gmah_shared::catalog::{Cache, CacheMetrics, Invalidate, Store};
use gmah_shared::config::{CatalogSettings, HumanDuration, Settings, Within};
use gmah_shared::dns::{Dns, DnsError};
use gmah_shared::pg;
use gmah_shared::tasks::Tasks;
use gmah_shared::telemetry::traces::Traces;
use gmah_shared::token::{Keyring, Signer};
use pingora_core::apps::HttpServerApp;
use pingora_core::apps::http_app::HttpServer;
use pingora_core::server::ShutdownWatch;
use pingora_core::server::configuration::ServerConf;
use pingora_proxy::HttpProxy;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access::Log;
use crate::acme::{Acme, Orders};
use crate::admin::Admin;
use crate::certs::tickets::Tickets;
use crate::certs::{CertificateError, Certificates, keep_staples};
use crate::config::{Limits, Proxies, Router, RouterConfig};
use crate::connection::Http;
use crate::edge::Edge;
use crate::headers::Promises;
use crate::limits::Limiters;
use crate::limits::shared::Shared;
use crate::listener::{self, Addresses, Gate, Kind};
use crate::live;
use crate::metrics::Metrics;
use crate::proxy::Proxy;
use crate::reject::Rejection;
use crate::resolve::Resolver;
use crate::trace::Tracing;
use crate::upstream::Pools;
use background::{Topics, keep_base, keep_challenges, keep_keys, keep_tickets};
use reload::Reloadable;
use sockets::{Bound, Legacy};

pub use reload::ReloadError;
pub use sockets::{Sockets, Successor, UpgradeError};

/// Customers' certificates in memory at most.
const MAX_CERTIFICATES: usize = 20_000;

/// Why the role did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on.
    #[error("{key} = {address}: {cause}")]
    Bind {
        /// Key of the configuration.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        cause: std::io::Error,
    },
    /// The certificate.
    #[error("{0}")]
    Certificate(#[from] CertificateError),
    /// The pool of the master.
    #[error("master pool: {0}")]
    Pool(#[from] deadpool_postgres::BuildError),
    /// A pool of backends.
    #[error("router.pools: {0}")]
    Pools(String),
    /// The Unix socket where a successor would come.
    #[error("router.upgrade_socket: {}: {cause}", path.display())]
    UpgradeSocket {
        /// Its path.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// A file or folder of the access log.
    #[error("router.access_log: {0}")]
    AccessLog(std::io::Error),
    /// The counters that routers share.
    #[error("router.shared_limits: {0}")]
    SharedLimits(String),
    /// The certificate authority.
    #[error("{0}")]
    Acme(String),
    /// The collector of traces.
    #[error("{0}")]
    Traces(String),
    /// The resolver of names.
    #[error("{0}")]
    Dns(#[from] DnsError),
    /// A metric.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// A worker's thread or event loop.
    #[error("worker: {0}")]
    Worker(std::io::Error),
}

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
    legacy: Option<Legacy>,
    keyring: Arc<ArcSwap<Keyring>>,
    reloadable: Reloadable,
    draining: Arc<AtomicBool>,
    stop: CancellationToken,
    shutdown: watch::Sender<bool>,
    hard_stop: CancellationToken,
    tracker: TaskTracker,
    tasks: Tasks,
    orders: Tasks,
    traces: Option<Traces>,
    drain_delay: Duration,
    drain_timeout: Duration,
}

/// A worker's handle on the framework, and the signals that end it.
struct Serving<A> {
    app: Arc<A>,
    stop: CancellationToken,
    shutdown: ShutdownWatch,
    tracker: TaskTracker,
    metrics: Arc<Metrics>,
    live: live::Handle,
}

impl<A: HttpServerApp + Send + Sync + 'static> Http for Serving<A> {
    type App = A;

    fn app(&self) -> &Arc<A> {
        &self.app
    }

    fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    fn shutdown(&self) -> &ShutdownWatch {
        &self.shutdown
    }

    fn tracker(&self) -> &TaskTracker {
        &self.tracker
    }

    fn promises(&self) -> Arc<Promises> {
        self.live.load().promises.clone()
    }

    fn refused(&self, rejection: Rejection) {
        self.metrics.rejected(rejection);
        let status = rejection.row().status;
        self.metrics.tenants.unknown().request(status, Duration::ZERO, 0, 0);
    }
}

/// Starts the role; the current runtime runs its background tasks. It serves when this returns; without the master it
/// answers 503 until the keys have been read.
///
/// # Errors
/// [`StartError`] when an address is taken or the certificate cannot be used.
pub async fn start(settings: &Settings, config: RouterConfig) -> Result<RunningRouter, StartError> {
    let sockets = Sockets::bind(&config.router)?;
    start_on(settings, config, sockets).await
}

/// As [`start`], on sockets that are listening already.
///
/// # Errors
/// [`StartError`].
pub async fn start_on(
    settings: &Settings,
    config: RouterConfig,
    sockets: Sockets,
) -> Result<RunningRouter, StartError> {
    let config = reload::prepared(config);
    let metrics = Metrics::new(settings.metrics_max_tenants)?;
    let pool = pg::pool(&settings.master, "gmah router catalog")?;
    let store = Store::new(pool, settings.master_key.clone(), *settings.catalog.load_timeout);
    let cache = Cache::new(
        settings.catalog.clone(),
        Resolver::loader(store.clone()),
        CacheMetrics::register(&metrics.registry, "hosts")?,
    );
    let tickets = Tickets::new();
    let stored = CatalogSettings {
        max_entries: Within::new(MAX_CERTIFICATES),
        // A certificate that is known goes on being served while the master is away.
        max_stale: HumanDuration::from_secs(30 * 86_400),
        ..settings.catalog.clone()
    };
    let stored = Cache::new(
        stored,
        Certificates::loader(store.clone(), tickets.clone()),
        CacheMetrics::register(&metrics.registry, "certificates")?,
    );
    let certificates = Arc::new(Certificates::load(
        config.certificate_files().as_ref(),
        tickets.clone(),
        stored.clone(),
        metrics.clone(),
    )?);
    let (stop, hard_stop, tracker) = (CancellationToken::new(), CancellationToken::new(), TaskTracker::new());
    let keyring = Arc::new(ArcSwap::from_pointee(Keyring::default()));
    let ready_keyring = keyring.clone();
    let signer = Signer::new(keyring.clone());
    let pools = Pools::new(&config, &metrics.upstream_seconds).map_err(StartError::Pools)?;
    let dns = Dns::new(&settings.dns)?;
    if let Err(e) = pools.resolve(&dns).await {
        // Asked again in the background; until then such a pool is empty.
        tracing::warn!(error = e, "backends not found yet");
    }
    let live = reload::handle(&config, pools);
    let shared = config.shared_limits.as_ref().and_then(|s| s.get_ref().address.as_ref()).map(|url| {
        Shared::new(url, metrics.shared_limits.clone(), metrics.shared_limits_failures.clone()).map(Arc::new)
    });
    let shared = shared.transpose().map_err(StartError::SharedLimits)?;
    let limiters = Limiters::new(config.limits.max_in_flight.get(), shared);
    let access = config.access_log.as_ref().map(|log| Log::open(log, metrics.access_log_dropped.clone()));
    let access = access.transpose().map_err(StartError::AccessLog)?;
    let traces =
        settings.traces.as_ref().map(|t| Traces::start(t, "gmah-router", metrics.trace_exports.clone()));
    let traces = traces.transpose().map_err(StartError::Traces)?;
    let edge = Arc::new(Edge {
        access,
        tracing: traces.as_ref().map(|t| Tracing(t.tracer())),
        resolver: Resolver::new(settings, cache.clone(), signer.clone(), metrics.clone(), limiters.clone()),
        live: live.clone(),
        metrics: metrics.clone(),
        challenges: certificates.challenges.clone(),
        public_https_port: settings.public_https_port,
        stop: stop.clone(),
    });
    let gate = Arc::new(Gate {
        addresses: Addresses::new(&config.limits),
        live: live.clone(),
        certificates: certificates.clone(),
        metrics: metrics.clone(),
    });

    let tasks = Tasks::new();
    let connected = Arc::new(AtomicBool::new(false));
    let draining = Arc::new(AtomicBool::new(false));
    let held_certificates = stored.clone();
    let topics = Topics::default();
    let listeners = Listeners {
        caches: vec![Arc::new(cache) as Arc<dyn Invalidate>, Arc::new(stored)],
        on_topic: topics.listener(),
        connected: connected.clone(),
    };
    tasks.spawn_forever("catalog-listener", listen::run(settings.master.clone(), listeners));
    tasks.spawn_forever("certificate-files", certificates.clone().watch(*config.certificate_poll));
    tasks.spawn_forever("ocsp-staple", keep_staples(certificates.clone(), metrics.clone()));
    let watchers = Tasks::new();
    live.load().pools.watch(&dns, &watchers);
    tasks.spawn_forever("shared-limits", limiters.clone().publish());
    tasks.spawn_forever("keyring", keep_keys(store.clone(), keyring, topics.keys));
    tasks.spawn_forever(
        "ticket-secrets",
        keep_tickets(store.clone(), tickets, settings.master_key.clone(), topics.tickets),
    );
    tasks.spawn_forever(
        "challenges",
        keep_challenges(store.clone(), certificates.challenges.clone(), topics.challenges),
    );
    // A group of its own: nothing is ordered by a router whose listener is about to close.
    let orders = Tasks::new();
    if let Some(acme) = &settings.acme {
        let held: Arc<dyn Invalidate> = Arc::new(held_certificates);
        let listener = (sockets.https.address, config.proxies.clone(), held);
        let is_wildcard = acme.wildcard.is_some();
        let wake = topics.certificates.clone();
        let acme = Acme::new(settings, acme, store.clone(), dns.clone(), metrics.clone(), listener, wake)
            .map_err(StartError::Acme)?;
        let acme = Arc::new(acme);
        orders.spawn_forever("certificate-orders", acme.clone().run(Orders::Claims));
        if is_wildcard {
            orders.spawn_forever("base-certificate-order", acme.run(Orders::Base));
            let (base, wake) = (settings.base_domain.clone(), topics.certificates.base);
            tasks.spawn_forever("base-certificate", keep_base(store, certificates.clone(), base, wake));
        }
    }

    let (shutdown, shutdown_watch) = watch::channel(false);
    let workers = match config.workers.get() {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        n => n,
    };
    let conf = Arc::new(framework_conf(config.upstream_idle.get()));
    for n in 0..workers {
        let mut app = HttpProxy::new(Proxy(edge.clone()), conf.clone());
        app.handle_init_modules();
        let serving = Arc::new(Serving {
            app: Arc::new(app),
            stop: stop.clone(),
            shutdown: shutdown_watch.clone(),
            tracker: tracker.clone(),
            metrics: metrics.clone(),
            live: live.clone(),
        });
        worker(n, [(&sockets.https, Kind::Tls), (&sockets.http, Kind::Plain)], &gate, serving, &hard_stop)?;
    }
    let admin_app = Serving {
        app: Arc::new(HttpServer::new_app(Admin {
            metrics: metrics.clone(),
            signer,
            draining: draining.clone(),
            catalog_connected: connected,
            edge: edge.clone(),
        })),
        // Answers until the very end, so that a drain can be watched.
        stop: tasks.token().clone(),
        shutdown: shutdown_watch,
        tracker: TaskTracker::new(),
        metrics: metrics.clone(),
        live: live.clone(),
    };
    let admin_listener = sockets.admin.listening().map_err(StartError::Worker)?;
    let admin_live = reload::handle(&Router { proxies: Proxies::default(), ..config.clone() }, Pools::none());
    let addresses = gate.addresses.clone();
    // Caps of its own: a flood on the public side must not make a healthy router look dead.
    let gate = Arc::new(Gate {
        addresses: Addresses::new(&Limits::default()),
        live: admin_live.clone(),
        certificates: gate.certificates.clone(),
        metrics: metrics.clone(),
    });
    tasks.spawn(
        "router-admin-listener",
        listener::accept(admin_listener, Kind::Plain, gate, Arc::new(admin_app)),
    );
    let legacy = config.upgrade_socket.as_deref().map(|path| {
        Legacy::new(path, &sockets)
            .map_err(|cause| StartError::UpgradeSocket { path: path.to_owned(), cause })
    });
    let legacy = legacy.transpose()?;
    let (https, http, admin) = (sockets.https.address, sockets.http.address, sockets.admin.address);
    tracing::info!(%https, %http, %admin, workers, "router serves");
    Ok(RunningRouter {
        https,
        http,
        admin,
        handed_over: CancellationToken::new(),
        legacy,
        keyring: ready_keyring,
        reloadable: Reloadable {
            live,
            admin_live,
            addresses,
            limiters,
            certificates,
            metrics: metrics.clone(),
            dns,
            current: tokio::sync::Mutex::new((config.clone(), watchers)),
        },
        metrics,
        draining,
        stop,
        shutdown,
        hard_stop,
        tracker,
        tasks,
        orders,
        traces,
        drain_delay: *config.drain_delay,
        drain_timeout: *config.drain_timeout,
    })
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
        while self.keyring.load().signing().is_none() {
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
        if let Some(traces) = self.traces {
            traces.stop().await;
        }
        tracing::info!("router stopped");
    }
}

/// A thread with an event loop of its own that serves both public sockets.
fn worker<A: HttpServerApp + Send + Sync + 'static>(
    n: usize,
    sockets: [(&Bound, Kind); 2],
    gate: &Arc<Gate>,
    serving: Arc<Serving<A>>,
    hard_stop: &CancellationToken,
) -> Result<(), StartError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_name(format!("router-{n}"))
        .build()
        .map_err(StartError::Worker)?;
    let _entered = runtime.enter();
    let accepting = sockets
        .map(|(bound, kind)| Ok(listener::accept(bound.listening()?, kind, gate.clone(), serving.clone())));
    drop(_entered);
    let [tls, plain] = accepting;
    let (tls, plain) = (tls.map_err(StartError::Worker)?, plain.map_err(StartError::Worker)?);
    let hard_stop = hard_stop.clone();
    std::thread::Builder::new()
        .name(format!("router-{n}"))
        .spawn(move || {
            runtime.block_on(async {
                let serving = async { tokio::join!(tls, plain) };
                tokio::select! {
                    // After both have stopped accepting, connections go on until the hard stop.
                    () = async { serving.await; std::future::pending::<()>().await } => {}
                    () = hard_stop.cancelled() => {}
                }
            });
            runtime.shutdown_background();
        })
        .map_err(StartError::Worker)?;
    Ok(())
}

/// The few settings of the framework that matter without its server. Built here: its own file format ignores keys that
/// it does not know.
fn framework_conf(upstream_idle: usize) -> ServerConf {
    ServerConf {
        threads: 1,
        upstream_keepalive_pool_size: upstream_idle,
        // Counts attempts. One more than any pool's, which decide.
        max_retries: 11,
        ..ServerConf::default()
    }
}
