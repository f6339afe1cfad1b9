//! Entity tags (RFC 9110, section 8.8.3): a digest of what is shown, so that who changes something can say which state of
//! it they saw.

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use gmah_shared::tenant::TenantId;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, ETAG, IF_MATCH, IF_NONE_MATCH, VARY};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use serde::Serialize;

use crate::context::TenantContext;
use crate::error::ApiError;
use crate::json::as_json;

/// Something that is shown with its tag.
pub struct Entity<T>(pub T);

impl<T: Serialize> IntoResponse for Entity<T> {
    fn into_response(self) -> Response {
        // Through a value, whose keys have one order: a change that is answered shows the same tag.
        match serde_json::to_value(&self.0).and_then(|value| serde_json::to_vec(&value)) {
            Ok(bytes) => tagged(StatusCode::OK, bytes),
            Err(_) => ApiError::Internal.into_response(),
        }
    }
}

/// JSON with its tag.
pub(super) fn tagged(status: StatusCode, json: Vec<u8>) -> Response {
    let tag = of(&json);
    let mut response = as_json(status, json);
    response.headers_mut().extend(tag.map(|tag| (ETAG, tag)));
    response
}

/// The tag of JSON whose keys are in order.
pub(super) fn of(json: &[u8]) -> Option<HeaderValue> {
    let digest = ring::digest::digest(&ring::digest::SHA256, json);
    HeaderValue::try_from(format!("\"{}\"", URL_SAFE_NO_PAD.encode(&digest.as_ref()[..16]))).ok()
}

/// The tag as it is shown: of one organisation, so that nobody's says anything about another's.
pub(super) fn bound(tenant: TenantId, tag: &HeaderValue) -> Option<HeaderValue> {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    context.update(tenant.as_uuid().as_bytes());
    context.update(tag.as_bytes());
    let digest = context.finish();
    HeaderValue::try_from(format!("\"{}\"", URL_SAFE_NO_PAD.encode(&digest.as_ref()[..16]))).ok()
}

/// `If-Match`, at most once, of at most 1 KiB.
pub(super) fn if_match(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let mut values = headers.get_all(IF_MATCH).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let text = value.to_str().ok().filter(|t| t.len() <= 1024 && values.next().is_none());
    let text = text.ok_or_else(|| ApiError::Malformed("If-Match cannot be read".into()))?;
    Ok(Some(text.to_owned()))
}

/// Whether a tag is in a list of some, or the list is `*`.
pub(super) fn is_among(list: &str, tag: &HeaderValue) -> bool {
    list.split(',').map(str::trim).any(|one| one == "*" || one.as_bytes() == tag.as_bytes())
}

/// Binds tags to the organisation, answers 304 to who has what would be shown, and says who may keep it: what is one
/// user's nobody else, and nobody at all who does not ask whether it is still so.
pub async fn layer(request: Request, next: Next) -> Response {
    let known = match request.method() {
        &Method::GET | &Method::HEAD => {
            let lines = request.headers().get_all(IF_NONE_MATCH).iter().filter_map(|v| v.to_str().ok());
            Some(lines.collect::<Vec<_>>().join(",")).filter(|known| !known.is_empty())
        }
        _ => None,
    };
    let tenant = request.extensions().get::<TenantContext>().map(|ctx| ctx.detail().tenant.id);
    let mut response = next.run(request).await;
    if let (Some(tenant), Some(tag)) = (tenant, response.headers().get(ETAG)) {
        match bound(tenant, tag) {
            Some(tag) => response.headers_mut().insert(ETAG, tag),
            None => response.headers_mut().remove(ETAG),
        };
    }
    if let (Some(known), Some(tag)) = (known, response.headers().get(ETAG))
        && response.status() == StatusCode::OK
        // Weak comparison (section 13.1.2): what a proxy compressed is the same thing to look at.
        && is_among(&known.replace("W/", ""), tag)
    {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        *response.body_mut() = axum::body::Body::empty();
        response.headers_mut().remove(CONTENT_LENGTH);
        response.headers_mut().remove(CONTENT_TYPE);
    }
    let headers = response.headers_mut();
    let how = if headers.contains_key(ETAG) { "private, no-cache" } else { "private, no-store" };
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static(how));
    headers.append(VARY, HeaderValue::from_static("authorization, cookie"));
    response
}
