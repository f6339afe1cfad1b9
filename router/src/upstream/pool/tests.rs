use std::collections::HashMap;

use super::*;
use crate::config::{Health, Target};

fn address(n: u8) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, n], 80))
}

fn pool(n: u8, change: impl FnOnce(&mut config::Pool)) -> Pool {
    let text = "addresses = [\"127.0.0.1:80\"]";
    let mut config: config::Pool = toml::from_str(text).expect("defaults");
    config.addresses = (1..=n).map(|n| Target::Address(address(n))).collect();
    config.health = Health::default();
    change(&mut config);
    let seconds = Histogram::with_opts(prometheus::HistogramOpts::new("x", "x")).expect("histogram");
    Pool::new("api", config, seconds).expect("pool")
}

/// How many of `picks` each backend gets, each given back at once.
fn spread(pool: &Pool, picks: usize, avoid: Option<SocketAddr>) -> HashMap<SocketAddr, usize> {
    let mut seen = HashMap::new();
    for _ in 0..picks {
        *seen.entry(pool.pick(avoid).expect("one is well").0.address).or_default() += 1;
    }
    seen
}

#[test]
fn busy_backends_get_less() {
    let pool = pool(3, |_| {});
    assert_eq!(&*pool.audience, "gmah-api");
    let seen = spread(&pool, 3000, None);
    assert!((1..=3).all(|n| seen[&address(n)] > 800), "{seen:?}");
    // With leases held, all come out equally busy, within the noise of two choices.
    let held: Vec<Lease> = (0..300).filter_map(|_| pool.pick(None)).collect();
    let busy: Vec<usize> = pool.endpoints().iter().map(|e| e.in_flight()).collect();
    assert!(busy.iter().all(|n| (90..=110).contains(n)), "{busy:?}");
    drop(held);
    assert!(pool.endpoints().iter().all(|e| e.in_flight() == 0));
}

#[test]
fn sick_backends_get_nothing_and_come_back_slowly() {
    let pool = pool(2, |c| c.slow_start = gmah_shared::config::HumanDuration::from_secs(3600));
    let all = pool.endpoints();
    all[0].set_down();
    assert_eq!(spread(&pool, 100, None).get(&address(1)), None);
    all[0].set_up();
    let seen = spread(&pool, 10_000, None);
    let back = seen[&address(1)];
    assert!((500..1500).contains(&back), "a tenth of the other's share, not half: {back}");
    all[0].set_down();
    all[1].set_down();
    assert!(pool.pick(None).is_none(), "none is well");
}

#[test]
fn failing_backends_are_left_out_but_never_most_of_them() {
    let pool = pool(3, |_| {});
    let all = pool.endpoints();
    for _ in 0..2 {
        pool.failed(&all[0]);
    }
    assert!(all[0].is_available(), "two in a row");
    all[0].succeeded();
    for _ in 0..3 {
        pool.failed(&all[0]);
    }
    assert!(all[0].is_ejected(), "three in a row");
    for endpoint in &all[1..] {
        (0..10).for_each(|_| pool.failed(endpoint));
        assert!(endpoint.is_available(), "half of the pool at most");
    }
    all[1].set_down();
    all[2].set_down();
    assert_eq!(pool.pick(None).expect("better than nothing").0.address, address(1));
    let only = super::tests::pool(1, |_| {});
    (0..10).for_each(|_| only.failed(&only.endpoints()[0]));
    assert!(only.pick(None).is_some(), "the only one is always tried");
}

#[test]
fn another_attempt_goes_elsewhere_within_the_budget() {
    let pool = pool(2, |c| c.retry_percent = gmah_shared::config::Within::new(50));
    assert_eq!(spread(&pool, 50, Some(address(1))).len(), 1);
    pool.endpoints()[1].set_down();
    assert_eq!(spread(&pool, 5, Some(address(1)))[&address(1)], 5, "to the same where there is no other");
    assert!(!pool.may_retry(3), "attempts in all");
    let first = (0..1000).filter(|_| pool.may_retry(1)).count();
    assert_eq!(first, 100);
    (0..10).for_each(|_| pool.began());
    assert_eq!((0..1000).filter(|_| pool.may_retry(1)).count(), 5, "half of ten requests");
}

#[test]
fn backends_that_stay_keep_their_state() {
    let pool = pool(2, |_| {});
    pool.endpoints()[1].set_down();
    pool.set_endpoints(&[(address(2), None), (address(3), None)]);
    let now = pool.endpoints();
    assert_eq!(now.iter().map(|e| e.address).collect::<Vec<_>>(), [address(2), address(3)]);
    assert!(now[0].is_down() && now[1].is_available());
    assert!(now[1].share(Duration::from_secs(3600)) < 0.2, "a newcomer");
}
