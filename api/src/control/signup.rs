//! Organisations that people make by themselves: names for them, and the making once an address is confirmed.

use deunicode::deunicode;
use gmah_shared::tenant::TenantSlug;
use uuid::Uuid;

use super::provision::NewTenant;
use super::{Control, ControlError, During as _};
use crate::language::Language;

/// Slugs that are proposed at once.
pub(crate) const PROPOSED: usize = 3;
/// Longest slug.
const LONGEST: usize = 50;

impl Control {
    /// Makes what was asked for and confirmed. What fails is noted, and may be confirmed again.
    pub(crate) async fn make_signup(&mut self, id: Uuid) -> Result<(), ControlError> {
        let what = "reading the sign-up";
        let row = self
            .master
            .query_opt("select email, name, slug, plan, language from signups where id = $1", &[&id])
            .await
            .during(what)?;
        let Some(row) = row else { return Ok(()) };
        let new = NewTenant {
            slug: super::parse_slug(row.get("slug"))?,
            name: row.get("name"),
            admin_email: row.get("email"),
            admin_password: None,
            language: Some(Language::preferred(row.get("language"))),
            domain: None,
            plan: row.get("plan"),
            modules: self.settings.default_modules.clone(),
            server: None,
        };
        let made = self.create_tenant(new).await.map(drop);
        if let Err(e) = &made {
            // Sentences of the control plane are for operators: the log has this one.
            tracing::warn!(signup = %id, error = %e, "a sign-up was not made");
            self.master
                .execute(
                    "update signups set confirmed_at = null, failure = 'it could not be made, please try again'
                     where id = $1",
                    &[&id],
                )
                .await
                .during("noting the failure")?;
        }
        made
    }

    /// Forgets who did not confirm, and who did long ago.
    pub(crate) async fn forget_signups(&mut self) -> Result<(), ControlError> {
        self.master
            .execute(
                "delete from signups where greatest(expires_at, created_at + interval '1 hour') < now()
                     and coalesce(confirmed_at, '-infinity') < now() - interval '1 day'",
                &[],
            )
            .await
            .during("forgetting sign-ups")?;
        // What was left half-made of those nobody asks for any more.
        let left = self
            .master
            .query(
                "select p.id from operations p where p.actor like 'signup:%' and p.kind = 'tenant.create' and p.state = 'failed'
                     and not exists (select from signups s where p.actor = 'signup:' || s.email)
                 limit 50",
                &[],
            )
            .await
            .during("looking for what is left of sign-ups")?;
        for row in &left {
            if let Err(e) = self.cancel_operation(row.get(0)).await {
                tracing::warn!(error = %e, "what was left of a sign-up is not cleared away yet");
            }
        }
        Ok(())
    }
}

/// Slugs that a name makes, the nicest first; none where it has no letters that are written in Latin.
pub(crate) fn proposals(name: &str) -> impl Iterator<Item = TenantSlug> {
    let mut words = String::new();
    for c in deunicode(name).to_lowercase().chars().take(4 * LONGEST) {
        match c {
            'a'..='z' | '0'..='9' => words.push(c),
            // Hôpital de l'Est
            '\'' => {}
            _ if !words.is_empty() && !words.ends_with('-') => words.push('-'),
            _ => {}
        }
    }
    let words = words.trim_start_matches(|c: char| !c.is_ascii_lowercase()).trim_matches('-').to_owned();
    let with = move |tail: &str| {
        let room = LONGEST - tail.len();
        let head = words.get(..room).unwrap_or(&words).trim_matches('-');
        TenantSlug::parse(&format!("{head}{tail}")).ok()
    };
    let numbered = with.clone();
    with("").into_iter().chain((2..100).filter_map(move |n| numbered(&format!("-{n}"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_make_slugs() {
        for (name, wanted) in [
            ("Hôpital de l'Est", "hopital-de-lest"),
            ("  Gemach  Paris (18e) ", "gemach-paris-18e"),
            ("42nd Street", "nd-street"),
            ("ACME", "acme"),
            ("Больница", "bolnitsa"),
            ("admin", "admin-2"),
            ("x", "x-2"),
        ] {
            assert_eq!(proposals(name).next().map(|s| s.to_string()).as_deref(), Some(wanted), "{name}");
        }
        let long = proposals(&"very long name ".repeat(20)).take(3).collect::<Vec<_>>();
        assert!(long.len() == 3 && long.iter().all(|s| s.as_str().len() <= LONGEST), "{long:?}");
        for none in ["", "!!!", "123", "\u{0}"] {
            assert_eq!(proposals(none).next(), None, "{none:?}");
        }
    }
}
