//! a master that answers, and not as it should: from an older backup, read-only, of another version.

use std::time::Duration;

use crate::harness::dev::text;
use crate::harness::{Dev, eventually, roles};

const HEALS: Duration = Duration::from_secs(15);

/// What was made and suspended since that backup is served as it was known, until somebody says that the older one counts.
#[tokio::test(flavor = "multi_thread")]
async fn q12_a_master_from_an_older_backup() {
    let dev = Dev::start_with("[catalog]\nttl = \"2s\"\n").await;
    let (paris, lyon) = (dev.login("paris").await, dev.login("lyon").await);
    let postgres = dev.superuser("postgres").await;
    dev.set_reachable("gmah_master", false).await;
    postgres.batch_execute("create database older template gmah_master").await.expect("copied");
    // A restore by the log leaves a sequence ahead of what it has given (SEQ_LOG_VALS).
    dev.execute("older", "select setval('catalog_revision', last_value + 32) from catalog_revision").await;
    dev.set_reachable("gmah_master", true).await;

    let password = dev.create("nice").await;
    let nice = dev.login_as("nice", "admin@nice.example", &password).await;
    assert!(dev.cli(&["tenant", "suspend", "lyon"]).await.status.success());
    let ask = |slug: &'static str, token: &str| {
        let (dev, token) = (&dev, token.to_owned());
        async move { dev.get_as(slug, "/api/v1/members", &token).await.status }
    };
    eventually("suspended", HEALS, || ask("lyon", &lyon), |s| *s == 403).await;
    assert_eq!((ask("nice", &nice).await, ask("paris", &paris).await), (200, 200));

    dev.set_reachable("gmah_master", false).await;
    postgres
        .batch_execute(
            "alter database gmah_master rename to newer; alter database older rename to gmah_master",
        )
        .await
        .expect("exchanged");
    let not_believed = |listener: &'static str| {
        let dev = &dev;
        async move { dev.metrics(listener).await.sum("gmah_catalog_regressions_total", &[]) }
    };
    let all = || async { (ask("nice", &nice).await, ask("lyon", &lyon).await, ask("paris", &paris).await) };
    // Until both have noticed, and for a while after: asked for again and again.
    let noticed = || async {
        assert_eq!(all().await, (200, 403, 200));
        (not_believed("admin").await, not_believed("api_admin").await)
    };
    eventually("noticed", HEALS, noticed, |(router, api)| *router >= 2.0 && *api >= 1.0).await;
    for _ in 0..50 {
        assert_eq!(all().await, (200, 403, 200));
    }
    let (asked, began) = (not_believed("admin").await, std::time::Instant::now());
    for _ in 0..50 {
        assert_eq!(all().await, (200, 403, 200));
    }
    let asked = not_believed("admin").await - asked;
    let most = 2 * (began.elapsed().as_secs() / 2 + 2);
    assert!(asked <= most as f64, "asked once for each name and TTL, not for each request: {asked}");
    assert_eq!(dev.get("unseen", "/").await.status, 404, "what nobody knows is unknown");
    assert!(dev.log().contains("is older than"), "and said");

    // It is what is wanted, after all: as deploy/recovery.md says.
    dev.execute("gmah_master", "select setval('catalog_revision', last_value + 1000000) from catalog_revision; update organizations set revision = revision").await;
    let believed =
        || async { (ask("nice", &nice).await, ask("lyon", &lyon).await, ask("paris", &paris).await) };
    eventually("believed", HEALS, believed, |seen| *seen == (404, 200, 200)).await;

    // The right one again: older than that, and newer than all of it once its revisions have passed.
    dev.set_reachable("gmah_master", false).await;
    postgres
        .batch_execute(
            "alter database gmah_master rename to older; alter database newer rename to gmah_master",
        )
        .await
        .expect("exchanged");
    dev.set_reachable("gmah_master", true).await;
    dev.execute("gmah_master", "select setval('catalog_revision', last_value + 2000000) from catalog_revision; update organizations set revision = revision").await;
    assert!(dev.cli(&["tenant", "resume", "lyon"]).await.status.success());
    eventually("as before", HEALS, || async { ask("nice", &nice).await }, |s| *s == 200).await;
    let lyon = || async { dev.get("lyon", "/api/v1/tenant").await.status };
    eventually("resumed", HEALS, lyon, |s| *s == 200).await;
    let before = not_believed("admin").await;
    assert!(
        dev.cli(&["tenant", "delete", "nice", "--yes-delete", "nice", "--without-backup"])
            .await
            .status
            .success()
    );
    eventually("deleted", HEALS, || ask("nice", &nice), |s| *s == 404).await;
    assert!(not_believed("admin").await - before < 1.0, "a name that is taken away is no step back");
}

