//! The data folder: what lies where, and who may read it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write as _};
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, bail};
use gmah_api::control::backup::config::Backups;
use gmah_shared::hostname::Hostname;
use gmah_shared::secret::MasterKey;
use secrecy::ExposeSecret as _;

use super::cluster::{Cluster, SUPERUSER};
use super::loopback;

/// The folder, held by this process.
pub(super) struct DataDir {
    root: PathBuf,
    _lock: File,
}

/// Ports of this run. The api's are always free ones.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ports {
    https: u16,
    http: u16,
    admin: u16,
    api: u16,
    api_admin: u16,
}

impl Ports {
    /// Checks the wanted ports and picks free ones for 0. All are held until all are picked, so they differ.
    pub(super) fn pick(https: u16, http: u16, admin: u16) -> anyhow::Result<Self> {
        let mut held = Vec::new();
        let mut one = |flag: &str, port: u16| {
            let listener = match port {
                0 => free_port()?,
                port => TcpListener::bind(loopback(port)).with_context(|| {
                    format!(
                        "{flag} {port}: the port is not free (another gmah dev? choose one with {flag}, or 0)"
                    )
                })?,
            };
            let port = listener.local_addr()?.port();
            held.push(listener);
            anyhow::Ok(port)
        };
        Ok(Self {
            https: one("--https-port", https)?,
            http: one("--http-port", http)?,
            admin: one("--admin-port", admin)?,
            api: one("api", 0)?,
            api_admin: one("api admin", 0)?,
        })
    }
}

impl DataDir {
    /// Makes the folder if need be, and holds it: two processes must not share one.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let root = std::path::absolute(path)?;
        fs::create_dir_all(&root).with_context(|| root.display().to_string())?;
        let is_empty = fs::read_dir(&root).with_context(|| root.display().to_string())?.next().is_none();
        if !is_empty && !root.join("dev.lock").exists() {
            bail!("--data-dir {}: the folder has something in it that gmah dev did not make", root.display());
        }
        // Others may pass through, because PostgreSQL may run as another user, but not look around.
        fs::set_permissions(&root, fs::Permissions::from_mode(0o711))?;
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(root.join("dev.lock"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!("another gmah dev is running in {}", root.display()),
            Err(TryLockError::Error(e)) => return Err(e).context("dev.lock"),
        }
        Ok(Self { root, _lock: lock })
    }

    /// Throws away what earlier runs made, and nothing else.
    pub(super) fn reset(&self) -> anyhow::Result<()> {
        for name in ["pg", "pg.new", "certs", "secrets", "mail", "files", "backups"] {
            remove_tree(&self.root.join(name))?;
        }
        for name in ["gmah.toml", "credentials.json", "postgres.log", "cluster", "schema"] {
            remove(&self.root.join(name))?;
        }
        Ok(())
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub(super) fn config(&self) -> PathBuf {
        self.root.join("gmah.toml")
    }

    pub(super) fn ca(&self) -> PathBuf {
        self.root.join("certs/ca.pem")
    }

    /// A folder below, for this user only.
    pub(super) fn private_dir(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.root.join(name);
        fs::create_dir_all(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
        Ok(path)
    }

    /// A secret that is made once.
    pub(super) fn ensure_secret(&self, name: &str, make: impl FnOnce() -> String) -> anyhow::Result<String> {
        let path = self.private_dir("secrets")?.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let text = make();
                write_private(&path, text.as_bytes())?;
                Ok(text)
            }
            Err(e) => Err(e).with_context(|| path.display().to_string()),
        }
    }

    /// Whether a secret has been made.
    pub(super) fn has_secret(&self, name: &str) -> bool {
        self.path("secrets").join(name).exists()
    }

    pub(super) fn ensure_master_key(&self) -> anyhow::Result<()> {
        self.ensure_secret("master.key", || MasterKey::generate_text().expose_secret().to_owned()).map(drop)
    }

    pub(super) fn ensure_backup_key(&self) -> anyhow::Result<()> {
        self.ensure_secret("backups.key", || Backups::generate_key().expose_secret().to_owned()).map(drop)
    }

