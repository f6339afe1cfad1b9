//! What the edge answers by itself, and what it writes down.

use std::time::Duration;

use bytes::Bytes;
use gmah_shared::hostname::Hostname;
use http::header;
use pingora_core::protocols::http::ServerSession;
use pingora_error::Result;
use pingora_http::{RequestHeader, ResponseHeader};

use super::Edge;
use crate::access;
use crate::ctx::RequestCtx;
use crate::policy;
use crate::reject::{Refusal, Rejection, Reply};
use crate::trace::Trace;

impl Edge {
    /// The cookie with which a browser passes, and back to where it wanted to go.
    pub(crate) async fn bypass(
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
    pub(crate) async fn prove(
        &self,
        session: &mut ServerSession,
        text: String,
        ctx: &RequestCtx,
    ) -> Result<()> {
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

    /// 308 to HTTPS on the public port, with path and query as they came.
    pub(crate) async fn redirect(
        &self,
        session: &mut ServerSession,
        host: &Hostname,
        ctx: &RequestCtx,
    ) -> Result<()> {
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

    pub(crate) async fn refuse(
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
        request_id: &ctx.request_id,
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
        client: ctx.client,
    }
}

const MAX_LOGGED_PATH: usize = 1024;
const LINGER: Duration = Duration::from_millis(500);
