//! Breakers: after failures nobody tries for a while, then one does.
//!
//! Closed, everybody may connect. After so many failures in a row by so many different parties it opens, and refuses
//! with the reason; after a pause one attempt is let through (half open), and its outcome closes the breaker or opens
//! it again for twice as long. There is one for each tenant's pool and one for each PostgreSQL server; whose fault a
//! failure is, is for [`Failure::is_servers`].

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Why a connection was not to be had, as the metrics name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// No way to the server: refused, reset, no route.
    Unreachable,
    /// No answer in time.
    Silent,
    /// The server is starting, stopping, or has no connection to spare.
    Busy,
    /// The database is closed, or not there.
    Closed,
    /// Role or password are not accepted.
    Authentication,
    /// The database is not this organisation's.
    WrongDatabase,
    /// The database's schema is none that this program serves.
    Schema,
    /// Anything else that the server said.
    Refused,
}

impl Failure {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Unreachable,
        Self::Silent,
        Self::Busy,
        Self::Closed,
        Self::Authentication,
        Self::WrongDatabase,
        Self::Schema,
        Self::Refused,
    ];

    /// For a label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Silent => "silent",
            Self::Busy => "busy",
            Self::Closed => "closed",
            Self::Authentication => "authentication",
            Self::WrongDatabase => "wrong_database",
            Self::Schema => "schema",
            Self::Refused => "refused",
        }
    }

    /// Whether it says something of the server, and not of one tenant's database or role. A server that refuses a
    /// password is well.
    pub fn is_servers(self) -> bool {
        match self {
            Self::Unreachable | Self::Silent | Self::Busy => true,
            Self::Closed | Self::Authentication | Self::WrongDatabase | Self::Schema | Self::Refused => false,
        }
    }
}

/// How long a failure counts together with others'.
const MEMORY: Duration = Duration::from_secs(30);

/// Where a breaker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Everybody may.
    Closed,
    /// Nobody may.
    Open(Failure),
    /// One is trying.
    HalfOpen(Failure),
}

/// A breaker.
#[derive(Debug)]
pub struct Breaker {
    state: Mutex<State>,
    /// Different parties that must have failed, with no success in between.
    parties: usize,
    pause: Duration,
    longest: Duration,
}

#[derive(Debug)]
enum State {
    Closed { failed: BTreeMap<u64, Instant> },
    Open { until: Instant, pause: Duration, why: Failure },
    HalfOpen { pause: Duration, why: Failure },
}

impl Breaker {
    /// Opens when `parties` different ones have failed in a row; for `pause` at first, and never for more than `longest`.
    pub fn new(parties: usize, pause: Duration, longest: Duration) -> Self {
        let state = Mutex::new(State::Closed { failed: BTreeMap::new() });
        Self { state, parties: parties.max(1), pause, longest: longest.max(pause) }
    }

    /// Whether an attempt may be made now. Whoever is let through must report [`Breaker::succeeded`],
    /// [`Breaker::failed`] or [`Breaker::gave_up`].
    ///
    /// # Errors
    /// Why not.
    pub fn admit(&self, now: Instant) -> Result<(), Failure> {
        let mut state = self.lock();
        match *state {
            State::Closed { .. } => Ok(()),
            State::Open { until, pause, why } if now >= until => {
                *state = State::HalfOpen { pause, why };
                Ok(())
            }
            State::Open { why, .. } | State::HalfOpen { why, .. } => Err(why),
        }
    }

    /// Whether an attempt would be refused now; changes nothing.
    pub fn refuses(&self, now: Instant) -> Option<Failure> {
        match *self.lock() {
            State::Closed { .. } => None,
            State::Open { until, why, .. } => (now < until).then_some(why),
            State::HalfOpen { why, .. } => Some(why),
        }
    }

    /// An attempt went well.
    pub fn succeeded(&self) {
        let mut state = self.lock();
        // The usual case costs nothing.
        if !matches!(&*state, State::Closed { failed } if failed.is_empty()) {
            *state = State::Closed { failed: BTreeMap::new() };
        }
    }

