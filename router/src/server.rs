//! The role: sockets, workers, background tasks, shutdown.
//!
//! The framework's `Server` is not used: it sleeps its whole grace period at shutdown even when idle, never returns,
//! and owns the process, where `gmah dev` runs two roles in one. Its HTTP proxy is, one instance per worker: a worker
//! is a thread with an event loop of its own, its own connections to backends, and no work taken from others.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use gmah_shared::catalog::listen::{self, Listeners};
use gmah_shared::catalog::{Cache, CacheMetrics, Invalidate, Store};
use gmah_shared::config::{Listen, Settings};
use gmah_shared::dns::{Dns, DnsError};
use gmah_shared::pg;
use gmah_shared::tasks::Tasks;
use gmah_shared::token::{Keyring, Signer};
use pingora_core::apps::HttpServerApp;
use pingora_core::apps::http_app::HttpServer;
use pingora_core::server::ShutdownWatch;
use pingora_core::server::configuration::ServerConf;
use pingora_proxy::HttpProxy;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::Admin;
use crate::certs::{CertificateError, Certificates};
use crate::config::{Limits, Proxies, Router, RouterConfig};
use crate::connection::Http;
use crate::headers::Promises;
use crate::limits::Limiters;
use crate::limits::shared::Shared;
use crate::listener::{self, Addresses, Gate, Kind};
use crate::metrics::Metrics;
use crate::proxy::{Edge, Proxy};
use crate::reject::Rejection;
use crate::resolve::Resolver;
use crate::upstream::Pools;

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
    /// The counters that routers share.
    #[error("router.shared_limits: {0}")]
    SharedLimits(String),
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

/// A socket that is listening but not yet served.
struct Bound {
    socket: std::net::TcpListener,
    address: SocketAddr,
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
    draining: Arc<AtomicBool>,
    stop: CancellationToken,
    shutdown: watch::Sender<bool>,
    hard_stop: CancellationToken,
    tracker: TaskTracker,
    tasks: Tasks,
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
    promises: Arc<Promises>,
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

