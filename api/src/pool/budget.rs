//! How many connections one PostgreSQL server gets from this process.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use gmah_shared::tenant::TenantId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A pool that may have idle connections to give up.
pub trait GivesUp: Send + Sync {
    /// When it was last used, in any unit that grows.
    fn last_used(&self) -> u64;
    /// Closes one idle connection; says whether there was one.
    fn give_up_one(&self) -> bool;
}

/// The budget of one server.
pub struct Budget {
    slots: Arc<Semaphore>,
    waiting: AtomicUsize,
    /// Connections that are being closed for those who wait.
    closing: AtomicUsize,
    /// Pools that hold connections, and how many. At most as many entries as slots.
    holders: Mutex<HashMap<TenantId, Holder>>,
}

struct Holder {
    pool: Weak<dyn GivesUp>,
    connections: usize,
}

/// One connection's place. Given back when dropped, which the connection does after the server closed its end.
pub struct Slot {
    closing: Closing,
    budget: Arc<Budget>,
    tenant: TenantId,
    _permit: OwnedSemaphorePermit,
}

/// Marks a connection that is closed so that somebody else can have its place.
#[derive(Clone, Default)]
pub struct Closing(Arc<AtomicBool>);

impl Slot {
    /// The mark of this slot's connection.
    pub fn closing(&self) -> Closing {
        self.closing.clone()
    }
}

impl Budget {
    /// A budget of `max` connections.
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self {
            slots: Arc::new(Semaphore::new(max)),
            waiting: AtomicUsize::new(0),
            closing: AtomicUsize::new(0),
            holders: Mutex::default(),
        })
    }

    /// A slot for a tenant's pool, giving up somebody's idle connection if need be. Nothing after `patience`.
    pub async fn acquire(
        self: &Arc<Self>,
        tenant: TenantId,
        pool: Weak<dyn GivesUp>,
        patience: Duration,
    ) -> Option<Slot> {
        let permit = match self.slots.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                let _waiting = Waiting::enter(&self.waiting);
                self.give_up_least_recently_used(tenant);
                tokio::time::timeout(patience, self.slots.clone().acquire_owned()).await.ok()?.ok()?
            }
        };
        let mut holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
        let holder = holders.entry(tenant).or_insert(Holder { pool: pool.clone(), connections: 0 });
        holder.pool = pool;
        holder.connections += 1;
        Some(Slot { closing: Closing::default(), budget: self.clone(), tenant, _permit: permit })
    }

    /// Whether a returned connection is to be closed rather than kept idle: more wait than places are on their way. The
    /// caller then closes the connection of that mark.
    pub fn claim(&self, closing: &Closing) -> bool {
        let owed = |n: usize| (n < self.waiting.load(Ordering::Acquire)).then_some(n + 1);
        let claimed = self.closing.fetch_update(Ordering::AcqRel, Ordering::Acquire, owed).is_ok();
        if claimed {
            closing.0.store(true, Ordering::Release);
        }
        claimed
    }

    /// Whether somebody waits for whom no place is on its way.
    pub fn is_wanted(&self) -> bool {
        self.waiting.load(Ordering::Acquire) > self.closing.load(Ordering::Acquire)
    }

    /// Free slots.
    pub fn free(&self) -> usize {
        self.slots.available_permits()
    }

    fn give_up_least_recently_used(&self, not: TenantId) {
        let mut pools: Vec<_> = {
            let holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
            holders.iter().filter(|(id, _)| **id != not).filter_map(|(_, h)| h.pool.upgrade()).collect()
        };
        pools.sort_by_cached_key(|p| p.last_used());
        // Most have none idle; the first that has one gives it up.
        let _given = pools.iter().any(|p| p.give_up_one());
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.closing.0.load(Ordering::Acquire) {
            self.budget.closing.fetch_sub(1, Ordering::AcqRel);
        }
        let mut holders = self.budget.holders.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(holder) = holders.get_mut(&self.tenant) {
            holder.connections -= 1;
            if holder.connections == 0 {
                holders.remove(&self.tenant);
            }
        }
    }
}

struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn enter(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Pool {
        used: u64,
        idle: Mutex<Vec<Slot>>,
    }

    impl GivesUp for Pool {
        fn last_used(&self) -> u64 {
            self.used
        }

        fn give_up_one(&self) -> bool {
            self.idle.lock().expect("lock").pop().is_some()
        }
    }

    #[tokio::test]
    async fn the_longest_unused_gives_up_first_and_leased_ones_never() {
        let budget = Budget::new(2);
        let long = Duration::from_secs(5);
        let (a, b, c) = (TenantId::generate(), TenantId::generate(), TenantId::generate());
        let pools: Vec<Arc<Pool>> =
            [2, 1, 3].map(|used| Arc::new(Pool { used, idle: Mutex::default() })).into();
        let weak = |n: usize| Arc::downgrade(&pools[n]) as Weak<dyn GivesUp>;
        let slot_a = budget.acquire(a, weak(0), long).await.expect("slot");
        let slot_b = budget.acquire(b, weak(1), long).await.expect("slot");
        assert!(budget.acquire(c, weak(2), Duration::from_millis(20)).await.is_none(), "both leased");
        pools[0].idle.lock().expect("lock").push(slot_a);
        pools[1].idle.lock().expect("lock").push(slot_b);
        let slot_c = budget.acquire(c, weak(2), long).await.expect("slot");
        assert_eq!(pools[0].idle.lock().expect("lock").len(), 1, "used later");
        assert_eq!(pools[1].idle.lock().expect("lock").len(), 0, "given up");
        assert_eq!(budget.free(), 0);
        drop(slot_c);
        assert_eq!(budget.free(), 1);
    }

    #[tokio::test]
    async fn those_who_wait_are_seen() {
        let budget = Budget::new(1);
        let id = TenantId::generate();
        let none = || Weak::<Pool>::new() as Weak<dyn GivesUp>;
        let slot = budget.acquire(id, none(), Duration::ZERO).await.expect("slot");
        assert!(!budget.is_wanted());
        let waits = gmah_shared::tasks::detach("waits", {
            let budget = budget.clone();
            async move { budget.acquire(TenantId::generate(), none(), Duration::from_secs(5)).await.is_some() }
        });
        while !budget.is_wanted() {
            tokio::task::yield_now().await;
        }
        drop(slot);
        assert!(waits.await.expect("joined"));
        assert!(!budget.is_wanted());
    }
}
