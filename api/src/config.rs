//! `[api]` and `[pool]`.

use std::path::PathBuf;
use std::time::Duration;

use gmah_shared::config::{ConfigError, ConfigFile, HumanDuration, Listen, Within};
use secrecy::SecretString;
use serde::Deserialize;

use crate::control::config::ControlConfig;

/// What the api role needs beyond the shared settings.
#[derive(Debug, Clone, Deserialize)]
pub struct ApiConfig {
    /// `[api]`
    pub api: Api,
    /// `[pool]`
    #[serde(default)]
    pub pool: Pool,
    /// `[mail]`; without it letters stay where they are until they expire.
    #[serde(default)]
    pub mail: Option<Mail>,
    /// `[files]`; without it there are none.
    #[serde(default)]
    pub files: Option<Files>,
    /// `[cache]`
    #[serde(default)]
    pub cache: CacheSettings,
    /// What the control plane's own work needs.
    #[serde(skip)]
    pub control: ControlConfig,
}

/// `[files]`: where files lie. Either a folder or a service that speaks S3.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Files {
    /// A folder, for one machine.
    #[serde(default)]
    pub folder: Option<PathBuf>,
    /// A service, for several.
    #[serde(default)]
    pub s3: Option<S3>,
    /// Most bytes of one file; routers have a limit of their own. Default 25 MiB.
    #[serde(default = "max_file")]
    pub max_file_bytes: Within<1, 1_099_511_627_776>,
}

/// `[files.s3]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct S3 {
    /// Bucket.
    pub bucket: String,
    /// Region.
    pub region: String,
    /// Address, where it is not Amazon's.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// Id of the key.
    pub access_key_id: String,
    #[serde(default)]
    secret_access_key_file: Option<PathBuf>,
    #[serde(default)]
    secret_access_key_env: Option<String>,
    /// The key.
    #[serde(skip)]
    pub secret: Option<SecretString>,
}

/// `[cache]`: what is dear to compute and may be a little old.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CacheSettings {
    /// Redis or Valkey, where several nodes share it, without a password; in this process, without one.
    url: Option<String>,
    /// A file with the address.
    url_file: Option<PathBuf>,
    /// A variable with the address.
    url_env: Option<String>,
    /// The address, read.
    #[serde(skip)]
    pub address: Option<SecretString>,
    /// How old it may be. Default 30 s.
    pub ttl: HumanDuration,
    /// Most bytes in this process. Default 16 MiB.
    pub max_bytes: Within<1, 1_099_511_627_776>,
}

impl Default for CacheSettings {
    fn default() -> Self {
        let (url, url_file, url_env, address) = (None, None, None, None);
        Self {
            url,
            url_file,
            url_env,
            address,
            ttl: HumanDuration::from_secs(30),
            max_bytes: Within::new(16 << 20),
        }
    }
}

/// `[mail]`: how letters leave. Either a relay or a folder.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mail {
    /// What letters are from: `gmah <no-reply@gmah.com>`.
    pub from: String,
    /// Host of the relay (SMTP submission, RFC 6409).
    #[serde(default)]
    pub relay: Option<String>,
    /// Port of the relay. Default 465 for `tls`, 587 for `starttls`, 25 for `none`.
    #[serde(default)]
    pub port: Option<u16>,
    /// `tls`, `starttls`, or `none` where the way to the relay is private. Default `tls`.
    #[serde(default)]
    pub security: MailSecurity,
    /// Whom the relay must prove to be certified by, if that is nobody whom the machine trusts: a PEM file.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Name at the relay.
    #[serde(default)]
    pub user: Option<String>,
    /// File with the password at the relay.
    #[serde(default)]
    password_file: Option<PathBuf>,
    /// Variable with the password at the relay.
    #[serde(default)]
    password_env: Option<String>,
    /// The password, from either.
    #[serde(skip)]
    pub password: Option<SecretString>,
    /// In place of a relay: a folder in which each letter becomes a file `.eml`.
    #[serde(default)]
    pub folder: Option<PathBuf>,
    /// Where links in letters lead: `{host}` is the organisation's, `{purpose}` is `invitation` or `reset`, `{token}` goes
    /// with the new password to `POST /api/v1/auth/password/set`.
    #[serde(default = "mail_link")]
    pub link: String,
}

