//! The private PostgreSQL cluster: found, made, started, stopped.
//!
//! PostgreSQL refuses to run as root; started by root it runs as the user `postgres` (or `nobody`).

use std::fs;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use gmah_shared::config::Postgres;
use gmah_shared::pg::{self, Hosts, Transport};
use gmah_shared::secret::random_password;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::process::{Child, Command};
use tokio::time::Instant;

use super::files::{DataDir, free_port, remove_tree, write_private};
use super::loopback;

/// Superuser of the cluster.
pub(super) const SUPERUSER: &str = "gmah";
/// Among the secrets of a data folder.
const PASSWORD: &str = "postgres.password";
const START: Duration = Duration::from_secs(60);
const STOP: Duration = Duration::from_secs(20);

/// Programs of one PostgreSQL installation, and the user that runs them.
pub(super) struct Binaries {
    folder: PathBuf,
    user: Option<User>,
}

#[derive(Clone, Copy)]
struct User {
    uid: u32,
    gid: u32,
}

/// A running cluster.
pub(super) struct Cluster {
    child: Child,
    port: u16,
    password: SecretString,
    programs: PathBuf,
}

/// The newest PostgreSQL of this machine, or the named one.
pub(super) fn find(named: Option<&Path>) -> anyhow::Result<Binaries> {
    let folder = match named {
        Some(folder) if folder.join("initdb").exists() => folder.to_owned(),
        Some(folder) => bail!("--pg-bin {}: there is no initdb", folder.display()),
        None => pg::programs::folder(&["initdb", "postgres"]).ok_or_else(|| {
            anyhow!("PostgreSQL is not installed: apt-get install postgresql (or give --pg-bin DIR)")
        })?,
    };
    let user = if rustix::process::geteuid().is_root() { Some(other_user()?) } else { None };
    Ok(Binaries { folder, user })
}

fn other_user() -> anyhow::Result<User> {
    let passwd = fs::read_to_string("/etc/passwd").context("/etc/passwd")?;
    let find = |name: &str| {
        passwd.lines().find_map(|line| {
            let fields: Vec<_> = line.split(':').collect();
            let user = User { uid: fields.get(2)?.parse().ok()?, gid: fields.get(3)?.parse().ok()? };
            (fields[0] == name && user.uid != 0).then_some(user)
        })
    };
    find("postgres")
        .or_else(|| find("nobody"))
        .ok_or_else(|| anyhow!("PostgreSQL cannot run as root, and there is no user postgres or nobody"))
}

impl Binaries {
    fn command(&self, program: &str) -> Command {
        let mut command = std::process::Command::new(self.folder.join(program));
        if let Some(user) = self.user {
            command.uid(user.uid).gid(user.gid);
        }
        // Not ours to inherit: a PGDATA or PGHOST of the user's own must change nothing here.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PG") {
                command.env_remove(name);
            }
        }
        // Ctrl-C is for this process, which stops the cluster when everything else has stopped.
        command.process_group(0).current_dir("/").stdin(Stdio::null());
        let mut command = Command::from(command);
        command.kill_on_drop(true);
        command
    }

    async fn run(&self, program: &str, args: &[&str]) -> anyhow::Result<()> {
        let output = self.command(program).args(args).output();
        let output = tokio::time::timeout(START, output)
            .await
            .with_context(|| format!("{program} did not end"))?
            .with_context(|| format!("{program} did not start"))?;
        if output.status.success() {
            return Ok(());
        }
        bail!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim())
    }

    fn own(&self, path: &Path) -> anyhow::Result<()> {
        if let Some(user) = self.user {
            std::os::unix::fs::chown(path, Some(user.uid), Some(user.gid))
                .with_context(|| path.display().to_string())?;
        }
        Ok(())
    }

    /// Where the cluster lies: in the data folder, unless the user that PostgreSQL runs as cannot get there (a checkout
    /// below `/root`). Then it is under `/var/lib/gmah-dev`, and the data folder says so.
    fn location(&self, dir: &DataDir) -> anyhow::Result<PathBuf> {
        let here = dir.path("pg");
        let Some(user) = self.user else { return Ok(here) };
        let reachable = here.ancestors().skip(1).all(|folder| {
            fs::metadata(folder).is_ok_and(|m| {
                let mode = m.permissions().mode();
                mode & 0o001 != 0 || (m.uid() == user.uid && mode & 0o100 != 0)
            })
        });
        if reachable {
            return Ok(here);
        }
        let text = here.display().to_string();
        let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
        let name: String = digest.as_ref()[..6].iter().map(|b| format!("{b:02x}")).collect();
        let away = Path::new("/var/lib/gmah-dev").join(name);
        fs::create_dir_all(&away).with_context(|| away.display().to_string())?;
        for folder in [Path::new("/var/lib/gmah-dev"), &away] {
            fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
        }
        fs::write(dir.path("cluster"), format!("{}\n", away.join("pg").display()))?;
        Ok(away.join("pg"))
    }
}

