//! Databases and roles of a server beside those that the master declares.

use std::collections::{HashMap, HashSet};

use gmah_shared::pg::quote_identifier;
use gmah_shared::tenant::TenantId;
use tokio_postgres::Client;

use super::{Declared, Findings};
use crate::control::operations::Subject;
use crate::control::remove::{drop_database, drop_role, mark};
use crate::control::servers::Access;
use crate::control::{Control, ControlError, During as _, fence, provision};

/// A database as the server has it.
struct Database {
    name: String,
    is_open: bool,
    is_invalid: bool,
    is_public: bool,
    owner: String,
    owner_mark: Option<String>,
}

/// A role as the server has it.
struct Role {
    name: String,
    mark: Option<String>,
    can_login: bool,
    is_member: bool,
    is_too_mighty: bool,
    is_expired: bool,
}

impl Control {
    pub(super) async fn examine_server(
        &self,
        admin: &Client,
        access: &Access,
        here: &[&Declared],
        all: &[Declared],
        findings: &mut Findings,
    ) -> Result<(), ControlError> {
        let databases = databases(admin).await?;
        let roles = roles(admin).await?;
        let kept = self.kept_databases().await?;
        let by_name: HashMap<&str, &Database> = databases.iter().map(|d| (d.name.as_str(), d)).collect();
        let role_by_name: HashMap<&str, &Role> = roles.iter().map(|r| (r.name.as_str(), r)).collect();
        for declared in here.iter().filter(|d| d.is_served()) {
            let database = by_name.get(declared.database.as_str()).copied();
            let role = role_by_name.get(declared.role.as_str());
            // First: a database is given to it.
            let is_well = self.examine_role(admin, declared, role, findings).await;
            examine_database(admin, access, declared, database, findings).await;
            // Where something is wrong with the database, that is why it is not entered.
            let may_enter = |d: &Database| d.is_open && !d.is_invalid && d.owner == declared.role;
            if is_well && database.is_some_and(may_enter) {
                self.examine_entry(admin, access, declared, findings).await;
            }
        }
        let destroyed: HashMap<String, TenantId> =
            all.iter().filter(|d| d.is_purged).map(|d| (mark(d.id), d.id)).collect();
        let expected: HashSet<&str> = here
            .iter()
            .filter(|d| !d.is_purged)
            .map(|d| d.database.as_str())
            .chain(kept.iter().map(String::as_str))
            .collect();
        let busy: HashSet<String> = all.iter().filter(|d| d.is_busy).map(|d| mark(d.id)).collect();
        for database in &databases {
            let name = database.name.as_str();
            let of = database.owner_mark.clone().unwrap_or_default();
            if expected.contains(name) || busy.contains(&of) {
                continue;
            }
            if self.is_tried(name).await? {
                continue;
            }
            let quoted = quote_identifier(name);
            let is_used = async {
                let row = admin
                    .query_one("select exists (select from pg_stat_activity where datname = $1)", &[&name])
                    .await;
                row.during("looking for sessions").map(|r| r.get::<_, bool>(0))
            };
            // Somebody is looking at it this moment.
            if name.starts_with("gmah_doctor_") && is_used.await? {
                continue;
            }
            if name.ends_with("_half") || name.starts_with("gmah_verify_") || name.starts_with("gmah_doctor_")
            {
                let drop = async {
                    admin
                        .batch_execute(&format!("drop database if exists {quoted} with (force)"))
                        .await
                        .during("dropping what was left half-made")
                };
                findings.mend("database_left_over", name, "it was left half-made", drop).await;
            } else if let Some(id) = destroyed.get(&of) {
                let drop = async {
                    fence::clear(access, admin, name).await?;
                    drop_database(admin, name, *id).await.map(drop)
                };
                findings.mend("database_orphaned", name, "its organisation is destroyed", drop).await;
            } else if name.starts_with("gmah_org_") || name.starts_with("gmah_deleted_") {
                findings.found(
                    "database_unknown",
                    name,
                    "the master knows nothing of it: look at it by hand",
                );
            }
        }
        for role in &roles {
            let of = role.mark.clone().unwrap_or_default();
            if role.is_expired {
                let name = quote_identifier(&role.name);
                let drop = async {
                    admin
                        .batch_execute(&format!("drop role if exists {name}"))
                        .await
                        .during("dropping the role")
                };
                findings
                    .mend("role_left_over", &role.name, "the command that it was made for is over", drop)
                    .await;
            } else if let Some(id) = destroyed.get(&of) {
                let drop = async { drop_role(admin, &role.name, *id).await.map(drop) };
                findings.mend("role_orphaned", &role.name, "its organisation is destroyed", drop).await;
            }
        }
        Ok(())
    }

    /// Looks at what the server knows of a role. Answers whether it is as it should be.
    async fn examine_role(
        &self,
        admin: &Client,
        declared: &Declared,
        role: Option<&&Role>,
        findings: &mut Findings,
    ) -> bool {
        let (kind, what) = match role {
            None => ("role_missing", "its role is missing"),
            Some(role) if role.mark.as_deref() != Some(&mark(declared.id)) => {
                findings.found(
                    "role_foreign",
                    &declared.slug,
                    format!("the role {} is not its own", role.name),
                );
                return false;
            }
            Some(role) if role.is_too_mighty => {
                ("role_too_mighty", "its role may more than enter its database")
            }
            Some(role) if !role.can_login => ("role_shut_out", "its role cannot log in"),
            Some(role) if !role.is_member => ("role_shut_out", "its role may not use its tables"),
            Some(_) => return true,
        };
        let mend = async {
            self.ensure_role_held(admin, declared).await?;
            if kind == "role_too_mighty" {
                provision::only_in_the_group(admin, &declared.role).await?;
            }
            Ok(())
        };
        findings.mend(kind, &declared.slug, what, mend).await;
        false
    }

