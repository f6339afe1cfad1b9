//! Whose connections are open, who opens them how fast, and what is in flight on them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use gmah_shared::tenant::TenantId;
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

use crate::config::Limits;
use crate::metrics::{Metrics, Refused};

/// Counts connections by address, within the caps: in all, of one address at once, and of one address in a minute.
/// Cheap to clone.
#[derive(Clone)]
pub struct Addresses(Arc<Shared>);

struct Shared {
    open: Mutex<Open>,
    bounds: ArcSwap<Bounds>,
    asked: AtomicU32,
}

struct Bounds {
    per_address: usize,
    total: usize,
    a_minute: usize,
    fresh: DefaultKeyedRateLimiter<IpAddr>,
}

#[derive(Default)]
struct Open {
    total: usize,
    by_address: HashMap<IpAddr, Here>,
}

#[derive(Default)]
struct Here {
    connections: usize,
    requests: Requests,
}

/// Requests of one address, on all its connections, by organisation. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Requests(Arc<Mutex<HashMap<Counts, usize>>>);

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Counts {
    /// Requests in flight.
    InFlight(TenantId),
    /// Requests that wait for the end of a maintenance.
    Held(TenantId),
}

/// A request; given back when dropped.
#[derive(Debug)]
pub struct Counted(Requests, Counts);

impl Requests {
    /// Counts a request, unless the address has as many of this organisation's as it may have.
    pub fn enter(&self, counts: Counts, max: usize) -> Option<Counted> {
        let mut here = self.lock();
        let count = here.entry(counts).or_default();
        if *count >= max {
            return None;
        }
        *count += 1;
        drop(here);
        Some(Counted(self.clone(), counts))
    }

    /// How many have it in hand.
    fn holders(&self) -> usize {
        Arc::strong_count(&self.0)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Counts, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut here = self.0.lock();
        if let Some(count) = here.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                here.remove(&self.1);
            }
        }
    }
}

/// A connection's place; given back when dropped.
pub struct Place {
    addresses: Addresses,
    key: Option<IpAddr>,
    requests: Requests,
    metrics: Arc<Metrics>,
}

impl Addresses {
    /// No connection yet.
    pub fn new(limits: &Limits) -> Self {
        Self(Arc::new(Shared {
            open: Mutex::default(),
            bounds: ArcSwap::from_pointee(Bounds::new(limits)),
            asked: AtomicU32::new(0),
        }))
    }

    /// Exchanges the caps; what is open stays open, and counts.
    pub fn rebound(&self, limits: &Limits) {
        let (old, new) = (self.0.bounds.load(), Bounds::new(limits));
        // A rate that stays keeps what it has counted.
        if (old.per_address, old.total, old.a_minute) != (new.per_address, new.total, new.a_minute) {
            self.0.bounds.store(Arc::new(new));
        }
    }

    /// A place for a connection, counted for its address where that is known already.
    ///
    /// # Errors
    /// The cap that is reached.
    pub fn enter(&self, address: Option<IpAddr>, metrics: &Arc<Metrics>) -> Result<Place, Refused> {
        let key = address.map(network);
        if let Some(key) = key {
            self.is_in_time(key)?;
        }
        let mut open = self.0.lock();
        let bounds = self.0.bounds.load();
        if open.total >= bounds.total {
            return Err(Refused::Total);
        }
        let requests = match key {
            Some(key) => open.add(key, bounds.per_address)?,
            None => Requests::default(),
        };
        open.total += 1;
        drop(open);
        metrics.connections.inc();
        Ok(Place { addresses: self.clone(), key, requests, metrics: metrics.clone() })
    }

    fn is_in_time(&self, key: IpAddr) -> Result<(), Refused> {
        let bounds = self.0.bounds.load();
        // An address whose minute is not used at all needs no entry: thrown out now and then, so that the table is as
        // large as the number of addresses that are busy.
        if self.0.asked.fetch_add(1, Ordering::Relaxed).is_multiple_of(SWEEP_EVERY) {
            bounds.fresh.retain_recent();
            self.0.lock().by_address.retain(|_, here| here.connections > 0 || here.requests.holders() > 1);
        }
        bounds.fresh.check_key(&key).map_err(|_| Refused::Rate)
    }
}

impl Bounds {
    fn new(limits: &Limits) -> Self {
        let a_minute = limits.max_new_connections_per_address.get();
        let rate = u32::try_from(a_minute).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MAX);
        Self {
            per_address: limits.max_connections_per_address.get(),
            total: limits.max_connections.get(),
            a_minute,
            // Burst and rate alike: who has been quiet may open a minute's worth at once.
            fresh: RateLimiter::keyed(Quota::per_minute(rate)),
        }
    }
}