/// Stops a cluster that a killed run left behind, and removes one that lies elsewhere, before a reset.
pub(super) async fn stop_leftover(binaries: &Binaries, dir: &DataDir) -> anyhow::Result<()> {
    let data = binaries.location(dir)?;
    end_leftover(binaries, &data).await?;
    remove_tree(&data)
}

/// Makes room where a cluster lies whose password went with the data folder that it belonged to: nobody can use it as it
/// is. One that was put aside before makes room for it.
fn put_aside(data: &Path) -> anyhow::Result<()> {
    let aside = data.with_extension("before");
    remove_tree(&aside)?;
    fs::rename(data, &aside).with_context(|| data.display().to_string())?;
    println!(
        "the cluster in {} belongs to a data folder that is gone; it is now {}",
        data.display(),
        aside.display()
    );
    Ok(())
}

async fn end_leftover(binaries: &Binaries, data: &Path) -> anyhow::Result<()> {
    let pid_file = data.join("postmaster.pid");
    let text = match fs::read_to_string(&pid_file) {
        Ok(text) => text,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e).with_context(|| pid_file.display().to_string()),
    };
    let pid = text.lines().next().and_then(|l| l.trim().parse().ok()).and_then(Pid::from_raw);
    // A number may have become somebody else's since: the postmaster works in its data folder.
    let is_postmaster = |pid: Pid| {
        let works_in = fs::read_link(format!("/proc/{}/cwd", pid.as_raw_nonzero()));
        test_kill_process(pid).is_ok()
            && works_in.is_ok_and(|cwd| fs::canonicalize(data).is_ok_and(|d| d == cwd))
    };
    let running = pid.is_some_and(is_postmaster);
    if !running {
        // PostgreSQL would take any process of that number for its own.
        return fs::remove_file(&pid_file).with_context(|| pid_file.display().to_string());
    }
    println!("stopping the PostgreSQL of an earlier run");
    let data = data.display().to_string();
    binaries.run("pg_ctl", &["stop", "-D", &data, "-m", "fast", "-w", "-t", "20"]).await
}

impl Cluster {
    /// Starts the cluster of a data folder, making it first if need be.
    pub(super) async fn start(binaries: &Binaries, dir: &DataDir) -> anyhow::Result<Self> {
        let data = binaries.location(dir)?;
        end_leftover(binaries, &data).await?;
        if !dir.has_secret(PASSWORD) && data.join("PG_VERSION").exists() {
            put_aside(&data)?;
        }
        let password: SecretString =
            dir.ensure_secret(PASSWORD, || random_password().expose_secret().to_owned())?.into();
        check_version(binaries, &data).await?;
        if !data.join("PG_VERSION").exists() {
            println!("making a PostgreSQL cluster in {}", data.display());
            init(binaries, &data, &password).await?;
        }
        let port = own_port(dir)?;
        let log = fs::File::create(dir.path("postgres.log"))?;
        let mut command = binaries.command("postgres");
        command.arg("-D").arg(&data);
        let port_setting = format!("port={port}");
        for setting in [
            port_setting.as_str(),
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "max_connections=200",
            "password_encryption=scram-sha-256",
            "log_statement=none",
            "log_min_error_statement=panic",
            "log_checkpoints=off",
            "timezone=UTC",
        ] {
            command.arg("-c").arg(setting);
        }
        command.stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        let child = command.spawn().context("postgres did not start")?;
        let mut cluster = Self { child, port, password, programs: binaries.folder.clone() };
        cluster.until_ready(dir).await?;
        Ok(cluster)
    }

