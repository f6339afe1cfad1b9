//! What a role may do: permissions like `members.write`, and patterns of them.
//!
//! `*` is everything, `members.*` everything about members, `*.read` reading of everything. There is no pattern that takes
//! something away.

use crate::modules;

/// The permissions of a role.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
#[serde(transparent)]
pub struct Rights(Vec<String>);

impl Rights {
    /// From patterns, as they are stored.
    pub fn new(patterns: Vec<String>) -> Self {
        Self(patterns)
    }

    /// Whether they hold a permission.
    pub fn allow(&self, permission: &str) -> bool {
        self.0.iter().any(|own| covers(own, permission))
    }

    /// Whether they hold everything that others do: nobody gives away what they do not have.
    pub fn cover(&self, others: &Self) -> bool {
        others.0.iter().all(|theirs| self.allow(theirs))
    }

    /// What both of them hold: patterns of one that the other covers, and where two meet (`members.*` and `*.read`).
    pub fn meet(&self, other: &Self) -> Self {
        let mut both = Vec::new();
        for a in &self.0 {
            for b in &other.0 {
                let crossing = |noun: &str, verb: &str| {
                    Some(format!("{}.{}", noun.strip_suffix(".*")?, verb.strip_prefix("*.")?))
                };
                if covers(a, b) {
                    both.push(b.clone());
                } else if covers(b, a) {
                    both.push(a.clone());
                } else if let Some(met) = crossing(a, b).or_else(|| crossing(b, a)) {
                    both.push(met);
                }
            }
        }
        both.sort();
        both.dedup();
        Self(both)
    }

    /// The patterns.
    pub fn patterns(&self) -> &[String] {
        &self.0
    }
}

/// Whether `pattern` holds all that `wanted`, itself a pattern or a permission, does.
fn covers(pattern: &str, wanted: &str) -> bool {
    pattern == "*"
        || pattern == wanted
        || pattern
            .strip_suffix(".*")
            .is_some_and(|noun| wanted.strip_prefix(noun).is_some_and(|rest| rest.starts_with('.')))
        || pattern
            .strip_prefix("*.")
            .is_some_and(|verb| wanted.strip_suffix(verb).is_some_and(|rest| rest.ends_with('.')))
}

/// Whether a text is a permission of this program, or a pattern of some.
pub fn is_known(text: &str) -> bool {
    text == "*" || modules::permissions().any(|p| covers(text, p))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rights(patterns: &[&str]) -> Rights {
        Rights::new(patterns.iter().map(|p| (*p).to_owned()).collect())
    }

    #[test]
    fn patterns() {
        assert!(rights(&["*"]).allow("members.write"));
        assert!(rights(&["members.*"]).allow("members.write"));
        assert!(!rights(&["members.*"]).allow("members_old.write"));
        assert!(!rights(&["members.*"]).allow("loans.write"));
        assert!(rights(&["*.read"]).allow("loans.read"));
        assert!(!rights(&["*.read"]).allow("loans.write"));
        assert!(!rights(&["*.read"]).allow("loans.spread"));
        assert!(!rights(&[]).allow("loans.read"));
    }

    #[test]
    fn nobody_gives_away_what_they_do_not_have() {
        let manager = rights(&["*.read", "members.*"]);
        assert!(manager.cover(&rights(&["members.write", "loans.read"])));
        assert!(manager.cover(&rights(&["members.*", "*.read"])));
        assert!(!manager.cover(&rights(&["*"])));
        assert!(!manager.cover(&rights(&["loans.*"])));
        assert!(!manager.cover(&rights(&["members.read", "users.write"])));
    }

    #[test]
    fn a_key_may_what_both_may() {
        let user = rights(&["*.read", "members.*"]);
        assert_eq!(user.meet(&rights(&["*"])), rights(&["*.read", "members.*"]));
        assert_eq!(user.meet(&rights(&["members.write", "loans.write"])), rights(&["members.write"]));
        assert_eq!(user.meet(&rights(&["loans.*"])), rights(&["loans.read"]));
        assert_eq!(user.meet(&rights(&["users.write"])), rights(&[]));
        assert_eq!(rights(&[]).meet(&rights(&["*"])), rights(&[]));
    }

    #[test]
    fn only_what_means_something() {
        for known in ["*", "*.read", "members.*", "members.write", "users.read"] {
            assert!(is_known(known), "{known}");
        }
        for unknown in ["", "**", "members", "members.fly", "*.fly", "nothing.*", "members.write "] {
            assert!(!is_known(unknown), "{unknown}");
        }
    }
}
