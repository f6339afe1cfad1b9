//! Single flight: one load per key, run apart from those who wait for it.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::runtime::Handle;
use tokio::sync::watch;

use super::Entry;

/// What a load came to.
pub(super) enum Outcome<V> {
    Found(Arc<Entry<V>>),
    Unknown,
    Failed,
}

impl<V> Clone for Outcome<V> {
    fn clone(&self) -> Self {
        match self {
            Self::Found(entry) => Self::Found(entry.clone()),
            Self::Unknown => Self::Unknown,
            Self::Failed => Self::Failed,
        }
    }
}

type Slot<V> = (u64, watch::Receiver<Option<Outcome<V>>>);

pub(super) struct Flights<K, V> {
    max: usize,
    /// Loads that run, of which one key may have more than one.
    loads: Arc<AtomicUsize>,
    running: Arc<Mutex<HashMap<K, Slot<V>>>>,
}

/// A place among those who wait.
pub(super) struct Waiting<V>(watch::Receiver<Option<Outcome<V>>>);

impl<V> Waiting<V> {
    /// The outcome, or nothing if the load died.
    pub(super) async fn wait(&mut self) -> Option<Outcome<V>> {
        self.0.wait_for(Option::is_some).await.ok().and_then(|seen| seen.clone())
    }
}

impl<K, V> Flights<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    pub(super) fn new(max: usize) -> Self {
        Self { max, loads: Arc::default(), running: Arc::default() }
    }

    /// Joins the load of that key, or begins one. `seq` is the newest notice seen: a load that began before it is
    /// not joined, because its answer may be older than the notice. Nothing when too many loads run.
    pub(super) fn join<F, W>(&self, key: &K, seq: u64, runtime: &Handle, work: W) -> Option<Waiting<V>>
    where
        W: FnOnce(u64) -> F,
        F: Future<Output = Outcome<V>> + Send + 'static,
    {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((began, rx)) = running.get(key)
            && *began >= seq
        {
            return Some(Waiting(rx.clone()));
        }
        // Only here, under the lock, does it grow.
        if self.loads.load(Ordering::Acquire) >= self.max {
            return None;
        }
        self.loads.fetch_add(1, Ordering::AcqRel);
        let (tx, rx) = watch::channel(None);
        running.insert(key.clone(), (seq, rx.clone()));
        let leave = Leave { running: self.running.clone(), loads: self.loads.clone(), key: key.clone(), seq };
        let load = work(seq);
        runtime.spawn(async move {
            let outcome = load.await;
            // Out of the map before the news goes out, so that nobody joins a load that has already ended.
            drop(leave);
            let _ = tx.send(Some(outcome));
        });
        Some(Waiting(rx))
    }
}

struct Leave<K: Hash + Eq, V> {
    running: Arc<Mutex<HashMap<K, Slot<V>>>>,
    loads: Arc<AtomicUsize>,
    key: K,
    seq: u64,
}

impl<K: Hash + Eq, V> Drop for Leave<K, V> {
    fn drop(&mut self) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if running.get(&self.key).is_some_and(|(seq, _)| *seq == self.seq) {
            running.remove(&self.key);
        }
        self.loads.fetch_sub(1, Ordering::AcqRel);
    }
}
