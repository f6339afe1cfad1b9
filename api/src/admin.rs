//! The admin listener: `/metrics`, `/healthz`, `/readyz`. Private; never reachable through the router.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::StatusCode;
use http::header::CONTENT_TYPE;

use crate::server::App;

pub(crate) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .with_state(app)
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
    app.metrics.pools(&app.pools.gauges());
    app.metrics.figures();
    app.metrics.catalog_connected.set(i64::from(app.hearing.is_on()));
    app.metrics.catalog_staleness.set(app.hearing.staleness().as_secs_f64());
    match gmah_shared::telemetry::encode(&app.metrics.registry) {
        Ok(text) => ([(CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(e) => {
            tracing::error!(error = %e, "metrics");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// Ready when keys are loaded and no shutdown has begun. No tenant's database is ever asked (rule 6).
async fn ready(State(app): State<Arc<App>>) -> Response {
    if app.is_ready() {
        "ready\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n").into_response()
    }
}
