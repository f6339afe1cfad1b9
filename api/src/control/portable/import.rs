//! Making an organisation out of an export.
//!
//! ```text
//! reserve ─► role ─► database ─► identity ─► migrations ─► load ─► files ─► administrator ─► active
//! ```

use std::fs::{self, File as Handle};
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::stream;
use gmah_shared::migrate;
use gmah_shared::pg::quote_identifier;
use gmah_shared::secret::data::{DataKeys, Place};
use gmah_shared::secret::random_password;
use gmah_shared::tenant::{TenantId, TenantSlug};
use ring::digest;
use secrecy::SecretString;
use serde_json::{Map, Value, json};
use tokio_postgres::{Client, Transaction};
use uuid::Uuid;

use super::export::{disk, sealed_of};
use super::{ExportManifest, INDEXED, OMITTED_COLUMNS, OMITTED_TABLES, Table, order};
use crate::auth::password;
use crate::control::backup::hex;
use crate::control::operations::{Again, Ask, Kind, Operation, Subject};
use crate::control::provision::{NewTenant, ensure_role, hold_on_server};
use crate::control::{Control, ControlError, During as _, features, parse_email};
use crate::modules;

/// Rows that are sent at once.
const BATCH: usize = 500;
/// Bytes of a file that are handed on at once.
const PIECE: usize = 256 << 10;
/// Bytes of one row.
const LONGEST: u64 = 64 << 20;

/// What is asked for.
#[derive(Debug, Clone)]
pub struct NewFromExport {
    /// Folder of the export.
    pub from: PathBuf,
    /// Slug of the new organisation.
    pub slug: TenantSlug,
    /// Who gets a password; the first administrator in the export otherwise.
    pub admin_email: Option<String>,
    /// Name of a server; the emptiest otherwise.
    pub server: Option<String>,
}

/// What came of it.
#[derive(Debug)]
pub struct Imported {
    /// Id.
    pub id: TenantId,
    /// Slug.
    pub slug: TenantSlug,
    /// Where it answers.
    pub host: String,
    /// Rows of all tables.
    pub rows: u64,
    /// Files.
    pub files: usize,
    /// Who can log in at once.
    pub admin_email: String,
    /// The password, if this run made it.
    pub admin_password: Option<SecretString>,
}

impl NewFromExport {
    pub(crate) fn of_journal(input: &Value) -> Result<Self, ControlError> {
        let text = |key: &str| input[key].as_str().map(str::to_owned);
        let none = || ControlError::Foreign("the journal has an order that is none".into());
        Ok(Self {
            from: text("from").ok_or_else(none)?.into(),
            slug: super::super::parse_slug(&text("slug").ok_or_else(none)?)?,
            admin_email: text("admin_email"),
            server: text("server"),
        })
    }
}

impl Control {
    /// Makes a new organisation out of an export.
    ///
    /// # Errors
    /// [`ControlError`]; what had been made is removed, the slug is free.
    pub async fn import(&mut self, order: NewFromExport) -> Result<Imported, ControlError> {
        self.import_as(order, None).await
    }

    pub(crate) async fn import_as(
        &mut self,
        order: NewFromExport,
        resume: Option<Uuid>,
    ) -> Result<Imported, ControlError> {
        let from = fs::canonicalize(&order.from).map_err(|e| disk(&order.from, &e))?;
        let manifest = read_manifest(&from)?;
        check(&manifest)?;
        let admin_email = match &order.admin_email {
            Some(email) => parse_email(email)?,
            None => first_administrator(&from, &manifest)?,
        };
        let ask = Ask {
            kind: Kind::Import,
            subject: Subject::Slug(order.slug.clone()),
            organization: None,
            about: order.slug.to_string(),
            input: json!({ "slug": order.slug, "from": from, "admin_email": admin_email, "server": order.server }),
            again: Again::UnlessTaken,
            resume,
        };
        let admin_password = random_password();
        let ((id, rows, files), is_new): ((TenantId, u64, usize), bool) = self
            .operate(ask, async |control, operation| {
                let new =
                    Build { order: &order, from: &from, manifest: &manifest, admin_email: &admin_email };
                let made = control.build_from(&new, &admin_password, operation).await;
                let Err(cause) = made else { return made };
                let undone = async {
                    operation.forget(&control.master, "reserve").await?;
                    control.unmake(operation.id()).await
                };
                ControlError::after_undoing(cause, undone.await)
            })
            .await?;
        Ok(Imported {
            id,
            host: format!("{}.{}", order.slug, self.settings.base_domain),
            slug: order.slug,
            rows,
            files,
            admin_email,
            admin_password: is_new.then_some(admin_password),
        })
    }

