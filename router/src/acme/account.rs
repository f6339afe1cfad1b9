//! The account at the authority, one for all routers, and the connection to it.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use deadpool_postgres::Object;
use gmah_shared::config::AcmeSettings;
use gmah_shared::https;
use gmah_shared::secret::MasterKey;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use instant_acme::{
    Account, AccountCredentials, BodyWrapper, BytesResponse, Error, ExternalAccountKey, HttpClient,
    NewAccount,
};
use secrecy::ExposeSecret as _;

use super::AcmeError;

/// How the authority is reached.
pub(super) struct Authority {
    settings: AcmeSettings,
    key: MasterKey,
    http: Http,
    held: tokio::sync::Mutex<Option<Account>>,
}

/// A client with a deadline, which remembers what the authority last said about trying again.
#[derive(Clone)]
struct Http {
    client: Client<HttpsConnector<HttpConnector>, BodyWrapper<Bytes>>,
    retry_after: Arc<Mutex<Option<Duration>>>,
}

const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

impl HttpClient for Http {
    fn request(
        &self,
        request: http::Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let (asked, retry_after) = (self.client.request(request), self.retry_after.clone());
        Box::pin(async move {
            let late = |_| Error::Str("an answer in time");
            let answer = tokio::time::timeout(REQUEST_TIMEOUT, asked).await.map_err(late)?;
            let answer = answer.map_err(|e| Error::Other(Box::new(e)))?;
            if answer.status().is_client_error() || answer.status().is_server_error() {
                let said = answer.headers().get(http::header::RETRY_AFTER).and_then(|v| v.to_str().ok());
                *retry_after.lock().unwrap_or_else(PoisonError::into_inner) = said.and_then(delay);
            }
            Ok(BytesResponse::from(answer))
        })
    }
}

/// Seconds, or a date (RFC 9110, section 10.2.3).
fn delay(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    httpdate::parse_http_date(text).ok()?.duration_since(SystemTime::now()).ok()
}

impl Authority {
    /// Nothing is asked yet.
    pub(super) fn new(settings: &AcmeSettings, key: MasterKey) -> Result<Self, String> {
        let connector =
            https::connector(settings.ca_file.as_deref(), false).map_err(|e| format!("acme.ca_file: {e}"))?;
        let client = Client::builder(TokioExecutor::new()).build(connector);
        let http = Http { client, retry_after: Arc::default() };
        Ok(Self { settings: settings.clone(), key, http, held: tokio::sync::Mutex::default() })
    }

    /// The account: held, or in the master, or made now, by one router only.
    pub(super) async fn account(&self, client: &mut Object) -> Result<Account, AcmeError> {
        let mut held = self.held.lock().await;
        if let Some(account) = &*held {
            return Ok(account.clone());
        }
        let directory = &self.settings.directory;
        let context = format!("acme_accounts/{directory}");
        let transaction = client.transaction().await?;
        transaction.execute("select pg_advisory_xact_lock($1)", &[&ACCOUNT_LOCK]).await?;
        let row = transaction
            .query_opt("select credentials from acme_accounts where directory = $1", &[directory])
            .await?;
        let secret = |e: gmah_shared::secret::SecretError| AcmeError::Master(e.to_string());
        let account = match row {
            Some(row) => {
                let json = zeroize::Zeroizing::new(self.key.open(&context, row.get(0)).map_err(secret)?);
                let credentials: AccountCredentials =
                    serde_json::from_slice(&json).map_err(|e| AcmeError::Master(e.to_string()))?;
                self.builder().from_credentials(credentials).await.map_err(|e| self.error(e))?
            }
            None => {
                let contact: Vec<&str> = self.settings.contact.iter().map(String::as_str).collect();
                let new = NewAccount {
                    contact: &contact,
                    terms_of_service_agreed: true,
                    only_return_existing: false,
                };
                let external = self.external()?;
                let (account, credentials) = self
                    .builder()
                    .create(&new, directory.clone(), external.as_ref())
                    .await
                    .map_err(|e| self.error(e))?;
                let json = zeroize::Zeroizing::new(
                    serde_json::to_vec(&credentials).map_err(|e| AcmeError::Master(e.to_string()))?,
                );
                let sealed = self.key.seal(&context, &json).map_err(secret)?;
                transaction
                    .execute(
                        "insert into acme_accounts (directory, credentials) values ($1, $2)",
                        &[directory, &sealed],
                    )
                    .await?;
                account
            }
        };
        transaction.commit().await?;
        *held = Some(account.clone());
        Ok(account)
    }

    fn builder(&self) -> instant_acme::AccountBuilder {
        Account::builder_with_http(Box::new(self.http.clone()))
    }

    fn external(&self) -> Result<Option<ExternalAccountKey>, AcmeError> {
        let (Some(kid), Some(key)) = (&self.settings.eab_kid, &self.settings.eab_key) else {
            return Ok(None);
        };
        let key = URL_SAFE_NO_PAD
            .decode(key.expose_secret().trim().trim_end_matches('='))
            .map_err(|_| AcmeError::Authority("acme.eab_key is not base64url".into()))?;
        Ok(Some(ExternalAccountKey::new(kid.clone(), &key)))
    }

    /// What it said of an earlier matter says nothing of the next.
    pub(super) fn forget_retry_after(&self) {
        *self.http.retry_after.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// What the authority said, and whether it wants to be left alone.
    pub(super) fn error(&self, error: Error) -> AcmeError {
        let said = self.http.retry_after.lock().unwrap_or_else(PoisonError::into_inner).take();
        let message = chain(&error);
        let limited = matches!(&error, Error::Api(p) if p.r#type.as_deref() == Some(RATE_LIMITED));
        if let Error::Timeout(Some(until)) = &error {
            let pause = until.saturating_duration_since(std::time::Instant::now());
            return AcmeError::Pause { message, pause: pause.min(LONGEST) };
        }
        match (limited, said) {
            (true, said) => AcmeError::Pause { message, pause: said.unwrap_or(UNSAID).min(LONGEST) },
            (false, Some(pause)) if !pause.is_zero() => {
                AcmeError::Pause { message, pause: pause.min(LONGEST) }
            }
            (false, _) => AcmeError::Authority(message),
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    text
}

/// RFC 8555, section 6.7.
const RATE_LIMITED: &str = "urn:ietf:params:acme:error:rateLimited";
/// Where it is limited and says nothing of how long.
const UNSAID: Duration = Duration::from_secs(3600);
const LONGEST: Duration = Duration::from_secs(7 * 86_400);
const ACCOUNT_LOCK: i64 = 0x676d_6168_6163_6374;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_in_both_forms() {
        assert_eq!(delay("120"), Some(Duration::from_secs(120)));
        let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100));
        assert!(delay(&date).is_some_and(|d| (98..=100).contains(&d.as_secs())));
        assert_eq!((delay("soon"), delay("Thu, 01 Jan 1970 00:00:00 GMT")), (None, None));
    }
}
