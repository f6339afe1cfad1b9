//! Asking the DNS, within bounds: a deadline for each question, a limit to each answer.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{RData, RecordType};

use crate::config::DnsSettings;
use crate::hostname::Hostname;

/// A resolver. Cheap to clone.
#[derive(Clone)]
pub struct Dns {
    resolver: TokioResolver,
    timeout: Duration,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// The resolver cannot be made of this configuration.
    #[error("dns: {0}")]
    Setup(String),
    /// No answer in time.
    #[error("no answer in time")]
    Timeout,
    /// The name has no record of this kind.
    #[error("no such record")]
    NoRecords,
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

/// Records of an answer that are looked at.
const MAX_RECORDS: usize = 64;

impl Dns {
    /// A resolver that asks the configured servers, or those of the system.
    ///
    /// # Errors
    /// [`DnsError::Setup`].
    pub fn new(settings: &DnsSettings) -> Result<Self, DnsError> {
        let setup = |e: hickory_resolver::net::NetError| DnsError::Setup(e.to_string());
        let mut builder = if settings.servers.is_empty() {
            TokioResolver::builder_tokio().map_err(setup)?
        } else {
            let servers = settings.servers.iter().map(|s| server(*s)).collect();
            let config = ResolverConfig::from_parts(None, Vec::new(), servers);
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        };
        let options = builder.options_mut();
        options.timeout = *settings.timeout;
        options.attempts = 2;
        // Whoever asks, asks again when it wants to know again.
        options.cache_size = 0;
        // Fully qualified names only: no search list of this machine decides anything.
        options.ndots = 0;
        let resolver = builder.build().map_err(setup)?;
        Ok(Self { resolver, timeout: settings.timeout.saturating_mul(2) })
    }

    /// The addresses of a name, IPv4 and IPv6; also by the hosts file of the machine.
    ///
    /// # Errors
    /// [`DnsError`]; a name without any address is [`DnsError::NoRecords`].
    pub async fn addresses(&self, name: &Hostname) -> Result<Vec<IpAddr>, DnsError> {
        // Each by itself: that there is no IPv6 address says nothing of an IPv4 address that could not be asked for.
        let (four, six) = tokio::join!(
            self.within(self.resolver.lookup(absolute(name), RecordType::A)),
            self.within(self.resolver.lookup(absolute(name), RecordType::AAAA))
        );
        let mut addresses: Vec<IpAddr> = Vec::new();
        let mut failed = None;
        for found in [four, six] {
            match found {
                Ok(found) => {
                    addresses.extend(found.answers().iter().filter_map(|record| match &record.data {
                        RData::A(a) => Some(IpAddr::V4(a.0)),
                        RData::AAAA(a) => Some(IpAddr::V6(a.0)),
                        _ => None,
                    }))
                }
                Err(DnsError::NoRecords) => {}
                Err(e) => failed = Some(e),
            }
        }
        addresses.truncate(MAX_RECORDS);
        match (addresses.is_empty(), failed) {
            (false, _) => Ok(addresses),
            (true, Some(e)) => Err(e),
            (true, None) => Err(DnsError::NoRecords),
        }
    }

    /// The texts of a name's TXT records, each joined from its pieces.
    ///
    /// # Errors
    /// [`DnsError`].
    pub async fn texts(&self, name: &str) -> Result<Vec<String>, DnsError> {
        let found = self.within(self.resolver.lookup(format!("{name}."), RecordType::TXT)).await?;
        let texts = found.answers().iter().take(MAX_RECORDS).filter_map(|record| match &record.data {
            RData::TXT(txt) => Some(String::from_utf8_lossy(&txt.txt_data.concat()).into_owned()),
            _ => None,
        });
        Ok(texts.collect())
    }

    /// What a name is a CNAME to, without its final dot.
    ///
    /// # Errors
    /// [`DnsError::NoRecords`] where it is none.
    pub async fn alias(&self, name: &str) -> Result<String, DnsError> {
        let found = self.within(self.resolver.lookup(format!("{name}."), RecordType::CNAME)).await?;
        let alias = found.answers().iter().take(MAX_RECORDS).find_map(|record| match &record.data {
            RData::CNAME(target) => Some(target.to_string().trim_end_matches('.').to_owned()),
            _ => None,
        });
        alias.ok_or(DnsError::NoRecords)
    }

    /// Authorities that a name's CAA records allow (`issue`; RFC 8659, section 4.2). A record that allows none is an empty
    /// text; nothing where there are records and none of them is about issuing.
    ///
    /// # Errors
    /// [`DnsError::NoRecords`] where there is no such record at all.
    pub async fn issuers(&self, name: &str) -> Result<Vec<String>, DnsError> {
        let found = self.within(self.resolver.lookup(format!("{name}."), RecordType::CAA)).await?;
        let issuers = found.answers().iter().take(MAX_RECORDS).filter_map(|record| match &record.data {
            RData::CAA(caa) if caa.tag.eq_ignore_ascii_case("issue") => {
                let value = String::from_utf8_lossy(&caa.value).into_owned();
                Some(value.split(';').next().unwrap_or("").trim().to_owned())
            }
            _ => None,
        });
        Ok(issuers.collect())
    }

    async fn within<T>(
        &self,
        asked: impl Future<Output = Result<T, hickory_resolver::net::NetError>>,
    ) -> Result<T, DnsError> {
        match tokio::time::timeout(self.timeout, asked).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(e)) if e.is_no_records_found() => Err(DnsError::NoRecords),
            Ok(Err(e)) => Err(DnsError::Failed(e.to_string())),
            Err(_) => Err(DnsError::Timeout),
        }
    }
}

fn server(address: SocketAddr) -> NameServerConfig {
    let mut server = NameServerConfig::udp_and_tcp(address.ip());
    for connection in &mut server.connections {
        set_port(connection, address.port());
    }
    server
}

fn set_port(connection: &mut ConnectionConfig, port: u16) {
    connection.port = port;
}

/// With its final dot, so that it is looked up as it is.
fn absolute(name: &Hostname) -> String {
    format!("{name}.")
}
