//! Configuration: one strict TOML file for every role and command.
//!
//! An unknown key is an error, a missing file is an error, and every error names file, line and key. Durations are
//! text with a unit (`"250ms"`). Secrets are never in the file: `…_file` names a file, `…_env` a variable. Relative
//! paths are relative to the folder of the configuration file. Loading opens no socket.
//!
//! The sections `router` and `api` belong to those crates, which parse them through [`ConfigFile::parse`].

mod domains;
mod file;
mod postgres;
mod types;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::hostname::Hostname;
use crate::secret::{MasterKey, SecretError};
use crate::telemetry;
use crate::telemetry::LogFormat;
use crate::telemetry::traces::TraceSettings;

pub use domains::{AcmeSettings, Challenge, DnsSettings, DomainSettings, Wildcard};
pub use file::{ConfigError, ConfigFile};
pub use postgres::{Postgres, PostgresSection};
pub use toml::Spanned;
pub use types::{HumanDuration, Within};

/// What the proof of the base domain may take: less than an order may.
const WILDCARD_LONGEST: Duration = Duration::from_secs(480);

/// What every role and command needs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Organisations are reached at `SLUG.base_domain`.
    pub base_domain: Hostname,
    /// Port of HTTPS as browsers see it; written into redirects.
    pub public_https_port: u16,
    /// Hosts on which `X-Tenant-ID` and `?tenant=` decide. Default: `app.BASE`.
    pub neutral_hosts: Vec<Hostname>,
    /// The platform's own host, which is no tenant; the pool `api` answers for it. Default: `admin.BASE`.
    pub platform_host: Hostname,
    /// Modules of a new organisation when none are named.
    pub default_modules: Vec<String>,
    /// How the program logs.
    pub log: Log,
    /// The master database.
    pub master: Postgres,
    /// Seals what the master keeps secret.
    pub master_key: MasterKey,
    /// Bounds of the catalog cache.
    pub catalog: CatalogSettings,
    /// Who is asked for names.
    pub dns: DnsSettings,
    /// Customers' own names.
    pub domains: DomainSettings,
    /// Customers point their names below this one.
    pub target_base: Hostname,
    /// Where certificates for them come from.
    pub acme: Option<AcmeSettings>,
    /// Where traces go.
    pub traces: Option<TraceSettings>,
    /// How many tenants get series of their own; the rest are counted under `_other`.
    pub metrics_max_tenants: usize,
    /// How old figures of organisations get until they are collected anew; none: this node collects none.
    pub metrics_collect_every: Option<Duration>,
}

/// `[log]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `text` or `json`. Default `text`.
    pub format: LogFormat,
    /// Filter in the syntax of `tracing-subscriber`. Default `info`.
    pub filter: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Text, filter: "info".into() }
    }
}

/// `[catalog]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CatalogSettings {
    /// After this long an entry is read again even if no notice came. Longer: fewer queries, and later news when
    /// notices are lost. Default 60 s.
    pub ttl: HumanDuration,
    /// With the master away, known tenants are served for at most this long after they were last confirmed.
    /// Default 10 min.
    pub max_stale: HumanDuration,
    /// How long an unknown name is remembered. Default 10 s.
    pub negative_ttl: HumanDuration,
    /// Most known names. Default 200,000.
    pub max_entries: Within<1, 100_000_000>,
    /// Most unknown names. Default 20,000.
    pub max_negative: Within<1, 10_000_000>,
    /// Most names being read at once; beyond it a name is answered as if the master were away. Default 256.
    pub max_loads: Within<1, 10_000>,
    /// Deadline for reading one name. Default 2 s.
    pub load_timeout: HumanDuration,
    /// After a failed read, how long the master is left alone. Default 500 ms.
    pub retry_after_error: HumanDuration,
}

impl Default for CatalogSettings {
    fn default() -> Self {
        Self {
            ttl: HumanDuration::from_secs(60),
            max_stale: HumanDuration::from_secs(600),
            negative_ttl: HumanDuration::from_secs(10),
            max_entries: Within::new(200_000),
            max_negative: Within::new(20_000),
            max_loads: Within::new(256),
            load_timeout: HumanDuration::from_secs(2),
            retry_after_error: HumanDuration::from_millis(500),
        }
    }
}

