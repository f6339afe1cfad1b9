//! The control plane: creating organisations and changing them. Used by the command line; nothing here knows HTTP.
//!
//! What takes several steps is an operation ([`operations`]): every step may be killed and done again. What is created
//! gets its name in the master first, and is adopted later only if it carries the organisation's mark.

pub mod admins;
pub mod backup;
pub mod config;
pub mod data_keys;
pub mod delete;
pub mod doctor;
pub mod domains;
pub mod edge;
pub mod exec;
pub mod features;
mod fence;
pub mod figures;
pub mod fleet;
pub mod keys;
pub mod master;
pub mod master_key;
pub mod migrate;
pub mod operations;
pub mod own_migrations;
pub mod portable;
pub mod provision;
pub mod purge;
pub mod relocate;
pub(crate) mod remove;
pub mod role_password;
mod scrub;
pub mod seed;
pub mod servers;
pub mod signup;
pub mod split;
pub mod template;
pub mod tenants;
pub mod worker;

use gmah_shared::config::Settings;
use gmah_shared::migrate::MigrateError;
use gmah_shared::pg;
use gmah_shared::secret::SecretError;
use gmah_shared::tenant::TenantSlug;
use tokio_postgres::Client;

use self::config::ControlConfig;
use self::operations::Progress;

/// A session of the control plane: the settings and one connection to the master.
pub struct Control {
    /// What every role and command knows.
    pub settings: Settings,
    pub(crate) master: Client,
    pub(crate) config: ControlConfig,
    /// Who asks, for the journal and the audit.
    pub(crate) actor: String,
    pub(crate) progress: Progress,
}

