//! Which pools there are.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use deadpool::managed::{self, Object, PoolConfig as Deadpool, Timeouts};
use deadpool_postgres::ClientWrapper;
use gmah_shared::catalog::TenantDetail;
use gmah_shared::tasks;
use gmah_shared::tenant::{Generation, TenantId};

use super::PoolError;
use super::budget::{Budget, GivesUp};
use super::connection::{ConnectError, Manager, cancel_and_close};
use crate::config::Pool as PoolConfig;
use crate::metrics::Metrics;

/// All pools of this process. Cheap to clone.
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

struct Inner {
    config: Arc<PoolConfig>,
    metrics: Arc<Metrics>,
    pools: Mutex<HashMap<TenantId, Arc<TenantPool>>>,
    budgets: Mutex<HashMap<Arc<str>, Arc<Budget>>>,
    start: Instant,
}

/// The pool of one tenant at one generation.
struct TenantPool {
    generation: Generation,
    detail: TenantDetail,
    pool: managed::Pool<Manager>,
    budget: Arc<Budget>,
    /// Milliseconds after the registry's start.
    last_used: AtomicU64,
    /// Until when no connect is tried, in the same unit.
    resting_until: AtomicU64,
}

impl GivesUp for TenantPool {
    fn last_used(&self) -> u64 {
        self.last_used.load(Ordering::Relaxed)
    }

    fn give_up_one(&self) -> bool {
        let mut given = false;
        let removed = self.pool.retain(|c, _| {
            // One, if it is still wanted.
            let give = !given && self.budget.claim(&c.closing);
            given |= give;
            !give
        });
        !removed.removed.is_empty()
    }
}

/// A connection on loan. Back to its pool when dropped, unless something is still running on it or somebody else
/// waits for its place.
pub struct Lease {
    object: Option<Object<Manager>>,
    pool: Arc<TenantPool>,
    /// Set while a statement runs: a lease that is dropped then is not reusable.
    busy: bool,
}

impl Lease {
    /// The client, and the mark that something is running on it.
    pub fn parts(&mut self) -> (&mut ClientWrapper, &mut bool) {
        (&mut self.object.as_mut().expect("held until dropped").client, &mut self.busy)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(object) = self.object.take() else { return };
        if self.busy {
            let connection = Object::take(object);
            let p = &self.pool.detail.placement;
            tasks::detach("tenant-cancel", cancel_and_close(connection, p.host.clone(), p.port));
        } else if self.pool.budget.claim(&object.closing) {
            drop(Object::take(object));
        } else {
            drop(object);
            // Somebody may have begun to wait in between, and found nothing idle.
            if self.pool.budget.is_wanted() {
                self.pool.give_up_one();
            }
        }
    }
}

