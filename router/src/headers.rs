//! Step 7: what the client sent under our names goes; our token and forwarding headers are set last.
//!
//! Names are compared folded: lower case, `_` and `.` read as `-`, a CGI-style `HTTP_` in front ignored. A backend
//! that folds names (and many do) sees no second copy of ours.
//!
//! Names go on in lower case. They mean the same in any case (RFC 9110, section 5.1), HTTP/2 knows no other, and the
//! framework's memory of how each was spelled costs as much as the fields themselves.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use pingora_error::{Error, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};

use crate::ctx::RequestCtx;
use crate::policy::BYPASS_COOKIE;

/// Names that only we may use, and names by which other software would be told who the client or the host is.
fn is_ours(name: &str) -> bool {
    let bytes = name.as_bytes();
    // Most headers begin with another letter.
    if !matches!(bytes.first(), Some(b'x' | b'h' | b'f' | b't' | b'c' | b'p' | b'_' | b'.' | b'-')) {
        return false;
    }
    let mut folded = [0u8; 64];
    let Some(folded) = folded.get_mut(..bytes.len()) else {
        // Longer than any name of ours could be, unless it only begins like one.
        return starts_like_ours(&fold(&bytes[..64]));
    };
    folded.copy_from_slice(bytes);
    folded.iter_mut().for_each(fold_byte);
    starts_like_ours(folded) || EXACT.contains(&&*folded)
}

fn starts_like_ours(folded: &[u8]) -> bool {
    let name = folded.strip_prefix(b"http-").unwrap_or(folded);
    let name = name.strip_prefix(b"-").unwrap_or(name);
    PREFIXES.iter().any(|p| name.starts_with(p))
}

fn fold(bytes: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    out.iter_mut().for_each(fold_byte);
    out
}

fn fold_byte(b: &mut u8) {
    *b = if matches!(*b, b'_' | b'.') { b'-' } else { b.to_ascii_lowercase() };
}

const PREFIXES: [&[u8]; 7] =
    [b"x-tenant", b"x-gmah", b"x-forwarded", b"x-internal-", b"x-original-", b"x-rewrite-", b"x-envoy-"];

const EXACT: [&[u8]; 15] = [
    b"forwarded",
    b"x-host",
    b"x-real-ip",
    b"x-client-ip",
    b"x-cluster-client-ip",
    b"x-http-host-override",
    b"x-http-method-override",
    b"x-http-method",
    b"x-method-override",
    b"x-request-id",
    b"true-client-ip",
    b"cf-connecting-ip",
    b"proxy",
    b"proxy-connection",
    b"fastly-client-ip",
];

/// Forgets how the names of a request were spelled.
pub fn forget_spelling(request: &mut RequestHeader) {
    if request.has_case() {
        *request = take(request).into();
    }
}

/// The plain parts of a request, out of which it can be made again. Its target is in origin form, so that nothing of it is
/// lost: [`crate::head`] lets nothing else in, and HTTP/2 has no other.
fn take(request: &mut RequestHeader) -> http::request::Parts {
    let nothing = http::Request::new(()).into_parts().0;
    std::mem::replace(request, nothing.into()).into()
}

/// Makes the request that goes to the backend. Runs for each attempt, after the framework has removed what
/// `Connection` nominates, so nothing nominated by the client can take our headers away.
///
/// # Errors
/// Only for values that are no header values, which ours are.
pub fn to_backend(request: &mut RequestHeader, ctx: &RequestCtx) -> Result<()> {
    let mut parts = take(request);
    let made = fields_to_backend(&mut parts.headers, ctx);
    *request = parts.into();
    made
}

fn fields_to_backend(headers: &mut HeaderMap, ctx: &RequestCtx) -> Result<()> {
    let [has_cookie] = one_pass(headers, [header::COOKIE], |name| is_ours(name.as_str()));
    headers.reserve(OURS);
    if has_cookie && ctx.is_neutral {
        headers.remove(header::COOKIE);
    } else if has_cookie {
        join_cookies(headers)?;
        take_bypass(headers)?;
    }
    let host = value(ctx.host.as_ref().map_or("", |h| h.as_str()).as_bytes())?;
    headers.insert(X_FORWARDED_HOST, host.clone());
    headers.insert(header::HOST, host);
    if let Some(client) = &ctx.client {
        headers.insert(X_FORWARDED_FOR, client.field.clone());
    }
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(if ctx.is_tls { "https" } else { "http" }));
    headers.insert(X_REQUEST_ID, ctx.request_id.field());
    if let Some(token) = &ctx.token {
        headers.insert(TOKEN, token.clone());
    }
    Ok(())
}

