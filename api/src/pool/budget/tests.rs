use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

/// Holds its slot, as a driver would.
struct Fake {
    _slot: Arc<Slot<Fake>>,
    alive: bool,
}

impl Usable for Fake {
    fn is_alive(&self) -> bool {
        self.alive
    }
}

fn budget(limit: usize) -> Arc<Budget<Fake>> {
    Budget::new(limit, Arc::default())
}

const LONG: Duration = Duration::from_secs(5);

fn opened(turn: Turn<Fake>) -> Held<Fake> {
    match turn {
        Turn::Reuse(held) => held,
        Turn::Open(slot) => {
            let slot = Arc::new(slot);
            slot.holds(Fake { _slot: slot.clone(), alive: true })
        }
    }
}

async fn get(budget: &Arc<Budget<Fake>>, pool: PoolId) -> Held<Fake> {
    opened(budget.turn(pool, true, LONG).await.expect("a turn"))
}

fn waits(budget: &Arc<Budget<Fake>>, pool: PoolId) -> tokio::task::JoinHandle<Held<Fake>> {
    let budget = budget.clone();
    gmah_shared::tasks::detach("waits", async move { get(&budget, pool).await })
}

async fn waiting(budget: &Arc<Budget<Fake>>, n: usize) {
    while budget.load().1 != n {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn the_longest_unused_gives_up_first_and_leased_ones_never() {
    let budget = budget(2);
    let [a, b, c] = [(); 3].map(|()| budget.open_pool(1, 10));
    let (of_a, of_b) = (get(&budget, a).await, get(&budget, b).await);
    let refused = budget.turn(c, true, Duration::from_millis(20)).await.err();
    assert_eq!(refused, Some(NoTurn::Late), "both leased");
    drop(of_b);
    drop(of_a);
    let of_c = get(&budget, c).await;
    assert_eq!((budget.count(a).idle, budget.count(b).idle), (1, 0), "the one that was used longer ago");
    assert_eq!(budget.load().0, 2);
    drop(of_c);
    assert_eq!(budget.count(c).idle, 1);
}

#[tokio::test]
async fn one_tenant_does_not_get_all() {
    let budget = budget(8);
    let [a, b] = [(); 2].map(|()| budget.open_pool(100, 100));
    let mut held = Vec::new();
    for _ in 0..7 {
        held.push(get(&budget, a).await);
    }
    assert_eq!(budget.turn(a, true, Duration::ZERO).await.err(), Some(NoTurn::Late), "an eighth is left");
    let of_b = get(&budget, b).await;
    // Both want more. What comes back of the one that holds more goes to the other, until they are even.
    let for_b: Vec<_> = (0..3).map(|_| waits(&budget, b)).collect();
    waiting(&budget, 3).await;
    let for_a: Vec<_> = (0..5).map(|_| waits(&budget, a)).collect();
    waiting(&budget, 8).await;
    for _ in 0..3 {
        drop(held.pop());
    }
    for task in for_b {
        held.push(task.await.expect("joined"));
    }
    assert_eq!((budget.count(a).all, budget.count(b).all), (4, 4));
    assert_eq!(budget.load(), (8, 5), "and then they keep what they have");
    drop((held, of_b));
    for task in for_a {
        drop(task.await.expect("joined"));
    }
}

#[tokio::test]
async fn who_has_none_gets_one_after_a_turn_and_not_before() {
    let budget = budget(1);
    let [a, b] = [(); 2].map(|()| budget.open_pool(4, 1000));
    let mut held = get(&budget, a).await;
    let of_b = waits(&budget, b);
    waiting(&budget, 1).await;
    let (mut served, mut queue) = (0, Vec::new());
    loop {
        queue.push(waits(&budget, a));
        let before = budget.load().1;
        waiting(&budget, queue.len() + 1).await;
        drop(held);
        tokio::task::yield_now().await;
        if of_b.is_finished() || budget.count(a).all == 0 {
            break;
        }
        held = queue.remove(0).await.expect("joined");
        served += 1;
        assert!(served <= TURN && before <= TURN as usize + 2, "{served}");
    }
    assert_eq!(served, TURN);
    drop(of_b.await.expect("joined"));
    for task in queue {
        drop(task.await.expect("the others have their turn too"));
    }
}

#[tokio::test]
async fn a_smaller_limit_closes_what_comes_back() {
    let budget = budget(8);
    let a = budget.open_pool(7, 10);
    let mut held = Vec::new();
    for _ in 0..6 {
        held.push(get(&budget, a).await);
    }
    drop(held.split_off(4));
    budget.set_limit(3);
    assert_eq!((budget.load().0, budget.count(a).idle), (4, 0), "idle ones go at once, leased ones stay");
    drop(held.split_off(2));
    assert_eq!((budget.load().0, budget.count(a).idle), (2, 0));
    let waits = waits(&budget, a);
    waiting(&budget, 1).await;
    budget.set_limit(8);
    drop(waits.await.expect("a larger one serves who waits"));
}

#[tokio::test]
async fn a_closed_pool_lends_nothing_and_keeps_nothing() {
    let budget = budget(2);
    let a = budget.open_pool(1, 10);
    let held = get(&budget, a).await;
    let waits = {
        let budget = budget.clone();
        gmah_shared::tasks::detach("waits", async move { budget.turn(a, true, LONG).await.err() })
    };
    waiting(&budget, 1).await;
    budget.close_pool(a);
    assert_eq!(waits.await.expect("joined"), Some(NoTurn::Closed));
    assert_eq!(budget.turn(a, true, LONG).await.err(), Some(NoTurn::Closed));
    assert_eq!(budget.load(), (1, 0));
    drop(held);
    assert_eq!(budget.load(), (0, 0));
}

#[tokio::test]
async fn dead_connections_and_queues_are_bounded() {
    let budget = budget(4);
    let a = budget.open_pool(1, 1);
    let mut held = get(&budget, a).await;
    held.get().alive = false;
    drop(held);
    assert_eq!(budget.load(), (0, 0), "a dead one is not kept");
    let held = get(&budget, a).await;
    let waits = waits(&budget, a);
    waiting(&budget, 1).await;
    assert_eq!(budget.turn(a, true, LONG).await.err(), Some(NoTurn::Full));
    waits.abort();
    waiting(&budget, 0).await;
    drop(held);
    assert_eq!(budget.count(a), Count { all: 1, idle: 1 }, "who went away takes nothing along");
    budget.reap(Duration::ZERO, LONG);
    assert_eq!(budget.load(), (0, 0));
}

#[derive(Debug, Clone)]
enum Step {
    Ask(usize),
    Return(usize),
    Kill(usize),
    GiveUp(usize),
    Limit(usize),
    Reap,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..5usize).prop_map(Step::Ask),
        6 => (0..64usize).prop_map(Step::Return),
        1 => (0..64usize).prop_map(Step::Kill),
        2 => (0..64usize).prop_map(Step::GiveUp),
        1 => (0..9usize).prop_map(Step::Limit),
        1 => Just(Step::Reap),
    ]
}

