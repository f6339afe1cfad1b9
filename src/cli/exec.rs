//! `gmah tenant exec`, `gmah tenant psql`

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use gmah_api::control::exec::{Answered, Statement};
use gmah_api::control::fleet::{Fleet, Outcome};
use gmah_api::control::{ControlError, parse_slug};
use gmah_shared::config::ConfigFile;
use gmah_shared::tenant::TenantStatus;

use super::PARTLY;

#[derive(Debug, Args)]
pub(crate) struct Exec {
    /// Slugs.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    slugs: Vec<String>,
    /// Every organisation.
    #[arg(long)]
    all: bool,
    /// The statement may change something: it is run as the server's administrator, in a transaction.
    #[arg(long)]
    write: bool,
    /// A file with the statement, in place of one after `--`.
    #[arg(long, value_name = "FILE", conflicts_with = "sql")]
    file: Option<PathBuf>,
    /// Deadline in each database.
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Most rows of each organisation.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    max_rows: u32,
    /// Organisations at once on each server.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    parallel: u16,
    /// Rows are printed as JSON lines with or without this.
    #[arg(long)]
    json: bool,
    /// One statement.
    #[arg(last = true, required_unless_present = "file", num_args = 1)]
    sql: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Psql {
    /// Slug.
    slug: String,
    /// For psql.
    #[arg(last = true)]
    arguments: Vec<String>,
}

impl Exec {
    pub(crate) async fn run(self, config: &ConfigFile) -> anyhow::Result<u8> {
        let slugs = self.slugs.iter().map(|s| parse_slug(s)).collect::<Result<Vec<_>, _>>()?;
        let sql = match (self.sql, &self.file) {
            (Some(sql), _) => sql,
            (None, Some(file)) => std::fs::read_to_string(file)
                .map_err(|e| ControlError::Usage(format!("{}: {e}", file.display())))?,
            (None, None) => String::new(),
        };
        if sql.trim().is_empty() {
            return Err(ControlError::Usage("there is no statement".into()).into());
        }
        let control = super::control(config).await?;
        let mut tenants = Vec::new();
        if self.all {
            tenants = control.tenants().await?;
            tenants.retain(|t| t.status != TenantStatus::Provisioning);
        }
        for slug in &slugs {
            tenants.push(control.tenant(slug).await?);
        }
        let statement =
            Statement { sql, write: self.write, timeout: self.timeout, max_rows: self.max_rows as usize };
        let fleet =
            Fleet { parallel: usize::from(self.parallel), max_failures: usize::MAX, ..Fleet::default() };
        let outcomes = control.exec(tenants, &statement, fleet, print).await?;
        let failed = outcomes.iter().filter(|o| !o.is_well()).count();
        Ok(match failed {
            0 => 0,
            // With one organisation there is no other that was done.
            _ if outcomes.len() == 1 && !self.all => super::FAILED,
            _ => PARTLY,
        })
    }
}

fn print(o: &Outcome<Answered>) {
    match (&o.made, &o.error) {
        (Some(made), _) => {
            for row in &made.rows {
                super::line(serde_json::json!({ "tenant": o.slug, "row": row }));
            }
            if made.count > made.rows.len() as u64 && made.more {
                super::aside(format_args!(
                    "{}: {} rows, of which these are the first {}",
                    o.slug,
                    made.count,
                    made.rows.len()
                ));
            } else if made.more {
                super::aside(format_args!(
                    "{}: there are more rows than these {}: --max-rows",
                    o.slug, made.count
                ));
            } else if made.rows.is_empty() {
                super::aside(format_args!("{}: {} rows", o.slug, made.count));
            }
        }
        (None, error) => {
            super::aside(format_args!("{}: failed: {}", o.slug, error.as_deref().unwrap_or_default()))
        }
    }
}

impl Psql {
    /// Becomes `psql`, as the server's administrator in the organisation's database.
    pub(crate) async fn run(self, config: &ConfigFile) -> anyhow::Result<u8> {
        let slug = parse_slug(&self.slug)?;
        let control = super::control(config).await?;
        let door = control.psql(&slug).await?;
        let mut command = std::process::Command::new("psql");
        command.args(&self.arguments).envs(door.variables());
        // The connection to the master is not needed any more.
        drop(control);
        let error = command.exec();
        Err(ControlError::Refused(format!("psql: {error}: apt-get install postgresql-client")).into())
    }
}
