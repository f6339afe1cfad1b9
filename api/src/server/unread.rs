//! What is left of a request's body when its answer is ready.
//!
//! A request can be answered before its body was read: nobody may do what it asks for, or nothing is there. A server that
//! leaves the rest unread has to close the connection, and to say so (RFC 9112, sections 9.3 and 9.6); one that closes without a
//! word lets the router send its next request into a connection that ends, and a request that may not run twice is lost.
//! So the rest is read for a moment, which most bodies need no longer than; otherwise the answer says that it is the last.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::response::Response;
use bytes::{Buf as _, Bytes};
use http::{HeaderValue, header};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::sync::oneshot;
use tower::ServiceExt as _;

use super::connections::Serves;

/// A body that comes back if it is let go before its end.
pub(super) struct Returning {
    body: Option<Incoming>,
    is_asked_for: bool,
    is_broken: bool,
    back: Option<oneshot::Sender<Left>>,
}

/// What came back.
struct Left {
    body: Incoming,
    /// Somebody has begun to read it: who waits for `100 Continue` has been told to go on.
    is_asked_for: bool,
    /// It ended before its end, or was none.
    is_broken: bool,
}

impl Returning {
    fn new(body: Incoming) -> (Self, Option<oneshot::Receiver<Left>>) {
        // Most requests have none.
        let (back, left) = (!body.is_end_stream()).then(oneshot::channel).unzip();
        (Self { body: Some(body), is_asked_for: false, is_broken: false, back }, left)
    }
}

impl Body for Returning {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.is_asked_for = true;
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let polled = Pin::new(body).poll_frame(cx);
        self.is_broken |= matches!(polled, Poll::Ready(Some(Err(_))));
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for Returning {
    fn drop(&mut self) {
        if let (Some(body), Some(back)) = (self.body.take(), self.back.take()) {
            // Whoever answered may be gone with the connection.
            let _ = back.send(Left { body, is_asked_for: self.is_asked_for, is_broken: self.is_broken });
        }
    }
}

/// The answer to a request, which says that it is the connection's last if the body was not read to its end.
pub(super) async fn answer<S: Serves>(
    service: S,
    request: http::Request<Incoming>,
) -> Result<Response, Infallible> {
    let waits_for_word = request.headers().contains_key(header::EXPECT);
    let (head, body) = request.into_parts();
    let (body, left) = Returning::new(body);
    let mut response = service.oneshot(http::Request::from_parts(head, body)).await?;
    // Still held: the answer is made out of it.
    let Some(left) = left.and_then(|mut left| left.try_recv().ok()) else { return Ok(response) };
    // Asking for what was not sent would bring all of it.
    let is_withheld = waits_for_word && !left.is_asked_for;
    if is_withheld || left.is_broken || !read_rest(left.body).await {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

/// Whether a body ended within the bounds.
async fn read_rest(mut body: Incoming) -> bool {
    if body.size_hint().lower() > MAX_UNREAD as u64 {
        return false;
    }
    let whole = async {
        let mut length = 0;
        while let Some(frame) = body.frame().await {
            length += frame.ok()?.data_ref().map_or(0, Bytes::remaining);
            if length > MAX_UNREAD {
                return None;
            }
        }
        Some(())
    };
    matches!(tokio::time::timeout(PATIENCE, whole).await, Ok(Some(())))
}

/// For how long, in all.
const PATIENCE: Duration = Duration::from_millis(500);
/// In bytes.
const MAX_UNREAD: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body;
    use http::StatusCode;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    /// What a connection says to that, when the body is read before the answer.
    async fn said(request: &[u8], ends: bool) -> String {
        let reads = tower::service_fn(|request: http::Request<Returning>| async move {
            let whole = body::to_bytes(body::Body::new(request.into_body()), 100).await;
            let mut response = Response::new(body::Body::from("read"));
            *response.status_mut() = if whole.is_ok() { StatusCode::OK } else { StatusCode::BAD_REQUEST };
            Ok::<_, Infallible>(response)
        });
        let (mut ours, theirs) = tokio::io::duplex(1 << 16);
        let answers = service_fn(move |request| answer(reads, request));
        let serves =
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(theirs), answers);
        let talks = async {
            // What nobody reads any more is not sent to its end.
            let _ = ours.write_all(request).await;
            if ends {
                ours.shutdown().await.expect("ended");
            }
            let mut said = Vec::new();
            while !said.ends_with(b"read") && ours.read_buf(&mut said).await.expect("answer") > 0 {}
            drop(ours);
            String::from_utf8(said).expect("text")
        };
        tokio::join!(serves, talks).1
    }

    #[tokio::test]
    async fn m07_what_was_no_body_is_the_last_too() {
        let head = "POST / HTTP/1.1\r\nHost: x\r\n";
        let chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n");
        let is_last = |text: &str| text.contains("connection: close\r\n");
        for (what, request, ends) in [
            ("no size of a chunk", format!("{chunked}zz\r\n"), false),
            ("cut off in a chunk", format!("{chunked}5\r\nab"), true),
            ("cut off", format!("{head}Content-Length: 5\r\n\r\nab"), true),
        ] {
            let text = said(request.as_bytes(), ends).await;
            assert!(text.starts_with("HTTP/1.1 400 ") && is_last(&text), "{what}: {text}");
        }
        let too_long = format!("{head}Content-Length: 101\r\n\r\n{}", "x".repeat(101));
        let text = said(too_long.as_bytes(), false).await;
        assert!(text.starts_with("HTTP/1.1 400 ") && !is_last(&text), "it was read all the same: {text}");
        let text = said(format!("{head}Content-Length: 2\r\n\r\nab").as_bytes(), false).await;
        assert!(text.starts_with("HTTP/1.1 200 ") && !is_last(&text), "{text}");
        // Whose length nobody declared: as much as is read of any, and more.
        let chunk = format!("10000\r\n{}\r\n", "x".repeat(1 << 16));
        let most = MAX_UNREAD >> 16;
        for (chunks, last) in [(most, false), (most + 2, true)] {
            let text = said(format!("{chunked}{}0\r\n\r\n", chunk.repeat(chunks)).as_bytes(), false).await;
            assert!(text.starts_with("HTTP/1.1 400 ") && is_last(&text) == last, "{chunks}: {text}");
        }
    }
}
