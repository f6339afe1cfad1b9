//! `gmah tenant …`

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use gmah_api::control::edge::{EdgeSettings, Mode};
use gmah_api::control::figures::{Figures, Usage};
use gmah_api::control::provision::NewTenant;
use gmah_api::control::tenants::{Done, Summary};
use gmah_api::control::{Control, ControlError, parse_email, parse_slug};
use gmah_api::language::Language;
use gmah_shared::config::ConfigFile;
use gmah_shared::hostname::Hostname;
use gmah_shared::tenant::TenantStatus;
use secrecy::ExposeSecret as _;

use super::Output;

#[derive(Debug, Subcommand)]
pub(crate) enum TenantCommand {
    /// Creates an organisation, from its names to its administrator. Safe to run again.
    Create(Create),
    /// Lists organisations.
    List(Output),
    /// Shows one.
    Show(One),
    /// Locks one: its host answers 403.
    Suspend(Suspend),
    /// Unlocks one.
    Resume(One),
    /// What was done to one, the newest first.
    History(History),
    /// Closes one for work on it, or opens it again.
    Maintenance(Maintenance),
    /// Sets its own limits, pools and branding.
    Set(Set),
    /// Fills the empty tables of one with demo data.
    Seed(One),
    /// Brings databases up to this program's schema.
    Migrate(super::migrate::Migrate),
    /// Files of SQL that one organisation has of its own; `migrate` runs them after the modules'.
    #[command(subcommand)]
    Migration(super::migration::MigrationCommand),
    /// Deletes one: its host answers 404 at once, and it is destroyed when the grace is over.
    Delete(super::delete::Delete),
    /// Has one back that was deleted.
    Undelete(One),
    /// Moves one to another server. Requests wait meanwhile, and nothing that was acknowledged is lost.
    Move(Move),
    /// Runs one statement in organisations' databases: as a role that can only read, unless --write.
    Exec(super::exec::Exec),
    /// Opens psql in an organisation's database, as the server's administrator.
    Psql(super::exec::Psql),
    /// Makes a copy of one without what is personal: for trying things out.
    Clone(super::backup::Clone),
    /// Writes all that one has into a folder, for its owner.
    Export(super::portable::Export),
    /// Makes another one out of such a folder.
    Import(super::portable::Import),
    /// Makes backups, while everything runs.
    Backup(super::backup::Backup),
    /// Puts a backup in the place of what an organisation has, or makes another organisation of it.
    Restore(super::backup::Restore),
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Label under the base domain: 3 to 50 of a-z, 0-9 and single hyphens.
    #[arg(long)]
    slug: String,
    /// Display name.
    #[arg(long)]
    name: String,
    /// E-mail address of the administrator.
    #[arg(long)]
    admin_email: String,
    /// Custom domain, to be verified later.
    #[arg(long)]
    domain: Option<String>,
    /// Plan.
    #[arg(long, default_value = "starter")]
    plan: String,
    /// Modules, separated by commas. Default: `default_modules` of the configuration.
    #[arg(long, value_delimiter = ',')]
    modules: Option<Vec<String>>,
    /// Database server. Default: the emptiest.
    #[arg(long)]
    server: Option<String>,
    /// No letter to the administrator: the password that is printed is told by other means.
    #[arg(long)]
    without_letter: bool,
    /// Of the letter to the administrator, where letters are sent.
    #[arg(long, value_enum, default_value_t = Tongue::En)]
    language: Tongue,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Tongue {
    En,
    Fr,
}

impl From<Tongue> for Language {
    fn from(tongue: Tongue) -> Self {
        match tongue {
            Tongue::En => Self::En,
            Tongue::Fr => Self::Fr,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct One {
    /// Slug.
    slug: String,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct Maintenance {
    /// Slug.
    slug: String,
    /// on: everything answers 503. hold: requests wait. read-only: GET is served. off: open.
    state: Switch,
    /// What clients are told to wait, with its unit.
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
    retry_after: Duration,
    /// Makes a secret with which requests pass all the same.
    #[arg(long)]
    bypass: bool,
    /// With hold: how long a request waits at most.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=300))]
    hold_seconds: u16,
    /// With hold: how many wait at once.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    hold_requests: u32,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Switch {
    On,
    Off,
    Hold,
    ReadOnly,
}

#[derive(Debug, Args)]
pub(crate) struct Set {
    /// Slug.
    slug: String,
    /// plan=KEY, limits.NAME=NUMBER, pool.NAME=POOL or branding.NAME=TEXT; the value `default` takes its own away.
    #[arg(required = true)]
    settings: Vec<String>,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct Move {
    /// Slug.
    slug: String,
    /// Name of the server that is to have it.
    #[arg(long)]
    server: String,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct Suspend {
    #[command(flatten)]
    one: One,
    /// Why, for operators.
    #[arg(long)]
    reason: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct History {
    #[command(flatten)]
    one: One,
    /// Most entries.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    limit: u16,
}

impl TenantCommand {
    pub(crate) async fn run(self, file: &ConfigFile) -> anyhow::Result<u8> {
        match self {
            Self::Create(create) => create.run(file).await,
            Self::List(output) => list(&super::control(file).await?, output).await,
            Self::Show(one) => {
                let control = super::control(file).await?;
                let tenant = control.tenant_detailed(&parse_slug(&one.slug)?).await?;
                one.output.print(&tenant, || {
                    let known = tenant.figures.as_ref().map_or_else(String::new, known);
                    describe(&tenant.summary) + &known + &used(&tenant.usage)
                })?;
                Ok(0)
            }
            Self::Suspend(s) => {
                status(file, &s.one.slug, TenantStatus::Suspended, s.reason.as_deref(), s.one.output).await
            }
            Self::History(h) => h.run(file).await,
            Self::Resume(one) => status(file, &one.slug, TenantStatus::Active, None, one.output).await,
            Self::Maintenance(m) => m.run(file).await,
            Self::Set(set) => {
                let is_plan = |word: &String| word.starts_with("plan=");
                let (plans, settings): (Vec<_>, Vec<_>) = set.settings.into_iter().partition(is_plan);
                let (slug, to) = (parse_slug(&set.slug)?, EdgeSettings::parse(&settings)?);
                let control = super::control(file).await?;
                for plan in &plans {
                    control.set_plan(&slug, plan.trim_start_matches("plan=")).await?;
                }
                let tenant = match settings.is_empty() {
                    true => control.tenant(&slug).await?,
                    false => control.set_edge(&slug, to).await?,
                };
                set.output.print(&tenant, || describe(&tenant))?;
                Ok(0)
            }
            Self::Seed(one) => {
                let control = super::control(file).await?;
                let seeded = control.seed(&parse_slug(&one.slug)?).await?;
                one.output.print(&seeded, || {
                    format!("{}: {} members, {} patients added", one.slug, seeded.members, seeded.patients)
                })?;
                Ok(0)
            }
            Self::Migrate(migrate) => migrate.run(file).await,
            Self::Migration(command) => command.run(file).await,
            Self::Exec(exec) => exec.run(file).await,
            Self::Psql(psql) => psql.run(file).await,
            Self::Clone(clone) => clone.run(file).await,
            Self::Export(export) => export.run(file).await,
            Self::Import(import) => import.run(file).await,
            Self::Backup(backup) => backup.run(file).await,
            Self::Delete(delete) => delete.run(file).await,
            Self::Undelete(one) => {
                let slug = parse_slug(&one.slug)?;
                let tenant = super::control(file).await?.undelete_tenant(&slug).await?;
                one.output.print(&tenant, || format!("{slug} is {} again", tenant.status))?;
                Ok(0)
            }
            Self::Restore(restore) => restore.run(file).await,
            Self::Move(to) => {
                let slug = parse_slug(&to.slug)?;
                let moved = super::control(file).await?.move_tenant(&slug, &to.server).await?;
                to.output.print(&moved, || {
                    format!(
                        "{slug} is on {} now, in database {}: {} rows",
                        moved.server, moved.database, moved.rows
                    )
                })?;
                Ok(0)
            }
        }
    }
}

impl Maintenance {
    async fn run(self, file: &ConfigFile) -> anyhow::Result<u8> {
        let slug = parse_slug(&self.slug)?;
        let retry_after = u32::try_from(self.retry_after.as_secs()).unwrap_or(u32::MAX);
        if !(1..=86_400).contains(&retry_after) {
            return Err(ControlError::Usage("--retry-after is from 1s to 1day".into()).into());
        }
        let mode = match self.state {
            Switch::On => Mode::Full,
            Switch::Off => Mode::Off,
            Switch::Hold => Mode::Hold { seconds: self.hold_seconds, requests: self.hold_requests },
            Switch::ReadOnly => Mode::ReadOnly,
        };
        let control = super::control(file).await?;
        let done = control.set_maintenance(&slug, mode, retry_after, self.bypass).await?;
        let secret = done.bypass.as_ref().map(|s| s.expose_secret());
        let mut value = serde_json::to_value(&done.tenant)?;
        if let Some(secret) = secret {
            value["bypass"] = secret.into();
        }
        self.output.print(&value, || {
            let state = match &done.tenant.maintenance {
                Some(mode) => format!("{slug} is in maintenance ({})", mode.replace('_', "-")),
                None => format!("{slug} is {}", done.tenant.status),
            };
            match secret {
                Some(secret) => format!(
                    "{state}\nbypass (shown once): the header X-Gmah-Bypass: {secret}, or in a browser \
                     ?gmah-bypass={secret}"
                ),
                None => state,
            }
        })?;
        Ok(0)
    }
}

impl Create {
    async fn run(self, file: &ConfigFile) -> anyhow::Result<u8> {
        // Everything that can be wrong with the words themselves comes before any connection.
        let slug = parse_slug(&self.slug)?;
        let admin_email = parse_email(&self.admin_email)?;
        let domain = self
            .domain
            .map(|d| Hostname::parse(&d).map_err(|e| ControlError::Usage(format!("{d:?}: {e}"))))
            .transpose()?;
        let named = domain.clone();
        let mut control = super::control(file).await?;
        let modules = self.modules.unwrap_or_else(|| control.settings.default_modules.clone());
        let created = control
            .create_tenant(NewTenant {
                slug: slug.clone(),
                name: self.name,
                admin_email: admin_email.clone(),
                admin_password: None,
                language: (!self.without_letter).then_some(self.language.into()),
                domain,
                plan: self.plan,
                modules,
                server: self.server,
            })
            .await?;
        let password = created.admin_password.as_ref().map(|p| p.expose_secret());
        let domain = match &named {
            Some(name) => Some(control.one_domain(Some(&slug), name).await?),
            None => None,
        };
        let value = serde_json::json!({
            "id": created.id, "slug": slug, "host": created.host, "admin_email": admin_email,
            "admin_password": password, "created": created.is_new, "domain": domain,
            "served": created.served,
        });
        if created.served == Some(false) {
            super::aside(format_args!(
                "{slug} is made, and the router ([provision] probe) does not serve it yet"
            ));
        }
        self.output.print(&value, || match password {
            Some(password) => format!(
                "{slug} is active at {}\nadministrator {admin_email}, password (shown once): {password}\n{}",
                created.host,
                domain.as_ref().map(super::domain::instructions).unwrap_or_default()
            ),
            None => format!("{slug} was created before with these very inputs; nothing to do"),
        })?;
        Ok(0)
    }
}

async fn list(control: &Control, output: Output) -> anyhow::Result<u8> {
    let tenants = control.tenants().await?;
    output.print(&tenants, || {
        let mut text = format!(
            "{:<24} {:<13} {:<9} {:<9} {:<13} {:<16} {}\n",
            "SLUG", "STATUS", "HEALTH", "SCHEMA", "PLAN", "SERVER", "MODULES"
        );
        for t in &tenants {
            text.push_str(&format!(
                "{:<24} {:<13} {:<9} {:<9} {:<13} {:<16} {}\n",
                t.slug,
                t.status.as_str(),
                t.health,
                t.schema_standing().as_str(),
                t.plan,
                t.server,
                t.modules.join(",")
            ));
        }
        text
    })?;
    Ok(0)
}

impl History {
    async fn run(self, file: &ConfigFile) -> anyhow::Result<u8> {
        let control = super::control(file).await?;
        let tenant = control.tenant(&parse_slug(&self.one.slug)?).await?;
        let done = control.history(Some(tenant.id), None, i64::from(self.limit)).await?;
        self.one.output.print(&done, || {
            let line = |d: &Done| format!("{}  {:<20} {:<24} {}\n", d.at, d.actor, d.action, d.detail);
            done.iter().map(line).collect()
        })?;
        Ok(0)
    }
}

async fn status(
    file: &ConfigFile,
    slug: &str,
    to: TenantStatus,
    reason: Option<&str>,
    output: Output,
) -> anyhow::Result<u8> {
    let slug = parse_slug(slug)?;
    let tenant = super::control(file).await?.set_status(&slug, to, reason).await?;
    output.print(&tenant, || format!("{slug} is {}", tenant.status))?;
    Ok(0)
}

/// What is known from within.
fn known(f: &Figures) -> String {
    let or_unknown = |n: Option<i64>| n.map_or_else(|| "unknown".to_owned(), |n| n.to_string());
    let at = |t: Option<time::OffsetDateTime>| {
        t.and_then(|t| t.format(&time::format_description::well_known::Rfc3339).ok())
            .unwrap_or_else(|| "never".into())
    };
    let why = if f.reasons.is_empty() { String::new() } else { format!(" ({})", f.reasons.join(", ")) };
    let loans = f.active_loans.map_or_else(String::new, |n| format!("loans       {n} active\n"));
    format!(
        "health      {}{why}\ncollected   {}\nsize        {} bytes of database, {} bytes of files\nconnections {}\n\
         users       {}\nmembers     {}\n{loans}payments    {} this month\nactivity    {}\nschema      {}\n",
        f.health,
        at(f.collected_at),
        or_unknown(f.database_bytes),
        or_unknown(f.storage_bytes),
        or_unknown(f.connections.map(Into::into)),
        or_unknown(f.users),
        or_unknown(f.members),
        or_unknown(f.month_transactions),
        at(f.last_activity_at),
        f.schema
    )
}

/// What was used, by month.
fn used(months: &[Usage]) -> String {
    let mut text = String::new();
    for u in months {
        text.push_str(&format!(
            "used {}: {} requests, {} bytes in, {} bytes out, at most {} bytes of files and {} members\n",
            u.month, u.requests, u.bytes_in, u.bytes_out, u.storage_bytes, u.members
        ));
    }
    text
}

fn describe(t: &Summary) -> String {
    format!(
        "{}  {}\nid          {}\nstatus      {}\nplan        {}\nmodules     {}\ndomain      {}\nserver      \
         {}\ndatabase    {} (placement {})\ngeneration  {}\nmaintenance {}\nlimits      {}\npools       {}\n\
         branding    {}\n",
        t.slug,
        t.name,
        t.id,
        t.status,
        t.plan,
        t.modules.join(", "),
        t.domain.as_deref().unwrap_or("none"),
        t.server,
        t.database,
        t.placement,
        t.generation,
        t.maintenance.as_deref().unwrap_or("off"),
        t.limits,
        t.pools,
        t.branding
    )
}
