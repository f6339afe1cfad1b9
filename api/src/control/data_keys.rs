//! Keys of organisations' sensitive fields: made, and exchanged while everything runs.
//!
//! ```text
//! make (opens everywhere) ─► seals (a while later) ─► reseal (what older ones sealed) ─► remove
//! ```

use std::time::Duration;

use gmah_shared::pg::quote_identifier;
use gmah_shared::secret::MasterKey;
use gmah_shared::secret::data::{DataKeys, Place};
use gmah_shared::tenant::{TenantId, TenantSlug};
use serde::{Deserialize, Serialize};
use tokio_postgres::{Client, GenericClient};
use uuid::Uuid;

use super::operations::{Ask, Kind};
use super::tenants::Summary;
use super::{Control, ControlError, During as _};
use crate::modules::{self, Sealed};

/// What came of an exchange.
#[derive(Debug, Serialize, Deserialize)]
pub struct Rotated {
    /// Slug.
    pub slug: String,
    /// Number of the key that seals now.
    pub version: i32,
    /// Values that were sealed anew.
    pub resealed: u64,
}

/// Rows that are read at once.
const BATCH: i64 = 500;

impl Control {
    /// Exchanges an organisation's key. Killed at any moment, another run goes on where this one was.
    ///
    /// # Errors
    /// [`ControlError`]; whatever was sealed opens all the same.
    pub async fn rotate_data_key(&mut self, slug: &TenantSlug) -> Result<Rotated, ControlError> {
        self.rotate_data_key_of(slug, None).await
    }

    pub(crate) async fn rotate_data_key_of(
        &mut self,
        slug: &TenantSlug,
        resume: Option<Uuid>,
    ) -> Result<Rotated, ControlError> {
        let tenant = self.tenant(slug).await?;
        let ask = Ask::of(Kind::DataKey, &tenant, resume);
        let mut had_ended = false;
        let (rotated, _) = self
            .operate(ask, async |control, operation| {
                // Under the lock: it may have another database by now.
                let tenant = control.tenant(slug).await?;
                had_ended = control.is_exchanged(tenant.id, operation.recorded("make")?).await?;
                let version = operation.step(&control.master, "make", control.newer_key(tenant.id)).await?;
                let seals = control.wait_until_it_seals(tenant.id, version);
                operation.step(&control.master, "seals", seals).await?;
                let reseal = control.reseal_to_newest(&tenant);
                // Also where an earlier runner has: it may have another database since, with values of the older key.
                let resealed: u64 = operation.again(&control.master, "reseal", reseal).await?;
                let older = control.remove_older_keys(tenant.id, version);
                operation.step(&control.master, "remove", older).await?;
                Ok(Rotated { slug: tenant.slug, version, resealed })
            })
            .await?;
        // Whoever asks for another key gets one: this was the end of an exchange that an earlier run had all but ended.
        if had_ended && resume.is_none() {
            return Box::pin(self.rotate_data_key_of(slug, None)).await;
        }
        Ok(rotated)
    }

