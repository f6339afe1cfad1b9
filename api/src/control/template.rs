//! Template databases: one per server and set of migrations, named after exactly those files, so that a new
//! organisation's database is a copy and not a run of every migration.

use std::time::Duration;

use gmah_shared::migrate::{self, MigrationSet, Options};
use gmah_shared::pg::quote_identifier;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::servers::Access;
use super::{ControlError, During as _};

/// `gmah_tpl` in ASCII: one builder of templates per server.
const LOCK: i64 = 0x676d_6168_5f74_706c;

/// The template for those sets, built if need be. `server` is a connection to the server's `postgres` database.
pub(super) async fn ensure(
    access: &Access,
    server: &Client,
    sets: &[&MigrationSet],
) -> Result<String, ControlError> {
    let name = format!("gmah_template_{}", migrate::fingerprint(sets));
    if exists(server, &name).await? {
        return Ok(name);
    }
    server.execute("select pg_advisory_lock($1)", &[&LOCK]).await.during("waiting for the template")?;
    let built = build(access, server, &name, sets).await;
    server.execute("select pg_advisory_unlock($1)", &[&LOCK]).await.during("leaving the template")?;
    built.map(|()| name)
}

async fn build(
    access: &Access,
    server: &Client,
    name: &str,
    sets: &[&MigrationSet],
) -> Result<(), ControlError> {
    if exists(server, name).await? {
        return Ok(());
    }
    // Built under another name: a template that has its name is whole.
    let half = format!("{name}_half");
    let (quoted, quoted_half) = (quote_identifier(name), quote_identifier(&half));
    server
        .batch_execute(&format!("drop database if exists {quoted_half} with (force)"))
        .await
        .during("clearing away half a template")?;
    server
        .batch_execute(&format!("create database {quoted_half} template template0 encoding 'UTF8'"))
        .await
        .during("creating the template")?;
    server
        .batch_execute(&format!("revoke all on database {quoted_half} from public"))
        .await
        .during("closing the template")?;
    {
        let mut client = access.connect(&half).await?;
        migrate::run(&mut client, sets, Options::default()).await.during("template")?;
    }
    let close = format!(
        "alter database {quoted_half} with allow_connections false is_template true;
         alter database {quoted_half} rename to {quoted}"
    );
    retry_in_use(server, &close).await.during("closing the template")
}

/// Creates a database for an organisation out of the template; nobody can enter until its rights are set.
pub(super) async fn copy(
    server: &Client,
    template: &str,
    database: &str,
    owner: &str,
) -> Result<(), ControlError> {
    let (db, owner) = (quote_identifier(database), quote_identifier(owner));
    let create = format!(
        "create database {db} owner {owner} template {} allow_connections false",
        quote_identifier(template)
    );
    retry_in_use(server, &create).await.during("creating the database")
}

/// Lets the owner in, and nobody else. May be run again.
pub(super) async fn open(server: &Client, database: &str) -> Result<(), ControlError> {
    let db = quote_identifier(database);
    server
        .batch_execute(&format!(
            "begin; revoke all on database {db} from public;
             alter database {db} with allow_connections true; commit"
        ))
        .await
        .during("opening the database")
}

async fn exists(server: &Client, name: &str) -> Result<bool, ControlError> {
    let row = server
        .query_opt("select 1 from pg_database where datname = $1", &[&name])
        .await
        .during("looking for the template")?;
    Ok(row.is_some())
}

/// A database that somebody just left may still count as in use (55006); it passes.
pub(super) async fn retry_in_use(server: &Client, sql: &str) -> Result<(), tokio_postgres::Error> {
    let mut pause = Duration::from_millis(20);
    for _ in 0..12 {
        match server.batch_execute(sql).await {
            Err(e) if e.code() == Some(&SqlState::OBJECT_IN_USE) => {
                let jitter = Duration::from_millis(rand::random_range(0..20));
                tokio::time::sleep(pause + jitter).await;
                pause = (pause * 2).min(Duration::from_secs(1));
            }
            other => return other,
        }
    }
    server.batch_execute(sql).await
}
