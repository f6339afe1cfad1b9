//! JSON as it goes out: written into one buffer that seldom has to grow.

use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};
use serde::Serialize;

use crate::error::ApiError;

/// Something as JSON, with 200 unless another status stands before it.
pub struct Json<T>(pub T);

/// Bytes that a page of twenty has room in.
const ROOM: usize = 8 << 10;

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        let mut text = Vec::with_capacity(ROOM);
        match serde_json::to_writer(&mut text, &self.0) {
            Ok(()) => as_json(StatusCode::OK, text),
            Err(e) => {
                tracing::error!(error = %e, "an answer cannot be written as JSON");
                ApiError::Internal.into_response()
            }
        }
    }
}

/// What is JSON already.
pub(crate) fn as_json(status: StatusCode, json: Vec<u8>) -> Response {
    (status, [(CONTENT_TYPE, HeaderValue::from_static("application/json"))], json).into_response()
}

/// Times: RFC 3339, as `time::serde::rfc3339` writes them, which makes a text of its own for each.
pub mod rfc3339 {
    use serde::Serializer;
    use serde::ser::Error as _;
    use time::OffsetDateTime;
    use time::format_description::well_known::Rfc3339;

    /// Longer than any: `2026-11-30T23:59:59.123456789+00:00`.
    const ROOM: usize = 40;

    /// Writes a time.
    ///
    /// # Errors
    /// For a year that RFC 3339 has no form for.
    pub fn serialize<S: Serializer>(at: &OffsetDateTime, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = [0; ROOM];
        let mut rest = &mut text[..];
        at.format_into(&mut rest, &Rfc3339).map_err(S::Error::custom)?;
        // What it answers is not always how much it wrote.
        let length = ROOM - rest.len();
        serializer.serialize_str(std::str::from_utf8(&text[..length]).map_err(S::Error::custom)?)
    }

    /// Of a time that need not be there.
    pub mod option {
        use super::{OffsetDateTime, Serializer};

        /// Writes a time, or null.
        ///
        /// # Errors
        /// As for any time.
        pub fn serialize<S: Serializer>(
            at: &Option<OffsetDateTime>,
            serializer: S,
        ) -> Result<S::Ok, S::Error> {
            match at {
                Some(at) => super::serialize(at, serializer),
                None => serializer.serialize_none(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;
    use time::{Duration, OffsetDateTime};

    use super::*;

    #[derive(Serialize)]
    struct Ours {
        #[serde(with = "rfc3339")]
        at: OffsetDateTime,
        #[serde(with = "rfc3339::option")]
        then: Option<OffsetDateTime>,
    }

    #[derive(Serialize)]
    struct Theirs {
        #[serde(with = "time::serde::rfc3339")]
        at: OffsetDateTime,
        #[serde(with = "time::serde::rfc3339::option")]
        then: Option<OffsetDateTime>,
    }

    #[test]
    fn times_are_written_as_ever() {
        let text = |at, then| {
            let ours = serde_json::to_string(&Ours { at, then }).expect("json");
            assert_eq!(ours, serde_json::to_string(&Theirs { at, then }).expect("json"));
            ours
        };
        let mut at = datetime!(0000-01-01 00:00 UTC);
        while at.year() < 9990 {
            text(at, Some(at));
            at += Duration::days(53) + Duration::nanoseconds(86_399_123_456_789);
        }
        assert_eq!(
            text(datetime!(2026-11-30 23:59:59.123_456_789 +02:30), None),
            r#"{"at":"2026-11-30T23:59:59.123456789+02:30","then":null}"#
        );
    }

    #[tokio::test]
    async fn what_cannot_be_written_is_a_fault_of_ours() {
        struct Never;
        impl Serialize for Never {
            fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
                Err(serde::ser::Error::custom("secret"))
            }
        }
        assert_eq!(Json(Never).into_response().extensions().get::<ApiError>(), Some(&ApiError::Internal));
        let answer = Json(vec!["x"; 10_000]).into_response();
        assert_eq!(answer.headers()[CONTENT_TYPE], "application/json");
        let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await.expect("body");
        assert_eq!(body.len(), 40_001);
    }
}
