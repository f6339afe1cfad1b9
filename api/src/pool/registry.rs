//! Which pools there are.

mod lease;

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use gmah_shared::catalog::TenantDetail;
use gmah_shared::tenant::{Generation, TenantId};
use tokio::sync::Notify;

use super::PoolError;
use super::breaker::{Breaker, Failure, Standing};
use super::budget::{Budget, Held, NoTurn, PoolId, Slot, Turn};
use super::connection::{CleanError, Connection, open_in};
use crate::config::Pool as PoolConfig;
use crate::db::{Answer, Question};
use crate::metrics::{Metrics, PoolGauges};

pub use lease::Lease;

/// All pools of this process. Cheap to clone.
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

struct Inner {
    config: Arc<PoolConfig>,
    metrics: Arc<Metrics>,
    pools: Mutex<HashMap<Key, Arc<TenantPool>>>,
    servers: Mutex<HashMap<Arc<str>, Arc<Server>>>,
    start: Instant,
    /// Told when a server is new, or somebody waits for a place on one.
    short: Arc<Notify>,
}

/// A tenant has one pool where its data is, and may have another at a copy.
type Key = (TenantId, bool);

/// A PostgreSQL server.
struct Server {
    budget: Arc<Budget<Connection>>,
    breaker: Breaker,
    /// A copy that was late is not asked until then: milliseconds after the registry's start.
    rests_until: AtomicU64,
}

/// How long a copy that was late is not asked.
const REST: Duration = Duration::from_secs(1);

/// The pool of one tenant at one generation.
struct TenantPool {
    id: PoolId,
    generation: Generation,
    /// As it was when the pool was opened, but for passwords, which are exchanged while connections stay.
    detail: ArcSwap<TenantDetail>,
    server: Arc<Server>,
    breaker: Breaker,
    /// Milliseconds after the registry's start.
    last_used: AtomicU64,
}

/// Tenants that must fail, one after the other, before nobody asks their server any more.
const SERVER_PARTIES: usize = 3;

