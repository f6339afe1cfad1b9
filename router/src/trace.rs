//! A request as spans: the whole, its look-up, each attempt at a backend (W3C Trace Context, OpenTelemetry's conventions for
//! HTTP).
//!
//! Strangers do not decide what is traced: a `traceparent` counts from proxies that may name the client, and from nobody
//! else. Backends get the span of the attempt as their parent, traced or not. Without `[traces]` all of it passes by.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use gmah_shared::telemetry::traces;
use http::HeaderValue;
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt as _, Tracer as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{SdkTracer, Span};
use pingora_http::RequestHeader;

use crate::ctx::RequestCtx;
use crate::reject::Rejection;

/// Begins spans.
#[derive(Debug)]
pub struct Tracing(pub SdkTracer);

/// The spans of one request. What is not ended ends with it.
pub struct Trace {
    tracer: SdkTracer,
    request: Span,
    method: String,
    began: SystemTime,
    attempt: Option<Span>,
    attempts: i64,
    is_trusted: bool,
}

impl Tracing {
    /// The span of a request that began so long ago.
    pub(crate) fn begin(&self, request: &RequestHeader, is_trusted: bool, ago: Duration) -> Trace {
        let parent = if is_trusted { traces::parent(&request.headers) } else { Context::new() };
        let began = SystemTime::now().checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH);
        let method = request.method.as_str();
        // Low cardinality: whatever is not a common method has one name (semantic conventions, HTTP spans).
        let (name, method) = if COMMON.contains(&method) { (method, method) } else { ("HTTP", "_OTHER") };
        let builder =
            SpanBuilder::from_name(name.to_owned()).with_kind(SpanKind::Server).with_start_time(began);
        let mut span = self.0.build_with_context(builder, &parent);
        if span.is_recording() {
            span.set_attribute(KeyValue::new("http.request.method", method.to_owned()));
            // Without its query, which may hold secrets.
            let path: String = request.uri.path().chars().take(MAX_PATH).collect();
            span.set_attribute(KeyValue::new("url.path", path));
            let version = if request.version == http::Version::HTTP_2 { "2" } else { "1.1" };
            span.set_attribute(KeyValue::new("network.protocol.version", version));
        }
        Trace {
            tracer: self.0.clone(),
            request: span,
            method: method.to_owned(),
            began,
            attempt: None,
            attempts: 0,
            is_trusted,
        }
    }
}

impl Trace {
    /// Id of the trace, where it is recorded.
    pub(crate) fn id(&self) -> Option<String> {
        self.request.is_recording().then(|| self.request.span_context().trace_id().to_string())
    }

    /// Another attempt at a backend begins.
    pub(crate) fn attempt(&mut self, backend: SocketAddr) {
        self.attempt_ends();
        let builder = SpanBuilder::from_name(self.method.clone()).with_kind(SpanKind::Client);
        let parent = Context::new().with_remote_span_context(self.request.span_context().clone());
        let mut span = self.tracer.build_with_context(builder, &parent);
        if span.is_recording() {
            span.set_attribute(KeyValue::new("http.request.method", self.method.clone()));
            span.set_attribute(KeyValue::new("server.address", backend.ip().to_string()));
            span.set_attribute(KeyValue::new("server.port", i64::from(backend.port())));
            if self.attempts > 0 {
                span.set_attribute(KeyValue::new("http.request.resend_count", self.attempts));
            }
        }
        self.attempts += 1;
        self.attempt = Some(span);
    }

    /// The backend of the current attempt began to answer.
    pub(crate) fn answered(&mut self, status: u16) {
        let Some(span) = self.attempt.as_mut().filter(|s| s.is_recording()) else { return };
        span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status)));
        if status >= 400 {
            span.set_status(Status::error(""));
        }
    }

    /// The current attempt came to nothing.
    pub(crate) fn failed(&mut self, kind: &str) {
        if let Some(span) = self.attempt.as_mut().filter(|s| s.is_recording()) {
            span.set_attribute(KeyValue::new("error.type", kind.to_owned()));
            span.set_status(Status::error(""));
        }
        self.attempt_ends();
    }

    fn attempt_ends(&mut self) {
        if let Some(mut span) = self.attempt.take() {
            span.end();
        }
    }

    /// What the backend is told: the attempt is its parent.
    pub(crate) fn tell(&self, request: &mut RequestHeader) -> pingora_error::Result<()> {
        let span = self.attempt.as_ref().unwrap_or(&self.request).span_context();
        request.insert_header("traceparent", traceparent(span))?;
        if !self.is_trusted {
            request.remove_header("tracestate");
        }
        Ok(())
    }

    /// The request has ended.
    pub(crate) fn end(mut self, ctx: &RequestCtx, status: u16) {
        self.attempt_ends();
        if !self.request.is_recording() {
            return;
        }
        if !ctx.lookup.is_zero() {
            let builder = SpanBuilder::from_name("lookup").with_start_time(self.began);
            let parent = Context::new().with_remote_span_context(self.request.span_context().clone());
            let mut lookup = self.tracer.build_with_context(builder, &parent);
            lookup.end_with_timestamp(self.began + ctx.lookup);
        }
        let mut set = |key, value: String| self.request.set_attribute(KeyValue::new(key, value));
        set("url.scheme", if ctx.is_tls { "https" } else { "http" }.into());
        set("gmah.request_id", ctx.request_id.as_str().to_owned());
        if let Some(host) = &ctx.host {
            set("server.address", host.to_string());
        }
        if let Some(client) = &ctx.client {
            set("client.address", client.address.to_string());
        }
        if let Some(route) = &ctx.route {
            set("gmah.tenant.id", route.tenant.id.to_string());
            set("gmah.tenant.slug", route.tenant.slug.to_string());
        }
        let kind = ctx.rejection.map_or_else(|| status.to_string(), |r: Rejection| r.label().to_owned());
        if status == 0 {
            set("error.type", "abandoned".into());
        } else if status >= 400 {
            set("error.type", kind);
        }
        if status > 0 {
            let code = KeyValue::new("http.response.status_code", i64::from(status));
            self.request.set_attribute(code);
        }
        if status == 0 || status >= 500 {
            self.request.set_status(Status::error(""));
        }
        self.request.end();
    }
}

/// Version 00 (W3C Trace Context, section 3.2).
fn traceparent(span: &SpanContext) -> HeaderValue {
    let flags = span.trace_flags().to_u8() & 1;
    let text = format!("00-{}-{}-{flags:02x}", span.trace_id(), span.span_id());
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static(""))
}

/// RFC 9110, section 9.1, and RFC 5789.
const COMMON: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
/// Characters of a path that are kept.
const MAX_PATH: usize = 1024;
