//! Failed logins, counted by account and by address within one organisation: an attack on one never locks another out,
//! and an account that does not exist counts like one that does.
//!
//! Each counter is a bucket that leaks. An address from which somebody has logged in to an account before is not held
//! back by what others do to that account, but by what it does itself. Counters are this process's own: with several api nodes an attacker has as
//! many times as much.

use std::net::IpAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use gmah_shared::tenant::TenantId;
use moka::sync::Cache;

/// Failures in a row for one account, before it takes `PER_ACCOUNT` for each more.
const ACCOUNT_BURST: u32 = 10;
const PER_ACCOUNT: Duration = Duration::from_secs(30);
/// Failures in a row from one address: many people share some.
const ADDRESS_BURST: u32 = 100;
const PER_ADDRESS: Duration = Duration::from_secs(2);
/// Invitations of one organisation in a row: the whole of a large one, on its first day.
const LETTER_BURST: u32 = 500;
const PER_LETTER: Duration = Duration::from_secs(300);
/// Counters of each kind. The oldest go first: under an attack with more names than this, guesses at each are few.
const MOST: u64 = 100_000;
/// How long an address is known for an account.
const KNOWN: Duration = Duration::from_secs(30 * 86_400);

type Digest = [u8; 32];

/// Counts failed logins.
pub struct Throttle {
    accounts: Cache<Digest, std::sync::Arc<Bucket>>,
    addresses: Cache<Digest, std::sync::Arc<Bucket>>,
    known: Cache<Digest, ()>,
    letters: Cache<TenantId, std::sync::Arc<Bucket>>,
}

/// One attempt, before its outcome is known.
#[derive(Debug)]
pub struct Attempt {
    account: std::sync::Arc<Bucket>,
    address: Option<std::sync::Arc<Bucket>>,
    pair: Digest,
}

impl Default for Throttle {
    fn default() -> Self {
        fn cache<K>(idle: Duration) -> Cache<K, std::sync::Arc<Bucket>>
        where
            K: std::hash::Hash + Eq + Send + Sync + 'static,
        {
            Cache::builder().max_capacity(MOST).time_to_idle(idle).build()
        }
        Self {
            accounts: cache(PER_ACCOUNT * ACCOUNT_BURST),
            addresses: cache(PER_ADDRESS * ADDRESS_BURST),
            letters: cache(PER_LETTER * LETTER_BURST),
            known: Cache::builder().max_capacity(MOST).time_to_live(KNOWN).build(),
        }
    }
}

impl Throttle {
    /// Whether another attempt may be made. It counts as failed until [`Throttle::succeeded`].
    ///
    /// # Errors
    /// How long to wait.
    pub fn admit(
        &self,
        tenant: TenantId,
        account: &str,
        address: Option<IpAddr>,
        now: Instant,
    ) -> Result<Attempt, Duration> {
        let network = address.map(network);
        let network = network.as_deref().unwrap_or_default();
        let pair = digest(tenant, &[account.as_bytes(), network]);
        // Where the account is known, its guesses are counted by themselves.
        let key = if self.known.contains_key(&pair) { pair } else { digest(tenant, &[account.as_bytes()]) };
        let account = self.accounts.get_with(key, || Bucket::new(PER_ACCOUNT, ACCOUNT_BURST));
        let address = (!network.is_empty()).then(|| {
            self.addresses.get_with(digest(tenant, &[network]), || Bucket::new(PER_ADDRESS, ADDRESS_BURST))
        });
        let attempt = Attempt { account, address, pair };
        for bucket in attempt.buckets() {
            bucket.add(now)?;
        }
        Ok(attempt)
    }

    /// Whether an organisation may have another invitation written.
    ///
    /// # Errors
    /// How long to wait.
    pub fn letter(&self, tenant: TenantId, now: Instant) -> Result<(), Duration> {
        self.letters.get_with(tenant, || Bucket::new(PER_LETTER, LETTER_BURST)).add(now)
    }

    /// The attempt came to no verdict: it does not count.
    pub fn undecided(&self, attempt: &Attempt) {
        attempt.buckets().for_each(|b| b.take_back());
    }

    /// The attempt was right: it does not count, and from that address the account is known.
    pub fn succeeded(&self, attempt: &Attempt) {
        attempt.buckets().for_each(|b| b.take_back());
        self.known.insert(attempt.pair, ());
    }
}

