//! What is away, and who notices: master, a tenant's database, the api, PostgreSQL as a whole.

use std::time::Duration;

use gmah_shared::config::HumanDuration;

use crate::harness::fault::{Fault, Proxy};
use crate::harness::{Dev, eventually, roles};

const HEALS: Duration = Duration::from_secs(15);

#[tokio::test(flavor = "multi_thread")]
async fn q12_r13_master_away() {
    let dev = Dev::start().await;
    let token = dev.login("paris").await;
    dev.get("lyon", "/api/v1/tenant").await;
    dev.set_reachable("gmah_master", false).await;
    for _ in 0..5 {
        assert_eq!(
            dev.get("paris", "/api/v1/tenant").await.slug(),
            (200, "paris".into()),
            "known: from the cache"
        );
        assert_eq!(dev.get_as("paris", "/api/v1/members", &token).await.status, 200, "with its own database");
        let unknown = dev.get("unseen", "/").await;
        assert_eq!((unknown.status, unknown.header("retry-after").is_some()), (503, true), "{unknown:?}");
    }
    for listener in ["admin", "api_admin"] {
        let ready =
            crate::harness::http::plain(crate::harness::dev::address(&dev.info[listener]), "/readyz").await;
        assert_eq!(ready.status, 200, "{listener}");
    }
    dev.set_reachable("gmah_master", true).await;
    eventually(
        "unknown is unknown again",
        HEALS,
        || async { dev.get("unseen", "/").await.status },
        |s| *s == 404,
    )
    .await;
    // And notices come in again.
    assert!(dev.cli(&["tenant", "suspend", "lyon"]).await.status.success());
    eventually("lyon", HEALS, || async { dev.get("lyon", "/api/v1/tenant").await.status }, |s| *s == 403)
        .await;
}

/// The master answers, but slowly: a black hole, not a refusal.
#[tokio::test(flavor = "multi_thread")]
async fn q12_slow_master() {
    let dev = Dev::start().await;
    dev.get("paris", "/api/v1/tenant").await;
    let lock = dev.superuser("gmah_master").await;
    lock.batch_execute("begin; lock table organizations in access exclusive mode").await.expect("locked");
    let began = std::time::Instant::now();
    assert_eq!(dev.get("unseen", "/").await.status, 503);
    assert!(began.elapsed() < Duration::from_secs(8), "within the deadline");
    assert_eq!(dev.get("paris", "/api/v1/tenant").await.status, 200);
    lock.batch_execute("rollback").await.expect("unlocked");
    eventually("heals", HEALS, || async { dev.get("unseen", "/").await.status }, |s| *s == 404).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn q10_a_tenants_database_away() {
    let dev = Dev::start().await;
    let (paris, lyon) = (dev.login("paris").await, dev.login("lyon").await);
    let members = |slug: &'static str, token: &str| {
        let (dev, token) = (&dev, token.to_owned());
        async move { dev.get_as(slug, "/api/v1/members", &token).await }
    };
    assert_eq!(members("lyon", &lyon).await.status, 200);
    for how in ["closed", "renamed"] {
        let postgres = dev.superuser("postgres").await;
        dev.set_reachable("gmah_org_lyon", false).await;
        if how == "renamed" {
            postgres
                .batch_execute("alter database gmah_org_lyon rename to elsewhere")
                .await
                .expect("renamed");
        }
        for _ in 0..5 {
            let seen = members("lyon", &lyon).await;
            assert_eq!((seen.status, seen.header("retry-after").is_some()), (503, true), "{how}: {seen:?}");
            for leak in ["gmah_org", "postgres", "127.0.0.1", "database \""] {
                assert!(!seen.body.contains(leak), "A-18: {seen:?}");
            }
            assert_eq!(members("paris", &paris).await.status, 200, "{how}: others are not touched");
            // What needs no database is answered.
            assert_eq!(dev.get("lyon", "/api/v1/tenant").await.status, 200);
        }
        if how == "renamed" {
            postgres
                .batch_execute("alter database elsewhere rename to gmah_org_lyon")
                .await
                .expect("renamed");
        }
        dev.set_reachable("gmah_org_lyon", true).await;
        eventually("lyon heals", HEALS, || members("lyon", &lyon), |a| a.status == 200).await;
    }
}

