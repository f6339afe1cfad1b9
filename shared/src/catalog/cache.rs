//! A bounded cache in front of the master.
//!
//! * A hit is synchronous: no await, no lock that a load holds.
//! * One load per key, however many wait; it runs on its own and does not die with the request that began it.
//! * A notice for an organisation ends every entry of it at once; a load that began before the notice is not kept.
//! * Unknown names live in a cache of their own, so that a flood of them evicts nobody; a notice ends all of them.
//! * With the master away, entries are served until `max_stale` after they were last confirmed, unless a notice
//!   had ended them: what is known to have changed is never guessed.
//! * A master that is older than what was read of it is not believed for `max_stale`: its newest revision is never less
//!   than that of a row that was read. What is held is served as it was known, and asked for again after a TTL.

mod entries;
mod entry;
mod flight;
mod index;
mod metrics;
mod recent;

use std::hash::Hash;
use std::ops::Deref;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::StoreError;
use crate::config::CatalogSettings;
use crate::tenant::TenantId;
use entry::{ENDED, Entry, milliseconds};
use flight::Flights;
use futures::future::BoxFuture;
use index::Index;
pub use metrics::CacheMetrics;
use recent::Recent;

/// What can be cached: it belongs to an organisation and has a revision.
pub trait Record: Send + Sync + 'static {
    /// The organisation that a notice would name.
    fn id(&self) -> TenantId;
    /// Grows with every change.
    fn revision(&self) -> i64;
}

/// Reads one key from the master. `None` says that there is no such thing.
pub type Loader<K, V> = Box<dyn Fn(&K) -> BoxFuture<'static, Result<Option<V>, StoreError>> + Send + Sync>;

/// Reads the master's newest revision of all.
pub type Newest = Box<dyn Fn() -> BoxFuture<'static, Result<i64, StoreError>> + Send + Sync>;

/// Something that hears of changes.
pub trait Invalidate: Send + Sync {
    /// That organisation changed.
    fn invalidate(&self, id: TenantId);
    /// Anything may have changed: every entry is confirmed before its next use.
    fn invalidate_all(&self);
}

/// An answer.
pub enum Lookup<V> {
    /// Known, and as fresh as the notices and the TTL make it, or stale within `max_stale`.
    Found(Hit<V>),
    /// There is no such name.
    Unknown,
    /// The master gave no answer and nothing usable is held.
    Unavailable,
}

/// A cached value.
pub struct Hit<V>(Arc<Entry<V>>);

impl<V> Deref for Hit<V> {
    type Target = V;

    fn deref(&self) -> &V {
        &self.0.value
    }
}

impl<V> Clone for Hit<V> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// The cache. Cheap to clone.
pub struct Cache<K, V>(Arc<Inner<K, V>>);

impl<K, V> Clone for Cache<K, V> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

struct Inner<K, V> {
    settings: CatalogSettings,
    /// With the master away: `max_stale`, or longer.
    served: Duration,
    load: Loader<K, V>,
    newest: Newest,
    positive: moka::sync::Cache<K, Arc<Entry<V>>>,
    /// Value: the epoch of negatives in which it was learned.
    negative: moka::sync::Cache<K, u64>,
    negative_epoch: AtomicU64,
    resync_epoch: AtomicU32,
    index: Arc<Index<V>>,
    recent: Mutex<Recent>,
    flights: Flights<K, V>,
    /// Until when the master is left alone, in milliseconds after `start`.
    resting_until: AtomicU64,
    start: Instant,
    runtime: tokio::runtime::Handle,
    metrics: CacheMetrics,
}

