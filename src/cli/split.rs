//! `gmah split`

use std::path::PathBuf;

use clap::Args;
use gmah_api::control::fleet::Outcome;
use gmah_api::control::split::{Made, Plan, SplitOptions, SplitReport};
use gmah_shared::config::ConfigFile;

use super::{Output, PARTLY};

#[derive(Debug, Args)]
pub(crate) struct Split {
    /// What the shared database is made of: see deploy/split.md.
    #[arg(long, value_name = "FILE")]
    plan: PathBuf,
    /// Where what was read lies until it is done, in clear. Run again with the same folder it goes on.
    #[arg(long, value_name = "DIR", required_unless_present = "dry_run")]
    work: Option<PathBuf>,
    /// Only reads and counts, and says what is wrong with the plan.
    #[arg(long)]
    dry_run: bool,
    /// Organisations that are made at once.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    parallel: u16,
    #[command(flatten)]
    output: Output,
}

impl Split {
    pub(crate) async fn run(self, file: &ConfigFile) -> anyhow::Result<u8> {
        let plan = Plan::load(&self.plan)?;
        let mut control = super::control(file).await?;
        let options = SplitOptions { dry_run: self.dry_run, parallel: usize::from(self.parallel) };
        let (json, work) = (self.output.json, self.work.unwrap_or_default());
        let tell = |outcome: &Outcome<Made>| {
            if !json {
                super::line(line(outcome));
            }
        };
        let report = control.split(&plan, &work, options, tell).await?;
        self.output.print(&report, || summary(&report, &work))?;
        Ok(if report.failed > 0 { PARTLY } else { 0 })
    }
}

fn line(outcome: &Outcome<Made>) -> String {
    let slug = &outcome.slug;
    let Some(made) = &outcome.made else {
        return format!("{slug}: failed: {}", outcome.error.as_deref().unwrap_or_default());
    };
    let done = format!("{slug}: active at {}: {} rows, compared", made.host, made.rows);
    match &made.admin_password {
        Some(p) => format!("{done}; administrator {}, password (shown once): {p}", made.admin_email),
        None => format!("{done} by an earlier run"),
    }
}

fn summary(report: &SplitReport, work: &std::path::Path) -> String {
    if report.dry_run {
        let each = report.parts.iter().map(|p| {
            let tables: Vec<_> = p.rows.iter().map(|(table, rows)| format!("{table} {rows}")).collect();
            format!("{} ({}): {}", p.slug, p.key, tables.join(", "))
        });
        return each.collect::<Vec<_>>().join("\n");
    }
    let all = report.organizations.len();
    let done =
        format!("{} of {all} organisations are as they were at {}", all - report.failed, report.read_at);
    let again = if report.failed > 0 { "run it again when the others can be; then " } else { "" };
    format!("{done}; {again}remove {}, which is in clear", work.display())
}
