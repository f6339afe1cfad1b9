//! `gmah admin …`

use clap::{Args, Subcommand};
use gmah_shared::config::ConfigFile;
use secrecy::ExposeSecret as _;

use super::Output;

#[derive(Debug, Subcommand)]
pub(crate) enum AdminCommand {
    /// Creates an administrator of the platform and prints the password, once.
    Create(Create),
    /// Lists administrators.
    List(Output),
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// E-mail address.
    #[arg(long)]
    email: String,
    #[command(flatten)]
    output: Output,
}

impl AdminCommand {
    pub(crate) async fn run(self, file: &ConfigFile) -> anyhow::Result<u8> {
        let control = super::control(file).await?;
        match self {
            Self::Create(create) => {
                let password = control.create_admin(&create.email, None).await?;
                let shown = password.expose_secret();
                let value = serde_json::json!({ "email": create.email, "password": shown });
                create.output.print(&value, || {
                    format!("administrator {} created\npassword (shown once): {shown}", create.email)
                })?;
            }
            Self::List(output) => {
                let admins = control.admins().await?;
                output.print(&admins, || admins.iter().map(|a| format!("{}\n", a.email)).collect())?;
            }
        }
        Ok(0)
    }
}
