//! The framework's trait: each phase calls one step, with no logic of its own.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use gmah_shared::catalog::Hit;
use gmah_shared::hostname::Hostname;
use gmah_shared::tasks;
use http::header;
use pingora_core::protocols::ALPN;
use pingora_core::protocols::http::ServerSession;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_error::{Error, ErrorSource, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, ProxyHttp, Session};

use tokio_util::sync::CancellationToken;

use crate::access;
use crate::authority;
use crate::certs::challenges::{self, Challenges};
use crate::config::Proxies;
use crate::ctx::{ConnectionInfo, Pace, Progress, RequestCtx};
use crate::headers;
use crate::live;
use crate::metrics::Metrics;
use crate::policy::{self, Passage};
use crate::reject::{Refusal, Rejection, Reply};
use crate::resolve::{Asked, Name, Resolver, Route};
use crate::upstream;
use crate::upstream::pool::deadline;

/// What every worker shares.
pub struct Edge {
    /// Hosts to tenants.
    pub resolver: Resolver,
    /// What goes for requests that begin now.
    pub live: live::Handle,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Where requests are logged.
    pub access: Option<access::Log>,
    /// Proofs for the certificate authority.
    pub challenges: Arc<Challenges>,
    /// Port of HTTPS as browsers see it.
    pub public_https_port: u16,
    /// Cancelled when the router is to stop: then every response says that its connection ends.
    pub stop: CancellationToken,
}

/// The framework's handle on it.
pub struct Proxy(pub Arc<Edge>);

impl Edge {
    /// Steps 4 to 6: fills `ctx`, or says how the request is refused.
    async fn admit(&self, session: &mut ServerSession, ctx: &mut RequestCtx) -> Result<Admitted, Refusal> {
        let live = self.live.load_full();
        let info = connection_info(session).ok_or(Rejection::Internal)?;
        ctx.client = Some(client(&live.proxies, info.client, session.req_header()));
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
        if !ctx.is_tls && target.starts_with(challenges::PATH) {
            // Whoever the name will belong to: the authority asks before anybody is served under it.
            return self
                .challenges
                .answer(&host, target)
                .map(Admitted::Proof)
                .ok_or(Rejection::UnknownHost.into());
        }
        if !ctx.is_tls && self.resolver.is_neutral(&host) {
            return Ok(Admitted::Redirect(host));
        }
        let header = single(request, "x-tenant-id")?;
        let Asked { name, target: rewritten, is_neutral } = self.resolver.ask(&host, target, header)?;
        // A secret of ours does not go on, whether it is of use or not.
        let rewritten = policy::without_secret(rewritten.as_deref().unwrap_or(target))
            .or_else(|| rewritten.map(std::borrow::Cow::into_owned));
        let mut route = match self.resolver.peek(&name) {
            Some(route) => route,
            None => self.resolver.get(&name).await?,
        };
        ctx.lookup = ctx.began.elapsed();
        ctx.host = Some(host.clone());
        ctx.series = Some(self.resolver.series(&route));
        if !ctx.is_tls {
            return Ok(Admitted::Redirect(host));
        }
        // From here on a refusal may look like the organisation's own.
        ctx.route = Some(route.clone());
        if let Some((secret, target)) = policy::bypass_link(route.policy.maintenance.as_deref(), request) {
            return Ok(Admitted::Bypass { secret: secret.to_owned(), target });
        }
        if let Passage::Hold { patience, requests } = self.passage(&route, request)? {
            route = self.hold(&name, &route, patience, requests, request, ctx).await?;
            ctx.route = Some(route.clone());
        }
        let limiter = self.resolver.limiter(&route);
        ctx.max_body = limiter.max_body(live.limits.max_body_bytes.get() as u64);
        policy::declared_length(request, ctx.max_body)?;
        if session.is_upgrade_req() && policy::is_read_only(&route.policy, request) {
            return Err(Rejection::ReadOnly.into());
        }
        ctx.slot = Some(limiter.admit().await?);
        let path = target.split_once('?').map_or(target, |(path, _)| path);
        let pool = live.pools.of(path, route.policy.pools.as_ref()).ok_or(Rejection::NoRoute)?;
        ctx.token = Some(self.resolver.token(&route, &host, &pool.audience, is_neutral)?);
        ctx.is_upgrade = session.is_upgrade_req();
        // From now on: what was spent on waiting for the end of a maintenance is not the exchange's.
        ctx.deadline = deadline(&pool, Instant::now());
        pool.began();
        ctx.pool = Some(pool);
        ctx.host = Some(host);
        ctx.is_neutral = is_neutral;
        ctx.name = Some(name);
        if let Some(target) = rewritten {
            session.req_header_mut().set_raw_path(target.as_bytes()).map_err(|_| Rejection::Malformed)?;
        }
        Ok(Admitted::Forward)
    }