fn value(bytes: &[u8]) -> Result<HeaderValue> {
    HeaderValue::from_bytes(bytes)
        .map_err(|e| Error::because(ErrorType::InvalidHTTPHeader, "a field of ours", e))
}

/// So many fields are added to a request.
const OURS: usize = 6;
/// Names the organisation on a neutral host, and nowhere else.
pub const TENANT_ID: HeaderName = HeaderName::from_static("x-tenant-id");
const TOKEN: HeaderName = HeaderName::from_static(gmah_shared::token::HEADER);
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// HTTP/2 may split cookies over several fields; HTTP/1.1 has one (RFC 9113, section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) -> Result<()> {
    let mut crumbs = headers.get_all(header::COOKIE).iter();
    if crumbs.next().is_none() || crumbs.next().is_none() {
        return Ok(());
    }
    let all: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    let joined = value(&all.join(&b"; "[..]))?;
    headers.insert(header::COOKIE, joined);
    Ok(())
}

/// Our own cookie stays with us.
fn take_bypass(headers: &mut HeaderMap) -> Result<()> {
    let Some(cookies) = headers.get(header::COOKIE).map(HeaderValue::as_bytes) else { return Ok(()) };
    if memchr::memmem::find(cookies, BYPASS_COOKIE.as_bytes()).is_none() {
        return Ok(());
    }
    let is_ours =
        |pair: &&[u8]| pair.trim_ascii().split(|b| *b == b'=').next() == Some(BYPASS_COOKIE.as_bytes());
    let rest: Vec<&[u8]> =
        cookies.split(|b| *b == b';').filter(|p| !is_ours(p)).map(<[u8]>::trim_ascii).collect();
    let rest = rest.join(&b"; "[..]);
    headers.remove(header::COOKIE);
    if !rest.is_empty() {
        headers.insert(header::COOKIE, value(&rest)?);
    }
    Ok(())
}

/// What every response over TLS says of itself, whatever a backend says.
pub struct Promises {
    hsts: HeaderValue,
}

impl Promises {
    /// Browsers use HTTPS only for that long.
    pub fn new(hsts_max_age: std::time::Duration) -> Self {
        let hsts = HeaderValue::from_str(&format!("max-age={}", hsts_max_age.as_secs()));
        Self { hsts: hsts.unwrap_or(HeaderValue::from_static("max-age=31536000")) }
    }

    /// Sets them. HSTS means nothing in clear (RFC 6797, section 7.2).
    ///
    /// # Errors
    /// Never with these values.
    pub fn set(&self, response: &mut ResponseHeader, is_tls: bool) -> Result<()> {
        self.fields(is_tls).try_for_each(|(name, value)| response.insert_header(name, value))
    }

    fn fields(&self, is_tls: bool) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
        let hsts = is_tls.then(|| (header::STRICT_TRANSPORT_SECURITY, self.hsts.clone()));
        let nosniff = (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        hsts.into_iter().chain([nosniff])
    }
}

/// Cleans a response on its way to the client.
pub fn to_client(response: &mut ResponseHeader, ctx: &RequestCtx, promises: &Promises) {
    // The only thing besides its parts: said over HTTP/1.1 to whoever reads it.
    let own_reason = response.get_reason_phrase() != response.status.canonical_reason();
    let reason = own_reason.then(|| response.get_reason_phrase().map(str::to_owned)).flatten();
    let nothing = http::Response::new(()).into_parts().0;
    let mut parts: http::response::Parts = std::mem::replace(response, nothing.into()).into();
    fields_to_client(&mut parts.headers, ctx, promises);
    *response = parts.into();
    if reason.is_some() {
        // Never refused: it came as one.
        let _ = response.set_reason_phrase(reason.as_deref());
    }
}

