//! What one organisation has of its own: an index, a table of an integration. Files like the modules', kept in the master, and
//! run after those as the set [`OWN`].

use std::collections::HashMap;

use gmah_shared::migrate::{Migration, OWN};
use gmah_shared::tenant::{TenantId, TenantSlug};
use serde::Serialize;
use time::OffsetDateTime;
use tokio_postgres::{Client, Row};
use uuid::Uuid;

use super::operations::Subject;
use super::tenants::Summary;
use super::{Control, ControlError, During as _};

/// A file.
#[derive(Debug, Clone, Serialize)]
pub struct OwnFile {
    /// Number, from 1, without gaps.
    pub version: i32,
    /// What it does.
    pub name: String,
    /// The statements.
    pub sql: String,
    /// Who brought it.
    pub created_by: String,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

/// Longest file.
const LONGEST: usize = 1 << 20;
/// Organisations' files that are read at once.
const MOST: i64 = 100_000;

/// As the runner takes them.
pub(crate) fn files(own: &[OwnFile]) -> Vec<Migration<'_>> {
    own.iter().map(|f| Migration { version: f.version, name: &f.name, sql: &f.sql }).collect()
}

impl Control {
    /// Adds a file to those of an organisation; it runs with the next `gmah tenant migrate`.
    ///
    /// # Errors
    /// [`ControlError::Usage`] for a name that is none, [`ControlError::Refused`] when another number is next.
    pub async fn add_own_migration(
        &self,
        slug: &TenantSlug,
        file_name: &str,
        sql: &str,
    ) -> Result<OwnFile, ControlError> {
        let (version, name) = parse(file_name)?;
        if sql.trim().is_empty() || sql.len() > LONGEST || sql.contains('\0') {
            return Err(ControlError::Usage(format!("{file_name}: has from 1 to {LONGEST} bytes of SQL")));
        }
        let tenant = self.tenant(slug).await?;
        let row = self
            .master
            .query_opt(
                "with next as (
                     select coalesce(max(version), 0) + 1 as version from organization_migrations where organization_id = $1),
                 added as (
                     insert into organization_migrations (organization_id, version, name, sql, created_by)
                     select $1, $2, $3, $4, $5 from next where version = $2
                     on conflict do nothing
                     returning version, name, sql, created_by, created_at, organization_id),
                 logged as (
                     insert into audit_log (actor, action, organization_id, detail)
                     select $5, 'tenant.migration_add', organization_id,
                         jsonb_build_object('version', version, 'name', name) from added)
                 select version, name, sql, created_by, created_at from added",
                &[&tenant.id.as_uuid(), &version, &name, &sql, &self.actor],
            )
            .await
            .during("adding the file")?;
        match row {
            Some(row) => Ok(file(&row)),
            None => {
                let next = self.own_migrations(tenant.id).await?.last().map_or(1, |f| f.version + 1);
                Err(ControlError::Refused(format!(
                    "{slug}: the next file is {next:04}, and never another of one that there is"
                )))
            }
        }
    }

    /// Takes the newest file back that has not run.
    ///
    /// # Errors
    /// [`ControlError::Refused`] when there is none, or it has.
    pub async fn remove_own_migration(&self, slug: &TenantSlug) -> Result<OwnFile, ControlError> {
        let tenant = self.tenant(slug).await?;
        // Nobody runs it meanwhile.
        let subject = Subject::Fleet("migrate".into());
        if !self.try_hold(&subject).await? {
            return Err(ControlError::Refused("a run over organisations is under way".into()));
        }
        let removed = self.remove_newest(slug, &tenant).await;
        self.release(&subject).await;
        removed
    }

    async fn remove_newest(&self, slug: &TenantSlug, tenant: &Summary) -> Result<OwnFile, ControlError> {
        let newest = self.own_migrations(tenant.id).await?.pop();
        let newest = newest.ok_or_else(|| ControlError::Refused(format!("{slug} has no file of its own")))?;
        let db = self.access(tenant.server_id).await?.connect(&tenant.database).await?;
        let ran = db
            .query_opt(
                "select 1 from public.schema_migrations where set_name = $1 and version >= $2",
                &[&OWN, &newest.version],
            )
            .await
            .during("looking whether it has run")?;
        if ran.is_some() {
            let why =
                format!("{slug}: {:04}_{} has run: another file takes it back", newest.version, newest.name);
            return Err(ControlError::Refused(why));
        }
        self.master
            .execute(
                "with removed as (
                     delete from organization_migrations where organization_id = $1 and version = $2
                     returning organization_id, version, name)
                 insert into audit_log (actor, action, organization_id, detail)
                 select $3, 'tenant.migration_remove', organization_id,
                     jsonb_build_object('version', version, 'name', name) from removed",
                &[&tenant.id.as_uuid(), &newest.version, &self.actor],
            )
            .await
            .during("removing the file")?;
        Ok(newest)
    }

    /// Those of an organisation, in order.
    ///
    /// # Errors
    /// [`ControlError`] when the master is away.
    pub async fn own_migrations(&self, id: TenantId) -> Result<Vec<OwnFile>, ControlError> {
        Ok(self.own_migrations_of(&[id.as_uuid()]).await?.remove(&id.as_uuid()).unwrap_or_default())
    }

    /// A copy has the files that have run where it comes from.
    pub(crate) async fn copy_own_migrations(
        &self,
        db: &Client,
        from: TenantId,
        to: TenantId,
    ) -> Result<(), ControlError> {
        let what = "copying the organisation's own files";
        let ran: i32 = db
            .query_one("select coalesce(max(version), 0) from schema_migrations where set_name = $1", &[&OWN])
            .await
            .during(what)?
            .get(0);
        self.master
            .execute(
                "insert into organization_migrations (organization_id, version, name, sql, created_by)
                 select $2, version, name, sql, created_by from organization_migrations
                 where organization_id = $1 and version <= $3
                 on conflict do nothing",
                &[&from.as_uuid(), &to.as_uuid(), &ran],
            )
            .await
            .during(what)?;
        Ok(())
    }

    /// Those of several, in order: one question for all.
    pub(crate) async fn own_migrations_of(
        &self,
        ids: &[Uuid],
    ) -> Result<HashMap<Uuid, Vec<OwnFile>>, ControlError> {
        let rows = self
            .master
            .query(
                "select organization_id, version, name, sql, created_by, created_at from organization_migrations
                 where organization_id = any($1) order by organization_id, version limit $2",
                &[&ids, &MOST],
            )
            .await
            .during("reading organisations' own files")?;
        let mut all: HashMap<Uuid, Vec<OwnFile>> = HashMap::new();
        for row in &rows {
            all.entry(row.get("organization_id")).or_default().push(file(row));
        }
        Ok(all)
    }
}

