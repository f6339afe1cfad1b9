//! Comparing what the master declares with what there is, and repairing what can be repaired without losing anything.
//!
//! ```text
//! each server: databases, roles ─► each organisation: identity, migrations, schema, rights ─► operations, keys, backups
//! ```
//!
//! Nothing that may hold somebody's data is dropped: only what was left half-made, or belongs to an organisation that is on
//! record as destroyed.

mod databases;
mod durability;
mod schema;
mod servers;
mod upkeep;

use futures::StreamExt as _;
use futures::stream;
use gmah_shared::tenant::TenantId;
use serde::Serialize;
use uuid::Uuid;

use self::schema::References;
use super::operations::Kind;
use super::own_migrations::OwnFile;
use super::servers::Access;
use super::{Control, ControlError, During as _, data_keys};

/// Something that is not as it should be.
#[derive(Debug, Clone, Serialize)]
pub struct Fault {
    /// What kind of fault, for programs.
    pub kind: &'static str,
    /// Slug of the organisation, or name of the server, database, role or operation.
    pub subject: String,
    /// In words.
    pub what: String,
    /// Whether `--fix` can do something about it.
    pub can_be_repaired: bool,
    /// Whether it was repaired.
    pub repaired: bool,
    /// Why not, if it was tried.
    pub error: Option<String>,
}

/// What was found.
#[derive(Debug, Clone, Serialize)]
pub struct Examination {
    /// Servers that were looked at.
    pub servers: usize,
    /// Organisations that were looked at.
    pub organizations: usize,
    /// What is not as it should be.
    pub faults: Vec<Fault>,
    /// What would be better otherwise, and harms nobody yet.
    pub advice: Vec<Fault>,
}

impl Examination {
    /// Whether nothing is left to be done.
    pub fn is_clean(&self) -> bool {
        self.faults.iter().all(|f| f.repaired)
    }
}

/// Advice that only a person can follow.
const NOTHING: Option<std::future::Ready<Result<(), ControlError>>> = None;

/// Databases that are looked at at once, on each server.
const AT_ONCE: usize = 4;

/// An organisation as the master declares it.
#[derive(Debug, Clone)]
pub(super) struct Declared {
    id: TenantId,
    slug: String,
    status: String,
    server: Uuid,
    database: String,
    role: String,
    placement: i32,
    modules: Vec<String>,
    own: Vec<OwnFile>,
    has_key: bool,
    is_purged: bool,
    /// An operation on it is under way or was left unfinished: what it is at is not judged.
    is_busy: bool,
}

impl Declared {
    /// Whether its database is to be there and open.
    fn is_served(&self) -> bool {
        !self.is_busy && matches!(self.status.as_str(), "active" | "suspended" | "maintenance")
    }
}

/// Faults, and whether to repair them.
pub(super) struct Findings {
    fix: bool,
    faults: Vec<Fault>,
    advice: Vec<Fault>,
}

impl Findings {
    fn new(fix: bool) -> Self {
        Self { fix, faults: Vec::new(), advice: Vec::new() }
    }

    /// Something that would be better otherwise; with `follow`, what does it.
    async fn advise(
        &mut self,
        kind: &'static str,
        subject: &str,
        what: impl Into<String>,
        follow: Option<impl Future<Output = Result<(), ControlError>>>,
    ) {
        let before = std::mem::take(&mut self.faults);
        match follow {
            Some(follow) => self.mend(kind, subject, what, follow).await,
            None => self.found(kind, subject, what),
        }
        self.advice.append(&mut self.faults);
        self.faults = before;
    }

    /// Something that nobody can repair but its owner.
    fn found(&mut self, kind: &'static str, subject: &str, what: impl Into<String>) {
        self.faults.push(Fault {
            kind,
            subject: subject.to_owned(),
            what: what.into(),
            can_be_repaired: false,
            repaired: false,
            error: None,
        });
    }

    /// Something that `repair` mends.
    async fn mend(
        &mut self,
        kind: &'static str,
        subject: &str,
        what: impl Into<String>,
        repair: impl Future<Output = Result<(), ControlError>>,
    ) {
        self.found(kind, subject, what);
        let done = if self.fix { Some(repair.await) } else { None };
        let Some(fault) = self.faults.last_mut() else { return };
        fault.can_be_repaired = true;
        match done {
            Some(Ok(())) => fault.repaired = true,
            Some(Err(e)) => fault.error = Some(e.to_string()),
            None => {}
        }
    }
}

impl Control {
    /// Looks at everything; with `fix`, repairs what can be.
    ///
    /// # Errors
    /// [`ControlError`] when the master is away. A server that is away is a fault.
    pub async fn examine(&mut self, fix: bool) -> Result<Examination, ControlError> {
        let mut findings = Findings::new(fix);
        self.examine_operations(&mut findings).await?;
        durability::examine_master(&self.master, &mut findings).await?;
        let declared = self.declared().await?;
        let servers = self.servers().await?;
        let mut references = References::default();
        for server in servers.iter().filter(|s| s.replica_of.is_none()) {
            let here: Vec<&Declared> = declared.iter().filter(|d| d.server == server.id).collect();
            let access = self.access(server.id).await?;
            let admin = match access.connect("postgres").await {
                Ok(admin) => admin,
                Err(e) => {
                    findings.found("server_unreachable", &server.name, e.to_string());
                    continue;
                }
            };
            durability::examine(&admin, &server.name, &here, &mut findings).await?;
            self.examine_server(&admin, &access, &here, &declared, &mut findings).await?;
            self.examine_databases(&admin, &access, &here, &mut references, &mut findings).await?;
        }
        self.examine_records(&declared, &mut findings).await?;
        let organizations = declared.iter().filter(|d| !d.is_purged).count();
        let Findings { faults, advice, .. } = findings;
        Ok(Examination { servers: servers.len(), organizations, faults, advice })
    }

