//! Sections that say how a PostgreSQL database is reached.

use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;
use serde::Deserialize;

use super::{ConfigError, ConfigFile, HumanDuration, Within};
use crate::pg::{Hosts, Transport};

/// How to reach a PostgreSQL database.
#[derive(Debug, Clone)]
pub struct Postgres {
    /// Names, addresses, or the folder of a Unix socket (beginning with `/`), and their ports.
    pub hosts: Hosts,
    /// Plain, or TLS that is verified.
    pub transport: Transport,
    /// Role.
    pub user: String,
    /// Password, if the server asks for one.
    pub password: Option<SecretString>,
    /// Database.
    pub database: String,
    /// Most connections of one process to it.
    pub max_connections: usize,
    /// Deadline for connecting, and for each statement.
    pub timeout: Duration,
}

/// The section as it stands in a file; [`ConfigFile::postgres`] makes a [`Postgres`] of it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PostgresSection {
    host: String,
    #[serde(default = "default_port")]
    port: Within<1, 65535>,
    #[serde(default = "default_tls")]
    tls: String,
    tls_ca_file: Option<PathBuf>,
    user: String,
    password_file: Option<PathBuf>,
    password_env: Option<String>,
    database: String,
    #[serde(default = "default_connections")]
    max_connections: Within<1, 1000>,
    #[serde(default = "default_timeout")]
    timeout: HumanDuration,
}

fn default_port() -> Within<1, 65535> {
    Within::new(5432)
}

fn default_tls() -> String {
    "disable".into()
}

fn default_connections() -> Within<1, 1000> {
    Within::new(4)
}

fn default_timeout() -> HumanDuration {
    HumanDuration::from_secs(5)
}

impl ConfigFile {
    /// What a section of that name says, its secrets read.
    ///
    /// # Errors
    /// [`ConfigError`] with the place of the first fault.
    pub fn postgres(
        &self,
        section: &str,
        spanned: toml::Spanned<PostgresSection>,
    ) -> Result<Postgres, ConfigError> {
        let raw = spanned.into_inner();
        let key = |name: &str| format!("{section}.{name}");
        Ok(Postgres {
            hosts: Hosts::parse(&raw.host, raw.port.get() as u16)
                .map_err(|e| self.at_key(&key("host"), &e.to_string()))?,
            transport: self.transport(section, &raw.tls, raw.tls_ca_file.as_deref())?,
            user: raw.user,
            password: self.secret(&key("password_file"), raw.password_file, raw.password_env)?,
            database: raw.database,
            max_connections: raw.max_connections.get(),
            timeout: *raw.timeout,
        })
    }

    /// `tls` and `tls_ca_file`.
    fn transport(&self, section: &str, mode: &str, ca_file: Option<&Path>) -> Result<Transport, ConfigError> {
        let (of_mode, of_file) = (format!("{section}.tls"), format!("{section}.tls_ca_file"));
        let pem = ca_file
            .map(|file| {
                let path = self.resolve(file);
                std::fs::read_to_string(&path)
                    .map_err(|e| self.at_key(&of_file, &format!("{}: {e}", path.display())))
            })
            .transpose()?;
        let key = if pem.is_some() && mode == "verify-full" { of_file } else { of_mode };
        Transport::parse(mode, pem.as_deref()).map_err(|e| self.at_key(&key, &e))
    }
}
