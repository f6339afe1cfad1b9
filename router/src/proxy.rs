//! The framework's trait: each phase calls one step, with no logic of its own.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use http::header;
use pingora_core::protocols::ALPN;
use pingora_core::protocols::http::ServerSession;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_error::{Error, ErrorSource, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, ProxyHttp, Session};

use crate::ctx::{Pace, RequestCtx};
use crate::edge::{Admitted, Edge, line};
use crate::headers;
use crate::reject::Rejection;
use crate::upstream;

/// The framework's handle on the edge.
pub struct Proxy(pub Arc<Edge>);

#[async_trait]
impl ProxyHttp for Proxy {
    type CTX = RequestCtx;

    fn new_ctx(&self) -> RequestCtx {
        RequestCtx::new()
    }

    fn init_downstream_modules(&self, _: &mut pingora_core::modules::http::HttpModules) {
        // No compression: it is the backend's to decide, and every module costs every request.
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut RequestCtx) -> Result<bool> {
        let session: &mut ServerSession = session.as_mut();
        match self.0.admit(session, ctx).await {
            Ok(Admitted::Forward) => Ok(false),
            // Most requests are forwarded: they do not carry along what the others need.
            other => Box::pin(self.0.reply(session, other, ctx)).await.map(|()| true),
        }
    }

