//! `gmah dev` as a child process, in a folder of its own.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use gmah_shared::config::{ConfigFile, Settings};
use gmah_shared::pg;
use rustix::process::{Pid, Signal, kill_process};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::Instant;

use super::http::{Answer, Client};

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_gmah");

pub(crate) struct Dev {
    pub(crate) info: Value,
    pub(crate) client: Client,
    folder: Option<TempDir>,
    child: Child,
}

/// Nobody comes by in organisations' databases but who is asked to.
const QUIET: &str = "[metrics]\ncollect = false\n";

impl Dev {
    /// A fresh one.
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        // PostgreSQL may run as another user, who must get through.
        std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .expect("mode");
        Self::start_in(folder, &[]).await
    }

    /// In a folder that may hold an earlier one's data.
    /// With sections put over its configuration.
    pub(crate) async fn start_with(sections: &str) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .expect("mode");
        let path = folder.path().join("extra.toml");
        let quiet = if sections.contains("[metrics]") { "" } else { QUIET };
        std::fs::write(&path, format!("{sections}\n{quiet}")).expect("written");
        Self::start_in(folder, &["--extra-config", path.to_str().expect("UTF-8")]).await
    }

    pub(crate) async fn start_in(folder: TempDir, more: &[&str]) -> Self {
        let ready = folder.path().join("ready.json");
        let plain = folder.path().join("quiet.toml");
        std::fs::write(&plain, QUIET).expect("written");
        let quiet = ["--extra-config", plain.to_str().expect("UTF-8")];
        let quiet = if more.contains(&"--extra-config") { &[][..] } else { &quiet[..] };
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(folder.path().join("dev.log"))
            .expect("log");
        let mut child = dev_command(folder.path())
            .args(more)
            .args(quiet)
            .stdout(log.try_clone().expect("log"))
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .expect("gmah dev starts");
        let deadline = Instant::now() + Duration::from_secs(90);
        let info: Value = loop {
            if let Ok(bytes) = std::fs::read(&ready)
                && let Ok(info) = serde_json::from_slice(&bytes)
            {
                break info;
            }
            let ended = child.try_wait().expect("wait");
            let log = || std::fs::read_to_string(folder.path().join("dev.log")).unwrap_or_default();
            assert!(ended.is_none(), "gmah dev ended: {}", log());
            assert!(Instant::now() < deadline, "gmah dev is not ready: {}", log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_file(text(&info["ca"])).expect("CA");
        roots.add(ca).expect("root");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let client = Client::new(address(&info["https"]), tls);
        Self { info, client, folder: Some(folder), child }
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.as_ref().expect("held until stopped").path()
    }

    /// Of the process, for as long as it runs.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id().expect("running")
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder().join("dev.log")).unwrap_or_default()
    }

    pub(crate) fn host(&self, slug: &str) -> String {
        format!("{slug}.{}", text(&self.info["base_domain"]))
    }

    pub(crate) fn config(&self) -> ConfigFile {
        ConfigFile::load(&PathBuf::from(text(&self.info["config"]))).expect("configuration")
    }

    pub(crate) fn settings(&self) -> Settings {
        self.config().settings().expect("settings")
    }

    pub(crate) async fn get(&self, slug: &str, path: &str) -> Answer {
        self.client.get(&self.host(slug), path, &[]).await
    }

    /// A GET with a bearer token.
    pub(crate) async fn get_as(&self, slug: &str, path: &str, token: &str) -> Answer {
        self.client.get(&self.host(slug), path, &[("Authorization", &format!("Bearer {token}"))]).await
    }

    pub(crate) async fn post(
        &self,
        slug: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &Value,
    ) -> Answer {
        self.client.send("POST", &self.host(slug), path, headers, Some(&body.to_string())).await
    }

    /// Logs a demo administrator in.
    pub(crate) async fn login(&self, slug: &str) -> String {
        let tenants = self.info["tenants"].as_array().expect("tenants");
        let tenant = tenants.iter().find(|t| t["slug"] == slug).expect("demo organisation");
        self.login_as(slug, text(&tenant["admin_email"]), text(&tenant["admin_password"])).await
    }

    pub(crate) async fn login_as(&self, slug: &str, email: &str, password: &str) -> String {
        let body = serde_json::json!({ "email": email, "password": password });
        let answer = self.post(slug, "/api/v1/auth/login", &[], &body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        text(&answer.json()["access_token"]).to_owned()
    }

    pub(crate) async fn cli(&self, args: &[&str]) -> Output {
        super::http::count();
        let run = Command::new(BINARY)
            .args(args)
            .env("GMAH_CONFIG", text(&self.info["config"]))
            .current_dir(self.folder())
            .stdin(Stdio::null())
            .output();
        tokio::time::timeout(Duration::from_secs(60), run).await.expect("in time").expect("command")
    }

    /// A command that must succeed; its JSON.
    pub(crate) async fn cli_json(&self, args: &[&str]) -> Value {
        let out = self.cli(&[args, &["--json"]].concat()).await;
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice(&out.stdout).expect("JSON")
    }

    /// Creates an organisation; answers its administrator's password.
    pub(crate) async fn create(&self, slug: &str) -> String {
        let email = format!("admin@{slug}.example");
        let args =
            ["tenant", "create", "--slug", slug, "--name", slug, "--admin-email", &email, "--without-letter"];
        text(&self.cli_json(&args).await["admin_password"]).to_owned()
    }

    /// A superuser's connection.
    pub(crate) async fn superuser(&self, database: &str) -> tokio_postgres::Client {
        let mut settings = self.settings().master;
        settings.database = database.to_owned();
        pg::connect(&settings, "test").await.expect("superuser")
    }

    pub(crate) async fn execute(&self, database: &str, sql: &str) {
        self.superuser(database).await.batch_execute(sql).await.expect(sql);
    }

    /// Where its PostgreSQL listens, on 127.0.0.1.
    pub(crate) fn postgres_port(&self) -> u16 {
        u16::try_from(self.info["postgres"]["port"].as_u64().expect("port")).expect("port")
    }

    /// One value of one row, as text.
    pub(crate) async fn value(&self, database: &str, sql: &str) -> String {
        let rows = self.superuser(database).await.simple_query(sql).await.expect(sql);
        rows.iter()
            .find_map(|m| match m {
                tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                _ => None,
            })
            .unwrap_or_default()
    }

    /// Forbids a database to everyone and ends its sessions; or allows it again.
    pub(crate) async fn set_reachable(&self, database: &str, reachable: bool) {
        let client = self.superuser("postgres").await;
        client
            .batch_execute(&format!("alter database {database} allow_connections {reachable}"))
            .await
            .expect("alter");
        if !reachable {
            client
                .execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1",
                    &[&database],
                )
                .await
                .expect("terminate");
        }
    }

    pub(crate) async fn metrics(&self, listener: &str) -> Metrics {
        let answer = super::http::plain(address(&self.info[listener]), "/metrics").await;
        assert_eq!(answer.status, 200);
        Metrics(answer.body)
    }

    /// Ctrl-C; the folder stays for another start.
    pub(crate) async fn stop(mut self) -> TempDir {
        signal(&self.child, Signal::INT);
        let ended = tokio::time::timeout(Duration::from_secs(30), self.child.wait()).await;
        let status = ended.expect("ends in time").expect("wait");
        assert!(status.success(), "{status}: {}", self.log());
        self.folder.take().expect("held until now")
    }

    /// `kill -9`, as a crash would.
    pub(crate) async fn kill(mut self) -> TempDir {
        self.child.kill().await.expect("killed");
        self.folder.take().expect("held until now")
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // With `--success-output final` of the runner: how many inputs a test tries.
        eprintln!("inputs: {}", super::http::sent());
        // Also when a test fails: PostgreSQL must not outlive it. The signal is enough, nextest waits for no children.
        if self.child.id().is_some() {
            signal(&self.child, Signal::INT);
            let deadline = std::time::Instant::now() + Duration::from_secs(15);
            while self.child.try_wait().is_ok_and(|s| s.is_none()) && std::time::Instant::now() < deadline {
                #[expect(clippy::disallowed_methods, reason = "drop cannot await")]
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// The command as the harness runs it, for tests that expect it to fail.
pub(crate) fn dev_command(folder: &Path) -> Command {
    let mut command = Command::new(BINARY);
    command
        .args(["dev", "--https-port", "0", "--http-port", "0", "--admin-port", "0"])
        .arg("--data-dir")
        .arg(folder.join("data"))
        .arg("--ready-file")
        .arg(folder.join("ready.json"))
        .stdin(Stdio::null())
        .current_dir(folder);
    command
}

fn signal(child: &Child, signal: Signal) {
    if let Some(pid) = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)) {
        // It may have ended in between.
        let _ = kill_process(pid, signal);
    }
}

/// Text of a metrics listener.
#[derive(Debug)]
pub(crate) struct Metrics(pub(crate) String);

impl Metrics {
    /// The sum over all series of a name whose labels contain all of `labels`.
    pub(crate) fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        self.0
            .lines()
            .filter(|l| {
                l.strip_prefix(name).is_some_and(|rest| rest.starts_with('{') || rest.starts_with(' '))
            })
            .filter(|l| labels.iter().all(|label| l.contains(label)))
            .filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    pub(crate) fn series(&self) -> usize {
        self.0.lines().filter(|l| !l.is_empty() && !l.starts_with('#')).count()
    }
}

pub(crate) fn text(value: &Value) -> &str {
    value.as_str().expect("text")
}

pub(crate) fn address(value: &Value) -> std::net::SocketAddr {
    text(value).parse().expect("address")
}
