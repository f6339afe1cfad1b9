//! `gmah tenant migrate …`

use clap::Args;
use gmah_api::control::fleet::Fleet;
use gmah_api::control::migrate::{Outcome, Report};
use gmah_api::control::parse_slug;
use gmah_shared::config::ConfigFile;

use super::{Output, PARTLY, progress};

#[derive(Debug, Args)]
pub(crate) struct Migrate {
    /// Slugs.
    #[arg(required_unless_present_any = ["all", "resume"], conflicts_with_all = ["all", "resume"])]
    slugs: Vec<String>,
    /// Every organisation.
    #[arg(long, conflicts_with = "resume")]
    all: bool,
    /// Goes on with the newest run, which was killed or did not bring all of them up to date.
    #[arg(long, conflicts_with = "dry_run")]
    resume: bool,
    /// Organisations at once on each server.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u16).range(1..=64))]
    parallel: u16,
    /// So many before all others; if one of them fails nobody else is begun.
    #[arg(long, default_value_t = 0)]
    canary: u16,
    /// Runs each in a transaction and rolls it back.
    #[arg(long)]
    dry_run: bool,
    /// No further organisation is begun after this many have failed.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    max_failures: u32,
    #[command(flatten)]
    output: Output,
}

impl Migrate {
    pub(crate) async fn run(self, file: &ConfigFile) -> anyhow::Result<u8> {
        let slugs = self.slugs.iter().map(|s| parse_slug(s)).collect::<Result<Vec<_>, _>>()?;
        let mut control = super::control(file).await?;
        let mut tenants = if self.all { control.migratable().await? } else { Vec::new() };
        for slug in &slugs {
            tenants.push(control.tenant(slug).await?);
        }
        let fleet = Fleet {
            parallel: usize::from(self.parallel),
            canaries: usize::from(self.canary),
            max_failures: self.max_failures as usize,
        };
        let (json, dry_run) = (self.output.json, self.dry_run);
        let bar = progress::bar(tenants.len());
        let tell = |o: &Outcome| {
            bar.inc(1);
            if !json {
                bar.suspend(|| super::line(line(o, dry_run)));
            }
        };
        let report = if dry_run {
            control.dry_run(tenants, fleet, tell).await?
        } else if self.resume {
            control.resume_migration(fleet, tell).await?
        } else {
            control.migrate_fleet(tenants, fleet, tell).await?
        };
        bar.finish_and_clear();
        self.output.print(&report, || summary(&report))?;
        Ok(if report.failed > 0 { PARTLY } else { 0 })
    }
}

fn summary(report: &Report) -> String {
    let (all, failed) = (report.tenants.len(), report.failed);
    let done = format!("{} of {all} organisations are up to date", all - failed);
    match report.operation {
        Some(_) if failed > 0 => format!("{done}; when the others can be: gmah tenant migrate --resume"),
        _ => done,
    }
}

fn line(o: &Outcome, dry_run: bool) -> String {
    if o.skipped {
        return format!("{}: not begun, too many failures", o.slug);
    }
    if let Some(error) = &o.error {
        return format!("{}: failed: {error}", o.slug);
    }
    let applied = o.made.as_ref().map(|m| m.applied.as_slice()).unwrap_or_default();
    if applied.is_empty() {
        return format!("{}: nothing to do", o.slug);
    }
    let files: Vec<_> = applied.iter().map(|a| format!("{}/{:04}_{}", a.set, a.version, a.name)).collect();
    let verb = if dry_run { "would apply" } else { "applied" };
    format!("{}: {verb} {}", o.slug, files.join(", "))
}
