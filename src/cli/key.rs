//! `gmah key …`

use std::time::Duration;

use clap::{Args, Subcommand};
use gmah_api::control::{Control, parse_slug};
use gmah_shared::config::ConfigFile;

use super::Output;

#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Exchanges a key while everything runs; the one that signs tenant tokens, unless another is named.
    Rotate(Rotate),
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Rotate {
    #[command(flatten)]
    signing: Signing,
    #[command(subcommand)]
    which: Option<Which>,
}

#[derive(Debug, Subcommand)]
enum Which {
    /// The one that signs tenant tokens. The older one verifies for twenty more minutes.
    Signing(Signing),
    /// The one that seals what the master keeps. The file of the configuration gets a new first line as soon as
    /// every node knows it; whatever an older key sealed is sealed anew.
    Master(Master),
    /// The password with which an organisation's database is entered. Nothing is interrupted.
    Tenant(Tenant),
    /// The one that seals an organisation's sensitive fields. Takes the catalog's `max_stale` and twice its `ttl`, until
    /// no node seals with the older one any more, and as long as sealing all of them anew does.
    Data(Tenant),
}

#[derive(Debug, Args)]
struct Signing {
    #[command(flatten)]
    patience: Patience,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
struct Patience {
    /// How long to wait for nodes that do not know the new key yet. One that died without a word is waited for as long as
    /// nodes serve without the master (`catalog.max_stale`).
    #[arg(long, value_name = "DURATION", default_value = "50s", value_parser = humantime::parse_duration)]
    wait: Duration,
    /// A node that is gone for good, by its address: it has said nothing for a minute, and need not be waited for.
    #[arg(long, value_name = "ADDRESS")]
    gone: Vec<String>,
}

#[derive(Debug, Args)]
struct Master {
    /// Takes the older keys out of the file at the end, also when it was an earlier, unfinished run that was told so. Backups of the master that were made before can be opened
    /// only with these: keep a copy with the backups.
    #[arg(long)]
    forget_older: bool,
    #[command(flatten)]
    patience: Patience,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
struct Tenant {
    /// Slug.
    slug: String,
    #[command(flatten)]
    output: Output,
}

impl Patience {
    async fn forget_gone(&self, control: &Control) -> anyhow::Result<()> {
        for address in &self.gone {
            control.forget_node(address).await?;
        }
        Ok(())
    }
}

impl KeyCommand {
    pub(crate) async fn run(self, file: &ConfigFile) -> anyhow::Result<u8> {
        let mut control = super::control(file).await?;
        let Self::Rotate(Rotate { signing, which }) = self;
        match which.unwrap_or(Which::Signing(signing)) {
            Which::Signing(Signing { patience, output }) => {
                patience.forget_gone(&control).await?;
                let rotated = control.rotate_signing_key(patience.wait).await?;
                output.print(&rotated, || format!("key {} signs now", rotated.kid))?;
            }
            Which::Master(master) => {
                master.patience.forget_gone(&control).await?;
                let rotated = control.rotate_master_key(master.forget_older, master.patience.wait).await?;
                master.output.print(&rotated, || {
                    let (id, n) = (&rotated.id, rotated.resealed);
                    let older = match rotated.older.len() {
                        0 => "no older key is left".to_owned(),
                        _ => format!("older keys open on: {}", rotated.older.join(", ")),
                    };
                    format!("master key {id} seals now; {n} secrets were sealed anew; {older}")
                })?;
            }
            Which::Tenant(tenant) => {
                let exchanged = control.rotate_role_password(&parse_slug(&tenant.slug)?).await?;
                tenant.output.print(&exchanged, || {
                    format!("{}: the role {} has another password", exchanged.slug, exchanged.role)
                })?;
            }
            Which::Data(tenant) => {
                let rotated = control.rotate_data_key(&parse_slug(&tenant.slug)?).await?;
                tenant.output.print(&rotated, || {
                    let (slug, version, n) = (&rotated.slug, rotated.version, rotated.resealed);
                    format!("{slug} has key {version}; {n} values were sealed anew")
                })?;
            }
        }
        Ok(0)
    }
}
