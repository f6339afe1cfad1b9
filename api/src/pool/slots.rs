//! A PostgreSQL server's connections, shared out to the api nodes through the master database.
//!
//! `node_slots` holds what each node may have. A node changes its row under a lock on the server's, and never so that
//! the sum is above the budget: it takes what is free, and gives back only what it has really closed. What each should
//! have is computed by all in the same way (`share`): equal parts to those who want more than that, what they
//! want to the others, and the rest to all alike.
//!
//! A node is alive while it holds the advisory lock of its number. A process that dies loses the lock together with
//! its connections, and the others have its slots within a heartbeat; one that is slow keeps both. With the master
//! away everybody keeps what they have (rule 7): nobody can take any, then. When the master was away, or another took its
//! place, all come back at about the same time, without their locks: a node buries nobody before its own session is
//! five seconds old. What is left open: a node that alone has lost the master for longer than TCP waits goes on
//! with its slots, while the others think it gone.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use gmah_shared::config::Postgres;
use gmah_shared::pg::{self, Listening};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_postgres::Client;
use uuid::Uuid;

use super::budget::Budget;
use super::connection::Connection;
use super::registry::Registry;

/// `gmah` in ASCII: the first half of a node's lock.
const LOCK: i32 = 0x676d_6168;
/// How old a node's own session must be before it takes another for dead, in seconds.
const RETURN: f64 = 5.0;
/// How often a node tries to get its lock, which an older session of its own may hold for a while.
const LOCK_RETRY: Duration = Duration::from_millis(250);
/// Least time between two looks at the master, however short this node is.
const GAP: Duration = Duration::from_millis(100);
/// Longest pause between two attempts to reach the master.
const BACKOFF: Duration = Duration::from_secs(1);
/// How long a node that ends tries to say so.
const LEAVE_WITHIN: Duration = Duration::from_secs(2);
/// What was wanted counts for so many heartbeats.
const MEMORY: u32 = 3;

/// This process, as the others see it.
pub struct Node {
    /// Of this start of the program.
    pub id: Uuid,
    /// Where it listens; for people.
    pub address: String,
    /// How often, at least, it says what it wants.
    pub heartbeat: Duration,
    /// Its `pool.max_per_server`.
    pub budget: usize,
}

