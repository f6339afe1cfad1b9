//! Letters: written into an organisation's own database with their reason ([`crate::repo::outbox`]), and carried from
//! there to a relay.
//!
//! Whoever takes a letter moves its next attempt into the future first, so that of two nodes one carries it, and a node
//! that dies leaves it due a little later. A letter may so arrive twice; it has one `Message-ID`, by which mail programs
//! tell. What was carried is removed: links are in it.

mod letters;
mod relay;

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream;
use gmah_shared::tenant::TenantId;
use tokio::sync::Notify;
use tokio::time::Instant;
use uuid::Uuid;

pub use letters::{Letter, confirmation, invitation, reset};
pub use relay::{MailError, Relay};

use crate::context::TenantContext;
use crate::db::TenantDb;
use crate::error::ApiError;
use crate::repo::outbox::{self, Taken};
use crate::server::App;

/// Carries letters, and knows which organisations have some.
pub struct Mailer {
    relay: Option<Relay>,
    due: Mutex<HashMap<TenantId, Instant>>,
    wake: Notify,
}

/// Why a letter was not handed over.
#[derive(Debug, thiserror::Error)]
pub enum NotSent {
    /// The relay said so, or there was no way to it.
    #[error("{0}")]
    Refused(String),
    /// Nobody knows.
    #[error("the relay did not answer in time")]
    Silent,
}

/// Organisations that are remembered to have letters; of more the chores find them.
const MOST: usize = 10_000;
/// Organisations whose letters are carried at once.
const AT_ONCE: usize = 4;
/// Letters of one before the others' turn.
const TURN: usize = 20;
/// For handing one over for which somebody waits.
const AT_ONCE_HANDED: Duration = Duration::from_secs(10);
/// For handing one letter over.
const HAND_OVER: Duration = Duration::from_secs(30);

impl Mailer {
    /// With a relay, or without one: then letters stay where they are until they expire.
    pub fn new(relay: Option<Relay>) -> Self {
        Self { relay, due: Mutex::default(), wake: Notify::new() }
    }

    /// Hands over a letter that is no organisation's, while somebody waits for it.
    ///
    /// # Errors
    /// [`NotSent`], for the log.
    pub async fn now(&self, id: Uuid, letter: &Letter) -> Result<(), NotSent> {
        let relay = self.relay.as_ref().ok_or_else(|| NotSent::Refused("no [mail]".into()))?;
        match tokio::time::timeout(AT_ONCE_HANDED, relay.send(id, letter)).await {
            Ok(sent) => sent.map_err(|e| NotSent::Refused(e.to_string())),
            Err(_) => Err(NotSent::Silent),
        }
    }

    /// That organisation has a letter.
    pub fn hint(&self, tenant: TenantId) {
        if self.relay.is_some() {
            self.at(tenant, Instant::now());
        }
    }

    fn at(&self, tenant: TenantId, when: Instant) {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        if due.len() < MOST || due.contains_key(&tenant) {
            due.entry(tenant).and_modify(|at| *at = (*at).min(when)).or_insert(when);
            self.wake.notify_one();
        }
    }

    /// Those whose time has come, and when the next one's does.
    fn take(&self, now: Instant) -> (Vec<TenantId>, Option<Instant>) {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let ready: Vec<_> =
            due.iter().filter(|(_, at)| **at <= now).map(|(id, _)| *id).take(AT_ONCE).collect();
        for id in &ready {
            due.remove(id);
        }
        (ready, due.values().min().copied())
    }
}

