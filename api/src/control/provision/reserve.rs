//! The names under which everything of an organisation is kept, reserved in the master before any of it is made.

use gmah_shared::hostname::Hostname;
use gmah_shared::secret::random_password;
use gmah_shared::tenant::{TenantId, TenantSlug};
use secrecy::{ExposeSecret as _, SecretString};
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use uuid::Uuid;

use super::NewTenant;
use crate::control::{Control, ControlError, During as _, data_keys};

/// The names under which everything is reserved.
pub(crate) struct Reserved {
    pub(crate) id: TenantId,
    pub(crate) server: Uuid,
    pub(crate) database: String,
    pub(crate) role: String,
    pub(super) role_password: SecretString,
    pub(crate) placement: i32,
}

impl Control {
    /// Writes all names in one transaction, unless that operation has before.
    pub(crate) async fn reserve(
        &mut self,
        new: &NewTenant,
        operation: Uuid,
    ) -> Result<TenantId, ControlError> {
        let what = "reserving the names";
        let known = self
            .master
            .query_one("select organization_id from operations where id = $1", &[&operation])
            .await
            .during(what)?;
        if let Some(id) = known.get::<_, Option<Uuid>>(0) {
            return Ok(TenantId::from_uuid(id));
        }
        let server = self.place(new.server.as_deref()).await?;
        let id = TenantId::generate();
        let role_password = random_password();
        let context = format!("organizations/{id}/role");
        let sealed = self.settings.master_key.seal(&context, role_password.expose_secret().as_bytes())?;
        let database = new.slug.database_name();
        let domain = new.domain.as_ref().map(Hostname::as_str);
        let tx = self.master.transaction().await.during(what)?;
        let inserted = tx
            .execute(
                "insert into organizations
                     (id, slug, name, domain, plan, server_id, database_name, role_name, role_password)
                 values ($1, $2, $3, $4, $5, $6, $7, $7, $8)",
                &[
                    &id.as_uuid(),
                    &new.slug.as_str(),
                    &new.name,
                    &domain,
                    &new.plan,
                    &server,
                    &database,
                    &sealed,
                ],
            )
            .await;
        match inserted {
            Err(e) if e.code() == Some(&SqlState::UNIQUE_VIOLATION) => {
                return Err(ControlError::Refused(format!("the slug {} is taken", new.slug)));
            }
            other => other.during(what)?,
        };
        tx.execute(
            "insert into organization_features (organization_id, module) select $1, unnest($2::text[])",
            &[&id.as_uuid(), &new.modules],
        )
        .await
        .during(what)?;
        if let Some(domain) = domain {
            tx.execute(
                "insert into organization_domains (hostname, organization_id) values ($1, $2)",
                &[&domain, &id.as_uuid()],
            )
            .await
            .during(what)?;
        }
        data_keys::ensure(&self.settings.master_key, &tx, id).await?;
        tx.execute("update operations set organization_id = $2 where id = $1", &[&operation, &id.as_uuid()])
            .await
            .during(what)?;
        tx.commit().await.during(what)?;
        Ok(id)
    }

    /// What an operation has reserved.
    pub(crate) async fn reserved(&self, operation: Uuid) -> Result<Reserved, ControlError> {
        let r = self
            .master
            .query_one(
                "select o.id, o.server_id, o.database_name, o.role_name, o.role_password, o.placement
                 from operations p join organizations o on o.id = p.organization_id where p.id = $1",
                &[&operation],
            )
            .await
            .during("reading what is reserved")?;
        self.reserved_row(&r)
    }

    fn reserved_row(&self, r: &Row) -> Result<Reserved, ControlError> {
        let id = TenantId::from_uuid(r.get("id"));
        let context = format!("organizations/{id}/role");
        Ok(Reserved {
            id,
            server: r.get("server_id"),
            database: r.get("database_name"),
            role: r.get("role_name"),
            // Destroyed with the organisation.
            role_password: match r.get::<_, &[u8]>("role_password") {
                [] => SecretString::default(),
                sealed => self.settings.master_key.open_text(&context, sealed)?,
            },
            placement: r.get("placement"),
        })
    }

    /// Whether an organisation has become active, or was and is not any more.
    pub(crate) async fn is_used(&self, id: TenantId) -> Result<bool, ControlError> {
        let row = self
            .master
            .query_one("select status <> 'provisioning' from organizations where id = $1", &[&id.as_uuid()])
            .await
            .during("reading the status")?;
        Ok(row.get(0))
    }

    /// What an organisation has.
    pub(crate) async fn reserved_of(&self, id: TenantId) -> Result<Reserved, ControlError> {
        let r = self
            .master
            .query_one(
                "select id, server_id, database_name, role_name, role_password, placement
                 from organizations where id = $1",
                &[&id.as_uuid()],
            )
            .await
            .during("reading what the organisation has")?;
        self.reserved_row(&r)
    }

    /// Why the slug cannot be had, unless by the operation that has it.
    pub(crate) async fn taken(&self, slug: &TenantSlug) -> Result<Option<ControlError>, ControlError> {
        let row = self
            .master
            .query_opt(
                "select status from organizations where slug = $1 and purged_at is null",
                &[&slug.as_str()],
            )
            .await
            .during("looking for the slug")?;
        Ok(row.map(|row| {
            ControlError::Refused(match row.get("status") {
                "deleted" => {
                    format!("the slug {slug} is taken by one that was deleted: gmah tenant undelete {slug}")
                }
                _ => format!("the slug {slug} is taken"),
            })
        }))
    }
}
