//! Step 3: HTTP on a connection.
//!
//! HTTP/1.1: each head is read here, whole, within the idle and header deadlines and the bounds of [`crate::head`],
//! and only then given to the framework, which finds it complete. Between requests the connection is ours, so a
//! shutdown ends idle connections at once and busy ones after their response.
//!
//! HTTP/2: the preface has a deadline, and each stream is handed to the framework; malformed streams are counted, and
//! so many of them end the connection.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use gmah_shared::tasks;
use http::Method;
use pingora_core::apps::HttpServerApp;
use pingora_core::protocols::http::ServerSession;
use pingora_core::protocols::http::v2::server::{
    H2Accept, HttpSession as Http2Session, default_h2_options, handshake,
};
use pingora_core::protocols::{Digest, Stream};
use pingora_core::server::ShutdownWatch;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Limits;
use crate::ctx::{Progress, RequestId};
use crate::head::{self, MAX_HEAD, Progress as Head};
use crate::headers::Promises;
use crate::reject::{Rejection, Reply};

/// What serves requests, and how it is told to stop.
pub trait Http: Send + Sync + 'static {
    /// The framework's side.
    type App: HttpServerApp + Send + Sync + 'static;
    /// The framework's side.
    fn app(&self) -> &Arc<Self::App>;
    /// Cancelled when no further request may begin.
    fn stop(&self) -> &CancellationToken;
    /// The same, as the framework wants it.
    fn shutdown(&self) -> &ShutdownWatch;
    /// Counts what is still running.
    fn tracker(&self) -> &TaskTracker;
    /// What every response says.
    fn promises(&self) -> Arc<Promises>;
    /// Hears of requests that were refused before they were requests.
    fn refused(&self, rejection: Rejection);
}

/// What came of waiting for a head.
enum Awaited {
    Head(BytesMut),
    Refused(Rejection),
    /// Closed, idle for too long, or stopping: nothing to say.
    Over,
}

/// Serves HTTP/1.1 until either side has had enough.
pub async fn http1<H: Http>(
    mut stream: Stream,
    client: IpAddr,
    limits: &Limits,
    end: &CancellationToken,
    http: Arc<H>,
) {
    let mut settings = None;
    // Made once for the connection: each of these costs more to begin than to look at.
    let (stop, ended) = (stopped(http.stop()), end.cancelled());
    let idle = tokio::time::sleep(*limits.idle_timeout);
    tokio::pin!(stop, ended, idle);
    loop {
        let head = match next_head(&mut stream, limits, idle.as_mut(), stop.as_mut()).await {
            Awaited::Head(head) => head,
            Awaited::Refused(rejection) => {
                http.refused(rejection);
                tracing::debug!(%client, reason = rejection.label(), "request refused");
                refuse(stream, rejection, limits).await;
                return;
            }
            Awaited::Over => return close(&mut stream).await,
        };
        let mut session = ServerSession::new_http1(stream);
        if let Some(settings) = settings.take() {
            pingora_core::apps::HttpPersistentSettings::apply_to_session(settings, &mut session);
        }
        // The wait for the next request is ours; the framework's own keep-alive timer never runs.
        session.set_keepalive(Some(limits.idle_timeout.as_secs()));
        session.set_read_timeout(Some(*limits.body_timeout));
        session.set_write_timeout(Some(*limits.write_timeout));
        session.set_total_drain_timeout(Some(*limits.body_timeout));
        session.set_pipelined_prefix(head);
        let reused = tokio::select! {
            biased;
            reused = http.app().process_new_http(session, http.shutdown()) => reused,
            // Losing the request closes both its connections, in the middle of whatever was said.
            () = &mut ended => return,
        };
        match reused {
            Some(reused) => (stream, settings) = reused.consume(),
            None => return,
        }
    }
}

/// When a connection that waits for a request is told to go.
async fn stopped(stop: &CancellationToken) {
    stop.cancelled().await;
    // A request may be on the way: closed now, its client could not know whether it ran. It is served, and its response
    // says that it is the last.
    tokio::time::sleep(STOP_GRACE).await;
}

