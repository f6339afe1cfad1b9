//! Asking backends how they are, and finding out where they are.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use gmah_shared::dns::{Dns, DnsError};
use gmah_shared::hostname::Hostname;
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::endpoint::Endpoint;
use super::pool::Pool;
use crate::config::Target;

/// Asks all backends of a pool, again and again.
pub(super) async fn watch(pool: Arc<Pool>) -> std::convert::Infallible {
    let health = &pool.config.health;
    // By address: what was said in a row, good (positive) or bad (negative).
    let mut runs: std::collections::HashMap<SocketAddr, i64> = std::collections::HashMap::new();
    loop {
        let endpoints = pool.endpoints();
        runs.retain(|address, _| endpoints.iter().any(|e| e.address == *address));
        let asked = endpoints.iter().map(|e| ask(&pool, e));
        for (endpoint, is_well) in endpoints.iter().zip(futures::future::join_all(asked).await) {
            let run = runs.entry(endpoint.address).or_default();
            *run = if is_well { (*run).max(0) + 1 } else { (*run).min(0) - 1 };
            if endpoint.is_down() && *run >= health.rise.get() as i64 {
                tracing::info!(pool = %pool.name, backend = %endpoint.address, "backend is up");
                endpoint.set_up();
            } else if !endpoint.is_down() && *run <= -(health.fall.get() as i64) {
                tracing::warn!(pool = %pool.name, backend = %endpoint.address, "backend is down");
                endpoint.set_down();
            }
        }
        // One that is out is asked more often: that it is back should not take long to be seen.
        let pause = if endpoints.iter().any(|e| e.is_down()) {
            (*health.interval).min(WHILE_DOWN)
        } else {
            *health.interval
        };
        // Not all routers at once.
        tokio::time::sleep(pause.mul_f64(rand::random_range(0.8..1.2))).await;
    }
}

const WHILE_DOWN: Duration = Duration::from_millis(500);

async fn ask(pool: &Pool, endpoint: &Endpoint) -> bool {
    let health = &pool.config.health;
    let mut address = endpoint.address;
    if let Some(port) = health.port {
        address.set_port(u16::try_from(port.get()).unwrap_or(0));
    }
    let asked = async {
        let stream = TcpStream::connect(address).await.ok()?;
        match &health.path {
            // Over TLS a path can be asked for only on a port of its own; a connection that stands is what is left.
            Some(path) if health.port.is_some() || !pool.config.protocol.is_tls() => {
                get(stream, address, path).await
            }
            _ => Some(()),
        }
    };
    tokio::time::timeout(*health.timeout, asked).await.is_ok_and(|a| a.is_some())
}

/// Whether a path answers 2xx.
async fn get(stream: TcpStream, address: SocketAddr, path: &str) -> Option<()> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
    let request = http::Request::get(path)
        .header(http::header::HOST, address.to_string())
        .header(http::header::USER_AGENT, "gmah-router")
        .body(Empty::<Bytes>::new())
        .ok()?;
    let mut answer = std::pin::pin!(sender.send_request(request));
    let answer = tokio::select! {
        answer = &mut answer => answer,
        // Where the backend closes it, the connection ends with its answer: whether there was one, the answer knows.
        _ = connection => answer.now_or_never()?,
    };
    answer.ok()?.status().is_success().then_some(())
}

/// Resolves the names of a pool, again and again. What cannot be resolved stays where it was.
pub(super) async fn discover(pool: Arc<Pool>, dns: Dns) -> std::convert::Infallible {
    let mut known = Vec::new();
    loop {
        let every = *pool.config.resolve_every;
        let pause = match resolve(&pool, &dns, &mut known).await {
            Ok(()) => every,
            Err((name, e)) => {
                tracing::warn!(pool = %pool.name, name = %name, error = %e, "backend not resolved");
                every.min(Duration::from_secs(1))
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Resolves the names of a pool once. `known` is what they were before, by their place in the configuration; the last
/// name that could not be resolved is the error, and the others are taken all the same.
pub(super) async fn resolve(
    pool: &Pool,
    dns: &Dns,
    known: &mut Vec<Vec<SocketAddr>>,
) -> Result<(), (Hostname, DnsError)> {
    known.resize(pool.config.addresses.len(), Vec::new());
    let mut wanted: Vec<(SocketAddr, Option<&str>)> = Vec::new();
    let mut failed = None;
    for (target, known) in pool.config.addresses.iter().zip(known) {
        match target {
            Target::Address(address) => wanted.push((*address, None)),
            Target::Name(name, port) => {
                match dns.addresses(name).await {
                    Ok(found) => *known = found.iter().map(|ip| (*ip, *port).into()).collect(),
                    Err(e) => failed = Some((name.clone(), e)),
                }
                wanted.extend(known.iter().map(|a| (*a, Some(name.as_str()))));
            }
        }
    }
    wanted.sort_unstable();
    wanted.dedup_by_key(|(address, _)| *address);
    let now = pool.endpoints();
    // A name that cannot be resolved for the first time moves nobody either.
    let worse = failed.is_some() && wanted.len() < now.len();
    let changed =
        now.len() != wanted.len() || wanted.iter().any(|(a, _)| now.iter().all(|e| e.address != *a));
    if changed && !worse {
        tracing::info!(pool = %pool.name, backends = wanted.len(), "backends changed");
        pool.set_endpoints(&wanted);
    }
    failed.map_or(Ok(()), Err)
}