impl<K, V> Cache<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Record,
{
    /// A cache whose loads run on the current runtime.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(settings: CatalogSettings, load: Loader<K, V>, newest: Newest, metrics: CacheMetrics) -> Self {
        let served = *settings.max_stale;
        Self::serving_for(served, settings, load, newest, metrics)
    }

    /// The same, of what is served for so long with the master away.
    ///
    /// # Panics
    /// As [`Cache::new`].
    pub fn serving_for(
        served: Duration,
        settings: CatalogSettings,
        load: Loader<K, V>,
        newest: Newest,
        metrics: CacheMetrics,
    ) -> Self {
        let index = Arc::new(Index::default());
        let indexed = index.clone();
        let positive = moka::sync::Cache::builder()
            .max_capacity(settings.max_entries.get() as u64)
            // A queue less than from when they were written. It is for memory alone: how old an answer may be is looked at
            // wherever it is given.
            .time_to_idle(served)
            // For whatever reason it goes, also for another of the same name.
            .eviction_listener(move |_, entry, _| indexed.remove(&entry))
            .build();
        metrics.entries.are_of(positive.clone());
        let negative = moka::sync::Cache::builder()
            .max_capacity(settings.max_negative.get() as u64)
            .time_to_live(*settings.negative_ttl)
            .build();
        metrics.absent.are_of(negative.clone());
        Self(Arc::new(Inner {
            flights: Flights::new(settings.max_loads.get()),
            settings,
            served,
            load,
            newest,
            positive,
            negative,
            negative_epoch: AtomicU64::new(0),
            resync_epoch: AtomicU32::new(ENDED + 1),
            index,
            recent: Mutex::default(),
            resting_until: AtomicU64::new(0),
            start: Instant::now(),
            runtime: tokio::runtime::Handle::current(),
            metrics,
        }))
    }

    /// The answer that is at hand, if it may be used without asking. Never waits.
    pub fn peek(&self, key: &K) -> Option<Hit<V>> {
        let entry = self.0.fresh(key)?;
        self.0.metrics.hits.inc();
        Some(Hit(entry))
    }

    /// The answer, from the master if need be. Waits at most the load time-out.
    pub async fn get(&self, key: &K) -> Lookup<V> {
        if let Some(hit) = self.peek(key) {
            return Lookup::Found(hit);
        }
        let inner = &self.0;
        if inner.is_unknown(key) {
            inner.metrics.negative_hits.inc();
            return Lookup::Unknown;
        }
        if inner.is_resting() {
            return inner.without_master(key);
        }
        let joined = {
            let work = self.clone();
            let key = key.clone();
            inner.flights.join(&key.clone(), inner.recent_seq(), &inner.runtime, move |seq| async move {
                work.load(key, seq).await
            })
        };
        let Some(mut flight) = joined else {
            return inner.without_master(key);
        };
        inner.metrics.waits.inc();
        match flight.wait().await {
            Some(flight::Outcome::Found(entry)) => Lookup::Found(Hit(entry)),
            Some(flight::Outcome::Unknown) => Lookup::Unknown,
            Some(flight::Outcome::Failed) | None => inner.without_master(key),
        }
    }

    /// Forgets what is held under a key if `is_old` says so; the next use asks the master. A load that began before is
    /// not kept. Other organisations are not touched.
    pub fn forget_if(&self, key: &K, is_old: impl Fn(&V) -> bool) {
        let inner = &*self.0;
        let mut recent = inner.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = inner.positive.get(key)
            && is_old(&entry.value)
        {
            recent.touch(entry.value.id());
            inner.end(entry.value.id());
        }
    }

    async fn load(self, key: K, seq: u64) -> flight::Outcome<V> {
        let inner = &*self.0;
        // Whoever looked before another's load had ended, and came to wait for it after, has the answer here.
        if let Some(entry) = inner.fresh(&key) {
            return flight::Outcome::Found(entry);
        }
        if inner.is_unknown(&key) {
            return flight::Outcome::Unknown;
        }
        inner.metrics.loads.inc();
        let epoch = inner.resync_epoch.load(Ordering::Acquire);
        let negative_epoch = inner.negative_epoch.load(Ordering::Acquire);
        let asked = tokio::time::timeout(*inner.settings.load_timeout, inner.ask(&key)).await;
        let answer = asked.unwrap_or(Err(StoreError::Timeout));
        let kept = answer.and_then(|found| match found {
            Some(value) => inner.keep(&key, value, epoch, seq).map(Some),
            None => Ok(None),
        });
        match kept {
            Ok(Some(entry)) => flight::Outcome::Found(entry),
            Ok(None) => {
                inner.positive.invalidate(&key);
                inner.negative.insert(key, negative_epoch);
                flight::Outcome::Unknown
            }
            Err(error) => {
                inner.metrics.load_errors.inc();
                if let StoreError::Regressed { .. } = error {
                    inner.metrics.regressed.inc();
                    if inner.doubt(&key, epoch) {
                        tracing::error!(error = %error, "catalog: not believed");
                    }
                } else {
                    tracing::warn!(error = %chain(&error), "catalog: the master gave no answer");
                }
                // A row that cannot be read is that organisation's trouble; silence is everybody's.
                if error.is_masters() {
                    inner.rest();
                }
                flight::Outcome::Failed
            }
        }
    }
}

impl<K, V> Inner<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Record,
{
    fn is_current(&self, entry: &Entry<V>) -> bool {
        entry.epoch.load(Ordering::Acquire) == self.resync_epoch.load(Ordering::Acquire)
    }

    /// What is held and may be used without asking.
    fn fresh(&self, key: &K) -> Option<Arc<Entry<V>>> {
        let entry = self.positive.get(key)?;
        let now = self.now_ms();
        let is_fresh = entry.is_within(*self.settings.ttl, now) || now < entry.doubted_until();
        (self.is_current(&entry) && is_fresh).then_some(entry)
    }

