//! What is known of a request so far, filled step by step.

use std::net::IpAddr;
use std::sync::Arc;
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
            bytes_in: 0,
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
