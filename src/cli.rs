//! The argument tree, and what all commands share: the configuration, exit codes, output.
//!
//! Exit codes: 0 done; 1 failed; 2 wrong usage or configuration; 3 a fleet operation finished with some organisations
//! failed, each named.

mod admin;
mod backup;
mod delete;
mod doctor;
mod domain;
mod exec;
mod key;
mod migrate;
mod migration;
mod module;
mod operation;
mod portable;
mod progress;
mod roles;
mod server;
mod split;
mod tenant;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Args, Parser, Subcommand};
use gmah_api::control::config::ControlConfig;
use gmah_api::control::{Control, ControlError};
use gmah_shared::config::{ConfigError, ConfigFile};
use gmah_shared::telemetry;

pub(crate) use roles::{Signals, start_logging};

/// Failed.
pub(crate) const FAILED: u8 = 1;
/// Wrong usage or configuration.
pub(crate) const USAGE: u8 = 2;
/// Some organisations failed.
pub(crate) const PARTLY: u8 = 3;

/// Many organisations on one web product, one PostgreSQL database each.
#[derive(Debug, Parser)]
#[command(name = "gmah", version, about, propagate_version = true)]
pub(crate) struct Cli {
    /// Configuration file. Without it, `.gmah/gmah.toml` of this folder if `gmah dev` made one.
    #[arg(long, global = true, env = "GMAH_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Everything in one process, on a private PostgreSQL.
    Dev(crate::dev::DevArgs),
    /// The edge. SIGHUP loads its configuration anew, as a whole or not at all.
    Router(roles::RouterArgs),
    /// The tenant API.
    Api,
    /// The configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Organisations.
    #[command(subcommand)]
    Tenant(tenant::TenantCommand),
    /// Modules: what an organisation has beside users.
    #[command(subcommand)]
    Module(module::ModuleCommand),
    /// Makes organisations of one shared database, in which a column says whose a row is.
    Split(split::Split),
    /// PostgreSQL servers that hold organisations' databases.
    #[command(subcommand)]
    Server(server::ServerCommand),
    /// Customers' own names.
    #[command(subcommand)]
    Domain(domain::DomainCommand),
    /// Keys.
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Administrators of the platform.
    #[command(subcommand)]
    Admin(admin::AdminCommand),
    /// Compares what is declared with what there is.
    Doctor(doctor::Doctor),
    /// Backups.
    #[command(subcommand)]
    Backup(backup::BackupCommand),
    /// What commands are at, and what was left unfinished.
    #[command(subcommand)]
    Operation(operation::OperationCommand),
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Loads the file as the roles would, and says file, line and key of what is wrong with each part.
    Check(Output),
}

/// How a result is printed.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Output {
    /// Prints JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

impl Output {
    /// Prints a value as JSON, or what `text` makes of it.
    pub(crate) fn print<T: serde::Serialize>(
        self,
        value: &T,
        text: impl FnOnce() -> String,
    ) -> anyhow::Result<()> {
        let out = if self.json { serde_json::to_string(value)? } else { text() };
        // Whoever reads may have had enough (`| head`).
        match writeln!(std::io::stdout(), "{}", out.trim_end()) {
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            other => Ok(other?),
        }
    }
}

impl Cli {
    /// Runs the command.
    pub(crate) async fn run(self) -> anyhow::Result<u8> {
        let code = self.does().await?;
        Ok(if code == 0 && UNWRITTEN.load(Ordering::Relaxed) { FAILED } else { code })
    }

    async fn does(self) -> anyhow::Result<u8> {
        let config = self.config;
        match self.command {
            Command::Dev(args) => crate::dev::run(args).await.map(|()| 0),
            Command::Router(args) => roles::router(&file(config)?, args).await,
            Command::Api => roles::api(&file(config)?).await,
            Command::Config(ConfigCommand::Check(output)) => roles::check(&path(config)?, output),
            Command::Tenant(command) => command.run(&file(config)?).await,
            Command::Module(command) => command.run(&file(config)?).await,
            Command::Split(split) => split.run(&file(config)?).await,
            Command::Server(command) => command.run(&file(config)?).await,
            Command::Domain(command) => command.run(&file(config)?).await,
            Command::Key(command) => command.run(&file(config)?).await,
            Command::Admin(command) => command.run(&file(config)?).await,
            Command::Doctor(doctor) => doctor.run(&file(config)?).await,
            Command::Backup(command) => command.run(&file(config)?).await,
            Command::Operation(command) => command.run(&file(config)?).await,
        }
    }
}

/// The configuration file: named, or the one that `gmah dev` made here.
fn file(named: Option<PathBuf>) -> anyhow::Result<ConfigFile> {
    Ok(ConfigFile::load(&path(named)?)?)
}

fn path(named: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    match named {
        Some(path) => Ok(path),
        None => {
            let dev = Path::new(".gmah/gmah.toml");
            if !dev.exists() {
                return Err(NoConfig.into());
            }
            Ok(dev.to_owned())
        }
    }
}

/// Prints a line of what is going on. Whoever reads may have had enough (`| head`): the work goes on all the same.
pub(crate) fn line(line: impl std::fmt::Display) {
    if let Err(e) = writeln!(std::io::stdout(), "{line}")
        && e.kind() != std::io::ErrorKind::BrokenPipe
        && !UNWRITTEN.swap(true, Ordering::Relaxed)
    {
        aside(format_args!("error: standard output: {e}"));
    }
}

/// Whether something of what was to be printed is lost, and nobody chose that.
static UNWRITTEN: AtomicBool = AtomicBool::new(false);

/// The same beside the results.
pub(crate) fn aside(line: impl std::fmt::Display) {
    // There is nowhere left to say it.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Neither a flag, nor a variable, nor a file of `gmah dev`.
#[derive(Debug, thiserror::Error)]
#[error("no configuration: give --config FILE or GMAH_CONFIG, or start `gmah dev` in this folder")]
struct NoConfig;

/// A session of the control plane. It logs what goes wrong and nothing else: the result is printed.
async fn control(file: &ConfigFile) -> anyhow::Result<Control> {
    let settings = file.settings()?;
    telemetry::init(settings.log.format, "warn")?;
    let config = ControlConfig::from_file(file)?;
    Ok(Control::open(settings, config).await?.telling(progress::steps()))
}

/// The exit code of an error.
pub(crate) fn exit_code(error: &anyhow::Error) -> u8 {
    let usage = error.is::<ConfigError>()
        || error.is::<NoConfig>()
        || error.is::<telemetry::BadFilter>()
        || matches!(error.downcast_ref(), Some(ControlError::Usage(_) | ControlError::Field { .. }));
    if usage { USAGE } else { FAILED }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_tree_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn exit_codes() {
        assert_eq!(exit_code(&NoConfig.into()), USAGE);
        assert_eq!(exit_code(&ControlError::Usage("x".into()).into()), USAGE);
        assert_eq!(exit_code(&ControlError::Refused("x".into()).into()), FAILED);
        assert_eq!(exit_code(&anyhow::anyhow!("x")), FAILED);
    }
}
