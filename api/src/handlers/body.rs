//! JSON bodies: 400 when they cannot be read, 422 with the field's path when they break the type.

use axum::extract::{FromRequest, Request};
use bytes::Bytes;
use serde::de::DeserializeOwned;

use crate::error::ApiError;

/// A parsed body, and the bytes that it was parsed from.
pub struct Body<T> {
    /// The value.
    pub value: T,
    /// As received.
    pub raw: Bytes,
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let json = request.headers().get(http::header::CONTENT_TYPE).is_some_and(|v| {
            let essence = v.as_bytes().split(|b| *b == b';').next().unwrap_or_default();
            essence.trim_ascii().eq_ignore_ascii_case(b"application/json")
        });
        if !json {
            return Err(ApiError::UnsupportedMediaType);
        }
        let raw = bytes(request, state).await?;
        // Derived types would take an array for an object.
        if raw.trim_ascii_start().first().is_some_and(|b| *b != b'{')
            && serde_json::from_slice::<serde::de::IgnoredAny>(&raw).is_ok()
        {
            return Err(ApiError::Invalid { field: ".".into(), message: "must be an object".into() });
        }
        let mut de = serde_json::Deserializer::from_slice(&raw);
        let value = serde_path_to_error::deserialize(&mut de).map_err(|e| {
            let inner = e.inner();
            if inner.is_data() {
                // The library's sentence names fields and types, never values from elsewhere.
                let message = strip_place(&inner.to_string());
                ApiError::Invalid { field: field(&e.path().to_string(), &message), message }
            } else {
                ApiError::Malformed("the body is not valid JSON".into())
            }
        })?;
        de.end().map_err(|_| ApiError::Malformed("the body goes on after its JSON value".into()))?;
        Ok(Self { value, raw })
    }
}

/// All of a body.
pub(super) async fn bytes<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, ApiError> {
    Bytes::from_request(request, state).await.map_err(|e| {
        if e.status() == http::StatusCode::PAYLOAD_TOO_LARGE {
            ApiError::TooLarge
        } else {
            ApiError::Malformed("the body ended early".into())
        }
    })
}

/// Where the library names the object that lacks a field, or has it twice: the field.
fn field(path: &str, message: &str) -> String {
    let named = ["missing field `", "duplicate field `"].iter().find_map(|said| message.strip_prefix(said));
    match named.and_then(|rest| rest.split_once('`')) {
        Some((name, _)) if path == "." => name.to_owned(),
        Some((name, _)) => format!("{path}.{name}"),
        None => path.to_owned(),
    }
}

/// Cuts ` at line 1 column 7`, and bounds what an unknown field's name can bring in.
fn strip_place(text: &str) -> String {
    let text = text.rsplit_once(" at line ").map_or(text, |(head, _)| head);
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[test]
    fn a_field_is_named_where_it_is() {
        #[derive(Deserialize)]
        #[expect(dead_code, reason = "only what is refused is looked at")]
        struct Inner {
            name: String,
            nickname: String,
        }
        #[derive(Deserialize)]
        #[expect(dead_code, reason = "only what is refused is looked at")]
        struct Outer {
            name: Option<Inner>,
            others: Vec<Inner>,
        }
        let named = |text: &str| {
            let mut de = serde_json::Deserializer::from_str(text);
            let e = serde_path_to_error::deserialize::<_, Outer>(&mut de).err().expect("refused");
            field(&e.path().to_string(), &strip_place(&e.inner().to_string()))
        };
        for (text, field) in [
            (r#"{"name": null}"#, "others"),
            (r#"{"name": null, "name": null}"#, "name"),
            (r#"{"name": {"nickname": "a"}}"#, "name.name"),
            (r#"{"name": {"name": "a"}}"#, "name.nickname"),
            (r#"{"name": {"name": "a", "name": "b"}}"#, "name.name"),
            (r#"{"others": [{"name": "a", "nickname": "b"}, {"nickname": "a"}]}"#, "others[1].name"),
            (r#"{"others": [{"name": "a", "name": "b"}]}"#, "others[0].name"),
            (r#"{"others": [{"name": 1}]}"#, "others[0].name"),
        ] {
            assert_eq!(named(text), field, "{text}");
        }
    }
}
