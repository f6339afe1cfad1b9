//! The decisions of a budget, under its lock. Nothing here closes a connection or wakes anybody: what is to be dropped
//! or handed over is returned.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::{Count, Mark, NoTurn, PoolId, TURN, TurnReceiver, TurnSender, Usable};

/// A connection that can be lent.
pub(super) struct Idle<C> {
    pub(super) connection: C,
    pub(super) mark: Mark,
    pub(super) opened: Instant,
    used: Instant,
    /// Requests served since its tenant last had to wait for nobody.
    served: u32,
}

impl<C> Idle<C> {
    pub(super) fn new(connection: C, mark: Mark) -> Self {
        let now = Instant::now();
        Self { connection, mark, opened: now, used: now, served: 0 }
    }
}

/// A request that waits.
pub(super) struct Waiter<C: Usable> {
    number: u64,
    pub(super) turn: TurnSender<C>,
}

pub(super) enum Ticket<C: Usable> {
    Granted(Grant<C>),
    Wait(u64, TurnReceiver<C>),
}

pub(super) enum Grant<C> {
    Reuse(Idle<C>),
    Open(Mark),
}

pub(super) enum Back<C: Usable> {
    Kept,
    Closed(Idle<C>),
    Handed(Waiter<C>, Idle<C>),
}

pub(super) struct State<C: Usable> {
    limit: usize,
    /// Places taken, those of connections that are being closed as well.
    used: usize,
    /// Places among them that are on their way to somebody.
    leaving: usize,
    pools: HashMap<PoolId, Pool<C>>,
    /// Pools in which somebody waits.
    queued: Vec<PoolId>,
    next: u64,
}

struct Pool<C: Usable> {
    max: usize,
    max_waiting: usize,
    open: bool,
    /// False while its breaker refuses: then it lends what it has, and opens nothing.
    may_open: bool,
    connections: usize,
    idle: Vec<Idle<C>>,
    waiting: VecDeque<Waiter<C>>,
}

