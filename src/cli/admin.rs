//! `gmah admin …`

use clap::{Args, Subcommand};
use gmah_api::control::admins::{Admin, AdminChange, Role};
use gmah_shared::config::ConfigFile;
use secrecy::{ExposeSecret as _, SecretString};

use super::Output;

#[derive(Debug, Subcommand)]
pub(crate) enum AdminCommand {
    /// Creates an administrator of the platform and prints the password, once.
    Create(Create),
    /// Lists administrators.
    List(Output),
    /// Says what an administrator may do from now on.
    SetRole(SetRole),
    /// Keeps an administrator from logging in, and ends its sessions.
    Disable(One),
    /// Lets one log in again.
    Enable(One),
    /// Gives one another password, prints it once, and takes the second factor away.
    Reset(One),
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// E-mail address.
    #[arg(long)]
    email: String,
    /// `owner`, `operator`, `support` or `read_only`: each may what those after it may.
    #[arg(long, default_value = "owner")]
    role: String,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct SetRole {
    /// `owner`, `operator`, `support` or `read_only`.
    role: String,
    #[command(flatten)]
    one: One,
}

#[derive(Debug, Args)]
pub(crate) struct One {
    /// E-mail address.
    #[arg(long)]
    email: String,
    #[command(flatten)]
    output: Output,
}

impl AdminCommand {
    pub(crate) async fn run(self, file: &ConfigFile) -> anyhow::Result<u8> {
        let mut control = super::control(file).await?;
        match self {
            Self::Create(create) => {
                let role: Role = create.role.parse()?;
                let (admin, password) = control.create_admin(&create.email, role, None).await?;
                shown_once(create.output, &admin, &password, "created")?;
            }
            Self::List(output) => {
                let admins = control.admins().await?;
                output.print(&admins, || admins.iter().map(|a| line(a) + "\n").collect())?;
            }
            Self::SetRole(set) => {
                let change = AdminChange { role: Some(set.role.parse()?), disabled: None };
                let admin = control.change_admin(&set.one.email, change).await?;
                set.one.output.print(&admin, || line(&admin))?;
            }
            Self::Disable(one) => switch(&mut control, one, true).await?,
            Self::Enable(one) => switch(&mut control, one, false).await?,
            Self::Reset(one) => {
                let (admin, password) = control.reset_admin(&one.email, None).await?;
                shown_once(one.output, &admin, &password, "has another password")?;
            }
        }
        Ok(0)
    }
}

async fn switch(control: &mut gmah_api::control::Control, one: One, disabled: bool) -> anyhow::Result<()> {
    let change = AdminChange { role: None, disabled: Some(disabled) };
    let admin = control.change_admin(&one.email, change).await?;
    one.output.print(&admin, || line(&admin))
}

fn shown_once(output: Output, admin: &Admin, password: &SecretString, what: &str) -> anyhow::Result<()> {
    let shown = password.expose_secret();
    let mut value = serde_json::to_value(admin)?;
    value["password"] = shown.into();
    output.print(&value, || format!("administrator {} {what}\npassword (shown once): {shown}", admin.email))
}

fn line(admin: &Admin) -> String {
    let state = if admin.disabled { "disabled" } else { "" };
    let factor = if admin.totp { "second factor" } else { "" };
    format!("{:<40} {:<10} {:<14} {state}", admin.email, admin.role.as_str(), factor).trim_end().to_owned()
}
