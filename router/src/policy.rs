//! Step 6: whether a tenant's request goes on.

use std::time::Duration;

use gmah_shared::catalog::{Maintenance, MaintenanceMode, Policy};
use gmah_shared::tenant::TenantStatus;
use pingora_http::RequestHeader;
use ring::digest::{SHA256, digest};
use subtle::ConstantTimeEq as _;

use crate::reject::{Refusal, Rejection};

/// What happens with a request that may be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passage {
    /// It is.
    Serve,
    /// It waits.
    Hold {
        /// How long at most.
        patience: Duration,
        /// How many may.
        requests: u32,
    },
}

/// By status and maintenance.
///
/// # Errors
/// The [`Refusal`] of either.
pub fn pass(
    status: TenantStatus,
    maintenance: Option<&Maintenance>,
    request: &RequestHeader,
) -> Result<Passage, Refusal> {
    let maintenance = match (status, maintenance) {
        (TenantStatus::Active | TenantStatus::Maintenance, Some(maintenance)) => maintenance,
        _ => return admit(status).map(|()| Passage::Serve).map_err(Refusal::from),
    };
    if maintenance.bypass.is_some_and(|hash| presented(request).any(|secret| is_secret(secret, &hash))) {
        return Ok(Passage::Serve);
    }
    let refuse = |rejection| Err(Refusal { rejection, retry_after: Some(maintenance.retry_after) });
    match maintenance.mode {
        _ if status == TenantStatus::Maintenance => refuse(Rejection::Maintenance),
        MaintenanceMode::Full => refuse(Rejection::Maintenance),
        MaintenanceMode::ReadOnly if request.method.is_safe() => Ok(Passage::Serve),
        MaintenanceMode::ReadOnly => refuse(Rejection::ReadOnly),
        MaintenanceMode::Hold { patience, requests } => Ok(Passage::Hold { patience, requests }),
    }
}

/// A request that waited for as long as it may, or may not wait because as many do already.
pub fn held_too_long(policy: &Policy) -> Refusal {
    let retry_after = policy.maintenance.as_ref().map(|m| m.retry_after);
    Refusal { rejection: Rejection::HeldTooLong, retry_after }
}

/// Name of the cookie with which a browser passes.
pub const BYPASS_COOKIE: &str = "__Host-gmah-bypass";
/// Name of the parameter with which a browser gets the cookie.
const BYPASS_PARAMETER: &str = "gmah-bypass=";

/// Secrets that a request comes with: in our header, or in our cookie.
fn presented(request: &RequestHeader) -> impl Iterator<Item = &[u8]> {
    let cookies = request.headers.get_all(http::header::COOKIE).iter();
    let cookies = cookies
        .flat_map(|c| c.as_bytes().split(|b| *b == b';'))
        .filter_map(|pair| pair.trim_ascii().strip_prefix(BYPASS_COOKIE.as_bytes())?.strip_prefix(b"="));
    request.headers.get_all("x-gmah-bypass").iter().map(|v| v.as_bytes()).chain(cookies)
}

fn is_secret(secret: &[u8], hash: &[u8; 32]) -> bool {
    digest(&SHA256, secret).as_ref().ct_eq(hash).into()
}

/// A link with the secret in it: the secret and the target without it. For safe methods; the secret must be right.
pub fn bypass_link<'a>(
    maintenance: Option<&Maintenance>,
    request: &'a RequestHeader,
) -> Option<(&'a str, String)> {
    let hash = maintenance?.bypass?;
    if !request.method.is_safe() {
        return None;
    }
    let whole = std::str::from_utf8(request.raw_path()).ok()?;
    let (_, query) = whole.split_once('?')?;
    let secret = query.split('&').find_map(|pair| pair.strip_prefix(BYPASS_PARAMETER))?;
    if !is_secret(secret.as_bytes(), &hash) {
        return None;
    }
    let target = without_secret(whole)?;
    // A target that begins with two slashes would name another host.
    (!target.starts_with("//")).then_some((secret, target))
}