    async fn request_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        is_end: bool,
        ctx: &mut RequestCtx,
    ) -> Result<()> {
        ctx.moved();
        let length = body.as_ref().map_or(0, |b| b.len() as u64);
        ctx.bytes_in += length;
        if session.was_upgraded() {
            // Frames of a WebSocket are no body: they come when they like, and as many as there are.
            return Ok(());
        }
        let live = self.0.live.load();
        let limits = &live.limits;
        // Whatever comes last has come: nothing is waited for any more.
        let (rate, window) = (limits.min_body_rate.get() as u64, *limits.body_rate_window);
        if !is_end && !ctx.body_pace.keeps_up(length, rate, window) {
            return Err(Error::explain(ErrorType::ReadTimedout, "body too slow").into_down());
        }
        if ctx.bytes_in > ctx.max_body {
            return Err(Error::explain(ErrorType::HTTPStatus(413), "body over the limit").into_down());
        }
        Ok(())
    }

    async fn upstream_peer(&self, session: &mut Session, ctx: &mut RequestCtx) -> Result<Box<HttpPeer>> {
        ctx.attempts += 1;
        ctx.upstream.get_or_insert((Instant::now(), None));
        if ctx.attempts > 1 {
            // The body comes again from the framework's buffer.
            ctx.bytes_in = 0;
            ctx.body_pace = Pace::default();
            self.0.metrics.retries.inc();
        }
        if std::mem::take(&mut ctx.stale)
            && let Err(rejection) = Box::pin(self.0.readmit(session.req_header(), ctx)).await
        {
            ctx.rejection = Some(rejection);
            return Err(Error::explain(ErrorType::InternalError, "resolved anew and refused"));
        }
        let Some(pool) = ctx.pool.clone() else {
            return Err(Error::new(ErrorType::InternalError));
        };
        let failed = ctx.lease.take().map(|l| l.0.address);
        let Some(lease) = pool.pick(failed) else {
            return Err(Error::new_up(upstream::NO_BACKEND));
        };
        let mut peer = Box::new(lease.0.peer.clone());
        if ctx.is_upgrade {
            let idle = Some(*pool.config.websocket_idle_timeout);
            (peer.options.read_timeout, peer.options.write_timeout) = (idle, idle);
            // A WebSocket is an upgrade of HTTP/1.1 (RFC 6455, section 4.1).
            peer.options.alpn = ALPN::H1;
        } else if let Some(left) = upstream::pool::remaining(ctx.deadline) {
            if left.is_zero() {
                return Err(Error::new_up(upstream::TOO_LONG));
            }
            peer.options.read_timeout = Some(left.min(*pool.config.read_timeout));
        }
        if let Some(trace) = &mut ctx.trace {
            trace.attempt(lease.0.address);
        }
        ctx.lease = Some(lease);
        Ok(peer)
    }

    async fn upstream_request_filter(
        &self,
        _: &mut Session,
        request: &mut RequestHeader,
        ctx: &mut RequestCtx,
    ) -> Result<()> {
        headers::to_backend(request, ctx)?;
        match &ctx.trace {
            Some(trace) => trace.tell(request),
            None => Ok(()),
        }
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut RequestCtx,
    ) -> Result<()> {
        if response.status == 503 && response.headers.contains_key(STALE_HEADER) {
            if let Some(trace) = &mut ctx.trace {
                trace.answered(503);
            }
            // Whether or not this request can be tried again, the next one must not meet the old entry.
            if let (Some(name), Some(route)) = (&ctx.name, &ctx.route) {
                self.0.resolver.forget(name, route.tenant.generation);
            }
            // Once: a second one in a row is passed on as the 503 that it is.
            if !ctx.was_stale {
                ctx.was_stale = true;
                ctx.stale = true;
                let mut error = Error::new_up(upstream::STALE);
                error.set_retry(true);
                return Err(error);
            }
        }
        if let Some(lease) = &ctx.lease {
            lease.0.succeeded();
        }
        if let Some(trace) = &mut ctx.trace {
            trace.answered(response.status.as_u16());
        }
        if let Some((asked, took)) = &mut ctx.upstream {
            *took = Some(asked.elapsed());
        }
        ctx.status = response.status.as_u16();
        let session: &mut ServerSession = session.as_mut();
        if response.status == http::StatusCode::SWITCHING_PROTOCOLS {
            ctx.deadline = None;
            // Open for hours, and many behind one address: the organisation's places bound them.
            ctx.counted = None;
            self.0.upgraded(session, ctx);
        }
        if self.0.stop.is_cancelled() {
            session.set_keepalive(None);
        }
        if upstream::is_bodyless(&session.req_header().method, response) && !session.is_body_done() {
            ctx.answered(|| self.0.last_words(session.req_header(), ctx, 0));
        }
        headers::to_client(response, ctx, &self.0.live.load().promises);
        Ok(())
    }

    fn response_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        is_end: bool,
        ctx: &mut RequestCtx,
    ) -> Result<Option<std::time::Duration>> {
        ctx.moved();
        ctx.bytes_out += body.as_ref().map_or(0, |b| b.len() as u64);
        if is_end && !session.as_mut().is_body_done() {
            let request = session.as_ref().req_header();
            ctx.answered(|| self.0.last_words(request, ctx, ctx.bytes_out));
        }
        if ctx.deadline.is_some_and(|d| d < Instant::now()) {
            // Half a response: the connection ends without its proper end.
            return Err(Error::new_up(upstream::TOO_LONG));
        }
        Ok(None)
    }

    fn upstream_response_trailer_filter(
        &self,
        _: &mut Session,
        trailers: &mut header::HeaderMap,
        _: &mut RequestCtx,
    ) -> Result<()> {
        headers::clean_trailers(trailers);
        Ok(())
    }

    fn fail_to_connect(
        &self,
        session: &mut Session,
        _: &HttpPeer,
        ctx: &mut RequestCtx,
        mut e: Box<Error>,
    ) -> Box<Error> {
        self.0.blame(session.as_mut(), ctx, &e, false);
        // Nothing was sent: another attempt is free.
        e.set_retry(ctx.pool.as_ref().is_some_and(|p| p.may_retry(ctx.attempts)));
        e
    }

    fn error_while_proxy(
        &self,
        _: &HttpPeer,
        session: &mut Session,
        mut e: Box<Error>,
        ctx: &mut RequestCtx,
        client_reused: bool,
    ) -> Box<Error> {
        let session: &mut ServerSession = session.as_mut();
        self.0.blame(session, ctx, &e, client_reused);
        let attempt = upstream::Attempt {
            method: &session.req_header().method,
            body_at_hand: !session.retry_buffer_truncated() && session.response_written().is_none(),
            reused: client_reused,
        };
        let retry =
            upstream::may_retry(&e, attempt) && ctx.pool.as_ref().is_some_and(|p| p.may_retry(ctx.attempts));
        e.set_retry(retry);
        e
    }

    fn suppress_error_log(&self, _: &Session, _: &RequestCtx, _: &Error) -> bool {
        // Logged in `fail_to_proxy`, with the tenant and without the client's text.
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _: &Session,
        _: &RequestCtx,
        _: &Error,
        _: pingora_proxy::ProxyWarnLogContext,
    ) -> bool {
        true
    }

    async fn fail_to_proxy(&self, session: &mut Session, e: &Error, ctx: &mut RequestCtx) -> FailToProxy {
        let session: &mut ServerSession = session.as_mut();
        let rejection = ctx.rejection.take().or_else(|| upstream::rejection(e));
        if e.esource() != &ErrorSource::Downstream {
            let tenant = ctx.route.as_ref().map(|r| r.tenant.slug.as_str());
            // The type only: the text may hold what a backend sent.
            tracing::warn!(
                tenant.slug = tenant,
                error = e.etype().as_str(),
                attempts = ctx.attempts,
                "request failed"
            );
        }
        let written =
            session.response_written().is_some_and(|r| r.status == 101 || !r.status.is_informational());
        let Some(rejection) = rejection.filter(|_| !written) else {
            // Half a response must not look whole: the connection ends without its proper end.
            return FailToProxy { error_code: 0, can_reuse_downstream: false };
        };
        // The framework ends the connection after an error, so the answer must say so.
        session.set_keepalive(None);
        if self.0.refuse(session, ctx, rejection.into()).await.is_err() {
            return FailToProxy { error_code: 0, can_reuse_downstream: false };
        }
        FailToProxy { error_code: rejection.row().status, can_reuse_downstream: false }
    }

    async fn logging(&self, session: &mut Session, _: Option<&Error>, ctx: &mut RequestCtx) {
        let status = session.as_ref().response_written().map_or(0, |r| r.status.as_u16());
        let took = ctx.began.elapsed();
        if let Some(progress) = &ctx.progress {
            progress.ended();
        }
        if let Some(pool) = &ctx.pool {
            pool.seconds.observe(took.as_secs_f64());
        }
        let sent = session.as_ref().body_bytes_sent() as u64;
        if status > 0 {
            let series = ctx.series.take().unwrap_or_else(|| self.0.metrics.tenants.unknown());
            series.request(status, took, ctx.bytes_in, sent);
            if let Some(route) = &ctx.route {
                self.0.usage.request(route.tenant.id, ctx.bytes_in, sent);
            }
        } else {
            ctx.abandoned();
        }
        if let Some(log) = self.0.access.as_ref().filter(|log| log.wants(status)) {
            log.write(&line(session.req_header(), ctx, status, took, sent));
        }
        if let Some(trace) = ctx.trace.take() {
            trace.end(ctx, status);
        }
        tracing::debug!(
            request_id = ctx.request_id.as_str(),
            tenant.slug = ctx.route.as_ref().map(|r| r.tenant.slug.as_str()),
            status,
            duration_ms = took.as_secs_f64() * 1e3,
            bytes_out = sent,
            reason = ctx.rejection.map(Rejection::label),
            "request"
        );
    }
}

const STALE_HEADER: &str = "x-gmah-stale";