impl Registry {
    /// An empty registry.
    pub fn new(config: PoolConfig, metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(Inner {
            config: Arc::new(config),
            metrics,
            pools: Mutex::default(),
            servers: Mutex::default(),
            start: Instant::now(),
            short: Arc::default(),
        }))
    }

    /// Told when a server is new, or somebody waits for a place on one.
    pub fn short(&self) -> Arc<Notify> {
        self.0.short.clone()
    }

    /// The budget of each server. Empty ones until [`super::slots`] has something for them.
    pub fn budgets(&self) -> Vec<(Arc<str>, Arc<Budget<Connection>>)> {
        self.servers().iter().map(|(name, server)| (name.clone(), server.budget.clone())).collect()
    }

    /// A connection to the tenant's own database, proved, within `pool.wait_timeout`.
    ///
    /// # Errors
    /// [`PoolError`]; it has been logged and counted.
    pub async fn lease(&self, detail: &TenantDetail) -> Result<Lease, PoolError> {
        Ok(self.lease_and_ask(detail, None).await?.0)
    }

    /// The same, and the answer to the first question, if there is one. It is asked again where the probe of a connection that
    /// was used before shows that it has ended.
    ///
    /// # Errors
    /// As [`Registry::lease`]. Whoever gets no answer in time tells the lease.
    pub async fn lease_and_ask(
        &self,
        detail: &TenantDetail,
        first: Option<&Question<'_>>,
    ) -> Result<(Lease, Option<Answer>), PoolError> {
        let leased = match self.try_lease(detail, first).await {
            // Closed while waiting, because a newer row opened another one: once more, with that.
            Err(PoolError::Closed) => self.try_lease(detail, first).await,
            other => other,
        };
        leased.inspect_err(|e| self.failed(detail, e))
    }

    async fn try_lease(
        &self,
        detail: &TenantDetail,
        first: Option<&Question<'_>>,
    ) -> Result<(Lease, Option<Answer>), PoolError> {
        let pool = self.pool(detail)?;
        pool.last_used.store(self.0.now_ms(), Ordering::Relaxed);
        let budget = &pool.server.budget;
        // With nothing to lend, who may not connect need not wait either.
        let refused = pool.refuses(Instant::now());
        if let Some(why) = refused
            && budget.count(pool.id).all == 0
        {
            return Err(PoolError::Resting(why));
        }
        let deadline = Instant::now() + *self.0.config.wait_timeout;
        loop {
            let patience = deadline.saturating_duration_since(Instant::now());
            let turn = budget.turn(pool.id, refused.is_none(), patience).await.map_err(|e| match e {
                NoTurn::Full => PoolError::Queue,
                NoTurn::Closed => PoolError::Closed,
                NoTurn::Late => PoolError::Wait,
            })?;
            match turn {
                Turn::Open(slot) => {
                    let mut lease = self.open(pool.clone(), slot).await?;
                    let answer = match first {
                        Some(question) => Some(lease.ask(question).await),
                        None => None,
                    };
                    return Ok((lease, answer));
                }
                Turn::Reuse(held) if held.age() > *self.0.config.max_lifetime => drop(held.take()),
                Turn::Reuse(held) => {
                    if let Some(leased) = self.reuse(pool.clone(), held, first).await? {
                        return Ok(leased);
                    }
                }
            }
        }
    }

    /// Cleans a connection that was used before. None when the server has ended it.
    async fn reuse(
        &self,
        pool: Arc<TenantPool>,
        held: Held<Connection>,
        first: Option<&Question<'_>>,
    ) -> Result<Option<(Lease, Option<Answer>)>, PoolError> {
        // Busy until it is clean: a request that goes away meanwhile must not leave it to the next.
        let mut lease =
            Lease { held: Some(held), pool, registry: self.clone(), silent: Arc::default(), busy: true };
        let server = lease.pool.server.clone();
        let connection = lease.held.as_mut().expect("just put there").get();
        let cleaning = connection.clean(*self.0.config.connect_timeout, first, || server.breaker.succeeded());
        match cleaning.await {
            Ok(answer) => {
                lease.busy = false;
                Ok(Some((lease, answer)))
            }
            Err(CleanError::Ended(e)) => {
                tracing::debug!(error = %e, "a connection that was kept has ended");
                // There is nothing to cancel, unless it is the cleaning that went wrong.
                if lease.held.as_mut().is_some_and(|held| held.get().client.is_closed()) {
                    lease.held.take().map(Held::take);
                }
                Ok(None)
            }
            Err(CleanError::Silent) => {
                lease.went_silent();
                Err(PoolError::Silent)
            }
        }
    }

    async fn open(&self, pool: Arc<TenantPool>, slot: Slot<Connection>) -> Result<Lease, PoolError> {
        let now = Instant::now();
        pool.breaker.admit(now).map_err(PoolError::Resting)?;
        if let Err(why) = pool.server.breaker.admit(now) {
            pool.breaker.gave_up(now);
            return Err(PoolError::Resting(why));
        }
        let (this, owner, detail) = (self.clone(), pool.clone(), pool.detail.load_full());
        let opened = open_in(slot, detail.clone(), self.0.config.clone(), move |outcome| match outcome {
            Ok(()) => {
                owner.breaker.succeeded();
                owner.server.breaker.succeeded();
            }
            // A password that was exchanged meanwhile says nothing of the one that is there now.
            Err(e)
                if e.failure() == Failure::Authentication
                    && !Arc::ptr_eq(&detail, &owner.detail.load_full()) =>
            {
                owner.breaker.gave_up(Instant::now());
                owner.server.breaker.succeeded();
            }
            Err(e) => this.note(&owner, e.failure()),
        });
        match opened.await {
            Ok(Ok(held)) => Ok(Lease {
                held: Some(held),
                pool,
                registry: self.clone(),
                silent: Arc::default(),
                busy: false,
            }),
            Ok(Err(e)) => match e.failure() {
                // At a copy that is behind, an organisation's database may be there before its identity is.
                Failure::WrongDatabase if pool.detail.load().placement.is_replica && e.has_no_identity() => {
                    Err(PoolError::Connect(e))
                }
                Failure::WrongDatabase => {
                    self.0.metrics.identity_mismatches.inc();
                    tracing::error!(tenant.slug = %pool.detail.load().tenant.slug, error = %e,
                        "database is not this organisation's: nothing is served from it");
                    Err(PoolError::WrongDatabase)
                }
                Failure::Authentication => Err(PoolError::Authentication(e)),
                Failure::Schema if !pool.detail.load().placement.is_replica => {
                    tracing::error!(tenant.slug = %pool.detail.load().tenant.slug, error = %e,
                        "not served until its database is migrated: gmah tenant migrate");
                    Err(PoolError::Schema)
                }
                _ => Err(PoolError::Connect(e)),
            },
            Err(_) => Err(PoolError::Closed),
        }
    }

    /// Tells the breakers of a failure.
    fn note(&self, pool: &TenantPool, why: Failure) {
        // The tenant, however often its pool was opened.
        let detail = pool.detail.load();
        let (now, party) = (Instant::now(), detail.tenant.id.as_uuid().as_u64_pair().1);
        if pool.breaker.failed(now, party, why) {
            self.0.metrics.breaker_opened("tenant", why);
            tracing::warn!(tenant.slug = %detail.tenant.slug, reason = why.as_str(), "tenant's breaker opens");
        }
        let server = &pool.server;
        if !why.is_servers() {
            server.breaker.succeeded();
        } else if server.breaker.failed(now, party, why) {
            self.0.metrics.breaker_opened("server", why);
            tracing::error!(server = %detail.placement.server, reason = why.as_str(), "server's breaker opens");
        }
    }

    /// Closes idle connections and unused pools, for as long as the program runs.
    pub async fn reap(self) -> Infallible {
        let every = (*self.0.config.idle_timeout / 4).max(Duration::from_millis(50));
        loop {
            tokio::time::sleep(every).await;
            self.reap_once();
        }
    }

    /// What the metrics show of the pools.
    pub fn gauges(&self) -> PoolGauges {
        let mut gauges = PoolGauges::default();
        for pool in self.pools().values() {
            let count = pool.server.budget.count(pool.id);
            let sum = gauges.connections.entry(pool.detail.load().tenant.slug.to_string()).or_default();
            sum.0 += count.idle;
            sum.1 += count.all - count.idle.min(count.all);
            gauges.breaker("tenant", pool.breaker.standing());
        }
        for (name, server) in self.servers().iter() {
            let (used, waiting) = server.budget.load();
            gauges.servers.push((name.to_string(), server.budget.limit(), used, waiting));
            gauges.breaker("server", server.breaker.standing());
        }
        gauges
    }

    /// Why the breaker of a tenant's pool, or of its server, is not closed.
    pub fn breaker(&self, tenant: TenantId) -> Option<Failure> {
        let pool = self.pools().get(&(tenant, false))?.clone();
        match (pool.breaker.standing(), pool.server.breaker.standing()) {
            (Standing::Open(why) | Standing::HalfOpen(why), _)
            | (_, Standing::Open(why) | Standing::HalfOpen(why)) => Some(why),
            (Standing::Closed, Standing::Closed) => None,
        }
    }

    /// Whether a copy was late a moment ago.
    pub fn rests(&self, server: &str) -> bool {
        let now = self.0.now_ms();
        self.servers().get(server).is_some_and(|s| now < s.rests_until.load(Ordering::Relaxed))
    }

    /// Leaves a copy that was late alone for a while, so that not every request waits for it.
    pub fn let_rest(&self, server: &str) {
        let until = self.0.now_ms() + u64::try_from(REST.as_millis()).unwrap_or(u64::MAX);
        if let Some(server) = self.servers().get(server) {
            server.rests_until.store(until, Ordering::Relaxed);
        }
    }

    /// Closes every pool.
    pub fn close(&self) {
        let all: Vec<_> = self.pools().drain().map(|(_, pool)| pool).collect();
        for pool in all {
            pool.server.budget.close_pool(pool.id);
        }
    }

    fn reap_once(&self) {
        let idle = *self.0.config.idle_timeout;
        for server in self.servers().values() {
            server.budget.reap(idle, *self.0.config.max_lifetime);
        }
        let now = self.0.now_ms();
        let mut closed = Vec::new();
        self.pools().retain(|_, pool| {
            let unused = now.saturating_sub(pool.last_used.load(Ordering::Relaxed));
            // Nobody has come for it meanwhile: the map's is the only one.
            let ends = u128::from(unused) > idle.as_millis()
                && Arc::strong_count(pool) == 1
                && pool.server.budget.count(pool.id).all == 0;
            if ends {
                closed.push(pool.clone());
            }
            !ends
        });
        for pool in closed {
            pool.server.budget.close_pool(pool.id);
        }
    }

    fn pool(&self, detail: &TenantDetail) -> Result<Arc<TenantPool>, PoolError> {
        let generation = detail.tenant.generation;
        let mut pools = self.pools();
        let key = (detail.tenant.id, detail.placement.is_replica);
        if let Some(held) = pools.get(&key) {
            if held.generation > generation {
                return Err(PoolError::Superseded(held.generation));
            }
            // The caller's row may be a little older than the pool's, within a generation: the pool stays.
            let known = held.detail.load();
            let is_current = known.placement.is_same_place(&detail.placement)
                || known.tenant.revision > detail.tenant.revision;
            if held.generation == generation && is_current {
                let is_news = known.tenant.revision < detail.tenant.revision
                    && !known.placement.has_same_passwords(&detail.placement);
                if is_news {
                    // Who is connected stays so; who was refused may try again.
                    held.detail.store(Arc::new(detail.clone()));
                    held.breaker.succeeded();
                }
                return Ok(held.clone());
            }
        }
        let config = &self.0.config;
        let server = self.server(&detail.placement.server);
        let opened = Arc::new(TenantPool {
            id: server.budget.open_pool(config.max_per_tenant.get(), config.max_waiting.get()),
            generation,
            detail: ArcSwap::from_pointee(detail.clone()),
            server,
            breaker: Breaker::new(1, *config.retry_after_error, *config.max_retry_after_error),
            last_used: AtomicU64::new(self.0.now_ms()),
        });
        let before = pools.insert(key, opened.clone());
        drop(pools);
        if let Some(before) = before {
            before.server.budget.close_pool(before.id);
        }
        Ok(opened)
    }

    fn server(&self, name: &Arc<str>) -> Arc<Server> {
        let config = &self.0.config;
        self.servers()
            .entry(name.clone())
            .or_insert_with(|| {
                self.0.short.notify_one();
                Arc::new(Server {
                    budget: Budget::new(0, self.0.short.clone()),
                    breaker: Breaker::new(
                        SERVER_PARTIES,
                        *config.retry_after_error,
                        *config.max_retry_after_error,
                    ),
                    rests_until: AtomicU64::new(0),
                })
            })
            .clone()
    }

    fn failed(&self, detail: &TenantDetail, error: &PoolError) {
        self.0.metrics.pool_failures(error);
        match error {
            PoolError::Connect(cause) | PoolError::Authentication(cause) => {
                let causes: &dyn std::error::Error = cause;
                let why = causes.source().map_or_else(String::new, ToString::to_string);
                tracing::warn!(tenant.slug = %detail.tenant.slug, error = %cause, why, "no tenant database");
            }
            _ => tracing::debug!(tenant.slug = %detail.tenant.slug, error = %error, "no connection"),
        }
    }

    fn pools(&self) -> MutexGuard<'_, HashMap<Key, Arc<TenantPool>>> {
        self.0.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn servers(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<Server>>> {
        self.0.servers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TenantPool {
    /// Why nobody may connect right now.
    fn refuses(&self, now: Instant) -> Option<Failure> {
        self.breaker.refuses(now).or_else(|| self.server.breaker.refuses(now))
    }
}

impl Inner {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}
