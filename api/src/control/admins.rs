//! Administrators of the platform itself.

use gmah_shared::secret::random_password;
use secrecy::SecretString;
use serde::Serialize;
use time::OffsetDateTime;

use super::{Control, ControlError, During as _};
use crate::auth::password;

/// An administrator.
#[derive(Debug, Serialize)]
pub struct Admin {
    /// E-mail address.
    pub email: String,
    /// When it was created.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

impl Control {
    /// Creates an administrator and returns the password, which is stored nowhere in clear.
    ///
    /// # Errors
    /// [`ControlError::Refused`] when there is one with that address.
    pub async fn create_admin(
        &self,
        email: &str,
        chosen: Option<SecretString>,
    ) -> Result<SecretString, ControlError> {
        let email = super::parse_email(email)?;
        let secret = chosen.unwrap_or_else(random_password);
        let hash = password::hash(&secret)?;
        let made = self
            .master
            .execute(
                "insert into system_admins (email, password_hash) values ($1, $2) on conflict (email) do nothing",
                &[&email, &hash],
            )
            .await
            .during("creating the administrator")?;
        if made == 0 {
            return Err(ControlError::Refused(format!("there is an administrator {email} already")));
        }
        Ok(secret)
    }

    /// Every administrator.
    ///
    /// # Errors
    /// [`ControlError`] when the master is away.
    pub async fn admins(&self) -> Result<Vec<Admin>, ControlError> {
        let rows = self
            .master
            .query("select email, created_at from system_admins order by email limit 10000", &[])
            .await
            .during("listing administrators")?;
        Ok(rows.iter().map(|r| Admin { email: r.get(0), created_at: r.get(1) }).collect())
    }
}
