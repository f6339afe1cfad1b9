//! The way to PostgreSQL: TLS that is verified or nothing, and several hosts of which one takes writes.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::process::{Child, Command};

use crate::harness::{Dev, eventually};

/// An authority, and the certificate that it gave to 127.0.0.1.
struct Pair {
    authority: String,
    certificate: String,
    key: String,
}

fn pair() -> Pair {
    let mut params = CertificateParams::new(vec![]).expect("params");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("key");
    let authority = params.self_signed(&key).expect("authority").pem();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().expect("key");
    let leaf = CertificateParams::new(vec!["127.0.0.1".into()]).expect("params");
    let certificate = leaf.signed_by(&key, &issuer).expect("certificate").pem();
    Pair { authority, certificate, key: key.serialize_pem() }
}

impl Pair {
    /// Gives it to the cluster, which may run as another user: the cluster writes its own files.
    async fn install(&self, dev: &Dev) {
        for (file, pem) in [("server.crt", &self.certificate), ("server.key", &self.key)] {
            let write = format!(
                "copy (select unnest(string_to_array('{}', e'\\n'))) to program 'umask 077; cat > {file}'",
                pem.trim_end()
            );
            dev.execute("postgres", &write).await;
        }
        dev.execute("postgres", "alter system set ssl = on").await;
        dev.execute("postgres", "select pg_reload_conf()").await;
        eventually("on", Duration::from_secs(5), || dev.value("postgres", "show ssl"), |v| v == "on").await;
    }

    fn file(&self, dev: &Dev, name: &str) -> PathBuf {
        let path = dev.folder().join(name);
        std::fs::write(&path, &self.authority).expect("written");
        path
    }
}

/// Gives the cluster a certificate; the authority that it is of, as PEM.
pub(crate) async fn encrypt(dev: &Dev) -> String {
    let pair = pair();
    pair.install(dev).await;
    pair.authority
}

/// `gmah server add` for the one server that there is, with other words.
async fn add(dev: &Dev, host: &str, more: &[&str]) -> std::process::Output {
    let password = dev.folder().join("password");
    std::fs::write(&password, dev.info["postgres"]["password"].as_str().unwrap_or_default())
        .expect("written");
    let (port, password) = (dev.postgres_port().to_string(), password.display().to_string());
    let base = ["server", "add", "--name", "local", "--host", host, "--port", &port, "--user", "gmah"];
    dev.cli(&[&base[..], &["--password-file", &password], more].concat()).await
}

const OURS: &str = "from pg_stat_activity a join pg_stat_ssl s using (pid)
    where application_name = 'gmah api' and datname = 'gmah_org_paris'";
const HEALS: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn q10_tls_is_verified_or_there_is_no_connection() {
    let dev = Dev::start().await;
    let token = dev.login("paris").await;
    let ask = || async { dev.get_as("paris", "/api/v1/members", &token).await.status };
    let (good, bad) = (pair(), pair());
    good.install(&dev).await;
    let trusted = good.file(&dev, "good.pem").display().to_string();
    let other = bad.file(&dev, "bad.pem").display().to_string();

    let refused = add(&dev, "127.0.0.1", &["--tls", "--tls-ca-file", &other]).await;
    assert_eq!(refused.status.code(), Some(1), "{}", String::from_utf8_lossy(&refused.stderr));
    let refused = add(&dev, "127.0.0.1", &["--tls", "--tls-ca-file", "/nowhere"]).await;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("/nowhere"));
    let refused = add(&dev, "127.0.0.1,,x", &[]).await;
    assert_eq!(refused.status.code(), Some(2), "{}", String::from_utf8_lossy(&refused.stderr));
    assert_eq!(ask().await, 200, "nothing was changed");

    let added = add(&dev, "127.0.0.1", &["--tls", "--tls-ca-file", &trusted]).await;
    assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
    let encrypted = || async {
        ask().await;
        dev.value("postgres", &format!("select count(*) filter (where ssl) > 0 and bool_and(ssl) {OURS}"))
            .await
    };
    eventually("encrypted, all of it", HEALS, encrypted, |v| v == "t").await;
    assert_eq!(ask().await, 200);
    // Said again for another reason, it stays so.
    let again = add(&dev, "127.0.0.1", &["--max-databases", "500"]).await;
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    assert_eq!(dev.value("gmah_master", "select tls from database_servers").await, "verify-full");
    let refused = add(&dev, "127.0.0.1", &["--no-tls", "--tls-ca-file", &trusted]).await;
    assert_eq!(refused.status.code(), Some(2));
    // The control plane goes the same way.
    dev.create("encrypted").await;

    // An authority that did not sign it, and a server that has none any more: nothing is served, and never in clear.
    let broken = format!("update database_servers set tls_ca = '{}'", bad.authority);
    let whole = format!("update database_servers set tls_ca = '{}'", good.authority);
    dev.execute("gmah_master", &broken).await;
    eventually("not trusted", HEALS, ask, |s| *s == 503).await;
    dev.execute("gmah_master", &whole).await;
    eventually("trusted", HEALS, ask, |s| *s == 200).await;
    dev.execute("postgres", "alter system set ssl = off").await;
    dev.execute("postgres", "select pg_reload_conf()").await;
    eventually("off", HEALS, || dev.value("postgres", "show ssl"), |v| v == "off").await;
    dev.execute("postgres", &format!("select pg_terminate_backend(pid) {OURS}")).await;
    eventually("in clear", HEALS, ask, |s| *s == 503).await;
    assert_eq!(dev.value("postgres", &format!("select count(*) filter (where not ssl) {OURS}")).await, "0");
    // Those that were ended take a moment to go.
    let left = || async { dev.value("postgres", &format!("select count(*) {OURS}")).await };
    eventually("none", HEALS, left, |n| n == "0").await;

    // The master's own way.
    good.install(&dev).await;
    let config = std::fs::read_to_string(dev.info["config"].as_str().expect("path")).expect("configuration");
    for (ca, code) in [(&trusted, 0), (&other, 1)] {
        let tls = format!("database = \"gmah_master\"\ntls = \"verify-full\"\ntls_ca_file = \"{ca}\"");
        let path = Path::new(dev.info["config"].as_str().expect("path")).with_file_name("tls.toml");
        std::fs::write(&path, config.replace("database = \"gmah_master\"", &tls)).expect("written");
        let out = dev.cli(&["--config", &path.display().to_string(), "tenant", "list"]).await;
        assert_eq!(out.status.code(), Some(code), "{ca}: {}", String::from_utf8_lossy(&out.stderr));
    }
}

