//! Listeners, and the connections that routers make to them.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use gmah_shared::config::Listen;
use gmah_shared::tasks::Tasks;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tower::Service;

use super::StartError;
use super::unread::{self, Returning};

pub(super) async fn bind(key: &'static str, address: Listen) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|cause| StartError::Bind { key, address, cause })
}

pub(super) fn local(listener: &TcpListener, configured: Listen) -> SocketAddr {
    listener.local_addr().unwrap_or(configured)
}

/// What answers requests of a listener.
pub(super) trait Serves:
    Service<http::Request<Returning>, Response = Response, Error = Infallible, Future: Send>
    + Clone
    + Send
    + 'static
{
}

impl<S> Serves for S where
    S: Service<http::Request<Returning>, Response = Response, Error = Infallible, Future: Send>
        + Clone
        + Send
        + 'static
{
}

/// Accepts until told to stop; each connection finishes its request in flight.
pub(super) async fn serve<S: Serves>(listener: TcpListener, router: S, tasks: Tasks, max_connections: usize) {
    let places = Arc::new(Semaphore::new(max_connections));
    let stop = tasks.token().clone();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            // Losing this arm loses at most a place that was not used.
            accepted = async {
                let place = places.clone().acquire_owned().await;
                (listener.accept().await, place)
            } => accepted,
        };
        match accepted {
            (Ok((stream, _)), Ok(place)) => {
                let (router, stop) = (router.clone(), stop.clone());
                tasks.spawn("api-connection", async move {
                    connection(stream, router, stop).await;
                    drop(place);
                });
            }
            (Err(e), _) => {
                // Out of file descriptors, most likely: let some connections end.
                tracing::warn!(error = %e, "accept failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            (Ok(_), Err(_)) => return,
        }
    }
}

async fn connection<S: Serves>(stream: TcpStream, router: S, stop: tokio_util::sync::CancellationToken) {
    let _ = stream.set_nodelay(true);
    let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new()).http1_only();
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(64 * 1024)
        .max_headers(128);
    let answers = service_fn(move |request| unread::answer(router.clone(), request));
    let served = builder.serve_connection(TokioIo::new(stream), answers);
    tokio::pin!(served);
    let mut stopping = false;
    loop {
        tokio::select! {
            done = &mut served => {
                if let Err(e) = done {
                    tracing::debug!(error = %e, "connection ended");
                }
                return;
            }
            () = stop.cancelled(), if !stopping => {
                stopping = true;
                served.as_mut().graceful_shutdown();
            }
        }
    }
}

/// How long a router's connection may stay idle or take for a request header; longer than routers keep theirs.
const HEADER_TIMEOUT: Duration = Duration::from_secs(90);
