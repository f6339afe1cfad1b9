//! Where letters go: a relay (SMTP), or a folder.

use lettre::message::header::ContentType;
use lettre::message::{Mailbox, MessageBuilder};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, Tls, TlsParameters};
use lettre::{AsyncFileTransport, AsyncSmtpTransport, AsyncTransport as _, Message, Tokio1Executor};
use secrecy::ExposeSecret as _;
use uuid::Uuid;

use super::{HAND_OVER, Letter};
use crate::config::{Mail, MailSecurity};

/// A way out.
pub struct Relay {
    from: Mailbox,
    way: Way,
}

enum Way {
    Smtp(AsyncSmtpTransport<Tokio1Executor>),
    Folder(AsyncFileTransport<Tokio1Executor>),
}

/// Why there is no way out, or a letter did not take it.
#[derive(Debug, thiserror::Error)]
pub enum MailError {
    /// An address that is none.
    #[error("{what}: {cause}")]
    Address {
        /// Whose.
        what: &'static str,
        /// Why.
        cause: lettre::address::AddressError,
    },
    /// What makes no letter.
    #[error("the letter is none: {0}")]
    Letter(#[from] lettre::error::Error),
    /// The relay refused, or the way there.
    #[error("relay: {0}")]
    Relay(#[from] lettre::transport::smtp::Error),
    /// The folder.
    #[error("folder: {0}")]
    Folder(#[from] lettre::transport::file::Error),
    /// A file of the configuration.
    #[error("{0}")]
    File(String),
}

impl Relay {
    /// As configured. Opens nothing but files.
    ///
    /// # Errors
    /// [`MailError`].
    pub fn new(config: &Mail) -> Result<Self, MailError> {
        let from = config.from.parse().map_err(|cause| MailError::Address { what: "mail.from", cause })?;
        let way = match (&config.relay, &config.folder) {
            (Some(host), _) => Way::Smtp(smtp(config, host)?),
            (None, Some(folder)) => {
                std::fs::create_dir_all(folder)
                    .map_err(|e| MailError::File(format!("{}: {e}", folder.display())))?;
                Way::Folder(AsyncFileTransport::new(folder))
            }
            (None, None) => return Err(MailError::File("mail.relay or mail.folder must be there".into())),
        };
        Ok(Self { from, way })
    }

    /// Hands a letter over.
    ///
    /// # Errors
    /// [`MailError`].
    pub async fn send(&self, id: Uuid, letter: &Letter) -> Result<(), MailError> {
        let to =
            letter.recipient.parse().map_err(|cause| MailError::Address { what: "the recipient", cause })?;
        let domain = self.from.email.domain();
        let message = MessageBuilder::new()
            .message_id(Some(format!("<{id}@{domain}>")))
            .from(self.from.clone())
            .to(Mailbox::new(None, to))
            .subject(&letter.subject)
            .header(ContentType::TEXT_PLAIN)
            .body(letter.body.clone())?;
        self.hand(message).await
    }

    async fn hand(&self, message: Message) -> Result<(), MailError> {
        match &self.way {
            Way::Smtp(relay) => relay.send(message).await.map(drop)?,
            Way::Folder(folder) => folder.send(message).await.map(drop)?,
        }
        Ok(())
    }
}

fn smtp(config: &Mail, host: &str) -> Result<AsyncSmtpTransport<Tokio1Executor>, MailError> {
    let mut parameters = TlsParameters::builder(host.to_owned());
    if let Some(path) = &config.ca_file {
        let pem = std::fs::read(path).map_err(|e| MailError::File(format!("{}: {e}", path.display())))?;
        parameters = parameters.add_root_certificate(Certificate::from_pem(&pem)?);
    }
    let (tls, port) = match config.security {
        MailSecurity::Tls => (Tls::Wrapper(parameters.build()?), 465),
        MailSecurity::Starttls => (Tls::Required(parameters.build()?), 587),
        MailSecurity::None => (Tls::None, 25),
    };
    let mut builder = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(host)
        .tls(tls)
        .port(config.port.unwrap_or(port))
        .timeout(Some(HAND_OVER));
    if let (Some(user), Some(password)) = (&config.user, &config.password) {
        builder = builder.credentials(Credentials::new(user.clone(), password.expose_secret().to_owned()));
    }
    Ok(builder.build())
}
