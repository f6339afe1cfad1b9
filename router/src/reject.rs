//! Every refusal of the edge: status, code, what the client reads, whether the connection goes on. One table.
//!
//! The body is `application/problem+json` (RFC 9457), or a small page where the client prefers HTML. It never holds a
//! cause, an address or anybody's name.

use bytes::Bytes;
use gmah_shared::catalog::Branding;
use http::header;
use pingora_core::protocols::http::ServerSession;
use pingora_error::Result;
use pingora_http::ResponseHeader;

use crate::ctx::RequestId;
use crate::headers::Promises;

/// Why the edge answers by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rejection {
    /// The head cannot be read in only one way.
    Malformed,
    /// No host, two hosts, or one that is no host name.
    BadHost,
    /// `X-Tenant-ID` and `?tenant=` disagree.
    TenantConflict,
    /// The authority is outside the names of this connection's certificate.
    Misdirected,
    /// No such host.
    UnknownHost,
    /// The organisation is suspended.
    Suspended,
    /// The organisation is being created.
    Provisioning,
    /// The organisation is being worked on.
    Maintenance,
    /// The master is away and the host is not known.
    CatalogUnavailable,
    /// No token could be minted.
    NoSigningKey,
    /// The api knows a newer generation and the request cannot be tried again.
    StaleGeneration,
    /// Only safe methods are served while the organisation is worked on.
    ReadOnly,
    /// The organisation is worked on, and the request waited long enough, or too many do.
    HeldTooLong,
    /// The organisation's requests come too fast.
    RateLimited,
    /// The organisation has too many requests in flight.
    TooManyConcurrent,
    /// One address has taken its part of an organisation's places.
    TooManyOfAddress,
    /// The edge has too much to do, and the organisation more than its share of it.
    Overloaded,
    /// The body is over the limit.
    BodyTooLarge,
    /// The target is over 8 KiB.
    TargetTooLong,
    /// The head is over 32 KiB or 100 fields.
    HeadTooLarge,
    /// `CONNECT` or `TRACE`.
    Method,
    /// The client did not finish its request in time.
    RequestTimeout,
    /// No rule says where the path goes.
    NoRoute,
    /// No backend of the pool is well.
    NoBackend,
    /// No backend answered.
    BadGateway,
    /// A backend answered too late.
    GatewayTimeout,
    /// HTTP/2 streams were begun and abandoned, over and over.
    TooManyResets,
    /// A fault of ours.
    Internal,
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// Status.
    pub status: u16,
    /// `code` of the body, and label of the metric.
    pub code: &'static str,
    /// `title` of the body.
    pub title: &'static str,
    /// Whether the connection must end: what follows on it cannot be trusted.
    pub close: bool,
    /// Seconds for `Retry-After`.
    pub retry_after: Option<u32>,
}

const fn row(status: u16, code: &'static str, title: &'static str) -> Row {
    Row { status, code, title, close: false, retry_after: None }
}

impl Row {
    const fn closing(self) -> Self {
        Self { close: true, ..self }
    }

    const fn retry(self, seconds: u32) -> Self {
        Self { retry_after: Some(seconds), ..self }
    }
}

/// A refusal, and after how many seconds it is worth trying again, where that is known better than by the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub rejection: Rejection,
    /// Seconds, at least 1.
    pub retry_after: Option<u32>,
}

impl From<Rejection> for Refusal {
    fn from(rejection: Rejection) -> Self {
        Self { rejection, retry_after: None }
    }
}

/// What an answer needs beyond the refusal.
pub struct Reply<'a> {
    /// For the client and the log.
    pub request_id: &'a RequestId,
    /// What every response says.
    pub promises: &'a Promises,
    /// Whether over TLS.
    pub is_tls: bool,
    /// Seconds, where they are known better than by the table.
    pub retry_after: Option<u32>,
    /// How the organisation's pages look.
    pub branding: Option<&'a Branding>,
}

/// RFC 9457.
const PROBLEM: &str = "application/problem+json";

impl Rejection {
    /// Every variant, for metrics and tests.
    pub const ALL: [Self; 28] = [
        Self::Malformed,
        Self::BadHost,
        Self::TenantConflict,
        Self::Misdirected,
        Self::UnknownHost,
        Self::Suspended,
        Self::Provisioning,
        Self::Maintenance,
        Self::CatalogUnavailable,
        Self::NoSigningKey,
        Self::StaleGeneration,
        Self::ReadOnly,
        Self::HeldTooLong,
        Self::RateLimited,
        Self::TooManyConcurrent,
        Self::TooManyOfAddress,
        Self::Overloaded,
        Self::BodyTooLarge,
        Self::TargetTooLong,
        Self::HeadTooLarge,
        Self::Method,
        Self::RequestTimeout,
        Self::NoRoute,
        Self::NoBackend,
        Self::BadGateway,
        Self::GatewayTimeout,
        Self::TooManyResets,
        Self::Internal,
    ];

