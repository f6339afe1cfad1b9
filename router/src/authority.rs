//! Step 4: which host a request is for.

use gmah_shared::hostname::Hostname;
use http::Version;
use pingora_http::RequestHeader;

use crate::reject::Rejection;

/// The authority of a request as the one canonical name.
///
/// HTTP/1.1: the `Host` field, of which [`crate::head`] left exactly one. HTTP/2: `:authority`, or `Host` where a
/// client sends only that; the framework has refused two that differ (RFC 9113, section 8.3.1).
///
/// # Errors
/// [`Rejection::BadHost`].
pub fn hostname(request: &RequestHeader) -> Result<Hostname, Rejection> {
    let mut hosts = request.headers.get_all(http::header::HOST).iter();
    let (first, second) = (hosts.next(), hosts.next());
    if second.is_some() {
        return Err(Rejection::BadHost);
    }
    let field = first.map(http::HeaderValue::as_bytes);
    let raw = match (request.version, request.uri.authority()) {
        (Version::HTTP_2, Some(authority)) => authority.as_str().as_bytes(),
        _ => field.ok_or(Rejection::BadHost)?,
    };
    let text = std::str::from_utf8(raw).map_err(|_| Rejection::BadHost)?;
    let host = Hostname::parse_authority(text).map_err(|_| Rejection::BadHost)?;
    // Where HTTP/2 brought a Host as well, it must be the same name and not only the same bytes.
    if let (Version::HTTP_2, Some(field)) = (request.version, field) {
        let same = std::str::from_utf8(field).ok().and_then(|f| Hostname::parse_authority(f).ok());
        if same.as_ref() != Some(&host) {
            return Err(Rejection::BadHost);
        }
    }
    Ok(host)
}

/// Refuses an authority that the certificate of this connection does not cover (RFC 9110, section 15.5.20).
///
/// # Errors
/// [`Rejection::Misdirected`].
pub fn covered(host: &Hostname, names: &[String]) -> Result<(), Rejection> {
    if names.iter().any(|n| host.is_covered_by(n)) { Ok(()) } else { Err(Rejection::Misdirected) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t01_t02_coverage_is_by_name_and_one_label() {
        let names = ["gmah.com".to_owned(), "*.gmah.com".to_owned()];
        let covered = |h: &str| covered(&Hostname::parse(h).expect("host"), &names).is_ok();
        assert!(covered("gmah.com") && covered("acme.gmah.com"));
        assert!(!covered("a.acme.gmah.com") && !covered("shop.acme.test") && !covered("xgmah.com"));
    }
}
