//! `[backups]`

use std::path::PathBuf;
use std::str::FromStr as _;

use age::x25519::Identity;
use gmah_shared::config::{ConfigError, ConfigFile, HumanDuration, Within};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;

use crate::config::S3;

/// Where backups lie, who can read them, and how long they are kept.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backups {
    /// A folder, for one machine.
    #[serde(default)]
    pub folder: Option<PathBuf>,
    /// A service that speaks S3.
    #[serde(default)]
    pub s3: Option<S3>,
    /// Keys of age, one to a line: the first encrypts, all decrypt. Keep a copy elsewhere: without it no backup opens.
    #[serde(default)]
    key_file: Option<PathBuf>,
    /// A variable with the same.
    #[serde(default)]
    key_env: Option<String>,
    #[serde(skip)]
    keys: Option<SecretString>,
    /// Newest backups of an organisation that are kept. Default 30.
    #[serde(default = "keep")]
    pub keep: Within<1, 100_000>,
    /// Older ones are removed even so; the newest stays. Default 90 days.
    #[serde(default = "keep_for")]
    pub keep_for: HumanDuration,
    /// How old an organisation's newest backup gets until an api node makes another. Default: backups are made by command.
    #[serde(default)]
    pub every: Option<HumanDuration>,
    /// How often the newest of each is tried. Default: by command.
    #[serde(default)]
    pub verify_every: Option<HumanDuration>,
    /// Folder of `pg_dump` and `pg_restore`, which must not be older than the servers. Default: the newest of this machine.
    #[serde(default)]
    pub programs: Option<PathBuf>,
}

impl Backups {
    /// Reads its secrets, and refuses what makes no sense.
    pub(crate) fn settle(&mut self, file: &ConfigFile) -> Result<(), ConfigError> {
        for path in [&mut self.folder, &mut self.programs].into_iter().flatten() {
            *path = file.resolve(path);
        }
        if self.folder.is_some() == self.s3.is_some() {
            return Err(file.at_key("backups.folder", "must be there, or backups.s3, and not both"));
        }
        if let Some(s3) = &mut self.s3 {
            s3.settle(file, "backups")?;
        }
        let key = if self.key_env.is_some() { "backups.key_env" } else { "backups.key_file" };
        self.keys = file.secret("backups.key_file", self.key_file.take(), self.key_env.take())?;
        self.identities().map_err(|e| file.at_key(key, &e))?;
        Ok(())
    }

    /// The keys, the one that encrypts first.
    pub(crate) fn identities(&self) -> Result<Vec<Identity>, String> {
        let text = self.keys.as_ref().map_or("", |k| k.expose_secret());
        let lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
        let keys: Vec<_> =
            lines.map(|l| Identity::from_str(l).map_err(str::to_owned)).collect::<Result<_, _>>()?;
        if keys.is_empty() { Err("a key of age (AGE-SECRET-KEY-1…) is required".into()) } else { Ok(keys) }
    }

    /// A new key, as a line of the file.
    pub fn generate_key() -> SecretString {
        Identity::generate().to_string()
    }
}

fn keep() -> Within<1, 100_000> {
    Within::new(30)
}

fn keep_for() -> HumanDuration {
    HumanDuration::from_secs(90 * 86_400)
}