async fn next_head(
    stream: &mut Stream,
    limits: &Limits,
    mut idle: Pin<&mut Sleep>,
    mut stopped: Pin<&mut impl Future<Output = ()>>,
) -> Awaited {
    let mut buf = BytesMut::with_capacity(FIRST_READ);
    let until = Instant::now() + *limits.idle_timeout;
    loop {
        tokio::select! {
            // A request that is there already is served.
            biased;
            read = stream.read_buf(&mut buf) => match read {
                Ok(n) if n > 0 => break,
                _ => return Awaited::Over,
            },
            // Losing the other arms loses nothing: no byte of a request has been read.
            () = idle.as_mut() => {
                // Of an earlier wait: it is put off when it comes, and not by every request.
                if Instant::now() >= until {
                    return Awaited::Over;
                }
                idle.as_mut().reset(until);
            }
            () = stopped.as_mut() => return Awaited::Over,
        }
    }
    let mut scanned = 0;
    let complete = async {
        loop {
            match head::find_end(&buf, scanned) {
                Err(rejection) => return Some(Err(rejection)),
                Ok(Head::Complete(end)) => return Some(Ok(end)),
                Ok(Head::Partial(to)) => scanned = to,
            }
            if buf.capacity() == buf.len() {
                buf.reserve(buf.len().min(MAX_HEAD));
            }
            match stream.read_buf(&mut buf).await {
                Ok(n) if n > 0 => {}
                _ => return None,
            }
        }
    };
    let end = match head_in_time(complete, *limits.header_timeout).await {
        Some(Ok(end)) => end,
        Some(Err(rejection)) => return Awaited::Refused(rejection),
        None => return Awaited::Over,
    };
    match head::check(&buf[..end]) {
        Err(rejection) => Awaited::Refused(rejection),
        Ok(None) => Awaited::Head(buf),
        Ok(Some(rewritten)) => {
            let mut whole = BytesMut::from(&rewritten[..]);
            whole.extend_from_slice(&buf[end..]);
            Awaited::Head(whole)
        }
    }
}

/// Most heads arrive in one read; then no timer is made.
async fn head_in_time<F>(complete: F, deadline: Duration) -> Option<Result<usize, Rejection>>
where
    F: Future<Output = Option<Result<usize, Rejection>>>,
{
    tokio::pin!(complete);
    match futures_now(complete.as_mut()) {
        Some(done) => done,
        None => pingora_timeout::timeout(deadline, complete).await.unwrap_or(None),
    }
}

/// The result of a future that is ready at its first poll.
fn futures_now<F: Future>(future: std::pin::Pin<&mut F>) -> Option<F::Output> {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match future.poll(&mut context) {
        std::task::Poll::Ready(done) => Some(done),
        std::task::Poll::Pending => None,
    }
}

/// Answers a head that never became a request, and closes. What the client still sends is read for a moment, so that
/// the answer is not lost to a reset.
async fn refuse(mut stream: Stream, rejection: Rejection, limits: &Limits) {
    let answer = rejection.wire(RequestId::new().as_str());
    let said = async {
        stream.write_all(&answer).await?;
        stream.flush().await
    };
    if let Ok(Ok(())) = tokio::time::timeout(*limits.write_timeout, said).await {
        close(&mut stream).await;
        let mut rest = [0u8; 4096];
        let drained = async { while matches!(stream.read(&mut rest).await, Ok(n) if n > 0) {} };
        // Bounded in time; in bytes by what a socket carries in that time.
        let _ = tokio::time::timeout(LINGER, drained).await;
    }
}

/// Says goodbye, as long as the other side listens.
async fn close(stream: &mut Stream) {
    let goodbye = tokio::io::AsyncWriteExt::shutdown(stream);
    // Whether it was heard makes no difference any more.
    let _ = tokio::time::timeout(LINGER, goodbye).await;
}

const FIRST_READ: usize = 4096;
const LINGER: Duration = Duration::from_millis(500);
const STOP_GRACE: Duration = Duration::from_secs(1);

