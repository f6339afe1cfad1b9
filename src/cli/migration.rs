//! `gmah tenant migration …`

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use gmah_api::control::own_migrations::OwnFile;
use gmah_api::control::{ControlError, parse_slug};
use gmah_shared::config::ConfigFile;

use super::Output;

#[derive(Debug, Subcommand)]
pub(crate) enum MigrationCommand {
    /// Adds a file, `0001_what_it_does.sql`. It runs with the next `gmah tenant migrate`.
    Add(Add),
    /// Lists them.
    List(Of),
    /// Takes the newest one back, if it has not run.
    Remove(Of),
}

#[derive(Debug, Args)]
pub(crate) struct Add {
    #[command(flatten)]
    of: Of,
    /// The file. Its first line may be `-- gmah: no-transaction` (for `create index concurrently`).
    file: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Of {
    /// Slug.
    slug: String,
    #[command(flatten)]
    output: Output,
}

impl MigrationCommand {
    pub(crate) async fn run(self, file: &ConfigFile) -> anyhow::Result<u8> {
        match self {
            Self::Add(add) => {
                let slug = parse_slug(&add.of.slug)?;
                let name = add.file.file_name().and_then(|n| n.to_str()).unwrap_or_default();
                let none = || ControlError::Usage(format!("{}: cannot be read", add.file.display()));
                let sql = std::fs::read_to_string(&add.file).with_context(none)?;
                let added = super::control(file).await?.add_own_migration(&slug, name, &sql).await?;
                add.of.output.print(&added, || {
                    format!("{}: added; it runs with gmah tenant migrate {slug}", line(&added))
                })?;
            }
            Self::List(of) => {
                let control = super::control(file).await?;
                let id = control.tenant(&parse_slug(&of.slug)?).await?.id;
                let all = control.own_migrations(id).await?;
                of.output.print(&all, || all.iter().map(line).collect::<Vec<_>>().join("\n"))?;
            }
            Self::Remove(of) => {
                let removed =
                    super::control(file).await?.remove_own_migration(&parse_slug(&of.slug)?).await?;
                of.output.print(&removed, || format!("{}: removed", line(&removed)))?;
            }
        }
        Ok(0)
    }
}

fn line(file: &OwnFile) -> String {
    format!("own/{:04}_{}", file.version, file.name)
}
