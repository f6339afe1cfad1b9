//! The first user of an organisation, and the letter by which its owner hears of it.

use gmah_shared::secret::data::DataKeys;
use gmah_shared::tenant::TenantId;
use time::OffsetDateTime;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::auth::Bearer;
use crate::control::{ControlError, During as _};
use crate::language::Language;
use crate::mail;
use crate::repo::links::{self, Purpose};
use crate::repo::outbox;

/// What the letter says.
pub(super) struct Welcome<'a> {
    pub(super) organization: &'a str,
    pub(super) language: Language,
    /// `{purpose}` and `{token}` are put in.
    pub(super) link: String,
    pub(super) keys: DataKeys,
}

const NAME: &str = "Administrator";

/// The first user, with the letter in the transaction that makes it: however often this is done, there is one letter. As long
/// as nobody has used the organisation, a later run sets the password anew: the one that a killed run made was never shown.
/// Answers whether the password is set.
pub(super) async fn ensure_administrator(
    db: &mut Client,
    id: TenantId,
    email: &str,
    hash: &str,
    welcome: Option<&Welcome<'_>>,
) -> Result<bool, ControlError> {
    let what = "creating the administrator";
    let tx = db.transaction().await.during(what)?;
    let row = tx
        .query_opt(
            "insert into users (id, email, name, role, password_hash) values ($1, $2, $3, 'administrator', $4)
             on conflict (email) do update set password_hash = excluded.password_hash
                 where not exists (select from sessions) and not exists (select from audit_log)
             returning id, xmax = 0 as is_new",
            &[&Uuid::now_v7(), &email, &NAME, &hash],
        )
        .await
        .during(what)?;
    let Some(row) = row else { return Ok(false) };
    if let (Some(welcome), true) = (welcome, row.get("is_new")) {
        let user: Uuid = row.get("id");
        let token = Bearer::generate(id);
        let purpose = Purpose::Invitation;
        let expires_at = OffsetDateTime::now_utc() + purpose.life();
        tx.execute(links::PUT, &[&user, &purpose.as_str(), &token.hash, &expires_at]).await.during(what)?;
        let link = welcome.link.replace("{purpose}", purpose.as_str()).replace("{token}", &token.text);
        let letter = mail::invitation(welcome.language, email, NAME, welcome.organization, &link);
        let letter_id = Uuid::now_v7();
        let body = welcome.keys.seal(outbox::place(letter_id), letter.body.as_bytes())?;
        tx.execute(outbox::INSERT, &[&letter_id, &letter.recipient, &letter.subject, &body, &expires_at])
            .await
            .during(what)?;
    }
    tx.commit().await.during(what)?;
    Ok(true)
}