/// A master that takes no writes: everybody is served, what would change it says so and changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn q12_a_master_that_takes_no_writes() {
    let dev = Dev::start().await;
    let paris = dev.login("paris").await;
    let switch = |on: &'static str| {
        let dev = &dev;
        async move {
            let set = format!("alter database gmah_master set default_transaction_read_only = {on}");
            dev.execute("postgres", &set).await;
            let kick =
                "select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = 'gmah_master'";
            dev.execute("postgres", kick).await;
        }
    };
    switch("on").await;
    let bearer = format!("Bearer {paris}");
    for n in 0..10 {
        assert_eq!(dev.get_as("paris", "/api/v1/members", &paris).await.status, 200);
        let body = serde_json::json!({"first_name": "Ada", "last_name": format!("N{n}")});
        let made = dev.post("paris", "/api/v1/members", &[("Authorization", &bearer)], &body).await;
        assert_eq!(made.status, 201, "{made:?}");
    }
    eventually("read", HEALS, || async { dev.get("unseen", "/").await.status }, |s| *s == 404).await;
    // Seen for the first time.
    let email = text(&dev.info["tenants"][2]["admin_email"]).to_owned();
    let body =
        serde_json::json!({"email": email, "password": text(&dev.info["tenants"][2]["admin_password"])});
    let login = || dev.post("hopital-central", "/api/v1/auth/login", &[], &body);
    eventually("for the first time", HEALS, login, |a| a.status == 200).await;
    let refused = dev.cli(&["tenant", "suspend", "paris"]).await;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("read-only"), "{said}");
    assert_eq!(dev.get("paris", "/api/v1/tenant").await.status, 200);
    for listener in ["admin", "api_admin"] {
        let address = crate::harness::dev::address(&dev.info[listener]);
        assert_eq!(crate::harness::http::plain(address, "/readyz").await.status, 200, "{listener}");
    }
    switch("off").await;
    let suspend = || async { dev.cli(&["tenant", "suspend", "paris"]).await.status.code() };
    eventually("suspended", HEALS, suspend, |c| *c == Some(0)).await;
    let seen = || async { dev.get("paris", "/api/v1/tenant").await.status };
    eventually("and heard of", HEALS, seen, |s| *s == 403).await;
}

/// One version ahead, nodes go on and new ones start, and no older program changes its tables. One version behind, what
/// is known is served, and an error is not remembered as an absence.
#[tokio::test(flavor = "multi_thread")]
async fn q12_l15_a_master_of_another_version() {
    let dev = Dev::start().await;
    let paris = dev.login("paris").await;
    let ahead = "alter table organizations add column later text not null default 'x';
        alter table plans add column later int not null default 1;
        create table later (id bigint primary key);
        insert into schema_migrations (set_name, version, name, checksum)
        select set_name, max(version) + 1, 'later', '\\x00'::bytea from schema_migrations group by set_name";
    dev.execute("gmah_master", ahead).await;
    let kick = "select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = 'gmah_master'";
    dev.execute("postgres", kick).await;
    // No older program changes its tables.
    let columns = || {
        dev.value("gmah_master", "select count(*) || '/' || (select count(*) from schema_migrations) from information_schema.columns where table_schema = 'public'")
    };
    let before = columns().await;
    let refused = dev.cli(&["server", "list"]).await;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!((refused.status.code(), columns().await), (Some(1), before), "{said}");
    let api = roles::api(&dev, |_, _| {}).await;
    let (router, client) = roles::router(&dev, &[api.address], |_, _| {}).await;
    let bearer = format!("Bearer {paris}");
    let host = dev.host("paris");
    for _ in 0..5 {
        assert_eq!(dev.get_as("paris", "/api/v1/members", &paris).await.status, 200, "those that run");
        let new = client.get(&host, "/api/v1/members", &[("Authorization", &bearer)]).await;
        assert_eq!(new.status, 200, "those that start");
    }
    dev.login("hopital-central").await;
    let seen = || async { dev.get("unseen", "/").await.status };
    eventually("unknown", HEALS, seen, |s| *s == 404).await;

    // Behind. What is taken away is taken away, although nobody can be asked how far that master is.
    let behind =
        "delete from schema_migrations where name = 'later'; alter table catalog_deletions rename to not_yet";
    dev.execute("gmah_master", behind).await;
    let password = dev.create("nice").await;
    dev.login_as("nice", "admin@nice.example", &password).await;
    let delete = ["tenant", "delete", "nice", "--yes-delete", "nice", "--without-backup"];
    assert!(dev.cli(&delete).await.status.success());
    let gone = || async { dev.get("nice", "/").await.status };
    eventually("gone", HEALS, gone, |s| *s == 404).await;

    // A column is not there yet. Known hosts are served; nothing is said of others.
    dev.execute("gmah_master", "alter table plans rename column weight to not_yet").await;
    dev.execute("postgres", kick).await;
    for n in 0..5 {
        assert_eq!(dev.get_as("paris", "/api/v1/members", &paris).await.status, 200);
        let unknown = dev.get(&format!("unseen{n}"), "/").await;
        assert_eq!((unknown.status, unknown.header("retry-after").is_some()), (503, true), "{unknown:?}");
    }
    dev.execute("gmah_master", "alter table plans rename column not_yet to weight").await;
    for n in 0..5 {
        let slug = format!("unseen{n}");
        eventually("not remembered", HEALS, || async { dev.get(&slug, "/").await.status }, |s| *s == 404)
            .await;
    }
    router.stop().await;
    api.stop().await;
}
