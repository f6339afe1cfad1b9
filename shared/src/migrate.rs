//! Plain SQL migrations: numbered, checksummed, run once, in order.
//!
//! Each set belongs to the code that needs it and is handed in. One advisory lock per database keeps two runners
//! apart; `lock_timeout` keeps a runner from stopping the tenant's traffic. A file runs in a transaction of its own
//! unless its first line is `-- gmah: no-transaction` (for `CREATE INDEX CONCURRENTLY`). Applied files are immutable:
//! a changed one is refused, as is a database that is ahead of this binary.

mod statements;

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt as _;
use tokio::time::Instant;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, SimpleQueryMessage};

/// One file.
#[derive(Debug, Clone, Copy)]
pub struct Migration<'a> {
    /// Number, from 1, without gaps.
    pub version: i32,
    /// What it does, for the report.
    pub name: &'a str,
    /// The statements.
    pub sql: &'a str,
}

/// The files of one owner.
#[derive(Debug, Clone, Copy)]
pub struct MigrationSet<'a> {
    /// Name of the owner: `master`, a module, or [`OWN`].
    pub name: &'a str,
    /// In order of their numbers.
    pub files: &'a [Migration<'a>],
}

/// Name of the set that one organisation has to itself.
pub const OWN: &str = "own";

/// How a run behaves.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Runs everything in one transaction and rolls it back.
    pub dry_run: bool,
    /// Longest wait for a lock on a table.
    pub lock_timeout: Duration,
    /// Longest wait for another runner.
    pub runner_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { dry_run: false, lock_timeout: Duration::from_secs(5), runner_timeout: Duration::from_secs(60) }
    }
}

/// A file that ran, or in a dry run would have.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Applied {
    /// Set.
    pub set: String,
    /// Number.
    pub version: i32,
    /// Name.
    pub name: String,
}

/// Why a run stopped. What had been applied before stays applied.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// A file failed and was rolled back.
    #[error("{set}/{version:04}_{name}{at}: {}", describe(source))]
    Failed {
        /// Set.
        set: String,
        /// Number.
        version: i32,
        /// Name.
        name: String,
        /// The statement and its line, where that is known.
        at: String,
        /// What PostgreSQL said.
        source: tokio_postgres::Error,
    },
    /// An applied file is not the one that was applied.
    #[error("{set}/{version:04} was changed after it had been applied")]
    Changed {
        /// Set.
        set: String,
        /// Number.
        version: i32,
    },
    /// The database has migrations that this binary does not know.
    #[error("{set} is at version {found}, this program knows {known}")]
    Ahead {
        /// Set.
        set: String,
        /// Highest version in the database.
        found: i32,
        /// Highest version here.
        known: i32,
    },
    /// Another runner holds the lock.
    #[error("another migration of this database is running")]
    Busy,
    /// Around the files.
    #[error("{}", describe(.0))]
    Database(#[from] tokio_postgres::Error),
}

fn describe(e: &tokio_postgres::Error) -> String {
    e.as_db_error().map_or_else(|| e.to_string(), |d| format!("{} ({})", d.message(), d.code().code()))
}

/// Key of the advisory lock: `gmah` in ASCII.
const LOCK: i64 = 0x676d_6168;

impl MigrationSet<'_> {
    /// Highest version of the set.
    pub fn latest(&self) -> i32 {
        self.files.last().map_or(0, |f| f.version)
    }
}

/// A short name for exactly these files: the name of a template database that was made of them.
pub fn fingerprint(sets: &[&MigrationSet<'_>]) -> String {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    for set in sets {
        context.update(set.name.as_bytes());
        for file in set.files {
            context.update(&file.version.to_be_bytes());
            context.update(file.sql.as_bytes());
        }
    }
    context.finish().as_ref()[..6].iter().map(|b| format!("{b:02x}")).collect()
}

