//! `[dns]`, `[domains]` and `[acme]`: customers' own names and their certificates.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use secrecy::SecretString;
use serde::Deserialize;

use super::{HumanDuration, Within};
use crate::hostname::Hostname;

/// `[dns]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DnsSettings {
    /// Recursive servers, as `ADDRESS:PORT`. Default: those of the system.
    pub servers: Vec<SocketAddr>,
    /// Until a server answers; two attempts are made. Default 2 s.
    pub timeout: HumanDuration,
}

impl Default for DnsSettings {
    fn default() -> Self {
        Self { servers: Vec::new(), timeout: HumanDuration::from_secs(2) }
    }
}

/// `[domains]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DomainSettings {
    /// Customers point their names at `RANDOM.target_base`, which resolves to the routers. Default: `edge.BASE`.
    pub target_base: Option<Hostname>,
    /// Addresses of the routers, for names that cannot be a CNAME because they are the top of a zone. Default: those that
    /// the target resolves to.
    pub addresses: Vec<IpAddr>,
    /// Lets names resolve to private and loopback addresses. For tests. Default false.
    pub allow_private: bool,
    /// First pause between two checks of a name that is not verified yet; doubled up to 6 h. Default 1 min.
    pub retry_after: HumanDuration,
    /// A name that is not verified by then has failed. Default 7 days.
    pub give_up_after: HumanDuration,
    /// How often a name that is served is checked again. Default 1 h.
    pub recheck_every: HumanDuration,
    /// So many checks in a row must find a name gone before it counts as moved. Default 3.
    pub moved_after: Within<1, 1000>,
    /// A name that has moved is served for so long all the same. Default 3 days.
    pub grace: HumanDuration,
}

impl Default for DomainSettings {
    fn default() -> Self {
        let days = |n: u64| HumanDuration::from_secs(n * 86_400);
        Self {
            target_base: None,
            addresses: Vec::new(),
            allow_private: false,
            retry_after: HumanDuration::from_secs(60),
            give_up_after: days(7),
            recheck_every: HumanDuration::from_secs(3600),
            moved_after: Within::new(3),
            grace: days(3),
        }
    }
}

/// `[acme]`: where certificates for customers' names come from (RFC 8555). Without it there are none but those in files.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AcmeSettings {
    /// Address of the directory.
    pub directory: String,
    /// Addresses that the authority may write to, as `mailto:…`.
    #[serde(default)]
    pub contact: Vec<String>,
    /// PEM file with the authority that signed the directory's own certificate. Default: those of the system.
    pub ca_file: Option<PathBuf>,
    /// How a name is proven. Default `http-01`.
    #[serde(default)]
    pub challenge: Challenge,
    /// How the authority is called in CAA records (RFC 8659). Default: CAA is left to the authority.
    #[serde(default)]
    pub caa_identities: Vec<String>,
    /// Key id of an external account (RFC 8555, section 7.3.4).
    pub eab_kid: Option<String>,
    /// File with its key, in base64url.
    pub eab_key_file: Option<PathBuf>,
    /// Variable with its key.
    pub eab_key_env: Option<String>,
    /// The key, read.
    #[serde(skip)]
    pub eab_key: Option<SecretString>,
    /// Orders in an hour, of all routers together. Default 100.
    #[serde(default = "orders")]
    pub max_orders_per_hour: Within<1, 100_000>,
    /// A certificate is renewed when this part of its life, in percent, is over. Default 66.
    #[serde(default = "renew")]
    pub renew_percent: Within<10, 95>,
    /// How often routers look for names that need a certificate; a notice wakes them as well. Default 10 s.
    #[serde(default = "poll")]
    pub poll: HumanDuration,
    /// First pause after an order that failed; doubled up to 12 h. Default 1 min.
    #[serde(default = "retry")]
    pub retry_after: HumanDuration,
    /// Between making a proof and asking the authority to look, for other routers to hear of it. Default 1 s.
    #[serde(default = "propagation")]
    pub propagation: HumanDuration,
    /// Orders the certificate of the base domain and its wildcard as well.
    pub wildcard: Option<Wildcard>,
}

/// `[acme.wildcard]`: the certificate for `BASE` and `*.BASE`, proven by a record in the DNS (RFC 8555, section 8.4), which
/// a program of the operator's makes.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wildcard {
    /// The program and its first arguments, run without a shell. `present NAME. VALUE` is appended to add a TXT record
    /// beside those that are there, `cleanup NAME. VALUE` to take it away again.
    pub hook: Vec<String>,
    /// Variables that it gets of this process's; nothing but these and `PATH`. Default: none.
    #[serde(default)]
    pub hook_env: Vec<String>,
    /// Deadline of one run. Default 1 min.
    #[serde(default = "hook_timeout")]
    pub hook_timeout: HumanDuration,
    /// After the records were made, before the DNS is first asked for them. Default 10 s.
    #[serde(default = "settle")]
    pub settle: HumanDuration,
    /// How long the records may take until the DNS has them; then the order goes on all the same. Default 2 min.
    #[serde(default = "propagation_timeout")]
    pub propagation_timeout: HumanDuration,
}

/// How a name is proven to the authority.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum Challenge {
    /// A file on the plain port (RFC 8555, section 8.3).
    #[default]
    #[serde(rename = "http-01")]
    Http01,
    /// A certificate of its own on the TLS port (RFC 8737).
    #[serde(rename = "tls-alpn-01")]
    TlsAlpn01,
}

impl Challenge {
    /// As in the master.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http01 => "http-01",
            Self::TlsAlpn01 => "tls-alpn-01",
        }
    }
}

fn orders() -> Within<1, 100_000> {
    Within::new(100)
}

fn renew() -> Within<10, 95> {
    Within::new(66)
}

fn poll() -> HumanDuration {
    HumanDuration::from_secs(10)
}

fn retry() -> HumanDuration {
    HumanDuration::from_secs(60)
}

fn propagation() -> HumanDuration {
    HumanDuration::from_secs(1)
}

fn hook_timeout() -> HumanDuration {
    HumanDuration::from_secs(60)
}

fn settle() -> HumanDuration {
    HumanDuration::from_secs(10)
}

fn propagation_timeout() -> HumanDuration {
    HumanDuration::from_secs(120)
}
