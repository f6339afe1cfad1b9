//! Step 6: whether a tenant's request goes on.

use gmah_shared::tenant::TenantStatus;

use crate::reject::Rejection;

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
    if request.headers.len() - crumbs.saturating_sub(1) > MAX_FIELDS {
        return Err(Rejection::HeadTooLarge);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_active_organisations_are_served() {
        for status in TenantStatus::ALL {
            assert_eq!(admit(status).is_ok(), status == TenantStatus::Active);
        }
    }
}
