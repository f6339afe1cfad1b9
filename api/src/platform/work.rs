//! The control plane, asked over HTTP: the same code that commands run, in the administrator's name.
//!
//! Operations are bound to the thread that runs them, so each has one of its own; there are few at once, and an
//! administrator who has gone leaves what was begun to be finished.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gmah_shared::config::Settings;
use gmah_shared::secret::MasterKey;
use gmah_shared::tenant::{TenantId, TenantSlug};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use utoipa::ToSchema;
use uuid::Uuid;

use super::Platform;
use super::session::Administrator;
use crate::control::config::ControlConfig;
use crate::control::operations::{Progress, quiet};
use crate::control::{Control, ControlError};
use crate::error::ApiError;
use crate::server::App;

/// Operations that administrators may have under way at once, in one process; one more is refused at once.
const OPERATIONS: usize = 8;
/// Organisations that people make by themselves, at once.
const SIGNUPS: usize = 4;
/// Questions, which are short: they have places of their own, so that whoever waits for an operation can ask how it stands.
const QUESTIONS: usize = 16;
/// For a place to ask in.
const TURN: Duration = Duration::from_secs(5);
/// For a question and its answer.
const ANSWERED: Duration = Duration::from_secs(25);

/// What a session of the control plane is opened with.
pub(super) struct Work {
    pub(super) settings: Settings,
    pub(super) config: ControlConfig,
    questions: Arc<Semaphore>,
    operations: Arc<Semaphore>,
    signups: Arc<Semaphore>,
}

impl Work {
    pub(super) fn new(settings: Settings, config: ControlConfig) -> Self {
        let (questions, operations) = (Semaphore::new(QUESTIONS), Semaphore::new(OPERATIONS));
        let (questions, operations) = (Arc::new(questions), Arc::new(operations));
        Self { settings, config, questions, operations, signups: Arc::new(Semaphore::new(SIGNUPS)) }
    }

    /// Whether whoever is made administrator of an organisation is told.
    pub(super) fn sends_letters(&self) -> bool {
        self.config.mail.is_some()
    }
}

/// What is written down of an act beside what it was.
#[derive(Clone)]
pub(super) struct Trail {
    action: String,
    request_id: String,
    address: Option<String>,
}

impl Trail {
    fn of(admin: &Administrator) -> Self {
        Self {
            action: format!("{} {}", admin.route.method, admin.route.path),
            request_id: admin.request_id.clone(),
            address: admin.client.address.map(|a| a.to_string()),
        }
    }

    /// Writes down what an administrator does, by the route that does it. On the thread that does it: whoever asked may have gone.
    pub(super) async fn record(
        &self,
        control: &Control,
        of: Option<TenantId>,
        detail: &Value,
    ) -> Result<(), ControlError> {
        let mut detail = detail.clone();
        detail["request_id"] = self.request_id.as_str().into();
        detail["address"] = self.address.clone().into();
        control.note(&self.action, of, &detail).await
    }
}

impl Platform {
    /// Whether whoever is made administrator of an organisation is told.
    pub(super) fn sends_letters(&self) -> bool {
        self.work.sends_letters()
    }

    /// The key that seals.
    pub(super) fn key(&self) -> &MasterKey {
        &self.work.settings.master_key
    }
}

/// 202: an operation that goes on.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OperationBegun)]
pub(super) struct Begun {
    /// `GET /api/v1/admin/operations/{id}` says how it stands; none where there was nothing left to do.
    operation: Option<Uuid>,
}

/// Asks something and waits for the answer.
pub(super) async fn ask<T, W>(admin: &Administrator, work: W) -> Result<T, ApiError>
where
    T: Send + 'static,
    W: AsyncFnOnce(&mut Control) -> Result<T, ControlError> + Send + 'static,
{
    let place = tokio::time::timeout(TURN, admin.app.platform.work.questions.clone().acquire_owned()).await;
    let Ok(Ok(place)) = place else { return Err(ApiError::Unavailable) };
    let answered = async move |control: &mut Control| {
        let silent = || ControlError::Silent("the control plane".into());
        tokio::time::timeout(ANSWERED, work(control)).await.unwrap_or_else(|_| Err(silent()))
    };
    start(&admin.app, admin.actor(), quiet(), place, answered).await.unwrap_or(Err(ApiError::Internal))
}