    fn promises(&self) -> &Promises {
        &self.promises
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
    let mut config = config.router;
    let slowest = config.pools.values().map(|p| *p.read_timeout).max().unwrap_or_default();
    config.limits.stall_timeout = *config.limits.body_timeout + slowest;
    let config = config;
    let https = bind("router.https", config.https)?;
    let http = bind("router.http", config.http)?;
    let admin = bind("router.admin", config.admin)?;
    let metrics = Metrics::new(settings.metrics_max_tenants)?;
    let certificates =
        Arc::new(Certificates::load(&config.certificate_file, &config.key_file, metrics.clone())?);

    let pool = pg::pool(&settings.master, "gmah router catalog")?;
    let store = Store::new(pool, settings.master_key.clone(), *settings.catalog.load_timeout);
    let cache = Cache::new(
        settings.catalog.clone(),
        Resolver::loader(store.clone()),
        CacheMetrics::register(&metrics.registry, "hosts")?,
    );
    let (stop, hard_stop, tracker) = (CancellationToken::new(), CancellationToken::new(), TaskTracker::new());
    let keyring = Arc::new(ArcSwap::from_pointee(Keyring::default()));
    let signer = Signer::new(keyring.clone());
    let pools = Pools::new(&config, &metrics.upstream_seconds).map_err(StartError::Pools)?;
    let dns = Dns::new(&settings.dns)?;
    let shared = config.shared_limits.as_ref().and_then(|s| s.get_ref().address.as_ref()).map(|url| {
        Shared::new(url, metrics.shared_limits.clone(), metrics.shared_limits_failures.clone()).map(Arc::new)
    });
    let shared = shared.transpose().map_err(StartError::SharedLimits)?;
    let limiters = Limiters::new(config.limits.max_in_flight.get(), shared);
    let edge = Arc::new(Edge {
        resolver: Resolver::new(settings, cache.clone(), signer.clone(), metrics.clone(), limiters.clone()),
        pools: ArcSwap::from_pointee(pools),
        metrics: metrics.clone(),
        limits: config.limits.clone(),
        proxies: config.proxies.clone(),
        promises: Arc::new(Promises::new(*config.hsts_max_age)),
        public_https_port: settings.public_https_port,
        stop: stop.clone(),
    });
    let gate = Arc::new(Gate {
        addresses: Addresses::new(&config.limits),
        limits: config.limits.clone(),
        certificates: certificates.clone(),
        metrics: metrics.clone(),
        proxies: config.proxies.clone(),
    });

    let tasks = Tasks::new();
    let connected = Arc::new(AtomicBool::new(false));
    let draining = Arc::new(AtomicBool::new(false));
    let reload = Arc::new(Notify::new());
    let listeners = Listeners {
        caches: vec![Arc::new(cache) as Arc<dyn Invalidate>],
        on_keys: {
            let reload = reload.clone();
            Box::new(move || reload.notify_one())
        },
        connected: connected.clone(),
    };
    tasks.spawn_forever("catalog-listener", listen::run(settings.master.clone(), listeners));
    tasks.spawn_forever("certificate-files", certificates.watch(*config.certificate_poll));
    edge.pools.load().watch(&dns, &tasks);
    tasks.spawn_forever("shared-limits", limiters.publish());
    tasks.spawn_forever("keyring", keep_keys(store, keyring, reload));

    let (shutdown, shutdown_watch) = watch::channel(false);
    let workers = match config.workers.get() {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        n => n,
    };
    let conf = Arc::new(framework_conf(&config));
    for n in 0..workers {
        let mut app = HttpProxy::new(Proxy(edge.clone()), conf.clone());
        app.handle_init_modules();
        let serving = Arc::new(Serving {
            app: Arc::new(app),
            stop: stop.clone(),
            shutdown: shutdown_watch.clone(),
            tracker: tracker.clone(),
            metrics: metrics.clone(),
            promises: edge.promises.clone(),
        });
        worker(n, [(&https, Kind::Tls), (&http, Kind::Plain)], &gate, serving, &hard_stop)?;
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
        promises: edge.promises.clone(),
    };
    let admin_listener = listening(&admin).map_err(StartError::Worker)?;
    // Caps of its own: a flood on the public side must not make a healthy router look dead.
    let gate = Arc::new(Gate {
        addresses: Addresses::new(&Limits::default()),
        limits: config.limits.clone(),
        certificates: gate.certificates.clone(),
        metrics: metrics.clone(),
        proxies: Proxies::default(),
    });
    tasks.spawn(
        "router-admin-listener",
        listener::accept(admin_listener, Kind::Plain, gate, Arc::new(admin_app)),
    );
    tracing::info!(https = %https.address, http = %http.address, admin = %admin.address, workers, "router serves");
    Ok(RunningRouter {
        https: https.address,
        http: http.address,
        admin: admin.address,
        metrics,
        draining,
        stop,
        shutdown,
        hard_stop,
        tracker,
        tasks,
        drain_delay: *config.drain_delay,
        drain_timeout: *config.drain_timeout,
    })
}

impl RunningRouter {
    /// Readiness off, no new connections, requests in flight finish; returns as soon as nothing runs.
    pub async fn stop(self) {
        self.draining.store(true, Ordering::Release);
        tokio::time::sleep(self.drain_delay).await;
        // Nobody receives only when every worker is gone already.
        let _ = self.shutdown.send(true);
        self.stop.cancel();
        self.tracker.close();
        if tokio::time::timeout(self.drain_timeout, self.tracker.wait()).await.is_err() {
            tracing::warn!(connections = self.tracker.len(), "not everything finished in time");
        }
        self.hard_stop.cancel();
        self.tasks.stop(Duration::from_secs(5)).await;
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
        .map(|(bound, kind)| Ok(listener::accept(listening(bound)?, kind, gate.clone(), serving.clone())));
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

/// Reads the keys at a notice, and now and then.
async fn keep_keys(
    store: Store,
    keyring: Arc<ArcSwap<Keyring>>,
    reload: Arc<Notify>,
) -> std::convert::Infallible {
    loop {
        match store.keyring(true).await {
            Ok(ring) => keyring.store(Arc::new(ring)),
            Err(e) => tracing::warn!(error = %e, "signing keys not read"),
        }
        let pause = if keyring.load().signing().is_none() { KEYS_RETRY } else { KEYS_EVERY };
        // Woken by a notice or by the clock; it rereads everything either way.
        let _ = tokio::time::timeout(pause, reload.notified()).await;
    }
}

const KEYS_EVERY: Duration = Duration::from_secs(20);
const KEYS_RETRY: Duration = Duration::from_millis(250);

/// The few settings of the framework that matter without its server. Built here: its own file format ignores keys that
/// it does not know.
fn framework_conf(config: &Router) -> ServerConf {
    let attempts = config.pools.values().map(|p| p.attempts.get()).max().unwrap_or(1);
    ServerConf {
        threads: 1,
        upstream_keepalive_pool_size: config.upstream_idle.get(),
        // Counts attempts. One more than ours, which decide.
        max_retries: attempts + 1,
        ..ServerConf::default()
    }
}

fn bind(key: &'static str, address: Listen) -> Result<Bound, StartError> {
    let bound = || {
        let domain = socket2::Domain::for_address(address);
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM, Some(socket2::Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        let socket = std::net::TcpListener::from(socket);
        Ok(Bound { address: socket.local_addr()?, socket })
    };
    bound().map_err(|cause| StartError::Bind { key, address, cause })
}

/// Connections that the kernel holds until they are accepted.
const BACKLOG: i32 = 4096;

/// The same socket for one more event loop.
fn listening(bound: &Bound) -> std::io::Result<tokio::net::TcpListener> {
    tokio::net::TcpListener::from_std(bound.socket.try_clone()?)
}
