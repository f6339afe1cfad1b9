//! Reading the shared database, all of it as of one moment.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions, Permissions};
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use futures::StreamExt as _;
use gmah_shared::pg;
use ring::digest;
use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, IsolationLevel, Transaction};
use uuid::Uuid;

use super::compare::Fingerprint;
use super::plan::Plan;
use super::shape::{Reading, Shape, readings};
use super::{Part, Parts};
use crate::control::backup::hex;
use crate::control::portable::{ExportManifest, Table, disk, sealed_of};
use crate::control::provision::check_name;
use crate::control::{Control, ControlError, During as _, features, parse_email, parse_slug, template};
use crate::modules;

/// Most organisations in one shared database.
const MOST: i64 = 100_000;

impl Control {
    /// Reads everybody's rows; into `work` unless they are only looked at.
    pub(super) async fn read_shared(&self, plan: &Plan, work: Option<&Path>) -> Result<Parts, ControlError> {
        features::known(&plan.modules)?;
        features::complete("modules", plan.modules.iter().map(String::as_str).collect())?;
        self.check_plan(&plan.plan).await?;
        let target = self.shape_of(&plan.modules).await?;
        let what = "the shared database";
        let mut source = pg::connect(&plan.source, "gmah split").await.during(what)?;
        let shape = Shape::of(&source).await?;
        let tx = moment(&mut source).await?;
        let read_at: OffsetDateTime = tx.query_one("select now()", &[]).await.during(what)?.get(0);
        let readings = readings(&tx, plan, &shape, &target).await?;
        let mut organizations = self.organizations_of(&tx, plan).await?;
        if let Some(work) = work {
            begin(work)?;
        }
        let mut totals: BTreeMap<&str, u64> = BTreeMap::new();
        for part in &mut organizations {
            let to = work.map(|w| w.join(part.slug.as_str()));
            let tables = read_part(&tx, part, &readings, to.as_deref()).await?;
            for reading in &readings {
                *totals.entry(&reading.table).or_default() += part.rows[&reading.table];
            }
            if let Some(to) = to {
                let manifest = manifest(part, read_at, tables);
                write_json(&to.join("manifest.json"), &manifest)?;
            }
        }
        nobodys(&tx, &readings, &totals).await?;
        tx.rollback().await.during(what)?;
        let parts = Parts { read_at, plan: plan.digest.clone(), organizations };
        if let Some(work) = work {
            write_json(&work.join("split.json"), &parts)?;
        }
        Ok(parts)
    }

    /// What an organisation with those modules is made of, seen in a database that is made for it and dropped.
    async fn shape_of(&self, modules: &[String]) -> Result<Shape, ControlError> {
        let access = self.access(self.place(None).await?).await?;
        let admin = access.connect("postgres").await?;
        let look = async |db: Client| Shape::of(&db).await;
        template::in_scratch(&access, &admin, &modules::migrations(modules), look).await
    }

    /// Who is in it, each of whom can become an organisation here.
    async fn organizations_of(&self, tx: &Transaction<'_>, plan: &Plan) -> Result<Vec<Part>, ControlError> {
        let what = "organizations.sql";
        let sql = format!(
            "select q.key::text, q.slug::text, q.name::text, q.admin_email::text from ({}) q
             order by 2 limit {}",
            plan.organizations,
            MOST + 1
        );
        let rows = tx.query(sql.as_str(), &[]).await.during(what)?;
        if rows.len() as i64 > MOST {
            return Err(ControlError::Refused(format!("more than {MOST} organisations")));
        }
        let (mut parts, mut faults) = (Vec::new(), Vec::new());
        let (mut keys, mut slugs) = (BTreeSet::new(), BTreeSet::new());
        for row in &rows {
            let given: [Option<String>; 4] = [row.get(0), row.get(1), row.get(2), row.get(3)];
            let [Some(key), Some(slug), Some(name), Some(email)] = given else {
                faults.push("an organisation has no key, slug, name or admin_email".to_owned());
                continue;
            };
            let checked = async {
                let slug = parse_slug(&slug)?;
                let admin_email = parse_email(&email)?;
                check_name(&name)?;
                match self.taken(&slug).await? {
                    Some(taken) => Err(taken),
                    None => Ok((slug, admin_email)),
                }
            };
            let (slug, admin_email) = match checked.await {
                Ok(checked) => checked,
                Err(e) => {
                    faults.push(format!("{key}: {e}"));
                    continue;
                }
            };
            if !keys.insert(key.clone()) || !slugs.insert(slug.clone()) {
                faults.push(format!("{key}: its key or its slug {slug} is there twice"));
                continue;
            }
            parts.push(Part {
                key,
                slug,
                name,
                admin_email,
                plan: plan.plan.clone(),
                modules: plan.modules.clone(),
                rows: BTreeMap::new(),
                fingerprints: BTreeMap::new(),
            });
        }
        if rows.is_empty() {
            faults.push("organizations.sql finds nobody".to_owned());
        }
        if faults.is_empty() { Ok(parts) } else { Err(ControlError::Refused(faults.join("\n"))) }
    }
}

/// A transaction that sees one moment, and can change nothing. Rows that a policy hides would be lost without a word: it fails instead
/// (`row_security`, PostgreSQL, chapter 20.11).
async fn moment(source: &mut Client) -> Result<Transaction<'_>, ControlError> {
    let what = "the shared database";
    let tx = source
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .read_only(true)
        .start()
        .await
        .during(what)?;
    tx.batch_execute(
        "set local timezone = 'UTC'; set local statement_timeout = '1h'; set local search_path = public;
         set local row_security = off",
    )
    .await
    .during(what)?;
    Ok(tx)
}

