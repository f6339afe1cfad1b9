//! PostgreSQL servers that hold organisations' databases.

use std::time::Duration;

use futures::stream::{self, StreamExt as _};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use time::OffsetDateTime;
use tokio_postgres::{Client, Row};
use utoipa::ToSchema;
use uuid::Uuid;

use super::operations::Kind;
use super::{Control, ControlError, During as _};

mod access;

pub use access::Environment;
use access::postgres;
pub(crate) use access::{Access, access};

/// A server, without its password.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = DatabaseServer)]
pub struct Server {
    /// Id.
    #[serde(skip)]
    pub id: Uuid,
    /// Name.
    pub name: String,
    /// Hosts, or folder of a Unix socket.
    pub host: String,
    /// Port of hosts without one.
    pub port: u16,
    /// `disable` or `verify-full`.
    pub tls: String,
    /// Role that creates databases.
    pub admin_user: String,
    /// Most organisations on it.
    pub max_databases: i32,
    /// Organisations on it that are not deleted.
    pub organizations: i64,
    /// Bytes of their databases, as they were found last.
    pub database_bytes: i64,
    /// Connections to them, as they were found last.
    pub connections: i64,
    /// The server that it is a copy of, if it is one.
    pub replica_of: Option<String>,
}

/// What a new server is.
#[derive(Debug)]
pub struct NewServer {
    /// `[a-z][a-z0-9-]*`
    pub name: String,
    /// Host, several of which one takes writes (`db1,db2:5433`), or folder of a Unix socket.
    pub host: String,
    /// Port of hosts without one.
    pub port: u16,
    /// TLS that is verified, or none; without a word a known server's stays as it is, and a new one has none.
    pub tls: Option<bool>,
    /// Authorities that TLS trusts, as PEM; the system's otherwise.
    pub tls_ca: Option<String>,
    /// Role that may create databases and roles.
    pub admin_user: String,
    /// Its password.
    pub admin_password: Option<SecretString>,
    /// Most organisations on it.
    pub max_databases: i32,
    /// The server that it is a copy of: then no organisation is placed on it, and what only reads may be served there.
    pub replica_of: Option<String>,
}

/// Servers that are asked at once whether they are a new one.
const ASKED_AT_ONCE: usize = 32;

/// What a server is given to let us in and to answer one question.
const QUESTION: Duration = Duration::from_secs(15);

/// The group that owns nothing and may read and write organisations' tables; their roles belong to it.
pub(crate) const TENANT_GROUP: &str = "gmah_tenant";

