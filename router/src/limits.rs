//! How much of the edge a tenant may have: requests a second, requests in flight, and its share when there is too much
//! to do.
//!
//! A tenant's counters live as long as something holds them, also across changes of its route. Admission is synchronous,
//! unless routers share their counters ([`shared`]): then a tenant's allowance is fetched in portions, and a request
//! waits for the next one at most a moment.

pub mod shared;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use gmah_shared::catalog::Limits;
use gmah_shared::tenant::TenantId;
use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

use crate::reject::{Refusal, Rejection};
use shared::{Allowance, Shared};

/// The counters of all tenants. Cheap to clone.
#[derive(Clone)]
pub struct Limiters(Arc<Inner>);

struct Inner {
    known: Mutex<HashMap<TenantId, Weak<Tenant>>>,
    whole: Arc<Whole>,
    shared: Option<Arc<Shared>>,
}

/// What all tenants share.
struct Whole {
    max: AtomicUsize,
    in_flight: AtomicUsize,
    /// Sum of the weights of tenants that have a request in flight.
    weight: AtomicUsize,
}

/// What is counted for a tenant, whatever its limits are.
pub struct Tenant {
    id: TenantId,
    in_flight: Mutex<InFlight>,
    /// In flight on other routers, and when they said so.
    elsewhere: Mutex<(usize, Instant)>,
    held: AtomicUsize,
    /// Whether the shared counters are to hear of it.
    is_limited: AtomicBool,
    current: Mutex<Weak<Limiter>>,
}

/// Requests in flight here, and the weight that was added for them: taken away again as it was, whatever the limits say
/// by then.
#[derive(Default)]
struct InFlight {
    count: usize,
    weight: usize,
    /// Whether other routers were told of some.
    is_published: bool,
}

/// A tenant's limits at work.
pub struct Limiter {
    limits: Limits,
    rate: Option<DefaultDirectRateLimiter>,
    /// Boxed: most routers share nothing.
    allowance: Option<Box<Allowance>>,
    tenant: Arc<Tenant>,
    whole: Arc<Whole>,
    /// Routes that it is kept with.
    keepers: AtomicUsize,
}

/// A request in flight; counted until dropped.
pub struct Slot(Arc<Limiter>);

/// A request that waits for the end of a maintenance; counted until dropped.
pub struct Held(Arc<Tenant>);

impl Limiters {
    /// No tenant yet; `max` requests in flight in all.
    pub fn new(max: usize, shared: Option<Arc<Shared>>) -> Self {
        let whole = Arc::new(Whole {
            max: AtomicUsize::new(max),
            in_flight: AtomicUsize::new(0),
            weight: AtomicUsize::new(0),
        });
        Self(Arc::new(Inner { known: Mutex::default(), whole, shared }))
    }

    /// Exchanges how many requests may be in flight in all.
    pub fn rebound(&self, max: usize) {
        self.0.whole.max.store(max, Ordering::Relaxed);
    }

    /// The limiter of a tenant under these limits. The same one as long as they stay.
    pub fn of(&self, id: TenantId, limits: Limits) -> Arc<Limiter> {
        let tenant = self.tenant(id);
        let mut current = lock(&tenant.current);
        if let Some(limiter) = current.upgrade()
            && limiter.limits == limits
        {
            return limiter;
        }
        let shared = self.0.shared.as_ref();
        let quota = quota(&limits);
        tenant.is_limited.store(shared.is_some() && limits.concurrent_requests.is_some(), Ordering::Relaxed);
        let limiter = Arc::new(Limiter {
            rate: quota.map(RateLimiter::direct),
            allowance: shared
                .zip(quota)
                .map(|(shared, quota)| Box::new(Allowance::new(shared.clone(), id, quota))),
            limits,
            tenant: tenant.clone(),
            whole: self.0.whole.clone(),
            keepers: AtomicUsize::new(0),
        });
        // Whoever holds the old one goes on counting for the same tenant.
        *current = Arc::downgrade(&limiter);
        limiter
    }

    fn tenant(&self, id: TenantId) -> Arc<Tenant> {
        let mut known = lock(&self.0.known);
        if let Some(tenant) = known.get(&id).and_then(Weak::upgrade) {
            return tenant;
        }
        if known.len() >= FIRST_SWEEP && known.len() == known.capacity() {
            known.retain(|_, tenant| tenant.strong_count() > 0);
        }
        let tenant = Arc::new(Tenant {
            id,
            in_flight: Mutex::default(),
            elsewhere: Mutex::new((0, Instant::now())),
            held: AtomicUsize::new(0),
            is_limited: AtomicBool::new(false),
            current: Mutex::new(Weak::new()),
        });
        known.insert(id, Arc::downgrade(&tenant));
        tenant
    }

    /// Tenants whose requests in flight other routers should know of.
    fn busy(&self) -> Vec<Arc<Tenant>> {
        let known = lock(&self.0.known);
        // Once more after the last request: that there is none is news as well.
        let is_busy = |t: &Arc<Tenant>| {
            let mut here = lock(&t.in_flight);
            let has = here.count > 0;
            let had = std::mem::replace(&mut here.is_published, has);
            t.is_limited.load(Ordering::Relaxed) && (had || has)
        };
        known.values().filter_map(Weak::upgrade).filter(is_busy).take(shared::MAX_PUBLISHED).collect()
    }

