//! One backend at one address: how it is, and how busy.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use pingora_core::upstreams::peer::HttpPeer;

/// A backend. Shared by all workers; its numbers are read and written without a lock.
pub struct Endpoint {
    /// Where it is.
    pub address: SocketAddr,
    /// What the framework needs to know of it.
    pub peer: HttpPeer,
    in_flight: AtomicUsize,
    /// Out, by what it was asked (or did not answer).
    is_down: AtomicBool,
    /// Failures in a row of requests.
    failures: AtomicU32,
    /// How often it was left out, in a row.
    ejections: AtomicU32,
    /// Left out until then, in milliseconds after `start`.
    ejected_until: AtomicU64,
    /// Since when it is back, in milliseconds after `start`; 0 for always.
    up_since: AtomicU64,
    start: Instant,
}

/// A request's hold on a backend; counted until dropped.
pub struct Lease(pub Arc<Endpoint>);

impl Lease {
    fn new(endpoint: Arc<Endpoint>) -> Self {
        endpoint.in_flight.fetch_add(1, Ordering::Relaxed);
        Self(endpoint)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Endpoint {
    /// A backend that is taken to be well; one that is `fresh` gets its share slowly.
    pub fn new(address: SocketAddr, peer: HttpPeer, start: Instant, fresh: bool) -> Self {
        let endpoint = Self {
            address,
            peer,
            in_flight: AtomicUsize::new(0),
            is_down: AtomicBool::new(false),
            failures: AtomicU32::new(0),
            ejections: AtomicU32::new(0),
            ejected_until: AtomicU64::new(0),
            up_since: AtomicU64::new(0),
            start,
        };
        if fresh {
            endpoint.up_since.store(endpoint.now().max(1), Ordering::Relaxed);
        }
        endpoint
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Takes it for a request.
    pub fn lease(self: &Arc<Self>) -> Lease {
        Lease::new(self.clone())
    }

    /// Requests that it has.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Whether it may get requests.
    pub fn is_available(&self) -> bool {
        !self.is_down() && !self.is_ejected()
    }

    /// Whether it is out by what it was asked.
    pub fn is_down(&self) -> bool {
        self.is_down.load(Ordering::Relaxed)
    }

    /// Whether it is left out because requests failed.
    pub fn is_ejected(&self) -> bool {
        let until = self.ejected_until.load(Ordering::Relaxed);
        until != 0 && self.now() < until
    }

    /// Its share of requests, from 0.1 when it has just come back to 1 after `slow_start`.
    pub fn share(&self, slow_start: Duration) -> f64 {
        let since = self.up_since.load(Ordering::Relaxed);
        if since == 0 {
            return 1.0;
        }
        let up = self.now().saturating_sub(since) as f64;
        let share = up / (slow_start.as_millis().max(1) as f64);
        if share >= 1.0 {
            // So that the clock is not asked for ever.
            let _ = self.up_since.compare_exchange(since, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
        share.clamp(0.1, 1.0)
    }

    /// A request was answered.
    pub fn succeeded(&self) {
        // Written only where it changes something: this is on every request's way.
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
        if self.ejections.load(Ordering::Relaxed) != 0 && !self.is_ejected() {
            self.ejections.store(0, Ordering::Relaxed);
        }
    }

    /// A request failed here. True when that is once too often.
    pub fn failed(&self, eject_after: u32) -> bool {
        self.failures.fetch_add(1, Ordering::Relaxed) + 1 >= eject_after && self.is_available()
    }

    /// Leaves it out for a while, longer each time.
    pub fn eject(&self, first: Duration) {
        let doublings = self.ejections.fetch_add(1, Ordering::Relaxed).min(5);
        let pause = first.saturating_mul(1 << doublings);
        let until = self.now() + u64::try_from(pause.as_millis()).unwrap_or(u64::MAX / 2);
        self.failures.store(0, Ordering::Relaxed);
        self.up_since.store(until, Ordering::Relaxed);
        self.ejected_until.store(until, Ordering::Relaxed);
    }

    /// What it was asked says that it is out.
    pub fn set_down(&self) {
        self.is_down.store(true, Ordering::Relaxed);
    }

    /// What it was asked says that it is in.
    pub fn set_up(&self) {
        if self.is_down.swap(false, Ordering::Relaxed) {
            self.failures.store(0, Ordering::Relaxed);
            self.ejections.store(0, Ordering::Relaxed);
            self.ejected_until.store(0, Ordering::Relaxed);
            self.up_since.store(self.now().max(1), Ordering::Relaxed);
        }
    }
}