#[derive(Deserialize)]
struct RawSettings {
    base_domain: Hostname,
    #[serde(default = "default_https_port")]
    public_https_port: Within<1, 65535>,
    neutral_hosts: Option<Vec<Hostname>>,
    platform_host: Option<Hostname>,
    #[serde(default)]
    default_modules: Vec<String>,
    #[serde(default)]
    log: Log,
    master: toml::Spanned<PostgresSection>,
    secrets: toml::Spanned<RawSecrets>,
    #[serde(default)]
    catalog: CatalogSettings,
    #[serde(default)]
    metrics: RawMetrics,
    #[serde(default)]
    dns: DnsSettings,
    #[serde(default)]
    domains: DomainSettings,
    acme: Option<toml::Spanned<AcmeSettings>>,
    traces: Option<toml::Spanned<TraceSettings>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSecrets {
    master_key_file: Option<PathBuf>,
    master_key_env: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawMetrics {
    max_tenants: Within<0, 1_000_000>,
    collect: bool,
    collect_every: HumanDuration,
}

impl Default for RawMetrics {
    fn default() -> Self {
        Self { max_tenants: Within::new(1000), collect: true, collect_every: HumanDuration::from_secs(300) }
    }
}

fn default_https_port() -> Within<1, 65535> {
    Within::new(443)
}

impl ConfigFile {
    /// What every role needs.
    ///
    /// # Errors
    /// [`ConfigError`] with the place of the first fault.
    pub fn settings(&self) -> Result<Settings, ConfigError> {
        let raw: RawSettings = self.parse()?;
        let under_base = |label: &str| {
            Hostname::parse(&format!("{label}.{}", raw.base_domain))
                .map_err(|e| self.at_key("base_domain", &e.to_string()))
        };
        let secrets = raw.secrets.into_inner();
        let key = match secrets.master_key_env {
            Some(_) if secrets.master_key_file.is_none() => "secrets.master_key_env",
            _ => "secrets.master_key_file",
        };
        let key_file = secrets.master_key_file.as_deref().map(|f| self.resolve(f));
        let key_text = self
            .secret("secrets.master_key_file", secrets.master_key_file, secrets.master_key_env)?
            .ok_or_else(|| self.at_key(key, "this or master_key_env is required"))?;
        let master_key = match key_file {
            Some(file) => MasterKey::of_file(&key_text, file),
            None => MasterKey::parse(&key_text),
        };
        let master_key = master_key.map_err(|e: SecretError| self.at_key(key, &e.to_string()))?;
        telemetry::check(&raw.log.filter).map_err(|e| self.at_key("log.filter", &e.to_string()))?;
        let acme = raw.acme.map(|acme| self.acme(acme)).transpose()?;
        let traces = raw.traces.map(|traces| self.traces(traces)).transpose()?;
        let target_base = match &raw.domains.target_base {
            Some(base) => base.clone(),
            None => under_base("edge")?,
        };
        let neutral_hosts = match raw.neutral_hosts {
            Some(hosts) => hosts,
            None => vec![under_base("app")?],
        };
        let platform_host = match raw.platform_host {
            Some(host) => host,
            None => under_base("admin")?,
        };
        if platform_host == raw.base_domain || neutral_hosts.contains(&platform_host) {
            return Err(self.at_key("platform_host", "is neither the base domain nor a neutral host"));
        }
        Ok(Settings {
            domains: raw.domains,
            target_base,
            acme,
            traces,
            neutral_hosts,
            platform_host,
            base_domain: raw.base_domain,
            public_https_port: raw.public_https_port.get() as u16,
            default_modules: raw.default_modules,
            log: raw.log,
            master: self.postgres("master", raw.master)?,
            master_key,
            catalog: raw.catalog,
            dns: raw.dns,
            metrics_max_tenants: raw.metrics.max_tenants.get(),
            metrics_collect_every: raw.metrics.collect.then_some(*raw.metrics.collect_every),
        })
    }

    fn acme(&self, spanned: toml::Spanned<AcmeSettings>) -> Result<AcmeSettings, ConfigError> {
        let mut acme = spanned.into_inner();
        if !acme.directory.starts_with("https://") {
            return Err(self.at_key("acme.directory", "an address that begins with https://"));
        }
        if let Some(bad) = acme.contact.iter().find(|c| !c.starts_with("mailto:")) {
            return Err(self.at_key("acme.contact", &format!("{bad}: begins with mailto:")));
        }
        acme.ca_file = acme.ca_file.as_deref().map(|f| self.resolve(f));
        acme.eab_key =
            self.secret("acme.eab_key_file", acme.eab_key_file.clone(), acme.eab_key_env.clone())?;
        if acme.eab_kid.is_some() != acme.eab_key.is_some() {
            return Err(
                self.at_key("acme.eab_kid", "goes with eab_key_file or eab_key_env, and they with it")
            );
        }
        let Some(wildcard) = &mut acme.wildcard else { return Ok(acme) };
        match wildcard.hook.first_mut() {
            // A program without a folder is looked for along `PATH`.
            Some(program) if program.contains('/') => {
                *program = self.resolve(Path::new(program.as_str())).to_string_lossy().into_owned();
            }
            Some(program) if !program.is_empty() => {}
            _ => return Err(self.at_key("acme.wildcard.hook", "names a program")),
        }
        // Orders end before their lease does.
        let longest = (*wildcard.propagation_timeout).max(*wildcard.settle) + *wildcard.hook_timeout * 4;
        if longest > WILDCARD_LONGEST {
            let message = "with four times hook_timeout, more than 8 minutes";
            return Err(self.at_key("acme.wildcard.propagation_timeout", message));
        }
        Ok(acme)
    }

    fn traces(&self, spanned: toml::Spanned<TraceSettings>) -> Result<TraceSettings, ConfigError> {
        let mut traces = spanned.into_inner();
        if !["http://", "https://"].iter().any(|scheme| traces.endpoint.starts_with(scheme)) {
            return Err(self.at_key("traces.endpoint", "an address that begins with http:// or https://"));
        }
        traces.ca_file = traces.ca_file.as_deref().map(|f| self.resolve(f));
        traces.authorization = self.secret(
            "traces.authorization_file",
            traces.authorization_file.clone(),
            traces.authorization_env.clone(),
        )?;
        Ok(traces)
    }
}

/// An address to listen on; port 0 picks a free one.
pub type Listen = SocketAddr;

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Settings, String> {
        let dir = tempfile::tempdir().expect("dir");
        let key = dir.path().join("key");
        std::fs::write(&key, secrecy::ExposeSecret::expose_secret(&MasterKey::generate_text())).expect("key");
        let path = dir.path().join("gmah.toml");
        std::fs::write(&path, text).expect("file");
        ConfigFile::load(&path)
            .and_then(|f| f.settings())
            .map_err(|e| e.to_string().replace(&dir.path().display().to_string(), ""))
    }

    const GOOD: &str = r#"
base_domain = "GMAH.com."
[master]
host = "127.0.0.1"
user = "gmah"
database = "gmah_master"
[secrets]
master_key_file = "key"
[catalog]
max_stale = "5m"
"#;

    #[test]
    fn defaults_and_normal_forms() {
        let s = load(GOOD).expect("loads");
        assert_eq!(s.base_domain.as_str(), "gmah.com");
        assert_eq!(s.neutral_hosts[0].as_str(), "app.gmah.com");
        assert_eq!(s.platform_host.as_str(), "admin.gmah.com");
        assert_eq!(*s.catalog.max_stale, Duration::from_secs(300));
        assert_eq!((s.public_https_port, s.master.hosts.to_string()), (443, "127.0.0.1:5432".into()));
    }

    #[test]
    fn every_fault_names_file_line_and_key() {
        let cases = [
            ("host = \"127.0.0.1\"", "hosst = \"127.0.0.1\"", "/gmah.toml:4: master.hosst: unknown field"),
            ("\"5m\"", "\"5\"", "/gmah.toml:10: catalog.max_stale:"),
            ("\"5m\"", "5", "/gmah.toml:10: catalog.max_stale:"),
            ("\"GMAH.com.\"", "\"127.0.0.1\"", "/gmah.toml:2: base_domain: an IP address"),
            ("[catalog]", "[catalogue]", "/gmah.toml:9: catalogue: unknown key"),
            ("\"key\"", "\"nothere\"", "/gmah.toml:8: secrets.master_key_file: /"),
            ("\"127.0.0.1\"", "\"a,,b\"", "/gmah.toml:4: master.host: a host is missing"),
            ("user = \"gmah\"", "user = \"gmah\"\ntls = \"require\"", "master.tls: \"require\" is neither"),
            ("user = \"gmah\"", "user = \"gmah\"\ntls_ca_file = \"nothere\"", "/nothere"),
            ("user = \"gmah\"", "user = 7", "/gmah.toml:5: master.user: invalid type"),
            ("user = \"gmah\"", "user = \"gmah\"\nport = 70000", "master.port"),
            ("user = \"gmah\"", "user = \"gmah\"\npassword_env = \"GMAH_NOT_SET\"", "GMAH_NOT_SET"),
            ("user = \"gmah\"", "user = \"gmah\"\npassword = \"x\"", "unknown field"),
            ("[master]", "[master", "/gmah.toml:3:"),
            (
                "[master]",
                "platform_host = \"app.gmah.com\"\n[master]",
                "/gmah.toml:3: platform_host: is neither",
            ),
            ("[master]", "platform_host = \"gmah.com\"\n[master]", "/gmah.toml:3: platform_host: is neither"),
        ];
        for (from, to, want) in cases {
            let seen = load(&GOOD.replace(from, to)).expect_err(to);
            assert!(seen.contains(want), "{to}: {seen}");
        }
    }

    #[test]
    fn a_missing_file_is_an_error() {
        let e = ConfigFile::load(Path::new("/nowhere/gmah.toml")).expect_err("missing");
        assert!(e.to_string().starts_with("/nowhere/gmah.toml:"));
    }
}
