//! The role: sockets, workers, background tasks, shutdown.
//!
//! The framework's `Server` is not used: it sleeps its whole grace period at shutdown even when idle, never returns,
//! and owns the process, where `gmah dev` runs two roles in one. Its HTTP proxy is, one instance per worker: a worker
//! is a thread with an event loop of its own, its own connections to backends, and no work taken from others.

mod background;
mod error;
mod reload;
mod running;
mod sockets;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use arc_swap::ArcSwap;
use gmah_shared::catalog::listen::{self, Hearing, Listeners};
use gmah_shared::catalog::{Cache, CacheMetrics, Holder, Invalidate, Store};
use gmah_shared::config::{CatalogSettings, Settings, Within};
use gmah_shared::dns::Dns;
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
use crate::certs::{Certificates, keep_staples};
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
use crate::usage::Usage;
use background::{Topics, keep_base, keep_challenges, keep_keys, keep_tickets, read_base};
use reload::Reloadable;
use sockets::{Bound, Legacy};

pub use error::StartError;
pub use reload::ReloadError;
pub use running::RunningRouter;
pub use sockets::{Sockets, Successor, UpgradeError};

/// How long the start waits for the signing keys; without them requests are answered 503 until they come.
const FIRST_KEYS: Duration = Duration::from_secs(3);
/// Customers' certificates in memory at most.
const MAX_CERTIFICATES: usize = 20_000;

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
        store.newest(),
        CacheMetrics::register(&metrics.registry, "hosts")?,
    );
    let tickets = Tickets::new();
    let stored = CatalogSettings { max_entries: Within::new(MAX_CERTIFICATES), ..settings.catalog.clone() };
    let stored = Cache::serving_for(
        // A certificate that is known goes on being served while the master is away.
        Duration::from_secs(30 * 86_400),
        stored,
        Certificates::loader(store.clone(), tickets.clone()),
        store.newest(),
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
    let (ready_keyring, ready_certificates) = (keyring.clone(), certificates.clone());
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
    let usage = Arc::new(Usage::default());
    let edge = Arc::new(Edge {
        access,
        tracing: traces.as_ref().map(|t| Tracing(t.tracer())),
        resolver: Resolver::new(settings, cache.clone(), signer.clone(), metrics.clone(), limiters.clone()),
        live: live.clone(),
        metrics: metrics.clone(),
        usage: usage.clone(),
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
    let hearing = Arc::new(Hearing::default());
    let draining = Arc::new(AtomicBool::new(false));
    let held_certificates = stored.clone();
    let topics = Topics::default();
    let listeners = Listeners {
        caches: vec![Arc::new(cache) as Arc<dyn Invalidate>, Arc::new(stored)],
        on_topic: topics.listener(),
        hearing: hearing.clone(),
    };
    tasks.spawn_forever("catalog-listener", listen::run(settings.master.clone(), listeners));
    tasks.spawn_forever("certificate-files", certificates.clone().watch(*config.certificate_poll));
    tasks.spawn_forever("ocsp-staple", keep_staples(certificates.clone(), metrics.clone()));
    let watchers = Tasks::new();
    live.load().pools.watch(&dns, &watchers);
    tasks.spawn_forever("shared-limits", limiters.clone().publish());
    let (counting, master, told) = (usage, store.pool().clone(), tasks.token().clone());
    tasks.spawn("usage", async move { counting.run(master, told).await });
    // Before the first connection, which a successor gets at once.
    if let Ok(Ok(ring)) = tokio::time::timeout(FIRST_KEYS, store.keyring(true)).await {
        keyring.store(Arc::new(ring));
    }
    let holder =
        Holder { id: uuid::Uuid::now_v7(), role: "router", address: sockets.https.address.to_string() };
    tasks.spawn_forever("keyring", keep_keys(store.clone(), holder.clone(), keyring, topics.keys));
    let holding = (store.clone(), holder.id);
    tasks.spawn_forever(
        "ticket-secrets",
        keep_tickets(store.clone(), tickets, settings.master_key.clone(), topics.tickets),
    );
    tasks.spawn_forever(
        "challenges",
        keep_challenges(store.clone(), certificates.challenges.clone(), topics.challenges),
    );
    // A group of its own: nothing is ordered by a router whose listener is about to close.
    let (orders, mut orderers) = (Tasks::new(), Vec::new());
    if let Some(acme) = &settings.acme {
        let held: Arc<dyn Invalidate> = Arc::new(held_certificates);
        let listener = (sockets.https.address, config.proxies.clone(), held);
        let (wake, key) = (&topics.certificates, settings.base_domain.clone());
        let order = || {
            let (store, dns, metrics) = (store.clone(), dns.clone(), metrics.clone());
            // Each with a way to the authority of its own: what it says of one matter says nothing of another.
            Acme::new(settings, acme, store, dns, metrics, listener.clone(), wake.clone())
                .map(Arc::new)
                .map_err(StartError::Acme)
        };
        let claims = order()?;
        orders.spawn_forever("certificate-orders", claims.clone().run(Orders::Claims));
        orderers.push(claims);
        if acme.wildcard.is_some() {
            let base = order()?;
            orders.spawn_forever("base-certificate-order", base.clone().run(Orders::Base));
            orderers.push(base);
            // Before the first connection: there may be nothing else to serve.
            let mut held = None;
            if let Err(e) = read_base(&store, &certificates, &key, &mut held).await {
                tracing::warn!(error = %e, "the base domain's certificate was not read yet");
            }
            let kept = keep_base(store, certificates.clone(), key, held, wake.base.clone());
            tasks.spawn_forever("base-certificate", kept);
        }
    }
    certificates.first_staple().await;

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
            hearing,
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
        holding,
        orders,
        orderers,
        certificates: ready_certificates,
        traces,
        drain_delay: *config.drain_delay,
        drain_timeout: *config.drain_timeout,
    })
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
