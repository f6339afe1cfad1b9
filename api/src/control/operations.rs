//! Operations: what takes several steps, is written into the master's journal, and survives the death of its runner.
//!
//! ```text
//! running ─► done
//!    │  └──► failed ─► running (asked for again)
//!    └─────► cancelled (what it had made is removed)
//! ```
//!
//! `Control::operate` is the one way to run one. Its subject is held by one runner at a time (`hold`), its steps are
//! noted (`journal`), and the number of its runner is part of every note, so that one which was taken for dead and is
//! not writes nothing any more.

mod hold;
mod journal;
mod kind;
mod resume;

use gmah_shared::tenant::{TenantId, TenantSlug};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};
use uuid::Uuid;

pub(crate) use journal::Operation;
pub use journal::{Event, Progress, quiet};
use kind::KINDS;
pub use kind::Kind;
pub(crate) use kind::Subject;
pub use resume::Resumed;
use utoipa::ToSchema;

use super::tenants::Summary;
use super::{Control, ControlError, During as _};

/// An operation as operators see it.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Operation)]
pub struct Listed {
    /// Id.
    pub id: Uuid,
    /// What it does.
    pub kind: String,
    /// What it works on.
    pub subject: String,
    /// Slug of its organisation, if it has one.
    pub slug: Option<String>,
    /// `running`, `done`, `failed` or `cancelled`.
    pub state: String,
    /// True when it is `running`, and nobody runs it.
    pub abandoned: bool,
    /// The step that it is at, or failed at.
    pub step: Option<String>,
    /// Why it failed.
    pub error: Option<String>,
    /// Who asked.
    pub actor: String,
    /// When it was asked for.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When it ended.
    #[serde(with = "time::serde::rfc3339::option")]
    pub finished_at: Option<OffsetDateTime>,
}

/// An operation with all that is known of it.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = OperationDetailed)]
pub struct Shown {
    /// As in a listing.
    #[serde(flatten)]
    pub listed: Listed,
    /// What was asked.
    #[schema(value_type = Object)]
    pub input: Value,
    /// What came of it: an object, or a word where there is no more to say, such as an id.
    #[schema(value_type = Value)]
    pub result: Option<Value>,
    /// How many runners it had.
    pub runners: i64,
    /// Its steps, in the order in which they began.
    pub steps: Vec<Step>,
}

/// A step of an operation.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = OperationStep)]
pub struct Step {
    /// Name.
    pub name: String,
    /// `running`, `done` or `failed`.
    pub state: String,
    /// When it began.
    #[serde(with = "time::serde::rfc3339")]
    pub started_at: OffsetDateTime,
    /// When it ended.
    #[serde(with = "time::serde::rfc3339::option")]
    pub finished_at: Option<OffsetDateTime>,
}

/// One that was found in the journal.
struct Found {
    id: Uuid,
    state: String,
    result: Option<Value>,
}

/// What [`Control::operate`] was asked for.
pub(crate) struct Ask {
    pub(crate) kind: Kind,
    pub(crate) subject: Subject,
    /// Its organisation, if it is there already.
    pub(crate) organization: Option<TenantId>,
    /// For people: what it is about.
    pub(crate) about: String,
    /// What two runs must agree on to be the same. Never a secret.
    pub(crate) input: Value,
    /// What is done with one that was done before.
    pub(crate) again: Again,
    /// This very one is gone on with.
    pub(crate) resume: Option<Uuid>,
}

impl Ask {
    /// What is done to one organisation, as often as it is asked for.
    pub(crate) fn of(kind: Kind, tenant: &Summary, resume: Option<Uuid>) -> Self {
        Self {
            kind,
            subject: Subject::Organization(tenant.id),
            organization: Some(tenant.id),
            about: tenant.slug.clone(),
            input: json!({ "slug": tenant.slug }),
            again: Again::Yes,
            resume,
        }
    }
}

/// When the very same was asked for before, and is done.
pub(crate) enum Again {
    /// It is done again; one that was left unfinished is gone on with.
    Yes,
    /// It is done from the beginning, whatever was left unfinished of an earlier one.
    Anew,
    /// Where its slug is taken by now, its result is the answer; for whatever else is asked it is refused.
    UnlessTaken,
}

impl Control {
    /// Runs an operation, or goes on with the same one that a killed runner left, or that failed.
    ///
    /// `work` is told which operation it is; every step of it may be done a second time. What it answers is kept. The
    /// second value is false when everything had been done before.
    ///
    /// # Errors
    /// [`ControlError::Refused`] while another runner has the subject, or another operation on it was left unfinished.
    pub(crate) async fn operate<T, W>(&mut self, ask: Ask, work: W) -> Result<(T, bool), ControlError>
    where
        T: Serialize + DeserializeOwned,
        W: AsyncFnOnce(&mut Self, &mut Operation) -> Result<T, ControlError>,
    {
        // Held until this session ends, also by a kill.
        let subject = ask.subject.clone();
        self.hold_of(&subject, &ask.about).await?;
        let ran = self.operate_held(ask, work).await;
        self.release(&subject).await;
        ran
    }

