//! Languages that people are answered in.

/// A language of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Language {
    /// English.
    #[default]
    En,
    /// French.
    Fr,
}

impl Language {
    /// The one of ours that an `Accept-Language` likes best (RFC 9110, section 12.5.4); English where it likes none.
    pub fn preferred(header: &str) -> Self {
        let mut best = (0, Self::default());
        for range in header.split(',').take(32) {
            let (tag, parameters) = range.split_once(';').unwrap_or((range, ""));
            let weight = match parameters.trim().strip_prefix("q=") {
                Some(q) => thousandths(q),
                None => Some(1000),
            };
            let Some(weight) = weight else { continue };
            let primary = tag.trim().split('-').next().unwrap_or_default();
            let language = match primary.to_ascii_lowercase().as_str() {
                "en" => Self::En,
                "fr" => Self::Fr,
                _ => continue,
            };
            if weight > best.0 {
                best = (weight, language);
            }
        }
        best.1
    }

    /// Its tag (RFC 5646).
    pub fn tag(self) -> &'static str {
        match self {
            Self::En => "en",
            Self::Fr => "fr",
        }
    }
}

impl Language {
    /// What a refusal of that code is called; English titles stand with the errors themselves.
    pub fn title(self, code: &str) -> Option<&'static str> {
        match self {
            Self::En => None,
            Self::Fr => FRENCH.iter().find(|(known, _)| *known == code).map(|(_, title)| *title),
        }
    }
}

/// By code.
const FRENCH: &[(&str, &str)] = &[
    ("invalid_tenant_token", "La requête n'a pas de jeton d'organisation valable."),
    ("stale_generation", "Veuillez réessayer."),
    ("organization_suspended", "Cette organisation est suspendue."),
    ("unavailable", "Le service n'est pas disponible pour le moment."),
    ("unauthenticated", "Veuillez vous connecter."),
    ("bad_credentials", "L'adresse e-mail ou le mot de passe est faux."),
    ("totp_required", "Un code de votre second facteur est nécessaire."),
    ("csrf_failed", "La requête ne vient pas d'une de nos pages."),
    ("link_invalid", "Ce lien ne fonctionne pas, ou plus."),
    ("forbidden", "Vous n'en avez pas le droit."),
    ("not_found", "Il n'y a rien ici."),
    ("refused", "Cela ne peut pas se faire ici et maintenant."),
    ("method_not_allowed", "Cette méthode n'est pas permise ici."),
    ("module_disabled", "Ce module n'est pas activé ici."),
    ("malformed", "La requête est illisible."),
    ("invalid", "La requête enfreint une règle."),
    ("unsupported_media_type", "Le corps n'est pas du type attendu ici."),
    ("too_large", "Le corps est trop grand."),
    ("precondition_failed", "Quelqu'un d'autre l'a modifié entre-temps."),
    ("import_invalid", "Des lignes du fichier enfreignent une règle."),
    ("idempotency_key_reused", "Cette Idempotency-Key a servi à une autre requête."),
    ("too_many_attempts", "Trop d'essais. Veuillez réessayer plus tard."),
    ("plan_limit_reached", "La limite de l'abonnement est atteinte."),
    ("internal", "Une erreur est survenue."),
    ("email_taken", "Un autre utilisateur a cette adresse e-mail."),
    ("role_taken", "Ce rôle existe déjà."),
    ("role_in_use", "Des utilisateurs ont ce rôle."),
    ("role_builtin", "Ce rôle ne peut pas être modifié."),
    ("last_administrator", "Il faut un administrateur au moins."),
    ("loan_status", "L'état du prêt ne le permet pas."),
    ("payment_reversed", "Ce paiement ne peut plus être annulé."),
    ("payment_needed", "Ce qui a été remboursé depuis doit d'abord être annulé."),
    ("totp_active", "Il y a déjà un second facteur."),
    ("totp_not_begun", "Il n'y a pas de second facteur à confirmer."),
    ("too_many_keys", "Il y a autant de clés qu'il peut y en avoir."),
    ("link_recent", "Une lettre vient d'être écrite."),
    ("user_disabled", "Cet utilisateur est désactivé."),
    ("too_few_guarantors", "Il faut davantage de garants pour ce prêt."),
    ("loan_rules", "Les règles de l'organisation ne permettent pas ce prêt."),
    ("too_many_loans", "Ce membre a autant de prêts qu'il peut en avoir."),
    ("family_in_use", "Des membres appartiennent à cette famille."),
    ("national_id_taken", "Un autre patient a cet identifiant national."),
    ("already_admitted", "Le patient est déjà hospitalisé."),
    ("discharged", "Le patient est sorti."),
    ("schema_unsupported", "Cette organisation est en cours de mise à jour."),
    ("slug_taken", "Une autre organisation a cette adresse."),
    ("invoice_status", "L'état de la facture ne le permet pas."),
    ("changed_meanwhile", "Quelqu'un d'autre a été plus rapide. Veuillez regarder à nouveau."),
    ("file_type", "Ce type de fichier n'est pas accepté."),
];

/// `0.8` as 800 (RFC 9110, section 12.4.2).
fn thousandths(q: &str) -> Option<u32> {
    let q: f32 = q.trim().parse().ok()?;
    // Of 0 to 1 there is nothing to cut off.
    (0.0..=1.0).contains(&q).then_some((q * 1000.0) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_it_likes_best() {
        for (header, expected) in [
            ("", Language::En),
            ("fr", Language::Fr),
            ("fr-CA,fr;q=0.9,en;q=0.8", Language::Fr),
            ("de,en;q=0.5,fr;q=0.4", Language::En),
            ("en;q=0.1,FR ; q=0.3", Language::Fr),
            ("fr;q=0", Language::En),
            ("fr;q=nothing, *", Language::En),
            ("fr;q=2", Language::En),
            ("francais", Language::En),
        ] {
            assert_eq!(Language::preferred(header), expected, "{header}");
        }
    }
}