proptest! {
    /// Whatever happens: never more than the limit once what was over it has come back, counts add up, nobody waits
    /// while there is something for them, and in the end everything is free.
    #[test]
    fn counts_add_up(steps in prop::collection::vec(step(), 1..200)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("runtime");
        runtime.block_on(async {
            let (mut limit, most) = (6, 3);
            let budget = budget(limit);
            let pools: Vec<_> = (0..5).map(|_| budget.open_pool(most, 100)).collect();
            let mut held: Vec<(PoolId, Held<Fake>)> = Vec::new();
            let mut asked: Vec<(PoolId, tokio::task::JoinHandle<Held<Fake>>)> = Vec::new();
            let mut highest = limit;
            for step in steps {
                match step {
                    Step::Ask(n) => asked.push((pools[n], waits(&budget, pools[n]))),
                    Step::Return(n) if !held.is_empty() => drop(held.swap_remove(n % held.len())),
                    Step::Kill(n) if !held.is_empty() => {
                        let (_, mut h) = held.swap_remove(n % held.len());
                        h.get().alive = false;
                    }
                    Step::GiveUp(n) if !asked.is_empty() => asked.swap_remove(n % asked.len()).1.abort(),
                    Step::Limit(n) => {
                        limit = n;
                        budget.set_limit(n);
                    }
                    Step::Reap => budget.reap(Duration::ZERO, LONG),
                    _ => {}
                }
                for _ in 0..20 {
                    tokio::task::yield_now().await;
                }
                for n in (0..asked.len()).rev() {
                    if asked[n].1.is_finished() {
                        let (pool, task) = asked.swap_remove(n);
                        held.push((pool, task.await.expect("joined")));
                    }
                }
                let (used, waiting) = budget.load();
                let counts: HashMap<_, _> = pools.iter().map(|p| (*p, budget.count(*p))).collect();
                assert_eq!(used, counts.values().map(|c| c.all).sum::<usize>());
                assert_eq!(used, held.len() + counts.values().map(|c| c.idle).sum::<usize>());
                assert_eq!(waiting, asked.len());
                // Those on loan when the limit fell stay until they come back.
                highest = limit.max(used.min(highest));
                assert!(used <= highest, "{used} of {limit}");
                assert!(counts.values().all(|c| c.all <= most));
                let could = asked.iter().any(|(p, _)| counts[p].all < most.min(state::most(limit)));
                assert!(!could || used >= limit, "{used} of {limit}, and somebody waits: {counts:?}");
                let idle: usize = counts.values().map(|c| c.idle).sum();
                assert!(!could || limit == 0 || idle == 0, "somebody waits beside idle ones: {counts:?}");
                assert!(asked.iter().all(|(p, _)| counts[p].idle == 0), "idle beside a queue of its own");
            }
            for (_, task) in asked.drain(..) {
                task.abort();
                let _ = task.await;
            }
            held.clear();
            budget.reap(Duration::ZERO, LONG);
            assert_eq!(budget.load(), (0, 0));
        });
    }
}