impl Control {
    /// Adds a server, or changes where a known one is, after having entered it.
    ///
    /// # Errors
    /// [`ControlError`] when it cannot be entered or its role may not create databases.
    pub async fn add_server(&self, new: NewServer) -> Result<(), ControlError> {
        let well_formed = new.name.len() <= 63
            && new.name.starts_with(|c: char| c.is_ascii_lowercase())
            && new.name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'));
        if !well_formed {
            let why = format!(
                "{:?}: a server's name begins with a letter and holds only a-z, 0-9 and hyphens",
                new.name
            );
            return Err(ControlError::field("name", why));
        }
        if new.tls_ca.is_some() && new.tls != Some(true) {
            return Err(ControlError::Usage("authorities are for TLS: --tls as well".into()));
        }
        let known = self
            .master
            .query_opt(
                "select host, port, tls, tls_ca, replica_of from database_servers where name = $1",
                &[&new.name],
            )
            .await
            .during("looking for the server")?;
        let original = self.original(&new, known.as_ref().map(|r| r.get("replica_of"))).await?;
        let is_elsewhere = known.as_ref().is_none_or(|known| {
            known.get::<_, &str>("host") != new.host || known.get::<_, i32>("port") != i32::from(new.port)
        });
        let (tls, tls_ca) = match (new.tls, known) {
            (Some(true), _) => ("verify-full".to_owned(), new.tls_ca.clone()),
            (None, Some(known)) => (known.get("tls"), known.get("tls_ca")),
            (Some(false), _) | (None, None) => ("disable".to_owned(), None),
        };
        let pg = postgres(
            &new.host,
            new.port,
            (&tls, tls_ca.as_deref()),
            &new.admin_user,
            new.admin_password.clone(),
        )?;
        let access = Access { name: new.name.clone(), pg };
        let client = access.connect("postgres").await?;
        match original {
            Some(original) => self.is_copy(&new.name, &client, original).await?,
            None => {
                if is_elsewhere {
                    self.is_no_other(&new.name, &client).await?;
                }
                within(&new.name, prepare(&new, &client)).await?;
            }
        }
        let sealed = new
            .admin_password
            .as_ref()
            .map(|p| {
                let context = format!("database_servers/{}", new.name);
                self.settings.master_key.seal(&context, p.expose_secret().as_bytes())
            })
            .transpose()?;
        self.master
            .execute(
                "insert into database_servers
                     (name, host, port, tls, tls_ca, admin_user, admin_password, max_databases, replica_of)
                 values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
                 on conflict (name) do update set host = excluded.host, port = excluded.port,
                     tls = excluded.tls, tls_ca = excluded.tls_ca,
                     admin_user = excluded.admin_user, admin_password = excluded.admin_password,
                     max_databases = excluded.max_databases",
                &[
                    &new.name,
                    &new.host,
                    &i32::from(new.port),
                    &tls,
                    &tls_ca,
                    &new.admin_user,
                    &sealed,
                    &new.max_databases,
                    &original,
                ],
            )
            .await
            .during("adding the server")?;
        Ok(())
    }

    /// The server that a new one is a copy of; `known` is what one of that name is, if there is one.
    async fn original(
        &self,
        new: &NewServer,
        known: Option<Option<Uuid>>,
    ) -> Result<Option<Uuid>, ControlError> {
        let original = match &new.replica_of {
            None => None,
            Some(name) => {
                let row = self
                    .master
                    .query_opt("select id, replica_of from database_servers where name = $1", &[name])
                    .await
                    .during("looking for the server")?;
                let row = row.ok_or_else(|| ControlError::Refused(format!("there is no server {name}")))?;
                if row.get::<_, Option<Uuid>>("replica_of").is_some() {
                    return Err(ControlError::Refused(format!("{name} is a copy itself")));
                }
                Some(row.get("id"))
            }
        };
        if known.is_some_and(|is| is != original) {
            let name = &new.name;
            return Err(ControlError::Refused(format!(
                "a server {name} is there already, and is no copy of that: gmah server remove {name}"
            )));
        }
        Ok(original)
    }

    /// Refuses a server that is known by another name: organisations would be counted twice, and moved to where they are.
    async fn is_no_other(&self, name: &str, client: &Client) -> Result<(), ControlError> {
        let what = "asking the server which one it is";
        // Two that were made of one copy have the first in common.
        let asked = "select (select system_identifier from pg_control_system()), pg_postmaster_start_time()";
        let which = |row: &Row| (row.get::<_, i64>(0), row.get::<_, OffsetDateTime>(1));
        let ours = async { client.query_one(asked, &[]).await.during(what) };
        let ours = which(&within(name, ours).await?);
        let others = self
            .master
            .query(
                "select id, name from database_servers where name <> $1 and replica_of is null limit 10000",
                &[&name],
            )
            .await
            .during("reading the servers")?;
        let asks = others.iter().map(|other| async move {
            let theirs = async {
                let server = self.access(other.get("id")).await?.connect("postgres").await?;
                server.query_one(asked, &[]).await.during(what)
            };
            let name = other.get::<_, &str>("name");
            (name, within(name, theirs).await)
        });
        // Those that are away take as long as the way to one may.
        let mut answers = stream::iter(asks).buffer_unordered(ASKED_AT_ONCE);
        while let Some((other, theirs)) = answers.next().await {
            match theirs {
                Ok(row) if which(&row) == ours => {
                    return Err(ControlError::Refused(format!("that server is known already, as {other}")));
                }
                Ok(_) => {}
                Err(e) => tracing::warn!(
                    server = other,
                    error = %e,
                    "another server was not asked whether it is the same"
                ),
            }
        }
        Ok(())
    }