/// Whether only reading is allowed to that request.
pub fn is_read_only(policy: &Policy, request: &RequestHeader) -> bool {
    let Some(maintenance) = policy.maintenance.as_deref() else { return false };
    let passes = |hash| presented(request).any(|secret| is_secret(secret, &hash));
    maintenance.mode == MaintenanceMode::ReadOnly && !maintenance.bypass.is_some_and(passes)
}

/// A target without our secret in its query; nothing where there is none in it.
pub fn without_secret(target: &str) -> Option<String> {
    let (path, query) = target.split_once('?')?;
    let is_ours = |pair: &&str| pair.starts_with(BYPASS_PARAMETER);
    if !query.split('&').any(|pair| is_ours(&pair)) {
        return None;
    }
    let rest: Vec<&str> = query.split('&').filter(|pair| !is_ours(pair)).collect();
    Some(if rest.is_empty() { path.to_owned() } else { format!("{path}?{}", rest.join("&")) })
}

/// By status: only active organisations are served.
///
/// # Errors
/// The [`Rejection`] of the status.
pub const fn admit(status: TenantStatus) -> Result<(), Rejection> {
    match status {
        TenantStatus::Active => Ok(()),
        TenantStatus::Suspended => Err(Rejection::Suspended),
        TenantStatus::Provisioning => Err(Rejection::Provisioning),
        TenantStatus::Maintenance => Err(Rejection::Maintenance),
        TenantStatus::Deleted => Err(Rejection::UnknownHost),
    }
}

/// By size: a declared body over the limit is refused before a byte of it is read.
///
/// # Errors
/// [`Rejection::BodyTooLarge`].
pub fn declared_length(request: &pingora_http::RequestHeader, max: u64) -> Result<(), Rejection> {
    let declared = request.headers.get(http::header::CONTENT_LENGTH);
    let length = declared.and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<u64>().ok());
    if length.is_some_and(|n| n > max) { Err(Rejection::BodyTooLarge) } else { Ok(()) }
}

/// What [`crate::head`] holds HTTP/1.1 to, for HTTP/2: the sizes and the methods.
///
/// # Errors
/// The [`Rejection`] of the first bound that is exceeded.
pub fn http2_bounds(request: &pingora_http::RequestHeader) -> Result<(), Rejection> {
    use crate::head::{MAX_FIELDS, MAX_TARGET};
    if matches!(request.method, http::Method::CONNECT | http::Method::TRACE) {
        return Err(Rejection::Method);
    }
    let target = request.raw_path();
    if target.len() > MAX_TARGET {
        return Err(Rejection::TargetTooLong);
    }
    // Cookies may come in crumbs, which are one field (RFC 9113, section 8.2.3).
    let crumbs = request.headers.get_all(http::header::COOKIE).iter().count();
    if crumbs > MAX_CRUMBS || request.headers.len() - crumbs.saturating_sub(1) > MAX_FIELDS {
        return Err(Rejection::HeadTooLarge);
    }
    // Malformed (section 8.2.1): somebody behind us would read another value.
    let is_space = |b: Option<&u8>| matches!(b, Some(b' ' | b'\t'));
    if request.headers.values().any(|v| is_space(v.as_bytes().first()) || is_space(v.as_bytes().last())) {
        return Err(Rejection::Malformed);
    }
    if request.headers.keys().any(|n| crate::head::is_framing_look_alike(n.as_str().as_bytes()))
        || request.headers.get_all(http::header::CONTENT_LENGTH).iter().count() > 1
    {
        return Err(Rejection::Malformed);
    }
    let origin = target.starts_with(b"/");
    let visible = target.iter().all(|b| matches!(b, 0x21..=0x7e) && !matches!(b, b'#' | b'\\'));
    if origin && visible { Ok(()) } else { Err(Rejection::Malformed) }
}