    pub(super) fn host(&self) -> &'static str {
        "127.0.0.1"
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// The folder of its programs.
    pub(super) fn programs(&self) -> &Path {
        &self.programs
    }

    pub(super) fn password(&self) -> &SecretString {
        &self.password
    }

    /// Returns when the cluster ends by itself, which it should not.
    pub(super) async fn died(&mut self) -> anyhow::Error {
        match self.child.wait().await {
            Ok(status) => anyhow!("PostgreSQL ended by itself: {status}"),
            Err(e) => anyhow!("PostgreSQL: {e}"),
        }
    }

    /// Stops it: fast, and if that takes too long, at once; PostgreSQL recovers from either.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        for signal in [Signal::INT, Signal::QUIT] {
            let Some(pid) = self.child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)) else {
                return Ok(());
            };
            kill_process(pid, signal).context("stopping PostgreSQL")?;
            if tokio::time::timeout(STOP, self.child.wait()).await.is_ok() {
                return Ok(());
            }
        }
        self.child.kill().await.context("stopping PostgreSQL")
    }

    async fn until_ready(&mut self, dir: &DataDir) -> anyhow::Result<()> {
        let settings = Postgres {
            hosts: Hosts::parse(self.host(), self.port)?,
            transport: Transport::Plain,
            user: SUPERUSER.into(),
            password: Some(self.password.clone()),
            database: "postgres".into(),
            max_connections: 1,
            timeout: Duration::from_secs(2),
        };
        let deadline = Instant::now() + START;
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("PostgreSQL ended at its start ({status}); see {}", dir.path("postgres.log").display());
            }
            match pg::connect(&settings, "gmah dev").await {
                Ok(_) => return Ok(()),
                Err(e) if Instant::now() > deadline => return Err(e).context("PostgreSQL does not answer"),
                Err(_) => tokio::time::sleep(Duration::from_millis(30)).await,
            }
        }
    }
}

async fn init(binaries: &Binaries, data: &Path, password: &SecretString) -> anyhow::Result<()> {
    // Made under another name: a cluster that has its name is whole, and what a killed first start left is none.
    let whole = data;
    let data = &whole.with_extension("new");
    remove_tree(data)?;
    fs::create_dir_all(data)?;
    fs::set_permissions(data, fs::Permissions::from_mode(0o700))?;
    binaries.own(data)?;
    let pwfile = data.with_extension("pwfile");
    write_private(&pwfile, password.expose_secret().as_bytes())?;
    binaries.own(&pwfile)?;
    let (data_text, pwfile_text) = (data.display().to_string(), format!("--pwfile={}", pwfile.display()));
    let made = binaries
        .run(
            "initdb",
            &[
                "-D",
                &data_text,
                "-U",
                SUPERUSER,
                &pwfile_text,
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C",
                "--no-instructions",
            ],
        )
        .await;
    fs::remove_file(&pwfile)?;
    made?;
    fs::rename(data, whole).with_context(|| whole.display().to_string())
}

async fn check_version(binaries: &Binaries, data: &Path) -> anyhow::Result<()> {
    let Ok(cluster) = fs::read_to_string(data.join("PG_VERSION")) else { return Ok(()) };
    let output =
        binaries.command("postgres").arg("--version").output().await.context("postgres --version")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let program = text.split_whitespace().nth(2).and_then(|v| v.split('.').next()).unwrap_or("");
    if program == cluster.trim() {
        return Ok(());
    }
    bail!(
        "the cluster in {} was made by PostgreSQL {}, this is {program}: give --pg-bin, or --reset",
        data.display(),
        cluster.trim()
    )
}

/// The port of the last run if it is free, any free one otherwise.
fn own_port(dir: &DataDir) -> anyhow::Result<u16> {
    let path = dir.private_dir("secrets")?.join("postgres.port");
    let last = fs::read_to_string(&path).ok().and_then(|t| t.trim().parse().ok()).unwrap_or(0);
    let listener = match last {
        0 => free_port()?,
        last => TcpListener::bind(loopback(last)).or_else(|_| free_port())?,
    };
    let port = listener.local_addr()?.port();
    fs::write(&path, port.to_string())?;
    Ok(port)
}