    async fn declared(&self) -> Result<Vec<Declared>, ControlError> {
        let rows = self
            .master
            .query(
                "select o.id, o.slug, o.status, o.server_id, o.database_name, o.role_name, o.placement,
                     o.purged_at is not null as is_purged,
                     array(select f.module from organization_features f
                           where f.organization_id = o.id and f.enabled order by f.module) as modules,
                     exists (select from organization_keys k where k.organization_id = o.id) as has_key,
                     exists (select from operations p where p.organization_id = o.id and p.state = 'running'
                                       and p.kind <> all($1)) as is_busy
                 from organizations o order by o.slug, o.created_at",
                &[&Kind::in_nobodys_way()],
            )
            .await
            .during("reading what the master declares")?;
        let ids: Vec<Uuid> = rows.iter().map(|r| r.get("id")).collect();
        let mut own = self.own_migrations_of(&ids).await?;
        Ok(rows
            .iter()
            .map(|r| Declared {
                own: own.remove(&r.get("id")).unwrap_or_default(),
                id: TenantId::from_uuid(r.get("id")),
                slug: r.get("slug"),
                status: r.get("status"),
                server: r.get("server_id"),
                database: r.get("database_name"),
                role: r.get("role_name"),
                placement: r.get("placement"),
                modules: r.get("modules"),
                has_key: r.get("has_key"),
                is_purged: r.get("is_purged"),
                is_busy: r.get("is_busy"),
            })
            .collect())
    }

    /// What was left unfinished by a runner that is gone.
    async fn examine_operations(&mut self, findings: &mut Findings) -> Result<(), ControlError> {
        for left in self.operations(None, true, 10_000).await? {
            if !left.abandoned {
                continue;
            }
            let subject = left.slug.clone().unwrap_or_else(|| left.subject.clone());
            let step = left.step.as_deref().unwrap_or("its beginning");
            let what = format!("{} {} was left behind at {step}", left.kind, left.id);
            let resume = async { self.resume_operation(left.id).await.map(drop) };
            findings.mend("operation_left_behind", &subject, what, resume).await;
        }
        Ok(())
    }

    async fn examine_databases(
        &self,
        admin: &tokio_postgres::Client,
        access: &Access,
        here: &[&Declared],
        references: &mut References,
        findings: &mut Findings,
    ) -> Result<(), ControlError> {
        for declared in here.iter().filter(|d| d.is_served()) {
            references.ensure(admin, access, &declared.modules).await?;
        }
        let references = &*references;
        let fix = findings.fix;
        let mut looked = stream::iter(here.iter().filter(|d| d.is_served()))
            .map(|declared| async move {
                let mut own = Findings::new(fix);
                databases::examine(access, declared, references, &mut own).await;
                own
            })
            .buffer_unordered(AT_ONCE);
        while let Some(own) = looked.next().await {
            findings.faults.extend(own.faults);
            findings.advice.extend(own.advice);
        }
        Ok(())
    }

    /// What the master itself says.
    async fn examine_records(
        &self,
        declared: &[Declared],
        findings: &mut Findings,
    ) -> Result<(), ControlError> {
        for organization in declared.iter().filter(|d| !d.is_purged) {
            let slug = &organization.slug;
            if !organization.has_key {
                let make = data_keys::ensure(&self.settings.master_key, &self.master, organization.id);
                findings.mend("key_missing", slug, "it has no key for sensitive fields", make).await;
            }
            if organization.status == "provisioning" && !organization.is_busy {
                findings.found(
                    "half_made",
                    slug,
                    "it is being provisioned, and nobody is at it: run the command again",
                );
            }
        }
        let what = "reading the master's records";
        let bad = self
            .master
            .query(
                "select distinct on (b.organization_id) o.slug, b.id, b.verification from backups b
                 join organizations o on o.id = b.organization_id
                 where b.state = 'done' and o.purged_at is null
                 order by b.organization_id, b.created_at desc",
                &[],
            )
            .await
            .during(what)?;
        for row in &bad {
            if let Some(why) = row.get::<_, Option<String>>("verification") {
                let id: Uuid = row.get("id");
                findings.found(
                    "backup_bad",
                    row.get("slug"),
                    format!("its newest backup {id} is not well: {why}"),
                );
            }
        }
        let late = self
            .master
            .query(
                "select d.hostname, c.not_after from organization_domains d
                 join lateral (select not_after from certificates c where c.domain_id = d.id
                               order by created_at desc limit 1) c on true
                 where d.status = 'active' and c.not_after < now() + interval '7 days' limit 10000",
                &[],
            )
            .await
            .during(what)?;
        for row in &late {
            let until: time::OffsetDateTime = row.get(1);
            findings.found("certificate_late", row.get(0), format!("its certificate ends {until}"));
        }
        Ok(())
    }
}
