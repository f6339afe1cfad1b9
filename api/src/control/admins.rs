//! Administrators of the platform itself.

use std::str::FromStr;

use gmah_shared::secret::random_password;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio_postgres::Row;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{Control, ControlError, During as _};
use crate::auth::password;

/// What an administrator may do; each may what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = AdministratorRole)]
pub enum Role {
    /// Look.
    ReadOnly,
    /// Suspend, resume, and look into an organisation as one of its users.
    Support,
    /// Create, change, move, back up and delete organisations.
    Operator,
    /// Say who else may.
    Owner,
}

impl Role {
    /// As it is stored.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ReadOnly => "read_only",
            Self::Support => "support",
            Self::Operator => "operator",
            Self::Owner => "owner",
        }
    }
}

impl FromStr for Role {
    type Err = ControlError;

    fn from_str(text: &str) -> Result<Self, ControlError> {
        [Self::ReadOnly, Self::Support, Self::Operator, Self::Owner]
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| {
                ControlError::field("role", format!("{text:?}: owner, operator, support or read_only"))
            })
    }
}

/// An administrator.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Administrator)]
pub struct Admin {
    /// Id.
    pub id: Uuid,
    /// E-mail address.
    pub email: String,
    /// What it may do.
    pub role: Role,
    /// Whether it may not log in.
    pub disabled: bool,
    /// Whether a code is asked for at login.
    pub totp: bool,
    /// When it was created.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

/// What to change of an administrator; what is none stays.
#[derive(Debug, Default, Clone, Copy)]
pub struct AdminChange {
    /// What it may do.
    pub role: Option<Role>,
    /// Whether it may not log in.
    pub disabled: Option<bool>,
}

impl Control {
    /// Creates an administrator and returns the password, which is stored nowhere in clear.
    ///
    /// # Errors
    /// [`ControlError::Refused`] when there is one with that address.
    pub async fn create_admin(
        &self,
        email: &str,
        role: Role,
        chosen: Option<SecretString>,
    ) -> Result<(Admin, SecretString), ControlError> {
        let email = super::parse_email(email)?;
        let secret = chosen.unwrap_or_else(random_password);
        let hash = password::hash(&secret)?;
        let made = self
            .master
            .query_opt(
                "with made as (
                     insert into system_admins (email, password_hash, role) values ($1, $2, $3)
                     on conflict (email) do nothing returning *),
                 logged as (
                     insert into audit_log (actor, action, detail)
                     select $4, 'admin.create', jsonb_build_object('email', email, 'role', role) from made)
                 select * from made",
                &[&email, &hash, &role.as_str(), &self.actor],
            )
            .await
            .during("creating the administrator")?;
        match made {
            Some(row) => Ok((admin(&row)?, secret)),
            None => Err(ControlError::Refused(format!("there is an administrator {email} already"))),
        }
    }

    /// Every administrator.
    ///
    /// # Errors
    /// [`ControlError`] when the master is away.
    pub async fn admins(&self) -> Result<Vec<Admin>, ControlError> {
        let rows = self
            .master
            .query("select * from system_admins order by email limit 10000", &[])
            .await
            .during("listing administrators")?;
        rows.iter().map(admin).collect()
    }

    /// The administrator of an id.
    ///
    /// # Errors
    /// [`ControlError::Refused`] when there is none.
    pub async fn admin_of(&self, id: Uuid) -> Result<Admin, ControlError> {
        let row = self
            .master
            .query_opt("select * from system_admins where id = $1", &[&id])
            .await
            .during("looking for the administrator")?;
        admin(&row.ok_or_else(|| no_admin(&id.to_string()))?)
    }

    /// Changes what an administrator may do. Its sessions go on with what it may then; those of one that is disabled end.
    ///
    /// # Errors
    /// [`ControlError::Refused`] when there is none, or nobody would be left who may say who else may.
    pub async fn change_admin(&mut self, email: &str, change: AdminChange) -> Result<Admin, ControlError> {
        let (email, what, actor) =
            (super::parse_email(email)?, "changing the administrator", self.actor.clone());
        let role = change.role.map(Role::as_str);
        let tx = self.master.transaction().await.during(what)?;
        // One after the other: two owners must not take each other's place at once.
        tx.execute("lock table system_admins in share row exclusive mode", &[]).await.during(what)?;
        let row = tx
            .query_opt(
                "with changed as (
                     update system_admins set role = coalesce($2, role), updated_at = now(),
                         disabled_at = case $3::boolean when true then coalesce(disabled_at, now())
                             when false then null else disabled_at end
                     where email = $1 returning *),
                 ended as (
                     delete from system_sessions where admin_id = (select id from changed where disabled_at is not null)),
                 logged as (
                     insert into audit_log (actor, action, detail)
                     select $4, 'admin.change', jsonb_build_object('email', email, 'role', role, 'disabled', disabled_at is not null)
                     from changed)
                 select * from changed",
                &[&email, &role, &change.disabled, &actor],
            )
            .await
            .during(what)?;
        let row = row.ok_or_else(|| no_admin(&email))?;
        let owners: i64 = tx
            .query_one("select count(*) from system_admins where role = 'owner' and disabled_at is null", &[])
            .await
            .during(what)?
            .get(0);
        if owners == 0 {
            return Err(ControlError::Refused(format!("{email} is the last owner who can log in")));
        }
        tx.commit().await.during(what)?;
        admin(&row)
    }

    /// Gives an administrator another password and takes the second factor away; all sessions end.
    ///
    /// # Errors
    /// [`ControlError::Refused`] when there is none.
    pub async fn reset_admin(
        &self,
        email: &str,
        chosen: Option<SecretString>,
    ) -> Result<(Admin, SecretString), ControlError> {
        let email = super::parse_email(email)?;
        let secret = chosen.unwrap_or_else(random_password);
        let hash = password::hash(&secret)?;
        let row = self
            .master
            .query_opt(
                "with changed as (
                     update system_admins set password_hash = $2, totp_secret = null, totp_confirmed_at = null,
                         updated_at = now()
                     where email = $1 returning *),
                 ended as (delete from system_sessions where admin_id = (select id from changed)),
                 logged as (
                     insert into audit_log (actor, action, detail)
                     select $3, 'admin.reset', jsonb_build_object('email', email) from changed)
                 select * from changed",
                &[&email, &hash, &self.actor],
            )
            .await
            .during("giving the administrator another password")?;
        let row = row.ok_or_else(|| no_admin(&email))?;
        Ok((admin(&row)?, secret))
    }
}

fn no_admin(email: &str) -> ControlError {
    ControlError::Refused(format!("there is no administrator {email}"))
}

/// Of a row of `system_admins`.
pub(crate) fn admin(row: &Row) -> Result<Admin, ControlError> {
    Ok(Admin {
        id: row.get("id"),
        email: row.get("email"),
        role: row.get::<_, &str>("role").parse()?,
        disabled: row.get::<_, Option<OffsetDateTime>>("disabled_at").is_some(),
        totp: row.get::<_, Option<OffsetDateTime>>("totp_confirmed_at").is_some(),
        created_at: row.get("created_at"),
    })
}
