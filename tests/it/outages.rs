//! Q-10, what servers themselves do: no place for a role or a database, a start that takes its time, a queue that is full,
//! a handshake that never ends. The tenant is answered 503 in time, others are not touched, and nothing needs a restart.

use std::net::SocketAddr;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::net::{TcpSocket, TcpStream};

use crate::harness::fault::{Fault, Proxy};
use crate::harness::{Dev, eventually, roles};

const HEALS: Duration = Duration::from_secs(15);
/// More than the deadlines that these tests set, with room for a busy machine.
const IN_TIME: Duration = Duration::from_secs(8);

/// L-07: the api has done it, and its answer is lost on the way to the router. The client is told that nobody knows; asked
/// again with its key, it has the answer that was lost, and there is one.
#[tokio::test(flavor = "multi_thread")]
async fn l07_an_answer_that_is_lost_is_had_again() {
    let dev = Dev::start().await;
    let token = dev.login("paris").await;
    let api = roles::api(&dev, |_, _| {}).await;
    let proxy = Proxy::start(api.address).await;
    let (router, client) = roles::router(&dev, &[proxy.address], |_, _| {}).await;
    let (host, bearer) = (dev.host("paris"), format!("Bearer {token}"));
    let add = |name: String| {
        let (client, host, bearer) = (&client, &host, &bearer);
        async move {
            let headers = [("Authorization", bearer.as_str()), ("Idempotency-Key", name.as_str())];
            let body = serde_json::json!({"first_name": name, "last_name": "L07"}).to_string();
            client.send("POST", host, "/api/v1/members", &headers, Some(&body)).await
        }
    };
    let count = |name: String| {
        let dev = &dev;
        let sql = format!("select count(*) from members where first_name = '{name}'");
        async move { dev.value("gmah_org_paris", &sql).await }
    };
    assert_eq!(add("first".into()).await.status, 201);
    for n in 0..5 {
        let name = format!("lost-{n}");
        proxy.set(Fault::FirstByte);
        let asked = async {
            let answer = add(name.clone()).await;
            assert!(matches!(answer.status, 502 | 504), "{answer:?}");
        };
        // It is done; then the connection ends under the router.
        let cut = async {
            eventually("done", HEALS, || count(name.clone()), |n| n == "1").await;
            proxy.set(Fault::Reset);
        };
        tokio::join!(asked, cut);
        proxy.set(Fault::None);
        let again = eventually("again", HEALS, || add(name.clone()), |a| a.status == 201).await;
        assert_eq!(again.json()["first_name"], name.as_str());
        assert_eq!(add(name.clone()).await.json(), again.json(), "and whenever it is asked");
        assert_eq!(count(name.clone()).await, "1");
    }
    router.stop().await;
    api.stop().await;
}

/// SQLSTATE 53300: there is no connection for that role, or to that database. The server has others.
#[tokio::test(flavor = "multi_thread")]
async fn q10_no_connection_to_spare() {
    let dev = Dev::start().await;
    let (paris, lyon) = (dev.login("paris").await, dev.login("lyon").await);
    let ask = |slug: &'static str, token: &str| {
        let (dev, token) = (&dev, token.to_owned());
        async move { dev.get_as(slug, "/api/v1/members", &token).await }
    };
    let kick = "select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = 'gmah_org_lyon'";
    let (first, second) = (dev.create("first").await, dev.create("second").await);
    for (none, some, newcomer, password) in [
        (
            "alter role gmah_org_lyon connection limit 0",
            "alter role gmah_org_lyon connection limit -1",
            "first",
            &first,
        ),
        (
            "alter database gmah_org_lyon connection limit 0",
            "alter database gmah_org_lyon connection limit -1",
            "second",
            &second,
        ),
    ] {
        dev.execute("postgres", none).await;
        dev.execute("postgres", kick).await;
        eventually(none, HEALS, || ask("lyon", &lyon), |a| a.status == 503).await;
        for _ in 0..20 {
            let seen = ask("lyon", &lyon).await;
            assert_eq!((seen.status, seen.header("retry-after").is_some()), (503, true), "{seen:?}");
            assert!(!seen.body.contains("too many"), "A-18: {seen:?}");
            assert_eq!(ask("paris", &paris).await.status, 200, "{none}: the server is well");
        }
        // Whoever comes for the first time is let in as well: the server's breaker is closed.
        dev.login_as(newcomer, &format!("admin@{newcomer}.example"), password).await;
        dev.execute("postgres", some).await;
        eventually(some, Duration::from_secs(5), || ask("lyon", &lyon), |a| a.status == 200).await;
    }
}

