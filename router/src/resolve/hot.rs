//! What is kept of organisations that are asked for right now, beside what is known of every one: counters, tokens.
//!
//! It is some kilobyte each, and most organisations that a router knows are quiet, so only so many have it. One that rests
//! makes room for another; what it had is made again when it is asked for again. Only where nobody rests does one that is
//! busy make room, and it keeps whatever its limits have counted.

use std::collections::VecDeque;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwapOption;
use http::HeaderValue;

use super::Route;
use crate::limits::Limiter;
use crate::metrics::TenantSeries;

/// What requests of one organisation share.
pub struct Hot {
    /// Its limits at work.
    pub limiter: Arc<Limiter>,
    /// Its series.
    pub series: Arc<TenantSeries>,
    /// The tokens for its own host, one per pool, minted when first needed and reused for a fraction of their life.
    pub(super) minted: ArcSwapOption<Vec<Minted>>,
    /// When it was last asked for, in seconds after the start.
    asked: AtomicU64,
}

/// A token that is used more than once.
#[derive(Clone)]
pub(super) struct Minted {
    pub(super) audience: Box<str>,
    pub(super) value: HeaderValue,
    pub(super) kid: Arc<str>,
    pub(super) issued: u64,
}

impl Hot {
    pub(super) fn new(limiter: Arc<Limiter>, series: Arc<TenantSeries>) -> Self {
        Self { limiter, series, minted: ArcSwapOption::empty(), asked: AtomicU64::new(0) }
    }

    /// Whether it is of no use and nothing is lost with it: its limiter is kept with a later record, or what that allows by
    /// the second is all there again.
    fn rests(&self, at: u64) -> bool {
        let quiet = at.saturating_sub(self.asked.load(Ordering::Relaxed));
        self.limiter.keepers() > 1 || quiet > self.limiter.seconds_to_fill().max(1)
    }
}

/// Those who have it: `max` of them, and besides those whose limits still remember something. `R` is a handle on a route.
pub(super) struct Warm<R> {
    max: usize,
    start: Instant,
    /// Those who have had it for longest come first. Whoever is here has it; whoever has it is here, or is about to be.
    ring: Mutex<VecDeque<R>>,
}

impl<R: Clone + Deref<Target = Route>> Warm<R> {
    pub(super) fn new(max: usize) -> Self {
        Self { max, start: Instant::now(), ring: Mutex::default() }
    }

    /// What is kept of that route, made if need be.
    pub(super) fn of(&self, route: &R, now: Instant, make: impl FnOnce(&Route) -> Hot) -> Arc<Hot> {
        let at = now.saturating_duration_since(self.start).as_secs();
        if let Some(hot) = route.hot.load_full() {
            // Not written where it is the same: every worker reads it.
            if hot.asked.load(Ordering::Relaxed) < at {
                hot.asked.store(at, Ordering::Relaxed);
            }
            return hot;
        }
        let hot = Arc::new(make(route));
        hot.asked.store(at, Ordering::Relaxed);
        let before = route.hot.compare_and_swap(&None::<Arc<Hot>>, Some(hot.clone()));
        if let Some(others) = before.as_ref() {
            return others.clone();
        }
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        if ring.len() >= self.max {
            make_room(&mut ring, at);
        }
        hot.limiter.kept();
        ring.push_back(route.clone());
        hot
    }
}