/// More than browsers keep for one host; each costs an index in the client's table and an entry in ours.
const MAX_CRUMBS: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_active_organisations_are_served() {
        for status in TenantStatus::ALL {
            assert_eq!(admit(status).is_ok(), status == TenantStatus::Active);
        }
    }

    fn request(method: &str, target: &str, fields: &[(&'static str, &str)]) -> RequestHeader {
        let mut request = RequestHeader::build(method, target.as_bytes(), None).expect("head");
        for (name, value) in fields {
            request.append_header(*name, *value).expect("field");
        }
        request
    }

    fn maintenance(mode: MaintenanceMode) -> Maintenance {
        let hash = digest(&SHA256, b"secret").as_ref().try_into().expect("32 bytes");
        Maintenance { mode, retry_after: 77, bypass: Some(hash) }
    }

    #[test]
    fn what_passes_while_an_organisation_is_worked_on() {
        let (active, closed) = (TenantStatus::Active, TenantStatus::Maintenance);
        let get = request("GET", "/", &[]);
        let refused = |rejection| Err(Refusal { rejection, retry_after: Some(77) });
        let full = maintenance(MaintenanceMode::Full);
        let read_only = maintenance(MaintenanceMode::ReadOnly);
        let hold = maintenance(MaintenanceMode::Hold { patience: Duration::from_secs(3), requests: 2 });
        assert_eq!(pass(active, None, &get), Ok(Passage::Serve));
        assert_eq!(pass(closed, None, &get), Err(Rejection::Maintenance.into()));
        assert_eq!(pass(closed, Some(&full), &get), refused(Rejection::Maintenance));
        assert_eq!(
            pass(closed, Some(&read_only), &get),
            refused(Rejection::Maintenance),
            "the status goes first"
        );
        assert_eq!(pass(active, Some(&read_only), &get), Ok(Passage::Serve));
        assert_eq!(pass(active, Some(&read_only), &request("POST", "/", &[])), refused(Rejection::ReadOnly));
        assert!(matches!(pass(active, Some(&hold), &get), Ok(Passage::Hold { requests: 2, .. })));
        for fields in [
            &[("x-gmah-bypass", "secret")][..],
            &[("cookie", "a=b; __Host-gmah-bypass=secret")],
            &[("cookie", "__Host-gmah-bypass=wrong"), ("cookie", "__Host-gmah-bypass=secret")],
        ] {
            assert_eq!(pass(closed, Some(&full), &request("POST", "/", fields)), Ok(Passage::Serve));
            let suspended = pass(TenantStatus::Suspended, Some(&full), &request("GET", "/", fields));
            assert_eq!(suspended, Err(Rejection::Suspended.into()), "only maintenance is passed");
        }
        for fields in [
            &[("x-gmah-bypass", "Secret")][..],
            &[("x-gmah-bypass", "")],
            &[("cookie", "gmah-bypass=secret")],
            &[("cookie", "__Host-gmah-bypass=")],
        ] {
            assert!(pass(closed, Some(&full), &request("GET", "/", fields)).is_err(), "{fields:?}");
        }
    }

    #[test]
    fn links_with_the_secret() {
        let full = maintenance(MaintenanceMode::Full);
        let link = |method: &str, target: &str| {
            let request = request(method, target, &[]);
            bypass_link(Some(&full), &request).map(|(secret, target)| (secret.to_owned(), target))
        };
        let ok = |target: &str| Some(("secret".to_owned(), target.to_owned()));
        assert_eq!(link("GET", "/a?gmah-bypass=secret"), ok("/a"));
        assert_eq!(link("GET", "/a?x=1&gmah-bypass=secret&y=2"), ok("/a?x=1&y=2"));
        assert_eq!(link("GET", "/a?gmah-bypass=wrong"), None);
        assert_eq!(link("POST", "/a?gmah-bypass=secret"), None);
        assert_eq!(link("GET", "//evil.example/?gmah-bypass=secret"), None);
    }
}
