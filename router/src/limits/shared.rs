//! Counters that several routers share, in Redis or Valkey.
//!
//! A rate is one bucket for all routers, kept by GCRA in one script; a router takes tokens from it in portions, so that
//! most requests wait for nothing. Requests in flight are published by each router a few times a second. With Redis away
//! each router counts by itself: nobody is refused for it, and the sum may be as many times the limit as there are
//! routers.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use gmah_shared::redis::{Away, Link};
use gmah_shared::tenant::TenantId;
use governor::Quota;
use prometheus::{IntCounter, IntGauge};
use redis::aio::ConnectionManager;
use redis::{RedisResult, Script};
use secrecy::SecretString;

use super::Tenant;

/// A connection to what the routers share.
pub struct Shared {
    link: Link,
    script: Script,
    /// Of this router, for what it publishes.
    router: String,
    connected: IntGauge,
    failures: IntCounter,
}

/// What a tenant may still do before the next portion is fetched.
pub struct Allowance {
    shared: Arc<Shared>,
    key: String,
    /// Microseconds between two requests in the long run.
    interval: u64,
    burst: u32,
    portion: u32,
    state: Mutex<State>,
    /// Held while a portion is fetched.
    fetching: tokio::sync::Mutex<()>,
}

#[derive(Clone, Copy)]
struct State {
    tokens: u32,
    /// Tokens that are not used by then are worth nothing.
    until: Instant,
    /// No use asking before.
    empty_until: Instant,
}

impl Shared {
    /// Connects when first used.
    ///
    /// # Errors
    /// When the address is none.
    pub fn new(url: &SecretString, connected: IntGauge, failures: IntCounter) -> Result<Self, String> {
        Ok(Self {
            link: Link::new(url, CONNECT_TIMEOUT)?,
            script: Script::new(include_str!("take.lua")),
            router: uuid::Uuid::new_v4().simple().to_string(),
            connected,
            failures,
        })
    }

    /// Asks, for at most that long; nothing where there is no answer, and then it is left alone for a while.
    async fn ask<T>(
        &self,
        patience: Duration,
        asked: impl AsyncFnOnce(&mut ConnectionManager) -> RedisResult<T>,
    ) -> Option<T> {
        let failed = match self.link.ask(patience, asked).await {
            Ok(answer) => {
                self.connected.set(1);
                return Some(answer);
            }
            Err(Away::Resting) => return None,
            Err(Away::Failed(why)) => why,
        };
        self.failures.inc();
        if self.connected.get() != 0 {
            tracing::warn!(error = failed, "shared counters are away; this router counts by itself");
        }
        self.connected.set(0);
        None
    }

    /// Says how many requests these tenants have in flight here, and hears how many elsewhere.
    pub async fn publish(&self, busy: &[Arc<Tenant>]) {
        if busy.is_empty() {
            return;
        }
        let expires = now_ms() + IN_FLIGHT_LIFE_MS;
        let mut pipe = redis::pipe();
        for tenant in busy {
            let key = format!("gmah:inflight:{}", tenant.id());
            let value = format!("{}:{expires}", tenant.in_flight());
            pipe.hset(&key, &self.router, value).ignore();
            pipe.pexpire(&key, IN_FLIGHT_LIFE_MS as i64).ignore();
            pipe.hgetall(&key);
        }
        let asked = async |connection: &mut ConnectionManager| {
            pipe.query_async::<Vec<Vec<(String, String)>>>(connection).await
        };
        let answers = self.ask(CONNECT_TIMEOUT, asked).await;
        for (n, tenant) in busy.iter().enumerate() {
            let all = answers.as_ref().and_then(|a| a.get(n));
            let others = |all: &Vec<(String, String)>| {
                all.iter()
                    .filter(|(router, _)| *router != self.router)
                    .filter_map(|(_, v)| in_flight(v))
                    .sum()
            };
            tenant.set_elsewhere(all.map_or(0, others));
        }
    }
}

/// What another router published, if it is not too old.
fn in_flight(value: &str) -> Option<usize> {
    let (count, expires) = value.split_once(':')?;
    (expires.parse::<u64>().ok()? > now_ms()).then(|| count.parse().ok())?
}

fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl Allowance {
    /// Nothing has been fetched yet.
    pub fn new(shared: Arc<Shared>, tenant: TenantId, quota: Quota) -> Self {
        let interval = u64::try_from(quota.replenish_interval().as_micros()).unwrap_or(u64::MAX).max(1);
        let burst = quota.burst_size().get();
        let a_second = 1_000_000 / interval;
        let now = Instant::now();
        Self {
            shared,
            // An id has one width, so no two tenants' keys are one.
            key: format!("gmah:rate:{tenant}"),
            interval,
            burst,
            // A twentieth of a second's worth: what one router has fetched and does not use is little.
            portion: u32::try_from(a_second / 20).unwrap_or(u32::MAX).clamp(1, burst),
            state: Mutex::new(State { tokens: 0, until: now, empty_until: now }),
            fetching: tokio::sync::Mutex::new(()),
        }
    }

    /// One request. Nothing where the shared counters are away; otherwise how long to wait when it is one too many.
    pub async fn take(&self) -> Option<Result<(), Duration>> {
        if let Some(answer) = self.at_hand() {
            return Some(answer);
        }
        if self.shared.link.is_resting() {
            return None;
        }
        let Ok(_one) = tokio::time::timeout(PATIENCE, self.fetching.lock()).await else { return None };
        // Whoever was first may have fetched enough for both.
        if let Some(answer) = self.at_hand() {
            return Some(answer);
        }
        let asked = async |connection: &mut ConnectionManager| {
            let mut call = self.shared.script.key(&self.key);
            call.arg(self.interval).arg(self.burst).arg(self.portion);
            call.invoke_async::<(u32, u64)>(connection).await
        };
        let (granted, wait_ms) = self.shared.ask(PATIENCE, asked).await?;
        let now = Instant::now();
        let mut state = self.lock();
        if granted == 0 {
            // Never longer than a moment on one word: limits may change.
            let wait = Duration::from_millis(wait_ms.max(1));
            state.empty_until = now + wait.min(Duration::from_secs(1));
            return Some(Err(wait));
        }
        *state = State { tokens: granted - 1, until: now + PORTION_LIFE, empty_until: now };
        Some(Ok(()))
    }

    fn at_hand(&self) -> Option<Result<(), Duration>> {
        let now = Instant::now();
        let mut state = self.lock();
        if state.tokens > 0 && now < state.until {
            state.tokens -= 1;
            return Some(Ok(()));
        }
        (now < state.empty_until).then(|| Err(state.empty_until - now))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long a request waits for a portion.
const PATIENCE: Duration = Duration::from_millis(50);
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
const PORTION_LIFE: Duration = Duration::from_secs(1);
/// How often requests in flight are published.
pub const PUBLISH_EVERY: Duration = Duration::from_millis(250);
/// For how many tenants at most, each time.
pub const MAX_PUBLISHED: usize = 1000;
/// What other routers said is worth something for so long.
pub const BELIEVED_FOR: Duration = Duration::from_secs(1);
const IN_FLIGHT_LIFE_MS: u64 = 2000;