/// Why the master did not take what a node has to say.
#[derive(Debug, thiserror::Error)]
enum SlotsError {
    #[error("{0}")]
    Connect(#[from] pg::ConnectError),
    #[error("{0}")]
    Postgres(#[from] tokio_postgres::Error),
    #[error("no answer in time")]
    Timeout(#[from] tokio::time::error::Elapsed),
    #[error("the connection ended")]
    Ended,
}

/// Keeps the limits of the registry's budgets, for as long as the program runs.
pub async fn run(master: Postgres, node: Node, registry: Registry, short: Arc<Notify>) -> Infallible {
    let mut wants = Wants::default();
    let mut pause = Duration::from_millis(50);
    loop {
        let began = Instant::now();
        let Err(e) = session(&master, &node, &registry, &short, &mut wants).await;
        tracing::warn!(error = %e, "connections are not shared with other nodes right now; everybody keeps theirs");
        pause = if began.elapsed() > BACKOFF { Duration::from_millis(50) } else { pause };
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(BACKOFF);
    }
}

/// Gives up what a node may have, once it has let everything go: whoever starts in its place need not wait until it is
/// taken for dead.
pub async fn leave(master: &Postgres, node: Uuid) {
    let leaving = async {
        let client = pg::connect(master, "gmah api slots").await?;
        client.execute(LEAVE, &[&node]).await?;
        Ok::<_, SlotsError>(())
    };
    match tokio::time::timeout(LEAVE_WITHIN, leaving).await {
        Ok(Ok(())) => {}
        Ok(Err(e)) => tracing::debug!(error = %e, "the master did not hear that this node leaves"),
        Err(_) => tracing::debug!("the master did not hear in time that this node leaves"),
    }
}

async fn session(
    master: &Postgres,
    node: &Node,
    registry: &Registry,
    short: &Notify,
    wants: &mut Wants,
) -> Result<Infallible, SlotsError> {
    let mut listening = pg::listen(master, "gmah api slots", "gmah_slots", 1024).await?;
    let number = tokio::time::timeout(master.timeout, register(&listening.client, node)).await??;
    let mut is_locked = false;
    let mut next_tick = Instant::now();
    loop {
        let began = Instant::now();
        if began >= next_tick {
            if !is_locked {
                let locking = async { listening.client.query_one(TRY_LOCK, &[&LOCK, &number]).await };
                is_locked = tokio::time::timeout(master.timeout, locking).await??.get(0);
            }
            let beat = async { listening.client.execute(BEAT, &[&node.id]).await };
            if tokio::time::timeout(master.timeout, beat).await?? == 0 {
                // Taken for dead: begin again, with nothing.
                return Err(SlotsError::Ended);
            }
            wants.age();
            next_tick = began + if is_locked { node.heartbeat / 3 } else { LOCK_RETRY };
        }
        for (name, budget) in registry.budgets() {
            let wanted = wants.of(&name, budget.demand());
            let sharing = rebalance(&mut listening.client, node, &name, &budget, wanted);
            tokio::time::timeout(master.timeout, sharing).await??;
        }
        // Whatever is said while this waits is one reason to look again.
        tokio::time::sleep_until(began + GAP).await;
        tokio::select! {
            () = tokio::time::sleep_until(next_tick) => {}
            () = short.notified() => {}
            heard = drained(&mut listening, node.id) => heard?,
        }
    }
}

/// Waits for a notice of another node.
async fn drained(listening: &mut Listening, me: Uuid) -> Result<(), SlotsError> {
    let me = me.to_string();
    loop {
        let notice = listening.notices.recv().await.ok_or(SlotsError::Ended)?;
        if notice != me {
            while listening.notices.try_recv().is_ok() {}
            return Ok(());
        }
    }
}

/// The node's number, under which it holds its lock.
async fn register(client: &Client, node: &Node) -> Result<i32, SlotsError> {
    let version = env!("CARGO_PKG_VERSION");
    Ok(client.query_one(REGISTER, &[&node.id, &node.address, &version]).await?.get("number"))
}

/// One node's row, and the others'.
struct Row {
    node: Uuid,
    slots: usize,
    wanted: usize,
    budget: usize,
    /// False for this node's own before its first is written.
    is_written: bool,
}

/// Brings this node's part of one server up to date.
async fn rebalance(
    client: &mut Client,
    node: &Node,
    server: &str,
    budget: &Arc<Budget<Connection>>,
    wanted: usize,
) -> Result<(), SlotsError> {
    let rows = rows(client, node, server, wanted).await?;
    let plan = Plan::of(node, &rows);
    let as_it_is = rows.iter().any(|r| {
        r.node == node.id
            && r.is_written
            && (r.slots, r.wanted, r.budget) == (plan.slots(budget.load().0), wanted, node.budget)
    });
    if as_it_is && budget.limit() == plan.limit {
        return Ok(());
    }
    let tx = client.transaction().await?;
    let Some(locked) = tx.query_opt(LOCK_SERVER, &[&server]).await? else { return Ok(()) };
    let server_id: Uuid = locked.get(0);
    tx.execute(BURY, &[&server_id, &LOCK, &RETURN, &node.id]).await?;
    // Under the lock nobody else changes anything.
    let rows = rows_within(&tx, node, server, wanted).await?;
    let plan = Plan::of(node, &rows);
    // Less is true at once, more when it is written.
    if plan.limit < budget.limit() {
        budget.set_limit(plan.limit);
    }
    let before = rows.iter().find(|r| r.node == node.id && r.is_written).map(|r| (r.slots, r.wanted));
    let slots = plan.slots(budget.load().0);
    let number = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    tx.execute(WRITE, &[&node.id, &server_id, &number(slots), &number(wanted), &number(node.budget)]).await?;
    // Others have something to do when this one gave something back, or wants what it does not get.
    if before.is_none_or(|(had, wished)| slots < had || (wanted > slots && wanted > wished)) {
        tx.execute("select pg_notify('gmah_slots', $1)", &[&node.id.to_string()]).await?;
    }
    tx.commit().await?;
    budget.set_limit(plan.limit);
    Ok(())
}

async fn rows(client: &Client, node: &Node, server: &str, wanted: usize) -> Result<Vec<Row>, SlotsError> {
    let rows = client.query(ROWS, &[&server, &LOCK, &RETURN, &node.id]).await?;
    Ok(with_own(node, wanted, &rows))
}

async fn rows_within(
    tx: &tokio_postgres::Transaction<'_>,
    node: &Node,
    server: &str,
    wanted: usize,
) -> Result<Vec<Row>, SlotsError> {
    let rows = tx.query(ROWS, &[&server, &LOCK, &RETURN, &node.id]).await?;
    Ok(with_own(node, wanted, &rows))
}

/// The rows of the table, and this node's own wish if it has no row yet.
fn with_own(node: &Node, wanted: usize, rows: &[tokio_postgres::Row]) -> Vec<Row> {
    let number =
        |row: &tokio_postgres::Row, name: &str| usize::try_from(row.get::<_, i32>(name)).unwrap_or(0);
    let mut all: Vec<Row> = rows
        .iter()
        .map(|r| Row {
            node: r.get("node_id"),
            slots: number(r, "slots"),
            wanted: number(r, "wanted"),
            budget: number(r, "budget"),
            is_written: true,
        })
        .collect();
    if !all.iter().any(|r| r.node == node.id) {
        all.push(Row { node: node.id, slots: 0, wanted, budget: node.budget, is_written: false });
        all.sort_by_key(|r| r.node);
    }
    all
}

/// What this node is to do.
struct Plan {
    limit: usize,
}

impl Plan {
    fn of(node: &Node, rows: &[Row]) -> Self {
        // Configurations differ for a moment when they are changed: the smallest budget counts.
        let total = rows.iter().map(|r| r.budget).chain([node.budget]).min().unwrap_or(0);
        let wanted: Vec<usize> = rows.iter().map(|r| r.wanted).collect();
        let targets = share(total, &wanted);
        let others: usize = rows.iter().filter(|r| r.node != node.id).map(|r| r.slots).sum();
        let target = rows.iter().position(|r| r.node == node.id).map_or(0, |n| targets[n]);
        Self { limit: target.min(total.saturating_sub(others)) }
    }

    /// What the table must say: the limit, or what there still is above it.
    fn slots(&self, used: usize) -> usize {
        self.limit.max(used)
    }
}

/// Shares `total` out: who wants less than an equal part gets what it wants, the others equal parts of the rest; what
/// nobody wants goes to all alike. Remainders go to the first.
fn share(total: usize, wanted: &[usize]) -> Vec<usize> {
    let mut parts = vec![0; wanted.len()];
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by_key(|n| (wanted[*n], *n));
    let mut left = total;
    for (done, n) in order.iter().enumerate() {
        let fair = left.div_ceil(wanted.len() - done);
        parts[*n] = wanted[*n].min(fair);
        left -= parts[*n];
    }
    let each = left.checked_div(wanted.len()).unwrap_or(0);
    let mut odd = left - each * wanted.len();
    for part in &mut parts {
        *part += each + usize::from(odd > 0);
        odd = odd.saturating_sub(1);
    }
    parts
}

/// What was wanted lately, by server: the highest of the last few heartbeats.
#[derive(Default)]
struct Wants(HashMap<Arc<str>, VecDeque<usize>>);

impl Wants {
    fn of(&mut self, server: &Arc<str>, now: usize) -> usize {
        let seen = self.0.entry(server.clone()).or_insert_with(|| VecDeque::from([0]));
        if let Some(last) = seen.back_mut() {
            *last = now.max(*last);
        }
        seen.iter().copied().max().unwrap_or(now)
    }

    /// A third of a heartbeat has passed.
    fn age(&mut self) {
        for seen in self.0.values_mut() {
            seen.push_back(0);
            while seen.len() > (3 * MEMORY) as usize {
                seen.pop_front();
            }
        }
    }
}

/// Every statement, by name, for a test that prepares them.
pub const STATEMENTS: &[(&str, &str)] = &[
    ("slots/register", REGISTER),
    ("slots/beat", BEAT),
    ("slots/leave", LEAVE),
    ("slots/try_lock", TRY_LOCK),
    ("slots/rows", ROWS),
    ("slots/lock_server", LOCK_SERVER),
    ("slots/bury", BURY),
    ("slots/write", WRITE),
];

const REGISTER: &str = "insert into nodes (id, role, address, version) values ($1, 'api', $2, $3)
    on conflict (id) do update set heartbeat_at = now(), session_at = now() returning number";

const BEAT: &str = "update nodes set heartbeat_at = now() where id = $1";

const LEAVE: &str = "delete from nodes where id = $1";

/// Whether node `n` is gone: it holds no lock, and has not said anything for a while, in which this node, `$4`, was there to
/// hear it.
macro_rules! gone {
    () => {
        "(n.heartbeat_at < now() - interval '1500 milliseconds' and n.id <> $4
          and exists (
              select from nodes me where me.id = $4 and me.session_at < now() - make_interval(secs => $3))
          and not exists (
              select from pg_locks l join pg_database d on d.oid = l.database
              where l.locktype = 'advisory' and d.datname = current_database() and l.objsubid = 2
                and l.classid::bigint = $2::int and l.objid::bigint = n.number))"
    };
}

/// Index: node_slots_server.
const ROWS: &str = concat!(
    "select s.node_id, s.slots, s.wanted, s.budget from node_slots s
     join database_servers d on d.id = s.server_id
     join nodes n on n.id = s.node_id
     where d.name = $1 and not ",
    gone!(),
    " order by s.node_id limit 10000"
);

const LOCK_SERVER: &str = "select id from database_servers where name = $1 for no key update";

const TRY_LOCK: &str = "select pg_try_advisory_lock($1, $2)";

/// Forgets nodes that are gone.
const BURY: &str = concat!(
    "delete from nodes n using node_slots s where s.node_id = n.id and s.server_id = $1 and ",
    gone!()
);

const WRITE: &str =
    "insert into node_slots (node_id, server_id, slots, wanted, budget) values ($1, $2, $3, $4, $5)
    on conflict (node_id, server_id) do update
    set slots = excluded.slots, wanted = excluded.wanted, budget = excluded.budget";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_add_up_and_are_fair() {
        assert_eq!(share(50, &[0]), [50]);
        assert_eq!(share(50, &[0, 0]), [25, 25]);
        assert_eq!(share(50, &[100, 100]), [25, 25]);
        assert_eq!(share(50, &[100, 0]), [50, 0]);
        assert_eq!(share(50, &[100, 10]), [40, 10]);
        assert_eq!(share(50, &[5, 5]), [25, 25]);
        assert_eq!(share(5, &[9, 9, 9]).iter().sum::<usize>(), 5);
        assert_eq!(share(2, &[1, 1, 1, 1]).iter().sum::<usize>(), 2);
        for total in 0..20 {
            for a in 0..12 {
                for b in 0..12 {
                    let parts = share(total, &[a, b, 3]);
                    assert_eq!(parts.iter().sum::<usize>(), total, "{total} {a} {b}");
                    let fair = total / 3;
                    for (part, want) in parts.iter().zip([a, b, 3]) {
                        assert!(*part >= want.min(fair), "{total}: {a} {b} 3 -> {parts:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_node_takes_only_what_is_free() {
        let node = Node {
            id: Uuid::from_u128(2),
            address: String::new(),
            heartbeat: Duration::from_secs(3),
            budget: 50,
        };
        let row = |id, slots, wanted, budget| Row {
            node: Uuid::from_u128(id),
            slots,
            wanted,
            budget,
            is_written: true,
        };
        let limit = |rows: &[Row]| Plan::of(&node, rows).limit;
        assert_eq!(limit(&[row(1, 50, 0, 50), row(2, 0, 10, 50)]), 0, "the other has not given back yet");
        assert_eq!(limit(&[row(1, 20, 0, 50), row(2, 0, 10, 50)]), 30);
        assert_eq!(limit(&[row(1, 20, 0, 50), row(2, 30, 0, 50)]), 25, "and gives back in its turn");
        assert_eq!(limit(&[row(1, 2, 0, 8), row(2, 30, 0, 50)]), 4, "the smallest budget counts");
    }
}