impl Registry {
    /// An empty registry.
    pub fn new(config: PoolConfig, metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(Inner {
            config: Arc::new(config),
            metrics,
            pools: Mutex::default(),
            budgets: Mutex::default(),
            start: Instant::now(),
        }))
    }

    /// A connection to the tenant's own database, proved, within `pool.wait_timeout`.
    ///
    /// # Errors
    /// [`PoolError`]; it has been logged and counted.
    pub async fn lease(&self, detail: &TenantDetail) -> Result<Lease, PoolError> {
        match self.try_lease(detail).await {
            // Closed while waiting, because a newer row opened another one: once more, with that.
            Err(PoolError::Closed) => self.try_lease(detail).await,
            other => other,
        }
    }

    async fn try_lease(&self, detail: &TenantDetail) -> Result<Lease, PoolError> {
        let pool = self.pool(detail)?;
        let now = self.0.now_ms();
        pool.last_used.store(now, Ordering::Relaxed);
        let status = pool.pool.status();
        if status.waiting >= self.0.config.max_waiting.get() {
            return self.failed(detail, PoolError::Queue);
        }
        if status.size == 0 && now < pool.resting_until.load(Ordering::Acquire) {
            return self.failed(detail, PoolError::Resting);
        }
        let leased = tokio::time::timeout(*self.0.config.wait_timeout, pool.pool.get()).await;
        match leased {
            Ok(Ok(object)) => Ok(Lease { object: Some(object), pool, busy: false }),
            Ok(Err(managed::PoolError::Backend(e))) => {
                let error = match e {
                    ConnectError::Proof(why) if !matches!(why, super::proof::ProofError::Query(_)) => {
                        self.0.metrics.identity_mismatches.inc();
                        tracing::error!(tenant.slug = %detail.tenant.slug, error = %why,
                            "database is not this organisation's: nothing is served from it");
                        PoolError::WrongDatabase
                    }
                    ConnectError::Budget => PoolError::Wait,
                    other => PoolError::Connect(other),
                };
                if !matches!(error, PoolError::Wait) {
                    let pause = self.0.config.retry_after_error.as_millis();
                    pool.resting_until
                        .store(self.0.now_ms() + u64::try_from(pause).unwrap_or(0), Ordering::Release);
                }
                self.failed(detail, error)
            }
            Ok(Err(managed::PoolError::Closed)) => self.failed(detail, PoolError::Closed),
            Ok(Err(_)) | Err(_) => self.failed(detail, PoolError::Wait),
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

    /// Connections by tenant: idle and leased.
    pub fn connections(&self) -> Vec<(String, usize, usize)> {
        let pools = self.0.pools.lock().unwrap_or_else(PoisonError::into_inner);
        pools
            .values()
            .map(|p| {
                let s = p.pool.status();
                let idle = s.available.min(s.size);
                (p.detail.tenant.slug.to_string(), idle, s.size - idle)
            })
            .collect()
    }

    /// Closes every pool.
    pub fn close(&self) {
        for (_, pool) in self.0.pools.lock().unwrap_or_else(PoisonError::into_inner).drain() {
            pool.pool.close();
        }
    }

    fn reap_once(&self) {
        let idle = *self.0.config.idle_timeout;
        let now = self.0.now_ms();
        let all: Vec<_> = {
            let pools = self.0.pools.lock().unwrap_or_else(PoisonError::into_inner);
            pools.iter().map(|(id, p)| (*id, p.clone())).collect()
        };
        for (id, pool) in all {
            let lifetime = *self.0.config.max_lifetime;
            drop(
                pool.pool.retain(|c, m| !c.client.is_closed() && m.last_used() < idle && m.age() < lifetime),
            );
            let unused = now.saturating_sub(pool.last_used.load(Ordering::Relaxed));
            if pool.pool.status().size == 0 && u128::from(unused) > idle.as_millis() {
                let mut pools = self.0.pools.lock().unwrap_or_else(PoisonError::into_inner);
                // Only if nobody came for it meanwhile: here, in `all`, and in the map.
                if pools.get(&id).is_some_and(|p| Arc::ptr_eq(p, &pool) && Arc::strong_count(p) == 2) {
                    pools.remove(&id);
                }
            }
        }
    }

    fn pool(&self, detail: &TenantDetail) -> Result<Arc<TenantPool>, PoolError> {
        let generation = detail.tenant.generation;
        let mut pools = self.0.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = pools.get(&detail.tenant.id) {
            if held.generation > generation {
                return Err(PoolError::Superseded(held.generation));
            }
            // The caller's row may be a little older than the pool's, within a generation: the pool stays.
            let is_current = held.detail.placement.is_same(&detail.placement)
                || held.detail.tenant.revision > detail.tenant.revision;
            if held.generation == generation && is_current {
                return Ok(held.clone());
            }
            held.pool.close();
        }
        let budget = self.budget(&detail.placement.server);
        let config = self.0.config.clone();
        let opened = Arc::new_cyclic(|me: &Weak<TenantPool>| {
            let manager = Manager {
                detail: detail.clone(),
                budget: budget.clone(),
                config: config.clone(),
                owner: me.clone(),
            };
            let timeouts = Timeouts {
                wait: Some(*config.wait_timeout),
                create: Some(*config.wait_timeout + *config.connect_timeout),
                recycle: Some(*config.connect_timeout),
            };
            TenantPool {
                generation,
                detail: detail.clone(),
                pool: managed::Pool::builder(manager)
                    .config(Deadpool {
                        max_size: config.max_per_tenant.get(),
                        timeouts,
                        queue_mode: managed::QueueMode::Lifo,
                    })
                    .runtime(deadpool::Runtime::Tokio1)
                    .build()
                    .expect("a runtime is given, which is all that building asks for"),
                budget,
                last_used: AtomicU64::new(self.0.now_ms()),
                resting_until: AtomicU64::new(0),
            }
        });
        pools.insert(detail.tenant.id, opened.clone());
        Ok(opened)
    }

    fn budget(&self, server: &Arc<str>) -> Arc<Budget> {
        let mut budgets = self.0.budgets.lock().unwrap_or_else(PoisonError::into_inner);
        budgets
            .entry(server.clone())
            .or_insert_with(|| Budget::new(self.0.config.max_per_server.get()))
            .clone()
    }

    fn failed(&self, detail: &TenantDetail, error: PoolError) -> Result<Lease, PoolError> {
        self.0.metrics.pool_failures(&error);
        match &error {
            PoolError::Connect(cause) => {
                let causes: &dyn std::error::Error = cause;
                let why = causes.source().map_or_else(String::new, ToString::to_string);
                tracing::warn!(tenant.slug = %detail.tenant.slug, error = %cause, why, "no tenant database");
            }
            _ => tracing::debug!(tenant.slug = %detail.tenant.slug, error = %error, "no connection"),
        }
        Err(error)
    }
}

impl Inner {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}