    fn passage(&self, route: &Route, request: &RequestHeader) -> Result<Passage, Refusal> {
        policy::pass(route.tenant.status, route.policy.maintenance.as_deref(), request)
    }

    /// Waits until an organisation is served again, for so long and among so many at most.
    async fn hold(
        &self,
        name: &Name,
        route: &Hit<Route>,
        patience: Duration,
        requests: u32,
        request: &RequestHeader,
        ctx: &RequestCtx,
    ) -> Result<Hit<Route>, Refusal> {
        let too_long = Refusal {
            rejection: Rejection::HeldTooLong,
            retry_after: route.policy.maintenance.as_ref().map(|m| m.retry_after),
        };
        let _held = self.resolver.limiter(route).hold(requests).ok_or(too_long)?;
        let until = Instant::now() + patience;
        while Instant::now() < until {
            tokio::time::sleep(LOOK_AGAIN.min(until.saturating_duration_since(Instant::now()))).await;
            ctx.moved();
            // At hand until a notice comes.
            let now = self.resolver.get(name).await?;
            if now.tenant.id != route.tenant.id {
                return Err(Rejection::UnknownHost.into());
            }
            if self.passage(&now, request)? == Passage::Serve {
                return Ok(now);
            }
        }
        Err(too_long)
    }

    /// The cookie with which a browser passes, and back to where it wanted to go.
    async fn bypass(
        &self,
        session: &mut ServerSession,
        secret: &str,
        target: &str,
        ctx: &RequestCtx,
    ) -> Result<()> {
        let cookie = format!(
            "{}={secret}; Path=/; Max-Age=86400; Secure; HttpOnly; SameSite=Lax",
            policy::BYPASS_COOKIE
        );
        let mut head = ResponseHeader::build(303, Some(8))?;
        head.insert_header(header::LOCATION, target)?;
        head.insert_header(header::SET_COOKIE, cookie)?;
        head.insert_header(header::CACHE_CONTROL, "no-store")?;
        head.insert_header(header::REFERRER_POLICY, "no-referrer")?;
        head.insert_header(header::CONTENT_LENGTH, "0")?;
        head.insert_header("X-Request-ID", ctx.request_id.as_str())?;
        self.live.load().promises.set(&mut head, ctx.is_tls)?;
        session.write_response_header(Box::new(head)).await
    }

    /// What the certificate authority came for (RFC 8555, section 8.3).
    async fn prove(&self, session: &mut ServerSession, text: String, ctx: &RequestCtx) -> Result<()> {
        let mut head = ResponseHeader::build(200, Some(5))?;
        head.insert_header(header::CONTENT_TYPE, "application/octet-stream")?;
        head.insert_header(header::CONTENT_LENGTH, text.len().to_string())?;
        head.insert_header(header::CACHE_CONTROL, "no-store")?;
        head.insert_header("X-Request-ID", ctx.request_id.as_str())?;
        self.live.load().promises.set(&mut head, ctx.is_tls)?;
        session.write_response_header(Box::new(head)).await?;
        let bodyless = session.req_header().method == http::Method::HEAD;
        let body = if bodyless { Bytes::new() } else { Bytes::from(text) };
        session.write_response_body(body, true).await
    }

    /// The same tenant again, from the master: the api knows a newer generation.
    async fn readmit(&self, request: &RequestHeader, ctx: &mut RequestCtx) -> Result<(), Rejection> {
        let (Some(name), Some(host)) = (ctx.name.clone(), ctx.host.clone()) else {
            return Err(Rejection::Internal);
        };
        let route = self.resolver.get(&name).await?;
        match self.passage(&route, request).map_err(|r| r.rejection)? {
            Passage::Serve => {}
            Passage::Hold { .. } => return Err(Rejection::HeldTooLong),
        }
        // It may have moved to backends of its own.
        let target = std::str::from_utf8(request.raw_path()).map_err(|_| Rejection::Malformed)?;
        let path = target.split_once('?').map_or(target, |(path, _)| path);
        let live = self.live.load_full();
        let pool = live.pools.of(path, route.policy.pools.as_ref()).ok_or(Rejection::NoRoute)?;
        ctx.token = Some(self.resolver.token(&route, &host, &pool.audience, ctx.is_neutral)?);
        ctx.pool = Some(pool);
        ctx.route = Some(route);
        Ok(())
    }

