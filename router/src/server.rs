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
use gmah_shared::catalog::listen::{self, Listeners, Topic};
use gmah_shared::catalog::{Cache, CacheMetrics, Invalidate, Store, StoreError};
use gmah_shared::config::{CatalogSettings, HumanDuration, Listen, Settings, Within};
use gmah_shared::dns::{Dns, DnsError};
use gmah_shared::pg;
use gmah_shared::secret::MasterKey;
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

use crate::acme::Acme;
use crate::admin::Admin;
use crate::certs::challenges::Challenges;
use crate::certs::tickets::Tickets;
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
    /// The certificate authority.
    #[error("{0}")]
    Acme(String),
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
        &config.certificate_file,
        &config.key_file,
        tickets.clone(),
        stored.clone(),
        metrics.clone(),
    )?);
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
        challenges: certificates.challenges.clone(),
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
    let topics = Topics::default();
    let listeners = Listeners {
        caches: vec![Arc::new(cache) as Arc<dyn Invalidate>, Arc::new(stored)],
        on_topic: topics.listener(),
        connected: connected.clone(),
    };
    tasks.spawn_forever("catalog-listener", listen::run(settings.master.clone(), listeners));
    tasks.spawn_forever("certificate-files", certificates.clone().watch(*config.certificate_poll));
    edge.pools.load().watch(&dns, &tasks);
    tasks.spawn_forever("shared-limits", limiters.publish());
    tasks.spawn_forever("keyring", keep_keys(store.clone(), keyring, topics.keys));
    tasks.spawn_forever(
        "ticket-secrets",
        keep_tickets(store.clone(), tickets, settings.master_key.clone(), topics.tickets),
    );
    tasks.spawn_forever(
        "challenges",
        keep_challenges(store.clone(), certificates.challenges.clone(), topics.challenges),
    );
    if let Some(acme) = &settings.acme {
        let listener = (https.address, config.proxies.clone());
        let acme = Acme::new(settings, acme, store, dns, metrics.clone(), listener, topics.orders)
            .map_err(StartError::Acme)?;
        tasks.spawn_forever("certificate-orders", acme.run());
    }

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

/// Whom a notice wakes.
#[derive(Default)]
struct Topics {
    keys: Arc<Notify>,
    tickets: Arc<Notify>,
    challenges: Arc<Notify>,
    orders: Arc<Notify>,
}

impl Topics {
    fn listener(&self) -> Box<dyn Fn(Topic) + Send + Sync> {
        let (keys, tickets) = (self.keys.clone(), self.tickets.clone());
        let (challenges, orders) = (self.challenges.clone(), self.orders.clone());
        Box::new(move |topic| match topic {
            Topic::Keys => {
                keys.notify_one();
                tickets.notify_one();
            }
            Topic::Challenges => challenges.notify_one(),
            Topic::Orders => orders.notify_one(),
        })
    }
}

/// Reads the secrets of session tickets, and makes a new one when the newest is half a day old.
async fn keep_tickets(
    store: Store,
    tickets: Arc<Tickets>,
    key: MasterKey,
    reload: Arc<Notify>,
) -> std::convert::Infallible {
    loop {
        let kept = async {
            make_ticket_secret(&store, &key).await?;
            store.ticket_secrets().await
        };
        match kept.await {
            Ok(secrets) => tickets.exchange(&secrets),
            Err(e) => tracing::debug!(error = %e, "secrets of session tickets not read"),
        }
        // Woken by a notice or by the clock; it rereads everything either way.
        let _ = tokio::time::timeout(KEYS_EVERY, reload.notified()).await;
    }
}

async fn make_ticket_secret(store: &Store, key: &MasterKey) -> Result<(), StoreError> {
    let sealed = key.seal("ticket_secrets", &rand::random::<[u8; 32]>())?;
    let client = store.pool().get().await.map_err(StoreError::Pool)?;
    // Two routers at once may both make one: all of them are read, so nothing is lost.
    let params: [&(dyn tokio_postgres::types::ToSql + Sync); 1] = [&sealed];
    let made = client.execute(
        "with old as (delete from ticket_secrets where created_at < now() - interval '2 days')
         insert into ticket_secrets (secret) select $1
         where not exists (select 1 from ticket_secrets where created_at > now() - interval '12 hours')",
        &params,
    );
    let made = tokio::time::timeout(Duration::from_secs(5), made).await.map_err(|_| StoreError::Timeout)?;
    made.map(drop).map_err(StoreError::Query)
}

/// Reads the proofs for the certificate authority at a notice, and now and then.
async fn keep_challenges(
    store: Store,
    challenges: Arc<Challenges>,
    reload: Arc<Notify>,
) -> std::convert::Infallible {
    loop {
        match store.challenges().await {
            Ok(proofs) => challenges.exchange(proofs),
            Err(e) => tracing::debug!(error = %e, "proofs for the certificate authority not read"),
        }
        // Woken by a notice or by the clock; it rereads everything either way.
        let _ = tokio::time::timeout(KEYS_EVERY, reload.notified()).await;
    }
}

/// Customers' certificates in memory at most.
const MAX_CERTIFICATES: usize = 20_000;
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
