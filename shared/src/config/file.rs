//! The file itself: what its top level may hold, and where in it a fault is.

use std::path::{Path, PathBuf};

use secrecy::SecretString;
use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue};

/// Sections and keys that the top level of the file may have.
const TOP_LEVEL: &[&str] = &[
    "base_domain",
    "public_https_port",
    "neutral_hosts",
    "platform_host",
    "default_modules",
    "log",
    "master",
    "secrets",
    "catalog",
    "metrics",
    "traces",
    "dns",
    "domains",
    "acme",
    "router",
    "api",
    "pool",
    "mail",
    "files",
    "backups",
    "provision",
    "signup",
    "cache",
];

/// A file that has been read, and whose top level holds known names only.
#[derive(Debug, Clone)]
pub struct ConfigFile {
    path: PathBuf,
    text: String,
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {cause}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// Not TOML, an unknown key, or a value of the wrong type or range.
    #[error("{}:{line}: {key}: {message}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Key with its section.
        key: String,
        /// What is wrong with it.
        message: String,
    },
}

impl ConfigFile {
    /// Reads a file and checks its top level.
    ///
    /// # Errors
    /// [`ConfigError`] when it is not there, not TOML, or has a section nobody knows.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let (file, faults) = Self::examine(path)?;
        match faults.into_iter().next() {
            Some(fault) => Err(fault),
            None => Ok(file),
        }
    }

    /// Reads a file as [`ConfigFile::load`] does, with all that is wrong at its top level.
    ///
    /// # Errors
    /// [`ConfigError`] when it is not there, or not TOML.
    pub fn examine(path: &Path) -> Result<(Self, Vec<ConfigError>), ConfigError> {
        let file = Self::read(path)?;
        let table = DeTable::parse(&file.text).map_err(|e| file.invalid(&e))?;
        let unknown = table.get_ref().keys().filter(|key| !TOP_LEVEL.contains(&key.get_ref().as_ref()));
        let faults = unknown.map(|key| file.at(key.span().start, key.get_ref(), "unknown key")).collect();
        Ok((file, faults))
    }

    /// Reads another file of the same manners, whose sections are for whoever parses it.
    ///
    /// # Errors
    /// [`ConfigError`] when it is not there.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|cause| ConfigError::Unreadable { path: path.to_owned(), cause })?;
        Ok(Self { path: std::path::absolute(path).unwrap_or_else(|_| path.to_owned()), text })
    }

    /// Where the file lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is in it.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Deserializes the whole file into a type that takes the sections it owns.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with the place of the first fault.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        toml::from_str(&self.text).map_err(|e| self.invalid(&e))
    }

    /// A path of the configuration, relative to its file.
    pub fn resolve(&self, path: &Path) -> PathBuf {
        match self.path.parent() {
            Some(parent) => parent.join(path),
            None => path.to_owned(),
        }
    }

    /// An error at a byte of the file.
    pub fn at(&self, offset: usize, key: &str, message: &str) -> ConfigError {
        let line = self.text.get(..offset).map_or(1, |before| before.matches('\n').count() + 1);
        ConfigError::Invalid { path: self.path.clone(), line, key: key.into(), message: message.into() }
    }

    /// An error at a key, or at the innermost section of it that is there; keys of sections are written with dots.
    pub fn at_key(&self, key: &str, message: &str) -> ConfigError {
        let offset = DeTable::parse(&self.text).map_or(0, |table| place(table.get_ref(), key));
        self.at(offset, key, message)
    }

    /// A secret from a file, which is what `key` names, or a variable; nothing where neither is named.
    ///
    /// # Errors
    /// [`ConfigError`] when both are named, or what is named is not there.
    pub fn secret(
        &self,
        key: &str,
        file: Option<PathBuf>,
        env: Option<String>,
    ) -> Result<Option<SecretString>, ConfigError> {
        match (file, env) {
            (Some(_), Some(_)) => Err(self.at_key(key, "give a file or a variable, not both")),
            (None, None) => Ok(None),
            (Some(file), None) => {
                let path = self.resolve(&file);
                let text = std::fs::read_to_string(&path)
                    .map_err(|e| self.at_key(key, &format!("{}: {e}", path.display())))?;
                Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned().into()))
            }
            (None, Some(name)) => match std::env::var(&name) {
                Ok(text) => Ok(Some(text.into())),
                Err(_) => {
                    let key =
                        key.strip_suffix("_file").map_or_else(|| key.to_owned(), |k| format!("{k}_env"));
                    Err(self.at_key(&key, &format!("variable {name} is not set")))
                }
            },
        }
    }

    fn invalid(&self, e: &toml::de::Error) -> ConfigError {
        let offset = e.span().map_or(0, |s| s.start);
        self.at(offset, &self.key_at(offset), e.message())
    }

    /// The key whose line holds the offset, with its section: good enough to find it, the line says the rest.
    fn key_at(&self, offset: usize) -> String {
        let before = self.text.get(..offset).unwrap_or("");
        let line_start = before.rfind('\n').map_or(0, |n| n + 1);
        let line = self.text[line_start..].lines().next().unwrap_or("");
        let section = self.text[..line_start]
            .lines()
            .rev()
            .find_map(|l| l.trim().strip_prefix('[')?.strip_suffix(']').map(str::to_owned));
        let key = line.split('=').next().unwrap_or("").trim().trim_matches(['[', ']']);
        match section {
            Some(section) if !line.trim_start().starts_with('[') => format!("{section}.{key}"),
            _ if key.is_empty() => "file".into(),
            _ => key.to_owned(),
        }
    }
}

fn place(table: &DeTable<'_>, key: &str) -> usize {
    let (mut at, mut table) = (0, table);
    for name in key.split('.') {
        let Some((found, value)) = table.iter().find(|(known, _)| known.get_ref() == name) else { break };
        at = found.span().start;
        match value.get_ref() {
            DeValue::Table(inner) => table = inner,
            _ => break,
        }
    }
    at
}