    async fn operate_held<T, W>(&mut self, ask: Ask, work: W) -> Result<(T, bool), ControlError>
    where
        T: Serialize + DeserializeOwned,
        W: AsyncFnOnce(&mut Self, &mut Operation) -> Result<T, ControlError>,
    {
        if let Some(id) = ask.resume {
            // Its organisation may be gone, and the name another one's.
            let subject = self.operation(id).await?.listed.subject;
            if subject != ask.subject.to_string() {
                return Err(ControlError::Refused(format!(
                    "operation {id} is about {subject}, which {} is not: gmah operation cancel {id}",
                    ask.about
                )));
            }
        }
        // Under the lock: another run of the same may have ended while this one waited.
        let taken = match (&ask.again, &ask.subject) {
            (Again::UnlessTaken, Subject::Slug(slug)) => self.taken(slug).await?,
            _ => None,
        };
        let (same, other) = self.before(&ask).await?;
        let other = other.filter(|(id, _)| Some(*id) != ask.resume);
        let left = same.as_ref().filter(|same| match same.state.as_str() {
            "running" => true,
            // Not while another one stands half-way: what this one had seen may not be so any more.
            "failed" => ask.kind.is_gone_on_with() && other.is_none(),
            _ => false,
        });
        let goes_on = ask.resume.filter(|_| other.is_none()).or(left.map(|same| same.id));
        let id = match same {
            _ if goes_on.is_some() => goes_on.unwrap_or_default(),
            Some(same) if same.state == "done" && taken.is_some() => {
                let known = serde_json::from_value(same.result.unwrap_or_default());
                let known = known.map_err(|e| {
                    ControlError::Foreign(format!("the journal of {} is unreadable: {e}", same.id))
                })?;
                return Ok((known, false));
            }
            _ => {
                if ask.resume.is_none()
                    && let Some(reason) = taken
                {
                    return Err(reason);
                }
                if let Some((id, kind)) = other {
                    // Held by us, so nobody runs it; and nothing is lost with it.
                    if ask.kind.makes_void(&kind) {
                        if kind == ask.kind.as_str() {
                            self.undo(ask.kind, id).await?;
                        }
                        self.note_cancelled(id).await?;
                        return Box::pin(self.operate_held(ask, work)).await;
                    }
                    return Err(ControlError::Refused(format!(
                        "{}: {kind} was left unfinished: gmah operation resume {id}, or gmah operation cancel {id}",
                        ask.about
                    )));
                }
                self.begin_operation(&ask).await?
            }
        };
        let mut operation =
            Operation::take(&self.master, id, ask.kind, ask.about, self.progress.clone()).await?;
        let worked = match work(self, &mut operation).await {
            Ok(made) => operation.finish(&self.master, &made).await.map(|()| made),
            Err(e) => Err(e),
        };
        match worked {
            Ok(made) => Ok((made, true)),
            Err(e) => {
                operation.failed(&self.master, &e).await;
                Err(e)
            }
        }
    }

    async fn begin_operation(&self, ask: &Ask) -> Result<Uuid, ControlError> {
        let id = Uuid::now_v7();
        self.master
            .execute_typed(
                "insert into operations (id, kind, subject, organization_id, input, actor)
                 values ($1, $2, $3, $4, $5, $6)",
                &[
                    (&id, Type::UUID),
                    (&ask.kind.as_str(), Type::TEXT),
                    (&ask.subject.to_string(), Type::TEXT),
                    (&ask.organization.map(|id| id.as_uuid()), Type::UUID),
                    (&ask.input, Type::JSONB),
                    (&self.actor, Type::TEXT),
                ],
            )
            .await
            .during("writing the journal")?;
        Ok(id)
    }

