use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize};
use std::time::Duration;

use prometheus::Registry;
use tokio::sync::Semaphore;

use super::*;
use crate::config::{HumanDuration, Within};

#[derive(Debug, Clone, PartialEq)]
struct Row {
    id: TenantId,
    revision: i64,
    text: &'static str,
}

impl Record for Row {
    fn id(&self) -> TenantId {
        self.id
    }

    fn revision(&self) -> i64 {
        self.revision
    }
}

/// A master whose table, state and speed the test holds.
#[derive(Default)]
struct Master {
    rows: Mutex<HashMap<String, Row>>,
    away: AtomicBool,
    queries: AtomicUsize,
    /// Of its revisions.
    newest: AtomicI64,
    /// When set, an answer is read first and handed out only with a permit.
    gate: Mutex<Option<Arc<Semaphore>>>,
    /// Where the cache counts.
    registry: Mutex<Registry>,
}

fn cache(master: &Arc<Master>, settings: CatalogSettings) -> Cache<String, Row> {
    cache_for(master, *settings.max_stale, settings)
}

fn cache_for(master: &Arc<Master>, served: Duration, settings: CatalogSettings) -> Cache<String, Row> {
    let m = master.clone();
    let load: Loader<String, Row> = Box::new(move |key: &String| {
        let (m, key) = (m.clone(), key.clone());
        Box::pin(async move {
            m.queries.fetch_add(1, Ordering::SeqCst);
            if m.away.load(Ordering::SeqCst) {
                return Err(StoreError::Timeout);
            }
            let row = m.rows.lock().expect("lock").get(&key).cloned();
            let gate = m.gate.lock().expect("lock").clone();
            if let Some(gate) = gate {
                gate.acquire().await.expect("open").forget();
            }
            Ok(row)
        })
    });
    let registry = Registry::new();
    let m = master.clone();
    let newest: Newest = Box::new(move || {
        let newest = m.newest.load(Ordering::SeqCst);
        Box::pin(async move { Ok(newest) })
    });
    let metrics = CacheMetrics::register(&registry, "test").expect("metrics");
    let cache = Cache::serving_for(served, settings, load, newest, metrics);
    *master.registry.lock().expect("lock") = registry;
    cache
}

fn quick() -> CatalogSettings {
    CatalogSettings {
        ttl: HumanDuration::from_millis(60),
        max_stale: HumanDuration::from_millis(600),
        retry_after_error: HumanDuration::from_millis(1),
        ..CatalogSettings::default()
    }
}

fn put(master: &Master, key: &str, row: &Row) {
    master.newest.fetch_max(row.revision, Ordering::SeqCst);
    master.rows.lock().expect("lock").insert(key.into(), row.clone());
}

fn row(revision: i64, text: &'static str) -> Row {
    Row { id: TenantId::generate(), revision, text }
}

