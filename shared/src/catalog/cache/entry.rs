//! What is held under one name.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Small: a router keeps very many.
pub(super) struct Entry<V> {
    pub(super) value: V,
    /// When the master last said so, in milliseconds after the cache's start.
    pub(super) confirmed: u64,
    /// For how many milliseconds after that it is served without asking, because what the master says is older.
    pub(super) doubted_for: AtomicU32,
    /// Of which resync; [`ENDED`] once a notice has come.
    pub(super) epoch: AtomicU32,
}

/// No resync's number: they begin at one.
pub(super) const ENDED: u32 = 0;

impl<V> Entry<V> {
    pub(super) fn new(value: V, confirmed: u64, epoch: u32) -> Self {
        Self { value, confirmed, doubted_for: AtomicU32::new(0), epoch: AtomicU32::new(epoch) }
    }

    /// A notice has come: what is known to have changed is not served again.
    pub(super) fn end(&self) {
        self.epoch.store(ENDED, Ordering::Release);
    }

    pub(super) fn has_ended(&self) -> bool {
        self.epoch.load(Ordering::Acquire) == ENDED
    }

    /// It is served again after a resync, unless a notice has come.
    pub(super) fn renew(&self, epoch: u32) {
        let newer = |held: u32| (held != ENDED).then_some(held.max(epoch));
        // Nothing to do where one has.
        let _ = self.epoch.fetch_update(Ordering::AcqRel, Ordering::Acquire, newer);
    }

    /// Until when it is served without asking.
    pub(super) fn doubted_until(&self) -> u64 {
        self.confirmed + u64::from(self.doubted_for.load(Ordering::Acquire))
    }

    /// Whether the master said so less than so long ago.
    pub(super) fn is_within(&self, age: Duration, now: u64) -> bool {
        now.saturating_sub(self.confirmed) < milliseconds(age)
    }
}

/// Without the division of 128 bits that `Duration::as_millis` makes.
pub(super) const fn milliseconds(duration: Duration) -> u64 {
    duration.as_secs().saturating_mul(1000).saturating_add(duration.subsec_millis() as u64)
}