    /// The configuration of this run, which every other command takes too.
    pub(super) fn write_config(
        &self,
        base: &Hostname,
        ports: Ports,
        cluster: &Cluster,
        extra: &str,
    ) -> anyhow::Result<()> {
        let quoted = |path: PathBuf| toml::Value::from(path.display().to_string()).to_string();
        // Where the cluster's own lie beside it; otherwise those that the machine has.
        let programs = match cluster.programs() {
            folder if folder.join("pg_dump").exists() => {
                format!("programs = {}\n", quoted(folder.to_owned()))
            }
            _ => String::new(),
        };
        let text = format!(
            "# Written by `gmah dev` at every start.\n\
             base_domain = \"{base}\"\n\
             public_https_port = {https}\n\
             default_modules = [\"loans\"]\n\
             \n[log]\nformat = \"text\"\nfilter = \"info\"\n\
             \n[master]\nhost = \"{pg_host}\"\nport = {pg_port}\nuser = \"{SUPERUSER}\"\n\
             password_file = {password}\ndatabase = \"gmah_master\"\n\
             \n[secrets]\nmaster_key_file = {key}\n\
             \n[router]\nhttps = \"{router_https}\"\nhttp = \"{router_http}\"\nadmin = \"{router_admin}\"\n\
             certificate_file = {certificate}\nkey_file = {certificate_key}\n\
             \n[router.pools.api]\naddresses = [\"{api}\"]\n\
             \n[api]\nlisten = \"{api}\"\nadmin = \"{api_admin}\"\n\
             \n[pool]\nmax_per_server = 40\nmax_per_tenant = 8\n\
             \n[metrics]\ncollect_every = \"15s\"\n\
             \n[mail]\nfrom = \"gmah <no-reply@{base}>\"\nfolder = {mail}\n\
             \n[files]\nfolder = {files}\n\
             \n[backups]\nfolder = {backups}\nkey_file = {backup_key}\n{programs}",
            backups = quoted(self.path("backups")),
            backup_key = quoted(self.path("secrets/backups.key")),
            programs = programs,
            files = quoted(self.path("files")),
            mail = quoted(self.path("mail")),
            https = ports.https,
            pg_host = cluster.host(),
            pg_port = cluster.port(),
            password = quoted(self.path("secrets/postgres.password")),
            key = quoted(self.path("secrets/master.key")),
            router_https = loopback(ports.https),
            router_http = loopback(ports.http),
            router_admin = loopback(ports.admin),
            certificate = quoted(self.path("certs/server.pem")),
            certificate_key = quoted(self.path("certs/server.key")),
            api = loopback(ports.api),
            api_admin = loopback(ports.api_admin),
        );
        let text = if extra.trim().is_empty() { text } else { merged(&text, extra)? };
        write_private(&self.config(), text.as_bytes())
    }
}

/// A configuration with another's sections put over its own, key by key.
fn merged(own: &str, over: &str) -> anyhow::Result<String> {
    fn put(own: &mut toml::Table, over: toml::Table) {
        for (key, value) in over {
            match (own.get_mut(&key), value) {
                (Some(toml::Value::Table(own)), toml::Value::Table(over)) => put(own, over),
                (_, value) => drop(own.insert(key, value)),
            }
        }
    }
    let mut all: toml::Table = own.parse()?;
    put(&mut all, over.parse().context("--extra-config")?);
    Ok(format!("# Written by `gmah dev` at every start.\n{}", toml::to_string(&all)?))
}

/// A free port, held. Below those that the kernel gives to outgoing connections (32768 and up, by default), because it is
/// let go for a while before the role takes it; and reserved until this process ends, so that no other `gmah dev` of
/// this machine picks it meanwhile.
pub(super) fn free_port() -> anyhow::Result<TcpListener> {
    static RESERVED: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());
    for _ in 0..200 {
        let port = rand::random_range(10_240..32_768);
        // A name without a file: it is gone with its process, however that ends.
        let name = UnixAddr::from_abstract_name(format!("gmah-dev-port-{port}"))?;
        let Ok(reserved) = UnixListener::bind_addr(&name) else { continue };
        if let Ok(listener) = TcpListener::bind(loopback(port)) {
            RESERVED.lock().unwrap_or_else(PoisonError::into_inner).push(reserved);
            return Ok(listener);
        }
    }
    bail!("no free port was found between 10240 and 32767")
}

/// Writes a file that only this user can read, whole or not at all.
pub(super) fn write_private(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let half = path.with_extension("half");
    let written = (|| {
        let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&half)?;
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&half, path)
    })();
    written.with_context(|| path.display().to_string())
}

/// Removes a file; that there is none is fine.
pub(super) fn remove(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e).with_context(|| path.display().to_string()),
        _ => Ok(()),
    }
}

/// Removes a folder and what is in it; that there is none is fine.
pub(super) fn remove_tree(path: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e).with_context(|| path.display().to_string()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_both_say_the_other_decides() {
        let own = "a = 1\n[pool]\nx = 1\ny = 2\n[router.pools.api]\naddresses = [\"a\"]\n";
        let over = "[pool]\ny = 3\n[acme]\nz = 4\n[router.pools.api]\naddresses = [\"b\", \"c\"]\n";
        let all: toml::Table = merged(own, over).expect("merged").parse().expect("TOML");
        let want =
            "a = 1\n[pool]\nx = 1\ny = 3\n[acme]\nz = 4\n[router.pools.api]\naddresses = [\"b\", \"c\"]\n";
        assert_eq!(all, want.parse::<toml::Table>().expect("TOML"));
        assert!(merged(own, "[pool\n").is_err());
    }
}