    async fn is_exchanged(&self, id: TenantId, version: Option<i32>) -> Result<bool, ControlError> {
        let row = self
            .master
            .query_one(
                "select exists (select from organization_keys
                     where organization_id = $1 and version = $2 and exchanged_at is not null)",
                &[&id.as_uuid(), &version],
            )
            .await
            .during("reading the organisation's keys")?;
        Ok(row.get(0))
    }

    async fn reseal_to_newest(&self, tenant: &Summary) -> Result<u64, ControlError> {
        let keys = self.data_keys(tenant.id).await?;
        let db = self.access(tenant.server_id).await?.connect(&tenant.database).await?;
        let mut resealed = 0;
        for module in std::iter::once(&modules::CORE).chain(modules::OPTIONAL) {
            for column in module.sealed {
                resealed += reseal(&db, &keys, &keys, column).await?;
            }
        }
        Ok(resealed)
    }

    /// But for those with which a backup, or a database that is kept for an undo, has sealed something: it must still be opened.
    async fn remove_older_keys(&self, id: TenantId, version: i32) -> Result<(), ControlError> {
        self.master
            .execute(
                "with gone as (
                     delete from organization_keys where organization_id = $1 and version < $2
                         and not exists (select from backups b where b.organization_id = $1
                                         and b.state in ('running', 'done'))
                         and not exists (select from organization_placements p where p.organization_id = $1)
                     returning 1),
                 done as (
                     update organization_keys set exchanged_at = now()
                     where organization_id = $1 and version = $2 and exchanged_at is null returning version)
                 insert into audit_log (actor, action, organization_id, detail)
                 select $3, 'key.rotate_data', $1, jsonb_build_object('version', version) from done",
                &[&id.as_uuid(), &version, &self.actor],
            )
            .await
            .during("removing the older key")?;
        Ok(())
    }

    /// The version of a key that is newer than the one which seals: one that an earlier run made, or another.
    async fn newer_key(&self, id: TenantId) -> Result<i32, ControlError> {
        let what = "making the organisation's new key";
        ensure(&self.settings.master_key, &self.master, id).await?;
        let rows = self
            .master
            .query(
                "select version, secrets, exchanged_at is not null as is_done from organization_keys
                 where organization_id = $1 order by version",
                &[&id.as_uuid()],
            )
            .await
            .during(what)?;
        if let [_, .., newest] = &rows[..]
            && !newest.get::<_, bool>("is_done")
        {
            return Ok(newest.get(0));
        }
        let row = rows.last().ok_or_else(|| ControlError::Refused("the organisation has no key".into()))?;
        let version = row.get::<_, i32>(0) + 1;
        let secrets = DataKeys::generate(&self.settings.master_key, id, Some(row.get(1)))?;
        // Nodes that hear of nothing read an organisation anew after the catalog's `ttl`.
        let wait = (*self.settings.catalog.ttl * 2).as_secs_f64();
        self.master
            .execute(
                "insert into organization_keys (organization_id, version, secrets, seals_from)
                 values ($1, $2, $3, now() + make_interval(secs => $4)) on conflict do nothing",
                &[&id.as_uuid(), &version, &secrets, &wait],
            )
            .await
            .during(what)?;
        Ok(version)
    }

    /// Until every node that reads the organisation seals with it.
    async fn wait_until_it_seals(&self, id: TenantId, version: i32) -> Result<(), ControlError> {
        let row = self
            .master
            .query_one(
                "select extract(epoch from seals_from - now())::float8 from organization_keys
                 where organization_id = $1 and version = $2",
                &[&id.as_uuid(), &version],
            )
            .await
            .during("reading the new key")?;
        // A node that cannot reach the master goes on with what it knows for so long, and may seal with the older key.
        let catalog = &self.settings.catalog;
        let left = row.get::<_, f64>(0) + catalog.max_stale.max(*catalog.ttl).as_secs_f64();
        if left > 0.0 {
            tracing::info!(seconds = left, "waiting until every node seals with the new key");
            tokio::time::sleep(Duration::from_secs_f64(left)).await;
        }
        Ok(())
    }

    /// Gives an organisation that nobody uses yet a key with which the indexes of another one go on.
    pub(crate) async fn copy_key(&self, of: TenantId, to: TenantId) -> Result<(), ControlError> {
        let what = "making the copy's key";
        let newest = self
            .master
            .query_opt(
                "select secrets from organization_keys where organization_id = $1 order by version desc limit 1",
                &[&of.as_uuid()],
            )
            .await
            .during(what)?;
        let newest = newest.ok_or_else(|| {
            ControlError::Refused("the organisation's key is destroyed: what it sealed opens nowhere".into())
        })?;
        let secrets = DataKeys::generate_for_copy(&self.settings.master_key, to, of, newest.get(0))?;
        self.master
            .execute(
                "insert into organization_keys (organization_id, version, secrets) values ($1, 1, $2)
                 on conflict (organization_id, version) do update set secrets = excluded.secrets",
                &[&to.as_uuid(), &secrets],
            )
            .await
            .during(what)?;
        Ok(())
    }

    /// Seals what another organisation's key sealed with the organisation's own, in a database that nobody uses yet.
    pub(crate) async fn reseal_all(
        &self,
        db: &Client,
        from: TenantId,
        to: TenantId,
    ) -> Result<u64, ControlError> {
        let (from, to) = (self.data_keys(from).await?, self.data_keys(to).await?);
        let mut resealed = 0;
        for module in std::iter::once(&modules::CORE).chain(modules::OPTIONAL) {
            for column in module.sealed {
                resealed += reseal(db, &from, &to, column).await?;
            }
        }
        Ok(resealed)
    }

    /// What opens and seals an organisation's fields.
    pub(crate) async fn data_keys(&self, id: TenantId) -> Result<DataKeys, ControlError> {
        let rows = self
            .master
            .query(
                "select secrets from organization_keys where organization_id = $1 order by version desc",
                &[&id.as_uuid()],
            )
            .await
            .during("reading the organisation's keys")?;
        let sealed: Vec<Vec<u8>> = rows.iter().map(|r| r.get(0)).collect();
        Ok(DataKeys::unwrap(&self.settings.master_key, id, &sealed)?)
    }
}

/// Makes an organisation's first key, if it has none.
///
/// # Errors
/// [`ControlError`] when the master refuses.
pub(crate) async fn ensure(
    master_key: &MasterKey,
    master: &impl GenericClient,
    id: TenantId,
) -> Result<(), ControlError> {
    let what = "making the organisation's key";
    let found = master
        .query_opt("select 1 from organization_keys where organization_id = $1 limit 1", &[&id.as_uuid()])
        .await
        .during(what)?;
    if found.is_none() {
        let secrets = DataKeys::generate(master_key, id, None)?;
        master
            .execute(
                "insert into organization_keys (organization_id, version, secrets) values ($1, 1, $2)
                 on conflict do nothing",
                &[&id.as_uuid(), &secrets],
            )
            .await
            .during(what)?;
    }
    Ok(())
}

/// Seals anew what an older key sealed, row by row: one that somebody changes meanwhile is theirs.
async fn reseal(db: &Client, from: &DataKeys, to: &DataKeys, at: &Sealed) -> Result<u64, ControlError> {
    let Sealed { table, key, column } = *at;
    let what = "sealing anew";
    let exists = db.query_one("select to_regclass($1) is not null", &[&table]).await.during(what)?;
    if !exists.get::<_, bool>(0) {
        return Ok(0);
    }
    let (t, k, c) = (quote_identifier(table), quote_identifier(key), quote_identifier(column));
    let read =
        format!("select {k}, {c} from {t} where {k} > $1 and {c} is not null order by {k} limit {BATCH}");
    let write = format!("update {t} set {c} = $2 where {k} = $1 and {c} = $3");
    let (mut after, mut resealed) = (Uuid::nil(), 0);
    loop {
        let rows = db.query(&read, &[&after]).await.during(what)?;
        let Some(last) = rows.last() else { return Ok(resealed) };
        after = last.get(0);
        for row in &rows {
            let (row, sealed): (Uuid, Vec<u8>) = (row.get(0), row.get(1));
            if to.is_current(&sealed) {
                continue;
            }
            let place = Place { table, column, row };
            let anew = to.seal(place, &from.open(place, &sealed)?)?;
            resealed += db.execute(&write, &[&row, &anew, &sealed]).await.during(what)?;
        }
    }
}
