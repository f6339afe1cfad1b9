//! One statement in many organisations' databases.
//!
//! Reading is done by a role that is made for the command, can log in to these databases and SELECT, and is gone with it: what
//! a statement may not do is not left to how it reads. It is sent by the extended protocol, which takes one (PostgreSQL,
//! chapter 55.2.3).

use std::collections::HashMap;
use std::time::Duration;

use gmah_shared::pg::{quote_identifier, quote_literal, verifier_of_random};
use gmah_shared::secret::random_password;
use gmah_shared::tenant::TenantSlug;
use secrecy::SecretString;
use serde::Serialize;
use serde_json::Value;
use tokio_postgres::Client;
use uuid::Uuid;

use super::fleet::{self, Fleet};
use super::servers::{Access, Environment};
use super::tenants::Summary;
use super::{Control, ControlError, During as _};

/// May enter organisations' databases and read every table; roles that read belong to it. It cannot log in.
pub(crate) const READERS: &str = "gmah_readers";

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Statement {
    /// One statement.
    pub sql: String,
    /// Whether it may change something.
    pub write: bool,
    /// Deadline in each database.
    pub timeout: Duration,
    /// Most rows of each organisation.
    pub max_rows: usize,
}

/// What came of one organisation.
#[derive(Debug, Clone, Serialize)]
pub struct Answered {
    /// Rows, as JSON objects.
    pub rows: Vec<Value>,
    /// Rows that were changed, or how many there are; of a question with more rows than were wanted, those that are here.
    pub count: u64,
    /// Whether there are rows that are not here.
    pub more: bool,
}

/// A role that lives as long as the command.
struct Reader {
    name: String,
    password: SecretString,
}

impl Control {
    /// Runs a statement in each of those databases. `done` hears of each as it ends.
    ///
    /// # Errors
    /// [`ControlError`] when a server cannot be entered. What fails of an organisation is in its outcome.
    pub async fn exec(
        &self,
        tenants: Vec<Summary>,
        statement: &Statement,
        fleet: Fleet,
        done: impl FnMut(&fleet::Outcome<Answered>),
    ) -> Result<Vec<fleet::Outcome<Answered>>, ControlError> {
        let doors = self.doors(&tenants).await?;
        if statement.write {
            self.note_exec(&tenants, statement).await?;
            let work = |tenant: Summary| {
                let doors = &doors;
                async move { write_one(door(doors, &tenant)?, &tenant, statement).await }
            };
            return Ok(fleet::over(tenants, fleet, work, done).await);
        }
        let reader =
            Reader { name: format!("gmah_reader_{}", Uuid::new_v4().simple()), password: random_password() };
        let mut made = Vec::new();
        let ready = async {
            for access in doors.values() {
                let server = access.connect("postgres").await?;
                make_reader(&server, &reader).await?;
                made.push(server);
            }
            Ok::<_, ControlError>(())
        };
        let ready = ready.await;
        let outcomes = match ready {
            Ok(()) => {
                let work = |tenant: Summary| {
                    let (doors, reader) = (&doors, &reader);
                    async move { read_one(door(doors, &tenant)?, reader, &tenant, statement).await }
                };
                Ok(fleet::over(tenants, fleet, work, done).await)
            }
            Err(e) => Err(e),
        };
        for server in &made {
            let drop = format!("drop role if exists {}", quote_identifier(&reader.name));
            if let Err(e) = server.batch_execute(&drop).await {
                tracing::warn!(role = reader.name, error = %e, "a role that reads was not dropped; it expires by itself");
            }
        }
        outcomes
    }

    /// How `psql` is told where an organisation's database is.
    ///
    /// # Errors
    /// [`ControlError::NoTenant`].
    pub async fn psql(&self, slug: &TenantSlug) -> Result<Environment, ControlError> {
        let tenant = self.tenant(slug).await?;
        self.access(tenant.server_id).await?.environment(&tenant.database)
    }

    async fn note_exec(&self, tenants: &[Summary], statement: &Statement) -> Result<(), ControlError> {
        let ids: Vec<Uuid> = tenants.iter().map(|t| t.id.as_uuid()).collect();
        self.master
            .execute(
                "insert into audit_log (actor, action, organization_id, detail)
                 select $1, 'tenant.exec', id, jsonb_build_object('sql', $3::text) from unnest($2::uuid[]) as t (id)",
                &[&self.actor, &ids, &statement.sql],
            )
            .await
            .during("writing the audit")?;
        Ok(())
    }
}

fn door<'a>(doors: &'a HashMap<Uuid, Access>, tenant: &Summary) -> Result<&'a Access, ControlError> {
    doors
        .get(&tenant.server_id)
        .ok_or_else(|| ControlError::Foreign(format!("{}: no such server", tenant.slug)))
}

