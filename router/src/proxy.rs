//! The framework's trait: each phase calls one step, with no logic of its own.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use gmah_shared::hostname::Hostname;
use http::header;
use pingora_core::protocols::http::ServerSession;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_error::{Error, ErrorSource, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, ProxyHttp, Session};

use tokio_util::sync::CancellationToken;

use crate::authority;
use crate::ctx::{ConnectionInfo, Progress, RequestCtx};
use crate::headers;
use crate::metrics::Metrics;
use crate::policy;
use crate::reject::Rejection;
use crate::resolve::{Asked, Resolver};
use crate::upstream::{self, Backends};

/// What every worker shares.
pub struct Edge {
    /// Hosts to tenants.
    pub resolver: Resolver,
    /// The pool `api`.
    pub backends: Backends,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Largest request body.
    pub max_body: u64,
    /// Port of HTTPS as browsers see it.
    pub public_https_port: u16,
    /// Cancelled when the router is to stop: then every response says that its connection ends.
    pub stop: CancellationToken,
}

/// The framework's handle on it.
pub struct Proxy(pub Arc<Edge>);

impl Edge {
    /// Steps 4 to 6: fills `ctx`, or says how the request is refused.
    async fn admit(&self, session: &mut ServerSession, ctx: &mut RequestCtx) -> Result<Admitted, Rejection> {
        let info = session.digest().and_then(|d| d.proxy_digest.as_ref()).and_then(|p| p.user_data.as_ref());
        let info = info.and_then(|d| d.downcast_ref::<ConnectionInfo>()).ok_or(Rejection::Internal)?;
        ctx.client = Some(info.client);
        ctx.is_tls = info.certificate_names.is_some();
        ctx.progress = session.req_header().extensions.get::<Progress>().cloned();
        let certificate_names = info.certificate_names.clone();

        let request = session.req_header();
        if request.version == http::Version::HTTP_2 {
            policy::http2_bounds(request)?;
        }
        let host = authority::hostname(request)?;
        if let Some(names) = &certificate_names {
            authority::covered(&host, names)?;
        }
        let target = std::str::from_utf8(request.raw_path()).map_err(|_| Rejection::Malformed)?;
        if !ctx.is_tls && self.resolver.is_neutral(&host) {
            return Ok(Admitted::Redirect(host));
        }
        let header = single(request, "x-tenant-id")?;
        let Asked { name, target: rewritten, is_neutral } = self.resolver.ask(&host, target, header)?;
        let rewritten = rewritten.map(std::borrow::Cow::into_owned);
        let route = match self.resolver.peek(&name) {
            Some(route) => route,
            None => self.resolver.get(&name).await?,
        };
        ctx.series = Some(self.resolver.series(&route));
        if !ctx.is_tls {
            return Ok(Admitted::Redirect(host));
        }
        policy::admit(route.tenant.status)?;
        policy::declared_length(session.req_header(), self.max_body)?;
        ctx.token = Some(self.resolver.token(&route, &host, is_neutral)?);
        ctx.host = Some(host);
        ctx.is_neutral = is_neutral;
        ctx.route = Some(route);
        ctx.name = Some(name);
        if let Some(target) = rewritten {
            session.req_header_mut().set_raw_path(target.as_bytes()).map_err(|_| Rejection::Malformed)?;
        }
        Ok(Admitted::Forward)
    }

    /// The same tenant again, from the master: the api knows a newer generation.
    async fn readmit(&self, ctx: &mut RequestCtx) -> Result<(), Rejection> {
        let (Some(name), Some(host)) = (ctx.name.clone(), ctx.host.clone()) else {
            return Err(Rejection::Internal);
        };
        let route = self.resolver.get(&name).await?;
        policy::admit(route.tenant.status)?;
        ctx.token = Some(self.resolver.token(&route, &host, ctx.is_neutral)?);
        ctx.route = Some(route);
        Ok(())
    }

    /// 308 to HTTPS on the public port, with path and query as they came.
    async fn redirect(&self, session: &mut ServerSession, host: &Hostname, ctx: &RequestCtx) -> Result<()> {
        let target = String::from_utf8_lossy(session.req_header().raw_path()).into_owned();
        let port = match self.public_https_port {
            443 => String::new(),
            port => format!(":{port}"),
        };
        let path = if target.starts_with('/') { target.as_str() } else { "/" };
        let mut head = ResponseHeader::build(308, Some(4))?;
        head.insert_header(header::LOCATION, format!("https://{host}{port}{path}"))?;
        head.insert_header(header::CONTENT_LENGTH, "0")?;
        head.insert_header("X-Request-ID", ctx.request_id.as_str())?;
        session.write_response_header(Box::new(head)).await
    }

