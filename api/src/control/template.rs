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
    sets: &[&MigrationSet<'_>],
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
    sets: &[&MigrationSet<'_>],
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

/// How databases begin that are ready for somebody who is not there yet, and have that schema.
fn ready(sets: &[&MigrationSet<'_>]) -> String {
    format!("{READY}{}_", migrate::fingerprint(sets))
}

/// How all of them begin.
pub(super) const READY: &str = "gmah_ready_";

/// Those of them that nobody has.
const NOBODYS: &str = "select d.datname::text from pg_database d join pg_roles r on r.oid = d.datdba
    where starts_with(d.datname, $1) and r.rolname = current_user order by d.oid limit 2000";

/// Gives an organisation a database that is ready, if there is one: a moment's work in place of a copy.
pub(super) async fn take_ready(
    server: &Client,
    sets: &[&MigrationSet<'_>],
    database: &str,
    owner: &str,
) -> Result<bool, ControlError> {
    let what = "taking a database that is ready";
    let rows = server.query(NOBODYS, &[&ready(sets)]).await.during(what)?;
    for row in &rows {
        let name: String = row.get(0);
        // One transaction: it is nobody's, or the organisation's under its own name.
        let take = format!(
            "begin; alter database {0} owner to {1}; alter database {0} rename to {2}; commit",
            quote_identifier(&name),
            quote_identifier(owner),
            quote_identifier(database)
        );
        match server.batch_execute(&take).await {
            Ok(()) => return Ok(true),
            Err(e) => {
                server.batch_execute("rollback").await.during(what)?;
                // Somebody else was faster, or is at it; or it is just being made.
                let code = e.code();
                let is_race = [
                    SqlState::UNDEFINED_DATABASE,
                    SqlState::INVALID_CATALOG_NAME,
                    SqlState::OBJECT_IN_USE,
                    SqlState::INTERNAL_ERROR,
                ];
                if !code.is_some_and(|code| is_race.contains(code)) {
                    return Err(e).during(what);
                }
            }
        }
    }
    Ok(false)
}

/// Makes databases ready until there are so many of that schema, and drops those of another one. Answers how many it made.
pub(super) async fn refill(
    access: &Access,
    server: &Client,
    sets: &[&MigrationSet<'_>],
    wanted: usize,
) -> Result<usize, ControlError> {
    let what = "looking for databases that are ready";
    let prefix = ready(sets);
    let mut there = 0;
    for row in server.query(NOBODYS, &[&READY]).await.during(what)? {
        let name: String = row.get(0);
        if name.starts_with(&prefix) && there < wanted {
            there += 1;
        } else {
            let drop = format!("drop database if exists {}", quote_identifier(&name));
            retry_in_use(server, &drop).await.during("dropping a database that nobody will need")?;
        }
    }
    if there == wanted {
        return Ok(0);
    }
    let template = ensure(access, server, sets).await?;
    let me: String = server.query_one("select current_user::text", &[]).await.during(what)?.get(0);
    for _ in there..wanted {
        copy(server, &template, &format!("{prefix}{:016x}", rand::random::<u64>()), &me).await?;
    }
    Ok(wanted - there)
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

/// Looks at a database of that schema which is made for it, and dropped. What a killed run leaves the doctor finds by its
/// name.
pub(super) async fn in_scratch<T>(
    access: &Access,
    server: &Client,
    sets: &[&MigrationSet<'_>],
    look: impl AsyncFnOnce(Client) -> Result<T, ControlError>,
) -> Result<T, ControlError> {
    let template = ensure(access, server, sets).await?;
    let name = format!("gmah_doctor_{}", uuid::Uuid::new_v4().simple());
    let (quoted, of) = (quote_identifier(&name), quote_identifier(&template));
    retry_in_use(server, &format!("create database {quoted} template {of}"))
        .await
        .during("making a database for the comparison")?;
    let seen = async { look(access.connect(&name).await?).await }.await;
    let dropped = server.batch_execute(&format!("drop database if exists {quoted} with (force)")).await;
    let seen = seen?;
    dropped.during("dropping the database of the comparison")?;
    Ok(seen)
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
