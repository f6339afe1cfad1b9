//! What operations do, and what they work on.

use std::fmt;

use gmah_shared::tenant::{TenantId, TenantSlug};
use serde::Serialize;

use crate::control::ControlError;

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(into = "&'static str")]
pub enum Kind {
    /// [`crate::control::provision`]
    Create,
    /// [`crate::control::migrate`]
    Migrate,
    /// [`crate::control::backup`]
    Backup,
    /// [`crate::control::backup::restore`]: into another database of the same organisation.
    Restore,
    /// [`crate::control::backup::restore`]: back to the database before.
    Undo,
    /// [`crate::control::backup::restore`]: as another organisation.
    RestoreAs,
    /// [`crate::control::delete`]
    Delete,
    /// [`crate::control::delete`]
    Undelete,
    /// [`crate::control::purge`]
    Purge,
    /// [`crate::control::portable`]
    Import,
    /// [`crate::control::role_password`]
    RolePassword,
    /// [`crate::control::relocate`]
    Move,
    /// [`crate::control::features`]
    Modules,
    /// [`crate::control::data_keys`]
    DataKey,
    /// [`crate::control::keys`]
    SigningKey,
    /// [`crate::control::master_key`]
    MasterKey,
}

pub(super) const KINDS: &[Kind] = &[
    Kind::Create,
    Kind::Migrate,
    Kind::Backup,
    Kind::Restore,
    Kind::Undo,
    Kind::RestoreAs,
    Kind::Delete,
    Kind::Undelete,
    Kind::Purge,
    Kind::Import,
    Kind::RolePassword,
    Kind::Move,
    Kind::Modules,
    Kind::DataKey,
    Kind::SigningKey,
    Kind::MasterKey,
];

impl Kind {
    /// Its name in the journal and for people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "tenant.create",
            Self::Migrate => "fleet.migrate",
            Self::Backup => "tenant.backup",
            Self::Restore => "tenant.restore",
            Self::Undo => "tenant.restore_undo",
            Self::RestoreAs => "tenant.restore_as",
            Self::Delete => "tenant.delete",
            Self::Undelete => "tenant.undelete",
            Self::Purge => "tenant.purge",
            Self::Import => "tenant.import",
            Self::RolePassword => "tenant.rotate_password",
            Self::Move => "tenant.move",
            Self::Modules => "tenant.modules",
            Self::DataKey => "tenant.rotate_data_key",
            Self::SigningKey => "key.rotate_signing",
            Self::MasterKey => "key.rotate_master",
        }
    }

    /// Whether one of that kind that was left unfinished is void once this one is asked for: another run does all of it, or
    /// there is nothing left to be gone on with.
    pub(super) fn makes_void(self, earlier: &str) -> bool {
        if Self::parse(earlier).is_some_and(Self::stands_in_nobodys_way) {
            return true;
        }
        match self {
            Self::Migrate | Self::Backup => earlier == self.as_str(),
            Self::Purge => earlier == Self::Delete.as_str() || earlier == Self::Undelete.as_str(),
            _ => false,
        }
    }

    /// Whether one that was left unfinished leaves an organisation as it should be. Tables without the switch are what every one has
    /// that once had the module; a data key that does not seal yet is taken up by the next exchange.
    const fn stands_in_nobodys_way(self) -> bool {
        matches!(self, Self::Modules | Self::DataKey)
    }

    /// Names of those that stand in nobody's way when they were left unfinished.
    pub(in crate::control) fn in_nobodys_way() -> Vec<&'static str> {
        KINDS.iter().filter(|kind| kind.stands_in_nobodys_way()).map(|kind| kind.as_str()).collect()
    }

    /// Whether one that failed has left something that another run goes on with.
    pub(super) const fn is_gone_on_with(self) -> bool {
        match self {
            Self::Create | Self::Migrate | Self::Undelete | Self::Purge => true,
            Self::RolePassword | Self::DataKey | Self::SigningKey | Self::MasterKey => true,
            Self::Backup | Self::Restore | Self::Undo | Self::RestoreAs => false,
            Self::Delete | Self::Import | Self::Move | Self::Modules => false,
        }
    }

    /// Whether it comes round again: of organisations by the thousand such operations would fill the journal. What was made and
    /// what was destroyed stays in it.
    const fn comes_round(self) -> bool {
        match self {
            Self::Migrate | Self::Backup | Self::Restore | Self::Undo | Self::Move | Self::Modules => true,
            Self::RolePassword | Self::DataKey | Self::SigningKey | Self::MasterKey => true,
            Self::Create | Self::Import | Self::RestoreAs => false,
            Self::Delete | Self::Undelete | Self::Purge => false,
        }
    }

    /// Names of those that come round again.
    pub(in crate::control) fn that_come_round() -> Vec<&'static str> {
        KINDS.iter().filter(|kind| kind.comes_round()).map(|kind| kind.as_str()).collect()
    }

    /// The kind of that name, if this program knows it.
    pub fn parse(name: &str) -> Option<Self> {
        KINDS.iter().copied().find(|kind| kind.as_str() == name)
    }
}

impl From<Kind> for &'static str {
    fn from(kind: Kind) -> Self {
        kind.as_str()
    }
}

/// What an operation works on, of which one operation at a time may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Subject {
    /// A name that is to become an organisation.
    Slug(TenantSlug),
    /// An organisation.
    Organization(TenantId),
    /// All of them, by what is done to them.
    Fleet(String),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Slug(slug) => write!(f, "slug/{slug}"),
            Self::Organization(id) => write!(f, "organization/{id}"),
            Self::Fleet(what) => write!(f, "fleet/{what}"),
        }
    }
}

impl Subject {
    pub(super) fn parse(text: &str) -> Result<Self, ControlError> {
        let parsed = text.split_once('/').and_then(|(what, which)| match what {
            "slug" => TenantSlug::parse(which).ok().map(Self::Slug),
            "organization" => which.parse().ok().map(|id| Self::Organization(TenantId::from_uuid(id))),
            "fleet" => Some(Self::Fleet(which.to_owned())),
            _ => None,
        });
        parsed.ok_or_else(|| ControlError::Foreign(format!("the journal has a subject {text:?}")))
    }
}