    /// Refuses what does not follow that server.
    async fn is_copy(&self, name: &str, client: &Client, original: Uuid) -> Result<(), ControlError> {
        let what = "asking the server what it is a copy of";
        let asked = "select pg_is_in_recovery(), (select system_identifier from pg_control_system())";
        let of = self.access(original).await?;
        let theirs = async { of.connect("postgres").await?.query_one(asked, &[]).await.during(what) };
        let theirs = within(&of.name, theirs).await?;
        let ours = async { client.query_one(asked, &[]).await.during(what) };
        let ours = within(name, ours).await?;
        if !ours.get::<_, bool>(0) || ours.get::<_, i64>(1) != theirs.get::<_, i64>(1) {
            return Err(ControlError::Refused(format!("{name} is no standby of {}", of.name)));
        }
        Ok(())
    }

    /// Forgets a server on which nothing is.
    ///
    /// # Errors
    /// [`ControlError::Refused`] while an organisation is on it, also a deleted one, has left a database there or is on its way to
    /// it, or while it has copies.
    pub async fn remove_server(&self, name: &str) -> Result<(), ControlError> {
        let what = "removing the server";
        let gone = self
            .master
            .execute(
                "delete from database_servers s where name = $1
                     and not exists (select from organizations o where o.server_id = s.id)
                     and not exists (select from organization_placements p where p.server_id = s.id)
                     and not exists (select from database_servers c where c.replica_of = s.id)
                     and not exists (select from operations m where m.kind = $2 and m.state = 'running'
                                     and m.input ->> 'server' = s.name)",
                &[&name, &Kind::Move.as_str()],
            )
            .await
            .during(what)?;
        if gone == 1 {
            return Ok(());
        }
        let there = self
            .master
            .query_opt(
                "select exists (select from organizations o where o.server_id = s.id) as is_used,
                     (select to_char(max(p.kept_until) at time zone 'UTC', 'YYYY-MM-DD HH24:MI \"UTC\"')
                      from organization_placements p where p.server_id = s.id) as keeps_until,
                     (select m.id::text from operations m where m.kind = $2 and m.state = 'running'
                          and m.input ->> 'server' = s.name limit 1) as move_to
                 from database_servers s where name = $1",
                &[&name, &Kind::Move.as_str()],
            )
            .await
            .during(what)?;
        let Some(there) = there else {
            return Err(ControlError::Refused(format!("there is no server {name}")));
        };
        let (keeps_until, move_to): (Option<String>, Option<String>) =
            (there.get("keeps_until"), there.get("move_to"));
        let why = match (there.get("is_used"), move_to, keeps_until) {
            (true, ..) => "holds organisations".to_owned(),
            (_, Some(id), _) => format!("is where a move was left unfinished: gmah operation show {id}"),
            (.., Some(until)) => format!("keeps databases that organisations have left until {until}"),
            _ => "has copies".to_owned(),
        };
        Err(ControlError::Refused(format!("{name} {why}: it stays")))
    }

    /// Forgets every node, what it may have and what it knows. For whoever has just started the servers, on which no node can have
    /// a connection; one that runs all the same says so again within a heartbeat.
    ///
    /// # Errors
    /// [`ControlError`] when the master is away.
    pub async fn forget_nodes(&self) -> Result<(), ControlError> {
        let what = "forgetting nodes";
        self.master.execute("delete from nodes where role = 'api'", &[]).await.during(what)?;
        self.master.execute("delete from key_holders", &[]).await.during(what)?;
        Ok(())
    }