/// Q-07, rule 5: a database that is not the organisation's serves nothing.
#[tokio::test(flavor = "multi_thread")]
async fn q07_wrong_database() {
    let dev = Dev::start().await;
    let (paris, lyon) = (dev.login("paris").await, dev.login("lyon").await);
    let paris_id = dev.get("paris", "/api/v1/tenant").await.json()["id"].as_str().expect("id").to_owned();
    let alarm = || async { dev.metrics("api_admin").await.sum("gmah_api_identity_mismatches_total", &[]) };
    let ask = || async { dev.get_as("paris", "/api/v1/members", &paris).await.status };
    assert_eq!(ask().await, 200);
    let org = |set: &str| format!("update organizations set {set} where slug = 'paris'");
    let identity = |set: &str| format!("update gmah_identity set {set}");
    let kick = "select pg_terminate_backend(pid) from pg_stat_activity where datname = 'gmah_org_paris'";
    let cases = [
        // The identity row is another's, of another placement, tombstoned, or gone.
        (
            "gmah_org_paris",
            identity("organization_id = gen_random_uuid()"),
            identity(&format!("organization_id = '{paris_id}'")),
        ),
        ("gmah_org_paris", identity("placement = 2"), identity("placement = 1")),
        ("gmah_org_paris", identity("tombstoned_at = now()"), identity("tombstoned_at = null")),
        (
            "gmah_org_paris",
            "alter table gmah_identity rename to x".into(),
            "alter table x rename to gmah_identity".into(),
        ),
        // The catalog points to lyon's database, with rights to enter it.
        ("gmah_master", org("database_name = 'elsewhere'"), org("database_name = 'gmah_org_paris'")),
    ];
    for (database, break_it, mend_it) in cases {
        let before = alarm().await;
        if database == "gmah_master" {
            // Paris's role is let into a copy of lyon's database, as a careless operator might.
            dev.set_reachable("gmah_org_lyon", false).await;
            dev.execute("postgres", "create database elsewhere template gmah_org_lyon owner gmah_org_paris")
                .await;
            dev.set_reachable("gmah_org_lyon", true).await;
        }
        dev.execute(database, &break_it).await;
        dev.execute("postgres", kick).await;
        eventually(&break_it, HEALS, ask, |s| *s == 503).await;
        eventually("stays so", Duration::from_secs(3), ask, |s| *s == 503).await;
        assert!(alarm().await > before, "{break_it}: no alarm");
        assert_eq!(dev.get_as("lyon", "/api/v1/members", &lyon).await.status, 200, "{break_it}");
        dev.execute(database, &mend_it).await;
        eventually(&mend_it, HEALS, ask, |s| *s == 200).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_away_and_back() {
    let dev = Dev::start().await;
    let api = roles::api(&dev, |_, _| {}).await;
    let address = api.address;
    let (router, client) = roles::router(&dev, &[address], |_, _| {}).await;
    let paris = dev.host("paris");
    let ask = || async { client.get(&paris, "/api/v1/tenant", &[]).await };
    assert_eq!(ask().await.status, 200);
    api.stop().await;
    let gone = ask().await;
    assert_eq!((gone.status, gone.code()), (502, "bad_gateway".into()));
    assert!(!gone.body.contains("127.0.0.1"));
    let page = client.get(&paris, "/", &[("Accept", "text/html,application/json;q=0.9")]).await;
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    let again = roles::api(&dev, |_, c| c.api.listen = address).await;
    assert_eq!(eventually("back", HEALS, ask, |a| a.status == 200).await.slug(), (200, "paris".into()));
    router.stop().await;
    again.stop().await;
}

/// The cluster dies and comes back: nothing needs a restart, nothing acknowledged is gone.
#[tokio::test(flavor = "multi_thread")]
async fn every_session_ended_at_once() {
    let dev = Dev::start().await;
    let token = dev.login("paris").await;
    let bearer = format!("Bearer {token}");
    let mut acknowledged = Vec::new();
    for n in 0..30 {
        let body = serde_json::json!({"first_name": "Ada", "last_name": format!("L{n}"), "email": null, "phone": null});
        let headers = [("Authorization", bearer.as_str())];
        if n % 5 == 2 {
            dev.execute(
                "postgres",
                "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid() and datname is not null",
            )
            .await;
        }
        let answer = dev.post("paris", "/api/v1/members", &headers, &body).await;
        assert!(matches!(answer.status, 201 | 503), "{answer:?}");
        if answer.status == 201 {
            acknowledged.push(answer.json()["id"].as_str().expect("id").to_owned());
        }
    }
    assert!(acknowledged.len() >= 15, "{} of 30", acknowledged.len());
    for id in acknowledged {
        let path = format!("/api/v1/members/{id}");
        eventually("there", HEALS, || dev.get_as("paris", &path, &token), |a| a.status == 200).await;
    }
}

/// what networks do between the api and one tenant's database. The tenant is answered 503 in time, the others
/// notice nothing, and it is served again soon after, without a restart.
#[tokio::test(flavor = "multi_thread")]
async fn q10_between_the_api_and_a_database() {
    let dev = Dev::start().await;
    let (paris, lyon) = (dev.login("paris").await, dev.login("lyon").await);
    // Lyon's way to its database leads through the proxy from now on.
    let server = std::net::SocketAddr::from(([127, 0, 0, 1], dev.postgres_port()));
    let proxy = Proxy::start(server).await;
    let add = format!(
        "insert into database_servers (name, host, port, admin_user, admin_password)
         select 'proxied', '127.0.0.1', {}, admin_user, admin_password from database_servers limit 1",
        proxy.address.port()
    );
    dev.execute("gmah_master", &add).await;
    dev.execute(
        "gmah_master",
        "update organizations set server_id = (select id from database_servers where name = 'proxied') where slug = 'lyon'",
    )
    .await;
    let (router, api, client) = roles::hasty(&dev).await;
    let ask = |slug: &'static str| {
        let (client, host) = (&client, dev.host(slug));
        let bearer = format!("Bearer {}", if slug == "lyon" { &lyon } else { &paris });
        async move { client.get(&host, "/api/v1/members", &[("Authorization", &bearer)]).await.status }
    };
    let both = || async { (ask("lyon").await, ask("paris").await) };
    eventually("through the proxy", HEALS, both, |seen| *seen == (200, 200)).await;
    for fault in [Fault::Latency(Duration::from_millis(20)), Fault::Slice] {
        proxy.set(fault);
        assert_eq!(both().await, (200, 200), "{fault:?}");
    }
    let opened = || {
        let metrics = api.app().metrics.clone();
        move || {
            metrics
                .registry
                .gather()
                .iter()
                .filter(|f| f.name() == "gmah_api_breakers_opened_total")
                .flat_map(|f| f.get_metric().iter().map(|m| m.get_counter().get_value()).collect::<Vec<_>>())
                .sum::<f64>()
        }
    };
    for fault in [Fault::BlackHole, Fault::Reset] {
        let opened = opened();
        let before = opened();
        proxy.set(fault);
        for n in 0..6 {
            let began = std::time::Instant::now();
            let seen = both().await;
            assert_eq!(seen.1, 200, "{fault:?}: others are not touched");
            assert!(began.elapsed() < Duration::from_secs(8), "{fault:?}: within the deadlines");
            // A connection that was reset is noticed, and replaced in vain.
            assert!(seen.0 == 503 || n == 0, "{fault:?}: {}", seen.0);
        }
        assert!(opened() > before, "{fault:?}: the tenant's breaker opened");
        assert!(
            api.app().pools.breaker(super::pools::id(&dev, "paris").await).is_none(),
            "{fault:?}: and nobody else's"
        );
        proxy.set(Fault::None);
        eventually("lyon is back", Duration::from_secs(5), || ask("lyon"), |s| *s == 200).await;
    }
    router.stop().await;
    api.stop().await;
}

/// A password that was changed behind the cache: one fresh look, and nobody notices. One that is simply wrong: 503, and
/// the server's breaker stays out of it.
#[tokio::test(flavor = "multi_thread")]
async fn q10_a_password_that_was_changed() {
    let dev = Dev::start().await;
    let (paris, lyon) = (dev.login("paris").await, dev.login("lyon").await);
    let api = roles::api(&dev, |s, _| s.catalog.ttl = HumanDuration::from_secs(3600)).await;
    let (router, client) = roles::router(&dev, &[api.address], |_, _| {}).await;
    let ask = |slug: &'static str, token: &str| {
        let (client, host, bearer) = (&client, dev.host(slug), format!("Bearer {token}"));
        async move { client.get(&host, "/api/v1/members", &[("Authorization", &bearer)]).await.status }
    };
    assert_eq!(ask("paris", &paris).await, 200);
    let id = super::pools::id(&dev, "paris").await;
    let settings = dev.settings();
    let kick = "select pg_terminate_backend(pid) from pg_stat_activity where datname = 'gmah_org_paris'";
    let change = |password: &'static str| {
        let sealed = settings
            .master_key
            .seal(&format!("organizations/{id}/role"), password.as_bytes())
            .expect("sealed");
        let dev = &dev;
        async move {
            dev.execute("postgres", &format!("alter role gmah_org_paris password '{password}'")).await;
            sealed
        }
    };
    // Nobody is told: as if the notice was lost.
    let sealed = change("another-password").await;
    let master = dev.superuser("gmah_master").await;
    master.batch_execute("set session_replication_role = replica").await.expect("without triggers");
    let update = "update organizations set role_password = $1, revision = nextval('catalog_revision') where slug = 'paris'";
    master.execute(update, &[&sealed]).await.expect("changed");
    dev.execute("postgres", kick).await;
    eventually("with the new one", HEALS, || ask("paris", &paris), |s| *s == 200).await;
    // Changed on the server only.
    change("a-third-password").await;
    dev.execute("postgres", kick).await;
    for _ in 0..20 {
        assert_eq!(ask("paris", &paris).await, 503);
        assert_eq!(ask("lyon", &lyon).await, 200, "the server is well");
    }
    change("another-password").await;
    eventually("back", Duration::from_secs(5), || ask("paris", &paris), |s| *s == 200).await;
    router.stop().await;
    api.stop().await;
}

