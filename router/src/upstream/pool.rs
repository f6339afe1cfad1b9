//! A pool: which of its backends a request goes to, and whether it may be tried again.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use pingora_core::protocols::ALPN;
use pingora_core::protocols::tls::CaType;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::utils::tls::{WrappedX509, parse_x509};
use prometheus::Histogram;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use super::endpoint::{Endpoint, Lease};
use crate::config::{self, Protocol, Target};

/// Backends that answer the same.
pub struct Pool {
    /// Its name in the configuration.
    pub name: Box<str>,
    /// `aud` of tokens that are sent to it.
    pub audience: Box<str>,
    /// Its configuration.
    pub config: config::Pool,
    /// Time to answer.
    pub seconds: Histogram,
    endpoints: ArcSwap<Vec<Arc<Endpoint>>>,
    ca: Option<Arc<CaType>>,
    budget: RetryBudget,
    start: Instant,
}

impl Pool {
    /// A pool with those of its backends that are given by address; names are resolved in the background.
    ///
    /// # Errors
    /// When the file with authorities cannot be read.
    pub fn new(name: &str, config: config::Pool, seconds: Histogram) -> Result<Self, String> {
        let ca = config.ca_file.as_deref().map(authorities).transpose()?;
        let pool = Self {
            name: name.into(),
            audience: config.audience.clone().unwrap_or_else(|| format!("gmah-{name}")).into(),
            budget: RetryBudget::new(config.retry_percent.get()),
            endpoints: ArcSwap::default(),
            ca,
            start: Instant::now(),
            seconds,
            config,
        };
        let fixed = pool.config.addresses.iter().filter_map(|t| match t {
            Target::Address(address) => Some((*address, None)),
            Target::Name(..) => None,
        });
        pool.set_endpoints(&fixed.collect::<Vec<_>>());
        Ok(pool)
    }

    /// Replaces the backends. Those that stay keep what is known of them.
    pub fn set_endpoints(&self, wanted: &[(SocketAddr, Option<&str>)]) {
        let old = self.endpoints.load();
        let made = wanted.iter().map(|(address, name)| {
            let known = old.iter().find(|e| e.address == *address);
            known.cloned().unwrap_or_else(|| {
                let peer = self.peer(*address, *name);
                Arc::new(Endpoint::new(*address, peer, self.start, !old.is_empty()))
            })
        });
        self.endpoints.store(Arc::new(made.collect()));
    }

    /// All backends.
    pub fn endpoints(&self) -> Arc<Vec<Arc<Endpoint>>> {
        self.endpoints.load_full()
    }

    /// The less busy of two that are picked at random among those that are well; `avoid` only where there is no other.
    /// Nothing where none is well.
    pub fn pick(&self, avoid: Option<SocketAddr>) -> Option<Lease> {
        let all = self.endpoints.load();
        if let [only] = &all[..] {
            return (!only.is_down()).then(|| only.lease());
        }
        let n = all.len();
        if n == 0 {
            return None;
        }
        let well = |e: &&Arc<Endpoint>| e.is_available() && Some(e.address) != avoid;
        // From a random place on, so that a run of sick ones burdens no neighbour more than the others.
        let at = rand::random_range(0..n);
        let mut healthy = all[at..].iter().chain(&all[..at]).filter(well);
        let Some(first) = healthy.next() else {
            // Left out because requests failed is better than nothing; out by what it was asked is not.
            let left = all.iter().find(|e| e.is_available()).or_else(|| all.iter().find(|e| !e.is_down()));
            return left.map(Endpoint::lease);
        };
        let rest = healthy.clone().count();
        if rest == 0 {
            return Some(first.lease());
        }
        let second = healthy.nth(rand::random_range(0..rest)).unwrap_or(first);
        let slow_start = *self.config.slow_start;
        let (a, b) = (first.share(slow_start), second.share(slow_start));
        let chosen = if a < 1.0 || b < 1.0 {
            // By share: counting requests would give an idle newcomer half of everything at once.
            if rand::random_range(0.0..a + b) < a { first } else { second }
        } else if first.in_flight() <= second.in_flight() {
            first
        } else {
            second
        };
        Some(chosen.lease())
    }

