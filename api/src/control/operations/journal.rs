//! An operation that is running: its steps, each noted before it begins and with what came of it.
//!
//! A runner that is killed leaves its step `running`. Whoever goes on passes the steps that are done, with what they
//! answered, and does that one again: every step finds out what is there and does what is missing.
//!
//! Statements are sent with the types of what they are given: one wait each, and not two.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, GenericClient};
use uuid::Uuid;

use super::Kind;
use crate::control::{ControlError, During as _};

/// Hears what a command is at.
pub type Progress = Arc<dyn Fn(&Event<'_>) + Send + Sync>;

/// For whoever does not want to hear of it.
pub fn quiet() -> Progress {
    Arc::new(|_| {})
}

/// A step begins.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Event<'a> {
    /// Operation.
    pub operation: Uuid,
    /// Its kind.
    pub kind: Kind,
    /// What it is about, for people.
    pub about: &'a str,
    /// The step.
    pub step: &'a str,
}

/// An operation that this runner holds.
pub(crate) struct Operation {
    id: Uuid,
    kind: Kind,
    about: String,
    fence: i64,
    position: i32,
    done: HashMap<String, Value>,
    /// What was done and is not noted yet: it goes along with the next note.
    pending: Option<(i32, Value)>,
    progress: Progress,
}

