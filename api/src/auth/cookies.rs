//! Logins of browsers: tokens in cookies that no script reads, and a proof that it was our page that asked.
//!
//! `__Host-` binds a cookie to one host, over TLS (RFC 6265bis, section 4.1.3.2). Every change must bring the value of the
//! third cookie, which scripts of our own pages can read and others' cannot, in `X-CSRF-Token`: an HMAC over the session,
//! so that whoever can plant a cookie still has no valid one.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use gmah_shared::tenant::TenantId;
use http::header::{COOKIE, ORIGIN, SET_COOKIE};
use http::{HeaderMap, HeaderName, HeaderValue};
use ring::hmac;
use subtle::ConstantTimeEq as _;
use uuid::Uuid;

use crate::error::ApiError;

const ACCESS: &str = "__Host-gmah_access";
const REFRESH: &str = "__Host-gmah_refresh";
const CSRF: &str = "__Host-gmah_csrf";
/// The proof of a change.
const CSRF_HEADER: HeaderName = HeaderName::from_static("x-csrf-token");

/// The access token of a browser, if there is exactly one.
pub fn access(headers: &HeaderMap) -> Option<&str> {
    one(headers, ACCESS)
}

/// The refresh token of a browser, if there is exactly one.
pub fn refresh(headers: &HeaderMap) -> Option<&str> {
    one(headers, REFRESH)
}

/// The proof that a page of ours would bring along.
pub fn csrf(key: &hmac::Key, tenant: TenantId, session: Uuid) -> String {
    let mut context = hmac::Context::with_key(key);
    context.update(tenant.as_uuid().as_bytes());
    context.update(session.as_bytes());
    URL_SAFE_NO_PAD.encode(context.sign())
}

/// What a browser's request brings along to show whose page asked.
#[derive(Debug, Clone)]
pub struct Proof {
    origin: Option<HeaderValue>,
    token: Option<HeaderValue>,
}

impl Proof {
    /// Of a request's headers.
    pub fn of(headers: &HeaderMap) -> Self {
        Self { origin: headers.get(ORIGIN).cloned(), token: headers.get(CSRF_HEADER).cloned() }
    }

    /// Refuses a change that a page of somebody else's may have asked for.
    ///
    /// # Errors
    /// [`ApiError::CsrfFailed`].
    pub fn check(
        &self,
        host: &str,
        key: &hmac::Key,
        tenant: TenantId,
        session: Uuid,
    ) -> Result<(), ApiError> {
        self.own_origin(host)?;
        let expected = csrf(key, tenant, session);
        let brought = self.token.as_ref().map(HeaderValue::as_bytes).unwrap_or_default();
        if bool::from(expected.as_bytes().ct_eq(brought)) { Ok(()) } else { Err(ApiError::CsrfFailed) }
    }

    /// Refuses what another site's page asked for, where the browser says so.
    ///
    /// # Errors
    /// [`ApiError::CsrfFailed`].
    pub fn own_origin(&self, host: &str) -> Result<(), ApiError> {
        let Some(origin) = &self.origin else { return Ok(()) };
        let authority = origin.to_str().ok().and_then(|o| o.strip_prefix("https://"));
        let name = authority.map(|a| a.rsplit_once(':').map_or(a, |(name, _)| name));
        if name == Some(host) { Ok(()) } else { Err(ApiError::CsrfFailed) }
    }
}

/// A browser's cookies.
#[derive(Debug, Clone, Copy)]
pub struct Issued<'a> {
    /// Access token, and the seconds that it works.
    pub access: (&'a str, u64),
    /// Refresh token, and the seconds that it works.
    pub refresh: (&'a str, u64),
    /// The proof.
    pub csrf: &'a str,
}

/// Writes them into a response.
pub fn set(headers: &mut HeaderMap, issued: Issued<'_>) {
    let Issued { access, refresh, csrf } = issued;
    append(headers, ACCESS, access.0, "HttpOnly; SameSite=Lax", access.1);
    append(headers, REFRESH, refresh.0, "HttpOnly; SameSite=Strict", refresh.1);
    append(headers, CSRF, csrf, "SameSite=Strict", refresh.1);
}

/// Makes a browser forget them.
pub fn clear(headers: &mut HeaderMap) {
    for (name, how) in [
        (ACCESS, "HttpOnly; SameSite=Lax"),
        (REFRESH, "HttpOnly; SameSite=Strict"),
        (CSRF, "SameSite=Strict"),
    ] {
        append(headers, name, "", how, 0);
    }
}

fn append(headers: &mut HeaderMap, name: &str, value: &str, how: &str, seconds: u64) {
    let text = format!("{name}={value}; Path=/; Secure; {how}; Max-Age={seconds}");
    // Of letters, digits and our own punctuation only.
    if let Ok(value) = HeaderValue::try_from(text) {
        headers.append(SET_COOKIE, value);
    }
}

/// The value of a cookie, unless there are several.
fn one<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let lines = headers.get_all(COOKIE).iter().filter_map(|v| v.to_str().ok());
    let pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    let mut values = pairs.filter(|(n, _)| *n == name).map(|(_, v)| v);
    let first = values.next()?;
    if values.next().is_some() { None } else { Some(first) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(name, HeaderValue::from_str(value).expect("value"));
        }
        map
    }

    #[test]
    fn a_cookie_that_comes_twice_is_none() {
        assert_eq!(access(&headers(&[(COOKIE, "a=b; __Host-gmah_access=x; c=d")])), Some("x"));
        assert_eq!(access(&headers(&[(COOKIE, "__Host-gmah_access=x; __Host-gmah_access=y")])), None);
        assert_eq!(
            access(&headers(&[(COOKIE, "__Host-gmah_access=x"), (COOKIE, "__Host-gmah_access=x")])),
            None
        );
        assert_eq!(access(&headers(&[(COOKIE, "gmah_access=x; __host-gmah_access=x")])), None);
    }

    #[test]
    fn a_change_needs_our_own_proof() {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &[7; 32]);
        let (tenant, session) = (TenantId::generate(), Uuid::now_v7());
        let proof = csrf(&key, tenant, session);
        let ask = |pairs: &[(HeaderName, &str)]| {
            Proof::of(&headers(pairs)).check("paris.gmah.com", &key, tenant, session).is_ok()
        };
        assert!(ask(&[(CSRF_HEADER, &proof)]));
        assert!(ask(&[(CSRF_HEADER, &proof), (ORIGIN, "https://paris.gmah.com")]));
        assert!(ask(&[(CSRF_HEADER, &proof), (ORIGIN, "https://paris.gmah.com:8443")]));
        assert!(!ask(&[]));
        assert!(!ask(&[(CSRF_HEADER, "")]));
        assert!(!ask(&[(CSRF_HEADER, &csrf(&key, tenant, Uuid::now_v7()))]));
        assert!(!ask(&[(CSRF_HEADER, &csrf(&key, TenantId::generate(), session))]));
        for origin in ["https://evil.example", "http://paris.gmah.com", "null", "https://lyon.gmah.com"] {
            assert!(!ask(&[(CSRF_HEADER, &proof), (ORIGIN, origin)]), "{origin}");
        }
    }
}
