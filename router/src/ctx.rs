//! What is known of a request so far, filled step by step.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use gmah_shared::catalog::Hit;
use gmah_shared::hostname::Hostname;
use http::HeaderValue;
use tokio_util::sync::CancellationToken;

use crate::limits::Slot;
use crate::listener::{Counted, Requests};
use crate::metrics::TenantSeries;
use crate::reject::Rejection;
use crate::resolve::{Name, Route};
use crate::trace::Trace;
use crate::upstream::{Lease, Pool};

/// A client's address, and how backends are told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// The address.
    pub address: IpAddr,
    /// The same as `X-Forwarded-For` has it, made once for a connection.
    pub field: HeaderValue,
}

impl From<IpAddr> for Client {
    fn from(address: IpAddr) -> Self {
        let text = address.to_canonical().to_string();
        // Digits, letters, dots and colons.
        let field = HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("unknown"));
        Self { address, field }
    }
}

/// A random id (UUID version 4) as text, from the thread's generator: an id is no secret.
#[derive(Debug, Clone)]
pub struct RequestId(HeaderValue);

impl RequestId {
    /// Another one.
    #[expect(clippy::new_without_default, reason = "no two are the same")]
    pub fn new() -> Self {
        let id = uuid::Builder::from_random_bytes(rand::random()).into_uuid();
        let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
        let text = id.hyphenated().encode_lower(&mut text);
        Self(HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("none")))
    }

    /// 36 characters.
    pub fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }

    /// For a header; shared, not copied.
    pub fn field(&self) -> HeaderValue {
        self.0.clone()
    }
}

/// What the listener knows of a connection; every request on it can ask.
#[derive(Debug)]
pub struct ConnectionInfo {
    /// The client's address.
    pub client: Client,
    /// What is in flight of that address.
    pub requests: Requests,
    /// Names of the certificate that was served; none on the plain port.
    pub certificate_names: Option<Arc<[String]>>,
    /// Cancelled to end the connection whatever it carries; cancelled as well when it has ended.
    pub end: CancellationToken,
}

/// What the connection sees of a request while the framework has it. HTTP/2 bodies have no deadline in the framework,
/// so [`crate::connection`] watches a mark that moves whenever a body does.
#[derive(Debug, Clone, Default)]
pub struct Progress(Arc<Seen>);

#[derive(Debug, Default)]
struct Seen {
    moves: AtomicU64,
    is_answered: AtomicBool,
    is_abandoned: AtomicBool,
    unsaid: Mutex<Option<LastWords>>,
}

/// What is written down of a request whose answer is out, should it never come to its own end.
pub struct LastWords(pub Box<dyn FnOnce() + Send>);

impl std::fmt::Debug for LastWords {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LastWords")
    }
}

impl Progress {
    /// Something moved.
    pub fn moved(&self) {
        self.0.moves.fetch_add(1, Ordering::Relaxed);
    }

    /// Differs from an earlier value if something moved since.
    pub fn mark(&self) -> u64 {
        self.0.moves.load(Ordering::Relaxed)
    }

    /// The whole answer has been passed on.
    pub fn answered(&self, unsaid: LastWords) {
        self.set_unsaid(Some(unsaid));
        self.0.is_answered.store(true, Ordering::Relaxed);
    }

    /// The request has come to its own end, and was written down there.
    pub fn ended(&self) {
        drop(self.set_unsaid(None));
    }

    /// It will not: what is known of it is written down.
    pub fn given_up(&self) {
        if let Some(LastWords(said)) = self.set_unsaid(None) {
            said();
        }
    }

    fn set_unsaid(&self, unsaid: Option<LastWords>) -> Option<LastWords> {
        let mut held = self.0.unsaid.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut held, unsaid)
    }

    /// Whether nothing but the request's own end is waited for.
    pub fn is_answered(&self) -> bool {
        self.0.is_answered.load(Ordering::Relaxed)
    }

    /// The client left before it was answered.
    pub fn abandoned(&self) {
        self.0.is_abandoned.store(true, Ordering::Relaxed);
    }

    /// Whether the client left before it was answered.
    pub fn is_abandoned(&self) -> bool {
        self.0.is_abandoned.load(Ordering::Relaxed)
    }
}

/// Whether a body keeps coming: bytes in windows of some seconds. A pause that the backend makes does not count against
/// the client, because a window ends only when something arrives, and what arrives then had time to gather.
#[derive(Debug, Default)]
pub struct Pace {
    window: Option<(Instant, u64)>,
}

