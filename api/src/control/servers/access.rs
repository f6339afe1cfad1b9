//! How the control plane and PostgreSQL's programs enter a server.

use std::time::Duration;

use gmah_shared::config::Postgres;
use gmah_shared::pg::{self, Hosts, Transport};
use gmah_shared::secret::MasterKey;
use secrecy::{ExposeSecret as _, SecretString};
use tokio_postgres::Client;
use tokio_postgres::types::Type;
use uuid::Uuid;

use crate::control::{ControlError, During as _};

/// How the control plane enters a server.
#[derive(Clone)]
pub(crate) struct Access {
    pub(crate) name: String,
    pub(super) pg: Postgres,
}

/// What programs of PostgreSQL are told by their environment (PostgreSQL, chapter 34.15), and what has to lie in a file.
pub struct Environment {
    variables: Vec<(&'static str, SecretString)>,
    _authorities: Option<tempfile::NamedTempFile>,
}

impl Environment {
    /// Names and values.
    pub fn variables(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.variables.iter().map(|(name, value)| (*name, value.expose_secret()))
    }
}

impl Access {
    /// A connection to one database of the server.
    pub(crate) async fn connect(&self, database: &str) -> Result<Client, ControlError> {
        let pg = Postgres { database: database.to_owned(), ..self.pg.clone() };
        pg::connect(&pg, "gmah control").await.during(&format!("server {}, database {database}", self.name))
    }

    /// The same as somebody else.
    pub(crate) async fn connect_as(
        &self,
        database: &str,
        user: &str,
        password: &SecretString,
    ) -> Result<Client, ControlError> {
        let (user, password) = (user.to_owned(), Some(password.clone()));
        let access = Self { name: self.name.clone(), pg: Postgres { user, password, ..self.pg.clone() } };
        access.connect(database).await
    }

    /// The same for programs: nothing of it is an argument, which others could read.
    pub(crate) fn environment(&self, database: &str) -> Result<Environment, ControlError> {
        let pg = &self.pg;
        let hosts: Vec<_> = pg.hosts.iter().map(|(host, _)| host).collect();
        let ports: Vec<_> = pg.hosts.iter().map(|(_, port)| port.to_string()).collect();
        let mut variables: Vec<(_, SecretString)> = vec![
            ("PGHOST", hosts.join(",").into()),
            ("PGPORT", ports.join(",").into()),
            ("PGUSER", pg.user.clone().into()),
            ("PGDATABASE", database.into()),
            ("PGAPPNAME", "gmah control".into()),
            ("PGCONNECT_TIMEOUT", pg.timeout.as_secs().max(2).to_string().into()),
        ];
        if pg.hosts.are_several() {
            variables.push(("PGTARGETSESSIONATTRS", "read-write".into()));
        }
        if let Some(password) = &pg.password {
            variables.push(("PGPASSWORD", password.clone()));
        }
        let mut authorities = None;
        match pg.transport.ca_pem() {
            None => variables.push(("PGSSLMODE", "disable".into())),
            Some(ca) => {
                variables.push(("PGSSLMODE", "verify-full".into()));
                let root = match ca {
                    Some(pem) => {
                        let written = tempfile::NamedTempFile::new().and_then(|mut file| {
                            std::io::Write::write_all(&mut file, pem.as_bytes()).map(|()| file)
                        });
                        let file = written
                            .map_err(|e| ControlError::Foreign(format!("a file for authorities: {e}")))?;
                        let path = file.path().display().to_string();
                        authorities = Some(file);
                        path
                    }
                    None => "system".into(),
                };
                variables.push(("PGSSLROOTCERT", root.into()));
            }
        }
        Ok(Environment { variables, _authorities: authorities })
    }
}

/// How to enter a server, by what the master has of it.
pub(crate) async fn access(master: &Client, key: &MasterKey, id: Uuid) -> Result<Access, ControlError> {
    let row = master
        .query_typed_opt(
            "select name, host, port, tls, tls_ca, admin_user, admin_password from database_servers where id = $1",
            &[(&id, Type::UUID)],
        )
        .await
        .during("reading the server")?
        .ok_or_else(|| ControlError::Foreign("the server is not known any more".into()))?;
    let name: String = row.get("name");
    let sealed: Option<Vec<u8>> = row.get("admin_password");
    let password = sealed.map(|s| key.open_text(&format!("database_servers/{name}"), &s)).transpose()?;
    let port = u16::try_from(row.get::<_, i32>("port")).unwrap_or(0);
    let pg = postgres(
        row.get("host"),
        port,
        (row.get("tls"), row.get("tls_ca")),
        row.get("admin_user"),
        password,
    )?;
    Ok(Access { name, pg })
}

pub(super) fn postgres(
    host: &str,
    port: u16,
    tls: (&str, Option<&str>),
    user: &str,
    password: Option<SecretString>,
) -> Result<Postgres, ControlError> {
    let usage = |e: &dyn std::fmt::Display| ControlError::field("host", format!("{host:?}: {e}"));
    Ok(Postgres {
        hosts: Hosts::parse(host, port).map_err(|e| usage(&e))?,
        transport: Transport::parse(tls.0, tls.1)
            .map_err(|e| ControlError::Usage(format!("TLS of the server: {e}")))?,
        user: user.to_owned(),
        password,
        database: "postgres".into(),
        max_connections: 1,
        timeout: Duration::from_secs(10),
    })
}