/// Who may not open a connection waits for those that there are, and takes nobody else's meanwhile.
#[tokio::test]
async fn a_refused_pool_lends_what_it_has() {
    let budget = budget(2);
    let [a, b] = [(); 2].map(|()| budget.open_pool(2, 10));
    let (of_a, of_b) = (get(&budget, a).await, get(&budget, b).await);
    drop(of_b);
    let waits = {
        let budget = budget.clone();
        gmah_shared::tasks::detach("waits", async move { budget.turn(a, false, LONG).await.map(opened) })
    };
    waiting(&budget, 1).await;
    assert_eq!(budget.count(b).idle, 1, "nothing is given up for it");
    drop(of_a);
    drop(waits.await.expect("joined").expect("its own"));
}

#[tokio::test]
async fn an_idle_one_that_ends_by_itself_is_forgotten_at_once() {
    let budget = budget(4);
    let a = budget.open_pool(2, 10);
    let Turn::Open(slot) = budget.turn(a, true, LONG).await.expect("turn") else {
        panic!("nothing to reuse")
    };
    drop(slot.holds(Fake { _slot: Arc::new(other_slot(&budget, a).await), alive: true }));
    assert_eq!(budget.count(a), Count { all: 2, idle: 1 });
    drop(slot);
    assert_eq!((budget.count(a), budget.demand()), (Count::default(), 0));
}

async fn other_slot(budget: &Arc<Budget<Fake>>, pool: PoolId) -> Slot<Fake> {
    match budget.turn(pool, true, LONG).await.expect("turn") {
        Turn::Open(slot) => slot,
        Turn::Reuse(_) => panic!("nothing to reuse"),
    }
}

/// what a node says that it wants is what it could use, so that one organisation's crowd takes no other node's share.
#[tokio::test]
async fn q08_a_crowd_wants_no_more_than_its_pool_may_have() {
    let budget = budget(4);
    let [a, b] = [2, 4].map(|max| budget.open_pool(max, 100));
    let of_a = [get(&budget, a).await, get(&budget, a).await];
    let short = budget.short.clone();
    let hears = async || tokio::time::timeout(Duration::from_millis(20), short.notified()).await.is_ok();
    let crowd: Vec<_> = (0..10).map(|_| waits(&budget, a)).collect();
    waiting(&budget, 10).await;
    assert_eq!((budget.demand(), hears().await), (2, false), "places would help nobody");
    let of_b = [get(&budget, b).await, get(&budget, b).await];
    let more: Vec<_> = (0..5).map(|_| waits(&budget, b)).collect();
    waiting(&budget, 15).await;
    assert_eq!((budget.demand(), hears().await), (6, true), "two more of the five");
    drop((of_a, of_b));
    for waiter in crowd.into_iter().chain(more) {
        drop(waiter.await.expect("joined"));
    }
    assert_eq!(budget.demand(), 0);
}
