//! What is known of a request so far, filled step by step.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use gmah_shared::catalog::Hit;
use gmah_shared::hostname::Hostname;
use http::HeaderValue;

use crate::metrics::TenantSeries;
use crate::reject::Rejection;
use crate::resolve::{Name, Route};

/// What the listener knows of a connection; every request on it can ask.
#[derive(Debug)]
pub struct ConnectionInfo {
    /// The client's address.
    pub client: IpAddr,
    /// Names of the certificate that was served; none on the plain port.
    pub certificate_names: Option<Arc<[String]>>,
}

/// A mark that moves whenever a body does. HTTP/2 bodies have no deadline in the framework, so [`crate::connection`]
/// watches it.
#[derive(Debug, Clone, Default)]
pub struct Progress(Arc<AtomicU64>);

impl Progress {
    /// Something moved.
    pub fn moved(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Differs from an earlier value if something moved since.
    pub fn mark(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One request.
pub struct RequestCtx {
    /// When its head was complete.
    pub began: Instant,
    /// For the client, the backend and the log.
    pub request_id: String,
    /// The client's address.
    pub client: Option<IpAddr>,
    /// Whether it came over TLS.
    pub is_tls: bool,
    /// The normalised authority.
    pub host: Option<Hostname>,
    /// How the tenant was asked for.
    pub name: Option<Name>,
    /// The tenant and what goes with it.
    pub route: Option<Hit<Route>>,
    /// The token that is attached to every attempt.
    pub token: Option<HeaderValue>,
    /// Series of the tenant, or of those that are nobody's.
    pub series: Option<Arc<TenantSeries>>,
    /// On a neutral host cookies stop here, both ways.
    pub is_neutral: bool,
    /// The refusal, if the edge answers by itself.
    pub rejection: Option<Rejection>,
    /// Attempts at a backend so far.
    pub attempts: usize,
    /// Set when the api said that the token's generation is old; then the host is resolved anew, once.
    pub stale: bool,
    /// Whether that has happened already.
    pub was_stale: bool,
    /// Moves with the bodies, on HTTP/2.
    pub progress: Option<Progress>,
    /// Body bytes received.
    pub bytes_in: u64,
}

impl RequestCtx {
    /// Nothing is known yet.
    pub fn new() -> Self {
        Self {
            began: Instant::now(),
            request_id: new_request_id(),
            client: None,
            is_tls: true,
            host: None,
            name: None,
            route: None,
            token: None,
            series: None,
            is_neutral: false,
            rejection: None,
            attempts: 0,
            stale: false,
            was_stale: false,
            progress: None,
            bytes_in: 0,
        }
    }
}

impl RequestCtx {
    /// A body moved.
    pub fn moved(&self) {
        if let Some(progress) = &self.progress {
            progress.moved();
        }
    }
}

impl Default for RequestCtx {
    fn default() -> Self {
        Self::new()
    }
}

/// A random id (UUID version 4) as text, from the thread's generator: an id is no secret.
pub fn new_request_id() -> String {
    uuid::Builder::from_random_bytes(rand::random()).into_uuid().hyphenated().to_string()
}
