//! Steps 4 to 6 of a request, and what goes for it until it has ended.

mod replies;

use std::sync::Arc;
use std::time::{Duration, Instant};

use gmah_shared::catalog::Hit;
use gmah_shared::hostname::Hostname;
use gmah_shared::tasks;
use http::HeaderName;
use pingora_core::protocols::http::ServerSession;
use pingora_error::{Error, ErrorSource, ErrorType};
use pingora_http::RequestHeader;
use tokio_util::sync::CancellationToken;

use crate::access;
use crate::authority;
use crate::certs::challenges::{self, Challenges};
use crate::config::Proxies;
use crate::ctx::{Client, ConnectionInfo, Progress, RequestCtx};
use crate::headers;
use crate::limits::share_of_held;
use crate::listener::Counts;
use crate::live;
use crate::metrics::Metrics;
use crate::policy::{self, Passage};
use crate::reject::{Refusal, Rejection};
use crate::resolve::{Asked, Name, Resolver, Route};
use crate::trace::Tracing;
use crate::upstream;
use crate::upstream::pool::deadline;
use crate::usage::Usage;

pub(crate) use replies::line;

/// What every worker shares.
pub struct Edge {
    /// Hosts to tenants.
    pub resolver: Resolver,
    /// What goes for requests that begin now.
    pub live: live::Handle,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// What is counted for bills.
    pub usage: Arc<Usage>,
    /// Where requests are logged.
    pub access: Option<access::Log>,
    /// What begins spans, where traces are configured.
    pub tracing: Option<Tracing>,
    /// Proofs for the certificate authority.
    pub challenges: Arc<Challenges>,
    /// Port of HTTPS as browsers see it.
    pub public_https_port: u16,
    /// Cancelled when the router is to stop: then every response says that its connection ends.
    pub stop: CancellationToken,
}

impl Edge {
    /// Steps 4 to 6: fills `ctx`, or says how the request is refused.
    pub(crate) async fn admit(
        &self,
        session: &mut ServerSession,
        ctx: &mut RequestCtx,
    ) -> Result<Admitted, Refusal> {
        let live = self.live.load_full();
        let info = connection_info(session).ok_or(Rejection::Internal)?;
        ctx.client = Some(client(&live.proxies, &info.client, session.req_header()));
        if let Some(tracing) = &self.tracing {
            let is_trusted = live.proxies.may_forward(info.client.address);
            ctx.trace = Some(Box::new(tracing.begin(session.req_header(), is_trusted, ctx.began.elapsed())));
        }
        ctx.is_tls = info.certificate_names.is_some();
        ctx.progress = session.req_header().extensions.get::<Progress>().cloned();
        let certificate_names = info.certificate_names.clone();

        let request = session.req_header();
        if request.version == http::Version::HTTP_2 {
            policy::http2_bounds(request)?;
        }
        let host = authority::hostname(request)?;
        let is_neutral = self.resolver.is_neutral(&host);
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
        if !ctx.is_tls && is_neutral {
            return Ok(Admitted::Redirect(host));
        }
        // Elsewhere the host alone decides, and whatever else is said is not looked at.
        let header = if is_neutral { single(request, headers::TENANT_ID)? } else { None };
        let Asked { name, target: rewritten, .. } = self.resolver.ask(&host, target, header)?;
        // A secret of ours does not go on, whether it is of use or not.
        let rewritten = policy::without_secret(rewritten.as_deref().unwrap_or(target))
            .or_else(|| rewritten.map(std::borrow::Cow::into_owned));
        let mut route = match self.resolver.peek(&name) {
            Some(route) => route,
            // What is rarely waited for is not carried along by every request.
            None => Box::pin(self.resolver.get(&name)).await?,
        };
        ctx.lookup = ctx.began.elapsed();
        ctx.host = Some(host.clone());
        if !ctx.is_tls {
            ctx.series = Some(self.resolver.series(&route));
            return Ok(Admitted::Redirect(host));
        }
        let mut hot = self.resolver.hot(&route, ctx.began);
        ctx.series = Some(hot.series.clone());
        // From here on a refusal may look like the organisation's own.
        ctx.route = Some(route.clone());
        // A neutral host has no cookies.
        if !is_neutral
            && let Some((secret, target)) = policy::bypass_link(route.policy.maintenance.as_deref(), request)
        {
            return Ok(Admitted::Bypass { secret: secret.to_owned(), target });
        }
        // Nobody takes the whole of an organisation's places; whom a proxy names is the proxy's to bound.
        let own =
            ctx.client.as_ref().is_some_and(|c| c.address == info.client.address).then_some(&info.requests);
        if let Passage::Hold { patience, requests } = self.passage(&route, request)? {
            let share = share_of_held(requests as usize);
            let _waits = match own.map(|own| own.enter(Counts::Held(route.tenant.id), share)) {
                Some(None) => return Err(policy::held_too_long(&route.policy)),
                counted => counted,
            };
            let _held = hot.limiter.hold(requests).ok_or(policy::held_too_long(&route.policy))?;
            route = Box::pin(self.hold(&name, &route, patience, request, ctx)).await?;
            hot = self.resolver.hot(&route, Instant::now());
            ctx.route = Some(route.clone());
        }
        ctx.max_body = hot.limiter.max_body(live.limits.max_body_bytes.get() as u64);
        policy::declared_length(request, ctx.max_body)?;
        if session.is_upgrade_req() && policy::is_read_only(&route.policy, request) {
            return Err(Rejection::ReadOnly.into());
        }
        if let Some(own) = own {
            let counted = own.enter(Counts::InFlight(route.tenant.id), hot.limiter.per_address());
            ctx.counted = Some(counted.ok_or(Rejection::TooManyOfAddress)?);
        }
        ctx.slot = Some(hot.limiter.admit().await?);
        let path = target.split_once('?').map_or(target, |(path, _)| path);
        let pool = route.pool(&live.pools, path)?;
        ctx.token = Some(self.resolver.token(&route, &hot, &host, &pool, is_neutral)?);
        ctx.is_upgrade = session.is_upgrade_req();
        // From now on: what was spent on waiting for the end of a maintenance is not the exchange's.
        ctx.deadline = deadline(&pool, Instant::now());
        pool.began();
        ctx.pool = Some(pool);
        ctx.is_neutral = is_neutral;
        ctx.name = Some(name);
        headers::forget_spelling(session.req_header_mut());
        if let Some(target) = rewritten {
            session.req_header_mut().set_raw_path(target.as_bytes()).map_err(|_| Rejection::Malformed)?;
        }
        Ok(Admitted::Forward)
    }