/// Brings a database up to the sets, in their order.
///
/// # Errors
/// [`MigrateError`]; files before the failing one stay applied, except in a dry run.
pub async fn run(
    client: &mut Client,
    sets: &[&MigrationSet<'_>],
    options: Options,
) -> Result<Vec<Applied>, MigrateError> {
    let done = lock(client, &options).await?;
    let result = run_locked(client, sets, options, done).await;
    unlock(client).await;
    result
}

/// The lock dies with the session anyway; a failed unlock must not hide the result.
async fn unlock(client: &Client) {
    let unlocked =
        client.batch_execute(&format!("select pg_advisory_unlock({LOCK}); reset lock_timeout")).await;
    if let Err(e) = unlocked {
        tracing::debug!(error = %e, "advisory lock not released by hand");
    }
}

/// What is pending, without running or locking anything.
///
/// # Errors
/// As [`run`], for changed files and databases that are ahead.
pub async fn pending(client: &Client, sets: &[&MigrationSet<'_>]) -> Result<Vec<Applied>, MigrateError> {
    let done = applied(client).await?.unwrap_or_default();
    let mut out = Vec::new();
    for set in sets {
        out.extend(missing(set, &done)?.into_iter().map(|f| entry(set, f)));
    }
    Ok(out)
}

async fn run_locked(
    client: &mut Client,
    sets: &[&MigrationSet<'_>],
    options: Options,
    done: Option<Done>,
) -> Result<Vec<Applied>, MigrateError> {
    let is_new = done.is_none();
    let done = done.unwrap_or_default();
    let mut left = Vec::new();
    for set in sets {
        left.extend(missing(set, &done)?.into_iter().map(|file| (*set, file)));
    }
    // Most have nothing to do.
    if left.is_empty() && !is_new {
        return Ok(Vec::new());
    }
    let table = if is_new { TABLE } else { "" };
    let begin = if options.dry_run { "begin" } else { "" };
    client.batch_execute(&format!("set client_min_messages = warning; {table}; {begin}")).await?;
    let mut out = Vec::new();
    for (set, file) in left {
        let outcome = apply(client, set, file, options.dry_run).await;
        if outcome.is_err() && options.dry_run {
            client.batch_execute("rollback").await?;
        }
        outcome?;
        out.push(entry(set, file));
    }
    if options.dry_run {
        client.batch_execute("rollback").await?;
    }
    client.batch_execute("reset client_min_messages").await?;
    Ok(out)
}

async fn apply(
    client: &Client,
    set: &MigrationSet<'_>,
    file: &Migration<'_>,
    dry_run: bool,
) -> Result<(), MigrateError> {
    let failed_at = |at, source| MigrateError::Failed {
        set: set.name.to_owned(),
        version: file.version,
        name: file.name.to_owned(),
        at,
        source,
    };
    let failed = |source| failed_at(String::new(), source);
    let checksum = checksum(file.sql);
    let record = || {
        let params: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 4] = [
            (&set.name, Type::TEXT),
            (&file.version, Type::INT4),
            (&file.name, Type::TEXT),
            (&checksum, Type::BYTEA),
        ];
        async move { client.execute_typed(RECORD, &params).await }
    };
    let alone = file.sql.starts_with("-- gmah: no-transaction");
    if dry_run {
        if !alone {
            execute(client, file.sql).await.map_err(|(at, source)| failed_at(at, source))?;
        }
    } else if alone {
        execute(client, file.sql).await.map_err(|(at, source)| failed_at(at, source))?;
        record().await.map_err(failed)?;
    } else {
        client.batch_execute("begin").await.map_err(failed)?;
        // What is recorded waits for the file: one that ends the transaction itself and fails after that would be noted as done.
        if let Err((at, source)) = execute(client, file.sql).await {
            // What matters is why the file failed; the transaction ends with the session at the latest.
            let _ = client.batch_execute("rollback").await;
            return Err(failed_at(at, source));
        }
        // In this order, with one wait. When the first fails, the second takes everything back (PostgreSQL, reference page of COMMIT).
        let (recorded, committed) = futures::join!(record(), client.batch_execute("commit"));
        recorded.map_err(failed)?;
        committed.map_err(failed)?;
    }
    Ok(())
}

/// Runs a file's statements; of one that fails, where it stands: the server says how many were done before it.
async fn execute(client: &Client, sql: &str) -> Result<(), (String, tokio_postgres::Error)> {
    let mut done = 0;
    let answers = client.simple_query_raw(sql).await.map_err(|e| (String::new(), e))?;
    let mut answers = std::pin::pin!(answers);
    while let Some(answer) = answers.next().await {
        match answer {
            Ok(SimpleQueryMessage::CommandComplete(_)) => done += 1,
            Ok(_) => {}
            Err(e) => {
                let at = statements::of(sql).get(done).map(|(line, text)| {
                    let first = text.lines().next().unwrap_or_default();
                    format!(", line {line} ({})", first.chars().take(80).collect::<String>())
                });
                return Err((at.unwrap_or_default(), e));
            }
        }
    }
    Ok(())
}

/// Takes the lock, and reads what was applied before; nothing is known of a database without the table.
async fn lock(client: &Client, options: &Options) -> Result<Option<Done>, MigrateError> {
    let deadline = Instant::now() + options.runner_timeout;
    // Somebody may have the table of what was applied.
    let bound = format!("set lock_timeout = {}", options.lock_timeout.as_millis());
    loop {
        let taken = client.query_typed_one("select pg_try_advisory_lock($1)", &[(&LOCK, Type::INT8)]);
        // One wait: the driver sends what is polled first first.
        let (bounded, taken, done) = futures::join!(client.batch_execute(&bound), taken, applied(client));
        bounded?;
        if taken?.get(0) {
            if done.is_err() {
                unlock(client).await;
            }
            return done;
        }
        if Instant::now() >= deadline {
            return Err(MigrateError::Busy);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

type Done = BTreeMap<(String, i32), Vec<u8>>;

async fn applied(client: &Client) -> Result<Option<Done>, MigrateError> {
    // A few dozen rows at most: one for each file ever applied here.
    let found =
        client.query_typed("select set_name, version, checksum from public.schema_migrations", &[]).await;
    let rows = match found {
        Ok(rows) => rows,
        Err(e) if e.code() == Some(&SqlState::UNDEFINED_TABLE) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    Ok(Some(rows.iter().map(|r| ((r.get(0), r.get(1)), r.get(2))).collect()))
}

fn missing<'a>(set: &MigrationSet<'a>, done: &Done) -> Result<Vec<&'a Migration<'a>>, MigrateError> {
    let highest = done.range((set.name.to_owned(), i32::MIN)..=(set.name.to_owned(), i32::MAX)).next_back();
    if let Some(((_, found), _)) = highest
        && *found > set.latest()
    {
        return Err(MigrateError::Ahead { set: set.name.to_owned(), found: *found, known: set.latest() });
    }
    let mut out = Vec::new();
    for file in set.files {
        match done.get(&(set.name.to_owned(), file.version)) {
            None => out.push(file),
            Some(sum) if *sum == checksum(file.sql) => {}
            Some(_) => return Err(MigrateError::Changed { set: set.name.to_owned(), version: file.version }),
        }
    }
    Ok(out)
}

fn entry(set: &MigrationSet<'_>, file: &Migration) -> Applied {
    Applied { set: set.name.into(), version: file.version, name: file.name.into() }
}

fn checksum(sql: &str) -> Vec<u8> {
    ring::digest::digest(&ring::digest::SHA256, sql.as_bytes()).as_ref().to_vec()
}

const TABLE: &str = "create table if not exists public.schema_migrations (
    set_name text not null,
    version int not null,
    name text not null,
    checksum bytea not null,
    applied_at timestamptz not null default now(),
    primary key (set_name, version))";

const RECORD: &str =
    "insert into public.schema_migrations (set_name, version, name, checksum) values ($1, $2, $3, $4)";

/// The master database's own set.
pub const MASTER: MigrationSet<'static> = MigrationSet {
    name: "master",
    files: &[
        Migration {
            version: 1,
            name: "organizations",
            sql: include_str!("../migrations/master/0001_organizations.sql"),
        },
        Migration {
            version: 2,
            name: "platform",
            sql: include_str!("../migrations/master/0002_platform.sql"),
        },
        Migration { version: 3, name: "edge", sql: include_str!("../migrations/master/0003_edge.sql") },
        Migration { version: 4, name: "domains", sql: include_str!("../migrations/master/0004_domains.sql") },
        Migration {
            version: 5,
            name: "base_certificate",
            sql: include_str!("../migrations/master/0005_base_certificate.sql"),
        },
        Migration { version: 6, name: "slots", sql: include_str!("../migrations/master/0006_slots.sql") },
        Migration {
            version: 7,
            name: "transport",
            sql: include_str!("../migrations/master/0007_transport.sql"),
        },
        Migration {
            version: 8,
            name: "sessions",
            sql: include_str!("../migrations/master/0008_sessions.sql"),
        },
        Migration {
            version: 9,
            name: "data_keys",
            sql: include_str!("../migrations/master/0009_data_keys.sql"),
        },
        Migration { version: 10, name: "chores", sql: include_str!("../migrations/master/0010_chores.sql") },
        Migration {
            version: 11,
            name: "plan_limits",
            sql: include_str!("../migrations/master/0011_plan_limits.sql"),
        },
        Migration {
            version: 12,
            name: "key_rotation",
            sql: include_str!("../migrations/master/0012_key_rotation.sql"),
        },
        Migration {
            version: 13,
            name: "replicas",
            sql: include_str!("../migrations/master/0013_replicas.sql"),
        },
        Migration {
            version: 14,
            name: "operations",
            sql: include_str!("../migrations/master/0014_operations.sql"),
        },
        Migration {
            version: 15,
            name: "backups",
            sql: include_str!("../migrations/master/0015_backups.sql"),
        },
        Migration {
            version: 16,
            name: "deletion",
            sql: include_str!("../migrations/master/0016_deletion.sql"),
        },
        Migration {
            version: 17,
            name: "figures",
            sql: include_str!("../migrations/master/0017_figures.sql"),
        },
        Migration {
            version: 18,
            name: "role_passwords",
            sql: include_str!("../migrations/master/0018_role_passwords.sql"),
        },
        Migration {
            version: 19,
            name: "system_admins",
            sql: include_str!("../migrations/master/0019_system_admins.sql"),
        },
        Migration {
            version: 20,
            name: "signups",
            sql: include_str!("../migrations/master/0020_signups.sql"),
        },
        Migration {
            version: 21,
            name: "own_migrations",
            sql: include_str!("../migrations/master/0021_own_migrations.sql"),
        },
        Migration {
            version: 22,
            name: "newest_revision",
            sql: include_str!("../migrations/master/0022_newest_revision.sql"),
        },
    ],
};
