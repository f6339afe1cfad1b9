//! What letters say, in the language of whoever asked for them.

use crate::language::Language;

/// A letter to somebody.
#[derive(Debug, Clone)]
pub struct Letter {
    /// E-mail address.
    pub recipient: String,
    /// One line.
    pub subject: String,
    /// Plain text.
    pub body: String,
}

/// To somebody who is to have a login.
pub fn invitation(language: Language, recipient: &str, name: &str, organization: &str, link: &str) -> Letter {
    let (subject, body) = match language {
        Language::En => (
            format!("{organization}: your invitation"),
            format!(
                "Hello {name},\n\nyou have been given an account at {organization}. Choose a password here, within seven \
                 days:\n\n{link}\n\nIf you did not expect this letter, you need not do anything.\n"
            ),
        ),
        Language::Fr => (
            format!("{organization} : votre invitation"),
            format!(
                "Bonjour {name},\n\nun compte vous a été ouvert chez {organization}. Choisissez un mot de passe ici, sous \
                 sept jours :\n\n{link}\n\nSi vous n'attendiez pas cette lettre, vous n'avez rien à faire.\n"
            ),
        ),
    };
    Letter { recipient: recipient.to_owned(), subject: line(&subject), body }
}

/// To somebody who has forgotten a password.
pub fn reset(language: Language, recipient: &str, name: &str, organization: &str, link: &str) -> Letter {
    let (subject, body) = match language {
        Language::En => (
            format!("{organization}: a new password"),
            format!(
                "Hello {name},\n\nsomebody, you most likely, asked for a new password at {organization}. Choose it here, \
                 within an hour:\n\n{link}\n\nIf it was not you, your password stays as it is.\n"
            ),
        ),
        Language::Fr => (
            format!("{organization} : un nouveau mot de passe"),
            format!(
                "Bonjour {name},\n\nquelqu'un, sans doute vous, a demandé un nouveau mot de passe chez {organization}. \
                 Choisissez-le ici, sous une heure :\n\n{link}\n\nSi ce n'était pas vous, votre mot de passe ne change pas.\n"
            ),
        ),
    };
    Letter { recipient: recipient.to_owned(), subject: line(&subject), body }
}

/// To somebody who wants an organisation, and has to show that the address is theirs.
pub fn confirmation(language: Language, recipient: &str, organization: &str, link: &str) -> Letter {
    let (subject, body) = match language {
        Language::En => (
            format!("{organization}: please confirm"),
            format!(
                "Hello,\n\nsomebody, you most likely, wants to open {organization} with this address. Confirm it here:\n\n\
                 {link}\n\nIf it was not you, you need not do anything: nothing is made.\n"
            ),
        ),
        Language::Fr => (
            format!("{organization} : veuillez confirmer"),
            format!(
                "Bonjour,\n\nquelqu'un, sans doute vous, veut ouvrir {organization} avec cette adresse. Confirmez ici :\n\n\
                 {link}\n\nSi ce n'était pas vous, vous n'avez rien à faire : rien ne sera créé.\n"
            ),
        ),
    };
    Letter { recipient: recipient.to_owned(), subject: line(&subject), body }
}

/// One line of at most 300 characters.
fn line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect()
}
