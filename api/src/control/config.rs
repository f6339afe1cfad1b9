//! What the control plane needs of the configuration beside the shared settings.

use gmah_shared::config::{ConfigError, ConfigFile, Within};
use serde::Deserialize;

use super::backup::config::Backups;
use crate::config::{Files, Mail};

/// `[provision]`: how organisations are made.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Provision {
    /// Databases that api nodes keep ready on each server, with the default modules: whoever is new need not wait for one to be
    /// copied. Default none.
    pub(crate) ready: Within<0, 1000>,
}

impl Default for Provision {
    fn default() -> Self {
        Self { ready: Within::new(0) }
    }
}

/// `[mail]` and `[files]`, as the api has them, `[backups]` and `[provision]`.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct ControlConfig {
    /// Without it, nobody is sent a letter.
    #[serde(default)]
    pub(crate) mail: Option<Mail>,
    /// Without it, organisations have no files.
    #[serde(default)]
    pub(crate) files: Option<Files>,
    /// Without it, there are no backups.
    #[serde(default)]
    pub(crate) backups: Option<Backups>,
    /// How organisations are made.
    #[serde(default)]
    pub(crate) provision: Provision,
}

impl ControlConfig {
    /// Takes the sections out of the file.
    ///
    /// # Errors
    /// [`ConfigError`] with the place of the first fault.
    pub fn from_file(file: &ConfigFile) -> Result<Self, ConfigError> {
        let mut config: Self = file.parse()?;
        if let Some(mail) = &mut config.mail {
            mail.settle(file)?;
        }
        if let Some(files) = &mut config.files {
            files.settle(file)?;
        }
        if let Some(backups) = &mut config.backups {
            backups.settle(file)?;
        }
        Ok(config)
    }
}