/// SQLSTATE 57P03: the cluster recovers as from a crash.
#[tokio::test(flavor = "multi_thread")]
async fn q10_a_server_that_starts_up() {
    let dev = Dev::start().await;
    let (paris, lyon) = (dev.login("paris").await, dev.login("lyon").await);
    let mut starting = 0;
    for _ in 0..20 {
        let pid = "select pid from pg_stat_activity where datname = 'gmah_org_paris' limit 1";
        // Somebody is connected there.
        eventually("served", HEALS, || dev.get_as("paris", "/api/v1/members", &paris), |a| a.status == 200)
            .await;
        let pid = dev.value("postgres", pid).await.parse().ok().and_then(Pid::from_raw).expect("a backend");
        kill_process(pid, Signal::KILL).expect("killed");
        // What the server says of itself meanwhile, from when it has noticed.
        let began = std::time::Instant::now();
        let mut refused = false;
        while began.elapsed() < if refused { HEALS } else { Duration::from_secs(3) } {
            let mut pg = tokio_postgres::Config::new();
            pg.user("gmah").dbname("postgres").host("127.0.0.1").port(dev.postgres_port());
            pg.password(dev.info["postgres"]["password"].as_str().unwrap_or_default());
            match pg.connect(tokio_postgres::NoTls).await {
                Ok(_) if refused => break,
                // It has not, or is up again already: each round is another chance.
                Ok(_) => continue,
                Err(e) if e.code() == Some(&tokio_postgres::error::SqlState::CANNOT_CONNECT_NOW) => {
                    refused = true;
                    starting += 1;
                }
                Err(_) => refused = true,
            }
            for (slug, token) in [("paris", &paris), ("lyon", &lyon)] {
                let seen = dev.get_as(slug, "/api/v1/members", token).await;
                assert!(matches!(seen.status, 200 | 503), "{seen:?}");
                assert!(!seen.body.contains("database system"), "A-18: {seen:?}");
            }
        }
        if starting >= 3 {
            break;
        }
    }
    assert!(starting > 0, "nobody was told that it starts");
    for (slug, token) in [("paris", &paris), ("lyon", &lyon)] {
        eventually(
            slug,
            Duration::from_secs(10),
            || dev.get_as(slug, "/api/v1/members", token),
            |a| a.status == 200,
        )
        .await;
    }
}

/// Points an organisation to another way to the same server.
async fn lead(dev: &Dev, slug: &str, port: u16, tls: &str) {
    let sql = format!(
        "insert into database_servers (name, host, port, admin_user, admin_password, tls, tls_ca)
         select 'other', '127.0.0.1', {port}, admin_user, admin_password, {tls} from database_servers limit 1
         on conflict (name) do update set port = {port};
         update organizations set server_id = (select id from database_servers where name = 'other') where slug = '{slug}'"
    );
    dev.execute("gmah_master", &sql).await;
}

/// A queue of connections that nobody takes from, and whose places are taken.
async fn full() -> (tokio::net::TcpListener, Vec<TcpStream>, SocketAddr) {
    let socket = TcpSocket::new_v4().expect("socket");
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("bound");
    let listener = socket.listen(1).expect("listening");
    let address = listener.local_addr().expect("address");
    let mut waiting = Vec::new();
    while let Ok(Ok(stream)) =
        tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(address)).await
    {
        waiting.push(stream);
        assert!(waiting.len() < 100, "its queue is never full");
    }
    (listener, waiting, address)
}

#[tokio::test(flavor = "multi_thread")]
async fn q10_a_server_that_is_there_and_does_not_answer() {
    let dev = Dev::start().await;
    let (paris, lyon) = (dev.login("paris").await, dev.login("lyon").await);
    let authority = super::transport::encrypt(&dev).await;
    let (router, api, client) = roles::hasty(&dev).await;
    let ask = |slug: &'static str| {
        let (client, host) = (&client, dev.host(slug));
        let bearer = format!("Bearer {}", if slug == "lyon" { &lyon } else { &paris });
        async move { client.get(&host, "/api/v1/members", &[("Authorization", &bearer)]).await.status }
    };
    let both = || async { (ask("lyon").await, ask("paris").await) };
    let away = |what: &'static str| {
        let both = &both;
        async move {
            eventually(what, HEALS, both, |seen| *seen == (503, 200)).await;
            for _ in 0..5 {
                let began = std::time::Instant::now();
                assert_eq!(both().await, (503, 200), "{what}: others are not touched");
                assert!(began.elapsed() < IN_TIME, "{what}: within the deadlines");
            }
        }
    };
    let back = |what: &'static str| {
        let ask = &ask;
        async move { eventually(what, Duration::from_secs(5), || ask("lyon"), |s| *s == 200).await }
    };
    let proxy = Proxy::start(SocketAddr::from(([127, 0, 0, 1], dev.postgres_port()))).await;
    let tls = format!("'verify-full', '{authority}'");
    lead(&dev, "lyon", proxy.address.port(), &tls).await;
    let kick = "select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = 'gmah_org_lyon'";
    dev.execute("postgres", kick).await;
    let encrypted = "select coalesce(bool_and(ssl), false) from pg_stat_activity join pg_stat_ssl using (pid)
        where application_name = 'gmah api' and datname = 'gmah_org_lyon'";
    let through = || async { (ask("lyon").await, dev.value("postgres", encrypted).await) };
    eventually("through the proxy", HEALS, through, |(status, ssl)| *status == 200 && ssl == "t").await;

    // It says yes to TLS, and then nothing; it answers, much too late.
    for (fault, what) in [
        (Fault::FirstByte, "a handshake that hangs"),
        (Fault::Latency(Duration::from_secs(30)), "an answer after half a minute"),
    ] {
        proxy.set(fault);
        dev.execute("postgres", kick).await;
        away(what).await;
        proxy.set(Fault::None);
        back(what).await;
    }
    // Nobody takes connections any more.
    let (listener, waiting, address) = full().await;
    lead(&dev, "lyon", address.port(), &tls).await;
    dev.execute("postgres", kick).await;
    away("a queue that is full").await;
    lead(&dev, "lyon", proxy.address.port(), &tls).await;
    eventually("the old way", HEALS, || ask("lyon"), |s| *s == 200).await;
    drop((listener, waiting));
    router.stop().await;
    api.stop().await;
}