/// How the way to the relay is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MailSecurity {
    /// From the first byte.
    #[default]
    Tls,
    /// After a command, and not without.
    Starttls,
    /// Not at all.
    None,
}

/// `[api]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Api {
    /// Where routers reach it. A private address: whoever reaches it still needs a signed token.
    pub listen: Listen,
    /// Metrics and health. A private address.
    pub admin: Listen,
    /// Deadline for one request, over all its waits. Default 30 s.
    #[serde(default = "request_timeout")]
    pub request_timeout: HumanDuration,
    /// Largest body. Default 1 MiB.
    #[serde(default = "max_body")]
    pub max_body_bytes: Within<1, 1_073_741_824>,
    /// Most connections from routers at once; beyond it new ones wait in the kernel's queue. Default 4096.
    #[serde(default = "max_connections")]
    pub max_connections: Within<1, 1_000_000>,
    /// How long requests in flight may take at shutdown. Default 20 s.
    #[serde(default = "drain_timeout")]
    pub drain_timeout: HumanDuration,
    /// Password hashes computed at once: each takes 19 MiB and a core. Default 2.
    #[serde(default = "max_hashes")]
    pub max_password_hashes: Within<1, 1024>,
    /// Life of an access token. Default 1 h.
    #[serde(default = "access_life")]
    pub access_token_life: HumanDuration,
    /// Life of a refresh token. Default 30 days.
    #[serde(default = "refresh_life")]
    pub refresh_token_life: HumanDuration,
}

/// `[pool]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Pool {
    /// Most connections of one tenant. Default 8.
    pub max_per_tenant: Within<1, 1000>,
    /// Most connections to one PostgreSQL server, over all its tenants and all api nodes, which share it out among
    /// themselves; where their configurations differ the smallest counts. Keep it under the server's `max_connections`
    /// less what backups and migrations need. Default 40.
    pub max_per_server: Within<1, 100_000>,
    /// How long, at most, until the slots of a node that died are other nodes'. Shorter asks the master more often: three
    /// times in this. Default 3 s.
    pub heartbeat: HumanDuration,
    /// Longest wait for a connection; then 503. Default 3 s.
    pub wait_timeout: HumanDuration,
    /// Most requests of one tenant that wait for a connection; beyond it 503 at once. Default 100.
    pub max_waiting: Within<1, 100_000>,
    /// Deadline for connecting and proving. Default 2 s.
    pub connect_timeout: HumanDuration,
    /// After a failed connect, how long the tenant is answered 503 without another try; doubled by each further
    /// failure. Default 500 ms.
    pub retry_after_error: HumanDuration,
    /// Longest such pause: how late a database that is well again may be noticed. Default 2 s.
    pub max_retry_after_error: HumanDuration,
    /// An idle connection is closed after this long. Default 60 s.
    pub idle_timeout: HumanDuration,
    /// A connection is closed when it is this old. Default 30 min.
    pub max_lifetime: HumanDuration,
    /// Deadline of one statement, kept by the server. Default 15 s.
    pub statement_timeout: HumanDuration,
    /// How long what only reads waits for a copy of the server to show what the server shows; then the server is asked.
    /// Default 100 ms.
    pub replica_patience: HumanDuration,
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            max_per_tenant: Within::new(8),
            max_per_server: Within::new(40),
            heartbeat: HumanDuration::from_secs(3),
            wait_timeout: HumanDuration::from_secs(3),
            max_waiting: Within::new(100),
            connect_timeout: HumanDuration::from_secs(2),
            retry_after_error: HumanDuration::from_millis(500),
            max_retry_after_error: HumanDuration::from_secs(2),
            idle_timeout: HumanDuration::from_secs(60),
            max_lifetime: HumanDuration::from_secs(1800),
            statement_timeout: HumanDuration::from_secs(15),
            replica_patience: HumanDuration::from_millis(100),
        }
    }
}

