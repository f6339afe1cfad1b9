//! Migrating organisations' databases, one or all: each by itself, so that one that cannot be is named and harms no other.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use gmah_shared::migrate::{self, Applied, MigrationSet, OWN, Options};
use gmah_shared::tenant::TenantStatus;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::fleet::{self, Fleet};
use super::operations::{Again, Ask, Kind, Operation, Subject};
use super::own_migrations::{self, OwnFile};
use super::servers::Access;
use super::tenants::Summary;
use super::{Control, ControlError, During as _, data_keys};
use crate::modules;

/// What was done to one organisation.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Migrated {
    /// Files that ran, or in a dry run would have.
    pub applied: Vec<Applied>,
}

/// What came of one organisation.
pub type Outcome = fleet::Outcome<Migrated>;

/// A run that came to its end.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Operation, unless it was a dry run.
    pub operation: Option<Uuid>,
    /// Each organisation, by slug.
    pub tenants: Vec<Outcome>,
    /// How many are not up to date.
    pub failed: usize,
}

impl Control {
    /// Organisations whose databases are there to be migrated.
    ///
    /// # Errors
    /// [`ControlError`] when the master is away.
    pub async fn migratable(&self) -> Result<Vec<Summary>, ControlError> {
        let mut tenants = self.tenants().await?;
        tenants.retain(|t| t.status != TenantStatus::Provisioning);
        Ok(tenants)
    }

    /// Migrates those organisations as one operation with a manifest. Asked for the same ones again after some failed, or
    /// after it was killed, it goes on with those that are not done. `done` hears of each as it ends.
    ///
    /// # Errors
    /// [`ControlError::Refused`] while another run is under way. What fails of an organisation is in the report.
    pub async fn migrate_fleet(
        &mut self,
        tenants: Vec<Summary>,
        fleet: Fleet,
        done: impl FnMut(&Outcome),
    ) -> Result<Report, ControlError> {
        let slugs: Vec<&str> = tenants.iter().map(|t| t.slug.as_str()).collect();
        // With a file more it is another run: what is done of an earlier one is not done of this.
        let ids: Vec<Uuid> = tenants.iter().map(|t| t.id.as_uuid()).collect();
        let own: usize = self.own_migrations_of(&ids).await?.values().map(Vec::len).sum();
        let mut input = json!({ "tenants": slugs, "schema": modules::fingerprint() });
        if own > 0 {
            input["own"] = own.into();
        }
        self.migrate_as(input, None, tenants, fleet, done).await
    }

    async fn migrate_as(
        &mut self,
        input: Value,
        resume: Option<Uuid>,
        tenants: Vec<Summary>,
        fleet: Fleet,
        done: impl FnMut(&Outcome),
    ) -> Result<Report, ControlError> {
        let ask = Ask {
            kind: Kind::Migrate,
            subject: Subject::Fleet("migrate".into()),
            organization: None,
            about: format!("{} organisations", tenants.len()),
            input,
            again: Again::Yes,
            resume,
        };
        if !self.try_hold(&ask.subject).await? {
            return Err(ControlError::Refused("another run over organisations is under way".into()));
        }
        let subject = ask.subject.clone();
        let mut report = None;
        let ran = self
            .operate(ask, async |control, operation| {
                let made = control.migrate_all(tenants, fleet, operation, done).await?;
                let failed = made.failed;
                report = Some(made);
                if failed > 0 {
                    return Err(ControlError::Refused(format!("{failed} organisations are not up to date")));
                }
                Ok(())
            })
            .await;
        self.release(&subject).await;
        match (report, ran) {
            (Some(report), _) => Ok(report),
            (None, Err(e)) => Err(e),
            (None, Ok(_)) => Err(ControlError::Foreign("a run without a report".into())),
        }
    }