    /// An attempt of `party` failed; true when that opened the breaker.
    pub fn failed(&self, now: Instant, party: u64, why: Failure) -> bool {
        let mut state = self.lock();
        let pause = match &mut *state {
            State::Closed { failed } => {
                failed.retain(|_, at| now.saturating_duration_since(*at) < MEMORY);
                failed.insert(party, now);
                if failed.len() < self.parties {
                    return false;
                }
                self.pause
            }
            State::HalfOpen { pause, .. } => (*pause * 2).min(self.longest),
            // One that was on its way when it opened.
            State::Open { .. } => return false,
        };
        *state = State::Open { until: now + pause, pause, why };
        true
    }

    /// An attempt came to nothing, and says nothing: the next one may be made at once.
    pub fn gave_up(&self, now: Instant) {
        let mut state = self.lock();
        if let State::HalfOpen { pause, why } = *state {
            *state = State::Open { until: now, pause, why };
        }
    }

    /// Where it stands.
    pub fn standing(&self) -> Standing {
        match *self.lock() {
            State::Closed { .. } => Standing::Closed,
            State::Open { why, .. } => Standing::Open(why),
            State::HalfOpen { why, .. } => Standing::HalfOpen(why),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn one_party_that_fails_opens_it_and_one_success_closes_it() {
        let (b, t) = (Breaker::new(1, 100 * MS, 350 * MS), Instant::now());
        assert!(b.admit(t).is_ok());
        assert!(b.failed(t, 1, Failure::Silent));
        assert_eq!(b.admit(t + 99 * MS), Err(Failure::Silent));
        assert_eq!(b.refuses(t + 100 * MS), None, "asking changes nothing");
        assert!(b.admit(t + 100 * MS).is_ok(), "one tries");
        assert_eq!(b.standing(), Standing::HalfOpen(Failure::Silent));
        assert_eq!(b.admit(t + 100 * MS), Err(Failure::Silent), "and nobody else");
        assert!(b.failed(t + 100 * MS, 1, Failure::Unreachable));
        assert_eq!(b.admit(t + 299 * MS), Err(Failure::Unreachable), "twice as long");
        assert!(b.admit(t + 300 * MS).is_ok());
        assert!(b.failed(t + 300 * MS, 1, Failure::Silent));
        assert!(
            b.admit(t + 649 * MS).is_err() && b.admit(t + 650 * MS).is_ok(),
            "never longer than the longest"
        );
        b.gave_up(t + 650 * MS);
        assert!(b.admit(t + 650 * MS).is_ok(), "an attempt that says nothing leaves the turn to the next");
        b.succeeded();
        assert_eq!(b.standing(), Standing::Closed);
        assert!(b.failed(t + 700 * MS, 1, Failure::Silent));
        assert!(b.admit(t + 800 * MS).is_ok(), "and the pause is short again");
    }

    #[test]
    fn one_party_alone_does_not_open_what_many_share() {
        let (b, t) = (Breaker::new(3, 100 * MS, 350 * MS), Instant::now());
        for _ in 0..100 {
            assert!(!b.failed(t, 1, Failure::Silent));
        }
        assert!(!b.failed(t, 2, Failure::Silent));
        b.succeeded();
        assert!(!b.failed(t, 3, Failure::Silent), "a success in between starts over");
        assert!(!b.failed(t, 1, Failure::Silent));
        assert!(b.failed(t, 2, Failure::Silent));
        assert!(!b.failed(t, 4, Failure::Silent), "one that was on its way");
        b.succeeded();
        assert!(!b.failed(t, 1, Failure::Silent) && !b.failed(t, 2, Failure::Silent));
        assert!(
            !b.failed(t + MEMORY, 3, Failure::Silent),
            "hours apart they have nothing to do with each other"
        );
    }
}
