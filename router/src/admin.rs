//! The admin listener: `/metrics`, `/healthz`, `/readyz`, `/.well-known/jwks.json`. Private.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use gmah_shared::catalog::listen::Hearing;
use gmah_shared::token::Signer;
use http::{Method, Response, StatusCode, header};
use pingora_core::apps::http_app::ServeHttp;
use pingora_core::protocols::http::ServerSession;

use crate::edge::Edge;
use crate::metrics::Metrics;

/// What the admin listener shows.
pub(crate) struct Admin {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) signer: Signer,
    pub(crate) draining: Arc<AtomicBool>,
    pub(crate) hearing: Arc<Hearing>,
    pub(crate) edge: Arc<Edge>,
}

impl Admin {
    fn ready(&self) -> bool {
        !self.draining.load(Ordering::Acquire) && self.signer.keyring().signing().is_some()
    }

    fn count_backends(&self) {
        for pool in self.edge.live.load().pools.all() {
            let mut counts = [("up", 0), ("down", 0), ("ejected", 0)];
            for endpoint in pool.endpoints().iter() {
                let state = match (endpoint.is_down(), endpoint.is_ejected()) {
                    (true, _) => 1,
                    (false, true) => 2,
                    (false, false) => 0,
                };
                counts[state].1 += 1;
            }
            for (state, count) in counts {
                self.metrics.backends.with_label_values(&[&*pool.name, state]).set(count);
            }
        }
    }

    fn answer(&self, method: &Method, path: &str) -> (StatusCode, &'static str, String) {
        const TEXT: &str = "text/plain; charset=utf-8";
        if !matches!(*method, Method::GET | Method::HEAD) {
            return (StatusCode::METHOD_NOT_ALLOWED, TEXT, "method not allowed\n".into());
        }
        match path {
            "/metrics" => {
                self.metrics.catalog_connected.set(i64::from(self.hearing.is_on()));
                self.metrics.catalog_staleness.set(self.hearing.staleness().as_secs_f64());
                self.count_backends();
                match self.metrics.text() {
                    Ok(text) => (StatusCode::OK, "text/plain; version=0.0.4", text),
                    Err(e) => {
                        tracing::error!(error = %e, "metrics");
                        (StatusCode::INTERNAL_SERVER_ERROR, TEXT, String::new())
                    }
                }
            }
            "/healthz" => (StatusCode::OK, TEXT, "alive\n".into()),
            "/readyz" if self.ready() => (StatusCode::OK, TEXT, "ready\n".into()),
            "/readyz" => (StatusCode::SERVICE_UNAVAILABLE, TEXT, "not ready\n".into()),
            "/.well-known/jwks.json" => {
                (StatusCode::OK, "application/json", self.signer.keyring().jwks().to_string())
            }
            _ => (StatusCode::NOT_FOUND, TEXT, "nothing here\n".into()),
        }
    }
}

#[async_trait]
impl ServeHttp for Admin {
    async fn response(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        let request = session.req_header();
        let (status, media, body) = self.answer(&request.method, request.uri.path());
        let body = if request.method == Method::HEAD { Vec::new() } else { body.into_bytes() };
        Response::builder()
            .status(status)
            .header(header::CONTENT_TYPE, media)
            .header(header::CONTENT_LENGTH, body.len())
            .body(body)
            .unwrap_or_else(|_| Response::new(Vec::new()))
    }
}
