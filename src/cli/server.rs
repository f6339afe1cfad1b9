//! `gmah server …`

use std::path::PathBuf;

use clap::{Args, Subcommand};
use gmah_api::control::servers::NewServer;
use gmah_shared::config::ConfigFile;

use super::Output;

#[derive(Debug, Subcommand)]
pub(crate) enum ServerCommand {
    /// Adds a server, or changes where a known one is.
    Add(Add),
    /// Lists servers.
    List(Output),
    /// Forgets a server on which no organisation is, or a copy.
    Remove(Remove),
}

#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// Name.
    name: String,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct Add {
    /// Name: a-z, 0-9 and hyphens.
    #[arg(long)]
    name: String,
    /// Host; several of which one takes writes (`db1,db2:5433`); or the folder of its Unix socket.
    #[arg(long)]
    host: String,
    /// Port of hosts without one.
    #[arg(long, default_value_t = 5432)]
    port: u16,
    /// Speaks TLS, and checks certificate and name. Without a word a known server's stays as it is.
    #[arg(long)]
    tls: bool,
    /// Speaks no TLS.
    #[arg(long, conflicts_with = "tls")]
    no_tls: bool,
    /// PEM file with the authorities that TLS trusts. Default: the system's.
    #[arg(long, value_name = "FILE", requires = "tls")]
    tls_ca_file: Option<PathBuf>,
    /// Role that may create databases and roles.
    #[arg(long)]
    user: String,
    /// File with its password.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// It is a standby of that server, and serves what only reads. Its own budget of connections is as large.
    #[arg(long, value_name = "SERVER", conflicts_with = "max_databases")]
    replica_of: Option<String>,
    /// Most organisations on it.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(i32).range(1..=1_000_000))]
    max_databases: i32,
    #[command(flatten)]
    output: Output,
}

impl ServerCommand {
    pub(crate) async fn run(self, file: &ConfigFile) -> anyhow::Result<u8> {
        let control = super::control(file).await?;
        match self {
            Self::Add(add) => {
                let read = |path: &PathBuf| {
                    std::fs::read_to_string(path).map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))
                };
                let password = add.password_file.as_ref().map(read).transpose()?;
                let admin_password = password.map(|p| p.trim_end_matches(['\r', '\n']).to_owned().into());
                let name = add.name.clone();
                control
                    .add_server(NewServer {
                        name: add.name,
                        host: add.host,
                        port: add.port,
                        tls: (add.tls || add.no_tls).then_some(add.tls),
                        tls_ca: add.tls_ca_file.as_ref().map(read).transpose()?,
                        admin_user: add.user,
                        admin_password,
                        max_databases: add.max_databases,
                        replica_of: add.replica_of,
                    })
                    .await?;
                add.output.print(&serde_json::json!({ "name": name }), || format!("server {name} added"))?;
            }
            Self::Remove(remove) => {
                control.remove_server(&remove.name).await?;
                let name = &remove.name;
                remove
                    .output
                    .print(&serde_json::json!({ "name": name }), || format!("server {name} removed"))?;
            }
            Self::List(output) => {
                let servers = control.servers().await?;
                output.print(&servers, || {
                    let mut text = String::new();
                    for s in &servers {
                        let tls = if s.tls == "disable" { "" } else { " (TLS)" };
                        let holds = match &s.replica_of {
                            Some(original) => format!("copy of {original}"),
                            None => format!("{} of {} organisations", s.organizations, s.max_databases),
                        };
                        text.push_str(&format!("{:<20} {}:{}{tls}  {holds}\n", s.name, s.host, s.port));
                    }
                    text
                })?;
            }
        }
        Ok(0)
    }
}
