//! `[router]`.

mod pools;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use gmah_shared::config::{ConfigError, ConfigFile, HumanDuration, Listen, Within};
use ipnet::IpNet;
use secrecy::SecretString;
use serde::Deserialize;

use crate::certs::Files;

pub use pools::{Health, Pool, Protocol, Rule, Target};

/// What the router role needs beyond the shared settings.
#[derive(Debug, Clone, Deserialize)]
pub struct RouterConfig {
    /// `[router]`
    pub router: Router,
}

/// `[router]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Router {
    /// HTTPS, public.
    pub https: Listen,
    /// Plain HTTP, public: redirects only.
    pub http: Listen,
    /// Metrics, health, JWKS. A private address.
    pub admin: Listen,
    /// PEM file with the certificate chain for the base domain and its wildcard. Needed unless `[acme.wildcard]` orders one;
    /// with both, the files are served until there is one.
    pub certificate_file: Option<PathBuf>,
    /// PEM file with its key.
    pub key_file: Option<PathBuf>,
    /// How often the two files are looked at for changes. Default 2 s.
    #[serde(default = "certificate_poll")]
    pub certificate_poll: HumanDuration,
    /// Threads that serve, each with its own event loop; 0 means one per core. Default 0.
    #[serde(default = "zero")]
    pub workers: Within<0, 1024>,
    /// Unix socket where a successor takes over (`gmah router --upgrade`). In a folder that only this user can write to.
    /// Default: none, and no upgrade without a pause.
    pub upgrade_socket: Option<PathBuf>,
    /// Bounds of clients.
    #[serde(default)]
    pub limits: Limits,
    /// Proxies in front of the router.
    #[serde(default)]
    pub proxies: Proxies,
    /// For this long browsers use HTTPS only (`Strict-Transport-Security`, RFC 6797). Default 365 days.
    #[serde(default = "hsts")]
    pub hsts_max_age: HumanDuration,
    /// A line for each request. Default: none.
    pub access_log: Option<AccessLog>,
    /// Where routers share what they count. Default: each counts by itself.
    pub shared_limits: Option<toml::Spanned<SharedLimits>>,
    /// Backends, by the name of their pool.
    pub pools: BTreeMap<String, Pool>,
    /// Which paths go to which pool. Default: all to the only pool.
    #[serde(default)]
    pub routes: Vec<Rule>,
    /// Idle connections to backends that each worker keeps. Default 256.
    #[serde(default = "upstream_idle")]
    pub upstream_idle: Within<1, 100_000>,
    /// After SIGTERM readiness goes off, and the router goes on accepting for this long, so that balancers notice.
    /// Default 1 ms: not at all.
    #[serde(default = "drain_delay")]
    pub drain_delay: HumanDuration,
    /// How long requests in flight may take after that. Default 30 s.
    #[serde(default = "drain_timeout")]
    pub drain_timeout: HumanDuration,
}

/// `[router.limits]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// TLS handshake, from accept. Default 10 s.
    pub handshake_timeout: HumanDuration,
    /// Request head, from its first byte. Default 20 s.
    pub header_timeout: HumanDuration,
    /// HTTP/2 preface. Default 10 s.
    pub preface_timeout: HumanDuration,
    /// A connection with no request. Default 75 s.
    pub idle_timeout: HumanDuration,
    /// Between two pieces of a request body. Default 30 s.
    pub body_timeout: HumanDuration,
    /// Writing a piece of a response to a client that does not read. Default 30 s.
    pub write_timeout: HumanDuration,
    /// Connections of one address (an IPv6 network of 64 bits counts as one). Default 2000.
    pub max_connections_per_address: Within<1, 1_000_000>,
    /// New connections of one address in a minute, and in one burst. Default 30,000.
    pub max_new_connections_per_address: Within<1, 100_000_000>,
    /// Connections in all. Default 50,000.
    pub max_connections: Within<1, 10_000_000>,
    /// Requests in flight in all. Beyond half of it, a tenant gets no more than its share. Default 20,000.
    pub max_in_flight: Within<2, 10_000_000>,
    /// A request body slower than this many bytes a second is cut off; 0 lets any pass. Default 100.
    pub min_body_rate: Within<0, 1_000_000>,
    /// Over how long that is measured. Default 10 s.
    pub body_rate_window: HumanDuration,
    /// Largest request body in bytes. Default 32 MiB.
    pub max_body_bytes: Within<1, 1_099_511_627_776>,
    /// An HTTP/2 request in which nothing moves for this long is reset: what a backend and a body may take together.
    #[serde(skip)]
    pub stall_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake_timeout: HumanDuration::from_secs(10),
            header_timeout: HumanDuration::from_secs(20),
            preface_timeout: HumanDuration::from_secs(10),
            idle_timeout: HumanDuration::from_secs(75),
            body_timeout: HumanDuration::from_secs(30),
            write_timeout: HumanDuration::from_secs(30),
            max_connections_per_address: Within::new(2000),
            max_new_connections_per_address: Within::new(30_000),
            max_connections: Within::new(50_000),
            max_in_flight: Within::new(20_000),
            min_body_rate: Within::new(100),
            body_rate_window: HumanDuration::from_secs(10),
            max_body_bytes: Within::new(32 << 20),
            stall_timeout: Duration::from_secs(65),
        }
    }
}

