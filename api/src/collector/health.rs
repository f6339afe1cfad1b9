//! How an organisation is, in one word, and why: for alerts, and for whoever looks at a list of a thousand.

use gmah_shared::catalog::TenantDetail;
use time::{Duration, OffsetDateTime};

use super::Figures;
use crate::modules;

/// In one word. The metric shows it as 0, 1 or 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// Nothing to do.
    Healthy,
    /// Somebody should look at it one of these days.
    Warning,
    /// Somebody should look at it now.
    Critical,
}

impl Health {
    /// As it is stored.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// What the master knows of an organisation's newest backup.
#[derive(Debug, Clone, Default)]
pub struct Backed {
    /// How old backups get until there is another; none: they are made by command, and none is missed.
    pub every: Option<Duration>,
    /// Since when there is an organisation that could have one.
    pub since: Option<OffsetDateTime>,
    /// When the newest was made.
    pub newest_at: Option<OffsetDateTime>,
    /// Whether its trial found it well, if there was one.
    pub is_well: Option<bool>,
}

/// Of one that could be looked into.
pub fn judge(figures: &Figures, detail: &TenantDetail, backed: &Backed, now: OffsetDateTime) -> Judged {
    let mut judged = Judged::default();
    judged.backups(backed, now);
    for set in modules::migrations(&detail.modules) {
        let found = figures.schema.get(set.name).copied().unwrap_or(0);
        if found < set.latest() {
            judged.add(Health::Warning, "schema_behind");
        }
        if found > set.latest() {
            judged.add(Health::Warning, "schema_ahead");
        }
    }
    for (used, limit, nearly, full) in [
        (figures.storage_bytes, detail.max_storage_bytes, "storage_nearly_full", "storage_full"),
        (figures.members, detail.max_members, "members_nearly_full", "members_full"),
        (figures.users, detail.max_users, "users_nearly_full", "users_full"),
    ] {
        let Some(limit) = limit else { continue };
        if used >= limit {
            judged.add(Health::Warning, full);
        } else if used >= limit - limit / 10 {
            judged.add(Health::Warning, nearly);
        }
    }
    judged
}

/// Of one that could not be looked into, for a reason that says something of it or for none.
pub fn without(why: Option<(Health, &'static str)>, backed: &Backed, now: OffsetDateTime) -> Judged {
    let mut judged = Judged::default();
    if let Some((health, reason)) = why {
        judged.add(health, reason);
    }
    judged.backups(backed, now);
    judged
}

/// A judgement with its reasons, each once.
#[derive(Debug, PartialEq, Eq)]
pub struct Judged {
    /// The worst of them.
    pub health: Health,
    /// Words of this file.
    pub reasons: Vec<&'static str>,
}

impl Default for Judged {
    fn default() -> Self {
        Self { health: Health::Healthy, reasons: Vec::new() }
    }
}

impl Judged {
    fn add(&mut self, health: Health, reason: &'static str) {
        self.health = self.health.max(health);
        if !self.reasons.contains(&reason) {
            self.reasons.push(reason);
        }
    }

    fn backups(&mut self, backed: &Backed, now: OffsetDateTime) {
        if backed.is_well == Some(false) {
            self.add(Health::Critical, "backup_not_well");
        }
        let Some(every) = backed.every else { return };
        match (backed.newest_at, backed.since) {
            (Some(at), _) if now - at > every * 4 => self.add(Health::Critical, "backup_old"),
            (Some(at), _) if now - at > every * 2 => self.add(Health::Warning, "backup_old"),
            (None, Some(since)) if now - since > every * 2 => self.add(Health::Critical, "backup_missing"),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backups_are_missed_only_where_there_should_be_some() {
        let now = OffsetDateTime::now_utc();
        let of = |newest: Option<i64>, is_well, every: Option<i64>| {
            let ago = |hours: i64| now - Duration::hours(hours);
            let backed = Backed {
                every: every.map(Duration::hours),
                since: Some(ago(1000)),
                newest_at: newest.map(ago),
                is_well,
            };
            let mut judged = Judged::default();
            judged.backups(&backed, now);
            judged
        };
        let is = |health, reasons: &[&'static str]| Judged { health, reasons: reasons.to_vec() };
        assert_eq!(of(None, None, None), Judged::default());
        assert_eq!(of(None, None, Some(24)), is(Health::Critical, &["backup_missing"]));
        assert_eq!(of(Some(47), Some(true), Some(24)), Judged::default());
        assert_eq!(of(Some(49), None, Some(24)), is(Health::Warning, &["backup_old"]));
        assert_eq!(of(Some(97), None, Some(24)), is(Health::Critical, &["backup_old"]));
        assert_eq!(of(Some(1), Some(false), None), is(Health::Critical, &["backup_not_well"]));
    }
}