    /// Goes on with a run of the journal.
    pub(crate) async fn migrate_again(
        &mut self,
        input: Value,
        resume: Option<Uuid>,
        fleet: Fleet,
        done: impl FnMut(&Outcome),
    ) -> Result<Report, ControlError> {
        let tenants = self.of_journal(&input).await?;
        self.migrate_as(input, resume, tenants, fleet, done).await
    }

    /// Goes on with the newest run, which did not end well.
    ///
    /// # Errors
    /// [`ControlError::Refused`] when there is none.
    pub async fn resume_migration(
        &mut self,
        fleet: Fleet,
        done: impl FnMut(&Outcome),
    ) -> Result<Report, ControlError> {
        let row = self
            .master
            .query_opt(
                "select id, input, state from operations where subject = 'fleet/migrate'
                 order by created_at desc, id desc limit 1",
                &[],
            )
            .await
            .during("reading the journal")?;
        match row {
            Some(row) if matches!(row.get("state"), "running" | "failed") => {
                self.migrate_again(row.get("input"), Some(row.get("id")), fleet, done).await
            }
            _ => Err(ControlError::Refused("there is no unfinished migration".into())),
        }
    }

    /// Organisations that a run of the journal is about, in its order, but for those that are gone.
    async fn of_journal(&self, input: &Value) -> Result<Vec<Summary>, ControlError> {
        let slugs = input["tenants"].as_array().map(Vec::as_slice).unwrap_or_default();
        let mut known: HashMap<String, Summary> =
            self.migratable().await?.into_iter().map(|t| (t.slug.clone(), t)).collect();
        Ok(slugs.iter().filter_map(|s| known.remove(s.as_str()?)).collect())
    }

    async fn migrate_all(
        &self,
        tenants: Vec<Summary>,
        fleet: Fleet,
        operation: &mut Operation,
        mut done: impl FnMut(&Outcome),
    ) -> Result<Report, ControlError> {
        operation.begin(&self.master, "migrate").await?;
        let known = fleet::manifest(&self.master, operation, &tenants).await?;
        let mut outcomes = Vec::new();
        let mut left = Vec::new();
        let latest: HashMap<String, (Uuid, Value)> =
            tenants.iter().map(|t| (t.slug.clone(), (t.id.as_uuid(), latest(t)))).collect();
        for tenant in tenants {
            match known.get(&tenant.id.as_uuid()).map(|v| serde_json::from_value::<Migrated>(v.clone())) {
                Some(Ok(made)) => {
                    outcomes.push(Outcome {
                        slug: tenant.slug,
                        made: Some(made),
                        error: None,
                        skipped: false,
                    });
                }
                _ => left.push(tenant),
            }
        }
        self.ensure_keys(&left).await?;
        let doors = self.doors(&left).await?;
        let own = self.own_of(&left).await?;
        let items = fleet::Items::of(&self.master, operation).await?;
        let work = |tenant: Summary| {
            let (items, doors, own) = (&items, &doors, &own);
            async move { items.does(tenant.id.as_uuid(), migrate_one(doors, &tenant, own, false)).await }
        };
        outcomes.extend(fleet::over(left, fleet, work, &mut done).await);
        outcomes.sort_by(|a, b| a.slug.cmp(&b.slug));
        let failed = outcomes.iter().filter(|o| !o.is_well()).count();
        let well = outcomes.iter().filter(|o| o.is_well()).filter_map(|o| latest.get(&o.slug));
        self.schema_is_known(well).await?;
        operation.did("migrate", &json!({ "failed": failed }))?;
        Ok(Report { operation: Some(operation.id()), tenants: outcomes, failed })
    }

    /// What a run would do: each database's files in a transaction that is rolled back. Nothing is noted.
    ///
    /// # Errors
    /// [`ControlError`] when the master is away.
    pub async fn dry_run(
        &self,
        tenants: Vec<Summary>,
        fleet: Fleet,
        done: impl FnMut(&Outcome),
    ) -> Result<Report, ControlError> {
        let doors = self.doors(&tenants).await?;
        let own = self.own_of(&tenants).await?;
        let work = |tenant: Summary| {
            let (doors, own) = (&doors, &own);
            async move { migrate_one(doors, &tenant, own, true).await }
        };
        let outcomes = fleet::over(tenants, fleet, work, done).await;
        let failed = outcomes.iter().filter(|o| !o.is_well()).count();
        Ok(Report { operation: None, tenants: outcomes, failed })
    }

