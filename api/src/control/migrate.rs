//! Migrating organisations' databases: a bounded number at once, each with its own result.

use futures::StreamExt as _;
use futures::stream;
use gmah_shared::migrate::{self, Applied, Options};
use serde::Serialize;

use super::tenants::Summary;
use super::{Control, ControlError, During as _, data_keys};
use crate::modules;

/// How a run over several organisations behaves.
#[derive(Debug, Clone, Copy)]
pub struct Fleet {
    /// Organisations at once.
    pub parallel: usize,
    /// Runs each in a transaction and rolls it back.
    pub dry_run: bool,
    /// No further organisation is begun after this many have failed.
    pub max_failures: usize,
}

/// What came of one organisation.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// Slug.
    pub slug: String,
    /// Files that ran, or in a dry run would have.
    pub applied: Vec<Applied>,
    /// Why it failed.
    pub error: Option<String>,
    /// True when it was not begun, because too many had failed.
    pub skipped: bool,
}

impl Control {
    /// Migrates those organisations. `done` hears of each as it ends.
    pub async fn migrate_tenants(
        &self,
        tenants: Vec<Summary>,
        fleet: Fleet,
        mut done: impl FnMut(&Outcome),
    ) -> Vec<Outcome> {
        let failures = std::sync::atomic::AtomicUsize::new(0);
        let mut running = stream::iter(tenants)
            .map(|tenant| {
                let failures = &failures;
                async move {
                    let order = std::sync::atomic::Ordering::AcqRel;
                    if failures.fetch_add(0, order) >= fleet.max_failures {
                        return Outcome { slug: tenant.slug, applied: vec![], error: None, skipped: true };
                    }
                    let result = self.migrate_tenant(&tenant, fleet.dry_run).await;
                    let (applied, error) = match result {
                        Ok(applied) => (applied, None),
                        Err(e) => {
                            failures.fetch_add(1, order);
                            (vec![], Some(e.to_string()))
                        }
                    };
                    Outcome { slug: tenant.slug, applied, error, skipped: false }
                }
            })
            .buffer_unordered(fleet.parallel.max(1));
        let mut outcomes = Vec::new();
        while let Some(outcome) = running.next().await {
            done(&outcome);
            outcomes.push(outcome);
        }
        outcomes.sort_by(|a, b| a.slug.cmp(&b.slug));
        outcomes
    }

    async fn migrate_tenant(&self, tenant: &Summary, dry_run: bool) -> Result<Vec<Applied>, ControlError> {
        if !dry_run {
            data_keys::ensure(&self.settings.master_key, &self.master, tenant.id).await?;
        }
        let access = self.access(tenant.server_id).await?;
        let mut client = access.connect(&tenant.database).await?;
        let sets = modules::migrations(&tenant.modules);
        // Most have nothing to do: one query and no lock.
        if migrate::pending(&client, &sets).await.during(&tenant.slug)?.is_empty() {
            return Ok(Vec::new());
        }
        let options = Options { dry_run, ..Options::default() };
        migrate::run(&mut client, &sets, options).await.during(&tenant.slug)
    }
}
