//! Modules of an organisation: switched on and off.
//!
//! On: its tables are made first, then the switch is thrown, so that a module is never on without its tables. Off: the
//! switch only; the tables and what is in them stay.
//!
//! ```text
//! tables ─► switch
//! ```

use std::collections::BTreeSet;

use gmah_shared::migrate;
use gmah_shared::tenant::TenantSlug;
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;
use uuid::Uuid;

use super::operations::{Ask, Kind};
use super::tenants::Summary;
use super::{Control, ControlError, During as _, data_keys};
use crate::modules::{self, Module};

/// A module, as operators see it.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Module)]
pub struct Listed {
    /// Key.
    pub key: &'static str,
    /// For people.
    pub title: &'static str,
    /// Whether the organisation that was asked about has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
}

impl Control {
    /// Every module, and whether an organisation has it.
    ///
    /// # Errors
    /// [`ControlError::NoTenant`].
    pub async fn modules(&self, slug: Option<&TenantSlug>) -> Result<Vec<Listed>, ControlError> {
        let tenant = match slug {
            Some(slug) => Some(self.tenant(slug).await?),
            None => None,
        };
        Ok(modules::OPTIONAL
            .iter()
            .map(|m| Listed {
                key: m.key,
                title: m.title,
                enabled: tenant.as_ref().map(|t| t.modules.iter().any(|on| on == m.key)),
            })
            .collect())
    }

    /// Switches modules on; those that are on stay so.
    ///
    /// # Errors
    /// [`ControlError::Usage`] for a module that there is not. When its tables cannot be made nothing is switched.
    pub async fn enable_modules(
        &mut self,
        slug: &TenantSlug,
        keys: &[String],
    ) -> Result<Summary, ControlError> {
        self.switch_modules(slug, keys, true, None).await
    }

    /// Switches modules off; what is in their tables stays.
    ///
    /// # Errors
    /// [`ControlError::Usage`] for a module that there is not.
    pub async fn disable_modules(
        &mut self,
        slug: &TenantSlug,
        keys: &[String],
    ) -> Result<Summary, ControlError> {
        self.switch_modules(slug, keys, false, None).await
    }

    pub(crate) async fn switch_modules(
        &mut self,
        slug: &TenantSlug,
        keys: &[String],
        on: bool,
        resume: Option<Uuid>,
    ) -> Result<Summary, ControlError> {
        let wanted = known(keys)?;
        let tenant = self.tenant(slug).await?;
        complete("module", after(&tenant, &wanted, on))?;
        let modules: BTreeSet<&str> = wanted.iter().map(|m| m.key).collect();
        let ask = Ask {
            input: json!({ "slug": tenant.slug, "modules": modules, "enabled": on }),
            ..Ask::of(Kind::Modules, &tenant, resume)
        };
        self.operate(ask, async |control, operation| {
            // Under the lock: it may have other modules by now, and another database.
            let tenant = control.tenant(slug).await?;
            complete("module", after(&tenant, &wanted, on))?;
            if on {
                // Also where an earlier runner has: this program may know more of them.
                operation.again(&control.master, "tables", control.make_tables(&tenant, &wanted)).await?;
            }
            operation.step(&control.master, "switch", control.switch(&tenant, &wanted, on)).await
        })
        .await?;
        self.tenant(slug).await
    }

    async fn make_tables(&self, tenant: &Summary, wanted: &[&'static Module]) -> Result<(), ControlError> {
        let sets: Vec<_> =
            std::iter::once(&modules::CORE).chain(wanted.iter().copied()).map(|m| &m.migrations).collect();
        data_keys::ensure(&self.settings.master_key, &self.master, tenant.id).await?;
        let mut db = self.access(tenant.server_id).await?.connect(&tenant.database).await?;
        migrate::run(&mut db, &sets, Default::default()).await.during(&tenant.slug)?;
        Ok(())
    }

    /// One statement: readers hear of all modules at once, and only of what has changed.
    async fn switch(&self, tenant: &Summary, modules: &[&Module], on: bool) -> Result<(), ControlError> {
        let keys: Vec<&str> = modules.iter().map(|m| m.key).collect();
        self.master
            .execute(SWITCH, &[&tenant.id.as_uuid(), &keys, &on, &self.actor])
            .await
            .during("switching modules")?;
        Ok(())
    }
}

/// What the organisation would have.
fn after<'a>(tenant: &'a Summary, wanted: &[&'a Module], on: bool) -> Vec<&'a str> {
    let others =
        tenant.modules.iter().map(String::as_str).filter(|key| !wanted.iter().any(|m| m.key == *key));
    others.chain(wanted.iter().filter(|_| on).map(|m| m.key)).collect()
}

/// Refuses modules, which a request has in that field, without those that they need.
pub(super) fn complete(field: &'static str, keys: Vec<&str>) -> Result<(), ControlError> {
    match modules::missing(modules::OPTIONAL, &keys).first() {
        Some((module, needed)) => Err(ControlError::field(field, format!("{module} needs {needed}"))),
        None => Ok(()),
    }
}

pub(super) fn known(keys: &[String]) -> Result<Vec<&'static Module>, ControlError> {
    let mut found = Vec::new();
    for key in keys {
        let module = modules::find(key).ok_or_else(|| {
            let known: Vec<_> = modules::OPTIONAL.iter().map(|m| m.key).collect();
            let why = if key == modules::CORE.key { "is everybody's" } else { "is no module" };
            ControlError::field("module", format!("{key} {why}; there are {}", known.join(", ")))
        })?;
        if !found.iter().any(|f: &&Module| f.key == module.key) {
            found.push(module);
        }
    }
    Ok(found)
}

const SWITCH: &str = "with switched as (
        insert into organization_features as f (organization_id, module, enabled)
        select $1, unnest($2::text[]), $3
        on conflict (organization_id, module) do update set enabled = excluded.enabled, updated_at = now()
            where f.enabled <> excluded.enabled
        returning module)
    insert into audit_log (actor, action, organization_id, detail)
    select $4, case when $3 then 'module.enable' else 'module.disable' end, $1, jsonb_build_object('module', module)
    from switched";
