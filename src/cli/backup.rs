//! `gmah backup …`, `gmah tenant backup`, `gmah tenant restore`

use clap::{Args, Subcommand};
use gmah_api::control::backup::restore::{Order, Restored};
use gmah_api::control::backup::{Listed, Made, Verified};
use gmah_api::control::fleet::{Fleet, Outcome};
use gmah_api::control::operations::quiet;
use gmah_api::control::{ControlError, parse_email, parse_slug};
use gmah_shared::config::ConfigFile;
use gmah_shared::tenant::TenantStatus;
use secrecy::ExposeSecret as _;
use uuid::Uuid;

use super::{Output, PARTLY, progress};

#[derive(Debug, Subcommand)]
pub(crate) enum BackupCommand {
    /// Lists backups, the newest first.
    List(List),
    /// Tries backups: each is restored into a database that nobody uses, counted, and dropped.
    Verify(Verify),
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Of this organisation only.
    #[arg(long, value_name = "SLUG")]
    tenant: Option<String>,
    /// How many.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    limit: u16,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// Trials at once.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    parallel: u16,
    /// Ids of backups.
    #[arg(conflicts_with = "all")]
    ids: Vec<Uuid>,
    /// The newest of each organisation, which is what is meant where no id is given.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct Backup {
    /// Slugs.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    slugs: Vec<String>,
    /// Every organisation.
    #[arg(long)]
    all: bool,
    /// Organisations at once on each server.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u16).range(1..=64))]
    parallel: u16,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct Restore {
    /// Slug.
    slug: String,
    /// The backup: in place of what the organisation has, which is kept for --undo.
    #[arg(long, value_name = "ID", required_unless_present = "undo")]
    backup: Option<Uuid>,
    /// As a new organisation of this slug; the one that the backup is of stays as it is.
    #[arg(long = "as", value_name = "NEW_SLUG", conflicts_with = "undo")]
    another: Option<String>,
    /// Back to the database that the newest restore replaced.
    #[arg(long, conflicts_with = "backup")]
    undo: bool,
    #[command(flatten)]
    output: Output,
}

impl BackupCommand {
    pub(crate) async fn run(self, file: &ConfigFile) -> anyhow::Result<u8> {
        match self {
            Self::List(list) => {
                let slug = list.tenant.as_deref().map(parse_slug).transpose()?;
                let listed = super::control(file).await?.backups(slug.as_ref(), list.limit).await?;
                list.output.print(&listed, || listed.iter().map(line).collect())?;
                Ok(0)
            }
            Self::Verify(verify) => verify.run(file).await,
        }
    }
}

fn line(b: &Listed) -> String {
    let tried = match (&b.verification, b.verified_at) {
        (Some(why), _) => format!("NOT WELL: {why}"),
        (None, Some(at)) => format!("tried {at}"),
        (None, None) => b.error.clone().unwrap_or_default(),
    };
    format!(
        "{}  {:<24} {:<8} {:>12} {}  {tried}\n",
        b.id,
        b.slug,
        b.state,
        b.size_bytes.unwrap_or(0),
        b.created_at
    )
}

impl Verify {
    async fn run(self, file: &ConfigFile) -> anyhow::Result<u8> {
        let control = super::control(file).await?;
        let mut ids = self.ids;
        if self.all || ids.is_empty() {
            let mut seen = std::collections::HashSet::new();
            let mut newest = control.backups(None, 10_000).await?;
            newest.retain(|b| b.state == "done" && seen.insert(b.slug.clone()));
            ids = newest.iter().map(|b| b.id).collect();
            super::aside(format_args!("trying the newest backup of each of {} organisations", ids.len()));
        }
        let bar = progress::bar(ids.len());
        let (mut results, mut failed) = (Vec::new(), 0);
        let done = |id: Uuid, outcome: Result<Verified, ControlError>| {
            let result = match outcome {
                Ok(well) => serde_json::json!(well),
                Err(e) => {
                    failed += 1;
                    serde_json::json!({ "backup_id": id, "error": e.to_string() })
                }
            };
            bar.inc(1);
            if !self.output.json {
                bar.suspend(|| super::line(tried(&result)));
            }
            results.push(result);
        };
        control.verify_backups(&ids, usize::from(self.parallel), done).await;
        bar.finish_and_clear();
        let value = serde_json::json!({ "backups": results, "failed": failed });
        self.output.print(&value, || format!("{} of {} are well", results.len() - failed, results.len()))?;
        Ok(if failed > 0 { PARTLY } else { 0 })
    }
}

fn tried(result: &serde_json::Value) -> String {
    match result["error"].as_str() {
        Some(error) => format!("{}: NOT WELL: {error}", result["backup_id"].as_str().unwrap_or_default()),
        None => format!(
            "{}: well: {} rows, {} files",
            result["slug"].as_str().unwrap_or_default(),
            result["rows"],
            result["files"]
        ),
    }
}

impl Backup {
    pub(crate) async fn run(self, file: &ConfigFile) -> anyhow::Result<u8> {
        let slugs = self.slugs.iter().map(|s| parse_slug(s)).collect::<Result<Vec<_>, _>>()?;
        let mut control = super::control(file).await?;
        if let [slug] = &slugs[..] {
            let made = control.backup(slug).await?;
            self.output.print(&made, || describe(&made))?;
            return Ok(0);
        }
        let mut tenants = Vec::new();
        if self.all {
            tenants = control.tenants().await?;
            tenants.retain(|t| t.status != TenantStatus::Provisioning);
        }
        for slug in &slugs {
            tenants.push(control.tenant(slug).await?);
        }
        let fleet =
            Fleet { parallel: usize::from(self.parallel), max_failures: usize::MAX, ..Fleet::default() };
        let (bar, json) = (progress::bar(tenants.len()), self.output.json);
        let tell = |o: &Outcome<Made>| {
            bar.inc(1);
            if !json {
                let line = match (&o.made, &o.error) {
                    (Some(made), _) => describe(made),
                    (None, error) => format!("{}: failed: {}", o.slug, error.as_deref().unwrap_or_default()),
                };
                bar.suspend(|| super::line(&line));
            }
        };
        let outcomes = control.telling(quiet()).backup_fleet(tenants, fleet, tell).await?;
        bar.finish_and_clear();
        let failed = outcomes.iter().filter(|o| !o.is_well()).count();
        let value = serde_json::json!({ "tenants": outcomes, "failed": failed });
        self.output
            .print(&value, || format!("{} of {} are backed up", outcomes.len() - failed, outcomes.len()))?;
        Ok(if failed > 0 { PARTLY } else { 0 })
    }
}

fn describe(made: &Made) -> String {
    format!(
        "{}: backup {}: {} rows of {} tables, {} files, {} bytes more in the store",
        made.slug, made.backup_id, made.rows, made.tables, made.files, made.size_bytes
    )
}

impl Restore {
    pub(crate) async fn run(self, file: &ConfigFile) -> anyhow::Result<u8> {
        let slug = parse_slug(&self.slug)?;
        let another = self.another.as_deref().map(parse_slug).transpose()?;
        let mut control = super::control(file).await?;
        let restored = match (self.backup, another) {
            (None, _) => control.undo_restore(&slug).await?,
            (Some(backup), None) => control.restore(&slug, Order { backup, scrubbed_for: None }).await?,
            (Some(backup), Some(another)) => {
                let known = control.backups(Some(&slug), 10_000).await?;
                if !known.iter().any(|b| b.id == backup) {
                    return Err(ControlError::Refused(format!("{slug} has no backup {backup}")).into());
                }
                control.restore_as(Order { backup, scrubbed_for: None }, another).await?
            }
        };
        self.output.print(&restored, || text(&restored))?;
        Ok(0)
    }
}

#[derive(Debug, Args)]
pub(crate) struct Clone {
    /// Slug.
    slug: String,
    /// Slug of the copy.
    new: String,
    /// Who can log in to the copy; nobody else can.
    #[arg(long, value_name = "EMAIL")]
    admin_email: Option<String>,
    #[command(flatten)]
    output: Output,
}

impl Clone {
    pub(crate) async fn run(self, file: &ConfigFile) -> anyhow::Result<u8> {
        let (slug, new) = (parse_slug(&self.slug)?, parse_slug(&self.new)?);
        let email = match &self.admin_email {
            Some(email) => parse_email(email)?,
            None => format!("admin@{new}.invalid"),
        };
        let (made, password) = super::control(file).await?.clone_tenant(&slug, new, email.clone()).await?;
        let password = password.as_ref().map(|p| p.expose_secret());
        let mut value = serde_json::to_value(&made)?;
        value["admin_email"] = email.clone().into();
        value["admin_password"] = password.into();
        self.output.print(&value, || {
            let done =
                format!("{} is a copy of {slug} without what is personal: {} rows", made.slug, made.rows);
            match password {
                Some(p) => format!("{done}\nadministrator {email}, password (shown once): {p}"),
                None => done,
            }
        })?;
        Ok(0)
    }
}

fn text(r: &Restored) -> String {
    match r.backup_id {
        Some(id) => format!(
            "{} has backup {id} in database {} (placement {}): {} rows, {} files brought back",
            r.slug, r.database, r.placement, r.rows, r.files
        ),
        None => format!("{} is back in database {} (placement {})", r.slug, r.database, r.placement),
    }
}
