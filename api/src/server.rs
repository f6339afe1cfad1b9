//! The role: sockets, layers, background tasks, shutdown.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use axum::response::Response;
use deadpool_postgres::Pool;
use futures::FutureExt as _;
use gmah_shared::catalog::holders::{self, Holder};
use gmah_shared::catalog::listen::{self, Hearing, Listeners, Topic};
use gmah_shared::catalog::{Cache, CacheMetrics, Invalidate, Record, Store, StoreError, TenantDetail};
use gmah_shared::config::{Postgres, Settings};
use gmah_shared::dns::Dns;
use gmah_shared::pg;
use gmah_shared::secret::Derivation;
use gmah_shared::tasks::Tasks;
use gmah_shared::telemetry::traces::Traces;
use gmah_shared::tenant::TenantId;
use gmah_shared::token::{AUDIENCE_API, AUDIENCE_PLATFORM, Keyring, Verifier};
use opentelemetry_sdk::trace::SdkTracer;
use ring::hmac;
use tokio::sync::Notify;
use tower::Service;

use crate::auth::password::Hasher;
use crate::auth::places::Places;
use crate::auth::throttle::Throttle;
use crate::cache::Cache as SumsCache;
use crate::config::ApiConfig;
use crate::control::{domains, worker};
use crate::error::ApiError;
use crate::files::Files;
use crate::handlers::Cursors;
use crate::mail::{self, MailError, Mailer, Relay};
use crate::metrics::Metrics;
use crate::platform::Platform;
use crate::pool::{Registry, slots};
use crate::token::TokenCheck;
use crate::{admin, chores, collector, platform, routes};

mod connections;
mod names;
mod unread;

use connections::{bind, local, serve};
pub use names::Names;
use unread::Returning;

/// What all requests share.
pub struct App {
    /// Configuration of the role.
    pub config: ApiConfig,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// The platform's own host.
    pub platform: Platform,
    /// The master database.
    pub master: Pool,
    /// Token check.
    pub tokens: TokenCheck,
    /// Organisations by id.
    pub catalog: Cache<TenantId, DetailRow>,
    /// Pools by organisation.
    pub pools: Registry,
    /// Password hashing.
    pub hasher: Hasher,
    /// Failed logins.
    pub throttle: Throttle,
    /// Places for letters that are being written without anybody waiting.
    pub letters: Places,
    /// Places for files that come in or go out.
    pub transfers: Places,
    /// Places for tables that go out as files.
    pub exports: Places,
    /// Everything that runs beside requests.
    pub tasks: Tasks,
    /// Begins spans, if there is somebody to send them to.
    pub tracer: Option<SdkTracer>,
    /// Bytes of files, if there is a place for them.
    pub files: Option<Files>,
    /// What is dear to compute.
    pub cache: SumsCache,
    /// Letters.
    pub mailer: Mailer,
    /// Names that the public knows.
    pub names: Names,
    /// Whether changes are heard of.
    pub hearing: Arc<Hearing>,
    derived: OnceLock<Derived>,
    keyring: Arc<ArcSwap<Keyring>>,
    draining: AtomicBool,
}

/// Keys that all nodes have in common, whatever the master key is.
pub struct Derived {
    /// Proofs that a page was served by us.
    pub csrf: hmac::Key,
    /// Cursors of lists.
    pub cursors: Cursors,
    /// Tells requests with an `Idempotency-Key` from one another.
    pub requests: hmac::Key,
}

impl Derived {
    fn new(from: &Derivation) -> Self {
        Self {
            csrf: hmac::Key::new(hmac::HMAC_SHA256, &from.derive("csrf")),
            cursors: Cursors::new(&from.derive("cursors")),
            requests: hmac::Key::new(hmac::HMAC_SHA256, &from.derive("idempotency")),
        }
    }
}

/// A catalog row, as the cache holds it.
pub struct DetailRow(pub TenantDetail);

impl Record for DetailRow {
    fn id(&self) -> TenantId {
        self.0.tenant.id
    }

