//! `gmah operation …`

use clap::{Args, Subcommand};
use gmah_api::control::operations::{Listed, Shown};
use gmah_api::control::parse_slug;
use gmah_shared::config::ConfigFile;
use secrecy::ExposeSecret as _;
use uuid::Uuid;

use super::Output;

#[derive(Debug, Subcommand)]
pub(crate) enum OperationCommand {
    /// Lists operations, the newest first.
    List(List),
    /// Shows one, with its steps.
    Show(One),
    /// Goes on with one that a killed command left, or that failed.
    Resume(One),
    /// Gives up one that a killed command left, or that failed, and removes what it had made. Of a switch of modules and of keys what
    /// there is stays: the next one takes it up.
    Cancel(One),
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Of this organisation only.
    #[arg(long, value_name = "SLUG")]
    tenant: Option<String>,
    /// Only those that are neither done nor given up.
    #[arg(long)]
    unfinished: bool,
    /// How many.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    limit: u16,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct One {
    /// Id of the operation.
    id: Uuid,
    #[command(flatten)]
    output: Output,
}

impl OperationCommand {
    pub(crate) async fn run(self, file: &ConfigFile) -> anyhow::Result<u8> {
        match self {
            Self::List(list) => {
                let slug = list.tenant.as_deref().map(parse_slug).transpose()?;
                let control = super::control(file).await?;
                let listed = control.operations(slug.as_ref(), list.unfinished, list.limit).await?;
                list.output.print(&listed, || listed.iter().map(line).collect())?;
            }
            Self::Show(one) => {
                let shown = super::control(file).await?.operation(one.id).await?;
                one.output.print(&shown, || describe(&shown))?;
            }
            Self::Resume(one) => {
                let mut control = super::control(file).await?;
                let resumed = control.resume_operation(one.id).await?;
                let password = resumed.admin_password.as_ref().map(|p| p.expose_secret());
                let mut value = serde_json::to_value(&resumed.operation)?;
                value["admin_password"] = password.into();
                one.output.print(&value, || {
                    let done = describe(&resumed.operation);
                    match password {
                        Some(password) => format!("{done}administrator's password (shown once): {password}"),
                        None => done,
                    }
                })?;
            }
            Self::Cancel(one) => {
                let shown = super::control(file).await?.cancel_operation(one.id).await?;
                one.output.print(&shown, || describe(&shown))?;
            }
        }
        Ok(0)
    }
}

fn state(listed: &Listed) -> &str {
    if listed.abandoned { "left behind" } else { &listed.state }
}

fn line(o: &Listed) -> String {
    format!(
        "{}  {:<16} {:<24} {:<12} {}{}\n",
        o.id,
        o.kind,
        o.slug.as_deref().unwrap_or("-"),
        state(o),
        o.step.as_deref().unwrap_or(""),
        o.error.as_deref().map(|e| format!(": {e}")).unwrap_or_default()
    )
}

fn describe(shown: &Shown) -> String {
    let o = &shown.listed;
    let mut text = format!(
        "{}  {}\nsubject  {}\nstate    {}\nactor    {}\nbegun    {}\nrunners  {}\ninput    {}\n",
        o.id,
        o.kind,
        o.subject,
        state(o),
        o.actor,
        o.created_at,
        shown.runners,
        shown.input
    );
    if let Some(error) = &o.error {
        text.push_str(&format!("error    {error}\n"));
    }
    for step in &shown.steps {
        text.push_str(&format!("  {:<16} {}\n", step.name, step.state));
    }
    text
}