/// Rows of tables that no organisation has: they would be lost.
async fn nobodys(
    tx: &Transaction<'_>,
    readings: &[Reading],
    totals: &BTreeMap<&str, u64>,
) -> Result<(), ControlError> {
    let mut faults = Vec::new();
    for (table, count) in readings.iter().filter_map(|r| r.count.as_deref().map(|c| (r.table.as_str(), c))) {
        let all: i64 = tx.query_one(count, &[]).await.during(table)?.get(0);
        let read = totals.get(table).copied().unwrap_or_default();
        if all.unsigned_abs() != read {
            faults.push(format!(
                "{table}: {all} rows, of which the organisations have {read}: give tables.{table}.sql, which says which stay behind"
            ));
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(ControlError::Refused(faults.join("\n"))) }
}

async fn read_part(
    tx: &Transaction<'_>,
    part: &mut Part,
    readings: &[Reading],
    to: Option<&Path>,
) -> Result<BTreeMap<String, Table>, ControlError> {
    let mut tables = BTreeMap::new();
    if let Some(to) = to {
        folder(to)?;
        folder(&to.join("tables"))?;
    }
    for reading in readings {
        let what = format!("{}: reading {}", part.slug, reading.table);
        let path = to.map(|to| to.join("tables").join(format!("{}.jsonl", reading.table)));
        let mut out = path.as_deref().map(create).transpose()?;
        let key: &(dyn ToSql + Sync) = &part.key;
        let rows = tx.query_raw(&reading.statement, [key]).await.during(&what)?;
        let mut rows = std::pin::pin!(rows);
        let mut fingerprint = Fingerprint::of(&reading.columns);
        let (mut hash, mut count) = (digest::Context::new(&digest::SHA256), 0);
        while let Some(row) = rows.next().await {
            let row: Value = row.during(&what)?.get(0);
            count += 1;
            fingerprint.add(&reading.table, &part.admin_email, &row);
            let line = format!("{row}\n");
            hash.update(line.as_bytes());
            if let (Some(out), Some(path)) = (&mut out, &path) {
                out.write_all(line.as_bytes()).map_err(|e| disk(path, &e))?;
            }
        }
        if let (Some(out), Some(path)) = (out, &path) {
            let file = out.into_inner().map_err(|e| disk(path, e.error()))?;
            file.sync_all().map_err(|e| disk(path, &e))?;
        }
        let table = Table {
            rows: count,
            columns: reading.columns.clone(),
            sealed: sealed_of(&reading.table).iter().map(|s| s.column.to_owned()).collect(),
            sha256: hex(hash.finish().as_ref()),
        };
        part.rows.insert(reading.table.clone(), count);
        part.fingerprints.insert(reading.table.clone(), fingerprint);
        tables.insert(reading.table.clone(), table);
    }
    Ok(tables)
}

fn manifest(part: &Part, read_at: OffsetDateTime, tables: BTreeMap<String, Table>) -> ExportManifest {
    let sets = modules::migrations(&part.modules);
    ExportManifest {
        format: 1,
        organization: Uuid::nil(),
        slug: part.slug.to_string(),
        name: part.name.clone(),
        plan: part.plan.clone(),
        modules: part.modules.clone(),
        exported_at: read_at,
        schema: sets.iter().map(|s| (s.name.to_owned(), s.latest())).collect(),
        tables,
        files: Vec::new(),
    }
}

fn folder(path: &Path) -> Result<(), ControlError> {
    fs::create_dir_all(path).map_err(|e| disk(path, &e))?;
    fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(|e| disk(path, &e))
}

/// Says that a folder is one of ours, and may be cleared.
const MARK: &str = ".gmah-split";

/// An empty folder, with its mark. What a killed run had read is cleared away; somebody else's folder is not.
fn begin(work: &Path) -> Result<(), ControlError> {
    folder(work)?;
    let entries = |work: &Path| -> Result<Vec<_>, ControlError> {
        let inside = fs::read_dir(work).map_err(|e| disk(work, &e))?;
        inside.map(|entry| entry.map(|e| e.path()).map_err(|e| disk(work, &e))).collect()
    };
    let (mark, found) = (work.join(MARK), entries(work)?);
    if !mark.exists() {
        if !found.is_empty() {
            return Err(ControlError::Refused(format!("{} has something else in it", work.display())));
        }
        create(&mark)?;
    }
    for path in found.iter().filter(|p| **p != mark) {
        let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        removed.map_err(|e| disk(path, &e))?;
    }
    Ok(())
}

fn create(path: &Path) -> Result<BufWriter<fs::File>, ControlError> {
    let made = OpenOptions::new().create_new(true).write(true).mode(0o600).open(path);
    made.map(BufWriter::new).map_err(|e| disk(path, &e))
}

/// Whole or not there: written under another name first.
pub(super) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), ControlError> {
    let half = path.with_extension("partial");
    let text = serde_json::to_vec_pretty(value)
        .map_err(|e| ControlError::Foreign(format!("{}: {e}", path.display())))?;
    match fs::remove_file(&half) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(disk(&half, &e)),
        _ => {}
    }
    let mut out = create(&half)?;
    out.write_all(&text).map_err(|e| disk(&half, &e))?;
    let file = out.into_inner().map_err(|e| disk(&half, e.error()))?;
    file.sync_all().map_err(|e| disk(&half, &e))?;
    fs::rename(&half, path).map_err(|e| disk(path, &e))
}
