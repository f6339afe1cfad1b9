//! Step 8: which pool, which of its backends, with which deadlines, and which failures may be tried again.
//!
//! A path belongs to the rule with the longest prefix; an organisation with backends of its own has another pool in that
//! one's place. Backends are asked how they are (`health`), left out when requests to them fail ([`endpoint`]), found
//! again when their names move, and picked by how busy they are ([`pool`]).

pub mod endpoint;
mod health;
pub mod pool;

use std::collections::BTreeMap;
use std::sync::Arc;

use gmah_shared::catalog::PoolOverrides;
use gmah_shared::dns::Dns;
use gmah_shared::tasks::Tasks;
use pingora_error::{Error, ErrorSource, ErrorType};
use prometheus::HistogramVec;

use crate::config::{Router, Target};
use crate::reject::Rejection;

pub use endpoint::Lease;
pub use pool::Pool;

/// All pools, and which paths go where.
pub struct Pools {
    by_name: BTreeMap<Box<str>, Arc<Pool>>,
    /// Longest prefix first.
    rules: Vec<(Box<str>, Arc<Pool>)>,
}

impl Pools {
    /// The pools of a configuration, whose rules have been checked.
    ///
    /// # Errors
    /// When a file with authorities cannot be read.
    pub fn new(config: &Router, seconds: &HistogramVec) -> Result<Self, String> {
        let mut by_name = BTreeMap::new();
        for (name, pool) in &config.pools {
            let pool = Pool::new(name, pool.clone(), seconds.with_label_values(&[name]))?;
            by_name.insert(Box::<str>::from(name.as_str()), Arc::new(pool));
        }
        let mut rules: Vec<(Box<str>, Arc<Pool>)> = config
            .routes
            .iter()
            .filter_map(|r| Some((r.prefix.as_str().into(), by_name.get(r.pool.as_str())?.clone())))
            .collect();
        rules.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        Ok(Self { by_name, rules })
    }

    /// The pool of a path, for an organisation that may have its own.
    ///
    /// # Errors
    /// [`Rejection::NoRoute`] where no rule fits; [`Rejection::NoBackend`] where its own is not configured here: an organisation
    /// with dedicated backends is not served by shared ones.
    pub fn of(&self, path: &str, own: Option<&PoolOverrides>) -> Result<Arc<Pool>, Rejection> {
        let rule = self.rules.iter().find(|(prefix, _)| path.starts_with(&**prefix));
        let (_, pool) = rule.ok_or(Rejection::NoRoute)?;
        match own.and_then(|o| o.instead_of(&pool.name)) {
            Some(name) => self.by_name.get(name).cloned().ok_or(Rejection::NoBackend),
            None => Ok(pool.clone()),
        }
    }

    /// The pool of that name.
    pub fn named(&self, name: &str) -> Option<Arc<Pool>> {
        self.by_name.get(name).cloned()
    }

    /// No pool at all.
    pub fn none() -> Self {
        Self { by_name: BTreeMap::new(), rules: Vec::new() }
    }

    /// Finds the backends that are given by name, once.
    ///
    /// # Errors
    /// Which name of which pool cannot be resolved.
    pub async fn resolve(&self, dns: &Dns) -> Result<(), String> {
        for pool in self.all() {
            let mut known = Vec::new();
            health::resolve(pool, dns, &mut known)
                .await
                .map_err(|(name, e)| format!("{}: {name}: {e}", pool.name))?;
        }
        Ok(())
    }

    /// Every pool.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Pool>> {
        self.by_name.values()
    }

    /// Starts what keeps the pools up to date; it ends with `tasks`.
    pub fn watch(&self, dns: &Dns, tasks: &Tasks) {
        for pool in self.all() {
            tasks.spawn_forever("backend-health", health::watch(pool.clone()));
            if pool.config.addresses.iter().any(|t| matches!(t, Target::Name(..))) {
                tasks.spawn_forever("backend-discovery", health::discover(pool.clone(), dns.clone()));
            }
        }
    }
}

/// Our own type of error: the api said that the token's generation is old.
pub const STALE: ErrorType = ErrorType::new("StaleGeneration");
/// No backend of the pool is well.
pub const NO_BACKEND: ErrorType = ErrorType::new("NoBackend");
/// The exchange took longer than the pool allows.
pub const TOO_LONG: ErrorType = ErrorType::new("TotalTimeout");

/// What is known of an attempt that failed.
#[derive(Debug, Clone, Copy)]
pub struct Attempt<'a> {
    /// The method of the request.
    pub method: &'a http::Method,
    /// All that was read of the body can be sent again.
    pub body_at_hand: bool,
    /// The connection had served before.
    pub reused: bool,
}

/// Whether a response has no body, by its head (RFC 9112, section 6.3).
pub fn is_bodyless(method: &http::Method, response: &pingora_http::ResponseHeader) -> bool {
    // What comes before the answer itself (section 15.2 of RFC 9110) ends nothing.
    if response.status.is_informational() {
        return false;
    }
    method == http::Method::HEAD
        || matches!(response.status.as_u16(), 204 | 304)
        || response.headers.get(http::header::CONTENT_LENGTH).is_some_and(|v| v.as_bytes() == b"0")
}

