//! Who a tenant is: id, slug, status, generation.
//!
//! Each is parsed once, at the edge of the program, into a type that cannot be wrong; ids of different things never
//! compare with each other.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The identity of an organisation. Never reused, even when its slug is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId(Uuid);

impl TenantId {
    /// A new id, ordered by time (UUID version 7) so that indexes stay dense.
    pub fn generate() -> Self {
        Self(Uuid::now_v7())
    }

    /// Takes an id that the master database or a verified token holds.
    pub fn from_uuid(id: Uuid) -> Self {
        Self(id)
    }

    /// The UUID, for SQL parameters.
    pub fn as_uuid(&self) -> Uuid {
        self.0
    }

    /// Parses the hyphenated lower-case form, and only it, so that one id has one spelling.
    ///
    /// # Errors
    /// When the text is any other form of UUID, or none.
    pub fn parse(raw: &str) -> Result<Self, TenantIdError> {
        let id = Uuid::try_parse(raw).map_err(|_| TenantIdError)?;
        if id.hyphenated().to_string() == raw { Ok(Self(id)) } else { Err(TenantIdError) }
    }
}

/// The text is not a UUID in hyphenated lower case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an organisation id (UUID in lower case with hyphens)")]
pub struct TenantIdError;

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.hyphenated(), f)
    }
}

impl fmt::Debug for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The short name of an organisation: its label under the base domain and the stem of its first database.
///
/// `^[a-z][a-z0-9-]{1,48}[a-z0-9]$`, no `--`, and none of [`RESERVED_SLUGS`].
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantSlug(Box<str>);

/// Why a text cannot be a slug.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TenantSlugError {
    /// Not of the form that a slug has.
    #[error(
        "a slug has 3 to 50 characters, begins with a letter, ends with a letter or digit, and holds only a-z, 0-9 and single hyphens"
    )]
    Malformed,
    /// A name that the platform keeps for itself.
    #[error("this slug is reserved")]
    Reserved,
}

impl TenantSlug {
    /// The only way to a slug.
    ///
    /// # Errors
    /// [`TenantSlugError`]: nothing is repaired, an upper-case letter is an error.
    pub fn parse(raw: &str) -> Result<Self, TenantSlugError> {
        let bytes = raw.as_bytes();
        let mut before = b'-';
        // No hyphen at the beginning, none after another.
        let sound = bytes.iter().all(|b| {
            let before = std::mem::replace(&mut before, *b);
            matches!(b, b'a'..=b'z' | b'0'..=b'9') || (*b == b'-' && before != b'-')
        });
        let well_formed =
            sound && (3..=50).contains(&bytes.len()) && bytes[0].is_ascii_lowercase() && before != b'-';
        // Reserved names are named as such in any case, also those too short or too odd to be slugs at all.
        let reserved = match well_formed {
            true => RESERVED_SLUGS.binary_search(&raw).is_ok(),
            false => RESERVED_SLUGS.iter().any(|r| r.eq_ignore_ascii_case(raw)),
        };
        match (reserved, well_formed) {
            (true, _) => Err(TenantSlugError::Reserved),
            (false, true) => Ok(Self(raw.into())),
            (false, false) => Err(TenantSlugError::Malformed),
        }
    }

