//! Who of a PostgreSQL server's tenants gets the next connection.
//!
//! A [`Budget`] knows every connection of this process to one server: idle, on loan, being opened, being closed. A
//! place counts from before the first packet until the server has closed its end, so the server never sees more
//! than the limit. What is free goes to whoever holds least; a connection that comes back goes to its own tenant's
//! next request, unless another tenant holds clearly less:
//!
//! * an idle connection is given up for anybody who waits, the longest unused first;
//! * a busy tenant gives one up to a tenant that holds two less, or, once it has served `TURN` requests in a row, to
//!   one that holds none and waits longer than its own next request;
//! * a connection that is on loan is never taken.
//!
//! The decisions are in `state`; here is what has to happen outside of the lock.

mod state;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};

use state::{Idle, State, Ticket, Waiter};

/// Requests in a row after which a connection may go to a tenant that has none.
const TURN: u32 = 8;

/// A tenant's pool within a budget. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolId(u64);

/// What a budget wants to know of a connection.
pub trait Usable: Send + 'static {
    /// Whether it can be lent again.
    fn is_alive(&self) -> bool;
}

/// Why there was nothing to lend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoTurn {
    /// Too many wait in this pool already.
    Full,
    /// The pool was closed.
    Closed,
    /// Its turn did not come in time.
    Late,
}

/// The connections of one server.
pub struct Budget<C: Usable> {
    state: Mutex<State<C>>,
    /// Told when somebody waits whom a place would help.
    short: Arc<Notify>,
}

/// What a request gets when its turn comes.
pub enum Turn<C: Usable> {
    /// A connection that was used before.
    Reuse(Held<C>),
    /// A place to open one in.
    Open(Slot<C>),
}

/// A connection on loan. Dropped, it goes to whoever is next.
pub struct Held<C: Usable> {
    budget: Arc<Budget<C>>,
    pool: PoolId,
    idle: Option<Idle<C>>,
}

/// A connection's place. Free when dropped, which must not be before the server has closed its end.
pub struct Slot<C: Usable> {
    budget: Arc<Budget<C>>,
    pool: PoolId,
    mark: Mark,
}

/// Says of a connection that its place is on its way to somebody.
#[derive(Clone, Default)]
struct Mark(Arc<AtomicBool>);

impl Mark {
    fn is_leaving(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Whether it is that very mark.
    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Marks it; true the first time.
    fn leave(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

/// Connections of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    /// All of them, those that are being opened or closed as well.
    pub all: usize,
    /// Those that nobody uses.
    pub idle: usize,
}

impl<C: Usable> Budget<C> {
    /// A budget of `limit` connections. `short` is told when somebody has to wait for a place.
    pub fn new(limit: usize, short: Arc<Notify>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(State::new(limit)), short })
    }

    /// A new pool, of at most `max` connections and `max_waiting` requests that wait for one.
    pub fn open_pool(&self, max: usize, max_waiting: usize) -> PoolId {
        self.state().open_pool(max, max_waiting)
    }

    /// Closes a pool: nobody gets a connection of it any more, and those on loan are closed when they come back.
    pub fn close_pool(self: &Arc<Self>, pool: PoolId) {
        let closed = self.state().close_pool(pool);
        drop(closed);
        self.settle();
    }

    /// Another limit. With more connections than that, those that come back are closed.
    pub fn set_limit(self: &Arc<Self>, limit: usize) {
        let surplus = self.state().set_limit(limit);
        drop(surplus);
        self.settle();
    }

    /// A turn in that pool, within `patience`. Where it may not open a connection, only those that there are count.
    ///
    /// # Errors
    /// [`NoTurn`].
    pub async fn turn(
        self: &Arc<Self>,
        pool: PoolId,
        may_open: bool,
        patience: Duration,
    ) -> Result<Turn<C>, NoTurn> {
        let mut gone = Vec::new();
        let ticket = self.state().ask(pool, may_open, &mut gone);
        drop(gone);
        let (number, turn) = match ticket? {
            Ticket::Granted(grant) => return Ok(self.hand(pool, grant)),
            Ticket::Wait(number, turn) => (number, turn),
        };
        if self.state().wants_place(pool) {
            self.short.notify_one();
        }
        let mut waiting = Waiting { budget: self, pool, number: Some(number) };
        let granted = tokio::time::timeout(patience, turn).await;
        match granted {
            Ok(Ok(turn)) => {
                waiting.number = None;
                Ok(turn)
            }
            Ok(Err(_)) => Err(NoTurn::Closed),
            Err(_) => Err(NoTurn::Late),
        }
    }

