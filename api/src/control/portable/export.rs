//! Writing an export.

use std::collections::BTreeMap;
use std::fs::{self, File as Handle, OpenOptions, Permissions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use futures::StreamExt as _;
use gmah_shared::pg::quote_identifier;
use gmah_shared::secret::data::{DataKeys, Place};
use gmah_shared::tenant::{TenantId, TenantSlug};
use ring::digest;
use serde_json::{Map, Value};
use tokio_postgres::{IsolationLevel, Transaction};
use uuid::Uuid;

use super::{ExportManifest, File, OMITTED_COLUMNS, OMITTED_TABLES, Table};
use crate::control::backup::hex;
use crate::control::{Control, ControlError, During as _};
use crate::modules::{self, Sealed};

const README: &str = include_str!("README.txt");

impl Control {
    /// Writes everything that an organisation has into a folder that is not there yet.
    ///
    /// # Errors
    /// [`ControlError`]; then there is no folder of that name.
    pub async fn export(&self, slug: &TenantSlug, to: &Path) -> Result<ExportManifest, ControlError> {
        let tenant = self.tenant(slug).await?;
        if to.exists() && fs::read_dir(to).is_ok_and(|mut inside| inside.next().is_some()) {
            return Err(ControlError::Refused(format!("{} has something in it", to.display())));
        }
        // Under another name until it is whole.
        let half = to.with_extension("partial");
        remove(&half)?;
        let written = self.export_into(&tenant.slug, tenant.id, &half).await;
        let manifest = match written {
            Ok(manifest) => manifest,
            Err(e) => {
                remove(&half)?;
                return Err(e);
            }
        };
        if to.exists() {
            fs::remove_dir(to).map_err(|e| disk(to, &e))?;
        }
        fs::rename(&half, to).map_err(|e| disk(to, &e))?;
        self.master
            .execute(
                "insert into audit_log (actor, action, organization_id) values ($1, 'tenant.export', $2)",
                &[&self.actor, &tenant.id.as_uuid()],
            )
            .await
            .during("writing the audit")?;
        Ok(manifest)
    }

    async fn export_into(&self, slug: &str, id: TenantId, to: &Path) -> Result<ExportManifest, ControlError> {
        for folder in [to.to_owned(), to.join("tables"), to.join("files")] {
            fs::create_dir_all(&folder).map_err(|e| disk(&folder, &e))?;
            fs::set_permissions(&folder, Permissions::from_mode(0o700)).map_err(|e| disk(&folder, &e))?;
        }
        let tenant = self.tenant(&super::super::parse_slug(slug)?).await?;
        let keys = self.data_keys(id).await?;
        let what = "reading the database";
        let mut db = self.access(tenant.server_id).await?.connect(&tenant.database).await?;
        let tx = db
            .build_transaction()
            .isolation_level(IsolationLevel::RepeatableRead)
            .read_only(true)
            .start()
            .await
            .during(what)?;
        tx.batch_execute("set local timezone = 'UTC'; set local statement_timeout = '1h'")
            .await
            .during(what)?;
        let now = tx.query_one("select now()", &[]).await.during(what)?;
        let mut tables = BTreeMap::new();
        for (name, columns) in tables_of(&tx).await? {
            tables.insert(name.clone(), write_table(&tx, &keys, &name, columns, to).await?);
        }
        let schema = tx
            .query("select set_name, max(version) from schema_migrations group by set_name limit 1000", &[])
            .await
            .during(what)?;
        let rows = tx
            .query("select id, size, sha256 from files where state = 'stored' order by id", &[])
            .await
            .during(what)?;
        let mut files = Vec::new();
        for row in &rows {
            let sha256 = hex(row.get::<_, Option<&[u8]>>(2).unwrap_or_default());
            let file = File { id: row.get(0), size: row.get(1), sha256 };
            self.write_file(id, &file, to).await?;
            files.push(file);
        }
        tx.rollback().await.during(what)?;
        let manifest = ExportManifest {
            format: 1,
            organization: id.as_uuid(),
            slug: tenant.slug,
            name: tenant.name,
            plan: tenant.plan,
            modules: tenant.modules,
            exported_at: now.get(0),
            schema: schema.iter().map(|r| (r.get(0), r.get(1))).collect(),
            tables,
            files,
        };
        write_all(&to.join("README.txt"), README.as_bytes())?;
        let text = serde_json::to_string_pretty(&manifest)
            .map_err(|e| ControlError::Foreign(format!("no JSON of the manifest: {e}")))?;
        write_all(&to.join("manifest.json"), text.as_bytes())?;
        Ok(manifest)
    }

    async fn write_file(&self, id: TenantId, file: &File, to: &Path) -> Result<(), ControlError> {
        let store = self.files()?.ok_or_else(|| {
            ControlError::Usage("the organisation has files, and [files] is not in the configuration".into())
        })?;
        let path = to.join("files").join(file.id.to_string());
        let missing = || ControlError::Foreign(format!("the bytes of file {} are not to be had", file.id));
        let mut bytes = store.get(id, file.id).await.map_err(|_| missing())?.into_stream();
        let mut out = create(&path)?;
        let mut hash = digest::Context::new(&digest::SHA256);
        while let Some(piece) = bytes.next().await {
            let piece = piece.map_err(|_| missing())?;
            hash.update(&piece);
            out.write_all(&piece).map_err(|e| disk(&path, &e))?;
        }
        finish(&path, out)?;
        if hex(hash.finish().as_ref()) != file.sha256 {
            return Err(ControlError::Foreign(format!(
                "file {} has other bytes than its record says",
                file.id
            )));
        }
        Ok(())
    }
}

/// Tables that are exported, each with its columns in order.
async fn tables_of(tx: &Transaction<'_>) -> Result<Vec<(String, Vec<String>)>, ControlError> {
    let rows = tx
        .query(
            "select c.relname, array_agg(a.attname::text order by a.attnum)
             from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
             where c.relnamespace = 'public'::regnamespace and c.relkind = 'r' and not c.relname = any($1)
             group by c.relname order by c.relname limit 100000",
            &[&OMITTED_TABLES],
        )
        .await
        .during("listing tables")?;
    Ok(rows
        .iter()
        .map(|r| {
            let (table, columns): (String, Vec<String>) = (r.get(0), r.get(1));
            let is_omitted = |c: &String| OMITTED_COLUMNS.iter().any(|(t, o)| *t == table && o == c);
            let columns = columns.into_iter().filter(|c| !is_omitted(c)).collect();
            (table, columns)
        })
        .collect())
}

async fn write_table(
    tx: &Transaction<'_>,
    keys: &DataKeys,
    name: &str,
    columns: Vec<String>,
    to: &Path,
) -> Result<Table, ControlError> {
    let what = format!("reading {name}");
    let sealed: Vec<&Sealed> = sealed_of(name);
    let quoted: Vec<_> = columns.iter().map(|c| quote_identifier(c)).collect();
    let sql = format!(
        "select to_jsonb(r) from (select {} from {} order by 1) r",
        quoted.join(", "),
        quote_identifier(name)
    );
    let rows = tx.query_raw(sql.as_str(), std::iter::empty::<i32>()).await.during(&what)?;
    let mut rows = std::pin::pin!(rows);
    let (jsonl, csv_path) =
        (to.join("tables").join(format!("{name}.jsonl")), to.join("tables").join(format!("{name}.csv")));
    let (mut lines, mut sheet) = (create(&jsonl)?, csv::Writer::from_writer(create(&csv_path)?));
    sheet.write_record(&columns).map_err(|e| csv_failed(&csv_path, &e))?;
    let (mut hash, mut count) = (digest::Context::new(&digest::SHA256), 0);
    while let Some(row) = rows.next().await {
        let mut value: Value = row.during(&what)?.get(0);
        if let Some(object) = value.as_object_mut() {
            open(object, keys, &sealed)?;
            let record: Vec<String> = columns.iter().map(|c| cell(object.get(c))).collect();
            sheet.write_record(&record).map_err(|e| csv_failed(&csv_path, &e))?;
        }
        let line = format!("{value}\n");
        hash.update(line.as_bytes());
        lines.write_all(line.as_bytes()).map_err(|e| disk(&jsonl, &e))?;
        count += 1;
    }
    finish(&jsonl, lines)?;
    let inner =
        sheet.into_inner().map_err(|e| ControlError::Foreign(format!("{}: {e}", csv_path.display())))?;
    finish(&csv_path, inner)?;
    Ok(Table {
        rows: count,
        columns,
        sealed: sealed.iter().map(|s| s.column.to_owned()).collect(),
        sha256: hex(hash.finish().as_ref()),
    })
}

/// Sealed columns of a table.
pub(crate) fn sealed_of(table: &str) -> Vec<&'static Sealed> {
    std::iter::once(&modules::CORE)
        .chain(modules::OPTIONAL)
        .flat_map(|m| m.sealed)
        .filter(|s| s.table == table)
        .collect()
}