    /// The table.
    pub const fn row(self) -> Row {
        match self {
            Self::Malformed => row(400, "malformed_request", "The request is malformed.").closing(),
            Self::BadHost => row(400, "bad_host", "The request has no valid host.").closing(),
            Self::TenantConflict => {
                row(400, "tenant_conflict", "The request names two organisations.").closing()
            }
            Self::Misdirected => row(421, "misdirected_request", "This host is not served here."),
            Self::UnknownHost | Self::NoRoute => row(404, "not_found", "There is nothing here."),
            Self::Suspended => row(403, "organization_suspended", "This organisation is suspended."),
            Self::Provisioning => {
                row(503, "organization_provisioning", "This organisation is being set up.").retry(5)
            }
            Self::Maintenance | Self::HeldTooLong => {
                row(503, "organization_maintenance", "This organisation is under maintenance.").retry(30)
            }
            Self::ReadOnly => {
                row(503, "organization_read_only", "This organisation can only be read right now.").retry(30)
            }
            Self::RateLimited | Self::TooManyConcurrent | Self::Overloaded => {
                row(429, "too_many_requests", "Too many requests for this organisation.").retry(1)
            }
            Self::TooManyOfAddress => {
                row(429, "too_many_requests", "Too many requests at once from this address.").retry(1)
            }
            Self::CatalogUnavailable | Self::NoSigningKey | Self::StaleGeneration | Self::NoBackend => {
                row(503, "unavailable", "The service is not available right now.").retry(1)
            }
            Self::BodyTooLarge => row(413, "too_large", "The body is too large.").closing(),
            Self::TargetTooLong => row(414, "target_too_long", "The address is too long.").closing(),
            Self::HeadTooLarge => row(431, "header_too_large", "The request header is too large.").closing(),
            Self::Method => row(405, "method_not_allowed", "This method is not allowed here.").closing(),
            Self::RequestTimeout => row(408, "request_timeout", "The request took too long.").closing(),
            Self::BadGateway => row(502, "bad_gateway", "The service did not answer."),
            Self::GatewayTimeout => row(504, "gateway_timeout", "The service did not answer in time."),
            Self::TooManyResets => {
                row(429, "too_many_resets", "Too many requests were abandoned.").closing().retry(1)
            }
            Self::Internal => row(500, "internal", "Something went wrong.").closing(),
        }
    }

    /// Label of the metric: the variant, also where several share a body.
    pub const fn label(self) -> &'static str {
        match self {
            Self::CatalogUnavailable => "catalog_unavailable",
            Self::NoSigningKey => "no_signing_key",
            Self::StaleGeneration => "stale_generation",
            Self::NoBackend => "no_backend",
            Self::HeldTooLong => "held_too_long",
            Self::RateLimited => "rate_limited",
            Self::TooManyConcurrent => "too_many_concurrent",
            Self::TooManyOfAddress => "too_many_of_address",
            Self::Overloaded => "overloaded",
            Self::NoRoute => "no_route",
            other => other.row().code,
        }
    }

    /// The body as `application/problem+json`. Its length depends on the refusal only.
    pub fn problem(self, request_id: &str) -> String {
        let Row { status, code, title, .. } = self.row();
        format!(
            "{{\"type\":\"about:blank#{code}\",\"title\":\"{title}\",\"status\":{status},\"code\":\"{code}\",\
             \"request_id\":\"{request_id}\"}}\n"
        )
    }

    /// The whole response as HTTP/1.1 bytes, for a head that never became a request. The connection ends with it.
    pub fn wire(self, request_id: &str) -> Vec<u8> {
        let Row { status, retry_after, .. } = self.row();
        let body = self.problem(request_id);
        let reason =
            http::StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason()).unwrap_or("Error");
        let retry = retry_after.map_or_else(String::new, |s| format!("Retry-After: {s}\r\n"));
        let allow = if status == 405 { format!("Allow: {ALLOW}\r\n") } else { String::new() };
        format!(
            "HTTP/1.1 {status} {reason}\r\nContent-Type: {PROBLEM}\r\nContent-Length: {}\r\nX-Request-ID: \
             {request_id}\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n{retry}{allow}Connection: close\r\n\r\n{body}",
            body.len()
        )
        .into_bytes()
    }

    /// Answers a request.
    ///
    /// # Errors
    /// When the client is gone.
    pub async fn answer(self, session: &mut ServerSession, reply: &Reply<'_>) -> Result<()> {
        let row = self.row();
        let Row { status, close, retry_after, .. } = row;
        let mut head = ResponseHeader::build(status, Some(10))?;
        let body = if prefers_html(
            session.req_header().headers.get_all(header::ACCEPT).iter().map(|v| v.as_bytes()),
        ) {
            let page = crate::page::render(row, reply.request_id.as_str(), reply.branding);
            head.insert_header(header::CONTENT_TYPE, "text/html; charset=utf-8")?;
            head.insert_header(header::CONTENT_SECURITY_POLICY, page.policy)?;
            head.insert_header(header::REFERRER_POLICY, "no-referrer")?;
            page.html
        } else {
            head.insert_header(header::CONTENT_TYPE, PROBLEM)?;
            self.problem(reply.request_id.as_str())
        };
        head.insert_header(header::CONTENT_LENGTH, body.len().to_string())?;
        head.insert_header("X-Request-ID", reply.request_id.field())?;
        head.insert_header(header::CACHE_CONTROL, "no-store")?;
        reply.promises.set(&mut head, reply.is_tls)?;
        if let Some(seconds) = reply.retry_after.filter(|_| retry_after.is_some()).or(retry_after) {
            head.insert_header(header::RETRY_AFTER, seconds.to_string())?;
        }
        if status == 405 {
            head.insert_header(header::ALLOW, ALLOW)?;
        }
        if close {
            session.set_keepalive(None);
        }
        let bodyless = session.req_header().method == http::Method::HEAD;
        session.write_response_header(Box::new(head)).await?;
        let body = if bodyless { Bytes::new() } else { Bytes::from(body) };
        session.write_response_body(body, true).await
    }
}