    /// Takes idle connections out that are older than `lifetime`, unused for `idle`, or dead.
    pub fn reap(self: &Arc<Self>, idle: Duration, lifetime: Duration) {
        let old = self.state().reap(Instant::now(), idle, lifetime);
        drop(old);
        self.settle();
    }

    /// Takes all idle connections of a pool out: they are not to be trusted any more.
    pub fn clear(self: &Arc<Self>, pool: PoolId) {
        let idle = self.state().clear(pool);
        drop(idle);
        self.settle();
    }

    /// Connections of a pool.
    pub fn count(&self, pool: PoolId) -> Count {
        self.state().count(pool)
    }

    /// Connections in all, and those who wait for one.
    pub fn load(&self) -> (usize, usize) {
        self.state().load()
    }

    /// How many connections are in use, or would be, were there places for those who wait.
    pub fn demand(&self) -> usize {
        self.state().demand()
    }

    /// The limit.
    pub fn limit(&self) -> usize {
        self.state().limit()
    }

    fn state(&self) -> MutexGuard<'_, State<C>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives what is free to those who wait. What nobody takes any more comes back by its drop, outside of the lock.
    fn settle(self: &Arc<Self>) {
        loop {
            let Some((pool, waiter, mark)) = self.state().next_opening() else { return };
            let slot = Slot { budget: self.clone(), pool, mark };
            waiter.give(Turn::Open(slot));
        }
    }

    fn hand(self: &Arc<Self>, pool: PoolId, grant: state::Grant<C>) -> Turn<C> {
        match grant {
            state::Grant::Reuse(idle) => Turn::Reuse(Held { budget: self.clone(), pool, idle: Some(idle) }),
            state::Grant::Open(mark) => Turn::Open(Slot { budget: self.clone(), pool, mark }),
        }
    }

    fn give_back(self: &Arc<Self>, pool: PoolId, idle: Idle<C>) {
        let back = self.state().give_back(pool, idle);
        match back {
            state::Back::Kept => {}
            state::Back::Closed(idle) => drop(idle),
            state::Back::Handed(waiter, idle) => {
                // Whoever has stopped waiting drops it, and it comes here again.
                waiter.give(Turn::Reuse(Held { budget: self.clone(), pool, idle: Some(idle) }));
            }
        }
    }
}

impl<C: Usable> Slot<C> {
    /// The connection that was opened in this place; the slot stays with whatever sees it end.
    pub fn holds(&self, connection: C) -> Held<C> {
        let idle = Idle::new(connection, self.mark.clone());
        Held { budget: self.budget.clone(), pool: self.pool, idle: Some(idle) }
    }
}

impl<C: Usable> Drop for Slot<C> {
    fn drop(&mut self) {
        let left = self.budget.state().free(self.pool, &self.mark);
        drop(left);
        self.budget.settle();
    }
}

impl<C: Usable> Held<C> {
    /// The connection.
    pub fn get(&mut self) -> &mut C {
        &mut self.idle.as_mut().expect("held until dropped").connection
    }

    /// How old it is.
    pub fn age(&self) -> Duration {
        self.idle.as_ref().expect("held until dropped").opened.elapsed()
    }

    /// Takes the connection out, to be closed.
    pub fn take(mut self) -> C {
        let idle = self.idle.take().expect("held until dropped");
        self.budget.state().leaves(&idle.mark);
        idle.connection
    }
}

impl<C: Usable> Held<C> {
    /// Takes a connection out that may be long in closing: nobody counts on its place.
    pub fn take_lost(mut self) -> C {
        self.idle.take().expect("held until dropped").connection
    }
}

impl<C: Usable> Drop for Held<C> {
    fn drop(&mut self) {
        if let Some(idle) = self.idle.take() {
            self.budget.give_back(self.pool, idle);
        }
    }
}

/// Leaves the queue when dropped, unless its turn has come.
struct Waiting<'a, C: Usable> {
    budget: &'a Budget<C>,
    pool: PoolId,
    number: Option<u64>,
}

impl<C: Usable> Drop for Waiting<'_, C> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.budget.state().leave_queue(self.pool, number);
        }
    }
}

impl<C: Usable> Waiter<C> {
    /// Hands over a turn. One that nobody waits for any more is dropped here, which gives it on.
    fn give(self, turn: Turn<C>) {
        let _unwanted: Result<(), Turn<C>> = self.turn.send(turn);
    }
}

type TurnSender<C> = oneshot::Sender<Turn<C>>;
type TurnReceiver<C> = oneshot::Receiver<Turn<C>>;

#[cfg(test)]
mod tests;
