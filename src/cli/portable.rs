//! `gmah tenant export`, `gmah tenant import`

use std::path::PathBuf;

use clap::Args;
use gmah_api::control::parse_slug;
use gmah_api::control::portable::NewFromExport;
use gmah_shared::config::ConfigFile;
use secrecy::ExposeSecret as _;

use super::Output;

#[derive(Debug, Args)]
pub(crate) struct Export {
    /// Slug.
    slug: String,
    /// A folder that is not there yet. What is in it is in clear: its owner's copy.
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct Import {
    /// The folder of an export.
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    /// Slug of the new organisation.
    #[arg(long)]
    slug: String,
    /// Who gets a password. Default: the first administrator in the export.
    #[arg(long)]
    admin_email: Option<String>,
    /// Database server. Default: the emptiest.
    #[arg(long)]
    server: Option<String>,
    #[command(flatten)]
    output: Output,
}

impl Export {
    pub(crate) async fn run(self, file: &ConfigFile) -> anyhow::Result<u8> {
        let slug = parse_slug(&self.slug)?;
        let manifest = super::control(file).await?.export(&slug, &self.to).await?;
        self.output.print(&manifest, || {
            let rows: u64 = manifest.tables.values().map(|t| t.rows).sum();
            let (tables, files) = (manifest.tables.len(), manifest.files.len());
            format!("{slug}: {rows} rows of {tables} tables and {files} files in {}", self.to.display())
        })?;
        Ok(0)
    }
}

impl Import {
    pub(crate) async fn run(self, file: &ConfigFile) -> anyhow::Result<u8> {
        let slug = parse_slug(&self.slug)?;
        let order =
            NewFromExport { from: self.from, slug, admin_email: self.admin_email, server: self.server };
        let made = super::control(file).await?.import(order).await?;
        let password = made.admin_password.as_ref().map(|p| p.expose_secret());
        let value = serde_json::json!({
            "id": made.id, "slug": made.slug, "host": made.host, "rows": made.rows, "files": made.files,
            "admin_email": made.admin_email, "admin_password": password,
        });
        self.output.print(&value, || {
            let done =
                format!("{} is active at {}: {} rows, {} files", made.slug, made.host, made.rows, made.files);
            match password {
                Some(p) => format!("{done}\nadministrator {}, password (shown once): {p}", made.admin_email),
                None => format!("{done}; it was imported before, nothing to do"),
            }
        })?;
        Ok(0)
    }
}