async fn make_reader(server: &Client, reader: &Reader) -> Result<(), ControlError> {
    let (name, verifier) =
        (quote_identifier(&reader.name), quote_literal(&verifier_of_random(&reader.password)));
    server
        .batch_execute(&format!(
            "do $$ begin create role {READERS} nologin;
                 exception when duplicate_object or unique_violation then null; end $$;
             begin; create role {name} login nosuperuser nocreatedb nocreaterole noreplication nobypassrls
                 in role {READERS} password {verifier};
             do $$ begin execute format('alter role %I valid until %L', {}, now() + interval '1 day'); end $$;
             alter role {name} set default_transaction_read_only = on; commit",
            quote_literal(&reader.name)
        ))
        .await
        .during("making a role that reads")
}

async fn read_one(
    access: &Access,
    reader: &Reader,
    tenant: &Summary,
    statement: &Statement,
) -> Result<Answered, ControlError> {
    let admin = access.connect(&tenant.database).await?;
    admin.batch_execute(OPEN).await.during(&tenant.slug)?;
    drop(admin);
    let db = access.connect_as(&tenant.database, &reader.name, &reader.password).await?;
    bound(&db, tenant, statement, "begin read only").await?;
    let answered = rows(&db, &statement.sql, statement.max_rows, false).await.during(&tenant.slug);
    // Nothing to keep, whatever it was.
    let _ = db.batch_execute("rollback").await;
    answered
}

/// Databases of organisations are closed to everybody who is not named. Tables only: `pg_read_all_data` reads the catalog of
/// passwords as well.
const OPEN: &str = "do $$ declare s record; begin
        if not has_database_privilege('gmah_readers', current_database(), 'connect') then
            execute format('grant connect on database %I to gmah_readers', current_database());
        end if;
        for s in select n.nspname from pg_namespace n
            where n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
                and (not has_schema_privilege('gmah_readers', n.oid, 'usage')
                     or exists (select from pg_class c where c.relnamespace = n.oid and c.relkind in ('r', 'p', 'v', 'm')
                                and not has_table_privilege('gmah_readers', c.oid, 'select')))
        loop
            execute format('grant usage on schema %I to gmah_readers', s.nspname);
            execute format('grant select on all tables in schema %I to gmah_readers', s.nspname);
        end loop;
    end $$";

async fn write_one(
    access: &Access,
    tenant: &Summary,
    statement: &Statement,
) -> Result<Answered, ControlError> {
    let db = access.connect(&tenant.database).await?;
    bound(&db, tenant, statement, "begin").await?;
    // What answers rows does so; what does not is counted.
    let prepared = db.prepare(&statement.sql).await.during(&tenant.slug)?;
    let answered = if prepared.columns().is_empty() {
        let count = db.execute(&prepared, &[]).await.during(&tenant.slug)?;
        Answered { rows: Vec::new(), count, more: false }
    } else {
        rows(&db, &statement.sql, statement.max_rows, true).await.during(&tenant.slug)?
    };
    db.batch_execute("commit").await.during(&tenant.slug)?;
    Ok(answered)
}

async fn bound(
    db: &Client,
    tenant: &Summary,
    statement: &Statement,
    begin: &str,
) -> Result<(), ControlError> {
    let timeout = statement.timeout.as_millis().max(1);
    db.batch_execute(&format!("set statement_timeout = {timeout}; set lock_timeout = '15s'; {begin}"))
        .await
        .during(&tenant.slug)
}

/// Each row as a JSON object, whatever its columns are: PostgreSQL makes it.
async fn rows(db: &Client, sql: &str, most: usize, all: bool) -> Result<Answered, tokio_postgres::Error> {
    let sql = sql.trim().trim_end_matches(';');
    // On a line of its own, so that a comment at its end does not reach further. What changes rows stands in a WITH.
    let keyword =
        sql.split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or_default().to_ascii_lowercase();
    let wrapped = match keyword.as_str() {
        "insert" | "update" | "delete" | "merge" => {
            format!("with q as (\n{sql}\n) select to_jsonb(q) from q")
        }
        "show" | "explain" => return plain(db, sql, most).await,
        // Whatever it does it does for all its rows.
        _ if all => format!("select to_jsonb(q) from (\n{sql}\n) q"),
        _ => format!("select to_jsonb(q) from (\n{sql}\n) q limit {}", most.saturating_add(1)),
    };
    let found = db.query(wrapped.as_str(), &[]).await?;
    let rows: Vec<Value> = found.iter().take(most).map(|r| r.get(0)).collect();
    let more = found.len() > most;
    // Of a question it was asked for one more than was wanted; a change is counted whole.
    let is_change = all || matches!(keyword.as_str(), "insert" | "update" | "delete" | "merge");
    let count = if more && !is_change { rows.len() } else { found.len() };
    Ok(Answered { count: count as u64, rows, more })
}

/// What cannot stand in another statement answers texts.
async fn plain(db: &Client, sql: &str, most: usize) -> Result<Answered, tokio_postgres::Error> {
    let found = db.query(sql, &[]).await?;
    let rows = found.iter().take(most).map(|row| {
        let columns = row.columns().iter().enumerate();
        let fields =
            columns.map(|(n, c)| (c.name().to_owned(), Value::from(row.try_get::<_, String>(n).ok())));
        Value::Object(fields.collect())
    });
    Ok(Answered { count: found.len() as u64, rows: rows.collect(), more: found.len() > most })
}