/// Does something that is no organisation's, and writes it down before.
pub(super) async fn act<T, W>(admin: &Administrator, detail: Value, work: W) -> Result<T, ApiError>
where
    T: Send + 'static,
    W: AsyncFnOnce(&mut Control) -> Result<T, ControlError> + Send + 'static,
{
    let trail = Trail::of(admin);
    ask(admin, async move |control| {
        trail.record(control, None, &detail).await?;
        work(control).await
    })
    .await
}

/// Writes down that an organisation is looked into, and answers which it is.
pub(super) async fn seen(
    admin: &Administrator,
    slug: TenantSlug,
    detail: Value,
) -> Result<TenantId, ApiError> {
    let trail = Trail::of(admin);
    ask(admin, async move |control| {
        let id = control.tenant(&slug).await?.id;
        trail.record(control, Some(id), &detail).await?;
        Ok(id)
    })
    .await
}

/// Changes an organisation: what it was before and is then is written down, also where only a part of it was done.
pub(super) async fn change<T, W>(admin: &Administrator, slug: &TenantSlug, work: W) -> Result<T, ApiError>
where
    T: Send + 'static,
    W: AsyncFnOnce(&mut Control) -> Result<T, ControlError> + Send + 'static,
{
    let (name, trail) = (slug.clone(), Trail::of(admin));
    ask(admin, async move |control| {
        let before = control.tenant(&name).await?;
        let made = work(control).await;
        // Where there is nothing of that name any more, there is nothing to show.
        let after = control.tenant(&name).await.ok();
        let (id, before) = (before.id, serde_json::to_value(&before).unwrap_or_default());
        let after = serde_json::to_value(&after).unwrap_or_default();
        let detail = json!({
            "before": differing(&before, &after), "after": differing(&after, &before),
            "refused": made.as_ref().err().map(ToString::to_string),
        });
        trail.record(control, Some(id), &detail).await?;
        made
    })
    .await
}

/// Begins an operation, and answers once it is in the journal. What is asked for is written down before, of the organisation that
/// `of` finds.
pub(super) async fn begin<O, W>(
    admin: &Administrator,
    of: O,
    detail: Value,
    work: W,
) -> Result<Begun, ApiError>
where
    O: AsyncFnOnce(&mut Control) -> Result<Option<TenantId>, ControlError> + Send + 'static,
    W: AsyncFnOnce(&mut Control) -> Result<(), ControlError> + Send + 'static,
{
    let Ok(place) = admin.app.platform.work.operations.clone().try_acquire_owned() else {
        return Err(ApiError::Refused(
            "as many operations are under way here as may be: ask again later".into(),
        ));
    };
    let (tell, told) = oneshot::channel();
    let tell = Mutex::new(Some(tell));
    let progress: Progress = Arc::new(move |event| {
        if let Some(tell) = tell.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // Nobody listens where the administrator has gone.
            let _ = tell.send(event.operation);
        }
    });
    let trail = Trail::of(admin);
    let mut ended = start(&admin.app, admin.actor(), progress, place, async move |control| {
        let of = of(control).await?;
        trail.record(control, of, &detail).await?;
        work(control).await
    });
    let operation = tokio::select! {
        biased;
        begun = told => match begun {
            Ok(id) => Some(id),
            // It ended before its first step.
            Err(_) => { ended.await.unwrap_or(Err(ApiError::Internal))?; None }
        },
        over = &mut ended => { over.unwrap_or(Err(ApiError::Internal))?; None }
    };
    Ok(Begun { operation })
}