    /// Keeps routers informed of each other's requests in flight, where they share counters.
    pub async fn publish(self) -> std::convert::Infallible {
        let Some(shared) = self.0.shared.clone() else { return std::future::pending().await };
        loop {
            tokio::time::sleep(shared::PUBLISH_EVERY).await;
            let busy = self.busy();
            shared.publish(&busy).await;
        }
    }
}

impl Limiter {
    /// Takes a place for a request, or says which limit is reached.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn admit(self: &Arc<Self>) -> Result<Slot, Refusal> {
        // The place first: what is refused for want of one should not use up the rate.
        let slot = self.enter()?;
        if let Some(allowance) = &self.allowance
            && let Some(answer) = Box::pin(allowance.take()).await
        {
            return answer.map(|()| slot).map_err(rate_limited);
        }
        match &self.rate {
            None => Ok(slot),
            Some(rate) => match rate.check() {
                Ok(()) => Ok(slot),
                Err(not_until) => Err(rate_limited(not_until.wait_time_from(DefaultClock::default().now()))),
            },
        }
    }

    fn enter(self: &Arc<Self>) -> Result<Slot, Refusal> {
        let refuse = |rejection: Rejection| Err(Refusal::from(rejection));
        let mine = {
            let mut here = lock(&self.tenant.in_flight);
            if here.count == 0 {
                here.weight = self.weight();
                self.whole.weight.fetch_add(here.weight, Ordering::AcqRel);
            }
            here.count += 1;
            here.count - 1
        };
        let all = self.whole.in_flight.fetch_add(1, Ordering::AcqRel);
        let slot = Slot(self.clone());
        let elsewhere = self.tenant.elsewhere();
        if self.limits.concurrent_requests.is_some_and(|max| mine + elsewhere >= max.get() as usize) {
            return refuse(Rejection::TooManyConcurrent);
        }
        // Half of the edge is for whoever comes; of the other half nobody gets more than its share.
        let max = self.whole.max.load(Ordering::Relaxed);
        if all >= max / 2 {
            let weights = self.whole.weight.load(Ordering::Acquire).max(1);
            let share = (max * self.weight() / weights).max(1);
            if mine >= share {
                return refuse(Rejection::Overloaded);
            }
        }
        Ok(slot)
    }

    /// Requests that one address may have in flight.
    pub fn per_address(&self) -> usize {
        let all = self.limits.concurrent_requests.map(|max| max.get() as usize);
        share_of_address(all.unwrap_or_else(|| self.whole.max.load(Ordering::Relaxed)))
    }

    /// One more route keeps it.
    pub fn kept(&self) {
        self.keepers.fetch_add(1, Ordering::Relaxed);
    }

    /// One that kept it does no more.
    pub fn let_go(&self) {
        self.keepers.fetch_sub(1, Ordering::Relaxed);
    }

    /// How many routes keep it.
    pub fn keepers(&self) -> usize {
        self.keepers.load(Ordering::Relaxed)
    }

    /// After so long without a request all of its rate is there again.
    pub fn seconds_to_fill(&self) -> u64 {
        let Some(rate) = self.limits.requests_per_second else { return 0 };
        u64::from(self.limits.request_burst.unwrap_or(rate).get().div_ceil(rate.get()))
    }

    fn weight(&self) -> usize {
        self.limits.weight.max(1) as usize
    }

    /// Takes a place among those that wait, of which there are `max`.
    pub fn hold(&self, max: u32) -> Option<Held> {
        let held = Held(self.tenant.clone());
        (self.tenant.held.fetch_add(1, Ordering::AcqRel) < max as usize).then_some(held)
    }

    /// The largest request body, where the edge itself allows `edge`.
    pub fn max_body(&self, edge: u64) -> u64 {
        self.limits.max_body_bytes.map_or(edge, |own| own.get().min(edge))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut here = lock(&self.0.tenant.in_flight);
        here.count -= 1;
        if here.count == 0 {
            self.0.whole.weight.fetch_sub(here.weight, Ordering::AcqRel);
        }
        drop(here);
        self.0.whole.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Tenant {
    /// Its organisation.
    pub fn id(&self) -> TenantId {
        self.id
    }

    /// Requests in flight here.
    pub fn in_flight(&self) -> usize {
        lock(&self.in_flight).count
    }

    /// What the others said they have, if that was just now.
    fn elsewhere(&self) -> usize {
        let (requests, said) = *lock(&self.elsewhere);
        if requests > 0 && said.elapsed() < shared::BELIEVED_FOR { requests } else { 0 }
    }

    /// What other routers say that they have.
    pub fn set_elsewhere(&self, requests: usize) {
        *lock(&self.elsewhere) = (requests, Instant::now());
    }
}

/// What one address may have of an organisation's places: half, or all of them where they are few.
fn share_of_address(all: usize) -> usize {
    (all / 2).max(FEW)
}

/// What one address may have of the `all` requests of an organisation that wait: half, or a few where that is fewer.
pub fn share_of_held(all: usize) -> usize {
    (all / 2).max(FEW_HELD)
}

fn quota(limits: &Limits) -> Option<Quota> {
    let rate = limits.requests_per_second?;
    Some(Quota::per_second(rate).allow_burst(limits.request_burst.unwrap_or(rate)))
}

fn rate_limited(wait: Duration) -> Refusal {
    let seconds = u32::try_from(wait.as_secs_f64().ceil() as u64).unwrap_or(u32::MAX);
    Refusal { rejection: Rejection::RateLimited, retry_after: Some(seconds.clamp(1, 3600)) }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// So many requests any address may have in flight: an office behind one address has no more.
const FEW: usize = 256;
/// So many any address may have waiting.
const FEW_HELD: usize = 8;
/// Below this many tenants nothing is thrown out.
const FIRST_SWEEP: usize = 1024;

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn limits(rate: u32, concurrent: u32, weight: u32) -> Limits {
        Limits {
            requests_per_second: NonZeroU32::new(rate),
            concurrent_requests: NonZeroU32::new(concurrent),
            weight,
            ..Limits::default()
        }
    }

    fn id(n: u128) -> TenantId {
        TenantId::from_uuid(uuid::Uuid::from_u128(n))
    }

    async fn admitted(limiter: &Arc<Limiter>, n: usize) -> Vec<Slot> {
        let mut slots = Vec::new();
        for _ in 0..n {
            slots.extend(limiter.admit().await.ok());
        }
        slots
    }

    #[tokio::test]
    async fn r15_a_rate_and_its_burst() {
        let limiters = Limiters::new(10_000, None);
        let limiter = limiters.of(id(1), limits(50, 0, 1));
        let taken = admitted(&limiter, 500).await.len();
        assert!((50..60).contains(&taken), "{taken}");
        let refusal = limiter.admit().await.err().expect("over the limit");
        assert_eq!((refusal.rejection, refusal.retry_after), (Rejection::RateLimited, Some(1)));
        assert_eq!(
            admitted(&limiters.of(id(2), limits(50, 0, 1)), 40).await.len(),
            40,
            "nobody else's trouble"
        );
        assert!(Arc::ptr_eq(&limiter, &limiters.of(id(1), limits(50, 0, 1))), "the counters outlive a route");
        assert_eq!(admitted(&limiters.of(id(1), limits(0, 0, 1)), 500).await.len(), 500, "no limit any more");
        let slow = limiters.of(id(3), Limits { request_burst: NonZeroU32::new(5), ..limits(1, 0, 1) });
        assert_eq!(admitted(&slow, 50).await.len(), 5);
    }

    #[tokio::test]
    async fn requests_in_flight_are_counted_across_changes() {
        let limiters = Limiters::new(10_000, None);
        let before = limiters.of(id(1), limits(0, 3, 1));
        let held = admitted(&before, 10).await;
        assert_eq!(held.len(), 3);
        let after = limiters.of(id(1), limits(0, 5, 1));
        let more = admitted(&after, 10).await;
        assert_eq!(more.len(), 2, "those of before count");
        assert_eq!(after.enter().err().expect("full").rejection, Rejection::TooManyConcurrent);
        drop((held, more));
        assert_eq!(admitted(&after, 10).await.len(), 5);
        assert_eq!((after.tenant.in_flight(), after.whole.in_flight.load(Ordering::Relaxed)), (0, 0));
        assert_eq!(after.whole.weight.load(Ordering::Relaxed), 0);
        // Begun under one weight, ended under another.
        let (light, heavy) =
            (Limits { weight: 1, ..limits(0, 0, 1) }, Limits { weight: 7, ..limits(0, 0, 1) });
        let first = limiters.of(id(1), light).enter().expect("place");
        let second = limiters.of(id(1), heavy).enter().expect("place");
        drop(first);
        drop(second);
        assert_eq!(after.whole.weight.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn r15_shares_by_weight_where_there_is_too_much_to_do() {
        let limiters = Limiters::new(100, None);
        let (greedy, small) = (limiters.of(id(1), limits(0, 0, 1)), limiters.of(id(2), limits(0, 0, 3)));
        let alone = admitted(&greedy, 500).await;
        assert_eq!(alone.len(), 100, "alone it may have all");
        let others = admitted(&small, 500).await;
        assert_eq!(others.len(), 75, "its share, whoever was there before");
        assert_eq!(greedy.enter().err().expect("over its share").rejection, Rejection::Overloaded);
        drop((alone, others));
        assert_eq!(limiters.0.whole.in_flight.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn tenants_that_nobody_holds_are_forgotten() {
        let limiters = Limiters::new(100, None);
        for n in 0..100_000 {
            drop(limiters.of(id(n), limits(1, 1, 1)));
        }
        assert!(lock(&limiters.0.known).values().all(|t| t.strong_count() == 0));
        assert!(lock(&limiters.0.known).len() < 10_000);
    }
}
