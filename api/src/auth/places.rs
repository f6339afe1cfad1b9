//! Places for work that takes a while: so many for each organisation, and so many in all, so that nobody's flood is
//! everybody's.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use gmah_shared::tenant::TenantId;

/// The places.
#[derive(Clone)]
pub struct Places {
    each: usize,
    all: usize,
    taken: Arc<Mutex<HashMap<TenantId, usize>>>,
}

/// A place, until it is dropped.
pub struct Place {
    taken: Arc<Mutex<HashMap<TenantId, usize>>>,
    tenant: TenantId,
}

impl Places {
    /// So many for each organisation, and so many in all.
    pub fn new(each: usize, all: usize) -> Self {
        Self { each, all, taken: Arc::default() }
    }

    /// A place for an organisation, if there is one.
    pub fn enter(&self, tenant: TenantId) -> Option<Place> {
        let mut map = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = map.values().sum();
        let own = map.get(&tenant).copied().unwrap_or_default();
        if own >= self.each || all >= self.all {
            return None;
        }
        map.insert(tenant, own + 1);
        Some(Place { taken: self.taken.clone(), tenant })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut map = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(n) = map.get_mut(&self.tenant) {
            *n -= 1;
            if *n == 0 {
                map.remove(&self.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_does_not_take_all() {
        let places = Places::new(2, 3);
        let (a, b) = (TenantId::generate(), TenantId::generate());
        let held = [places.enter(a), places.enter(a)];
        assert!(held.iter().all(Option::is_some) && places.enter(a).is_none());
        let other = places.enter(b);
        assert!(other.is_some() && places.enter(b).is_none());
        drop(held);
        assert!(places.enter(a).is_some());
        drop(other);
        assert!(places.taken.lock().expect("lock").is_empty());
    }
}
