//! Which entries an organisation has: a notice ends all of them.

use std::sync::{Arc, Mutex, PoisonError};

use hashbrown::HashTable;

use super::{Entry, Record};
use crate::tenant::TenantId;

/// By organisation, which has an entry for each of its names. Holds what the cache holds: the cache says what it lets go.
pub(super) struct Index<V> {
    /// Several, so that one that grows does not keep everybody waiting for as long as all would.
    shards: [Mutex<HashTable<Arc<Entry<V>>>>; SHARDS],
}

const SHARDS: usize = 64;

impl<V> Default for Index<V> {
    fn default() -> Self {
        Self { shards: std::array::from_fn(|_| Mutex::default()) }
    }
}

impl<V: Record> Index<V> {
    /// One that the cache is about to hold.
    pub(super) fn add(&self, entry: Arc<Entry<V>>) {
        let hash = hash(entry.value.id());
        self.with(hash, |shard| {
            shard.insert_unique(hash, entry, |e| self::hash(e.value.id()));
        });
    }

    /// One that it has let go.
    pub(super) fn remove(&self, entry: &Arc<Entry<V>>) {
        let hash = hash(entry.value.id());
        self.with(hash, |shard| {
            if let Ok(found) = shard.find_entry(hash, |e| Arc::ptr_eq(e, entry)) {
                found.remove();
            }
        });
    }

    /// Ends every entry of an organisation.
    pub(super) fn end(&self, id: TenantId) {
        let hash = hash(id);
        self.with(hash, |shard| {
            while let Ok(found) = shard.find_entry(hash, |e| e.value.id() == id) {
                found.remove().0.end();
            }
        });
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner).len()).sum()
    }

    fn with(&self, hash: u64, work: impl FnOnce(&mut HashTable<Arc<Entry<V>>>)) {
        // Bits that the tables do not look at.
        let shard = &self.shards[(hash >> 32) as usize % SHARDS];
        work(&mut shard.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// The second half of an id is random (RFC 9562, section 5.7), and made by the platform itself. Spread over all bits: a table
/// looks at both ends.
fn hash(id: TenantId) -> u64 {
    (id.as_uuid().as_u128() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Row(TenantId);

    impl Record for Row {
        fn id(&self) -> TenantId {
            self.0
        }

        fn revision(&self) -> i64 {
            0
        }
    }

    fn entry(id: TenantId) -> Arc<Entry<Row>> {
        Arc::new(Entry::new(Row(id), 0, 1))
    }

    #[test]
    fn all_of_an_organisation_end_and_nobody_elses() {
        let index = Index::default();
        let ids: Vec<TenantId> = (0..5000).map(|_| TenantId::generate()).collect();
        let held: Vec<_> = ids.iter().flat_map(|id| [entry(*id), entry(*id), entry(*id)]).collect();
        for e in &held {
            index.add(e.clone());
        }
        index.remove(&held[3]);
        index.remove(&entry(ids[2]));
        index.end(ids[7]);
        index.end(TenantId::generate());
        for (n, e) in held.iter().enumerate() {
            assert_eq!(e.has_ended(), n / 3 == 7);
        }
        assert_eq!(index.len(), held.len() - 4);
        index.end(ids[1]);
        assert!(!held[3].has_ended(), "let go before");
        assert!(held[4].has_ended());
    }

    #[test]
    fn ids_spread_over_the_shards_whatever_they_are() {
        let index = Index::default();
        for n in 0..64 * 100 {
            index.add(entry(TenantId::from_uuid(uuid::Uuid::from_u128(n))));
            index.add(entry(TenantId::generate()));
        }
        for shard in &index.shards {
            let len = shard.lock().expect("lock").len();
            assert!((100..400).contains(&len), "{len}");
        }
    }
}