fn fields_to_client(headers: &mut HeaderMap, ctx: &RequestCtx, promises: &Promises) {
    let doomed = |name: &HeaderName| {
        // Where else this host may be reached is ours to say.
        *name == header::SERVER
            || *name == header::ALT_SVC
            || (is_ours(name.as_str()) && !name.as_str().starts_with("x-forwarded"))
    };
    let [has_nominated, has_cookies] = one_pass(headers, [header::CONNECTION, header::SET_COOKIE], doomed);
    if has_nominated {
        nominated(headers).into_iter().for_each(|name| drop(headers.remove(name)));
    }
    if has_cookies && ctx.is_neutral {
        headers.remove(header::SET_COOKIE);
    } else if has_cookies {
        own_cookies(headers, ctx.host.as_ref().map_or("", |h| h.as_str()));
    }
    headers.reserve(OURS);
    for (name, value) in promises.fields(ctx.is_tls) {
        headers.insert(name, value);
    }
    headers.insert(X_REQUEST_ID, ctx.request_id.field());
}

/// A cookie for a parent domain would reach the neighbours: every organisation's host is below the same one. Only
/// cookies without a domain, or for the very host, pass (RFC 6265, section 5.2.3).
fn own_cookies(headers: &mut HeaderMap, host: &str) {
    let all = headers.get_all(header::SET_COOKIE);
    if all.iter().all(|c| is_own_cookie(c.as_bytes(), host)) {
        return;
    }
    let own: Vec<_> = all.iter().filter(|c| is_own_cookie(c.as_bytes(), host)).cloned().collect();
    headers.remove(header::SET_COOKIE);
    for cookie in own {
        headers.append(header::SET_COOKIE, cookie);
    }
}

fn is_own_cookie(cookie: &[u8], host: &str) -> bool {
    cookie.split(|b| *b == b';').skip(1).all(|attribute| {
        let (name, value) = match memchr::memchr(b'=', attribute) {
            Some(at) => (&attribute[..at], &attribute[at + 1..]),
            None => (attribute, &[][..]),
        };
        if !name.trim_ascii().eq_ignore_ascii_case(b"domain") {
            return true;
        }
        let value = value.trim_ascii();
        value.strip_prefix(b".").unwrap_or(value).eq_ignore_ascii_case(host.as_bytes())
    })
}

/// What a backend's `Connection` nominates is for the hop between us (RFC 9110, section 7.6.1). Framing is not, whatever
/// it says, and an upgrade needs its field.
fn nominated(headers: &HeaderMap) -> Vec<HeaderName> {
    let values = headers.get_all(header::CONNECTION).iter().filter_map(|v| v.to_str().ok());
    values
        .flat_map(|v| v.split(','))
        .filter_map(|token| HeaderName::from_bytes(token.trim().as_bytes()).ok())
        .filter(|n| {
            !matches!(n.as_str(), "content-length" | "transfer-encoding" | "upgrade" | "close" | "keep-alive")
        })
        .collect()
}

/// Removes our names from trailers.
pub fn clean_trailers(trailers: &mut HeaderMap) {
    let [] = one_pass(trailers, [], |name| is_ours(name.as_str()));
}

