//! An organisation as its owner takes it along: files that other programs read, and out of which another organisation can be
//! made, here or elsewhere.
//!
//! ```text
//! DIR/manifest.json        what is in it; written last
//! DIR/README.txt           how it is to be read
//! DIR/tables/NAME.jsonl    a row a line: a JSON object (RFC 8259), times in UTC
//! DIR/tables/NAME.csv      the same for spreadsheets (RFC 4180), a header line first
//! DIR/files/ID             bytes of files, whose names are in tables/files
//! ```
//!
//! Sensitive fields are in clear: it is their owner's copy. What only the platform needs is not in it: passwords, sessions,
//! second factors, keys of programs, letters.

mod export;
mod import;
mod order;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

pub(crate) use export::{disk, open, sealed_of};
pub use import::{Imported, NewFromExport};

/// Tables that are the platform's, and mean nothing elsewhere.
pub(crate) const OMITTED_TABLES: &[&str] = &[
    "account_links",
    "api_keys",
    "gmah_identity",
    "idempotency_keys",
    "outbox",
    "recovery_codes",
    "refresh_tokens_used",
    "schema_migrations",
    "sessions",
    "user_totp",
];

/// Columns that are secret, or computed of others with the organisation's key.
pub(crate) const OMITTED_COLUMNS: &[(&str, &str)] =
    &[("patients", "national_id_index"), ("users", "password_hash")];

/// Sealed columns that are found by a blind index: table, column, column of the index.
pub(crate) const INDEXED: &[(&str, &str, &str)] = &[("patients", "national_id", "national_id_index")];

/// What is in an export.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExportManifest {
    /// 1
    pub format: u32,
    /// Id of the organisation.
    pub organization: Uuid,
    /// Slug at that time.
    pub slug: String,
    /// Name at that time.
    pub name: String,
    /// Plan at that time.
    pub plan: String,
    /// Modules at that time.
    pub modules: Vec<String>,
    /// The moment that it shows.
    #[serde(with = "time::serde::rfc3339")]
    pub exported_at: OffsetDateTime,
    /// Highest migration of each set.
    pub schema: BTreeMap<String, i32>,
    /// Tables, by name.
    pub tables: BTreeMap<String, Table>,
    /// Files.
    pub files: Vec<File>,
}

/// A table of an export.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Table {
    /// Rows.
    pub rows: u64,
    /// Columns, in order.
    pub columns: Vec<String>,
    /// Those of them that are sealed in the database, and in clear here.
    pub sealed: Vec<String>,
    /// SHA-256 of `tables/NAME.jsonl`, in hexadecimal digits.
    pub sha256: String,
}

/// A file of an export.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct File {
    /// Id, which is its name below `files`.
    pub id: Uuid,
    /// Bytes.
    pub size: i64,
    /// SHA-256, in hexadecimal digits.
    pub sha256: String,
}
