//! What the control plane does by itself, in the api role: destroying what is over its grace, backups that are due, trials of
//! them. One node at a time does it; one that dies leaves its operation to be gone on with.

use std::time::Duration;

use gmah_shared::config::Settings;
use gmah_shared::tenant::{TenantId, TenantSlug};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::config::ControlConfig;
use super::operations::{Kind, Subject, quiet};
use super::provision::hold_on_server;
use super::servers::Server;
use super::{Control, ControlError, During as _, fence, remove, template};
use crate::modules;

/// Between two rounds; a node that holds the work for long is waited for as long.
const PAUSE: Duration = Duration::from_secs(60);
/// Before the first, where databases are kept ready: there may be none yet.
const FIRST: Duration = Duration::from_secs(5);
/// Organisations that one round takes of each kind of work.
const BATCH: i64 = 50;

/// Works until it is told to stop. Whatever is under way then is dropped where it is, and gone on with by another round.
pub async fn run(settings: Settings, config: ControlConfig, stop: CancellationToken) {
    let mut pause = if config.provision.ready.get() > 0 { FIRST } else { PAUSE };
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause.mul_f64(rand::random_range(0.8..1.2))) => {}
        }
        pause = PAUSE;
        let round = async {
            let control = Control::open(settings.clone(), config.clone()).await?;
            control.working("worker").telling(quiet()).round().await
        };
        let ended = tokio::select! {
            () = stop.cancelled() => return,
            ended = round => ended,
        };
        if let Err(e) = ended {
            tracing::warn!(error = %e, "a round of the control plane's own work was not finished");
        }
    }
}

impl Control {
    /// One round, unless another node is at it. What fails of one organisation keeps no other from its turn.
    ///
    /// # Errors
    /// [`ControlError`] when the master is away.
    pub async fn round(mut self) -> Result<(), ControlError> {
        if !self.try_hold(&Subject::Fleet("worker".into())).await? {
            return Ok(());
        }
        for operation in self.operations(None, true, 100).await? {
            // What was begun over HTTP at a node that has ended: nobody sits before a terminal to go on with it.
            let over_http = ["admin:", "signup:"].iter().any(|who| operation.actor.starts_with(who));
            if operation.abandoned && over_http {
                tracing::info!(operation = %operation.id, kind = operation.kind, "goes on with what was left");
                if let Err(e) = self.resume_operation(operation.id).await {
                    tracing::warn!(operation = %operation.id, error = %e, "not gone on with");
                }
            }
        }
        self.forget_signups().await?;
        self.forget_operations().await?;
        for id in self.due_for_purge().await? {
            if let Err(e) = self.purge(id).await {
                tracing::warn!(tenant = %id, error = %e, "not destroyed yet");
            }
        }
        for kept in self.kept_too_long().await? {
            if let Err(e) = self.drop_kept(kept).await {
                tracing::warn!(error = %e, "a database that was kept for an undo is not dropped yet");
            }
        }
        for server in self.servers().await?.iter().filter(|s| s.replica_of.is_none()) {
            let swept = async {
                let admin = self.access(server.id).await?.connect("postgres").await?;
                self.sweep_trials(&admin).await
            };
            if let Err(e) = swept.await {
                tracing::warn!(server = server.name, error = %e, "databases of trials may be left");
            }
            if let Err(e) = self.make_ready(server).await {
                tracing::warn!(server = server.name, error = %e, "databases may not be ready for who is new");
            }
        }
        let Some(backups) = self.config.backups.clone() else { return Ok(()) };
        self.expire_of_destroyed(backups.keep_for.as_secs_f64()).await?;
        if let Some(every) = &backups.every {
            for slug in self.due_for_backup(every.as_secs_f64()).await? {
                match self.backup(&slug).await {
                    Ok(made) => tracing::info!(tenant.slug = %slug, backup = %made.backup_id, "backed up"),
                    Err(e) => tracing::error!(tenant.slug = %slug, error = %e, "not backed up"),
                }
            }
        }
        if let Some(every) = &backups.verify_every {
            for id in self.due_for_trial(every.as_secs_f64()).await? {
                match self.verify_backup(id).await {
                    Ok(_) => tracing::info!(backup = %id, "a backup was tried, and is well"),
                    Err(e) => tracing::error!(backup = %id, error = %e, "a backup is NOT WELL"),
                }
            }
        }
        Ok(())
    }

    async fn make_ready(&self, server: &Server) -> Result<(), ControlError> {
        let access = self.access(server.id).await?;
        let admin = access.connect("postgres").await?;
        let sets = modules::migrations(&self.settings.default_modules);
        let made = template::refill(&access, &admin, &sets, self.config.provision.ready.get()).await?;
        if made > 0 {
            tracing::info!(server = server.name, made, "databases made ready");
        }
        Ok(())
    }