impl<C: Usable> State<C> {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, used: 0, leaving: 0, pools: HashMap::new(), queued: Vec::new(), next: 0 }
    }

    pub(super) fn open_pool(&mut self, max: usize, max_waiting: usize) -> PoolId {
        let id = PoolId(self.number());
        let (idle, waiting) = (Vec::new(), VecDeque::new());
        self.pools
            .insert(id, Pool { max, max_waiting, open: true, may_open: true, connections: 0, idle, waiting });
        id
    }

    /// What must be dropped: its idle connections, and the queue, whose members hear of it.
    #[must_use]
    pub(super) fn close_pool(&mut self, id: PoolId) -> (Vec<Idle<C>>, VecDeque<Waiter<C>>) {
        let Some(pool) = self.pools.get_mut(&id) else { return Default::default() };
        pool.open = false;
        let (idle, waiting) = (std::mem::take(&mut pool.idle), std::mem::take(&mut pool.waiting));
        idle.iter().for_each(|i| self.leaves(&i.mark));
        self.queued.retain(|q| *q != id);
        self.forget_empty(id);
        (idle, waiting)
    }

    /// Idle connections that have no place any more.
    #[must_use]
    pub(super) fn set_limit(&mut self, limit: usize) -> Vec<Idle<C>> {
        self.limit = limit;
        let mut gone = Vec::new();
        self.make_room(&mut gone);
        gone
    }

    /// A connection or a place at once, or a ticket. Whatever is put into `gone` must be dropped.
    pub(super) fn ask(
        &mut self,
        id: PoolId,
        may_open: bool,
        gone: &mut Vec<Idle<C>>,
    ) -> Result<Ticket<C>, NoTurn> {
        let most = most(self.limit);
        let pool = self.pools.get_mut(&id).filter(|p| p.open).ok_or(NoTurn::Closed)?;
        pool.may_open = may_open;
        let mut found = None;
        if pool.waiting.is_empty() {
            while let Some(idle) = pool.idle.pop() {
                if idle.connection.is_alive() {
                    found = Some(idle);
                    break;
                }
                gone.push(idle);
            }
        }
        let opens = pool.room(most) > 0;
        gone.iter().for_each(|i| self.leaves(&i.mark));
        if let Some(idle) = found {
            return Ok(Ticket::Granted(Grant::Reuse(idle)));
        }
        if opens && self.used < self.limit && self.neediest(None).is_none() {
            return Ok(Ticket::Granted(Grant::Open(self.take_place(id))));
        }
        let number = self.number();
        let pool = self.pools.get_mut(&id).ok_or(NoTurn::Closed)?;
        if pool.waiting.len() >= pool.max_waiting {
            return Err(NoTurn::Full);
        }
        let (turn, receiver) = tokio::sync::oneshot::channel();
        pool.waiting.push_back(Waiter { number, turn });
        if pool.waiting.len() == 1 {
            self.queued.push(id);
        }
        self.make_room(gone);
        Ok(Ticket::Wait(number, receiver))
    }

    /// Who gets a free place, if there is one and somebody may have it.
    pub(super) fn next_opening(&mut self) -> Option<(PoolId, Waiter<C>, Mark)> {
        if self.used >= self.limit {
            return None;
        }
        let (id, ..) = self.neediest(None)?;
        let waiter = self.next_of(id)?;
        Some((id, waiter, self.take_place(id)))
    }

    /// What becomes of a connection that comes back.
    pub(super) fn give_back(&mut self, id: PoolId, mut idle: Idle<C>) -> Back<C> {
        let owed = self.is_owed();
        let neediest = if self.queued.is_empty() { None } else { self.neediest(Some(id)) };
        let Some(pool) = self.pools.get(&id) else { return Back::Closed(idle) };
        let (mine, own) = (pool.connections, pool.waiting.front().map(|w| w.number));
        let over = self.used - self.leaving > self.limit || mine > pool.max.min(most(self.limit));
        let unusable = !pool.open || !idle.connection.is_alive() || idle.mark.is_leaving();
        let yields = match (neediest, own) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some((_, theirs, number)), Some(own)) => {
                theirs + 1 < mine || (theirs == 0 && number < own && idle.served >= TURN)
            }
        };
        if unusable || over || (yields && owed) {
            self.leaves(&idle.mark);
            return Back::Closed(idle);
        }
        idle.used = Instant::now();
        if let Some(waiter) = self.next_of(id) {
            idle.served += 1;
            return Back::Handed(waiter, idle);
        }
        idle.served = 0;
        if let Some(pool) = self.pools.get_mut(&id) {
            pool.idle.push(idle);
        }
        Back::Kept
    }

    /// The connection of a place has ended; what is left of it, if it was idle.
    #[must_use]
    pub(super) fn free(&mut self, id: PoolId, mark: &Mark) -> Vec<Idle<C>> {
        // Whoever still holds the connection must not count it as on its way any more.
        if !mark.leave() {
            self.leaving -= 1;
        }
        self.used -= 1;
        let mut left = Vec::new();
        if let Some(pool) = self.pools.get_mut(&id) {
            pool.connections -= 1;
            left.extend(pool.idle.extract_if(.., |i| i.mark.is(mark)));
        }
        self.forget_empty(id);
        left
    }

    /// A connection is being closed: its place is on its way to somebody.
    pub(super) fn leaves(&mut self, mark: &Mark) {
        if mark.leave() {
            self.leaving += 1;
        }
    }

    pub(super) fn leave_queue(&mut self, id: PoolId, number: u64) {
        let Some(pool) = self.pools.get_mut(&id) else { return };
        pool.waiting.retain(|w| w.number != number);
        if pool.waiting.is_empty() {
            self.queued.retain(|q| *q != id);
            self.forget_empty(id);
        }
    }

    #[must_use]
    pub(super) fn reap(&mut self, now: Instant, idle: Duration, lifetime: Duration) -> Vec<Idle<C>> {
        let ends = |i: &Idle<C>| {
            !i.connection.is_alive()
                || now.saturating_duration_since(i.used) > idle
                || now.saturating_duration_since(i.opened) > lifetime
        };
        let taken = self.take_idle(None, ends);
        taken.iter().for_each(|i| self.leaves(&i.mark));
        taken
    }

    /// Their places are not counted as on their way: a server that is silent may keep them for long.
    #[must_use]
    pub(super) fn clear(&mut self, id: PoolId) -> Vec<Idle<C>> {
        self.take_idle(Some(id), |_| true)
    }

    pub(super) fn count(&self, id: PoolId) -> Count {
        self.pools.get(&id).map_or_else(Count::default, |p| Count { all: p.connections, idle: p.idle.len() })
    }

    pub(super) fn load(&self) -> (usize, usize) {
        let waiting = self.queued.iter().filter_map(|q| self.pools.get(q)).map(|p| p.waiting.len()).sum();
        (self.used, waiting)
    }

    /// Whether a request that waits there could have another connection, were there a place for it.
    pub(super) fn wants_place(&self, id: PoolId) -> bool {
        self.pools.get(&id).is_some_and(|pool| pool.wanted() > 0)
    }

    pub(super) fn demand(&self) -> usize {
        // However many wait: a pool that has all it may have is served by what it has.
        let waiting: usize = self.queued.iter().filter_map(|q| self.pools.get(q)).map(Pool::wanted).sum();
        let used = self.used;
        let idle = self.pools.values().flat_map(|p| &p.idle).filter(|i| !i.mark.is_leaving()).count();
        (used + waiting).saturating_sub(self.leaving + idle)
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    fn take_idle(&mut self, only: Option<PoolId>, ends: impl Fn(&Idle<C>) -> bool) -> Vec<Idle<C>> {
        let mut taken = Vec::new();
        for (_, pool) in self.pools.iter_mut().filter(|(id, _)| only.is_none_or(|o| o == **id)) {
            taken.extend(pool.idle.extract_if(.., |i| ends(i)));
        }
        taken
    }

    /// Gives up idle connections, those first that were used longest ago, while there are too many or somebody may have
    /// the place.
    fn make_room(&mut self, gone: &mut Vec<Idle<C>>) {
        while self.used - self.leaving > self.limit || self.is_owed() {
            let oldest = self
                .pools
                .iter_mut()
                .filter(|(_, pool)| !pool.idle.is_empty())
                // The first of a pool is the one that was used longest ago: the last one is lent first.
                .min_by_key(|(_, pool)| pool.idle[0].used);
            let Some((_, pool)) = oldest else { return };
            let idle = pool.idle.remove(0);
            self.leaves(&idle.mark);
            gone.push(idle);
        }
    }

    /// Whether more wait, who may have a place, than places are free or on their way. Bounded by the number of pools in
    /// which somebody waits.
    fn is_owed(&self) -> bool {
        let most = most(self.limit);
        let wanted: usize = self
            .queued
            .iter()
            .filter_map(|q| self.pools.get(q))
            .map(|p| p.waiting.len().min(p.room(most)))
            .sum();
        wanted > self.limit.saturating_sub(self.used - self.leaving)
    }

    /// The pool that may open a connection and holds least, the longest waiting first among equals: its connections,
    /// and the number of its next request.
    fn neediest(&self, but: Option<PoolId>) -> Option<(PoolId, usize, u64)> {
        let most = most(self.limit);
        self.queued
            .iter()
            .filter(|q| Some(**q) != but)
            .filter_map(|q| Some((*q, self.pools.get(q)?)))
            .filter(|(_, p)| p.room(most) > 0)
            .filter_map(|(id, p)| Some((id, p.connections, p.waiting.front()?.number)))
            .min_by_key(|(_, connections, number)| (*connections, *number))
    }

    fn next_of(&mut self, id: PoolId) -> Option<Waiter<C>> {
        let pool = self.pools.get_mut(&id)?;
        let waiter = pool.waiting.pop_front()?;
        if pool.waiting.is_empty() {
            self.queued.retain(|q| *q != id);
        }
        Some(waiter)
    }

    fn take_place(&mut self, id: PoolId) -> Mark {
        self.used += 1;
        if let Some(pool) = self.pools.get_mut(&id) {
            pool.connections += 1;
        }
        Mark::default()
    }

    fn forget_empty(&mut self, id: PoolId) {
        let empty = |p: &Pool<C>| !p.open && p.connections == 0 && p.waiting.is_empty();
        if self.pools.get(&id).is_some_and(empty) {
            self.pools.remove(&id);
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

impl<C: Usable> Pool<C> {
    /// Connections that would be opened for those who wait, were there places.
    fn wanted(&self) -> usize {
        self.waiting.len().min(self.room(usize::MAX))
    }

    /// How many connections it may open.
    fn room(&self, most: usize) -> usize {
        if self.open && self.may_open { self.max.min(most).saturating_sub(self.connections) } else { 0 }
    }
}

/// The most that one tenant may hold: an eighth of the budget, one at least, is always left for others.
pub(super) fn most(limit: usize) -> usize {
    if limit < 2 { limit } else { limit - limit.div_ceil(8) }
}
