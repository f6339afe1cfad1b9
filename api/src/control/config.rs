//! What the control plane needs of the configuration beside the shared settings.

use std::path::PathBuf;

use gmah_shared::config::{ConfigError, ConfigFile, HumanDuration, Within};
use serde::Deserialize;

use super::backup::config::Backups;
use crate::config::{Files, Mail};

/// `[provision]`: how organisations are made.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Provision {
    /// A router (`host:port`) that is asked for whoever is new, before it is said that they are served. Default: nobody is asked.
    pub(crate) probe: Option<String>,
    /// Authorities (PEM) that may have signed its certificate. Default: the system's.
    pub(crate) probe_ca_file: Option<PathBuf>,
    /// Databases that api nodes keep ready on each server, with the default modules: whoever is new need not wait for one to be
    /// copied. Default none.
    pub(crate) ready: Within<0, 1000>,
}

impl Default for Provision {
    fn default() -> Self {
        Self { probe: None, probe_ca_file: None, ready: Within::new(0) }
    }
}

/// `[signup]`: whether people may make an organisation by themselves. Without it, they may not.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signup {
    /// Plans that may be chosen; the first is that of whoever chooses none.
    pub plans: Vec<String>,
    /// Where the link in the letter leads: `{token}` goes to `POST /api/v1/signup/confirm`. Default: a page of ours.
    #[serde(default)]
    pub link: Option<String>,
    /// How long it leads there. Default 24 h.
    #[serde(default = "day")]
    pub life: HumanDuration,
    /// Letters within an hour, to everybody. Default 200.
    #[serde(default = "per_hour")]
    pub per_hour: Within<1, 100_000>,
    /// Letters within an hour that one network (an address, or /64 of IPv6) has sent. Default 10.
    #[serde(default = "per_network")]
    pub per_network: Within<1, 100_000>,
    /// Letters within an hour to one address. Default 3.
    #[serde(default = "per_email")]
    pub per_email: Within<1, 1000>,
}

fn day() -> HumanDuration {
    HumanDuration::from_secs(86_400)
}

fn per_hour() -> Within<1, 100_000> {
    Within::new(200)
}

fn per_network() -> Within<1, 100_000> {
    Within::new(10)
}

fn per_email() -> Within<1, 1000> {
    Within::new(3)
}

/// `[mail]` and `[files]`, as the api has them, `[backups]`, `[provision]` and `[signup]`.
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
    /// Whether people may make organisations by themselves.
    #[serde(default)]
    pub(crate) signup: Option<Signup>,
}

impl ControlConfig {
    /// The same, where no router is there yet.
    #[must_use]
    pub fn without_probe(mut self) -> Self {
        self.provision.probe = None;
        self
    }

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
        if let Some(ca) = &mut config.provision.probe_ca_file {
            *ca = file.resolve(ca);
        }
        if let Some(signup) = &config.signup {
            if config.mail.is_none() {
                return Err(file.at_key("signup", "needs [mail]: nobody could confirm an address"));
            }
            if signup.plans.is_empty() {
                return Err(file.at_key("signup.plans", "names at least one"));
            }
            if signup.link.as_ref().is_some_and(|link| !link.contains("{token}")) {
                return Err(file.at_key("signup.link", "must contain {token}"));
            }
        }
        Ok(config)
    }
}
