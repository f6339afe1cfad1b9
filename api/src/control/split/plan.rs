//! The file that says what a shared database is made of.
//!
//! ```toml
//! modules = ["patients"]          # of every organisation; plan, and modules, may also be columns of organizations.sql
//! plan = "professional"
//! tenant_column = "hospital_id"   # whose a row is, in tables that are the same here and there
//! leave_out = ["audit_log", "patients.legacy_code"]   # tables and columns that stay behind
//!
//! [source]                        # as [master] of the configuration
//! host = "db.medkey.internal"
//! user = "split"                  # needs to read, and nothing else
//! password_env = "MEDKEY_PASSWORD"
//! database = "medkey"
//!
//! [organizations]                 # one row each: key, slug, name, admin_email
//! sql = "select id as key, slug, name, contact as admin_email from hospitals"
//!
//! [tables.patients]               # where the rule does not do: $1 is the key, a text
//! sql = "select md5('patient' || id)::uuid as id, given_name as first_name from people where hospital_id = $1::int"
//! ```

use std::collections::BTreeMap;
use std::path::Path;

use gmah_shared::config::{ConfigError, ConfigFile, Postgres, PostgresSection, Spanned};
use serde::Deserialize;

use crate::control::backup::hex;

/// What is split, and how.
#[derive(Debug)]
pub struct Plan {
    pub(super) source: Postgres,
    pub(super) organizations: String,
    pub(super) modules: Vec<String>,
    pub(super) plan: String,
    pub(super) tenant_column: Option<String>,
    pub(super) tables: BTreeMap<String, String>,
    pub(super) leave_out: Vec<String>,
    /// SHA-256 of the file.
    pub(super) digest: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    source: Spanned<PostgresSection>,
    organizations: Statement,
    modules: Vec<String>,
    plan: String,
    tenant_column: Option<String>,
    #[serde(default)]
    tables: BTreeMap<String, Statement>,
    #[serde(default)]
    leave_out: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Statement {
    sql: String,
}

impl Plan {
    /// Reads the file.
    ///
    /// # Errors
    /// [`ConfigError`] with file, line and key.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let file = ConfigFile::read(path)?;
        let raw: File = file.parse()?;
        let digest = hex(ring::digest::digest(&ring::digest::SHA256, file.text().as_bytes()).as_ref());
        Ok(Self {
            source: file.postgres("source", raw.source)?,
            organizations: raw.organizations.sql,
            modules: raw.modules,
            plan: raw.plan,
            tenant_column: raw.tenant_column,
            tables: raw.tables.into_iter().map(|(name, s)| (name, s.sql)).collect(),
            leave_out: raw.leave_out,
            digest,
        })
    }

    /// Whether that table, or that column of it, stays behind.
    pub(super) fn leaves(&self, table: &str, column: Option<&str>) -> bool {
        let name = column.map_or_else(|| table.to_owned(), |c| format!("{table}.{c}"));
        self.leave_out.contains(&name)
    }
}