    /// Enters its database as an organisation does.
    async fn examine_entry(
        &self,
        admin: &Client,
        access: &Access,
        declared: &Declared,
        findings: &mut Findings,
    ) {
        let enters = async {
            let reserved = self.reserved_of(declared.id).await?;
            provision::enters(access, &reserved).await
        };
        match enters.await {
            Ok(true) => {}
            Ok(false) => {
                let mend = self.ensure_role_held(admin, declared);
                findings.mend("role_shut_out", &declared.slug, "its role has another password", mend).await;
            }
            Err(e) => findings.found("role_unknown", &declared.slug, e.to_string()),
        }
    }

    /// Not while something else is done to the organisation, which may have shut its role out, or be changing its password.
    async fn ensure_role_held(&self, admin: &Client, declared: &Declared) -> Result<(), ControlError> {
        let subject = Subject::Organization(declared.id);
        if !self.try_hold(&subject).await? {
            return Err(ControlError::Refused("another command is at work on it".into()));
        }
        let ensured = async {
            // Of what was read at the beginning much may have changed.
            let now = self.declared().await?.into_iter().find(|d| d.id == declared.id);
            if !now.is_some_and(|d| d.is_served()) {
                return Err(ControlError::Refused("it is not served any more".into()));
            }
            provision::ensure_role(admin, &self.reserved_of(declared.id).await?).await
        };
        let ensured = ensured.await;
        self.release(&subject).await;
        ensured
    }

    /// Databases that restores replaced.
    async fn kept_databases(&self) -> Result<Vec<String>, ControlError> {
        let rows = self
            .master
            .query("select database_name from organization_placements", &[])
            .await
            .during("reading kept databases")?;
        Ok(rows.iter().map(|r| r.get(0)).collect())
    }
}

async fn examine_database(
    admin: &Client,
    access: &Access,
    declared: &Declared,
    database: Option<&Database>,
    findings: &mut Findings,
) {
    let slug = &declared.slug;
    let Some(database) = database else {
        let what = format!("its database {} is missing: gmah tenant restore", declared.database);
        findings.found("database_missing", slug, what);
        return;
    };
    if database.is_invalid {
        let what = format!(
            "its database {} is invalid (PostgreSQL, DROP DATABASE): gmah tenant restore",
            declared.database
        );
        findings.found("database_invalid", slug, what);
        return;
    }
    let quoted = quote_identifier(&declared.database);
    if database.owner != declared.role {
        let owner = quote_identifier(&declared.role);
        let mend = async {
            admin
                .batch_execute(&format!("alter database {quoted} owner to {owner}"))
                .await
                .during("giving the database to its role")
        };
        findings
            .mend("database_owner", slug, format!("its database belongs to {}", database.owner), mend)
            .await;
    }
    if database.is_public {
        let mend = async {
            admin
                .batch_execute(&format!("revoke all on database {quoted} from public"))
                .await
                .during("closing the database to others")
        };
        findings.mend("database_public", slug, "every role of the server may enter its database", mend).await;
    }
    if !database.is_open {
        let open = fence::open(access, admin, &declared.database, declared.id, declared.placement);
        findings.mend("database_shut", slug, "nobody may enter its database", open).await;
    }
}

async fn databases(admin: &Client) -> Result<Vec<Database>, ControlError> {
    let rows = admin
        .query(
            "select d.datname, d.datallowconn, d.datconnlimit = -2 as is_invalid, r.rolname as owner,
                 shobj_description(d.datdba, 'pg_authid') as mark,
                 -- Without a list, everybody may connect.
                 d.datacl is null or exists (select from aclexplode(d.datacl) a where a.grantee = 0) as is_public
             from pg_database d join pg_roles r on r.oid = d.datdba
             where d.datname ~ '^gmah_' and d.datname !~ '^gmah_(template_[0-9a-f]+|master)$'",
            &[],
        )
        .await
        .during("listing databases")?;
    Ok(rows
        .iter()
        .map(|r| Database {
            name: r.get("datname"),
            is_open: r.get("datallowconn"),
            is_invalid: r.get("is_invalid"),
            is_public: r.get("is_public"),
            owner: r.get("owner"),
            owner_mark: r.get("mark"),
        })
        .collect())
}

async fn roles(admin: &Client) -> Result<Vec<Role>, ControlError> {
    let rows = admin
        .query(
            "select rolname, shobj_description(oid, 'pg_authid') as mark,
                 rolcanlogin and rolconnlimit <> 0 and (rolvaliduntil is null or rolvaliduntil > now()) as can_login,
                 -- What is granted to the group is granted to it.
                 coalesce(pg_has_role(r.oid, (select g.oid from pg_roles g where g.rolname = 'gmah_tenant'), 'usage'), false)
                     as is_member,
                 rolsuper or rolcreatedb or rolcreaterole or rolreplication or rolbypassrls
                     or exists (select from pg_auth_members m join pg_roles g on g.oid = m.roleid
                                where m.member = r.oid and g.rolname <> 'gmah_tenant') as is_too_mighty,
                 rolname ~ '^gmah_reader_[0-9a-f]{32}$' and rolvaliduntil < now() as is_expired
             from pg_roles r where rolname ~ '^gmah_(org|reader)_'",
            &[],
        )
        .await
        .during("listing roles")?;
    Ok(rows
        .iter()
        .map(|r| Role {
            name: r.get("rolname"),
            mark: r.get("mark"),
            can_login: r.get("can_login"),
            is_member: r.get("is_member"),
            is_too_mighty: r.get("is_too_mighty"),
            is_expired: r.get("is_expired"),
        })
        .collect())
}
