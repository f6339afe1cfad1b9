//! Step 8: which backend, with which deadlines, and which failures may be tried again.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use pingora_core::upstreams::peer::HttpPeer;
use pingora_error::{Error, ErrorSource, ErrorType};

use crate::config::Upstream;
use crate::reject::Rejection;

/// The pool `api`: a list of addresses, used in turn.
pub struct Backends {
    peers: Vec<HttpPeer>,
    next: AtomicUsize,
    /// Attempts in all.
    pub attempts: usize,
}

impl Backends {
    /// The pool of a configuration.
    pub fn new(config: &Upstream) -> Self {
        let peers = config.addresses.iter().map(|a| peer(*a, config)).collect();
        Self { peers, next: AtomicUsize::new(0), attempts: config.attempts.get() }
    }

    /// The next backend; another one than the last for an attempt that follows a failure, where there is another.
    pub fn pick(&self) -> Box<HttpPeer> {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        Box::new(self.peers[n % self.peers.len()].clone())
    }
}

fn peer(address: SocketAddr, config: &Upstream) -> HttpPeer {
    // An address, never a name: the framework would resolve a name blocking.
    let mut peer = HttpPeer::new(address, false, String::new());
    peer.options.connection_timeout = Some(*config.connect_timeout);
    peer.options.total_connection_timeout = Some(*config.connect_timeout);
    peer.options.read_timeout = Some(*config.read_timeout);
    peer.options.write_timeout = Some(*config.write_timeout);
    peer.options.idle_timeout = Some(*config.keepalive_timeout);
    peer
}

/// Our own type of error: the api said that the token's generation is old.
pub const STALE: ErrorType = ErrorType::new("StaleGeneration");

/// Whether a failed attempt may be tried again: only if nothing of it can have run.
///
/// * the api refused a stale token, which it does before anything else: yes, for every method, if the body is at hand;
/// * a reused connection died before it answered: for idempotent methods only;
/// * anything else that happened after the connection stood: no.
pub fn may_retry(error: &Error, is_idempotent: bool, body_at_hand: bool, reused: bool) -> bool {
    if !body_at_hand {
        return false;
    }
    if error.etype == STALE {
        return true;
    }
    // `retry()` of an error on a reused connection is decided by the framework: the connection was dead already.
    is_idempotent && reused && error.esource() == &ErrorSource::Upstream && is_connection_loss(error.etype())
}

fn is_connection_loss(etype: &ErrorType) -> bool {
    matches!(
        etype,
        ErrorType::ConnectionClosed | ErrorType::ReadError | ErrorType::WriteError | ErrorType::ConnectError
    )
}

/// What the client is told of an error that ended a request.
pub fn rejection(error: &Error) -> Option<Rejection> {
    if error.etype == STALE {
        return Some(Rejection::StaleGeneration);
    }
    match (error.esource(), error.etype()) {
        (_, ErrorType::HTTPStatus(413)) => Some(Rejection::BodyTooLarge),
        (
            ErrorSource::Upstream,
            ErrorType::ConnectTimedout | ErrorType::ReadTimedout | ErrorType::WriteTimedout,
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

    #[test]
    fn r16_nothing_runs_twice() {
        let up = |e: ErrorType| {
            let mut error = Error::new(e);
            error.as_up();
            *error
        };
        let lost = up(ErrorType::ConnectionClosed);
        assert!(may_retry(&lost, true, true, true));
        assert!(!may_retry(&lost, false, true, true), "a POST may have run");
        assert!(!may_retry(&lost, true, true, false), "a fresh connection: the request was read");
        assert!(!may_retry(&lost, true, false, true), "the body is gone");
        assert!(!may_retry(&up(ErrorType::ReadTimedout), true, true, true), "it may still be running");
        assert!(may_retry(&up(STALE), false, true, false), "refused before anything ran");
        assert!(!may_retry(&up(STALE), false, false, false));
    }
}