    /// A request failed at a backend: after some in a row it is left out, unless half of the pool is already.
    pub fn failed(&self, endpoint: &Endpoint) {
        let eject_after = u32::try_from(self.config.eject_after.get()).unwrap_or(u32::MAX);
        if !endpoint.failed(eject_after) {
            return;
        }
        let all = self.endpoints.load();
        let out = all.iter().filter(|e| !e.is_available()).count();
        if (out + 1) * 2 <= all.len() {
            endpoint.eject(*self.config.eject_for);
            tracing::warn!(pool = %self.name, backend = %endpoint.address, "backend left out for a while");
        }
    }

    /// Whether one more attempt may be made; counts it.
    pub fn may_retry(&self, attempts: usize) -> bool {
        attempts < self.config.attempts.get() && self.budget.take()
    }

    /// A request begins: it earns a part of a further attempt.
    pub fn began(&self) {
        self.budget.earn();
    }

    fn peer(&self, address: SocketAddr, name: Option<&str>) -> HttpPeer {
        let c = &self.config;
        let sni = c.server_name.as_ref().map_or(name.unwrap_or(""), |n| n.as_str());
        // An address, never a name: the framework would resolve a name blocking.
        let mut peer = HttpPeer::new(address, c.protocol.is_tls(), sni.to_owned());
        peer.options.connection_timeout = Some(*c.connect_timeout);
        peer.options.total_connection_timeout = Some(*c.connect_timeout);
        peer.options.read_timeout = Some(*c.read_timeout);
        peer.options.write_timeout = Some(*c.write_timeout);
        peer.options.idle_timeout = Some(*c.keepalive_timeout);
        peer.options.max_h2_streams = c.max_streams.get();
        peer.options.alpn = match c.protocol {
            Protocol::Http1 | Protocol::Https => ALPN::H1,
            Protocol::H2c => ALPN::H2,
            Protocol::H2 => ALPN::H2H1,
        };
        peer.options.ca = self.ca.clone();
        peer
    }
}

fn authorities(file: &std::path::Path) -> Result<Arc<CaType>, String> {
    let fault = |e: &dyn std::fmt::Display| format!("{}: {e}", file.display());
    let certificates: Vec<CertificateDer<'static>> =
        CertificateDer::pem_file_iter(file).and_then(Iterator::collect).map_err(|e| fault(&e))?;
    if certificates.is_empty() {
        return Err(fault(&"no certificate in it"));
    }
    // The framework's parser panics on what is no certificate.
    for certificate in &certificates {
        use x509_parser::prelude::FromDer as _;
        x509_parser::certificate::X509Certificate::from_der(certificate).map_err(|e| fault(&e))?;
    }
    Ok(certificates.iter().map(|c| WrappedX509::new(c.to_vec(), parse_x509)).collect())
}

/// Further attempts are a share of requests, so that a pool in trouble is not asked several times as much.
struct RetryBudget {
    /// In hundredths of an attempt.
    saved: AtomicI64,
    percent: i64,
}

/// What may be saved up, and is there at the beginning: a hundred attempts.
const SAVINGS: i64 = 100 * 100;

impl RetryBudget {
    fn new(percent: usize) -> Self {
        Self { saved: AtomicI64::new(SAVINGS), percent: i64::try_from(percent).unwrap_or(i64::MAX) }
    }

    fn earn(&self) {
        // Most of the time it is full, and nothing is written.
        if self.saved.load(Ordering::Relaxed) < SAVINGS {
            self.saved.fetch_add(self.percent, Ordering::Relaxed);
        }
    }

    fn take(&self) -> bool {
        let take = |saved: i64| (saved >= 100).then_some(saved - 100);
        self.saved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}

/// Until when a request must be over.
pub fn deadline(pool: &Pool, began: Instant) -> Option<Instant> {
    began.checked_add(*pool.config.total_timeout)
}

/// How long an exchange that began then may still wait for its backend.
pub fn remaining(deadline: Option<Instant>) -> Option<Duration> {
    deadline.map(|d| d.saturating_duration_since(Instant::now()))
}

#[cfg(test)]
mod tests;