/// Begins what takes a while and has no operation of its own; nobody waits for it, and the log says how it went.
pub(super) async fn leave<W>(admin: &Administrator, detail: Value, work: W) -> Result<(), ApiError>
where
    W: AsyncFnOnce(&mut Control) -> Result<(), ControlError> + Send + 'static,
{
    let Ok(place) = admin.app.platform.work.operations.clone().try_acquire_owned() else {
        return Err(ApiError::Refused(
            "as many operations are under way here as may be: ask again later".into(),
        ));
    };
    let trail = Trail::of(admin);
    drop(start(&admin.app, admin.actor(), quiet(), place, async move |control| {
        trail.record(control, None, &detail).await?;
        work(control).await
    }));
    Ok(())
}

/// A place for an operation that somebody begins who is no administrator, of which administrators' are none. 503 when all are
/// taken.
pub(super) fn place(app: &App) -> Result<OwnedSemaphorePermit, ApiError> {
    app.platform.work.signups.clone().try_acquire_owned().map_err(|_| ApiError::Unavailable)
}

/// Begins it, in the name of whoever that is. Nobody waits for it.
pub(super) fn alone<W>(app: &Arc<App>, actor: String, place: OwnedSemaphorePermit, work: W)
where
    W: AsyncFnOnce(&mut Control) -> Result<(), ControlError> + Send + 'static,
{
    drop(start(app, actor, quiet(), place, work));
}

/// What of one is not the same in the other.
fn differing(one: &Value, other: &Value) -> Value {
    match one.as_object() {
        Some(fields) => fields
            .iter()
            .filter(|(k, v)| other[k.as_str()] != **v)
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect(),
        None => Value::Null,
    }
}

fn start<T, W>(
    app: &Arc<App>,
    actor: String,
    progress: Progress,
    place: OwnedSemaphorePermit,
    work: W,
) -> oneshot::Receiver<Result<T, ApiError>>
where
    T: Send + 'static,
    W: AsyncFnOnce(&mut Control) -> Result<T, ControlError> + Send + 'static,
{
    let own = &app.platform.work;
    let (settings, config) = (own.settings.clone(), own.config.clone());
    let runtime = tokio::runtime::Handle::current();
    let (tx, rx) = oneshot::channel();
    let stop = app.tasks.token().clone();
    app.tasks.spawn("admin-work", async move {
        let working = tokio::task::spawn_blocking(move || {
            runtime.block_on(async move {
                let worked = async {
                    let control = Control::open(settings, config).await?;
                    work(&mut control.working(&actor).telling(progress)).await
                };
                tokio::select! {
                    worked = worked => worked,
                    // Dropped where it is: an operation is gone on with by another node, or by this one's next run.
                    () = stop.cancelled() => Err(ControlError::Silent("this node stops".into())),
                }
            })
        });
        let worked = match working.await {
            Ok(worked) => worked.map_err(refused),
            Err(e) => {
                tracing::error!(error = %e, "an administrator's work ended");
                Err(ApiError::Internal)
            }
        };
        drop(place);
        // Nobody listens where the administrator has gone, or knows the operation already.
        let _ = tx.send(worked);
    });
    rx
}

/// What an administrator reads of a refusal. Sentences of the control plane are for operators; what a database said is for the
/// log, and the journal.
fn refused(error: ControlError) -> ApiError {
    match error {
        ControlError::Usage(why) => ApiError::invalid(".", &why),
        ControlError::Field { name, why } => ApiError::invalid(name, &why),
        ControlError::Refused(why) | ControlError::Foreign(why) => ApiError::Refused(why),
        ControlError::NoTenant(_) => ApiError::NotFound,
        ControlError::Password(crate::auth::password::HashError::Length) => {
            ApiError::invalid("password", "has 8 to 1024 bytes")
        }
        ControlError::Silent(_) => {
            tracing::warn!(error = %error, "an administrator's work");
            ApiError::Unavailable
        }
        ControlError::Database { ref cause, .. } if cause.as_db_error().is_none() => {
            tracing::warn!(error = %error, "an administrator's work");
            ApiError::Unavailable
        }
        other => {
            tracing::error!(error = %other, "an administrator's work");
            ApiError::Refused("it failed: the log says why".into())
        }
    }
}