    /// Whether what is held counts more than what an older master says: for as long as organisations are served without
    /// any.
    fn outweighs(&self, held: &Entry<V>) -> bool {
        held.is_within(*self.settings.max_stale, self.now_ms())
    }

    /// What the master said is older than what is held, which is served for another TTL. Answers whether that is news.
    fn doubt(&self, key: &K, epoch: u32) -> bool {
        let Some(held) = self.positive.get(key) else { return false };
        let now = self.now_ms();
        let left = milliseconds(*self.settings.max_stale).saturating_sub(now.saturating_sub(held.confirmed));
        let left = left.min(milliseconds(*self.settings.ttl));
        held.renew(epoch);
        let doubted_for = now.saturating_add(left) - held.confirmed;
        let before = held.doubted_for.swap(u32::try_from(doubted_for).unwrap_or(u32::MAX), Ordering::AcqRel);
        held.confirmed + u64::from(before) <= now
    }

    /// Whether there is known to be nothing.
    fn is_unknown(&self, key: &K) -> bool {
        self.negative.get(key) == Some(self.negative_epoch.load(Ordering::Acquire))
    }

    /// Ends every entry of an organisation. Under the lock of `recent`.
    fn end(&self, id: TenantId) {
        self.index.end(id);
    }

    fn recent_seq(&self) -> u64 {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner).seq()
    }

    /// What the master says of a name. Where it no longer has one that is held, or gives it to somebody else, it must
    /// have come at least as far as when that was read.
    async fn ask(&self, key: &K) -> Result<Option<V>, StoreError> {
        let answer = (self.load)(key).await?;
        if let Some(held) = self.positive.get(key)
            && self.outweighs(&held)
            && answer.as_ref().is_none_or(|value| value.id() != held.value.id())
        {
            let (found, known) = ((self.newest)().await?, held.value.revision());
            if found < known {
                return Err(StoreError::Regressed { found, known });
            }
        }
        Ok(answer)
    }

    /// Keeps an answer unless a notice overtook it.
    ///
    /// # Errors
    /// [`StoreError::Regressed`] where it is older than what is known of that organisation.
    fn keep(&self, key: &K, value: V, epoch: u32, seq: u64) -> Result<Arc<Entry<V>>, StoreError> {
        let id = value.id();
        // Under the lock that a notice takes first: either the notice is seen here, or it sees what is kept here.
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let overtaken = recent.touched_since(id, seq);
        if !overtaken
            && let Some(held) = self.positive.get(key)
            && held.value.id() == id
            && self.outweighs(&held)
            && held.value.revision() > value.revision()
        {
            let (found, known) = (value.revision(), held.value.revision());
            return Err(StoreError::Regressed { found, known });
        }
        let entry = Arc::new(Entry::new(value, self.now_ms(), if overtaken { ENDED } else { epoch }));
        if overtaken {
            self.metrics.not_kept.inc();
        } else {
            self.index.add(entry.clone());
            self.positive.insert(key.clone(), entry.clone());
        }
        drop(recent);
        Ok(entry)
    }

    fn without_master(&self, key: &K) -> Lookup<V> {
        match self.positive.get(key) {
            Some(entry) if !entry.has_ended() && entry.is_within(self.served, self.now_ms()) => {
                self.metrics.stale.inc();
                Lookup::Found(Hit(entry))
            }
            _ => {
                self.metrics.unavailable.inc();
                Lookup::Unavailable
            }
        }
    }

    fn now_ms(&self) -> u64 {
        milliseconds(self.start.elapsed())
    }

    fn is_resting(&self) -> bool {
        self.now_ms() < self.resting_until.load(Ordering::Acquire)
    }

    fn rest(&self) {
        let pause = milliseconds(*self.settings.retry_after_error);
        self.resting_until.store(self.now_ms().saturating_add(pause), Ordering::Release);
    }
}

impl<K, V> Invalidate for Cache<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Record,
{
    fn invalidate(&self, id: TenantId) {
        let mut recent = self.0.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.touch(id);
        self.0.end(id);
        self.0.negative_epoch.fetch_add(1, Ordering::AcqRel);
    }

    fn invalidate_all(&self) {
        let mut recent = self.0.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.touch_all();
        self.0.resync_epoch.fetch_add(1, Ordering::AcqRel);
        self.0.negative_epoch.fetch_add(1, Ordering::AcqRel);
        // The master was just reached, so there is no reason to leave it alone any longer.
        self.0.resting_until.store(0, Ordering::Release);
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests;
