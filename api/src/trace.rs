//! A request as a span, below the router's (W3C Trace Context, OpenTelemetry's conventions for HTTP). Only routers reach
//! this process, so what they say of the parent counts.

use axum::extract::Request;
use gmah_shared::telemetry::traces;
use gmah_shared::tenant::TenantSlug;
use opentelemetry::KeyValue;
use opentelemetry::trace::{Span as _, SpanBuilder, SpanKind, Status, Tracer as _};
use opentelemetry_sdk::trace::Span;

use crate::server::App;

/// The span of one request.
pub(crate) struct Trace(Span);

impl Trace {
    /// Begins the span, if there is somebody to send it to.
    pub(crate) fn begin(app: &App, request: &Request, route: &str) -> Option<Self> {
        let tracer = app.tracer.as_ref()?;
        let builder =
            SpanBuilder::from_name(format!("{} {route}", request.method())).with_kind(SpanKind::Server);
        let mut span = tracer.build_with_context(builder, &traces::parent(request.headers()));
        if span.is_recording() {
            span.set_attribute(KeyValue::new("http.request.method", request.method().to_string()));
            span.set_attribute(KeyValue::new("http.route", route.to_owned()));
        }
        Some(Self(span))
    }

    /// The request is for that organisation.
    pub(crate) fn is_of(&mut self, slug: &TenantSlug) {
        if self.0.is_recording() {
            self.0.set_attribute(KeyValue::new("gmah.tenant.slug", slug.to_string()));
        }
    }

    /// The request was answered.
    pub(crate) fn end(mut self, status: u16, request_id: &str) {
        let span = &mut self.0;
        if span.is_recording() {
            span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status)));
            span.set_attribute(KeyValue::new("gmah.request_id", request_id.to_owned()));
            if status >= 500 {
                span.set_status(Status::error(""));
            }
        }
        span.end();
    }
}