    async fn build_from(
        &mut self,
        new: &Build<'_>,
        admin_password: &SecretString,
        operation: &mut Operation,
    ) -> Result<(TenantId, u64, usize), ControlError> {
        let manifest = new.manifest;
        let to_hash = admin_password.clone();
        let hashing = tokio::task::spawn_blocking(move || password::hash(&to_hash));
        if operation.recorded::<TenantId>("reserve")?.is_none() {
            operation.begin(&self.master, "reserve").await?;
            let reserved = NewTenant {
                slug: new.order.slug.clone(),
                name: manifest.name.clone(),
                admin_email: new.admin_email.to_owned(),
                admin_password: None,
                language: None,
                domain: None,
                plan: manifest.plan.clone(),
                modules: manifest.modules.clone(),
                server: new.order.server.clone(),
            };
            let id = self.reserve(&reserved, operation.id()).await?;
            operation.did("reserve", &id)?;
        }
        let r = self.reserved(operation.id()).await?;
        let access = self.access(r.server).await?;
        let server = access.connect("postgres").await?;
        hold_on_server(&server, r.id).await?;
        operation.step(&self.master, "role", ensure_role(&server, &r)).await?;
        let sets = modules::migrations(&manifest.modules);
        let make = crate::control::provision::ensure_database(&access, &server, &r, &sets);
        operation.step(&self.master, "database", make).await?;
        let mut db = access.connect(&r.database).await?;
        let identify = crate::control::provision::ensure_identity(&db, &r);
        operation.step(&self.master, "identity", identify).await?;
        let bring_up = async {
            if !migrate::pending(&db, &sets).await.during("migrations")?.is_empty() {
                migrate::run(&mut db, &sets, Default::default()).await.during("migrations")?;
            }
            Ok(())
        };
        operation.step(&self.master, "migrations", bring_up).await?;
        let keys = self.data_keys(r.id).await?;
        let fill = async {
            // Somebody may be using it already: it is not filled anew.
            if self.is_used(r.id).await? {
                return Ok(0);
            }
            load(&mut db, &keys, new.from, manifest).await
        };
        let rows: u64 = operation.step(&self.master, "load", fill).await?;
        let bring = self.bring_exported(r.id, new.from, manifest);
        let files: usize = operation.step(&self.master, "files", bring).await?;
        let let_in = async {
            let hash = hashing.await.map_err(|_| ControlError::Password(password::HashError::Failed))??;
            administrator(&db, new.admin_email, &hash).await
        };
        operation.again(&self.master, "administrator", let_in).await?;
        operation.begin(&self.master, "active").await?;
        self.activate(r.id, operation).await?;
        operation.did("active", &())?;
        Ok((r.id, rows, files))
    }

    async fn bring_exported(
        &self,
        id: TenantId,
        from: &Path,
        manifest: &ExportManifest,
    ) -> Result<usize, ControlError> {
        if manifest.files.is_empty() {
            return Ok(0);
        }
        let store = self.files()?.ok_or_else(|| {
            ControlError::Usage("the export has files, and [files] is not in the configuration".into())
        })?;
        for file in &manifest.files {
            let path = from.join("files").join(file.id.to_string());
            let opened = Handle::open(&path).map_err(|e| disk(&path, &e))?;
            let pieces = stream::unfold((opened, path), |(mut opened, path)| async move {
                let mut piece = vec![0; PIECE];
                match opened.read(&mut piece) {
                    Ok(0) => None,
                    Ok(read) => {
                        piece.truncate(read);
                        Some((Ok(Bytes::from(piece)), (opened, path)))
                    }
                    Err(e) => Some((Err(disk(&path, &e)), (opened, path))),
                }
            });
            store.bring(id, file.id, &file.sha256, pieces).await?;
        }
        Ok(manifest.files.len())
    }
}

struct Build<'a> {
    order: &'a NewFromExport,
    from: &'a Path,
    manifest: &'a ExportManifest,
    admin_email: &'a str,
}