fn text(lookup: &Lookup<Row>) -> &'static str {
    match lookup {
        Lookup::Found(hit) => hit.text,
        Lookup::Unknown => "unknown",
        Lookup::Unavailable => "unavailable",
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn c04_two_hundred_first_requests_make_one_query() {
    let master = Arc::new(Master::default());
    put(&master, "paris", &row(1, "v1"));
    let gate = Arc::new(Semaphore::new(0));
    *master.gate.lock().expect("lock") = Some(gate.clone());
    let cache = cache(&master, CatalogSettings::default());
    let asks: Vec<_> = (0..200)
        .map(|_| {
            let cache = cache.clone();
            crate::tasks::detach("ask", async move { text(&cache.get(&"paris".to_owned()).await) })
        })
        .collect();
    while master.queries.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    gate.add_permits(1000);
    for ask in asks {
        assert_eq!(ask.await.expect("joined"), "v1");
    }
    assert_eq!(master.queries.load(Ordering::SeqCst), 1);
}

/// Who looks just before a load ends, and comes to wait just after: what it begins asks nobody.
#[tokio::test]
async fn c04_who_comes_late_finds_the_answer() {
    let master = Arc::new(Master::default());
    put(&master, "paris", &row(1, "v1"));
    let cache = cache(&master, CatalogSettings::default());
    for (key, answer) in [("paris", "v1"), ("nowhere", "unknown")] {
        master.queries.store(0, Ordering::SeqCst);
        assert_eq!(text(&cache.get(&key.to_owned()).await), answer);
        for _ in 0..3 {
            let late = match cache.clone().load(key.to_owned(), cache.0.recent_seq()).await {
                flight::Outcome::Found(entry) => entry.value.text,
                flight::Outcome::Unknown => "unknown",
                flight::Outcome::Failed => "failed",
            };
            assert_eq!(late, answer);
        }
        assert_eq!(master.queries.load(Ordering::SeqCst), 1, "{key}");
    }
    put(&master, "paris", &row(2, "v2"));
    cache.invalidate_all();
    assert_eq!(text(&cache.get(&"paris".to_owned()).await), "v2");
}

#[tokio::test]
async fn c05_a_load_that_a_notice_overtook_is_not_kept() {
    let master = Arc::new(Master::default());
    let old = row(1, "old");
    put(&master, "paris", &old);
    let gate = Arc::new(Semaphore::new(0));
    *master.gate.lock().expect("lock") = Some(gate.clone());
    let cache = cache(&master, CatalogSettings::default());
    let key = "paris".to_owned();
    let first = {
        let (cache, key) = (cache.clone(), key.clone());
        crate::tasks::detach("first", async move { text(&cache.get(&key).await) })
    };
    while master.queries.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    // The old row has been read; now it changes, and the notice comes before the answer.
    put(&master, "paris", &Row { revision: 2, text: "new", ..old.clone() });
    cache.invalidate(old.id);
    let second = {
        let (cache, key) = (cache.clone(), key.clone());
        crate::tasks::detach("second", async move { text(&cache.get(&key).await) })
    };
    while master.queries.load(Ordering::SeqCst) < 2 {
        tokio::task::yield_now().await;
    }
    gate.add_permits(100);
    assert_eq!(first.await.expect("joined"), "old", "asked before the change");
    assert_eq!(second.await.expect("joined"), "new", "asked after it: did not join the old load");
    assert_eq!(text(&cache.get(&key).await), "new");
}

#[tokio::test]
async fn a_notice_ends_every_name_of_an_organisation_and_every_negative() {
    let master = Arc::new(Master::default());
    let r = row(1, "v1");
    put(&master, "paris", &r);
    put(&master, "www.paris.example", &r);
    let cache = cache(&master, CatalogSettings::default());
    let keys = ["paris".to_owned(), "www.paris.example".to_owned(), "nice".to_owned()];
    for key in &keys {
        cache.get(key).await;
        cache.get(key).await;
    }
    assert_eq!(master.queries.load(Ordering::SeqCst), 3);
    for key in &keys[..2] {
        put(&master, key, &Row { revision: 2, text: "v2", ..r.clone() });
    }
    put(&master, "nice", &row(3, "nice"));
    cache.invalidate(r.id);
    assert_eq!(text(&cache.get(&keys[0]).await), "v2");
    assert_eq!(text(&cache.get(&keys[1]).await), "v2");
    assert_eq!(text(&cache.get(&keys[2]).await), "nice");
}

#[tokio::test]
async fn c07_r13_without_the_master_known_names_last_max_stale_and_unknown_ones_fail() {
    let master = Arc::new(Master::default());
    put(&master, "paris", &row(1, "v1"));
    let cache = cache(&master, quick());
    let (paris, nobody) = ("paris".to_owned(), "nobody".to_owned());
    assert_eq!(text(&cache.get(&paris).await), "v1");
    master.away.store(true, Ordering::SeqCst);
    cache.invalidate_all();
    assert_eq!(text(&cache.get(&paris).await), "v1", "stale, within the limit");
    assert_eq!(text(&cache.get(&nobody).await), "unavailable");
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(text(&cache.get(&paris).await), "unavailable", "past the limit");
    master.away.store(false, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert_eq!(text(&cache.get(&paris).await), "v1");
    assert_eq!(text(&cache.get(&nobody).await), "unknown", "the failure was not remembered as an absence");
}

#[tokio::test]
async fn what_is_known_to_have_changed_is_never_guessed() {
    let master = Arc::new(Master::default());
    let r = row(1, "active");
    put(&master, "paris", &r);
    let cache = cache(&master, quick());
    let paris = "paris".to_owned();
    cache.get(&paris).await;
    master.away.store(true, Ordering::SeqCst);
    cache.invalidate(r.id);
    assert_eq!(text(&cache.get(&paris).await), "unavailable");
}

#[tokio::test]
async fn q12_an_older_master_is_not_believed() {
    let master = Arc::new(Master::default());
    let r = row(10, "new");
    put(&master, "paris", &r);
    let cache = cache(&master, quick());
    let paris = "paris".to_owned();
    cache.get(&paris).await;
    put(&master, "paris", &Row { revision: 4, text: "restored", ..r });
    cache.invalidate_all();
    assert_eq!(text(&cache.get(&paris).await), "new", "served as stale, within its limit");
}

/// A notice ended what is held, and then the master turns out to be older: what is known to have changed is not served again.
#[tokio::test]
async fn q12_doubt_revives_nothing_that_a_notice_ended() {
    let master = Arc::new(Master::default());
    let r = row(10, "new");
    put(&master, "paris", &r);
    let settings =
        CatalogSettings { retry_after_error: HumanDuration::from_millis(1), ..CatalogSettings::default() };
    let cache = cache(&master, settings);
    let paris = "paris".to_owned();
    cache.get(&paris).await;
    put(&master, "paris", &Row { revision: 4, text: "restored", ..r.clone() });
    master.newest.store(4, Ordering::SeqCst);
    cache.invalidate(r.id);
    for _ in 0..3 {
        assert_eq!(text(&cache.get(&paris).await), "unavailable");
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    cache.invalidate_all();
    assert_eq!(text(&cache.get(&paris).await), "unavailable");
    put(&master, "paris", &Row { revision: 11, text: "newest", ..r });
    tokio::time::sleep(Duration::from_millis(3)).await;
    assert_eq!(text(&cache.get(&paris).await), "newest");
}

/// What an older master lacks, or has as somebody else's, is as it was known; what a living one takes away is gone.
#[tokio::test]
async fn q12_an_older_master_takes_no_name_away() {
    for lives in [false, true] {
        let master = Arc::new(Master::default());
        let (mine, other) = (row(10, "mine"), row(4, "other"));
        put(&master, "paris", &mine);
        put(&master, "www.paris.example", &Row { text: "mine at www", ..mine.clone() });
        let settings =
            CatalogSettings { max_stale: HumanDuration::from_millis(5000), ..CatalogSettings::default() };
        let cache = cache(&master, settings);
        let (paris, www, nobody) = ("paris".to_owned(), "www.paris.example".to_owned(), "nobody".to_owned());
        for (key, answer) in [(&paris, "mine"), (&www, "mine at www"), (&nobody, "unknown")] {
            assert_eq!(text(&cache.get(key).await), answer);
        }
        master.rows.lock().expect("lock").remove(&paris);
        // A living master has gone on, also where somebody else's row is older than the one held.
        put(&master, "www.paris.example", &other);
        master.newest.store(if lives { 11 } else { 4 }, Ordering::SeqCst);
        master.queries.store(0, Ordering::SeqCst);
        cache.invalidate_all();
        let expected = if lives { ["unknown", "other"] } else { ["mine", "mine at www"] };
        for (key, answer) in [(&paris, expected[0]), (&www, expected[1]), (&nobody, "unknown")] {
            for _ in 0..3 {
                assert_eq!(text(&cache.get(key).await), answer, "it lives: {lives}");
            }
        }
        let said = crate::telemetry::encode(&master.registry.lock().expect("lock")).expect("text");
        assert_eq!(said.contains("gmah_catalog_regressions_total{cache=\"test\"} 0"), lives, "{said}");
        assert_eq!(master.queries.load(Ordering::SeqCst), 3, "each asked for once");
        // For as long as what is known may be served at all; then there is nothing to hold against it.
        if !lives {
            tokio::time::sleep(Duration::from_millis(5100)).await;
            assert_eq!(text(&cache.get(&paris).await), "unknown");
            assert_eq!(text(&cache.get(&www).await), "other");
        }
    }
}

/// Doubt lasts for `max_stale`, however long things are served while the master is away; and ends with a master that has come
/// further, as soon as it is heard of.
#[tokio::test]
async fn q12_doubt_ends() {
    let master = Arc::new(Master::default());
    let mine = row(10, "mine");
    put(&master, "paris", &mine);
    let served = Duration::from_secs(3600);
    let cache = cache_for(&master, served, quick());
    let paris = "paris".to_owned();
    let older = Row { revision: 4, text: "older", ..mine.clone() };
    let began = Instant::now();
    cache.get(&paris).await;
    put(&master, "paris", &older);
    master.newest.store(4, Ordering::SeqCst);
    cache.invalidate_all();
    let seen = text(&cache.get(&paris).await);
    assert!(seen == "mine" || began.elapsed() > Duration::from_millis(500), "{seen}");
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(text(&cache.get(&paris).await), "older", "although it may be served for an hour");

    put(&master, "paris", &Row { revision: 11, text: "newer", ..mine.clone() });
    cache.invalidate(mine.id);
    let began = Instant::now();
    assert_eq!(text(&cache.get(&paris).await), "newer");
    put(&master, "paris", &older);
    cache.invalidate_all();
    let seen = text(&cache.get(&paris).await);
    assert!(seen == "newer" || began.elapsed() > Duration::from_millis(500), "{seen}");
    put(&master, "paris", &Row { revision: 12, text: "as it should be", ..mine });
    cache.invalidate_all();
    assert_eq!(text(&cache.get(&paris).await), "as it should be");
}

#[tokio::test]
async fn r12_unknown_names_evict_nobody_and_loads_are_bounded() {
    let master = Arc::new(Master::default());
    put(&master, "paris", &row(1, "v1"));
    let settings = CatalogSettings {
        max_entries: Within::new(10),
        max_negative: Within::new(100),
        max_loads: Within::new(4),
        ..CatalogSettings::default()
    };
    let cache = cache(&master, settings);
    let paris = "paris".to_owned();
    cache.get(&paris).await;
    for n in 0..5000 {
        cache.get(&format!("r{n}")).await;
    }
    cache.0.negative.run_pending_tasks();
    assert!(cache.0.negative.entry_count() <= 100);
    assert!(cache.peek(&paris).is_some());
    *master.gate.lock().expect("lock") = Some(Arc::new(Semaphore::new(0)));
    for n in 0..4 {
        let cache = cache.clone();
        crate::tasks::detach("blocked", async move { cache.get(&format!("slow{n}")).await });
    }
    while cache.0.flights.len() < 4 {
        tokio::task::yield_now().await;
    }
    assert_eq!(text(&cache.get(&"one more".to_owned()).await), "unavailable");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_it_holds_is_counted_when_somebody_asks() {
    let master = Arc::new(Master::default());
    let settings =
        CatalogSettings { max_stale: HumanDuration::from_millis(300), ..CatalogSettings::default() };
    let cache = cache(&master, settings);
    let shown = |name: &str| {
        let text = crate::telemetry::encode(&master.registry.lock().expect("lock")).expect("text");
        let line = text.lines().find_map(|l| l.strip_prefix(&format!("{name}{{cache=\"test\"}} ")));
        line.expect("shown").parse::<u64>().expect("a number")
    };
    let held = || shown("gmah_catalog_entries");
    assert_eq!((held(), shown("gmah_catalog_absent_entries")), (0, 0));
    assert_eq!(text(&cache.get(&"nobody".to_owned()).await), "unknown");
    assert_eq!((held(), shown("gmah_catalog_absent_entries")), (0, 1));
    for n in 0..100 {
        put(&master, &format!("t{n}"), &row(1, "v1"));
    }
    let began = Instant::now();
    for n in 0..100 {
        cache.get(&format!("t{n}")).await;
    }
    let held_now = held();
    // A machine that is busy may have been late: then some are gone again.
    assert!(held_now == 100 || began.elapsed() > Duration::from_millis(250), "{held_now}");
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(held(), 0, "gone by themselves");
    assert_eq!(cache.0.index.len(), 0, "wherever they were held");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_is_held_once() {
    let master = Arc::new(Master::default());
    let settings = CatalogSettings {
        ttl: HumanDuration::from_millis(1),
        max_entries: Within::new(50),
        ..CatalogSettings::default()
    };
    let cache = cache(&master, settings);
    put(&master, "paris", &row(1, "v1"));
    for _ in 0..20 {
        assert_eq!(text(&cache.get(&"paris".to_owned()).await), "v1");
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    cache.0.positive.run_pending_tasks();
    assert_eq!(cache.0.index.len(), 1, "read many times");
    for n in 0..1000 {
        put(&master, &format!("t{n}"), &row(n, "v1"));
        cache.get(&format!("t{n}")).await;
    }
    cache.0.positive.run_pending_tasks();
    assert_eq!(cache.0.index.len() as u64, cache.0.positive.entry_count(), "no more than there is room for");
}