impl Operation {
    /// Becomes the runner of an operation: what an earlier one still writes is refused from here on.
    pub(super) async fn take(
        master: &Client,
        id: Uuid,
        kind: Kind,
        about: String,
        progress: Progress,
    ) -> Result<Self, ControlError> {
        let what = "taking the operation";
        let taken = master
            .query_typed_opt(
                "with left_behind as (
                     update operation_steps set state = 'failed', finished_at = now()
                     where operation_id = $1 and state = 'running')
                 update operations set state = 'running', error = null, fence = fence + 1, updated_at = now()
                 where id = $1 and state in ('running', 'failed') returning fence",
                &[(&id, Type::UUID)],
            )
            .await
            .during(what)?;
        let taken = taken.ok_or_else(|| ControlError::Refused(format!("operation {id} is over")))?;
        let fence: i64 = taken.get(0);
        let rows = master
            .query_typed(
                "select position, name, state, detail from operation_steps where operation_id = $1
                 order by position limit 10000",
                &[(&id, Type::UUID)],
            )
            .await
            .during(what)?;
        let position = rows.last().map_or(0, |r| r.get("position"));
        let done = rows
            .iter()
            .filter(|r| r.get::<_, &str>("state") == "done")
            .map(|r| (r.get("name"), r.get("detail")))
            .collect();
        Ok(Self { id, kind, about, fence, position, done, pending: None, progress })
    }

    /// Does a step, unless an earlier runner has: then this is what came of it.
    pub(crate) async fn step<T, F>(
        &mut self,
        master: &impl GenericClient,
        name: &str,
        work: F,
    ) -> Result<T, ControlError>
    where
        T: Serialize + DeserializeOwned,
        F: Future<Output = Result<T, ControlError>>,
    {
        if let Some(known) = self.recorded(name)? {
            return Ok(known);
        }
        self.again(master, name, work).await
    }

    /// Does a step whatever an earlier runner has done.
    pub(crate) async fn again<T, F>(
        &mut self,
        master: &impl GenericClient,
        name: &str,
        work: F,
    ) -> Result<T, ControlError>
    where
        T: Serialize,
        F: Future<Output = Result<T, ControlError>>,
    {
        self.begin(master, name).await?;
        let made = work.await?;
        self.did(name, &made)?;
        Ok(made)
    }

    /// What a step answered that is done.
    pub(crate) fn recorded<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, ControlError> {
        let Some(value) = self.done.get(name) else { return Ok(None) };
        serde_json::from_value(value.clone()).map(Some).map_err(|e| {
            ControlError::Foreign(format!("the journal of {} is unreadable: {name}: {e}", self.id))
        })
    }

    /// Notes that a step begins, and that the one before is done.
    pub(crate) async fn begin(
        &mut self,
        master: &impl GenericClient,
        name: &str,
    ) -> Result<(), ControlError> {
        let (before, detail) = self.pending.take().unwrap_or((0, Value::Null));
        let position = self.position + 1;
        let noted = master
            .execute_typed(
                "with mine as (
                     update operations set updated_at = now()
                     where id = $1 and fence = $2 and state = 'running' returning id),
                 before as (
                     update operation_steps set state = 'done', finished_at = now(), detail = $4
                     where operation_id = (select id from mine) and position = $3)
                 insert into operation_steps (operation_id, position, name, state)
                 select id, $5, $6, 'running' from mine",
                &[
                    (&self.id, Type::UUID),
                    (&self.fence, Type::INT8),
                    (&before, Type::INT4),
                    (&detail, Type::JSONB),
                    (&position, Type::INT4),
                    (&name, Type::TEXT),
                ],
            )
            .await
            .during("writing the journal")?;
        self.still_ours(noted)?;
        self.position = position;
        (self.progress)(&Event { operation: self.id, kind: self.kind, about: &self.about, step: name });
        tracing::debug!(operation = %self.id, step = name, "operation");
        crash::here(self.kind, name, "before");
        Ok(())
    }

    /// The step that was begun is done; the journal hears of it with the next note.
    pub(crate) fn did<T: Serialize>(&mut self, name: &str, made: &T) -> Result<(), ControlError> {
        crash::here(self.kind, name, "after");
        let value = serde_json::to_value(made)
            .map_err(|e| ControlError::Foreign(format!("{name}: no JSON of its result: {e}")))?;
        self.pending = Some((self.position, value.clone()));
        self.done.insert(name.to_owned(), value);
        Ok(())
    }

    /// Ends the operation, if need be in the transaction that makes its result visible.
    pub(crate) async fn finish<T: Serialize>(
        &mut self,
        master: &impl GenericClient,
        result: &T,
    ) -> Result<(), ControlError> {
        let result = serde_json::to_value(result)
            .map_err(|e| ControlError::Foreign(format!("no JSON of the result: {e}")))?;
        let (before, detail) = self.pending.take().unwrap_or((0, Value::Null));
        let noted = master
            .execute_typed(
                "with mine as (
                     update operations set state = 'done', result = $5, finished_at = now(), updated_at = now()
                     where id = $1 and fence = $2 and state = 'running' returning id),
                 last as (
                     update operation_steps set state = 'done', finished_at = now(),
                         detail = case when position = $3 then $4 else detail end
                     where operation_id = (select id from mine) and state = 'running')
                 select 1 from mine",
                &[
                    (&self.id, Type::UUID),
                    (&self.fence, Type::INT8),
                    (&before, Type::INT4),
                    (&detail, Type::JSONB),
                    (&result, Type::JSONB),
                ],
            )
            .await
            .during("writing the journal")?;
        self.still_ours(noted)
    }

    /// Notes that what its steps have made is about to be undone, but for the one that says where everything is: whoever goes on
    /// with it does them again.
    pub(crate) async fn forget(
        &mut self,
        master: &impl GenericClient,
        but: &str,
    ) -> Result<(), ControlError> {
        self.pending = None;
        self.done.retain(|name, _| name == but);
        let noted = master
            .execute(
                "with mine as (
                     update operations set updated_at = now()
                     where id = $1 and fence = $2 and state = 'running' returning id),
                 steps as (
                     update operation_steps set state = 'failed', finished_at = now()
                     where operation_id = (select id from mine) and name <> $3)
                 select 1 from mine",
                &[&self.id, &self.fence, &but],
            )
            .await
            .during("writing the journal")?;
        self.still_ours(noted)
    }

    /// Notes that it failed.
    pub(super) async fn failed(&self, master: &Client, error: &ControlError) {
        // One that could not be undone is not over: it is gone on with, or given up.
        let is_over = !matches!(error, ControlError::HalfDone { .. });
        let noted = master
            .execute(
                "with mine as (
                     update operations set error = $3, updated_at = now(),
                         state = case when $4 then 'failed' else state end,
                         finished_at = case when $4 then now() end
                     where id = $1 and fence = $2 and state = 'running' returning id)
                 update operation_steps set state = 'failed', finished_at = now()
                 where operation_id = (select id from mine) and state = 'running'",
                &[&self.id, &self.fence, &error.to_string(), &is_over],
            )
            .await;
        if let Err(e) = noted {
            tracing::warn!(error = %e, "the journal did not take the failure");
        }
    }

    fn still_ours(&self, noted: u64) -> Result<(), ControlError> {
        if noted == 0 {
            return Err(ControlError::Refused(format!("operation {} has another runner now", self.id)));
        }
        Ok(())
    }

    /// What it does.
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// The operation, and the number of its runner, for what is noted elsewhere.
    pub(crate) fn held(&self) -> (Uuid, i64) {
        (self.id, self.fence)
    }

    /// The operation's id.
    pub(crate) fn id(&self) -> Uuid {
        self.id
    }
}

/// For tests of being killed, in debug builds only: `GMAH_KILL_AT=KIND/STEP/before` in the environment kills this process
/// there, `GMAH_STOP_AT` stops it until it is told to go on.
mod crash {
    use rustix::process::{Signal, getpid, kill_process};

    use super::Kind;

    pub(super) fn here(kind: Kind, step: &str, when: &str) {
        if !cfg!(debug_assertions) {
            return;
        }
        for (variable, signal) in [("GMAH_KILL_AT", Signal::KILL), ("GMAH_STOP_AT", Signal::STOP)] {
            if std::env::var(variable).is_ok_and(|at| at == format!("{}/{step}/{when}", kind.as_str())) {
                // It is this process: there is nobody to hear of a failure.
                let _ = kill_process(getpid(), signal);
            }
        }
    }
}