fn read_manifest(from: &Path) -> Result<ExportManifest, ControlError> {
    let path = from.join("manifest.json");
    let text = fs::read_to_string(&path).map_err(|e| disk(&path, &e))?;
    serde_json::from_str(&text).map_err(|e| ControlError::Refused(format!("{}: {e}", path.display())))
}

/// Refuses what this program cannot read, before anything is made.
fn check(manifest: &ExportManifest) -> Result<(), ControlError> {
    let refuse = |why: String| Err(ControlError::Refused(why));
    if manifest.format != 1 {
        return refuse(format!("the export has format {}, this program reads 1", manifest.format));
    }
    for key in &manifest.modules {
        if modules::find(key).is_none() {
            return refuse(format!("this program has no module {key}"));
        }
    }
    features::complete("modules", manifest.modules.iter().map(String::as_str).collect())?;
    for set in modules::migrations(&manifest.modules) {
        let theirs = manifest.schema.get(set.name).copied().unwrap_or_default();
        if theirs > set.latest() {
            return refuse(format!(
                "{} is at version {theirs} in the export, this program knows {}",
                set.name,
                set.latest()
            ));
        }
    }
    let plain = |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    for (name, table) in &manifest.tables {
        if !plain(name) || !table.columns.iter().all(|c| plain(c)) {
            return refuse(format!("{name:?} is no name of a table, or one of its columns has none"));
        }
        let is_ours = |c: &String| OMITTED_COLUMNS.iter().any(|(t, o)| t == name && o == c);
        if OMITTED_TABLES.contains(&name.as_str()) || table.columns.iter().any(is_ours) {
            return refuse(format!("the table {name}, or a column of it, is the platform's"));
        }
    }
    Ok(())
}

/// Each row of a table of the export.
fn rows_of(
    from: &Path,
    name: &str,
) -> Result<impl Iterator<Item = Result<String, ControlError>> + use<>, ControlError> {
    let path = from.join("tables").join(format!("{name}.jsonl"));
    let mut reader = BufReader::new(Handle::open(&path).map_err(|e| disk(&path, &e))?);
    Ok(std::iter::from_fn(move || {
        let mut line = String::new();
        match (&mut reader).take(LONGEST).read_line(&mut line) {
            Ok(0) => None,
            Ok(_) if !line.ends_with('\n') => {
                Some(Err(ControlError::Refused(format!("{}: the last line is not whole", path.display()))))
            }
            Ok(_) => Some(Ok(line)),
            Err(e) => Some(Err(disk(&path, &e))),
        }
    }))
}

fn first_administrator(from: &Path, manifest: &ExportManifest) -> Result<String, ControlError> {
    let none = || ControlError::Usage("the export has no administrator: --admin-email".into());
    if !manifest.tables.contains_key("users") {
        return Err(none());
    }
    for line in rows_of(from, "users")? {
        let user: Value = serde_json::from_str(&line?).unwrap_or_default();
        if user["role"] == "administrator" && user["disabled_at"].is_null() {
            return user["email"].as_str().map(str::to_owned).ok_or_else(none);
        }
    }
    Err(none())
}

/// Fills the tables, all or none of them. What a killed run had filled is filled anew.
async fn load(
    db: &mut Client,
    keys: &DataKeys,
    from: &Path,
    manifest: &ExportManifest,
) -> Result<u64, ControlError> {
    let what = "filling the tables";
    let tx = db.transaction().await.during(what)?;
    let names: Vec<String> = manifest.tables.keys().cloned().collect();
    let known = tx
        .query(
            "select c.relname from pg_class c
             where c.relnamespace = 'public'::regnamespace and c.relkind = 'r' and c.relname = any($1)",
            &[&names],
        )
        .await
        .during(what)?;
    if known.len() != names.len() {
        let known: Vec<String> = known.iter().map(|r| r.get(0)).collect();
        let unknown: Vec<_> = names.iter().filter(|n| !known.contains(n)).cloned().collect();
        return Err(ControlError::Refused(format!("this program has no table {}", unknown.join(", "))));
    }
    tx.batch_execute("set local statement_timeout = '1h'; set local timezone = 'UTC'").await.during(what)?;
    if !names.is_empty() {
        let all: Vec<_> = names.iter().map(|n| quote_identifier(n)).collect();
        tx.batch_execute(&format!("truncate {} cascade", all.join(", "))).await.during(what)?;
    }
    let mut rows = 0;
    for name in order::of(&tx, &names).await? {
        if let Some(table) = manifest.tables.get(&name) {
            rows += fill(&tx, keys, from, &name, table).await?;
        }
    }
    tx.commit().await.during(what)?;
    Ok(rows)
}