    /// Every server, by name.
    ///
    /// # Errors
    /// [`ControlError`] when the master is away.
    pub async fn servers(&self) -> Result<Vec<Server>, ControlError> {
        let rows = self
            .master
            .query(
                "select s.id, s.name, s.host, s.port, s.tls, s.admin_user, s.max_databases,
                     coalesce(o.organizations, 0) as organizations, coalesce(o.database_bytes, 0) as database_bytes,
                     coalesce(o.connections, 0) as connections,
                     (select c.name from database_servers c where c.id = s.replica_of) as replica_of
                 from database_servers s
                 left join (
                     select o.server_id, count(*) as organizations, sum(f.database_bytes)::bigint as database_bytes,
                         sum(f.connections)::bigint as connections
                     from organizations o left join organization_figures f on f.organization_id = o.id
                     where o.status <> 'deleted' group by o.server_id) o on o.server_id = s.id
                 order by s.name limit 10000",
                &[],
            )
            .await
            .during("listing servers")?;
        Ok(rows
            .iter()
            .map(|r| Server {
                id: r.get("id"),
                name: r.get("name"),
                host: r.get("host"),
                port: u16::try_from(r.get::<_, i32>("port")).unwrap_or(0),
                tls: r.get("tls"),
                admin_user: r.get("admin_user"),
                max_databases: r.get("max_databases"),
                organizations: r.get("organizations"),
                database_bytes: r.get("database_bytes"),
                connections: r.get("connections"),
                replica_of: r.get("replica_of"),
            })
            .collect())
    }

    /// The server for a new organisation: the named one, or of those that have room the emptiest, by its share of organisations;
    /// of two that are as full the one with fewer bytes and then with fewer connections.
    pub(crate) async fn place(&self, name: Option<&str>) -> Result<Uuid, ControlError> {
        let mut servers = self.servers().await?;
        servers.retain(|s| s.replica_of.is_none());
        if servers.is_empty() {
            return Err(ControlError::Refused("there is no database server yet: gmah server add".into()));
        }
        let candidates: Vec<_> = match name {
            Some(name) => servers.into_iter().filter(|s| s.name == name).collect(),
            None => servers,
        };
        if let (Some(name), true) = (name, candidates.is_empty()) {
            return Err(ControlError::Refused(format!("there is no server {name}")));
        }
        candidates
            .into_iter()
            .filter(|s| s.organizations < i64::from(s.max_databases))
            .min_by(|a, b| {
                let full = |s: &Server| s.organizations as f64 / f64::from(s.max_databases);
                full(a)
                    .total_cmp(&full(b))
                    .then(a.database_bytes.cmp(&b.database_bytes))
                    .then(a.connections.cmp(&b.connections))
            })
            .map(|s| s.id)
            .ok_or_else(|| ControlError::Refused("no server has room for another organisation".into()))
    }

    /// How to enter a server.
    pub(crate) async fn access(&self, id: Uuid) -> Result<Access, ControlError> {
        access(&self.master, &self.settings.master_key, id).await
    }
}

/// What a server answers to a question, or that it is silent.
async fn within<T>(
    server: &str,
    answer: impl Future<Output = Result<T, ControlError>>,
) -> Result<T, ControlError> {
    let silent = |_| ControlError::Silent(format!("server {server}"));
    tokio::time::timeout(QUESTION, answer).await.map_err(silent)?
}

/// Refuses a server on which the role may not make databases, and makes what all organisations' roles have in common.
async fn prepare(new: &NewServer, client: &Client) -> Result<(), ControlError> {
    let may: bool = client
        .query_one(
            "select rolsuper or (rolcreatedb and rolcreaterole) from pg_roles where rolname = current_user",
            &[],
        )
        .await
        .during("asking the server what its role may do")?
        .get(0);
    if !may {
        return Err(ControlError::Refused(format!(
            "{} on server {} may not create databases and roles",
            new.admin_user, new.name
        )));
    }
    client
        .batch_execute(&format!(
            "do $$ begin create role {TENANT_GROUP} nologin; exception when duplicate_object or unique_violation then null; end $$"
        ))
        .await
        .during("creating the tenants' group")?;
    // Organisations' roles have no business in the databases that every server has.
    client
        .batch_execute("revoke connect, temporary on database postgres, template1 from public")
        .await
        .during("closing the server's own databases")?;
    Ok(())
}
