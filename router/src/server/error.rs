//! Why the role did not start.

use std::net::SocketAddr;
use std::path::PathBuf;

use gmah_shared::dns::DnsError;

use crate::certs::CertificateError;

/// Why the role did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on.
    #[error("{key} = {address}: {cause}")]
    Bind {
        /// Key of the configuration.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        cause: std::io::Error,
    },
    /// The certificate.
    #[error("{0}")]
    Certificate(#[from] CertificateError),
    /// The pool of the master.
    #[error("master pool: {0}")]
    Pool(#[from] deadpool_postgres::BuildError),
    /// A pool of backends.
    #[error("router.pools: {0}")]
    Pools(String),
    /// The Unix socket where a successor would come.
    #[error("router.upgrade_socket: {}: {cause}", path.display())]
    UpgradeSocket {
        /// Its path.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// A file or folder of the access log.
    #[error("router.access_log: {0}")]
    AccessLog(std::io::Error),
    /// The counters that routers share.
    #[error("router.shared_limits: {0}")]
    SharedLimits(String),
    /// The certificate authority.
    #[error("{0}")]
    Acme(String),
    /// The collector of traces.
    #[error("{0}")]
    Traces(String),
    /// The resolver of names.
    #[error("{0}")]
    Dns(#[from] DnsError),
    /// A metric.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// A worker's thread or event loop.
    #[error("worker: {0}")]
    Worker(std::io::Error),
}