    /// Counts a failure against the backend where it happened. A backend that waits for a body, or says nothing on a
    /// WebSocket, is not late.
    fn blame(&self, session: &mut ServerSession, ctx: &mut RequestCtx, error: &Error, reused: bool) {
        let is_late = error.esource() == &ErrorSource::Upstream && error.etype() == &ErrorType::ReadTimedout;
        if is_late && !session.was_upgraded() && !session.is_body_done() {
            ctx.rejection = Some(Rejection::RequestTimeout);
        }
        if is_late && (session.was_upgraded() || !session.is_body_done()) {
            return;
        }
        if let (Some(pool), Some(lease)) = (&ctx.pool, &ctx.lease)
            && upstream::is_backends_fault(error, reused)
        {
            pool.failed(&lease.0);
        }
    }

    /// A WebSocket begins: it may be silent for longer, and ends when its organisation is served no more.
    fn upgraded(self: &Arc<Self>, session: &mut ServerSession, ctx: &RequestCtx) {
        let (Some(pool), Some(name), Some(route)) = (&ctx.pool, &ctx.name, &ctx.route) else { return };
        let idle = Some(*pool.config.websocket_idle_timeout);
        session.set_read_timeout(idle);
        session.set_write_timeout(idle);
        let Some(end) = connection_info(session).map(|info| info.end.clone()) else { return };
        // What was let in is held to what goes for it: its secret, if it came with one, for as long as that is right.
        let (edge, name, id, head) =
            (self.clone(), name.clone(), route.tenant.id, session.req_header().clone());
        drop(tasks::detach("websocket-watch", async move {
            loop {
                tokio::select! {
                    () = end.cancelled() => return,
                    () = tokio::time::sleep(WATCH_EVERY) => {}
                }
                // At hand most of the time; a notice makes it ask again.
                let served = edge.resolver.get(&name).await;
                let goes_on = |r: &Route| {
                    // A GET may be let in where only reading is; what is said on a WebSocket may be anything.
                    let is_writable = match edge.passage(r, &head) {
                        Ok(passage) => passage == Passage::Serve && !policy::is_read_only(&r.policy, &head),
                        Err(_) => false,
                    };
                    r.tenant.id == id && is_writable
                };
                if !served.is_ok_and(|r| goes_on(&r)) {
                    return end.cancel();
                }
            }
        }));
    }

    /// 308 to HTTPS on the public port, with path and query as they came.
    async fn redirect(&self, session: &mut ServerSession, host: &Hostname, ctx: &RequestCtx) -> Result<()> {
        let target = String::from_utf8_lossy(session.req_header().raw_path()).into_owned();
        let port = match self.public_https_port {
            443 => String::new(),
            port => format!(":{port}"),
        };
        let path = if target.starts_with('/') { target.as_str() } else { "/" };
        let mut head = ResponseHeader::build(308, Some(6))?;
        head.insert_header(header::LOCATION, format!("https://{host}{port}{path}"))?;
        head.insert_header(header::CONTENT_LENGTH, "0")?;
        head.insert_header("X-Request-ID", ctx.request_id.as_str())?;
        self.live.load().promises.set(&mut head, ctx.is_tls)?;
        session.write_response_header(Box::new(head)).await
    }