/// Methods that are forwarded (RFC 9110, section 15.5.6); what each path takes is the backend's to say.
const ALLOW: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

/// Whether the client names HTML, and JSON with a smaller weight, or later, or not at all (RFC 9110, section 12.5.1).
fn prefers_html<'a>(accept: impl Iterator<Item = &'a [u8]>) -> bool {
    // Weights in thousandths; of what comes first, more.
    let (mut html, mut json) = (0, 0);
    for (at, range) in accept.flat_map(|field| field.split(|b| *b == b',')).take(MAX_RANGES).enumerate() {
        let mut parts = range.split(|b| *b == b';').map(<[u8]>::trim_ascii);
        let media = parts.next().unwrap_or_default();
        let is_json = media.len() >= 4 && media[media.len() - 4..].eq_ignore_ascii_case(b"json");
        let weight = match media {
            _ if is_json => &mut json,
            _ if media.eq_ignore_ascii_case(b"text/html") => &mut html,
            _ => continue,
        };
        let said = parts.find_map(|p| p.strip_prefix(b"q=").or(p.strip_prefix(b"Q=")));
        let thousandths = said.map_or(1000, |q| {
            let q = std::str::from_utf8(q).ok().and_then(|q| q.parse::<f32>().ok()).unwrap_or(0.0);
            (q.clamp(0.0, 1.0) * 1000.0).round() as usize
        });
        if thousandths > 0 {
            *weight = (*weight).max(thousandths * MAX_RANGES - at);
        }
    }
    html > json
}

/// Media ranges that are looked at.
const MAX_RANGES: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn html_is_for_those_who_prefer_it() {
        for (accept, html) in [
            (&["text/html"][..], true),
            (&["Text/HTML;level=1, */*;q=0.8"], true),
            (&["text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"], true),
            (&["text/html, application/json"], true),
            (&["application/json;q=0.1, text/html"], true),
            (&["application/json;q=0.1", "text/html;q=0.2"], true),
            (&["application/json, text/html"], false),
            (&["text/html;q=0.1, application/json"], false),
            (&["text/html;q=0.501", "application/problem+json; Q=0.502"], false),
            (&["text/html;q=0"], false),
            (&["text/html;q=x"], false),
            (&["application/xhtml+html, text/htmls"], false),
            (&["*/*"], false),
            (&[""], false),
            (&[], false),
        ] {
            assert_eq!(prefers_html(accept.iter().map(|a| a.as_bytes())), html, "{accept:?}");
        }
    }

    #[test]
    fn every_refusal_has_one_constant_body() {
        let id = "00000000-0000-4000-8000-000000000000";
        for r in Rejection::ALL {
            let row = r.row();
            let json = r.problem(id);
            let parsed: serde_json::Value = serde_json::from_str(&json).expect("JSON");
            assert_eq!(parsed["status"], row.status, "{r:?}");
            assert_eq!(parsed["code"], row.code);
            assert_eq!(parsed["request_id"], id);
            assert!(crate::page::render(row, id, None).html.contains(row.title));
            assert_eq!(matches!(row.status, 429 | 503), row.retry_after.is_some(), "{r:?}");
            // What cannot be read, or was not read to its end, ends the connection.
            assert!(row.close || !matches!(row.status, 400 | 405 | 408 | 413 | 414 | 431), "{r:?}");
            let wire = String::from_utf8(r.wire(id)).expect("ASCII");
            assert!(wire.starts_with(&format!("HTTP/1.1 {} ", row.status)) && wire.ends_with(&json));
            for word in ["pingora", "postgres", "127.0.0.1", "gmah_"] {
                assert!(!wire.to_lowercase().contains(word));
            }
        }
    }

    #[test]
    fn labels_are_distinct() {
        let mut labels: Vec<_> = Rejection::ALL.iter().map(|r| r.label()).collect();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), Rejection::ALL.len());
    }
}