impl ApiConfig {
    /// Takes the two sections out of the file.
    ///
    /// # Errors
    /// [`ConfigError`] with the place of the first fault.
    pub fn from_file(file: &ConfigFile) -> Result<Self, ConfigError> {
        let mut config: Self = file.parse()?;
        config.control = ControlConfig::from_file(file)?;
        if let Some(mail) = &mut config.mail {
            mail.settle(file)?;
        }
        if let Some(files) = &mut config.files {
            files.settle(file)?;
        }
        let cache = &mut config.cache;
        let named = file.secret("cache.url_file", cache.url_file.take(), cache.url_env.take())?;
        cache.address = named.or_else(|| cache.url.take().map(Into::into));
        if *config.pool.heartbeat < Duration::from_secs(1) {
            return Err(file.at_key("pool.heartbeat", "must be 1s or more"));
        }
        if config.pool.max_per_tenant.get() > config.pool.max_per_server.get() {
            return Err(file.at_key("pool.max_per_tenant", "must not be above pool.max_per_server"));
        }
        Ok(config)
    }
}

impl Mail {
    /// Reads its secret, and refuses what makes no sense.
    pub(crate) fn settle(&mut self, file: &ConfigFile) -> Result<(), ConfigError> {
        for path in [&mut self.ca_file, &mut self.folder].into_iter().flatten() {
            *path = file.resolve(path);
        }
        if self.relay.is_some() == self.folder.is_some() {
            return Err(file.at_key("mail.relay", "must be there, or mail.folder, and not both"));
        }
        let (path, name) = (self.password_file.take(), self.password_env.take());
        self.password = file.secret("mail.password_file", path, name)?;
        if !self.link.contains("{token}") {
            return Err(file.at_key("mail.link", "must contain {token}"));
        }
        Ok(())
    }
}

impl Files {
    /// Reads its secret, and refuses what makes no sense.
    pub(crate) fn settle(&mut self, file: &ConfigFile) -> Result<(), ConfigError> {
        if let Some(folder) = &mut self.folder {
            *folder = file.resolve(folder);
        }
        if self.folder.is_some() == self.s3.is_some() {
            return Err(file.at_key("files.folder", "must be there, or files.s3, and not both"));
        }
        if let Some(s3) = &mut self.s3 {
            s3.settle(file, "files")?;
        }
        Ok(())
    }
}

impl S3 {
    /// Reads its secret.
    pub(crate) fn settle(&mut self, file: &ConfigFile, section: &str) -> Result<(), ConfigError> {
        let (path, name) = (self.secret_access_key_file.take(), self.secret_access_key_env.take());
        self.secret = file.secret(&format!("{section}.s3.secret_access_key_file"), path, name)?;
        Ok(())
    }
}

fn max_file() -> Within<1, 1_099_511_627_776> {
    Within::new(25 << 20)
}

fn mail_link() -> String {
    "https://{host}/account#{purpose}={token}".into()
}

fn request_timeout() -> HumanDuration {
    HumanDuration::from_secs(30)
}

fn max_body() -> Within<1, 1_073_741_824> {
    Within::new(1 << 20)
}

fn max_connections() -> Within<1, 1_000_000> {
    Within::new(4096)
}

fn drain_timeout() -> HumanDuration {
    HumanDuration::from_secs(20)
}

fn max_hashes() -> Within<1, 1024> {
    Within::new(2)
}

fn access_life() -> HumanDuration {
    HumanDuration::from_secs(3600)
}

fn refresh_life() -> HumanDuration {
    HumanDuration::from_secs(30 * 86_400)
}