/// Serves HTTP/2 until either side has had enough.
pub async fn http2<H: Http>(stream: Stream, limits: &Limits, http: Arc<H>) {
    let digest = Arc::new(Digest {
        ssl_digest: stream.get_ssl_digest(),
        timing_digest: stream.get_timing_digest(),
        proxy_digest: stream.get_proxy_digest(),
        socket_digest: stream.get_socket_digest(),
    });
    // From the framework's defaults, which bound what the library leaves open.
    let mut options = default_h2_options();
    options
        .max_header_list_size(MAX_HEAD as u32)
        .max_concurrent_streams(MAX_STREAMS)
        .max_local_error_reset_streams(Some(64));
    let shaken = tokio::time::timeout(*limits.preface_timeout, handshake(stream, Some(options))).await;
    let Ok(Ok(mut connection)) = shaken else { return };
    let (active, began) = (Arc::new(Active::default()), std::time::Instant::now());
    let mut malformed = 0;
    let mut stopping = false;
    loop {
        let accepted = tokio::select! {
            biased;
            () = http.stop().cancelled(), if !stopping => {
                // GOAWAY; streams that were begun are finished.
                connection.graceful_shutdown();
                stopping = true;
                continue;
            }
            accepted = Http2Session::from_h2_conn(&mut connection, digest.clone()) => accepted,
            // Losing this arm begins the idle time anew, which is what a new stream means.
            // While stopping, a client that says nothing is not waited for.
            () = active.idle_for(if stopping { LINGER } else { *limits.idle_timeout }) => return,
        };
        if active.is_abused() {
            // Begun and abandoned, over and over (CVE-2023-44487): each cost a backend something and the client nothing.
            connection.abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM);
            http.refused(Rejection::TooManyResets);
            // The goodbye is written by one more look at the connection.
            let last = Http2Session::from_h2_conn(&mut connection, digest.clone());
            let _ = tokio::time::timeout(LINGER, last).await;
            return;
        }
        match accepted {
            Ok(Some(H2Accept::Session(session))) => {
                if session.req_header().method == Method::CONNECT {
                    http.refused(Rejection::Method);
                }
                let guard = active.enter(began.elapsed());
                let http = http.clone();
                let (write_timeout, stall_timeout) = (*limits.write_timeout, limits.stall_timeout);
                let request = http.tracker().clone().track_future(async move {
                    let progress = Progress::default();
                    let mut session = ServerSession::new_http2(session);
                    session.req_header_mut().extensions_mut().insert(progress.clone());
                    session.set_write_timeout(Some(write_timeout));
                    if session.req_header().method == Method::CONNECT {
                        // In front of the framework's own, which has no body and no id.
                        let reply = Reply {
                            request_id: &RequestId::new(),
                            promises: &http.promises(),
                            is_tls: true,
                            retry_after: None,
                            branding: None,
                        };
                        let _ = Rejection::Method.answer(&mut session, &reply).await;
                        return drop(guard);
                    }
                    let served = http.app().process_new_http(session, http.shutdown());
                    tokio::select! {
                        _ = served => {}
                        // Losing the request here resets its stream and frees its backend connection.
                        () = stalled(&progress, stall_timeout, write_timeout) => if progress.is_answered() {
                            progress.given_up();
                        } else {
                            http.refused(Rejection::RequestTimeout);
                        }
                    }
                    if progress.is_abandoned() {
                        guard.0.abandoned.fetch_add(1, Ordering::Relaxed);
                    }
                    drop(guard);
                });
                drop(tasks::detach("http2-stream", request));
            }
            Ok(Some(H2Accept::Rejected)) => {
                http.refused(Rejection::Malformed);
                malformed += 1;
                if malformed >= MAX_MALFORMED_STREAMS {
                    return;
                }
            }
            Ok(None) | Err(_) => return,
        }
    }
}

/// Returns when nothing has moved for that long; sooner, after `answered`, where the answer is out and only the rest of a
/// request is missing.
async fn stalled(progress: &Progress, time: Duration, answered: Duration) {
    let step = time / STEPS;
    let (mut last, mut still) = (progress.mark(), Duration::ZERO);
    while still < time {
        pingora_timeout::sleep(step).await;
        let now = progress.mark();
        still = if now == last { still + step } else { Duration::ZERO };
        last = now;
        if still >= answered && progress.is_answered() {
            return;
        }
    }
}

/// How often a stream is looked at in the time after which it counts as stalled.
const STEPS: u32 = 16;
/// Streams of one connection at once.
const MAX_STREAMS: u32 = 100;
/// Malformed streams that a connection may send in its life.
const MAX_MALFORMED_STREAMS: usize = 32;

/// For so many seconds abandoned streams are remembered.
const ABANDONED_WINDOW: u64 = 30;
/// Streams that a connection may abandon in that time before it is asked what for.
const MAX_ABANDONED_STREAMS: usize = 100;

/// Streams of a connection: in flight, begun, abandoned before their answer.
#[derive(Default)]
struct Active {
    count: AtomicUsize,
    begun: AtomicUsize,
    abandoned: AtomicUsize,
    /// The two above count since then, in seconds after the connection began.
    since: AtomicU64,
    idle: Notify,
}

struct Guard(Arc<Active>);

impl Active {
    fn enter(self: &Arc<Self>, age: Duration) -> Guard {
        self.count.fetch_add(1, Ordering::AcqRel);
        if age.as_secs() >= self.since.load(Ordering::Relaxed) + ABANDONED_WINDOW {
            self.since.store(age.as_secs(), Ordering::Relaxed);
            self.begun.store(0, Ordering::Relaxed);
            self.abandoned.store(0, Ordering::Relaxed);
        }
        self.begun.fetch_add(1, Ordering::Relaxed);
        Guard(self.clone())
    }

    /// Many streams were abandoned, and most of them.
    fn is_abused(&self) -> bool {
        let abandoned = self.abandoned.load(Ordering::Relaxed);
        abandoned > MAX_ABANDONED_STREAMS && abandoned > self.begun.load(Ordering::Relaxed) / 2
    }

    async fn idle_for(&self, time: Duration) {
        while self.count.load(Ordering::Acquire) > 0 {
            self.idle.notified().await;
        }
        pingora_timeout::sleep(time).await;
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.idle.notify_one();
        }
    }
}