    /// The journal keeps what was made and what was destroyed; of what comes round again it keeps a year.
    async fn forget_operations(&self) -> Result<(), ControlError> {
        self.master
            .execute(
                "delete from operations where id in (
                     select id from operations
                     where state in ('done', 'cancelled') and kind = any($1) and finished_at < now() - interval '1 year'
                     order by finished_at limit 10000)",
                &[&Kind::that_come_round()],
            )
            .await
            .during("clearing the journal")?;
        Ok(())
    }

    /// Databases that restores replaced long enough ago.
    async fn kept_too_long(&self) -> Result<Vec<Uuid>, ControlError> {
        let rows = self
            .master
            .query(
                "select id from organization_placements where kept_until < now() order by kept_until limit $1",
                &[&BATCH],
            )
            .await
            .during("looking for kept databases")?;
        Ok(rows.iter().map(|r| r.get(0)).collect())
    }

    async fn drop_kept(&self, kept: Uuid) -> Result<(), ControlError> {
        let what = "dropping a kept database";
        let row = self
            .master
            .query_opt("select organization_id from organization_placements where id = $1", &[&kept])
            .await
            .during(what)?;
        let Some(row) = row else { return Ok(()) };
        let id = TenantId::from_uuid(row.get(0));
        let subject = Subject::Organization(id);
        // An undo that is under way has it.
        if !self.try_hold(&subject).await? {
            return Ok(());
        }
        let dropped = self.drop_kept_held(kept, id).await;
        self.release(&subject).await;
        dropped
    }

    /// Under the lock, and not while an undo was left unfinished: it may be on its way back to this one.
    async fn drop_kept_held(&self, kept: Uuid, id: TenantId) -> Result<(), ControlError> {
        let what = "dropping a kept database";
        let row = self
            .master
            .query_opt(
                "select k.server_id, k.database_name from organization_placements k
                 join organizations o on o.id = k.organization_id
                 where k.id = $1 and k.kept_until < now()
                     and (o.server_id, o.database_name) <> (k.server_id, k.database_name)
                     and not exists (select from operations p where p.organization_id = o.id and p.state = 'running'
                                       and p.kind <> all($2))",
                &[&kept, &Kind::in_nobodys_way()],
            )
            .await
            .during(what)?;
        let Some(row) = row else { return Ok(()) };
        let (on, database): (Uuid, String) = (row.get(0), row.get(1));
        let access = self.access(on).await?;
        let server = access.connect("postgres").await?;
        hold_on_server(&server, id).await?;
        fence::clear(&access, &server, &database).await?;
        remove::drop_database(&server, &database, id).await?;
        self.master
            .execute("delete from organization_placements where id = $1", &[&kept])
            .await
            .during(what)?;
        // The last that it had on a server which it has left.
        if !self.keeps_on(id, on).await? {
            remove::drop_role(&server, &self.role_of(id).await?.1, id).await?;
        }
        Ok(())
    }

    /// Backups of organisations that are destroyed, once they are as old as backups get: the newest as well.
    async fn expire_of_destroyed(&self, keep_for: f64) -> Result<(), ControlError> {
        let rows = self
            .master
            .query(
                "select b.id, b.organization_id from backups b join organizations o on o.id = b.organization_id
                 where (b.state = 'done' or b.state = 'removed' and b.removed_at is null) and o.purged_at is not null
                     and b.created_at < now() - make_interval(secs => $1)
                 order by b.created_at limit $2",
                &[&keep_for, &BATCH],
            )
            .await
            .during("looking for older backups")?;
        let vault = self.vault()?;
        for row in rows {
            self.remove_backup(TenantId::from_uuid(row.get(1)), row.get(0), &vault).await?;
        }
        Ok(())
    }

    async fn due_for_backup(&self, every: f64) -> Result<Vec<TenantSlug>, ControlError> {
        let rows = self
            .master
            .query(
                "select slug from (
                     select o.slug, (select max(b.created_at) from backups b
                                     where b.organization_id = o.id and b.state in ('done', 'running')) as newest,
                         (select max(b.created_at) from backups b
                          where b.organization_id = o.id and b.state = 'failed') as failed
                     from organizations o where o.status in ('active', 'suspended', 'maintenance')) o
                 where (newest is null or newest < now() - make_interval(secs => $1))
                     and (failed is null or failed < now() - interval '10 minutes')
                 order by newest nulls first limit $2",
                &[&every, &BATCH],
            )
            .await
            .during("looking for backups that are due")?;
        Ok(rows.iter().filter_map(|r| TenantSlug::parse(r.get(0)).ok()).collect())
    }

    async fn due_for_trial(&self, every: f64) -> Result<Vec<Uuid>, ControlError> {
        let rows = self
            .master
            .query(
                "select id from (
                     select distinct on (organization_id) id, verified_at from backups where state = 'done'
                     order by organization_id, created_at desc) b
                 where verified_at is null or verified_at < now() - make_interval(secs => $1)
                 order by verified_at nulls first limit $2",
                &[&every, &BATCH],
            )
            .await
            .during("looking for backups to try")?;
        Ok(rows.iter().map(|r| r.get(0)).collect())
    }
}
