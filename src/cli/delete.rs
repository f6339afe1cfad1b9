//! `gmah tenant delete`, `gmah tenant undelete`

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::time::Duration;

use clap::Args;
use gmah_api::control::delete::Deletion;
use gmah_api::control::{ControlError, parse_slug};
use gmah_shared::config::ConfigFile;

use super::Output;

#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// Slug.
    slug: String,
    /// The slug once more, in place of the question.
    #[arg(long, value_name = "SLUG")]
    yes_delete: Option<String>,
    /// How long it can be had back; then it is destroyed, with its key. 0s: at once.
    #[arg(long, value_name = "DURATION", default_value = "30d", value_parser = humantime::parse_duration)]
    grace: Duration,
    /// Without a last backup.
    #[arg(long)]
    without_backup: bool,
    #[command(flatten)]
    output: Output,
}

impl Delete {
    pub(crate) async fn run(self, file: &ConfigFile) -> anyhow::Result<u8> {
        let slug = parse_slug(&self.slug)?;
        if self.grace > Duration::from_secs(3650 * 86_400) {
            return Err(ControlError::Usage("--grace is at most ten years".into()).into());
        }
        let said = match self.yes_delete {
            Some(said) => said,
            None => ask(slug.as_str())?,
        };
        if said != slug.as_str() {
            return Err(ControlError::Usage(format!("{said:?} is not {slug}: nothing was deleted")).into());
        }
        let mut control = super::control(file).await?;
        let order = Deletion { grace: self.grace, backup: !self.without_backup };
        let deleted = control.delete_tenant(&slug, order).await?;
        let mut value = serde_json::to_value(&deleted)?;
        let certificate = control.certificate(deleted.id).await?;
        value["certificate"] = serde_json::to_value(&certificate)?;
        self.output.print(&value, || match &certificate {
            Some(certificate) => format!("{certificate:#}"),
            None => format!(
                "{slug} is deleted; until {} it can be had back: gmah tenant undelete {slug}",
                deleted.purge_after
            ),
        })?;
        Ok(0)
    }
}

/// Asks for the slug. Without a terminal there is nobody to ask.
fn ask(slug: &str) -> anyhow::Result<String> {
    if !std::io::stdin().is_terminal() {
        let why = format!("deleting {slug} needs --yes-delete {slug}, or a terminal to ask at");
        return Err(ControlError::Usage(why).into());
    }
    print!("type {slug} to delete it: ");
    std::io::stdout().flush()?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    Ok(line.trim().to_owned())
}