    /// The newest operation that is the same, and another one on the subject that was left unfinished.
    async fn before(&self, ask: &Ask) -> Result<(Option<Found>, Option<(Uuid, String)>), ControlError> {
        let anew = matches!(ask.again, Again::Anew);
        let (what, subject, kind) = ("reading the journal", ask.subject.to_string(), ask.kind.as_str());
        let asked: [(&(dyn ToSql + Sync), Type); 4] =
            [(&subject, Type::TEXT), (&kind, Type::TEXT), (&ask.input, Type::JSONB), (&anew, Type::BOOL)];
        let same = self
            .master
            .query_typed_opt(
                "select id, state, result from operations
                 where subject = $1 and kind = $2 and input = $3 and state <> 'cancelled' and not $4
                 order by created_at desc, id desc limit 1",
                &asked,
            )
            .await
            .during(what)?
            .map(|r| Found { id: r.get("id"), state: r.get("state"), result: r.get("result") });
        let other = self
            .master
            .query_typed_opt(
                "select id, kind from operations
                 where subject = $1 and state = 'running' and ($4 or not (kind = $2 and input = $3)) limit 1",
                &asked,
            )
            .await
            .during(what)?
            .map(|r| (r.get("id"), r.get("kind")));
        Ok((same, other))
    }

    /// The newest operations, of one organisation or of all.
    ///
    /// # Errors
    /// [`ControlError`] when the master is away.
    pub async fn operations(
        &self,
        slug: Option<&TenantSlug>,
        unfinished: bool,
        limit: u16,
    ) -> Result<Vec<Listed>, ControlError> {
        let sql = format!(
            "{LISTED} where ($1::text is null or org.slug = $1 or o.subject = 'slug/' || $1)
                 and (not $2 or o.state = 'running' or o.state = 'failed' and o.kind = any($4))
             order by o.created_at desc, o.id desc limit $3"
        );
        let slug = slug.map(TenantSlug::as_str);
        // Of the others what had been made is removed when they fail.
        let left: Vec<&str> = KINDS.iter().filter(|k| k.is_gone_on_with()).map(|k| k.as_str()).collect();
        let rows = self
            .master
            .query(&sql, &[&slug, &unfinished, &i64::from(limit), &left])
            .await
            .during("listing operations")?;
        Ok(rows.iter().map(listed_of).collect())
    }

    /// The organisation that an operation is about, if it is about one that there is.
    pub(crate) async fn organization_of(&self, id: Uuid) -> Result<Option<TenantId>, ControlError> {
        let row = self
            .master
            .query_opt("select organization_id from operations where id = $1", &[&id])
            .await
            .during("reading the journal")?;
        let row = row.ok_or_else(|| ControlError::Refused(format!("there is no operation {id}")))?;
        Ok(row.get::<_, Option<Uuid>>(0).map(TenantId::from_uuid))
    }

    /// One operation.
    ///
    /// # Errors
    /// [`ControlError::Refused`] when there is none of that id.
    pub async fn operation(&self, id: Uuid) -> Result<Shown, ControlError> {
        let what = "reading the journal";
        let sql = format!("{LISTED} where o.id = $1");
        let row = self.master.query_opt(&sql, &[&id]).await.during(what)?;
        let row = row.ok_or_else(|| ControlError::Refused(format!("there is no operation {id}")))?;
        let steps = self
            .master
            .query(
                "select name, state, started_at, finished_at from operation_steps
                 where operation_id = $1 order by position limit 10000",
                &[&id],
            )
            .await
            .during(what)?;
        Ok(Shown {
            listed: listed_of(&row),
            input: row.get("input"),
            result: row.get("result"),
            runners: row.get("fence"),
            steps: steps
                .iter()
                .map(|s| Step {
                    name: s.get("name"),
                    state: s.get("state"),
                    started_at: s.get("started_at"),
                    finished_at: s.get("finished_at"),
                })
                .collect(),
        })
    }
}

fn listed_of(row: &Row) -> Listed {
    Listed {
        id: row.get("id"),
        kind: row.get("kind"),
        subject: row.get("subject"),
        slug: row.get("slug"),
        state: row.get("state"),
        abandoned: row.get("abandoned"),
        step: row.get("step"),
        error: row.get("error"),
        actor: row.get("actor"),
        created_at: row.get("created_at"),
        finished_at: row.get("finished_at"),
    }
}

/// Index: operations_newest, operations_pkey.
const LISTED: &str = "select o.id, o.kind, o.subject, o.state, o.error, o.actor, o.created_at, o.finished_at,
        o.input, o.result, o.fence, coalesce(org.slug, o.input ->> 'slug') as slug,
        o.state = 'running' and not exists (
            select from pg_locks l
            where l.locktype = 'advisory' and l.objsubid = 1
                and l.database = (select oid from pg_database where datname = current_database())
                and ((l.classid::bigint << 32) | l.objid::bigint) = hashtextextended('gmah ' || o.subject, 0)) as abandoned,
        case when o.state <> 'done' then
            (select s.name from operation_steps s where s.operation_id = o.id and s.state in ('running', 'failed')
             order by s.position desc limit 1) end as step
    from operations o left join organizations org on org.id = o.organization_id";