    /// So that a listing says it before the collector has come by.
    async fn schema_is_known(
        &self,
        tenants: impl Iterator<Item = &(Uuid, Value)>,
    ) -> Result<(), ControlError> {
        let (ids, schemas): (Vec<Uuid>, Vec<&Value>) = tenants.map(|(id, schema)| (*id, schema)).unzip();
        self.master
            .execute(
                "update organization_figures f set schema = f.schema || n.schema, due_at = now()
                 from unnest($1::uuid[], $2::jsonb[]) as n (id, schema) where f.organization_id = n.id",
                &[&ids, &schemas],
            )
            .await
            .during("noting the schemas")?;
        Ok(())
    }

    /// Keys for those that have none yet: one question for all.
    async fn ensure_keys(&self, tenants: &[Summary]) -> Result<(), ControlError> {
        let ids: Vec<Uuid> = tenants.iter().map(|t| t.id.as_uuid()).collect();
        let without = self
            .master
            .query(
                "select id from unnest($1::uuid[]) as t (id)
                 where not exists (select from organization_keys k where k.organization_id = t.id)",
                &[&ids],
            )
            .await
            .during("looking for keys")?;
        let without: HashSet<Uuid> = without.iter().map(|r| r.get(0)).collect();
        for tenant in tenants.iter().filter(|t| without.contains(&t.id.as_uuid())) {
            data_keys::ensure(&self.settings.master_key, &self.master, tenant.id).await?;
        }
        Ok(())
    }

    async fn own_of(&self, tenants: &[Summary]) -> Result<HashMap<Uuid, Vec<OwnFile>>, ControlError> {
        let ids: Vec<Uuid> = tenants.iter().map(|t| t.id.as_uuid()).collect();
        self.own_migrations_of(&ids).await
    }

    /// How to enter the servers of those organisations.
    pub(crate) async fn doors(&self, tenants: &[Summary]) -> Result<HashMap<Uuid, Access>, ControlError> {
        let mut doors = HashMap::new();
        for tenant in tenants {
            if let Entry::Vacant(door) = doors.entry(tenant.server_id) {
                door.insert(self.access(tenant.server_id).await?);
            }
        }
        Ok(doors)
    }
}

/// What the schema of an organisation is, once everything has run.
fn latest(tenant: &Summary) -> Value {
    let sets = modules::migrations(&tenant.modules).into_iter().map(|set| (set.name, set.latest()));
    let own = (tenant.own_version > 0).then_some((OWN, tenant.own_version));
    sets.chain(own).map(|(name, version)| (name.to_owned(), Value::from(version))).collect()
}

async fn migrate_one(
    doors: &HashMap<Uuid, Access>,
    tenant: &Summary,
    own: &HashMap<Uuid, Vec<OwnFile>>,
    dry_run: bool,
) -> Result<Migrated, ControlError> {
    let door = doors.get(&tenant.server_id);
    let door = door.ok_or_else(|| ControlError::Foreign(format!("{}: no such server", tenant.slug)))?;
    let mut client = door.connect(&tenant.database).await?;
    let files = own_migrations::files(own.get(&tenant.id.as_uuid()).map_or(&[], Vec::as_slice));
    let own = MigrationSet { name: OWN, files: &files };
    let mut sets = modules::migrations(&tenant.modules);
    if !files.is_empty() {
        sets.push(&own);
    }
    let options = Options { dry_run, ..Options::default() };
    let applied = migrate::run(&mut client, &sets, options).await.during(&tenant.slug)?;
    Ok(Migrated { applied })
}