/// `[router.proxies]`: who may say that a connection or a request is somebody else's. Networks, like `"10.0.0.0/8"`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Proxies {
    /// Connections from here begin with a PROXY header, version 1 or 2, on both public listeners. Default: none.
    pub proxy_protocol_from: Vec<IpNet>,
    /// `X-Forwarded-For` of clients here is believed; its last address that is not one of these is the client's.
    /// Default: none.
    pub forwarded_from: Vec<IpNet>,
}

/// `[router.access_log]`: JSON lines, in files with the day in their names.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AccessLog {
    /// One file for all, like `/var/log/gmah/access.log` (of which `access-2026-11-22.log` is made).
    pub file: Option<PathBuf>,
    /// A folder with a file for each organisation.
    pub per_tenant: Option<PathBuf>,
    /// Which part of the requests that were served is written, from 0 to 1; those that failed all are. Default 1.
    pub sample: Part,
    /// Files of days before that are removed. Default 30.
    pub retention_days: Within<1, 3650>,
}

impl Default for AccessLog {
    fn default() -> Self {
        Self { file: None, per_tenant: None, sample: Part(1.0), retention_days: Within::new(30) }
    }
}

/// From 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Part(pub f64);

impl<'de> Deserialize<'de> for Part {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let part = f64::deserialize(d)?;
        if (0.0..=1.0).contains(&part) {
            Ok(Self(part))
        } else {
            Err(serde::de::Error::custom("must be from 0 to 1"))
        }
    }
}

/// `[router.shared_limits]`: a Redis or Valkey, as `redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE]`. An address with a
/// password does not stand in the configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharedLimits {
    /// The address, without a password.
    pub url: Option<String>,
    /// A file with the address.
    pub url_file: Option<PathBuf>,
    /// A variable with the address.
    pub url_env: Option<String>,
    /// The address, read.
    #[serde(skip)]
    pub address: Option<SecretString>,
}

impl Proxies {
    /// Whether connections from that address begin with a PROXY header.
    pub fn speaks_proxy_protocol(&self, peer: IpAddr) -> bool {
        contains(&self.proxy_protocol_from, peer)
    }

    /// Whether a peer may say whose request it is.
    pub fn may_forward(&self, peer: IpAddr) -> bool {
        contains(&self.forwarded_from, peer)
    }

    /// Whose request it is: `client` of the connection, or whom it names, if it may.
    pub fn client<'a>(
        &self,
        client: IpAddr,
        forwarded_for: impl DoubleEndedIterator<Item = &'a str>,
    ) -> IpAddr {
        let mut client = client;
        // From the end: what stands further left was written by whom stands further right.
        for part in forwarded_for.rev().flat_map(|v| v.rsplit(',')) {
            if !contains(&self.forwarded_from, client) {
                break;
            }
            let Ok(named) = part.trim().parse::<IpAddr>() else { break };
            client = named;
        }
        client
    }
}

fn contains(networks: &[IpNet], address: IpAddr) -> bool {
    let address = address.to_canonical();
    networks.iter().any(|n| n.contains(&address))
}

impl RouterConfig {
    /// Takes the section out of the file, with paths made absolute.
    ///
    /// # Errors
    /// [`ConfigError`] with the place of the first fault.
    pub fn from_file(file: &ConfigFile) -> Result<Self, ConfigError> {
        let mut config: Self = file.parse()?;
        config.router.check_routes().map_err(|(key, message)| file.at_key(&key, &message))?;
        for pool in config.router.pools.values_mut() {
            pool.ca_file = pool.ca_file.as_deref().map(|f| file.resolve(f));
        }
        if let Some(log) = &mut config.router.access_log {
            if log.file.is_none() && log.per_tenant.is_none() {
                return Err(file.at_key("router.access_log.file", "file, per_tenant or both"));
            }
            log.file = log.file.as_deref().map(|f| file.resolve(f));
            log.per_tenant = log.per_tenant.as_deref().map(|f| file.resolve(f));
        }
        if let Some(shared) = &mut config.router.shared_limits {
            let shared = shared.get_mut();
            let key = "router.shared_limits.url_file";
            let read = file.secret(key, shared.url_file.clone(), shared.url_env.clone())?;
            shared.address = match (&shared.url, read) {
                (Some(_), Some(_)) => {
                    return Err(file.at_key("router.shared_limits.url", "one of url, url_file and url_env"));
                }
                (Some(url), None) if url.contains('@') => {
                    return Err(file.at_key(
                        "router.shared_limits.url",
                        "a password does not stand here: use url_file or url_env",
                    ));
                }
                (Some(url), None) => Some(url.clone().into()),
                (None, Some(read)) => Some(read),
                (None, None) => {
                    return Err(file.at_key("router.shared_limits.url", "one of url, url_file and url_env"));
                }
            };
        }
        config.router.certificate_file = config.router.certificate_file.as_deref().map(|f| file.resolve(f));
        config.router.key_file = config.router.key_file.as_deref().map(|f| file.resolve(f));
        match (&config.router.certificate_file, &config.router.key_file) {
            (Some(_), Some(_)) => {}
            (None, None) if file.settings()?.acme.is_some_and(|a| a.wildcard.is_some()) => {}
            (None, None) => {
                let message =
                    "certificate_file and key_file are needed unless [acme.wildcard] orders a certificate";
                return Err(file.at_key("router.certificate_file", message));
            }
            _ => return Err(file.at_key("router.certificate_file", "goes with key_file, and that with it")),
        }
        if let Some(files) = config.router.certificate_files() {
            files.check().map_err(|e| file.at_key("router.certificate_file", &e.to_string()))?;
        }
        config.router.upgrade_socket = config.router.upgrade_socket.as_deref().map(|f| file.resolve(f));
        Ok(config)
    }
}