/// A server that lets us in and then says nothing is waited for, and not for ever; nothing is entered.
#[tokio::test(flavor = "multi_thread")]
async fn q10_a_server_that_lets_in_and_says_nothing() {
    let dev = Dev::start().await;
    let before = dev.value("gmah_master", "select host from database_servers").await;
    // Logins are read from there, and roles made.
    let lock = dev.superuser("postgres").await;
    lock.batch_execute("begin; lock table pg_authid in share mode").await.expect("locked");
    let added = add(&dev, "localhost", &[]).await;
    let said = String::from_utf8_lossy(&added.stderr).into_owned();
    assert_eq!(added.status.code(), Some(1), "{said}");
    assert!(said.contains("server local: no answer in time"), "{said}");
    lock.batch_execute("rollback").await.expect("unlocked");
    assert_eq!(dev.value("gmah_master", "select host from database_servers").await, before);
    assert!(add(&dev, "127.0.0.1", &[]).await.status.success());
}

/// A standby of the demo's cluster, run by the same user.
pub(crate) async fn standby(dev: &Dev) -> (Child, u16) {
    let data = dev.value("postgres", "show data_directory").await;
    let owner = std::fs::metadata(&data).expect("data folder").uid();
    let binaries = dev.value("postgres", "select setting from pg_config where name = 'BINDIR'").await;
    let folder = Path::new(&data).with_file_name("standby");
    let mut port = 0;
    while port == 0 || tokio::net::TcpListener::bind(("127.0.0.1", port)).await.is_err() {
        port = rand::random_range(2_000..10_000);
    }
    let run = |program: &str| {
        let mut command = Command::new(format!("{binaries}/{program}"));
        command.uid(owner).current_dir("/").stdin(Stdio::null()).kill_on_drop(true);
        command
            .env("PGPASSWORD", dev.info["postgres"]["password"].as_str().unwrap_or_default())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    };
    std::fs::create_dir_all(&folder).expect("folder");
    std::os::unix::fs::chown(&folder, Some(owner), None).expect("owner");
    std::fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("mode");
    let copied = run("pg_basebackup")
        .args(["-R", "-X", "stream", "-c", "fast", "-h", "127.0.0.1", "-U", "gmah", "-p"])
        .arg(dev.postgres_port().to_string())
        .arg("-D")
        .arg(&folder)
        .status()
        .await
        .expect("pg_basebackup");
    assert!(copied.success(), "{copied}");
    // A standby needs as much room as its primary has, which the demo says on its command line.
    let room = dev.value("postgres", "show max_connections").await;
    let child = run("postgres")
        .arg("-c")
        .arg(format!("max_connections={room}"))
        .arg("-D")
        .arg(&folder)
        .args(["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="])
        .arg("-c")
        .arg(format!("port={port}"))
        .spawn()
        .expect("standby");
    let up = || async { connect(dev, port).await.is_ok() };
    eventually("standby", Duration::from_secs(20), up, |up| *up).await;
    (child, port)
}

async fn connect(dev: &Dev, port: u16) -> Result<tokio_postgres::Client, gmah_shared::pg::ConnectError> {
    let mut settings = dev.settings().master;
    settings.hosts = gmah_shared::pg::Hosts::parse("127.0.0.1", port).expect("host");
    settings.database = "postgres".into();
    gmah_shared::pg::connect(&settings, "test").await
}

/// A superuser at another server than the demo's, which has the demo's password.
pub(crate) async fn at(dev: &Dev, port: u16) -> tokio_postgres::Client {
    connect(dev, port).await.expect("connected")
}

/// Of a list the member that takes writes is used, wherever it stands; the others may be away.
#[tokio::test(flavor = "multi_thread")]
async fn several_hosts_of_which_one_takes_writes() {
    let dev = Dev::start().await;
    let token = dev.login("paris").await;
    let (mut child, port) = standby(&dev).await;
    let list = format!("127.0.0.1:1,127.0.0.1:{port},127.0.0.1");
    let added = add(&dev, &list, &[]).await;
    assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
    let bearer = format!("Bearer {token}");
    let write = || async {
        let body =
            serde_json::json!({"first_name": "Ada", "last_name": "Several", "email": null, "phone": null});
        dev.post("paris", "/api/v1/members", &[("Authorization", &bearer)], &body).await.status
    };
    eventually("written", HEALS, write, |s| *s == 201).await;
    for _ in 0..10 {
        assert_eq!(write().await, 201, "never at the standby");
    }
    dev.create("several").await;
    let now = dev.cli_json(&["server", "list"]).await;
    assert_eq!(now[0]["host"], list.as_str());
    child.kill().await.expect("killed");
    dev.execute("postgres", &format!("select pg_terminate_backend(pid) {OURS}")).await;
    eventually("without the standby", HEALS, write, |s| *s == 201).await;
}
