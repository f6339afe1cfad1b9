//! JSON as it goes out: written into one buffer that seldom has to grow.

use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};
use serde::Serialize;

use crate::error::ApiError;

mod writer;

/// Something as JSON, with 200 unless another status stands before it.
pub struct Json<T>(pub T);

/// Bytes that a page of twenty has room in.
const ROOM: usize = 8 << 10;

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        let mut writer = writer::Writer::with_capacity(ROOM);
        match self.0.serialize(&mut writer) {
            Ok(()) => as_json(StatusCode::OK, writer.into_bytes()),
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
        let length = match in_utc(at, &mut text) {
            Some(length) => length,
            None => {
                let mut rest = &mut text[..];
                at.format_into(&mut rest, &Rfc3339).map_err(S::Error::custom)?;
                // What it answers is not always how much it wrote.
                ROOM - rest.len()
            }
        };
        serializer.serialize_str(std::str::from_utf8(&text[..length]).map_err(S::Error::custom)?)
    }

    /// How long it is; none where it is of another kind than those which a database answers. A tenth of the work of the general form.
    fn in_utc(at: &OffsetDateTime, text: &mut [u8; ROOM]) -> Option<usize> {
        let (year, month, day) = at.to_calendar_date();
        let year = u32::try_from(year).ok().filter(|year| *year <= 9999 && at.offset().is_utc())?;
        let (hour, minute, second) = at.to_hms();
        text[..20].copy_from_slice(b"0000-00-00T00:00:00Z");
        let mut put = |at: usize, number: u32| {
            text[at] = b'0' + (number / 10) as u8;
            text[at + 1] = b'0' + (number % 10) as u8;
        };
        put(0, year / 100);
        put(2, year % 100);
        put(5, u32::from(u8::from(month)));
        put(8, day.into());
        put(11, hour.into());
        put(14, minute.into());
        put(17, second.into());
        let mut nanos = at.nanosecond();
        if nanos == 0 {
            return Some(20);
        }
        // Without the zeros at its end.
        let mut length = 9;
        while nanos.is_multiple_of(10) {
            (nanos, length) = (nanos / 10, length - 1);
        }
        text[19] = b'.';
        for digit in text[20..20 + length].iter_mut().rev() {
            (*digit, nanos) = (b'0' + (nanos % 10) as u8, nanos / 10);
        }
        text[20 + length] = b'Z';
        Some(21 + length)
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