impl Place {
    /// Counts the connection for the client that a proxy has named.
    ///
    /// # Errors
    /// The cap that is reached.
    pub fn belongs_to(&mut self, client: IpAddr) -> Result<(), Refused> {
        let key = network(client);
        self.addresses.is_in_time(key)?;
        let per_address = self.addresses.0.bounds.load().per_address;
        self.requests = self.addresses.0.lock().add(key, per_address)?;
        self.key = Some(key);
        Ok(())
    }
}

impl Place {
    /// What is in flight of the same address.
    pub fn requests(&self) -> Requests {
        self.requests.clone()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.addresses.0.lock();
        open.total -= 1;
        if let Some(key) = self.key
            && let Some(here) = open.by_address.get_mut(&key)
        {
            here.connections -= 1;
            // Requests may outlive their connection, and count for as long; what they leave behind is swept. Two are
            // this place's and the table's own.
            if here.connections == 0 && here.requests.holders() <= 2 {
                open.by_address.remove(&key);
            }
        }
        self.metrics.connections.dec();
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn add(&mut self, key: IpAddr, max: usize) -> Result<Requests, Refused> {
        let here = self.by_address.entry(key).or_default();
        if here.connections >= max {
            return Err(Refused::Address);
        }
        here.connections += 1;
        Ok(here.requests.clone())
    }
}

/// One client has a whole IPv6 network of 64 bits; an IPv4 address mapped into IPv6 is that address.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) & (u128::MAX << 64)).into()),
        v4 => v4,
    }
}

/// Connections between two sweeps.
const SWEEP_EVERY: u32 = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use gmah_shared::config::Within;

    #[test]
    fn t22_caps_count_and_give_back() {
        let limits = Limits {
            max_connections_per_address: Within::new(2),
            max_connections: Within::new(4),
            ..Limits::default()
        };
        let metrics = Metrics::new(1).expect("metrics");
        let addresses = Addresses::new(&limits);
        let address = |a: &str| a.parse::<IpAddr>().expect("address");
        let enter = |a: &str| addresses.enter(Some(address(a)), &metrics);
        let first = enter("2001:db8::1").expect("first");
        let _second = enter("2001:db8::ffff").expect("second of the same network");
        assert_eq!(enter("2001:db8::2").err(), Some(Refused::Address));
        let mut behind_a_proxy = addresses.enter(None, &metrics).expect("no address yet");
        assert_eq!(behind_a_proxy.belongs_to(address("2001:db8::3")).err(), Some(Refused::Address));
        let _third = enter("127.0.0.1").expect("another address");
        assert_eq!(enter("127.0.0.2").err(), Some(Refused::Total));
        drop(first);
        assert!(behind_a_proxy.belongs_to(address("2001:db8::3")).is_ok());
        assert_eq!(enter("2001:db8::2").err(), Some(Refused::Address), "counted for the named client");
        drop(behind_a_proxy);
        assert!(enter("::ffff:127.0.0.1").is_ok());
        assert_eq!(metrics.connections.get(), 2);
    }

    #[test]
    fn r09_requests_that_outlive_their_connection_count() {
        let metrics = Metrics::new(1).expect("metrics");
        let addresses = Addresses::new(&Limits {
            max_new_connections_per_address: Within::new(100_000),
            ..Limits::default()
        });
        let enter = || addresses.enter(Some([127, 0, 0, 1].into()), &metrics).expect("place");
        let held = Counts::Held(TenantId::generate());
        let outlives = enter().requests().enter(held, 2).expect("first");
        let _second = enter().requests().enter(held, 2).expect("second");
        assert!(enter().requests().enter(held, 2).is_none(), "two are held already");
        drop(outlives);
        let third = enter().requests().enter(held, 2);
        assert!(third.is_some());
        drop((third, _second));
        for _ in 0..=SWEEP_EVERY {
            drop(enter());
        }
        assert!(addresses.0.lock().by_address.is_empty(), "nothing is left behind");
    }

    #[test]
    fn t22_fresh_connections_of_one_address_have_a_rate() {
        let limits = Limits { max_new_connections_per_address: Within::new(1000), ..Limits::default() };
        let metrics = Metrics::new(1).expect("metrics");
        let addresses = Addresses::new(&limits);
        let enter = |a: [u8; 4]| addresses.enter(Some(a.into()), &metrics);
        let taken = (0..3000).filter(|_| enter([127, 0, 0, 1]).is_ok()).count();
        assert!((1000..1100).contains(&taken), "{taken}");
        assert!(enter([127, 0, 0, 2]).is_ok(), "nobody else's trouble");
        // A flood from everywhere does not grow the table for ever.
        let addresses = Addresses::new(&Limits::default());
        for n in 0..500_000u32 {
            drop(addresses.enter(Some(n.to_be_bytes().into()), &metrics));
        }
        assert!(addresses.0.bounds.load().fresh.len() < 100_000, "{}", addresses.0.bounds.load().fresh.len());
    }
}
