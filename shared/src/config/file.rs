//! The file itself: what its top level may hold, and where in it a fault is.

use std::path::{Path, PathBuf};

use secrecy::SecretString;
use serde::de::DeserializeOwned;

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
        let file = Self::read(path)?;
        let table = toml::de::DeTable::parse(&file.text).map_err(|e| file.invalid(&e))?;
        for key in table.get_ref().keys() {
            if !TOP_LEVEL.contains(&key.get_ref().as_ref()) {
                return Err(file.at(key.span().start, key.get_ref(), "unknown key"));
            }
        }
        Ok(file)
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

    /// An error at a key, wherever its line is; keys of sections are written with dots.
    pub fn at_key(&self, key: &str, message: &str) -> ConfigError {
        let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
        let starts = |text: &str, from: usize, wanted: &str| {
            let mut at = from;
            text[from..].split_inclusive('\n').find_map(|line| {
                let here = at;
                at += line.len();
                line.trim_start().trim_start_matches('[').starts_with(wanted).then_some(here)
            })
        };
        let header = if section.is_empty() { Some(0) } else { starts(&self.text, 0, section) };
        let offset = header.map_or(0, |h| starts(&self.text, h, name).unwrap_or(h));
        self.at(offset, key, message)
    }

    /// A secret from a file or a variable; nothing where neither is named.
    ///
    /// # Errors
    /// [`ConfigError`] when both are named, or what is named is not there.
    pub fn secret(
        &self,
        at: usize,
        key: &str,
        file: Option<PathBuf>,
        env: Option<String>,
    ) -> Result<Option<SecretString>, ConfigError> {
        match (file, env) {
            (Some(_), Some(_)) => Err(self.at(at, key, "give a file or a variable, not both")),
            (None, None) => Ok(None),
            (Some(file), None) => {
                let path = self.resolve(&file);
                let text = std::fs::read_to_string(&path)
                    .map_err(|e| self.at(at, key, &format!("{}: {e}", path.display())))?;
                Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned().into()))
            }
            (None, Some(name)) => match std::env::var(&name) {
                Ok(text) => Ok(Some(text.into())),
                Err(_) => Err(self.at(at, key, &format!("variable {name} is not set"))),
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