/// whatever goes wrong below, the answer says that something did, and by which id to ask for it. Nothing that the
/// database says is in it, in no body and no header; it is in the log, under that id's organisation.
#[tokio::test(flavor = "multi_thread")]
async fn a18_errors_say_nothing() {
    let dev = Dev::start().await;
    let token = dev.login("paris").await;
    let bearer = format!("Bearer {token}");
    let auth = [("Authorization", bearer.as_str())];
    let path = "/api/v1/members";
    let member = |name: &str| serde_json::json!({"first_name": name, "last_name": "Secret-Name", "email": null, "phone": null});
    let raise = |what: &str| {
        format!(
            "create or replace function spoil() returns trigger language plpgsql as $$ begin {what}; end $$;
             create or replace trigger spoil before insert on members for each row execute function spoil()"
        )
    };
    let kinds = [
        // Says whatever its author pleases.
        (raise("raise exception 'host=10.1.2.3 password=hunter2 lyon'"), "drop trigger spoil on members"),
        (
            raise("raise sqlstate '53100' using message = 'no space on /var/lib/lyon'"),
            "drop trigger spoil on members",
        ),
        (raise("perform 1/0; return new"), "drop trigger spoil on members"),
        // Hints, details and names of columns and constraints.
        (
            "alter table members add constraint secret_rule check (last_name <> 'Secret-Name') not valid"
                .into(),
            "alter table members drop constraint secret_rule",
        ),
        (
            "alter table members rename column last_name to lyon_name".into(),
            "alter table members rename column lyon_name to last_name",
        ),
        ("alter table members rename to hidden".into(), "alter table hidden rename to members"),
        (
            "revoke all on members from gmah_tenant".into(),
            "grant select, insert, update, delete on members to gmah_tenant",
        ),
        (
            "alter role gmah_org_paris set default_transaction_read_only = on".into(),
            "alter role gmah_org_paris reset default_transaction_read_only",
        ),
    ];
    let kick =
        "select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = 'gmah_org_paris'";
    for (n, (spoil, mend)) in kinds.iter().enumerate() {
        dev.execute("gmah_org_paris", spoil).await;
        dev.execute("postgres", kick).await;
        let ask = || async { dev.post("paris", path, &auth, &member(&format!("N{n}"))).await };
        let answer = eventually(spoil, HEALS, ask, |a| a.status != 201).await;
        assert!(matches!(answer.status, 500 | 503), "{spoil}: {answer:?}");
        let body = answer.json();
        let mut fields: Vec<_> = body.as_object().expect("an object").keys().map(String::as_str).collect();
        fields.sort_unstable();
        assert_eq!(fields, ["code", "request_id", "status", "title", "type"], "{spoil}: {answer:?}");
        assert_eq!(answer.header("x-request-id"), body["request_id"].as_str(), "{spoil}");
        let said = format!("{} {:?}", answer.body, answer.headers).to_lowercase();
        for leak in [
            "lyon",
            "hunter2",
            "10.1.2.3",
            "gmah_org",
            "secret",
            "members_",
            "relation",
            "column",
            "sql",
            "constraint",
            "transaction",
            "permission",
            "division",
        ] {
            assert!(!said.contains(leak), "{spoil}: {leak} in {answer:?}");
        }
        dev.execute("gmah_org_paris", mend).await;
        dev.execute("postgres", kick).await;
        let again = || async { dev.post("paris", path, &auth, &member(&format!("M{n}"))).await };
        eventually(mend, HEALS, again, |a| a.status == 201).await;
    }
    // Whoever has the log can tell.
    let log = dev.log();
    for cause in ["hunter2", "division by zero", "secret_rule", "permission denied"] {
        assert!(log.contains(cause), "{cause} is not in the log");
    }
}