    fn revision(&self) -> i64 {
        self.0.tenant.revision
    }
}

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
    /// The pool of the master.
    #[error("master pool: {0}")]
    Pool(#[from] deadpool_postgres::BuildError),
    /// Traces.
    #[error("{0}")]
    Traces(String),
    /// A key of the configuration.
    #[error("{0}")]
    Config(String),
    /// The way letters go.
    #[error("mail: {0}")]
    Mail(#[from] MailError),
    /// A metric.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// A running role.
pub struct RunningApi {
    /// Where routers reach it.
    pub address: SocketAddr,
    /// Where metrics and health are.
    pub admin: SocketAddr,
    app: Arc<App>,
    tasks: Tasks,
    last: Tasks,
    master: Postgres,
    store: Store,
    node: uuid::Uuid,
    traces: Option<Traces>,
}

impl App {
    /// Keys that the nodes have in common.
    ///
    /// # Errors
    /// [`ApiError::Unavailable`] until the master was reached; no token is accepted before that either.
    pub fn derived(&self) -> Result<&Derived, ApiError> {
        self.derived.get().ok_or(ApiError::Unavailable)
    }

    /// Whether requests can be served.
    pub fn is_ready(&self) -> bool {
        !self.draining.load(Ordering::Acquire) && !self.keyring.load().is_empty()
    }
}

/// Starts the role on the current runtime. It serves when this returns; without the master it serves 503 until the
/// keys have been read.
///
/// # Errors
/// [`StartError`] when an address is taken or the configuration makes no pool.
pub async fn start(settings: &Settings, config: ApiConfig) -> Result<RunningApi, StartError> {
    let listener = bind("api.listen", config.api.listen).await?;
    let admin_listener = bind("api.admin", config.api.admin).await?;
    let address = local(&listener, config.api.listen);
    let admin_address = local(&admin_listener, config.api.admin);

    let metrics = Arc::new(Metrics::new(settings.metrics_max_tenants)?);
    let store = Store::new(
        pg::pool(&settings.master, "gmah api catalog")?,
        settings.master_key.clone(),
        *settings.catalog.load_timeout,
    );
    let keyring = Arc::new(ArcSwap::from_pointee(Keyring::default()));
    let loader = {
        let store = store.clone();
        Box::new(move |id: &TenantId| store.detail(*id).map(|r| r.map(|d| d.map(DetailRow))).boxed())
    };
    let cache_metrics = CacheMetrics::register(&metrics.registry, "tenants")?;
    let tasks = Tasks::new();
    let traces =
        settings.traces.as_ref().map(|t| Traces::start(t, "gmah-api", metrics.trace_exports.clone()));
    let traces = traces.transpose().map_err(StartError::Traces)?;
    let app = Arc::new(App {
        tracer: traces.as_ref().map(Traces::tracer),
        platform: Platform::new(Verifier::new(keyring.clone(), AUDIENCE_PLATFORM), settings, &config.control),
        master: store.pool().clone(),
        tokens: TokenCheck::new(Verifier::new(keyring.clone(), AUDIENCE_API), metrics.clone()),
        catalog: Cache::new(settings.catalog.clone(), loader, store.newest(), cache_metrics),
        pools: Registry::new(config.pool.clone(), metrics.clone()),
        hasher: Hasher::new(config.api.max_password_hashes.get()),
        throttle: Throttle::default(),
        letters: Places::new(4, 64),
        transfers: Places::new(16, 128),
        exports: Places::new(2, 32),
        tasks: tasks.clone(),
        files: config.files.as_ref().map(Files::new).transpose().map_err(StartError::Config)?,
        cache: SumsCache::new(&config.cache).map_err(StartError::Config)?,
        mailer: Mailer::new(config.mail.as_ref().map(Relay::new).transpose()?),
        names: Names::new(settings),
        hearing: Arc::default(),
        derived: OnceLock::new(),
        keyring,
        draining: AtomicBool::new(false),
        metrics,
        config,
    });
    let node_id = uuid::Uuid::now_v7();
    let holder = Holder { id: node_id, role: "api", address: address.to_string() };
    background(&tasks, &app, &store, settings, holder);
    let max = app.config.api.max_connections.get();
    // Ends last: until then connections may be in use, and nobody else may have their places.
    let last = Tasks::new();
    let node = slots::Node {
        id: node_id,
        address: address.to_string(),
        heartbeat: *app.config.pool.heartbeat,
        budget: app.config.pool.max_per_server.get(),
    };
    let sharing = slots::run(settings.master.clone(), node, app.pools.clone(), app.pools.short());
    last.spawn_forever("pool-slots", sharing);
    tasks.spawn("api-listener", serve(listener, Services::new(&app), tasks.clone(), max));
    tasks.spawn("api-admin-listener", serve(admin_listener, admin::router(app.clone()), tasks.clone(), 64));
    tracing::info!(%address, admin = %admin_address, "api serves");
    Ok(RunningApi {
        address,
        admin: admin_address,
        app,
        tasks,
        last,
        master: settings.master.clone(),
        store,
        node: node_id,
        traces,
    })
}

impl RunningApi {
    /// What the role holds, for tests and for the composition of roles.
    pub fn app(&self) -> &Arc<App> {
        &self.app
    }

    /// Readiness off, no new connections, requests in flight finish, pools close.
    pub async fn stop(self) {
        self.app.draining.store(true, Ordering::Release);
        let grace = *self.app.config.api.drain_timeout;
        self.tasks.stop(grace).await;
        self.store.forget_holder(self.node).await;
        self.app.pools.close();
        // Their places are others' only when the servers have let them go.
        let let_go = async {
            while self.app.pools.budgets().iter().any(|(_, budget)| budget.load().0 > 0) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let is_free = tokio::time::timeout(grace.min(LET_GO), let_go).await.is_ok();
        self.last.stop(grace).await;
        if is_free {
            slots::leave(&self.master, self.node).await;
        }
        if let Some(traces) = self.traces {
            traces.stop().await;
        }
        tracing::info!("api stopped");
    }
}

fn background(tasks: &Tasks, app: &Arc<App>, store: &Store, settings: &Settings, holder: Holder) {
    let reload = Arc::new(Notify::new());
    let listeners = Listeners {
        // Pools need no notice: the next lease brings the row that is right, and without one they are reaped.
        caches: vec![Arc::new(app.catalog.clone()) as Arc<dyn Invalidate>],
        on_topic: {
            let reload = reload.clone();
            Box::new(move |topic| {
                if topic == Topic::Keys {
                    reload.notify_one();
                }
            })
        },
        hearing: app.hearing.clone(),
    };
    tasks.spawn_forever("catalog-listener", listen::run(settings.master.clone(), listeners));
    match Dns::new(&settings.dns) {
        Ok(dns) => {
            let checks = domains::check::run(settings.clone(), store.pool().clone(), dns);
            tasks.spawn_forever("domain-checks", checks);
        }
        Err(e) => tracing::error!(error = %e, "customers' names are not checked by this node"),
    }
    let (own, config, stop) = (settings.clone(), app.config.control.clone(), tasks.token().clone());
    let runtime = tokio::runtime::Handle::current();
    tasks.spawn("control-worker", async move {
        // Operations are bound to the thread that runs them.
        let working = tokio::task::spawn_blocking(move || runtime.block_on(worker::run(own, config, stop)));
        if let Err(e) = working.await {
            tracing::error!(error = %e, "the control plane's own work ended");
        }
    });
    tasks.spawn_forever("mailer", mail::run(app.clone()));
    if let Some(every) = settings.metrics_collect_every {
        tasks.spawn_forever("collector", collector::run(app.clone(), store.clone(), every));
    }
    tasks.spawn_forever("chores", chores::run(app.clone(), store.pool().clone()));
    tasks.spawn_forever("pool-reaper", app.pools.clone().reap());
    let (app, store) = (app.clone(), store.clone());
    tasks.spawn_forever("keyring", async move {
        loop {
            match known(&app, &store).await {
                Ok(ring) => {
                    let is_other = ring.kids() != app.keyring.load().kids();
                    app.keyring.store(Arc::new(ring));
                    // What was remembered of the same keys is right.
                    if is_other {
                        app.tokens.forget();
                    }
                    store.tell_keys(&holder, &app.keyring.load_full()).await;
                }
                Err(e) => tracing::warn!(error = %e, "signing keys not read"),
            }
            let pause = if app.keyring.load().is_empty() { KEYS_RETRY } else { holders::TOLD_EVERY };
            // Woken by a notice or by the clock; it rereads everything either way.
            let _ = tokio::time::timeout(pause, reload.notified()).await;
        }
    });
}

/// The keys that verify, once those that the nodes have in common are known as well.
async fn known(app: &App, store: &Store) -> Result<Keyring, StoreError> {
    if app.derived.get().is_none() {
        // Nobody else sets it.
        let _ = app.derived.set(Derived::new(&store.derivation().await?));
    }
    store.refresh_keys(false).await
}

/// How long servers may take to close what was closed.
const LET_GO: Duration = Duration::from_secs(5);
const KEYS_RETRY: Duration = Duration::from_millis(250);

/// The organisations' service and the platform's, on one listener: the host decides, before anything else is looked at.
#[derive(Clone)]
struct Services {
    app: Arc<App>,
    tenants: Router,
    platform: Router,
}

impl Services {
    fn new(app: &Arc<App>) -> Self {
        Self { app: app.clone(), tenants: routes::router(app.clone()), platform: platform::router(app) }
    }
}

impl Service<http::Request<Returning>> for Services {
    type Response = Response;
    type Error = Infallible;
    type Future = axum::routing::future::RouteFuture<Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // A router always is.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Returning>) -> Self::Future {
        let chosen = if self.app.platform.is_asked(request.headers()) {
            &mut self.platform
        } else {
            &mut self.tenants
        };
        chosen.call(request)
    }
}
