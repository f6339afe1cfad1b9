//! `gmah key …`

use clap::{Args, Subcommand};
use gmah_api::control::parse_slug;
use gmah_shared::config::ConfigFile;

use super::Output;

#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Exchanges a key while everything runs.
    #[command(subcommand)]
    Rotate(Rotate),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Rotate {
    /// That of an organisation's sensitive fields. Takes the catalog's `max_stale` and twice its `ttl`, until
    /// no node seals with the older one any more, and as long as sealing all of them anew does.
    Tenant(Tenant),
}

#[derive(Debug, Args)]
pub(crate) struct Tenant {
    /// Slug.
    slug: String,
    #[command(flatten)]
    output: Output,
}

impl KeyCommand {
    pub(crate) async fn run(self, file: &ConfigFile) -> anyhow::Result<u8> {
        let control = super::control(file).await?;
        let Self::Rotate(Rotate::Tenant(tenant)) = self;
        let rotated = control.rotate_data_key(&parse_slug(&tenant.slug)?).await?;
        tenant.output.print(&rotated, || {
            format!(
                "{} has key {}; {} values were sealed anew",
                rotated.slug, rotated.version, rotated.resealed
            )
        })?;
        Ok(0)
    }
}