    async fn refuse(
        &self,
        session: &mut ServerSession,
        ctx: &mut RequestCtx,
        rejection: Rejection,
    ) -> Result<()> {
        ctx.rejection = Some(rejection);
        self.metrics.rejected(rejection);
        rejection.answer(session, &ctx.request_id).await?;
        if session.req_header().version != http::Version::HTTP_2 {
            // What the client is still sending is read for a moment: closed with unread bytes, the kernel would reset the
            // connection, and the answer might be lost with it.
            session.set_total_drain_timeout(Some(LINGER));
            let _ = session.drain_request_body().await;
        }
        Ok(())
    }
}

enum Admitted {
    Forward,
    Redirect(Hostname),
}

/// A field that may stand there once at most.
fn single<'a>(request: &'a RequestHeader, name: &str) -> Result<Option<&'a [u8]>, Rejection> {
    let mut values = request.headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => Ok(Some(value.as_bytes())),
        (None, _) => Ok(None),
        (Some(_), Some(_)) => Err(Rejection::TenantConflict),
    }
}

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
            Ok(Admitted::Redirect(host)) => self.0.redirect(session, &host, ctx).await.map(|()| true),
            Err(rejection) => self.0.refuse(session, ctx, rejection).await.map(|()| true),
        }
    }

    async fn request_body_filter(
        &self,
        _: &mut Session,
        body: &mut Option<Bytes>,
        _: bool,
        ctx: &mut RequestCtx,
    ) -> Result<()> {
        ctx.moved();
        ctx.bytes_in += body.as_ref().map_or(0, |b| b.len() as u64);
        if ctx.bytes_in > self.0.max_body {
            return Err(Error::explain(ErrorType::HTTPStatus(413), "body over the limit").into_down());
        }
        Ok(())
    }

    async fn upstream_peer(&self, _: &mut Session, ctx: &mut RequestCtx) -> Result<Box<HttpPeer>> {
        ctx.attempts += 1;
        if ctx.attempts > 1 {
            // The body comes again from the framework's buffer.
            ctx.bytes_in = 0;
            self.0.metrics.retries.inc();
        }
        if std::mem::take(&mut ctx.stale)
            && let Err(rejection) = self.0.readmit(ctx).await
        {
            ctx.rejection = Some(rejection);
            return Err(Error::explain(ErrorType::InternalError, "resolved anew and refused"));
        }
        Ok(self.0.backends.pick())
    }

    async fn upstream_request_filter(
        &self,
        _: &mut Session,
        request: &mut RequestHeader,
        ctx: &mut RequestCtx,
    ) -> Result<()> {
        headers::to_backend(request, ctx)
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut RequestCtx,
    ) -> Result<()> {
        if response.status == 503 && response.headers.contains_key(STALE_HEADER) {
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
        if self.0.stop.is_cancelled() {
            let session: &mut ServerSession = session.as_mut();
            session.set_keepalive(None);
        }
        headers::to_client(response, ctx)
    }

    fn response_body_filter(
        &self,
        _: &mut Session,
        _: &mut Option<Bytes>,
        _: bool,
        ctx: &mut RequestCtx,
    ) -> Result<Option<std::time::Duration>> {
        ctx.moved();
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
        _: &mut Session,
        _: &HttpPeer,
        ctx: &mut RequestCtx,
        mut e: Box<Error>,
    ) -> Box<Error> {
        // Nothing was sent: another attempt is free.
        e.set_retry(ctx.attempts < self.0.backends.attempts);
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
        let session: &ServerSession = session.as_ref();
        let idempotent = session.req_header().method.is_idempotent();
        let at_hand = !session.retry_buffer_truncated() && session.response_written().is_none();
        let retry = ctx.attempts < self.0.backends.attempts
            && upstream::may_retry(&e, idempotent, at_hand, client_reused);
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
        if self.0.refuse(session, ctx, rejection).await.is_err() {
            return FailToProxy { error_code: 0, can_reuse_downstream: false };
        }
        FailToProxy { error_code: rejection.row().status, can_reuse_downstream: false }
    }

    async fn logging(&self, session: &mut Session, _: Option<&Error>, ctx: &mut RequestCtx) {
        let status = session.as_ref().response_written().map_or(0, |r| r.status.as_u16());
        let took = ctx.began.elapsed();
        if ctx.route.is_some() {
            self.0.metrics.upstream_seconds.observe(took.as_secs_f64());
        }
        let sent = session.as_ref().body_bytes_sent() as u64;
        if status > 0 {
            let series = ctx.series.take().unwrap_or_else(|| self.0.metrics.tenants.unknown());
            series.request(status, took, ctx.bytes_in, sent);
        }
        tracing::debug!(
            request_id = ctx.request_id,
            tenant.slug = ctx.route.as_ref().map(|r| r.tenant.slug.as_str()),
            status,
            duration_ms = took.as_secs_f64() * 1e3,
            bytes_out = sent,
            reason = ctx.rejection.map(Rejection::label),
            "request"
        );
    }
}

const LINGER: std::time::Duration = std::time::Duration::from_millis(500);
const STALE_HEADER: &str = "x-gmah-stale";