/// Whether a failed attempt may be tried again: only if nothing can run twice.
///
/// * the api refused a stale token, or an HTTP/2 backend a stream that it had not begun: yes, for every method;
/// * the connection was lost before an answer: for safe methods, which change nothing (RFC 9110, section 9.2.1), and for
///   idempotent ones on a reused connection, which was most likely dead already;
/// * anything else that happened after the connection stood: no.
pub fn may_retry(error: &Error, attempt: Attempt<'_>) -> bool {
    if !attempt.body_at_hand {
        return false;
    }
    if error.etype == STALE || is_refused_stream(error) {
        return true;
    }
    let repeatable = attempt.method.is_safe() || (attempt.reused && attempt.method.is_idempotent());
    repeatable && error.esource() == &ErrorSource::Upstream && is_connection_loss(error.etype())
}

/// A stream that the backend says it has not processed (RFC 9113, section 8.7), by its code or by a GOAWAY.
fn is_refused_stream(error: &Error) -> bool {
    let h2 = error.root_cause().downcast_ref::<h2::Error>();
    h2.is_some_and(|e| e.is_remote() && e.is_reset() && e.reason() == Some(h2::Reason::REFUSED_STREAM))
}

/// Whether the backend is at fault in a failure, and not the client nor the request.
pub fn is_backends_fault(error: &Error, reused: bool) -> bool {
    error.esource() == &ErrorSource::Upstream
        && match error.etype() {
            ErrorType::ConnectTimedout
            | ErrorType::ConnectRefused
            | ErrorType::ConnectNoRoute
            | ErrorType::ConnectError
            | ErrorType::TLSHandshakeFailure
            | ErrorType::TLSHandshakeTimedout
            | ErrorType::InvalidCert
            | ErrorType::ReadTimedout => true,
            // A backend closes idle connections when it likes.
            other => is_connection_loss(other) && !reused,
        }
}

fn is_connection_loss(etype: &ErrorType) -> bool {
    matches!(
        etype,
        ErrorType::ConnectionClosed
            | ErrorType::ReadError
            | ErrorType::WriteError
            | ErrorType::ConnectError
            | ErrorType::H2Error
    )
}

/// What the client is told of an error that ended a request.
pub fn rejection(error: &Error) -> Option<Rejection> {
    if error.etype == STALE {
        return Some(Rejection::StaleGeneration);
    }
    if error.etype == NO_BACKEND {
        return Some(Rejection::NoBackend);
    }
    if error.etype == TOO_LONG {
        return Some(Rejection::GatewayTimeout);
    }
    match (error.esource(), error.etype()) {
        (_, ErrorType::HTTPStatus(413)) => Some(Rejection::BodyTooLarge),
        (
            ErrorSource::Upstream,
            ErrorType::ConnectTimedout
            | ErrorType::TLSHandshakeTimedout
            | ErrorType::ReadTimedout
            | ErrorType::WriteTimedout,
        ) => Some(Rejection::GatewayTimeout),
        (ErrorSource::Upstream, _) => Some(Rejection::BadGateway),
        // The client is gone, or has cancelled, or sent the next request before this one was answered (which ends the
        // connection, and says nothing about a request that may well have run).
        (
            ErrorSource::Downstream,
            ErrorType::WriteError
            | ErrorType::ReadError
            | ErrorType::ConnectionClosed
            | ErrorType::WriteTimedout
            | ErrorType::H2Error
            | ErrorType::ConnectError,
        ) => None,
        (ErrorSource::Downstream, ErrorType::ReadTimedout) => Some(Rejection::RequestTimeout),
        (ErrorSource::Downstream, _) => Some(Rejection::Malformed),
        (ErrorSource::Internal | ErrorSource::Unset, _) => Some(Rejection::Internal),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;

    #[test]
    fn r16_nothing_runs_twice() {
        let up = |e: ErrorType| {
            let mut error = Error::new(e);
            error.as_up();
            *error
        };
        let attempt = |method, body_at_hand, reused| Attempt { method, body_at_hand, reused };
        let lost = up(ErrorType::ConnectionClosed);
        assert!(may_retry(&lost, attempt(&Method::GET, true, true)));
        assert!(may_retry(&lost, attempt(&Method::GET, true, false)), "a GET changes nothing");
        assert!(may_retry(&lost, attempt(&Method::DELETE, true, true)));
        assert!(!may_retry(&lost, attempt(&Method::DELETE, true, false)), "a fresh connection: it was read");
        for reused in [true, false] {
            assert!(!may_retry(&lost, attempt(&Method::POST, true, reused)), "a POST may have run");
            assert!(!may_retry(&lost, attempt(&Method::PATCH, true, reused)));
        }
        assert!(!may_retry(&lost, attempt(&Method::GET, false, true)), "the body is gone");
        let late = up(ErrorType::ReadTimedout);
        assert!(!may_retry(&late, attempt(&Method::GET, true, true)), "it may still be running");
        assert!(may_retry(&up(STALE), attempt(&Method::POST, true, false)), "refused before anything ran");
        assert!(!may_retry(&up(STALE), attempt(&Method::POST, false, false)));
        let refused =
            Error::because(ErrorType::H2Error, "stream", h2::Error::from(h2::Reason::REFUSED_STREAM));
        assert!(!may_retry(&refused, attempt(&Method::POST, true, true)), "our own reset says nothing");
    }
}
