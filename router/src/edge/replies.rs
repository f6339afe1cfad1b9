//! What the edge answers by itself, and what it writes down.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gmah_shared::hostname::Hostname;
use http::header;
use pingora_core::protocols::http::ServerSession;
use pingora_http::{RequestHeader, ResponseHeader};

use super::{Admitted, Edge};
use crate::access;
use crate::ctx::{LastWords, RequestCtx};
use crate::policy;
use crate::reject::{Refusal, Rejection, Reply};
use crate::trace::Trace;

impl Edge {
    /// What is not forwarded.
    pub(crate) async fn reply(
        &self,
        session: &mut ServerSession,
        admitted: Result<Admitted, Refusal>,
        ctx: &mut RequestCtx,
    ) -> pingora_error::Result<()> {
        match admitted {
            Ok(Admitted::Forward) => Ok(()),
            Ok(Admitted::Redirect(host)) => self.redirect(session, &host, ctx).await,
            Ok(Admitted::Bypass { secret, target }) => self.bypass(session, &secret, &target, ctx).await,
            Ok(Admitted::Proof(text)) => self.prove(session, text, ctx).await,
            Err(refusal) => self.refuse(session, ctx, refusal).await,
        }
    }

    /// The cookie with which a browser passes, and back to where it wanted to go.
    async fn bypass(
        &self,
        session: &mut ServerSession,
        secret: &str,
        target: &str,
        ctx: &RequestCtx,
    ) -> pingora_error::Result<()> {
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
        head.insert_header("X-Request-ID", ctx.request_id.field())?;
        self.live.load().promises.set(&mut head, ctx.is_tls)?;
        session.write_response_header(Box::new(head)).await
    }

    /// What the certificate authority came for (RFC 8555, section 8.3).
    async fn prove(
        &self,
        session: &mut ServerSession,
        text: String,
        ctx: &RequestCtx,
    ) -> pingora_error::Result<()> {
        let mut head = ResponseHeader::build(200, Some(5))?;
        head.insert_header(header::CONTENT_TYPE, "application/octet-stream")?;
        head.insert_header(header::CONTENT_LENGTH, text.len().to_string())?;
        head.insert_header(header::CACHE_CONTROL, "no-store")?;
        head.insert_header("X-Request-ID", ctx.request_id.field())?;
        self.live.load().promises.set(&mut head, ctx.is_tls)?;
        session.write_response_header(Box::new(head)).await?;
        let bodyless = session.req_header().method == http::Method::HEAD;
        let body = if bodyless { Bytes::new() } else { Bytes::from(text) };
        session.write_response_body(body, true).await
    }

    /// 308 to HTTPS on the public port, with path and query as they came.
    async fn redirect(
        &self,
        session: &mut ServerSession,
        host: &Hostname,
        ctx: &RequestCtx,
    ) -> pingora_error::Result<()> {
        let target = String::from_utf8_lossy(session.req_header().raw_path()).into_owned();
        let port = match self.public_https_port {
            443 => String::new(),
            port => format!(":{port}"),
        };
        let path = if target.starts_with('/') { target.as_str() } else { "/" };
        let mut head = ResponseHeader::build(308, Some(6))?;
        head.insert_header(header::LOCATION, format!("https://{host}{port}{path}"))?;
        head.insert_header(header::CONTENT_LENGTH, "0")?;
        head.insert_header("X-Request-ID", ctx.request_id.field())?;
        self.live.load().promises.set(&mut head, ctx.is_tls)?;
        session.write_response_header(Box::new(head)).await
    }

    pub(crate) async fn refuse(
        &self,
        session: &mut ServerSession,
        ctx: &mut RequestCtx,
        refusal: Refusal,
    ) -> pingora_error::Result<()> {
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

impl Edge {
    /// Counts and logs a request as it is known when its answer is out.
    pub(crate) fn last_words(
        self: &Arc<Self>,
        request: &RequestHeader,
        ctx: &RequestCtx,
        sent: u64,
    ) -> LastWords {
        let status = ctx.status;
        let (edge, series, pool) = (self.clone(), ctx.series.clone(), ctx.pool.clone());
        let (took, received) = (ctx.began.elapsed(), ctx.bytes_in);
        let tenant = ctx.route.as_ref().map(|route| route.tenant.id);
        let wanted = self.access.as_ref().filter(|log| log.wants(status));
        let text = wanted.and_then(|_| access::Written::of(&line(request, ctx, status, took, sent)));
        LastWords(Box::new(move || {
            let series = series.unwrap_or_else(|| edge.metrics.tenants.unknown());
            series.request(status, took, received, sent);
            if let Some(tenant) = tenant {
                edge.usage.request(tenant, received, sent);
            }
            if let Some(pool) = pool {
                pool.seconds.observe(took.as_secs_f64());
            }
            if let (Some(log), Some(text)) = (&edge.access, text) {
                log.send(text);
            }
        }))
    }
}

/// What is logged of a request.
pub(crate) fn line<'a>(
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
        request_id: ctx.request_id.as_str(),
        trace_id: ctx.trace.as_deref().and_then(Trace::id),
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
        client: ctx.client.as_ref().map(|c| c.address),
    }
}

const MAX_LOGGED_PATH: usize = 1024;
const LINGER: Duration = Duration::from_millis(500);