    async fn refuse(
        &self,
        session: &mut ServerSession,
        ctx: &mut RequestCtx,
        refusal: Refusal,
    ) -> Result<()> {
        let Refusal { rejection, retry_after } = refusal;
        ctx.rejection = Some(rejection);
        self.metrics.rejected(rejection);
        let live = self.live.load_full();
        let reply = Reply {
            request_id: &ctx.request_id,
            promises: &live.promises,
            is_tls: ctx.is_tls,
            retry_after,
            branding: ctx.route.as_ref().and_then(|r| r.policy.branding.as_deref()),
        };
        rejection.answer(session, &reply).await?;
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
    Bypass { secret: String, target: String },
    Proof(String),
}

/// What is logged of a request.
fn line<'a>(
    request: &'a RequestHeader,
    ctx: &'a RequestCtx,
    status: u16,
    took: Duration,
    sent: u64,
) -> access::Line<'a> {
    let ms = |d: Duration| d.as_secs_f64() * 1e3;
    let path = request.uri.path();
    let end = (0..=path.len().min(MAX_LOGGED_PATH)).rev().find(|n| path.is_char_boundary(*n)).unwrap_or(0);
    access::Line {
        at: time::OffsetDateTime::now_utc() - took,
        request_id: &ctx.request_id,
        tenant: ctx.route.as_ref().map(|r| r.tenant.slug.as_str()),
        host: ctx.host.as_ref().map(Hostname::as_str),
        method: request.method.as_str(),
        path: &path[..end],
        protocol: if request.version == http::Version::HTTP_2 { "HTTP/2" } else { "HTTP/1.1" },
        tls: ctx.is_tls,
        status,
        reason: ctx.rejection.map(Rejection::label),
        duration_ms: ms(took),
        upstream_ms: ctx.upstream.and_then(|(_, took)| took).map(ms),
        lookup_ms: ms(ctx.lookup),
        attempts: ctx.attempts,
        bytes_in: ctx.bytes_in,
        bytes_out: sent,
        client: ctx.client,
    }
}

/// Whose request it is, which a configured proxy may say.
fn client(proxies: &Proxies, connection: IpAddr, request: &RequestHeader) -> IpAddr {
    if proxies.forwarded_from.is_empty() {
        return connection;
    }
    let fields = request.headers.get_all("x-forwarded-for").iter();
    proxies.client(connection, fields.map(|v| v.to_str().unwrap_or("")))
}

/// What the listener knows of the connection.
fn connection_info(session: &ServerSession) -> Option<&ConnectionInfo> {
    session.digest()?.proxy_digest.as_ref()?.user_data.as_ref()?.downcast_ref()
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
            Ok(Admitted::Bypass { secret, target }) => {
                self.0.bypass(session, &secret, &target, ctx).await.map(|()| true)
            }
            Ok(Admitted::Proof(text)) => self.0.prove(session, text, ctx).await.map(|()| true),
            Err(refusal) => self.0.refuse(session, ctx, refusal).await.map(|()| true),
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
            && let Err(rejection) = self.0.readmit(session.req_header(), ctx).await
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
        ctx.lease = Some(lease);
        Ok(peer)
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
        if let Some(lease) = &ctx.lease {
            lease.0.succeeded();
        }
        if let Some((asked, took)) = &mut ctx.upstream {
            *took = Some(asked.elapsed());
        }
        let session: &mut ServerSession = session.as_mut();
        if response.status == http::StatusCode::SWITCHING_PROTOCOLS {
            ctx.deadline = None;
            self.0.upgraded(session, ctx);
        }
        if self.0.stop.is_cancelled() {
            session.set_keepalive(None);
        }
        headers::to_client(response, ctx, &self.0.live.load().promises)
    }

    fn response_body_filter(
        &self,
        _: &mut Session,
        _: &mut Option<Bytes>,
        _: bool,
        ctx: &mut RequestCtx,
    ) -> Result<Option<std::time::Duration>> {
        ctx.moved();
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
        if let Some(pool) = &ctx.pool {
            pool.seconds.observe(took.as_secs_f64());
        }
        let sent = session.as_ref().body_bytes_sent() as u64;
        if status > 0 {
            let series = ctx.series.take().unwrap_or_else(|| self.0.metrics.tenants.unknown());
            series.request(status, took, ctx.bytes_in, sent);
        } else {
            ctx.abandoned();
        }
        if let Some(log) = self.0.access.as_ref().filter(|log| log.wants(status)) {
            log.write(&line(session.req_header(), ctx, status, took, sent));
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

const MAX_LOGGED_PATH: usize = 1024;
const LINGER: std::time::Duration = std::time::Duration::from_millis(500);
/// How often a request that waits looks whether it may go on.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How often a WebSocket's organisation is looked up.
const WATCH_EVERY: std::time::Duration = std::time::Duration::from_secs(1);
const STALE_HEADER: &str = "x-gmah-stale";