impl Router {
    /// The files of the base domain's certificate, if it comes from files.
    pub fn certificate_files(&self) -> Option<Files> {
        let (certificate, key) = (self.certificate_file.clone()?, self.key_file.clone()?);
        Some(Files { certificate, key })
    }

    /// What the types cannot say: key and fault.
    fn check_routes(&mut self) -> Result<(), (String, String)> {
        let fault = |key: String, message: &str| Err((key, message.to_owned()));
        let mut audiences = BTreeSet::new();
        for (name, pool) in &self.pools {
            let key = |k: &str| format!("router.pools.{name}.{k}");
            if pool.addresses.is_empty() {
                return fault(key("addresses"), "at least one backend is needed");
            }
            if !audiences.insert(pool.audience.clone().unwrap_or_else(|| format!("gmah-{name}"))) {
                return fault(
                    key("audience"),
                    "another pool has the same: a backend could replay to the other",
                );
            }
            let named = pool.addresses.iter().all(|t| matches!(t, Target::Name(..)));
            if pool.protocol.is_tls() && pool.server_name.is_none() && !named {
                return fault(key("server_name"), "needed over TLS where a backend is an address");
            }
            if pool.health.path.as_ref().is_some_and(|p| !p.starts_with('/')) {
                return fault(key("health.path"), "begins with /");
            }
        }
        if self.routes.is_empty() {
            match self.pools.keys().next() {
                Some(only) if self.pools.len() == 1 => {
                    self.routes.push(Rule { prefix: "/".into(), pool: only.clone() });
                }
                _ => return fault("router.routes".into(), "needed unless there is exactly one pool"),
            }
        }
        let mut prefixes = BTreeSet::new();
        for rule in &self.routes {
            if !rule.prefix.starts_with('/') || !prefixes.insert(rule.prefix.clone()) {
                return fault("router.routes.prefix".into(), "begins with /, and stands once");
            }
            if !self.pools.contains_key(&rule.pool) {
                return fault("router.routes.pool".into(), &format!("there is no pool {}", rule.pool));
            }
        }
        Ok(())
    }
}

fn certificate_poll() -> HumanDuration {
    HumanDuration::from_secs(2)
}

fn zero() -> Within<0, 1024> {
    Within::new(0)
}

fn hsts() -> HumanDuration {
    HumanDuration::from_secs(365 * 86_400)
}

fn drain_delay() -> HumanDuration {
    HumanDuration::from_millis(1)
}

fn drain_timeout() -> HumanDuration {
    HumanDuration::from_secs(30)
}

fn upstream_idle() -> Within<1, 100_000> {
    Within::new(256)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_proxies_may_name_the_client() {
        let proxies = Proxies {
            forwarded_from: vec![
                "10.0.0.0/8".parse().expect("network"),
                "2001:db8::/32".parse().expect("network"),
            ],
            ..Proxies::default()
        };
        let client = |peer: &str, fields: &[&str]| {
            proxies.client(peer.parse().expect("address"), fields.iter().copied()).to_string()
        };
        assert_eq!(client("192.0.2.1", &["198.51.100.9"]), "192.0.2.1", "a stranger's word");
        assert_eq!(client("10.0.0.1", &["198.51.100.9"]), "198.51.100.9");
        assert_eq!(client("::ffff:10.0.0.1", &["198.51.100.9"]), "198.51.100.9");
        assert_eq!(client("10.0.0.1", &["203.0.113.5, 198.51.100.9, 10.9.9.9"]), "198.51.100.9");
        assert_eq!(client("10.0.0.1", &["203.0.113.5", "198.51.100.9", "2001:db8::1"]), "198.51.100.9");
        assert_eq!(client("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(client("10.0.0.1", &["198.51.100.9, junk"]), "10.0.0.1");
        assert_eq!(client("10.0.0.1", &["10.0.0.2"]), "10.0.0.2");
    }
}