/// Why a command did not do what was asked. The sentences are for the operator.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The request itself cannot be right: nothing was changed.
    #[error("{0}")]
    Usage(String),
    /// The same of one field of it, by its name in the admin API's requests.
    #[error("{why}")]
    Field {
        /// Which.
        name: &'static str,
        /// The rule that it breaks.
        why: String,
    },
    /// It is right, but not here and now: nothing was changed.
    #[error("{0}")]
    Refused(String),
    /// There is no such organisation.
    #[error("there is no organisation {0}")]
    NoTenant(String),
    /// The master or a server failed.
    #[error("{what}: {}", reason(cause))]
    Database {
        /// What was being done.
        what: String,
        /// What PostgreSQL said.
        cause: tokio_postgres::Error,
    },
    /// A server did not answer.
    #[error("{0}: no answer in time")]
    Silent(String),
    /// A migration failed.
    #[error("{what}: {cause}")]
    Migrate {
        /// Of what.
        what: String,
        /// Why.
        cause: MigrateError,
    },
    /// A sealed value did not open or close.
    #[error("{0}")]
    Secret(#[from] SecretError),
    /// A password was not hashed.
    #[error("{0}")]
    Password(#[from] crate::auth::password::HashError),
    /// A key was not made.
    #[error("{0}")]
    Key(#[from] gmah_shared::token::KeyError),
    /// It failed, and what it had made is still there.
    #[error("{cause}; and it could not be undone: {left}")]
    HalfDone {
        /// Why it failed.
        cause: String,
        /// Why what it had made is still there.
        left: String,
    },
    /// Something that should be ours is not.
    #[error("{0}")]
    Foreign(String),
}

impl ControlError {
    /// A request that one of its fields makes impossible.
    pub(crate) fn field(name: &'static str, why: impl Into<String>) -> Self {
        Self::Field { name, why: why.into() }
    }

    /// What is to be said of a failure whose work was undone, or not.
    pub(crate) fn after_undoing<T>(cause: Self, undone: Result<(), Self>) -> Result<T, Self> {
        match undone {
            Ok(()) => Err(cause),
            Err(left) => Err(Self::HalfDone { cause: cause.to_string(), left: left.to_string() }),
        }
    }
}

fn reason(e: &tokio_postgres::Error) -> String {
    match e.as_db_error() {
        Some(db) => db.message().to_owned(),
        None => std::error::Error::source(e).map_or_else(|| e.to_string(), |s| format!("{e}: {s}")),
    }
}

/// Adds to an error what was being done.
pub(crate) trait During<T> {
    fn during(self, what: &str) -> Result<T, ControlError>;
}

impl<T> During<T> for Result<T, tokio_postgres::Error> {
    fn during(self, what: &str) -> Result<T, ControlError> {
        self.map_err(|cause| ControlError::Database { what: what.to_owned(), cause })
    }
}

impl<T> During<T> for Result<T, pg::ConnectError> {
    fn during(self, what: &str) -> Result<T, ControlError> {
        self.map_err(|e| match e {
            pg::ConnectError::Timeout => ControlError::Silent(what.to_owned()),
            pg::ConnectError::Postgres(cause) => ControlError::Database { what: what.to_owned(), cause },
        })
    }
}

impl<T> During<T> for Result<T, MigrateError> {
    fn during(self, what: &str) -> Result<T, ControlError> {
        self.map_err(|cause| ControlError::Migrate { what: what.to_owned(), cause })
    }
}

impl Control {
    /// Connects to the master and brings its schema up to this binary.
    ///
    /// # Errors
    /// [`ControlError`] when the master is away or its schema is ahead, or the master key here is not the one that is used.
    pub async fn open(settings: Settings, config: ControlConfig) -> Result<Self, ControlError> {
        let mut master = pg::connect(&settings.master, "gmah control").await.during("master database")?;
        // What this session holds is free within five seconds also when its machine is gone without a word (PostgreSQL,
        // chapter 20.3.2); on a Unix socket the server notices by itself.
        master.batch_execute(KEEPALIVES).await.during("master database")?;
        master::migrate(&mut master).await?;
        let control =
            Self { settings, master, config, actor: whoever_types(), progress: operations::quiet() };
        control.may_seal().await?;
        Ok(control)
    }

    /// Another session, for work beside this one's.
    pub(crate) async fn another(&self) -> Result<Self, ControlError> {
        let master = pg::connect(&self.settings.master, "gmah control").await.during("master database")?;
        master.batch_execute(KEEPALIVES).await.during("master database")?;
        let (settings, config) = (self.settings.clone(), self.config.clone());
        let control =
            Self { settings, master, config, actor: self.actor.clone(), progress: self.progress.clone() };
        control.may_seal().await?;
        Ok(control)
    }

    /// Whether backups are made here.
    pub(crate) fn has_backups(&self) -> bool {
        self.config.backups.is_some()
    }

    /// The same session, in somebody else's name.
    #[must_use]
    pub fn working(self, actor: &str) -> Self {
        Self { actor: actor.to_owned(), ..self }
    }

    /// The same session, which says what it is at.
    #[must_use]
    pub fn telling(self, progress: Progress) -> Self {
        Self { progress, ..self }
    }
}

const KEEPALIVES: &str =
    "set tcp_keepalives_idle = 2; set tcp_keepalives_interval = 1; set tcp_keepalives_count = 2;
    set tcp_user_timeout = '5s'";

/// Who asked on the command line.
fn whoever_types() -> String {
    let user = std::env::var("SUDO_USER").or_else(|_| std::env::var("USER"));
    format!("cli:{}", user.unwrap_or_else(|_| "unknown".into()))
}

/// A slug as an operator typed it.
///
/// # Errors
/// [`ControlError::Usage`] with the rule that it breaks.
pub fn parse_slug(raw: &str) -> Result<TenantSlug, ControlError> {
    TenantSlug::parse(raw).map_err(|e| ControlError::Usage(format!("{raw:?}: {e}")))
}

/// An e-mail address as an operator typed it, in lower case.
///
/// # Errors
/// [`ControlError::Usage`].
pub fn parse_email(raw: &str) -> Result<String, ControlError> {
    let email = raw.trim().to_lowercase();
    if crate::repo::users::is_email(&email) {
        Ok(email)
    } else {
        Err(ControlError::Usage(format!("{raw:?} is not an e-mail address")))
    }
}
