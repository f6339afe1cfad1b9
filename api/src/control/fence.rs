//! Shutting a database that an organisation leaves, so that a late writer does not reach it; and opening it again.
//!
//! ```text
//! tombstone in the identity row ─► connections disallowed ─► sessions ended
//! ```
//!
//! Whoever is connected proves nothing any more once the tombstone is there; whoever is not cannot come in; and nobody stays.

use std::time::Duration;

use gmah_shared::pg::{quote_identifier, quote_literal};
use gmah_shared::tenant::TenantId;
use tokio::time::Instant;
use tokio_postgres::Client;

use super::servers::Access;
use super::{ControlError, During as _};

/// For sessions to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// Shuts a database. May be done again. One that is not there is shut.
pub(crate) async fn shut(access: &Access, server: &Client, database: &str) -> Result<(), ControlError> {
    let what = "shutting the database";
    let row = server
        .query_opt("select datallowconn from pg_database where datname = $1", &[&database])
        .await
        .during(what)?;
    let Some(row) = row else { return Ok(()) };
    if row.get(0) {
        let db = access.connect(database).await?;
        db.execute("update gmah_identity set tombstoned_at = coalesce(tombstoned_at, now())", &[])
            .await
            .during(what)?;
    }
    let quoted = quote_identifier(database);
    server
        .batch_execute(&format!("alter database {quoted} with allow_connections false"))
        .await
        .during(what)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left: i64 = server
            .query_one(
                "select count(pg_terminate_backend(pid)) from pg_stat_activity where datname = $1",
                &[&database],
            )
            .await
            .during(what)?
            .get(0);
        if left == 0 {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(ControlError::Silent(format!("{left} sessions of {database} do not end")));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Takes away what keeps a database from being dropped, whoever forces it (PostgreSQL, `DROP DATABASE`): transactions that
/// were prepared in it, subscriptions, whose publisher may answer no more, and slots of logical replication.
pub(crate) async fn clear(access: &Access, server: &Client, database: &str) -> Result<(), ControlError> {
    let what = "clearing the way for dropping the database";
    let row = server
        .query_one(
            "select exists (select from pg_database where datname = $1) as is_there,
                 (select count(*) from pg_prepared_xacts where database = $1)
                 + (select count(*) from pg_subscription s join pg_database d on d.oid = s.subdbid where datname = $1)
                 as inside",
            &[&database],
        )
        .await
        .during(what)?;
    if !row.get::<_, bool>("is_there") {
        return Ok(());
    }
    if row.get::<_, i64>("inside") > 0 {
        // These can be ended from within only.
        let quoted = quote_identifier(database);
        let allow = |yes| format!("alter database {quoted} with allow_connections {yes}");
        server.batch_execute(&allow(true)).await.during(what)?;
        let cleared = clear_inside(access, database).await;
        server.batch_execute(&allow(false)).await.during(what)?;
        cleared?;
    }
    server
        .execute(
            "select pg_terminate_backend(active_pid) from pg_replication_slots
             where database = $1 and active_pid is not null",
            &[&database],
        )
        .await
        .during(what)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        server
            .execute(
                "select pg_drop_replication_slot(slot_name) from pg_replication_slots where database = $1 and not active",
                &[&database],
            )
            .await
            .during(what)?;
        let left: i64 = server
            .query_one("select count(*) from pg_replication_slots where database = $1", &[&database])
            .await
            .during(what)?
            .get(0);
        if left == 0 {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(ControlError::Silent(format!("{left} replication slots of {database} stay in use")));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn clear_inside(access: &Access, database: &str) -> Result<(), ControlError> {
    let what = "clearing the way for dropping the database";
    let db = access.connect(database).await?;
    let prepared = db
        .query("select gid from pg_prepared_xacts where database = current_database() limit 10000", &[])
        .await
        .during(what)?;
    for row in &prepared {
        let gid: String = row.get(0);
        db.batch_execute(&format!("rollback prepared {}", quote_literal(&gid))).await.during(what)?;
    }
    let subscriptions = db
        .query(
            "select subname from pg_subscription
             where subdbid = (select oid from pg_database where datname = current_database()) limit 10000",
            &[],
        )
        .await
        .during(what)?;
    for row in &subscriptions {
        let name = quote_identifier(row.get(0));
        // Without its slot, so that the publisher need not answer.
        for sql in [
            format!("alter subscription {name} disable"),
            format!("alter subscription {name} set (slot_name = none)"),
            format!("drop subscription {name}"),
        ] {
            db.batch_execute(&sql).await.during(what)?;
        }
    }
    Ok(())
}

/// Opens a database for an organisation, as its placement of that number. May be done again.
pub(crate) async fn open(
    access: &Access,
    server: &Client,
    database: &str,
    id: TenantId,
    placement: i32,
) -> Result<(), ControlError> {
    let what = "opening the database";
    let quoted = quote_identifier(database);
    server
        .batch_execute(&format!("alter database {quoted} with allow_connections true"))
        .await
        .during(what)?;
    let db = access.connect(database).await?;
    let changed = db
        .execute(
            "update gmah_identity set organization_id = $1, placement = $2, tombstoned_at = null",
            &[&id.as_uuid(), &placement],
        )
        .await
        .during(what)?;
    if changed == 1 {
        Ok(())
    } else {
        Err(ControlError::Foreign(format!("database {database} has no identity row")))
    }
}

/// Nobody logs in with the role any more, and who has is out. Whoever is in the middle of something may finish it for as long as
/// `grace`.
pub(crate) async fn shut_out(
    server: &Client,
    role: &str,
    database: &str,
    grace: Duration,
) -> Result<(), ControlError> {
    let what = "ending the organisation's sessions";
    let exists =
        server.query_opt("select 1 from pg_roles where rolname = $1", &[&role]).await.during(what)?;
    if exists.is_some() {
        server
            .batch_execute(&format!("alter role {} with nologin", quote_identifier(role)))
            .await
            .during(what)?;
    }
    let began = Instant::now();
    loop {
        let is_over = began.elapsed() >= grace;
        let left: i64 = server
            .query_one(
                "select count(*) + 0 * count(*) filter (where ($3 or state = 'idle') and pg_terminate_backend(pid))
                 from pg_stat_activity where datname = $1 and usename = $2",
                &[&database, &role, &is_over],
            )
            .await
            .during(what)?
            .get(0);
        if left == 0 {
            return Ok(());
        }
        if began.elapsed() > grace + PATIENCE {
            return Err(ControlError::Silent(format!("{left} sessions of {database} do not end")));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
