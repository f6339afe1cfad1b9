//! What every organisation's database needs now and then: letters that were left, and entries that are too old.
//!
//! The master says whose turn it is; several nodes share the work, and one that dies leaves its organisations due again.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::Pool;
use futures::StreamExt as _;
use futures::stream;
use gmah_shared::tenant::TenantId;

use crate::context::TenantContext;
use crate::db::TenantDb;
use crate::error::ApiError;
use crate::repo::{audit, files, idempotency, links, outbox};
use crate::server::App;
use crate::settings::{self, CoreSettings};

/// Organisations that one node takes at once.
const BATCH: i64 = 20;
/// Of those, at the same time.
const AT_ONCE: usize = 2;
const PAUSE: Duration = Duration::from_secs(15);
/// For one organisation.
const PATIENCE: Duration = Duration::from_secs(30);

/// For the bytes of one file.
const REMOVAL: Duration = Duration::from_secs(5);

/// Does chores for as long as the program runs.
pub async fn run(app: Arc<App>, master: Pool) -> Infallible {
    loop {
        let pause = match tokio::time::timeout(PATIENCE, take(&master)).await {
            Ok(Ok((taken, due))) => {
                let is_full = taken as i64 == BATCH;
                stream::iter(due).for_each_concurrent(AT_ONCE, |tenant| one(&app, tenant)).await;
                if is_full { Duration::from_millis(100) } else { PAUSE }
            }
            Ok(Err(e)) => {
                tracing::warn!(error = %e, "chores not taken");
                PAUSE
            }
            Err(_) => PAUSE,
        };
        tokio::time::sleep(pause.mul_f64(rand::random_range(0.8..1.2))).await;
    }
}

/// How many had their turn, and those of them that are served; the next is ten minutes on.
async fn take(master: &Pool) -> Result<(usize, Vec<TenantId>), String> {
    let client = master.get().await.map_err(|e| e.to_string())?;
    let rows = client.query(TAKE, &[&BATCH]).await.map_err(|e| e.to_string())?;
    let served = rows.iter().filter(|r| r.get("is_served"));
    Ok((rows.len(), served.map(|r| TenantId::from_uuid(r.get("id"))).collect()))
}

async fn one(app: &Arc<App>, tenant: TenantId) {
    match tokio::time::timeout(PATIENCE, chores(app, tenant)).await {
        Ok(Ok(())) => {}
        Ok(Err(e)) => tracing::debug!(%tenant, code = e.parts().1, "chores left"),
        Err(_) => tracing::warn!(%tenant, "chores took too long"),
    }
}

async fn chores(app: &Arc<App>, tenant: TenantId) -> Result<(), ApiError> {
    let ctx = TenantContext::of_task(app, tenant).await?;
    let mut db = TenantDb::open(&ctx).await?;
    let settled: CoreSettings = settings::of(&mut db).await?;
    audit::expire(&mut db, settled.audit_keep_days).await?;
    links::delete_expired(&mut db).await?;
    idempotency::delete_old(&mut db).await?;
    outbox::delete_expired(&mut db).await?;
    if outbox::next_attempt(&mut db).await?.is_some() {
        app.mailer.hint(tenant);
    }
    // Last: a store that is away keeps nothing else from being done.
    for id in files::left_over(&mut db).await? {
        let Some(store) = &app.files else { break };
        // What is still coming in after so long never will have.
        if !files::give_up(&mut db, id).await? {
            continue;
        }
        match tokio::time::timeout(REMOVAL, store.remove(tenant, id)).await {
            Ok(Ok(())) => files::forget(&mut db, id).await?,
            // The next time.
            Ok(Err(_)) | Err(_) => break,
        }
    }
    Ok(())
}

/// Index: organization_chores_due.
const TAKE: &str = "with taken as (
        update organization_chores set due_at = now() + interval '10 minutes' * (0.8 + 0.4 * random())
        where organization_id in (select organization_id from organization_chores
                                  where due_at <= now() order by due_at limit $1 for update skip locked)
        returning organization_id)
    select o.id, o.status = 'active' as is_served from organizations o join taken t on t.organization_id = o.id";