    pub(crate) fn passage(&self, route: &Route, request: &RequestHeader) -> Result<Passage, Refusal> {
        policy::pass(route.tenant.status, route.policy.maintenance.as_deref(), request)
    }

    /// Waits until an organisation is served again, for so long at most.
    pub(crate) async fn hold(
        &self,
        name: &Name,
        route: &Hit<Route>,
        patience: Duration,
        request: &RequestHeader,
        ctx: &RequestCtx,
    ) -> Result<Hit<Route>, Refusal> {
        let too_long = policy::held_too_long(&route.policy);
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

    /// The same tenant again, from the master: the api knows a newer generation.
    pub(crate) async fn readmit(
        &self,
        request: &RequestHeader,
        ctx: &mut RequestCtx,
    ) -> Result<(), Rejection> {
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
        let pool = route.pool(&live.pools, path)?;
        let hot = self.resolver.hot(&route, Instant::now());
        ctx.token = Some(self.resolver.token(&route, &hot, &host, &pool, ctx.is_neutral)?);
        ctx.pool = Some(pool);
        ctx.route = Some(route);
        Ok(())
    }

    /// Counts a failure against the backend where it happened. A backend that waits for a body, or says nothing on a
    /// WebSocket, is not late.
    pub(crate) fn blame(
        &self,
        session: &mut ServerSession,
        ctx: &mut RequestCtx,
        error: &Error,
        reused: bool,
    ) {
        if let Some(trace) = &mut ctx.trace {
            trace.failed(error.etype().as_str());
        }
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
    pub(crate) fn upgraded(self: &Arc<Self>, session: &mut ServerSession, ctx: &RequestCtx) {
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
}

/// What becomes of a request that is not refused.
pub(crate) enum Admitted {
    Forward,
    Redirect(Hostname),
    Bypass { secret: String, target: String },
    Proof(String),
}

/// Whose request it is, which a configured proxy may say.
fn client(proxies: &Proxies, connection: &Client, request: &RequestHeader) -> Client {
    if proxies.forwarded_from.is_empty() {
        return connection.clone();
    }
    let fields = request.headers.get_all("x-forwarded-for").iter();
    match proxies.client(connection.address, fields.map(|v| v.to_str().unwrap_or(""))) {
        named if named == connection.address => connection.clone(),
        named => named.into(),
    }
}

/// What the listener knows of the connection.
fn connection_info(session: &ServerSession) -> Option<&ConnectionInfo> {
    session.digest()?.proxy_digest.as_ref()?.user_data.as_ref()?.downcast_ref()
}

/// A field that may stand there once at most.
fn single(request: &RequestHeader, name: HeaderName) -> Result<Option<&[u8]>, Rejection> {
    let mut values = request.headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => Ok(Some(value.as_bytes())),
        (None, _) => Ok(None),
        (Some(_), Some(_)) => Err(Rejection::TenantConflict),
    }
}

/// How often a request that waits looks whether it may go on.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How often a WebSocket's organisation is looked up.
const WATCH_EVERY: Duration = Duration::from_secs(1);