impl Pace {
    /// A piece of a body arrived. False if the window it ends held less than `rate` bytes for each of its seconds.
    pub fn keeps_up(&mut self, length: u64, rate: u64, window: Duration) -> bool {
        let now = Instant::now();
        let (since, bytes) = self.window.get_or_insert((now, 0));
        *bytes += length;
        if now.duration_since(*since) < window {
            return true;
        }
        let enough = *bytes as f64 >= rate as f64 * window.as_secs_f64();
        self.window = Some((now, 0));
        enough
    }
}

/// One request.
pub struct RequestCtx {
    /// When its head was complete.
    pub began: Instant,
    /// For the client, the backend and the log.
    pub request_id: RequestId,
    /// The client's address.
    pub client: Option<Client>,
    /// Whether it came over TLS.
    pub is_tls: bool,
    /// The normalised authority.
    pub host: Option<Hostname>,
    /// How the tenant was asked for.
    pub name: Option<Name>,
    /// The tenant and what goes with it.
    pub route: Option<Hit<Route>>,
    /// Where it goes.
    pub pool: Option<Arc<Pool>>,
    /// The backend of the current attempt.
    pub lease: Option<Lease>,
    /// Until when all of it must be over.
    pub deadline: Option<Instant>,
    /// Whether the client asks for a WebSocket.
    pub is_upgrade: bool,
    /// How long it took until the organisation was known.
    pub lookup: Duration,
    /// When a backend was first asked, and how long it took until one began to answer.
    pub upstream: Option<(Instant, Option<Duration>)>,
    /// What the backend answered; 0 until it has.
    pub status: u16,
    /// Its place among the tenant's requests.
    pub slot: Option<Slot>,
    /// Its place among its address's requests.
    pub counted: Option<Counted>,
    /// Largest body that this tenant may send here.
    pub max_body: u64,
    /// The token that is attached to every attempt.
    pub token: Option<HeaderValue>,
    /// Series of the tenant, or of those that are nobody's.
    pub series: Option<Arc<TenantSeries>>,
    /// On a neutral host cookies stop here, both ways.
    pub is_neutral: bool,
    /// The refusal, if the edge answers by itself.
    pub rejection: Option<Rejection>,
    /// Attempts at a backend so far.
    pub attempts: usize,
    /// Set when the api said that the token's generation is old; then the host is resolved anew, once.
    pub stale: bool,
    /// Whether that has happened already.
    pub was_stale: bool,
    /// Moves with the bodies, on HTTP/2.
    pub progress: Option<Progress>,
    /// Its spans, where traces are configured. Boxed: a context is moved often, and most have none.
    pub trace: Option<Box<Trace>>,
    /// Body bytes received.
    pub bytes_in: u64,
    /// Body bytes of the answer, as the backend sent them.
    pub bytes_out: u64,
    /// How fast they come in.
    pub body_pace: Pace,
}

impl RequestCtx {
    /// Nothing is known yet.
    pub fn new() -> Self {
        Self {
            began: Instant::now(),
            request_id: RequestId::new(),
            client: None,
            is_tls: true,
            host: None,
            name: None,
            route: None,
            pool: None,
            lease: None,
            deadline: None,
            is_upgrade: false,
            lookup: Duration::ZERO,
            upstream: None,
            status: 0,
            slot: None,
            counted: None,
            max_body: 0,
            token: None,
            series: None,
            is_neutral: false,
            rejection: None,
            attempts: 0,
            stale: false,
            was_stale: false,
            progress: None,
            trace: None,
            bytes_in: 0,
            bytes_out: 0,
            body_pace: Pace::default(),
        }
    }
}

impl RequestCtx {
    /// A body moved.
    pub fn moved(&self) {
        if let Some(progress) = &self.progress {
            progress.moved();
        }
    }

    /// The answer is whole, and the request is not.
    pub fn answered(&self, last_words: impl FnOnce() -> LastWords) {
        if let Some(progress) = self.progress.as_ref().filter(|p| !p.is_answered()) {
            progress.answered(last_words());
        }
    }

    /// The client left before it was answered.
    pub fn abandoned(&self) {
        if let Some(progress) = &self.progress {
            progress.abandoned();
        }
    }
}

impl Default for RequestCtx {
    fn default() -> Self {
        Self::new()
    }
}
