//! Notices of change: `LISTEN gmah_catalog` on a direct connection.
//!
//! A connection that looks alive may be deaf (a lost packet filter state, a pooler in between), so the listener
//! sends a notice to itself now and then; no echo in time means reconnect. After every (re)connect everything is
//! confirmed again, because what was said meanwhile is lost. Without notices the TTL of the caches is the floor.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::Invalidate;
use crate::config::Postgres;
use crate::pg;
use crate::tenant::TenantId;

/// How often the listener proves to itself that it hears.
const PROBE_EVERY: Duration = Duration::from_secs(10);
/// How long an echo may take.
const ECHO_WITHIN: Duration = Duration::from_secs(5);
/// Longest pause between two attempts to connect.
const BACKOFF_MAX: Duration = Duration::from_secs(2);
const PROBE: &str = "select pg_notify('gmah_catalog', $1)";
/// Notices that may queue up; beyond it the reader falls behind and starts over.
const QUEUE: usize = 16_384;

/// What is told of changes.
pub struct Listeners {
    /// Caches by organisation.
    pub caches: Vec<Arc<dyn Invalidate>>,
    /// Called when something else than an organisation changed, and for each of them after every (re)connect.
    pub on_topic: Box<dyn Fn(Topic) + Send + Sync>,
    /// Whether notices are coming in.
    pub hearing: Arc<Hearing>,
}

/// Whether notices come in, and for how long they have not.
#[derive(Debug)]
pub struct Hearing {
    is_on: AtomicBool,
    /// When something was heard last; before that, when it was made.
    last: Mutex<Instant>,
}

impl Default for Hearing {
    fn default() -> Self {
        Self { is_on: AtomicBool::new(false), last: Mutex::new(Instant::now()) }
    }
}

impl Hearing {
    /// Whether notices come in.
    pub fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Acquire)
    }

    /// For how long what is known may have been changed without a notice: zero while they come in.
    pub fn staleness(&self) -> Duration {
        match self.is_on() {
            true => Duration::ZERO,
            false => self.last.lock().unwrap_or_else(PoisonError::into_inner).elapsed(),
        }
    }

    fn heard(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}

/// What may change beside organisations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topic {
    /// Signing keys.
    Keys,
    /// Secrets of session tickets.
    Tickets,
    /// Proofs for the certificate authority.
    Challenges,
    /// Names that need a certificate, or the base domain's own certificate.
    Orders,
}

impl Topic {
    const ALL: [Self; 4] = [Self::Keys, Self::Tickets, Self::Challenges, Self::Orders];

    fn parse(text: &str) -> Option<Self> {
        match text {
            "keys" => Some(Self::Keys),
            "tickets" => Some(Self::Tickets),
            "challenges" => Some(Self::Challenges),
            "orders" => Some(Self::Orders),
            _ => None,
        }
    }
}

/// Listens for as long as the program runs.
pub async fn run(master: Postgres, listeners: Listeners) -> Infallible {
    let mut pause = Duration::from_millis(50);
    loop {
        let began = Instant::now();
        let ended = session(&master, &listeners).await;
        listeners.hearing.is_on.store(false, Ordering::Release);
        match ended {
            Ok(()) => tracing::warn!("catalog: the connection that listens for changes ended"),
            Err(e) => tracing::warn!(error = %e, "catalog: not listening for changes"),
        }
        pause = if began.elapsed() > BACKOFF_MAX { Duration::from_millis(50) } else { pause };
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(BACKOFF_MAX);
    }
}

#[derive(Debug, thiserror::Error)]
enum ListenError {
    #[error("{0}")]
    Connect(#[from] pg::ConnectError),
    #[error("{0}")]
    Postgres(#[from] tokio_postgres::Error),
    #[error("no answer in time")]
    Timeout(#[from] tokio::time::error::Elapsed),
    #[error("no echo of the probe: the connection is deaf")]
    Deaf,
}

async fn session(master: &Postgres, listeners: &Listeners) -> Result<(), ListenError> {
    let mut listening = pg::listen(master, "gmah catalog listener", "gmah_catalog", QUEUE).await?;
    // From here on nothing is missed; what came before is confirmed anew.
    listeners.caches.iter().for_each(|c| c.invalidate_all());
    Topic::ALL.into_iter().for_each(|t| (listeners.on_topic)(t));
    listeners.hearing.heard();
    listeners.hearing.is_on.store(true, Ordering::Release);
    tracing::info!("catalog: listening for changes");

    let me = format!("probe {}", uuid::Uuid::new_v4());
    let mut probe_at = Instant::now() + PROBE_EVERY;
    let mut echo_by: Option<Instant> = None;
    loop {
        let wake = echo_by.unwrap_or(probe_at);
        tokio::select! {
            notice = listening.notices.recv() => match notice {
                None => return Ok(()),
                Some(text) if text == me => {
                    listeners.hearing.heard();
                    echo_by = None;
                    probe_at = Instant::now() + PROBE_EVERY;
                }
                Some(text) => heard(&text, listeners),
            },
            // Losing this arm loses nothing: both deadlines are kept outside.
            () = tokio::time::sleep_until(wake) => {
                if echo_by.is_some() {
                    return Err(ListenError::Deaf);
                }
                tokio::time::timeout(ECHO_WITHIN, listening.client.execute(PROBE, &[&me])).await??;
                echo_by = Some(Instant::now() + ECHO_WITHIN);
            }
        }
    }
}

fn heard(text: &str, listeners: &Listeners) {
    if let Some(topic) = Topic::parse(text) {
        return (listeners.on_topic)(topic);
    }
    match text {
        "*" => listeners.caches.iter().for_each(|c| c.invalidate_all()),
        // Another listener's probe.
        probe if probe.starts_with("probe ") => {}
        id => match TenantId::parse(id) {
            Ok(id) => listeners.caches.iter().for_each(|c| c.invalidate(id)),
            Err(_) => {
                tracing::warn!("catalog: a notice that names nothing; everything is confirmed anew");
                listeners.caches.iter().for_each(|c| c.invalidate_all());
            }
        },
    }
}