/// Takes it from those who rest among the first few. Where none does, from one without a rate; where all have one, somebody's
/// tokens are forgotten.
fn make_room<R: Deref<Target = Route>>(ring: &mut VecDeque<R>, at: u64) {
    let (mut busy, looked_at) = (0, LOOKED_AT.min(ring.len()));
    for _ in 0..looked_at {
        match ring.pop_front() {
            Some(first) if !first.hot.load().as_ref().is_some_and(|hot| hot.rests(at)) => {
                ring.push_back(first);
                busy += 1;
            }
            resting => let_go(resting),
        }
    }
    if busy < looked_at {
        return;
    }
    let is_hot = |n: &usize, wanted: fn(&Hot) -> bool| {
        ring.get(*n).is_some_and(|r| r.hot.load().as_ref().is_some_and(|hot| wanted(hot)))
    };
    let seen = ring.len() - busy..ring.len();
    if let Some(n) = seen.clone().find(|n| is_hot(n, |hot| hot.limiter.seconds_to_fill() == 0)) {
        let_go(ring.remove(n));
    } else if let Some(n) = seen.clone().find(|n| is_hot(n, |hot| hot.minted.load().is_some()))
        && let Some(hot) = ring.get(n).and_then(|r| r.hot.load_full())
    {
        hot.minted.store(None);
    }
}

fn let_go<R: Deref<Target = Route>>(route: Option<R>) {
    if let Some(hot) = route.and_then(|r| r.hot.swap(None)) {
        hot.limiter.let_go();
    }
}

