//! One runner at a time: an advisory lock in the master under the name of what an operation works on (PostgreSQL, chapter
//! 13.3.5). It belongs to the session: a runner that dies leaves it as soon as the server notices, which is at once where
//! the process was killed, and within seconds where its machine was.

use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::types::Type;

use super::Subject;
use crate::control::{Control, ControlError, During as _};

/// For a runner that has just been killed, or is about to end.
const PATIENCE: Duration = Duration::from_secs(15);

impl Control {
    /// Takes the lock of a subject, waiting a little for whoever has it.
    ///
    /// # Errors
    /// [`ControlError::Refused`] while another runner has it.
    pub(crate) async fn hold(&self, subject: &Subject) -> Result<(), ControlError> {
        self.hold_of(subject, &subject.to_string()).await
    }

    /// The same, with a name for people.
    pub(super) async fn hold_of(&self, subject: &Subject, name: &str) -> Result<(), ControlError> {
        let deadline = Instant::now() + PATIENCE;
        while !self.try_hold(subject).await? {
            if Instant::now() > deadline {
                return Err(ControlError::Refused(format!("another command is at work on {name}")));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Takes the lock of a subject, if nobody has it.
    pub(crate) async fn try_hold(&self, subject: &Subject) -> Result<bool, ControlError> {
        let row = self
            .master
            .query_typed_one(
                "select pg_try_advisory_lock(hashtextextended($1, 0))",
                &[(&lock_name(subject), Type::TEXT)],
            )
            .await
            .during("taking the lock")?;
        Ok(row.get(0))
    }

    /// Leaves it.
    pub(crate) async fn release(&self, subject: &Subject) {
        let released = self
            .master
            .execute_typed(
                "select pg_advisory_unlock(hashtextextended($1, 0))",
                &[(&lock_name(subject), Type::TEXT)],
            )
            .await;
        if let Err(e) = released {
            tracing::debug!(error = %e, "lock not released by hand; it ends with the session");
        }
    }
}

fn lock_name(subject: &Subject) -> String {
    format!("gmah {subject}")
}
