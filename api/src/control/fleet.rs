//! One thing done to many organisations: in an order, a bounded number at once on each server, with a manifest in the
//! master that says how far each has come.
//!
//! ```text
//! canaries ─► the others, each server by itself ─► report
//!     └─ one failed: nobody else is begun
//! ```

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::StreamExt as _;
use futures::stream;
use serde::Serialize;
use serde_json::Value;
use tokio_postgres::{Client, Statement};
use uuid::Uuid;

use super::operations::Operation;
use super::tenants::Summary;
use super::{ControlError, During as _};

/// How a run over several organisations behaves.
#[derive(Debug, Clone, Copy)]
pub struct Fleet {
    /// Organisations at once on one server.
    pub parallel: usize,
    /// So many before all others, of which none may fail.
    pub canaries: usize,
    /// No further organisation is begun after this many have failed.
    pub max_failures: usize,
}

impl Default for Fleet {
    fn default() -> Self {
        Self { parallel: 6, canaries: 0, max_failures: 10 }
    }
}

/// What came of one organisation.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome<T> {
    /// Slug.
    pub slug: String,
    /// What was done.
    #[serde(flatten)]
    pub made: Option<T>,
    /// Why it failed.
    pub error: Option<String>,
    /// True when it was not begun, because too many had failed.
    pub skipped: bool,
}

impl<T> Outcome<T> {
    /// Whether it is as it should be.
    pub fn is_well(&self) -> bool {
        self.error.is_none() && !self.skipped
    }
}

/// Does `work` to each, and tells `done` of each as it ends. Answers by slug.
pub(crate) async fn over<T, F>(
    targets: Vec<Summary>,
    fleet: Fleet,
    work: impl Fn(Summary) -> F,
    mut done: impl FnMut(&Outcome<T>),
) -> Vec<Outcome<T>>
where
    F: Future<Output = Result<T, ControlError>>,
{
    let failures = AtomicUsize::new(0);
    let one = |target: Summary, most: usize| {
        let (failures, work) = (&failures, &work);
        async move {
            let slug = target.slug.clone();
            if failures.load(Ordering::Acquire) >= most {
                return Outcome { slug, made: None, error: None, skipped: true };
            }
            match work(target).await {
                Ok(made) => Outcome { slug, made: Some(made), error: None, skipped: false },
                Err(e) => {
                    failures.fetch_add(1, Ordering::AcqRel);
                    Outcome { slug, made: None, error: Some(e.to_string()), skipped: false }
                }
            }
        }
    };
    let mut others = targets;
    let canaries: Vec<_> = others.drain(..fleet.canaries.min(others.len())).collect();
    let mut outcomes = Vec::new();
    let mut first = stream::iter(canaries).map(|t| one(t, 1)).buffer_unordered(fleet.parallel.max(1));
    while let Some(outcome) = first.next().await {
        done(&outcome);
        outcomes.push(outcome);
    }
    drop(first);
    let most = if outcomes.iter().all(Outcome::is_well) { fleet.max_failures } else { 0 };
    let mut servers: HashMap<Uuid, Vec<Summary>> = HashMap::new();
    for target in others {
        servers.entry(target.server_id).or_default().push(target);
    }
    let queues = servers.into_values().map(|targets| {
        let queue = stream::iter(targets).map(|t| one(t, most)).buffer_unordered(fleet.parallel.max(1));
        Box::pin(queue)
    });
    let mut all = stream::select_all(queues);
    while let Some(outcome) = all.next().await {
        done(&outcome);
        outcomes.push(outcome);
    }
    drop(all);
    outcomes.sort_by(|a, b| a.slug.cmp(&b.slug));
    outcomes
}

/// Which organisations a run is about, written down with the run. One that is gone on with keeps those it began with.
pub(crate) async fn manifest(
    master: &Client,
    operation: &Operation,
    targets: &[Summary],
) -> Result<HashMap<Uuid, Value>, ControlError> {
    let what = "writing the manifest";
    let ids: Vec<Uuid> = targets.iter().map(|t| t.id.as_uuid()).collect();
    master
        .execute(
            "insert into operation_items (operation_id, organization_id, position)
             select $1, id, position from unnest($2::uuid[]) with ordinality as t (id, position)
             where not exists (select from operation_items where operation_id = $1)
             on conflict do nothing",
            &[&operation.id(), &ids],
        )
        .await
        .during(what)?;
    let done = master
        .query(
            "select organization_id, detail from operation_items where operation_id = $1 and state = 'done'",
            &[&operation.id()],
        )
        .await
        .during(what)?;
    Ok(done.iter().map(|r| (r.get(0), r.get(1))).collect())
}

/// Notes of each organisation how far a run has come with it.
pub(crate) struct Items<'a> {
    master: &'a Client,
    operation: (Uuid, i64),
    begin: Statement,
    end: Statement,
}

impl<'a> Items<'a> {
    /// Those of an operation.
    pub(crate) async fn of(master: &'a Client, operation: &Operation) -> Result<Self, ControlError> {
        let what = "writing the manifest";
        let begin = master.prepare(BEGIN).await.during(what)?;
        let end = master.prepare(END).await.during(what)?;
        Ok(Self { master, operation: operation.held(), begin, end })
    }

    /// Does one organisation's part, noted before and after.
    pub(crate) async fn does<T: Serialize>(
        &self,
        id: Uuid,
        work: impl Future<Output = Result<T, ControlError>>,
    ) -> Result<T, ControlError> {
        let what = "writing the manifest";
        let (operation, fence) = &self.operation;
        let begun = self.master.execute(&self.begin, &[operation, fence, &id]).await.during(what)?;
        if begun == 0 {
            return Err(ControlError::Refused(format!("operation {operation} has another runner now")));
        }
        let made = work.await;
        let (state, error, detail) = match &made {
            Ok(made) => ("done", None, serde_json::to_value(made).unwrap_or_default()),
            Err(e) => ("failed", Some(e.to_string()), Value::Null),
        };
        self.master
            .execute(&self.end, &[operation, fence, &id, &state, &error, &detail])
            .await
            .during(what)?;
        made
    }
}

/// Nobody waits until these are on the master's disk (`synchronous_commit`, PostgreSQL, chapter 20.5): one that a crash of its machine
/// takes back is an organisation that is looked at once more.
const BEGIN: &str =
    "insert into operation_items as i (operation_id, organization_id, position, state, started_at)
    select o.id, $3, 0, 'running', now() from operations o
    where o.id = $1 and o.fence = $2 and set_config('synchronous_commit', 'off', true) is not null
    on conflict (operation_id, organization_id) do update
        set state = 'running', error = null, started_at = now(), finished_at = null";

const END: &str = "update operation_items i set state = $4, error = $5, detail = $6, finished_at = now()
    from operations o
    where o.id = $1 and o.fence = $2 and i.operation_id = o.id and i.organization_id = $3
        and set_config('synchronous_commit', 'off', true) is not null";