/// Few: with more organisations at once than there is room for, every request would look at so many.
const LOOKED_AT: usize = 8;

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::time::Duration;

    use gmah_shared::catalog::{EdgeTenant, Limits, Policy, Tenant};
    use gmah_shared::tenant::{Generation, TenantId, TenantSlug, TenantStatus};

    use super::*;
    use crate::limits::Limiters;

    fn route(n: u128, limits: Limits) -> Arc<Route> {
        let slug = TenantSlug::parse(&format!("org-{n}")).expect("slug");
        let (id, status) = (TenantId::from_uuid(uuid::Uuid::from_u128(n)), TenantStatus::Active);
        let tenant = Tenant { id, slug, status, generation: Generation(1), revision: 1 };
        Arc::new(Route::new(EdgeTenant { tenant, policy: Policy { limits, ..Policy::default() } }))
    }

    struct Rig(Warm<Arc<Route>>, Limiters);

    impl Rig {
        fn of(&self, route: &Arc<Route>, seconds: u64) -> Arc<Hot> {
            let now = self.0.start + Duration::from_secs(seconds);
            let make = |r: &Route| Hot::new(self.1.of(r.tenant.id, r.policy.limits), Arc::default());
            self.0.of(route, now, make)
        }

        fn len(&self) -> usize {
            self.0.ring.lock().expect("ring").len()
        }
    }

    #[test]
    fn whoever_rests_makes_room_and_whoever_is_asked_for_stays() {
        let rig = Rig(Warm::new(4), Limiters::new(100, None));
        let routes: Vec<_> = (0..6).map(|n| route(n, Limits::default())).collect();
        let first = rig.of(&routes[0], 0);
        for route in &routes[1..4] {
            rig.of(route, 0);
        }
        assert!(Arc::ptr_eq(&first, &rig.of(&routes[0], 9)), "the same as long as it is kept");
        rig.of(&routes[4], 10);
        let kept: Vec<bool> = routes.iter().map(|r| r.hot.load().is_some()).collect();
        assert_eq!(kept, [true, false, false, false, true, false]);
        rig.of(&routes[1], 10);
        assert!(Arc::ptr_eq(&first, &rig.of(&routes[0], 10)));
        assert_eq!(rig.len(), 3);
    }

    #[test]
    fn never_more_than_there_is_room_for() {
        let rig = Rig(Warm::new(50), Limiters::new(100, None));
        let routes: Vec<_> = (0..1000).map(|n| route(n, Limits::default())).collect();
        for _ in 0..3 {
            for route in &routes {
                rig.of(route, 5);
            }
        }
        assert_eq!(rig.len(), 50);
        assert_eq!(routes.iter().filter(|r| r.hot.load().is_some()).count(), 50);
    }

    #[tokio::test]
    async fn r15_nobody_has_a_full_bucket_again_for_being_forgotten() {
        let rig = Rig(Warm::new(4), Limiters::new(100, None));
        let limits = Limits {
            requests_per_second: NonZeroU32::new(1),
            request_burst: NonZeroU32::new(30),
            ..Limits::default()
        };
        let limited = route(0, limits);
        let taken = async |seconds| {
            let mut taken = 0;
            while rig.of(&limited, seconds).limiter.admit().await.is_ok() {
                taken += 1;
            }
            taken
        };
        assert_eq!(taken(0).await, 30);
        for n in 1..100 {
            rig.of(&route(n, Limits::default()), n as u64 / 5);
            assert!(rig.len() <= 4, "{}", rig.len());
        }
        assert_eq!(taken(20).await, 0, "kept for as long as the bucket takes to fill");
        for n in 100..200 {
            rig.of(&route(n, Limits::default()), 60);
        }
        assert!(limited.hot.load().is_none(), "and no longer");
    }

    #[tokio::test]
    async fn r15_those_whose_limits_remember_something_stay_beyond_what_there_is_room_for() {
        let rig = Rig(Warm::new(100), Limiters::new(100_000, None));
        let limits = Limits {
            requests_per_second: NonZeroU32::new(1),
            request_burst: NonZeroU32::new(20),
            ..Limits::default()
        };
        let routes: Vec<_> = (0..500).map(|n| route(n, limits)).collect();
        for route in &routes {
            let hot = rig.of(route, 0);
            while hot.limiter.admit().await.is_ok() {}
            let value = HeaderValue::from_static("token");
            let minted = Minted { audience: "a".into(), value, kid: "k".into(), issued: 0 };
            hot.minted.store(Some(Arc::new(vec![minted])));
        }
        for route in &routes {
            assert!(rig.of(route, 10).limiter.admit().await.is_err(), "{:?}", route.tenant.slug);
        }
        let has_token = |r: &&Arc<Route>| r.hot.load().as_ref().is_some_and(|h| h.minted.load().is_some());
        let tokens = routes.iter().filter(has_token).count();
        assert!((100..200).contains(&tokens), "tokens are forgotten one for one, or nearly: {tokens}");
        // They go when they rest, and the room is what it was.
        for n in 1000..3000 {
            rig.of(&route(n, Limits::default()), 60);
        }
        assert!(routes.iter().all(|r| r.hot.load().is_none()));
        assert!(rig.len() <= 100, "{}", rig.len());
    }

    #[test]
    fn a_record_that_was_replaced_makes_room_at_once() {
        let limits = Limits {
            requests_per_second: NonZeroU32::new(1),
            request_burst: NonZeroU32::new(3600),
            ..Limits::default()
        };
        let rig = Rig(Warm::new(4), Limiters::new(100, None));
        for _ in 0..100 {
            rig.of(&route(1, limits), 0);
        }
        assert_eq!(rig.len(), 4, "of one organisation");
    }

    #[test]
    fn those_who_come_at_once_get_the_same() {
        let rig = Rig(Warm::new(64), Limiters::new(100, None));
        for n in 0..50 {
            let one = route(n, Limits::default());
            let all: Vec<_> = std::thread::scope(|s| {
                let threads: Vec<_> = (0..4).map(|_| s.spawn(|| rig.of(&one, 0))).collect();
                threads.into_iter().map(|t| t.join().expect("thread")).collect()
            });
            assert!(all.iter().all(|hot| Arc::ptr_eq(hot, &all[0])));
        }
        assert_eq!(rig.len(), 50);
    }

    #[tokio::test]
    async fn one_that_was_changed_goes_on_with_the_counters_it_had() {
        let rig = Rig(Warm::new(4), Limiters::new(100, None));
        let limits = Limits { requests_per_second: NonZeroU32::new(2), ..Limits::default() };
        let before = route(1, limits);
        for _ in 0..2 {
            assert!(rig.of(&before, 0).limiter.admit().await.is_ok());
        }
        drop(before);
        let after = route(1, limits);
        assert!(rig.of(&after, 0).limiter.admit().await.is_err());
    }
}