fn file(row: &Row) -> OwnFile {
    OwnFile {
        version: row.get("version"),
        name: row.get("name"),
        sql: row.get("sql"),
        created_by: row.get("created_by"),
        created_at: row.get("created_at"),
    }
}

/// `0001_what_it_does.sql`
fn parse(file_name: &str) -> Result<(i32, &str), ControlError> {
    let none = || ControlError::Usage(format!("{file_name:?}: a file is called 0001_what_it_does.sql"));
    let (number, name) = file_name.strip_suffix(".sql").and_then(|s| s.split_once('_')).ok_or_else(none)?;
    let is_name = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    let is_number = number.len() == 4 && number.bytes().all(|b| b.is_ascii_digit());
    if !is_number || !(1..=60).contains(&name.len()) || !name.bytes().all(is_name) {
        return Err(none());
    }
    match number.parse() {
        Ok(version @ 1..=9999) => Ok((version, name)),
        _ => Err(none()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files() {
        assert_eq!(parse("0012_index_of_phones.sql").expect("a name"), (12, "index_of_phones"));
        let long = format!("0001_{}.sql", "a".repeat(61));
        for bad in [
            "",
            "1_a.sql",
            "0000_a.sql",
            "0001_.sql",
            "0001_A.sql",
            "0001-a.sql",
            "0001_a",
            "+001_a.sql",
            "0001_é.sql",
            &long,
        ] {
            assert!(matches!(parse(bad), Err(ControlError::Usage(_))), "{bad}");
        }
    }
}