impl Attempt {
    fn buckets(&self) -> impl Iterator<Item = &Bucket> {
        // The address first: one that is held back does not fill other people's buckets.
        self.address.iter().chain([&self.account]).map(|b| &**b)
    }
}

/// A bucket that holds so many, and loses one each so often.
#[derive(Debug)]
struct Bucket {
    /// When it will be empty.
    empty_at: Mutex<Option<Instant>>,
    each: Duration,
    holds: u32,
}

impl Bucket {
    fn new(each: Duration, holds: u32) -> std::sync::Arc<Self> {
        std::sync::Arc::new(Self { empty_at: Mutex::new(None), each, holds })
    }

    fn add(&self, now: Instant) -> Result<(), Duration> {
        let mut empty_at = self.empty_at.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let then = empty_at.map_or(now, |at| at.max(now)) + self.each;
        let full_at = now + self.each * self.holds;
        if then > full_at {
            return Err(then - full_at);
        }
        *empty_at = Some(then);
        Ok(())
    }

    fn take_back(&self) {
        let mut empty_at = self.empty_at.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *empty_at = empty_at.and_then(|at| at.checked_sub(self.each));
    }
}

/// Who has one address of a network of IPv6 has all of it (RFC 6177).
pub(crate) fn network(address: IpAddr) -> Vec<u8> {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets()[..8].to_vec(),
    }
}

/// Of fixed size, however long what a client sends.
fn digest(tenant: TenantId, parts: &[&[u8]]) -> Digest {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    context.update(tenant.as_uuid().as_bytes());
    for part in parts {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOME: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)));
    const AWAY: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2)));

    #[test]
    fn a09_an_account_is_held_back_alone() {
        let (t, now) = (Throttle::default(), Instant::now());
        let (a, b) = (TenantId::generate(), TenantId::generate());
        for _ in 0..ACCOUNT_BURST {
            assert!(t.admit(a, "ada@x.example", AWAY, now).is_ok());
        }
        let wait = t.admit(a, "ada@x.example", AWAY, now).expect_err("held back");
        assert!(wait <= PER_ACCOUNT && wait > Duration::ZERO);
        assert!(t.admit(a, "ada@x.example", HOME, now).is_err(), "from everywhere");
        assert!(t.admit(a, "eva@x.example", AWAY, now).is_ok(), "nobody else");
        assert!(t.admit(b, "ada@x.example", AWAY, now).is_ok(), "and not her namesake elsewhere");
        assert!(t.admit(a, "ada@x.example", AWAY, now + PER_ACCOUNT).is_ok(), "and not for ever");
    }

    #[test]
    fn a09_who_was_there_before_is_let_in() {
        let (t, now, id) = (Throttle::default(), Instant::now(), TenantId::generate());
        let attempt = t.admit(id, "ada@x.example", HOME, now).expect("admitted");
        t.succeeded(&attempt);
        while t.admit(id, "ada@x.example", AWAY, now).is_ok() {}
        let tried = (0..100).take_while(|_| t.admit(id, "ada@x.example", HOME, now).is_ok()).count();
        assert_eq!(tried, ACCOUNT_BURST as usize, "and may guess no more than anybody");
    }

    #[test]
    fn a09_an_address_is_held_back_whatever_it_tries() {
        let (t, now, id) = (Throttle::default(), Instant::now(), TenantId::generate());
        let tried =
            (0..1000).take_while(|n| t.admit(id, &format!("u{n}@x.example"), AWAY, now).is_ok()).count();
        assert_eq!(tried, ADDRESS_BURST as usize);
        assert!(t.admit(id, "u1@x.example", HOME, now).is_ok());
        // Logins that are right cost nothing.
        for n in 0..1000 {
            let attempt = t.admit(id, &format!("r{n}@x.example"), HOME, now).expect("admitted");
            t.succeeded(&attempt);
        }
        let v6 = |host: u16| Some(IpAddr::V6(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, host)));
        while t.admit(id, "x@x.example", v6(1), now).is_ok() {}
        for n in 0..200 {
            let _ = t.admit(id, &format!("v{n}@x.example"), v6(n), now);
        }
        assert!(t.admit(id, "y@x.example", v6(999), now).is_err(), "one network");
    }
}