/// Carries letters for as long as the program runs.
pub async fn run(app: Arc<App>) -> Infallible {
    let Some(relay) = &app.mailer.relay else {
        tracing::info!("no [mail]: letters are not sent");
        return std::future::pending().await;
    };
    loop {
        let (ready, next) = app.mailer.take(Instant::now());
        if ready.is_empty() {
            let sleep = next.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            let _ = tokio::time::timeout_at(sleep, app.mailer.wake.notified()).await;
            continue;
        }
        stream::iter(ready)
            .for_each_concurrent(AT_ONCE, |tenant| {
                let app = &app;
                async move {
                    match carry(app, relay, tenant).await {
                        Ok(None) => {}
                        Ok(Some(pause)) => app.mailer.at(tenant, Instant::now() + pause),
                        // The chores come by again.
                        Err(e) => tracing::warn!(%tenant, code = e.parts().1, "letters not carried"),
                    }
                }
            })
            .await;
    }
}

/// Carries an organisation's letters that are due; answers when to come again, if at all.
async fn carry(app: &Arc<App>, relay: &Relay, tenant: TenantId) -> Result<Option<Duration>, ApiError> {
    let ctx = TenantContext::of_task(app, tenant).await?;
    let began = Instant::now();
    for _ in 0..TURN {
        // A relay that is slow to take one organisation's letters does not hold up the others'.
        if began.elapsed() > HAND_OVER {
            break;
        }
        let mut db = TenantDb::open(&ctx).await?;
        let Some(taken) = outbox::take(&mut db).await? else {
            return Ok(outbox::next_attempt(&mut db).await?);
        };
        // A relay takes its time, and must not hold a connection meanwhile.
        drop(db);
        let sent = hand_over(&ctx, relay, &taken).await;
        let mut db = TenantDb::open(&ctx).await?;
        match sent {
            Ok(()) => {
                outbox::remove(&mut db, taken.id).await?;
                app.metrics.letters.with_label_values(&["sent"]).inc();
            }
            Err(why) => {
                tracing::warn!(%tenant, letter = %taken.id, attempts = taken.attempts, error = %why, "letter not sent");
                outbox::failed(&mut db, taken.id, backoff(taken.attempts), &why).await?;
                app.metrics.letters.with_label_values(&["failed"]).inc();
            }
        }
    }
    Ok(Some(Duration::ZERO))
}

async fn hand_over(ctx: &TenantContext, relay: &Relay, taken: &Taken) -> Result<(), String> {
    let body = ctx.open_sealed(outbox::place(taken.id), &taken.body).map_err(|e| e.parts().1.to_owned())?;
    let letter = Letter {
        recipient: taken.recipient.clone(),
        subject: taken.subject.clone(),
        body: String::from_utf8_lossy(&body).into_owned(),
    };
    match tokio::time::timeout(HAND_OVER, relay.send(taken.id, &letter)).await {
        Ok(sent) => sent.map_err(|e| e.to_string()),
        Err(_) => Err("the relay did not answer in time".into()),
    }
}

/// One minute, two, four, and so on up to two hours.
fn backoff(attempts: i32) -> Duration {
    let doubled = 60_u64 << u32::try_from(attempts.clamp(1, 8) - 1).unwrap_or(0);
    Duration::from_secs(doubled.min(7200))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn hints_are_bounded_and_the_earlier_counts() {
        let (mailer, now) = (Mailer::new(None), Instant::now());
        let (a, b) = (TenantId::generate(), TenantId::generate());
        mailer.at(a, now + Duration::from_secs(9));
        mailer.at(a, now);
        mailer.at(a, now + Duration::from_secs(5));
        mailer.at(b, now + Duration::from_secs(5));
        assert_eq!(mailer.take(now), (vec![a], Some(now + Duration::from_secs(5))));
        for _ in 0..2 * MOST {
            mailer.at(TenantId::generate(), now);
        }
        assert_eq!(mailer.due.lock().expect("lock").len(), MOST);
    }

    #[test]
    fn pauses_grow_and_end() {
        let seconds: Vec<_> = [1, 2, 3, 8, 100].iter().map(|n| backoff(*n).as_secs()).collect();
        assert_eq!(seconds, [60, 120, 240, 7200, 7200]);
    }
}
