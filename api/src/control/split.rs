//! One shared database, in which a column says whose a row is, becomes one database per organisation.
//!
//! ```text
//! read: everybody's rows, as of one moment ─► DIR/SLUG/…, the format of exports ─► DIR/split.json
//! make: each organisation is imported (an operation of its own) ─► compared, row by row ─► DIR/SLUG/done.json
//! ```
//!
//! Nothing is made before all of it was read and makes sense; the shared database is only ever read. Killed while reading, it
//! reads anew; later it goes on with what it had read. What is in the folder is in clear.

mod compare;
mod plan;
mod read;
mod shape;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use futures::{StreamExt as _, stream};
use gmah_shared::tenant::{TenantSlug, TenantStatus};
use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use self::compare::Fingerprint;
use super::fleet::Outcome;
use super::operations::Subject;
use super::portable::{NewFromExport, disk};
use super::{Control, ControlError};

pub use plan::Plan;

/// How it is done.
#[derive(Debug, Clone, Copy)]
pub struct SplitOptions {
    /// Only reads, writes nothing and makes nothing.
    pub dry_run: bool,
    /// Organisations that are made at once.
    pub parallel: usize,
}

/// What was read of an organisation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Part {
    /// What the shared database calls it.
    pub key: String,
    /// Slug that it gets.
    pub slug: TenantSlug,
    /// Name.
    pub name: String,
    /// Who is let in first.
    pub admin_email: String,
    plan: String,
    modules: Vec<String>,
    /// Rows of each table.
    pub rows: BTreeMap<String, u64>,
    fingerprints: BTreeMap<String, Fingerprint>,
}

/// Everything that was read, as of one moment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Parts {
    /// Which moment.
    #[serde(with = "time::serde::rfc3339")]
    pub read_at: OffsetDateTime,
    /// SHA-256 of the plan by which it was read.
    plan: String,
    /// By slug.
    pub organizations: Vec<Part>,
}

/// An organisation that was made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Made {
    /// Where it answers.
    pub host: String,
    /// Rows of all tables, each of which was compared.
    pub rows: u64,
    /// Who can log in at once.
    pub admin_email: String,
    /// Its password, if this run made it.
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    pub admin_password: Option<String>,
}

/// What came of it.
#[derive(Debug, Serialize)]
pub struct SplitReport {
    /// The moment that the organisations show.
    #[serde(with = "time::serde::rfc3339")]
    pub read_at: OffsetDateTime,
    /// True when nothing was made.
    pub dry_run: bool,
    /// Organisations that failed.
    pub failed: usize,
    /// What was read, by slug.
    pub parts: Vec<Part>,
    /// What was made, by slug.
    pub organizations: Vec<Outcome<Made>>,
}

impl Control {
    /// Reads the shared database into `work`, and makes an organisation of each part.
    ///
    /// # Errors
    /// [`ControlError`] for what cannot be read or would stay behind: nothing is made then. What fails later is in the report.
    pub async fn split(
        &mut self,
        plan: &Plan,
        work: &Path,
        options: SplitOptions,
        mut done: impl FnMut(&Outcome<Made>),
    ) -> Result<SplitReport, ControlError> {
        let subject = Subject::Fleet("split".into());
        if !self.try_hold(&subject).await? {
            return Err(ControlError::Refused("another split is under way".into()));
        }
        let report = self.split_held(plan, work, options, &mut done).await;
        self.release(&subject).await;
        report
    }

    async fn split_held(
        &self,
        plan: &Plan,
        work: &Path,
        options: SplitOptions,
        done: &mut impl FnMut(&Outcome<Made>),
    ) -> Result<SplitReport, ControlError> {
        let written = work.join("split.json");
        let parts = match fs::read(&written) {
            Ok(_) if options.dry_run => self.read_shared(plan, None).await?,
            Ok(text) => {
                let parts: Parts = serde_json::from_slice(&text)
                    .map_err(|e| ControlError::Refused(format!("{}: {e}", written.display())))?;
                if parts.plan != plan.digest {
                    let why = "was read by another plan: take another folder";
                    return Err(ControlError::Refused(format!("{}: {why}", work.display())));
                }
                parts
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                self.read_shared(plan, (!options.dry_run).then_some(work)).await?
            }
            Err(e) => return Err(disk(&written, &e)),
        };
        let mut organizations = Vec::new();
        if !options.dry_run {
            let this = self;
            let mut all = stream::iter(&parts.organizations)
                .map(|part| async move {
                    let made = this.make_part(part, &work.join(part.slug.as_str())).await;
                    let (made, error) = match made {
                        Ok(made) => (Some(made), None),
                        Err(e) => (None, Some(e.to_string())),
                    };
                    Outcome { slug: part.slug.to_string(), made, error, skipped: false }
                })
                .buffer_unordered(options.parallel.max(1));
            while let Some(outcome) = all.next().await {
                done(&outcome);
                organizations.push(outcome);
            }
            drop(all);
            organizations.sort_by(|a, b| a.slug.cmp(&b.slug));
        }
        let failed = organizations.iter().filter(|o| !o.is_well()).count();
        Ok(SplitReport {
            read_at: parts.read_at,
            dry_run: options.dry_run,
            failed,
            parts: parts.organizations,
            organizations,
        })
    }

    async fn make_part(&self, part: &Part, folder: &Path) -> Result<Made, ControlError> {
        let noted = folder.join("done.json");
        if let Ok(text) = fs::read(&noted) {
            // Compared then; people have been at work in it since.
            return serde_json::from_slice(&text)
                .map_err(|e| ControlError::Refused(format!("{}: {e}", noted.display())));
        }
        let mut session = self.another().await?;
        let order = NewFromExport {
            from: folder.to_owned(),
            slug: part.slug.clone(),
            admin_email: Some(part.admin_email.clone()),
            server: None,
        };
        let imported = session.import(order).await?;
        if let Some(other) = session.compare(part).await? {
            // Nobody works in it before somebody has looked. In one that an earlier run made somebody may be at work.
            if imported.admin_password.is_some() {
                let why = "its rows are not those of the shared database";
                session.set_status(&part.slug, TenantStatus::Suspended, Some(why)).await?;
            }
            return Err(ControlError::Foreign(other));
        }
        let made = Made {
            host: imported.host,
            rows: part.rows.values().sum(),
            admin_email: imported.admin_email,
            admin_password: imported.admin_password.map(|p| p.expose_secret().to_owned()),
        };
        read::write_json(&noted, &Made { admin_password: None, ..made.clone() })?;
        Ok(made)
    }
}