/// Puts what is sealed into a row in clear.
pub(crate) fn open(
    row: &mut Map<String, Value>,
    keys: &DataKeys,
    sealed: &[&Sealed],
) -> Result<(), ControlError> {
    for at in sealed {
        let Some(Value::String(hexed)) = row.get(at.column) else { continue };
        let bad = |why: &str| ControlError::Foreign(format!("{}.{}: {why}", at.table, at.column));
        let bytes = unhex(hexed.strip_prefix("\\x").unwrap_or_default()).ok_or_else(|| bad("no bytes"))?;
        let key = row.get(at.key).and_then(Value::as_str).and_then(|k| k.parse::<Uuid>().ok());
        let place = Place { table: at.table, column: at.column, row: key.ok_or_else(|| bad("no key"))? };
        let plain = keys.open(place, &bytes)?;
        let text = std::str::from_utf8(&plain).map_err(|_| bad("no text"))?;
        row.insert(at.column.to_owned(), text.into());
    }
    Ok(())
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok()).collect()
}

/// A value for a spreadsheet: texts as they are, nothing for null, JSON for the rest.
fn cell(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

fn create(path: &Path) -> Result<BufWriter<Handle>, ControlError> {
    let made = OpenOptions::new().create_new(true).write(true).mode(0o600).open(path);
    made.map(BufWriter::new).map_err(|e| disk(path, &e))
}

/// What was written is on the disk when this is done.
fn finish(path: &Path, out: BufWriter<Handle>) -> Result<(), ControlError> {
    let file = out.into_inner().map_err(|e| disk(path, e.error()))?;
    file.sync_all().map_err(|e| disk(path, &e))
}

fn write_all(path: &Path, bytes: &[u8]) -> Result<(), ControlError> {
    let mut out = create(path)?;
    out.write_all(bytes).map_err(|e| disk(path, &e))?;
    finish(path, out)
}

fn remove(folder: &Path) -> Result<(), ControlError> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(disk(folder, &e)),
        _ => Ok(()),
    }
}

pub(crate) fn disk(path: &Path, e: &std::io::Error) -> ControlError {
    ControlError::Foreign(format!("{}: {e}", path.display()))
}

fn csv_failed(path: &Path, e: &csv::Error) -> ControlError {
    ControlError::Foreign(format!("{}: {e}", path.display()))
}
