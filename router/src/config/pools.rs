//! `[router.pools.NAME]` and `[[router.routes]]`: where requests go.

use std::net::SocketAddr;
use std::path::PathBuf;

use gmah_shared::config::{HumanDuration, Within};
use gmah_shared::hostname::Hostname;
use serde::{Deserialize, Deserializer};

/// `[router.pools.NAME]`: backends that answer the same.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    /// Backends as `ADDRESS:PORT` or `NAME:PORT`, at least one. A name stands for all its addresses, and is resolved again
    /// every `resolve_every`.
    pub addresses: Vec<Target>,
    /// `aud` of the token that is sent here; each pool has its own, so that one backend cannot replay to another.
    /// Default: `gmah-NAME`.
    pub audience: Option<String>,
    /// How backends are spoken to. Default `http1`.
    #[serde(default)]
    pub protocol: Protocol,
    /// Over TLS: the name that is asked for and that the certificate must bear. Default: the name in `addresses`.
    pub server_name: Option<Hostname>,
    /// Over TLS: PEM file with the authorities that are believed. Default: those of the system.
    pub ca_file: Option<PathBuf>,
    /// Connecting. Default 1 s.
    #[serde(default = "connect_timeout")]
    pub connect_timeout: HumanDuration,
    /// First byte of the response, and between two pieces of it. Default 35 s: the api's own deadline and some.
    #[serde(default = "read_timeout")]
    pub read_timeout: HumanDuration,
    /// Writing a piece of the request. Default 30 s.
    #[serde(default = "write_timeout")]
    pub write_timeout: HumanDuration,
    /// The whole exchange, bodies included; WebSockets excepted. Default 1 h.
    #[serde(default = "total_timeout")]
    pub total_timeout: HumanDuration,
    /// A WebSocket on which nothing comes from one side for this long is closed. Default 5 min.
    #[serde(default = "websocket_idle_timeout")]
    pub websocket_idle_timeout: HumanDuration,
    /// An idle connection is kept for this long; shorter than the backend keeps it. Default 60 s.
    #[serde(default = "keepalive_timeout")]
    pub keepalive_timeout: HumanDuration,
    /// Streams of one HTTP/2 connection. Default 100.
    #[serde(default = "max_streams")]
    pub max_streams: Within<1, 10_000>,
    /// Attempts in all where nothing can run twice. Default 3.
    #[serde(default = "attempts")]
    pub attempts: Within<1, 10>,
    /// Further attempts as a share of requests, in percent, beside a first hundred. Default 20.
    #[serde(default = "retry_percent")]
    pub retry_percent: Within<0, 1000>,
    /// How often names are resolved. Default 5 s.
    #[serde(default = "resolve_every")]
    pub resolve_every: HumanDuration,
    /// A backend that comes (back) gets its full share only after this long. Default 10 s.
    #[serde(default = "slow_start")]
    pub slow_start: HumanDuration,
    /// Failures in a row after which a backend is left out for a while, unless half of the pool is already. Default 3.
    #[serde(default = "eject_after")]
    pub eject_after: Within<1, 1000>,
    /// For how long, the first time; doubled each time up to 32 times. Default 1 s.
    #[serde(default = "eject_for")]
    pub eject_for: HumanDuration,
    /// Asking backends how they are.
    #[serde(default)]
    pub health: Health,
}

/// `[router.pools.NAME.health]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Health {
    /// Path that answers 2xx when the backend is well, asked for over HTTP/1.1. Default: none, and a connection that
    /// stands is enough.
    pub path: Option<String>,
    /// Port that is asked, in clear, when it is not the backend's own.
    pub port: Option<Within<1, 65535>>,
    /// Between two questions. Default 2 s.
    pub interval: HumanDuration,
    /// Until an answer. Default 1 s.
    pub timeout: HumanDuration,
    /// Failures in a row until a backend is out. Default 3.
    pub fall: Within<1, 100>,
    /// Answers in a row until it is in again. Default 2.
    pub rise: Within<1, 100>,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            path: None,
            port: None,
            interval: HumanDuration::from_secs(2),
            timeout: HumanDuration::from_secs(1),
            fall: Within::new(3),
            rise: Within::new(2),
        }
    }
}

/// How backends are spoken to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1 in clear.
    #[default]
    Http1,
    /// HTTP/2 in clear, with prior knowledge (RFC 9113, section 3.3).
    H2c,
    /// HTTP/1.1 over TLS.
    Https,
    /// HTTP/2 over TLS, or HTTP/1.1 where the backend offers only that.
    H2,
}

impl Protocol {
    /// Whether over TLS.
    pub const fn is_tls(self) -> bool {
        matches!(self, Self::Https | Self::H2)
    }
}

/// A backend, as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Where it is.
    Address(SocketAddr),
    /// What it is called, and its port.
    Name(Hostname, u16),
}

impl From<SocketAddr> for Target {
    fn from(address: SocketAddr) -> Self {
        Self::Address(address)
    }
}

impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        let fault = || serde::de::Error::custom(format!("not ADDRESS:PORT or NAME:PORT: {text}"));
        let (name, port) = text.rsplit_once(':').ok_or_else(fault)?;
        let port = port.parse().ok().filter(|p| *p > 0).ok_or_else(fault)?;
        Ok(Self::Name(Hostname::parse(name).map_err(|_| fault())?, port))
    }
}

/// `[[router.routes]]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Paths that begin so. The longest wins. Compared byte for byte with the path as it came.
    pub prefix: String,
    /// The pool they go to.
    pub pool: String,
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

fn total_timeout() -> HumanDuration {
    HumanDuration::from_secs(3600)
}

fn websocket_idle_timeout() -> HumanDuration {
    HumanDuration::from_secs(300)
}

fn keepalive_timeout() -> HumanDuration {
    HumanDuration::from_secs(60)
}

fn max_streams() -> Within<1, 10_000> {
    Within::new(100)
}

fn attempts() -> Within<1, 10> {
    Within::new(3)
}

fn retry_percent() -> Within<0, 1000> {
    Within::new(20)
}

fn resolve_every() -> HumanDuration {
    HumanDuration::from_secs(5)
}

fn slow_start() -> HumanDuration {
    HumanDuration::from_secs(10)
}

fn eject_after() -> Within<1, 1000> {
    Within::new(3)
}

fn eject_for() -> HumanDuration {
    HumanDuration::from_secs(1)
}
