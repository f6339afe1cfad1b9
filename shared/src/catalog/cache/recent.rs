//! Which organisations changed lately: decides whether an answer that was on its way is still true.

use std::collections::{HashMap, VecDeque};

use crate::tenant::TenantId;

/// How many notices are remembered. An answer older than all of them counts as overtaken.
const REMEMBERED: usize = 4096;

#[derive(Default)]
pub(super) struct Recent {
    seq: u64,
    last: HashMap<TenantId, u64>,
    order: VecDeque<(u64, TenantId)>,
    /// Anything read at or before this is overtaken.
    floor: u64,
}

impl Recent {
    pub(super) fn seq(&self) -> u64 {
        self.seq
    }

    pub(super) fn touch(&mut self, id: TenantId) {
        self.seq += 1;
        self.last.insert(id, self.seq);
        self.order.push_back((self.seq, id));
        if self.order.len() > REMEMBERED
            && let Some((seq, id)) = self.order.pop_front()
        {
            if self.last.get(&id) == Some(&seq) {
                self.last.remove(&id);
            }
            self.floor = seq;
        }
    }

    pub(super) fn touch_all(&mut self) {
        self.seq += 1;
        self.floor = self.seq;
        self.last.clear();
        self.order.clear();
    }

    /// Whether `id` changed after `seq` was current.
    pub(super) fn touched_since(&self, id: TenantId, seq: u64) -> bool {
        seq < self.floor || self.last.get(&id).is_some_and(|at| *at > seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembers_and_forgets_on_the_safe_side() {
        let mut r = Recent::default();
        let (a, b) = (TenantId::generate(), TenantId::generate());
        let before = r.seq();
        r.touch(a);
        assert!(r.touched_since(a, before) && !r.touched_since(b, before) && !r.touched_since(a, r.seq()));
        for _ in 0..REMEMBERED {
            r.touch(b);
        }
        assert!(r.touched_since(a, before), "forgotten counts as touched");
        assert!(r.last.len() <= 2 && r.order.len() <= REMEMBERED);
        let seq = r.seq();
        r.touch_all();
        assert!(r.touched_since(TenantId::generate(), seq));
    }
}