/// Removes what is doomed, of which there usually is nothing, and says which of some others are there: looked for one by one, each
/// would cost as much as all of them do together.
fn one_pass<const N: usize>(
    headers: &mut HeaderMap,
    wanted: [HeaderName; N],
    doomed: impl Fn(&HeaderName) -> bool,
) -> [bool; N] {
    let (mut has, mut names) = ([false; N], Vec::new());
    for name in headers.keys() {
        if let Some(at) = wanted.iter().position(|w| w == name) {
            has[at] = true;
        } else if doomed(name) {
            names.push(name.clone());
        }
    }
    names.into_iter().for_each(|name| drop(headers.remove(name)));
    has
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s03_s04_every_spelling_of_our_names() {
        for name in [
            "x-tenant-token",
            "x_tenant_token",
            "x-tenant_token",
            "x.tenant.token",
            "http_x_tenant_token",
            "http-x-tenant-id",
            "x-tenant-id",
            "x-tenant",
            "x_tenant",
            "x-tenantid",
            "x-gmah-tenant",
            "x-gmah-stale",
            "x_gmah_x",
            "x-forwarded-for",
            "x_forwarded_host",
            "x-forwarded-prefix",
            "x-forwarded-uri",
            "x-forwarded-server",
            "forwarded",
            "x-host",
            "x-original-host",
            "x-original-url",
            "x-rewrite-url",
            "x-http-host-override",
            "true-client-ip",
            "true_client_ip",
            "x-real-ip",
            "cf-connecting-ip",
            "x-request-id",
            "x-internal-secret",
            "proxy",
            "-x-tenant-token",
            "_x_tenant_token",
        ] {
            assert!(is_ours(name), "{name}");
        }
        let long = format!("x-tenant-{}", "a".repeat(200));
        assert!(is_ours(&long));
        for name in [
            "host",
            "accept",
            "x-requested-with",
            "x-api-key",
            "x-csrf-token",
            "authorization",
            "cookie",
            "traceparent",
            "content-type",
            "x-ten",
            "from",
            "te",
            "x-frame-options",
        ] {
            assert!(!is_ours(name), "{name}");
        }
        assert!(!is_ours(&"x".repeat(300)));
    }

    fn promises() -> Promises {
        Promises::new(std::time::Duration::from_secs(60))
    }

    #[test]
    fn s13_nothing_of_ours_leaves() {
        let mut response = ResponseHeader::build(200, None).expect("head");
        for (name, value) in [
            ("X-Tenant-Token", "t"),
            ("x_tenant_id", "t"),
            ("X-Internal-Db", "t"),
            ("Server", "axum"),
            ("ETag", "e"),
        ] {
            response.insert_header(name, value).expect("header");
        }
        let ctx = RequestCtx::new();
        to_client(&mut response, &ctx, &promises());
        let left: Vec<_> = response.headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(left, ["etag", "strict-transport-security", "x-content-type-options", "x-request-id"]);
    }

    #[test]
    fn s13_cookies_stay_with_their_host() {
        let own = |cookie: &str| is_own_cookie(cookie.as_bytes(), "paris.gmah.com");
        for cookie in [
            "a=b",
            "a=b; Path=/; Secure",
            "a=b; Domain=paris.gmah.com",
            "a=b; domain = .PARIS.gmah.com ; HttpOnly",
        ] {
            assert!(own(cookie), "{cookie}");
        }
        for cookie in [
            "a=b; Domain=.gmah.com",
            "a=b;DOMAIN=gmah.com",
            "a=b; Path=/; domain=lyon.gmah.com",
            "a=b; domain=com",
            "a=b; Domain",
        ] {
            assert!(!own(cookie), "{cookie}");
        }
        let mut response = ResponseHeader::build(200, None).expect("head");
        for cookie in ["a=1", "b=2; Domain=.gmah.com", "c=3"] {
            response.append_header("Set-Cookie", cookie).expect("header");
        }
        response.insert_header("Alt-Svc", "h3=\":443\"").expect("header");
        response.insert_header("Connection", "X-Hop, Content-Length").expect("header");
        response.insert_header("X-Hop", "1").expect("header");
        response.insert_header("Content-Length", "0").expect("header");
        let ctx = RequestCtx {
            host: gmah_shared::hostname::Hostname::parse("paris.gmah.com").ok(),
            ..RequestCtx::new()
        };
        to_client(&mut response, &ctx, &promises());
        let cookies: Vec<_> =
            response.headers.get_all("set-cookie").iter().map(|v| v.to_str().expect("text")).collect();
        assert_eq!(cookies, ["a=1", "c=3"]);
        assert!(!response.headers.contains_key("alt-svc") && !response.headers.contains_key("x-hop"));
        assert!(response.headers.contains_key("content-length"));
    }

    #[test]
    fn crumbs_of_cookies_are_joined() {
        let mut request = RequestHeader::build("GET", b"/", None).expect("head");
        for crumb in ["a=1", "b=2", "c=3"] {
            request.append_header("cookie", crumb).expect("header");
        }
        to_backend(&mut request, &RequestCtx::new()).expect("made");
        let all: Vec<_> = request.headers.get_all("cookie").iter().collect();
        assert_eq!(all, ["a=1; b=2; c=3"]);
        request.append_header("cookie", "__Host-gmah-bypass=x; d=4").expect("header");
        to_backend(&mut request, &RequestCtx::new()).expect("made");
        assert_eq!(request.headers["cookie"], "a=1; b=2; c=3; d=4", "ours stays with us");
    }
}