    /// What stands where an organisation's slug would, in series and logs, for the platform's own host. It is none:
    /// no text parses as it.
    pub fn platform() -> Self {
        Self("_platform".into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Name of the organisation's first database and of its role: `gmah_org_` and the slug with `_` for `-`.
    pub fn database_name(&self) -> String {
        format!("gmah_org_{}", self.0.replace('-', "_"))
    }

    /// Name of the database of a later placement: `gmah_org_<first 36 of slug>_p<placement>_<8 hex of id>`, at most 63 bytes
    /// for placements below a million.
    pub fn later_database_name(&self, id: TenantId, placement: i32) -> String {
        // A slug is ASCII. The last digits of the id are random; its first are the time.
        let (slug, id) = (self.0.get(..36).unwrap_or(&self.0), id.as_uuid().simple().to_string());
        format!("gmah_org_{}_p{placement}_{}", slug.replace('-', "_"), id.get(24..).unwrap_or_default())
    }
}

impl From<TenantSlug> for Box<str> {
    fn from(slug: TenantSlug) -> Self {
        slug.0
    }
}

impl fmt::Display for TenantSlug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TenantSlug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl FromStr for TenantSlug {
    type Err = TenantSlugError;

    fn from_str(raw: &str) -> Result<Self, Self::Err> {
        Self::parse(raw)
    }
}

impl Serialize for TenantSlug {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for TenantSlug {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// Names that no organisation can have: hosts of the platform, names of databases and roles, names that software
/// gives a meaning to.
pub const RESERVED_SLUGS: &[&str] = &[
    "_acme-challenge",
    "_dmarc",
    "_domainkey",
    "account",
    "accounts",
    "admin",
    "administrator",
    "api",
    "app",
    "apps",
    "assets",
    "auth",
    "autoconfig",
    "autodiscover",
    "billing",
    "cdn",
    "console",
    "dashboard",
    "db",
    "dns",
    "email",
    "ftp",
    "gmah",
    "grafana",
    "healthz",
    "imap",
    "internal",
    "invalid",
    "ldap",
    "localhost",
    "login",
    "mail",
    "master",
    "metrics",
    "mta-sts",
    "mx",
    "ns",
    "ns1",
    "ns2",
    "oauth",
    "pop",
    "pop3",
    "postgres",
    "postmaster",
    "prometheus",
    "root",
    "router",
    "security",
    "sign-up",
    "signup",
    "smtp",
    "ssl",
    "sso",
    "static",
    "status",
    "support",
    "sys",
    "sysadmin",
    "system",
    "template0",
    "template1",
    "tls",
    "webmail",
    "webmaster",
    "wpad",
    "www",
    "www1",
    "www2",
];

/// Where an organisation stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TenantStatus {
    /// Being created: its host answers 503.
    Provisioning,
    /// Served.
    Active,
    /// Locked by the platform: 403.
    Suspended,
    /// Closed for work on it: 503.
    Maintenance,
    /// Gone, or on its way: 404.
    Deleted,
}

impl TenantStatus {
    /// Every status, for tables and tests.
    pub const ALL: [Self; 5] =
        [Self::Provisioning, Self::Active, Self::Suspended, Self::Maintenance, Self::Deleted];

    /// The text that the master database holds.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Provisioning => "provisioning",
            Self::Active => "active",
            Self::Suspended => "suspended",
            Self::Maintenance => "maintenance",
            Self::Deleted => "deleted",
        }
    }
}

impl FromStr for TenantStatus {
    type Err = TenantStatusError;

    fn from_str(raw: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|s| s.as_str() == raw).ok_or(TenantStatusError)
    }
}

impl fmt::Display for TenantStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is no status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an organisation status")]
pub struct TenantStatusError;

/// Counts the changes of placement and status of one organisation; only ever grows (by a trigger in the master).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub i64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slugs() {
        for good in ["paris", "hopital-central", "a1b", "abc", "x9-9", &"a".repeat(50)] {
            assert!(TenantSlug::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "x",
            "ab",
            "NICE",
            "a_b",
            "nice--x",
            "-a",
            "abc-",
            "1ab",
            "\u{e9}t\u{e9}",
            "nice.x",
            "nice ",
            " nice",
            "nice\0",
            "xn--nice",
            "paris'; drop table x",
            &"a".repeat(51),
        ] {
            assert!(TenantSlug::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn h28_reserved_slugs_in_every_case() {
        for name in RESERVED_SLUGS {
            for spelling in [(*name).to_owned(), name.to_ascii_uppercase()] {
                assert_eq!(TenantSlug::parse(&spelling), Err(TenantSlugError::Reserved), "{spelling}");
            }
        }
        assert!(RESERVED_SLUGS.is_sorted());
    }

    #[test]
    fn database_names_fit_and_differ() {
        let long = TenantSlug::parse(&"a".repeat(50)).expect("slug");
        assert!(long.database_name().len() <= 63);
        let short = TenantSlug::parse("a-b-c").expect("slug");
        assert_eq!(short.database_name(), "gmah_org_a_b_c");
        let id = TenantId::parse("01a2131f-92b3-7364-8be2-8ce81c36d43a").expect("id");
        assert_eq!(short.later_database_name(id, 2), "gmah_org_a_b_c_p2_1c36d43a");
        assert!(long.later_database_name(id, 999_999).len() <= 63);
    }

    #[test]
    fn ids_have_one_spelling() {
        let id = TenantId::generate();
        assert_eq!(TenantId::parse(&id.to_string()), Ok(id));
        assert!(TenantId::parse(&id.to_string().to_uppercase()).is_err());
        assert!(TenantId::parse(&id.as_uuid().simple().to_string()).is_err());
        assert!(TenantId::parse("../../etc/passwd").is_err());
    }

    #[test]
    fn statuses_round_trip() {
        for s in TenantStatus::ALL {
            assert_eq!(s.as_str().parse(), Ok(s));
        }
        assert!("ACTIVE".parse::<TenantStatus>().is_err());
    }
}
