//! The master database itself.

use gmah_shared::config::Postgres;
use gmah_shared::migrate::{self, MASTER, Options};
use gmah_shared::pg;
use tokio_postgres::Client;

use super::{ControlError, During as _};

/// Brings the master's schema up to this binary; costs one query when there is nothing to do.
///
/// # Errors
/// [`ControlError`] when a migration fails or the schema is ahead.
pub async fn migrate(master: &mut Client) -> Result<(), ControlError> {
    let open: Option<String> = master
        .query_one(
            "select case when has_database_privilege('public', current_database(), 'connect')
                    then quote_ident(current_database()) end",
            &[],
        )
        .await
        .during("master database")?
        .get(0);
    if let Some(name) = open {
        master
            .batch_execute(&format!("revoke all on database {name} from public"))
            .await
            .during("closing the master")?;
    }
    let pending = migrate::pending(master, &[&MASTER]).await.during("master database")?;
    if !pending.is_empty() {
        migrate::run(master, &[&MASTER], Options::default()).await.during("master database")?;
    }
    Ok(())
}

/// Creates the master database if there is none, through `maintenance` (another database of the same server).
///
/// # Errors
/// [`ControlError`] when the server refuses.
pub async fn create_if_absent(settings: &Postgres, maintenance: &str) -> Result<(), ControlError> {
    let there = Postgres { database: maintenance.to_owned(), ..settings.clone() };
    let client = pg::connect(&there, "gmah control").await.during("PostgreSQL server")?;
    let exists = client
        .query_opt("select 1 from pg_database where datname = $1", &[&settings.database])
        .await
        .during("looking for the master database")?
        .is_some();
    if !exists {
        let name = pg::quote_identifier(&settings.database);
        client
            .batch_execute(&format!("create database {name} template template0 encoding 'UTF8'"))
            .await
            .during("creating the master database")?;
    }
    Ok(())
}