/// Fills one table with one statement, so that rows may refer to later ones.
async fn fill(
    tx: &Transaction<'_>,
    keys: &DataKeys,
    from: &Path,
    name: &str,
    table: &Table,
) -> Result<u64, ControlError> {
    let what = format!("filling {name}");
    let mut columns = table.columns.clone();
    for (of, sealed, index) in INDEXED {
        if *of == name && columns.iter().any(|c| c == sealed) {
            columns.push((*index).to_owned());
        }
    }
    tx.batch_execute("create temp table if not exists import_rows (row jsonb not null) on commit drop; truncate import_rows")
        .await
        .during(&what)?;
    let (mut hash, mut count) = (digest::Context::new(&digest::SHA256), 0_u64);
    let mut batch: Vec<Value> = Vec::with_capacity(BATCH);
    for line in rows_of(from, name)? {
        let line = line?;
        hash.update(line.as_bytes());
        count += 1;
        let mut row: Map<String, Value> = serde_json::from_str(&line)
            .map_err(|e| ControlError::Refused(format!("tables/{name}.jsonl, line {count}: {e}")))?;
        seal(&mut row, keys, name)?;
        batch.push(Value::Object(row));
        if batch.len() == BATCH {
            send(tx, &mut batch).await.during(&what)?;
        }
    }
    send(tx, &mut batch).await.during(&what)?;
    if count != table.rows || hex(hash.finish().as_ref()) != table.sha256 {
        return Err(ControlError::Refused(format!(
            "tables/{name}.jsonl is not what the manifest says: {} rows and not {count}, or others",
            table.rows
        )));
    }
    let quoted: Vec<_> = columns.iter().map(|c| quote_identifier(c)).collect();
    let (target, list) = (quote_identifier(name), quoted.join(", "));
    let fields: Vec<_> = quoted.iter().map(|c| format!("(p).{c}")).collect();
    let sql = format!(
        "insert into {target} ({list}) overriding system value
         select {} from (select jsonb_populate_record(null::{target}, row) as p from import_rows) r",
        fields.join(", ")
    );
    tx.execute(sql.as_str(), &[]).await.during(&what)
}

async fn send(tx: &Transaction<'_>, batch: &mut Vec<Value>) -> Result<(), tokio_postgres::Error> {
    if !batch.is_empty() {
        let rows = Value::Array(std::mem::take(batch));
        tx.execute("insert into import_rows select jsonb_array_elements($1)", &[&rows]).await?;
    }
    Ok(())
}

/// Seals what is sealed here, for this organisation, and computes what finds it.
fn seal(row: &mut Map<String, Value>, keys: &DataKeys, table: &str) -> Result<(), ControlError> {
    for at in sealed_of(table) {
        let Some(Value::String(text)) = row.get(at.column).cloned() else { continue };
        let key = row.get(at.key).and_then(Value::as_str).and_then(|k| k.parse::<Uuid>().ok());
        let key = key.ok_or_else(|| ControlError::Refused(format!("a row of {table} has no {}", at.key)))?;
        let place = Place { table: at.table, column: at.column, row: key };
        let sealed = keys.seal(place, text.as_bytes())?;
        row.insert(at.column.to_owned(), format!("\\x{}", hex(&sealed)).into());
        for (of, column, index) in INDEXED {
            if *of == table && *column == at.column {
                let found_by = keys.blind_index(of, column, &text);
                row.insert((*index).to_owned(), format!("\\x{}", hex(&found_by)).into());
            }
        }
    }
    Ok(())
}

/// Somebody who can log in: others choose new passwords by a letter.
async fn administrator(db: &Client, email: &str, hash: &str) -> Result<(), ControlError> {
    db.execute(
        "insert into users (id, email, name, role, password_hash) values ($1, $2, 'Administrator', 'administrator', $3)
         on conflict (email) do update set password_hash = excluded.password_hash, role = 'administrator',
             disabled_at = null",
        &[&Uuid::now_v7(), &email, &hash],
    )
    .await
    .during("letting the administrator in")?;
    Ok(())
}
