//! `[router]`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use gmah_shared::config::{ConfigError, ConfigFile, HumanDuration, Listen, Within};
use serde::Deserialize;

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
    /// PEM file with the certificate chain for the base domain and its wildcard.
    pub certificate_file: PathBuf,
    /// PEM file with its key.
    pub key_file: PathBuf,
    /// How often the two files are looked at for changes. Default 2 s.
    #[serde(default = "certificate_poll")]
    pub certificate_poll: HumanDuration,
    /// Threads that serve, each with its own event loop; 0 means one per core. Default 0.
    #[serde(default = "zero")]
    pub workers: Within<0, 1024>,
    /// Bounds of clients.
    #[serde(default)]
    pub limits: Limits,
    /// Backends of the pool `api`.
    pub api: Upstream,
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
    /// Connections in all. Default 50,000.
    pub max_connections: Within<1, 10_000_000>,
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
            max_connections: Within::new(50_000),
            max_body_bytes: Within::new(32 << 20),
            stall_timeout: Duration::from_secs(65),
        }
    }
}

/// `[router.api]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    /// Addresses of the backends, at least one.
    pub addresses: Vec<SocketAddr>,
    /// Connecting. Default 1 s.
    #[serde(default = "connect_timeout")]
    pub connect_timeout: HumanDuration,
    /// First byte of the response, and between two pieces of it. Default 35 s: the api's own deadline and some.
    #[serde(default = "read_timeout")]
    pub read_timeout: HumanDuration,
    /// Writing a piece of the request. Default 30 s.
    #[serde(default = "write_timeout")]
    pub write_timeout: HumanDuration,
    /// An idle connection is kept for this long; shorter than the backend keeps it. Default 60 s.
    #[serde(default = "keepalive_timeout")]
    pub keepalive_timeout: HumanDuration,
    /// Idle connections kept per worker. Default 256.
    #[serde(default = "keepalive")]
    pub max_idle: Within<1, 100_000>,
    /// Attempts in all where nothing can run twice. Default 3.
    #[serde(default = "attempts")]
    pub attempts: Within<1, 10>,
}

impl RouterConfig {
    /// Takes the section out of the file, with paths made absolute.
    ///
    /// # Errors
    /// [`ConfigError`] with the place of the first fault.
    pub fn from_file(file: &ConfigFile) -> Result<Self, ConfigError> {
        let mut config: Self = file.parse()?;
        if config.router.api.addresses.is_empty() {
            return Err(file.at(0, "router.api.addresses", "at least one backend is needed"));
        }
        config.router.certificate_file = file.resolve(&config.router.certificate_file);
        config.router.key_file = file.resolve(&config.router.key_file);
        Ok(config)
    }
}

fn certificate_poll() -> HumanDuration {
    HumanDuration::from_secs(2)
}

fn zero() -> Within<0, 1024> {
    Within::new(0)
}

fn drain_delay() -> HumanDuration {
    HumanDuration::from_millis(1)
}

fn drain_timeout() -> HumanDuration {
    HumanDuration::from_secs(30)
}

fn connect_timeout() -> HumanDuration {
    HumanDuration::from_secs(1)
}

fn read_timeout() -> HumanDuration {
    HumanDuration::from_secs(35)
}

fn write_timeout() -> HumanDuration {
    HumanDuration::from_secs(30)
}

fn keepalive_timeout() -> HumanDuration {
    HumanDuration::from_secs(60)
}

fn keepalive() -> Within<1, 100_000> {
    Within::new(256)
}

fn attempts() -> Within<1, 10> {
    Within::new(3)
}
