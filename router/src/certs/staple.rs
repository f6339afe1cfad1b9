//! OCSP responses for certificates that ask for them (RFC 7633), and for no others.
//!
//! A response is fetched from the responder that the certificate names, checked as a client would (RFC 6960, section 3.2),
//! and stapled until half of its time is over; then the next is fetched. One that does not pass is not served: a client
//! that insists would leave. Certificates that are ordered here never ask, so this is about those from files.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use rustls::sign::CertifiedKey;
use sha1::Sha1;
use x509_cert::Certificate;
use x509_cert::der::asn1::AnyRef;
use x509_cert::der::{Decode, Encode, Reader as _, SliceReader};
use x509_ocsp::builder::OcspRequestBuilder;
use x509_ocsp::{BasicOcspResponse, CertId, CertStatus, OcspResponse, OcspResponseStatus, Request};
use x509_parser::asn1_rs::BitString;
use x509_parser::extensions::ParsedExtension;
use x509_parser::oid_registry::asn1_rs::{Oid, oid};
use x509_parser::prelude::{ASN1Time, AlgorithmIdentifier, FromDer, GeneralName, X509Certificate};
use x509_parser::verify::verify_signature;

use super::{Certificates, FromFiles};
use crate::metrics::Metrics;

/// What a certificate asks for, and where.
#[derive(Debug, Clone)]
pub(super) struct Asks {
    /// The certificate with its key, to be served with the response.
    pub(super) pair: CertifiedKey,
    responder: http::Uri,
    request: Bytes,
    about: CertId,
    issuer: Vec<u8>,
    /// The response that it is served with.
    staple: Option<Times>,
}

/// When a response is to be exchanged, and when it is of no use any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Times {
    refresh: SystemTime,
    until: SystemTime,
}

/// Why there is no response to serve.
#[derive(Debug, thiserror::Error)]
pub(super) enum StapleError {
    #[error("OCSP responder {0}: {1}")]
    Responder(http::Uri, String),
    #[error("OCSP response: {0}")]
    Refused(&'static str),
    #[error("OCSP response: {0}")]
    Malformed(String),
}

impl From<x509_cert::der::Error> for StapleError {
    fn from(e: x509_cert::der::Error) -> Self {
        Self::Malformed(e.to_string())
    }
}

impl Asks {
    /// What the leaf of a chain asks for, if it does.
    ///
    /// # Errors
    /// When it asks for what it does not say how to get.
    pub(super) fn of(pair: &CertifiedKey) -> Result<Option<Self>, String> {
        let Some(leaf) = pair.cert.first() else { return Ok(None) };
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|e| e.to_string())?;
        let feature = parsed.extensions().iter().find(|e| e.oid == TLS_FEATURE);
        let asks =
            feature.is_some_and(|f| <Vec<u16> as Decode>::from_der(f.value).is_ok_and(|f| f.contains(&5)));
        if !asks {
            return Ok(None);
        }
        let responder = parsed.extensions().iter().find_map(|e| match e.parsed_extension() {
            ParsedExtension::AuthorityInfoAccess(access) => {
                access.iter().find_map(|a| match a.access_location {
                    GeneralName::URI(uri) if a.access_method == OCSP => uri.parse().ok(),
                    _ => None,
                })
            }
            _ => None,
        });
        let responder: http::Uri =
            responder.ok_or("it asks for a stapled response, and names no responder")?;
        if responder.scheme_str() != Some("http") {
            return Err(format!("its OCSP responder is {responder}: only http is asked"));
        }
        let issuer =
            pair.cert.get(1).ok_or("it asks for a stapled response, and its issuer is not in the chain")?;
        let fault = |e: &dyn std::fmt::Display| e.to_string();
        let read = |der: &[u8]| Certificate::from_der(der).map_err(|e| fault(&e));
        // The hash names the certificate; nothing rests on it (RFC 5019, section 2.1.1).
        let asked = Request::from_cert::<Sha1>(&read(issuer)?, &read(leaf)?).map_err(|e| fault(&e))?;
        let about = asked.req_cert.clone();
        let request =
            OcspRequestBuilder::default().with_request(asked).build().to_der().map_err(|e| fault(&e))?;
        let (pair, request, issuer) = (pair.clone(), request.into(), issuer.to_vec());
        Ok(Some(Self { pair, responder, request, about, issuer, staple: None }))
    }

    pub(super) fn is_stapled(&self, now: SystemTime) -> bool {
        self.staple.is_some_and(|s| now < s.until)
    }

    fn is_due(&self, now: SystemTime) -> bool {
        self.staple.is_none_or(|s| s.refresh <= now)
    }

    async fn fetch(&self) -> Result<(Vec<u8>, Times), StapleError> {
        let fault = |e: String| StapleError::Responder(self.responder.clone(), e);
        let request = http::Request::post(self.responder.clone())
            .header(CONTENT_TYPE, "application/ocsp-request")
            .body(Full::new(self.request.clone()))
            .map_err(|e| fault(e.to_string()))?;
        let client = Client::builder(TokioExecutor::new()).build_http();
        let asked = async {
            let answer = client.request(request).await.map_err(|e| fault(e.to_string()))?;
            if answer.status() != http::StatusCode::OK {
                return Err(fault(answer.status().to_string()));
            }
            let body = Limited::new(answer.into_body(), MAX_RESPONSE).collect().await;
            Ok(body.map_err(|e| fault(e.to_string()))?.to_bytes().to_vec())
        };
        let late = |_| fault("no answer in time".into());
        let response = tokio::time::timeout(FETCH_TIMEOUT, asked).await.map_err(late)??;
        let times = self.check(&response, SystemTime::now())?;
        Ok((response, times))
    }

    /// As a client would: about this certificate, good, of this time, signed by the issuer or by whom it let sign.
    fn check(&self, response: &[u8], now: SystemTime) -> Result<Times, StapleError> {
        use StapleError::Refused;
        let response = OcspResponse::from_der(response)?;
        if response.response_status != OcspResponseStatus::Successful {
            return Err(StapleError::Malformed(format!("{:?}", response.response_status)));
        }
        let bytes = response.response_bytes.ok_or(Refused("it says nothing"))?;
        let basic = bytes.response.as_bytes();
        self.signed(basic, now)?;
        let basic = BasicOcspResponse::from_der(basic)?;
        let mut single = basic.tbs_response_data.responses.iter();
        let single =
            single.find(|r| self.is_about(&r.cert_id)).ok_or(Refused("it is about another certificate"))?;
        if !matches!(single.cert_status, CertStatus::Good(_)) {
            return Err(Refused("the certificate is revoked, or unknown to its authority"));
        }
        let from = SystemTime::UNIX_EPOCH + single.this_update.0.to_unix_duration();
        let until = single.next_update.ok_or(Refused("it does not say until when it holds"))?;
        let until = SystemTime::UNIX_EPOCH + until.0.to_unix_duration();
        if from > now + CLOCKS_DIFFER || until <= now || until <= from {
            return Err(Refused("it is not of this time"));
        }
        let half = until.duration_since(from).unwrap_or_default() / 2;
        Ok(Times { refresh: (from + half).max(now + SOONEST).min(until), until })
    }

    /// By what names a certificate: an algorithm's parameters may be absent or NULL (RFC 5912, section 2).
    fn is_about(&self, other: &CertId) -> bool {
        let mine = &self.about;
        other.hash_algorithm.oid == mine.hash_algorithm.oid
            && other.issuer_name_hash == mine.issuer_name_hash
            && other.issuer_key_hash == mine.issuer_key_hash
            && other.serial_number == mine.serial_number
    }

    fn signed(&self, basic: &[u8], now: SystemTime) -> Result<(), StapleError> {
        use StapleError::Refused;
        // As it stands there, not as it would be written again.
        let whole = AnyRef::from_der(basic)?;
        let mut reader = SliceReader::new(whole.value())?;
        AnyRef::decode(&mut reader)?;
        let signed = &whole.value()[..usize::try_from(reader.position())?];
        let parsed = BasicOcspResponse::from_der(basic)?;
        let algorithm = parsed.signature_algorithm.to_der()?;
        let malformed = |e: &dyn std::fmt::Display| StapleError::Malformed(e.to_string());
        let (_, algorithm) = AlgorithmIdentifier::from_der(&algorithm).map_err(|e| malformed(&e))?;
        let signature = BitString::new(0, parsed.signature.raw_bytes());
        let (_, issuer) = X509Certificate::from_der(&self.issuer).map_err(|e| malformed(&e))?;
        if verify_signature(issuer.public_key(), &algorithm, &signature, signed).is_ok() {
            return Ok(());
        }
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let now =
            ASN1Time::from_timestamp(i64::try_from(now).unwrap_or(i64::MAX)).map_err(|e| malformed(&e))?;
        for delegate in parsed.certs.iter().flatten().take(MAX_DELEGATES) {
            let der = delegate.to_der()?;
            let Ok((_, delegate)) = X509Certificate::from_der(&der) else { continue };
            let may_sign =
                delegate.extended_key_usage().ok().flatten().is_some_and(|usage| usage.value.ocsp_signing);
            if may_sign
                && delegate.validity().is_valid_at(now)
                && delegate.issuer().as_raw() == issuer.subject().as_raw()
                && delegate.verify_signature(Some(issuer.public_key())).is_ok()
                && verify_signature(delegate.public_key(), &algorithm, &signature, signed).is_ok()
            {
                return Ok(());
            }
        }
        Err(Refused("it is not signed by the authority"))
    }
}

/// Fetches a response for what was just read, if it asks for one.
pub(super) async fn first(read: &mut FromFiles) -> Result<(), StapleError> {
    let Some(asks) = read.served.asks.as_ref().filter(|a| a.is_due(SystemTime::now())) else { return Ok(()) };
    let (response, times) = asks.fetch().await?;
    if let Some(stapled) = read.served.stapled(response, times) {
        read.served = Arc::new(stapled);
    }
    Ok(())
}

impl FromFiles {
    /// The same leaf, read again, goes on with the response that it was served with.
    pub(super) fn with_staple_of(mut self, old: Option<&Self>) -> Self {
        let old = old.and_then(|o| o.served.asks.as_deref());
        if let (Some(new), Some(old)) = (&self.served.asks, old)
            && new.pair.cert.first() == old.pair.cert.first()
            && let (Some(response), Some(times)) = (&old.pair.ocsp, old.staple)
            && let Some(served) = self.served.stapled(response.clone(), times)
        {
            self.served = Arc::new(served);
        }
        self
    }
}

/// Fetches responses for as long as the program runs.
pub async fn keep(certificates: Arc<Certificates>, metrics: Arc<Metrics>) -> Infallible {
    let mut quiet_until = SystemTime::UNIX_EPOCH;
    let mut failing_for: Option<Vec<u8>> = None;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let now = SystemTime::now();
        let Some(files) = certificates.files.load_full() else { continue };
        let Some(asks) = files.served.asks.as_deref().filter(|a| a.is_due(now)) else { continue };
        let leaf = asks.pair.cert.first().map(|l| l.to_vec());
        // Better none than one whose time is over.
        let is_over = asks.staple.is_some_and(|s| s.until <= now);
        // A certificate that has just come need not wait because of the one before.
        let is_quiet = now < quiet_until && failing_for == leaf;
        let fetched = if is_quiet { None } else { Some(asks.fetch().await) };
        if let Some(fetched) = &fetched {
            metrics.staple(fetched.is_ok());
        }
        let replaced = match fetched {
            Some(Ok((response, times))) => files.served.stapled(response, times),
            Some(Err(e)) => {
                tracing::error!(error = %e, "no response to staple to the certificate that asks for one");
                (quiet_until, failing_for) = (SystemTime::now() + RETRY, leaf);
                None
            }
            None => None,
        };
        if let Some(served) = replaced.or_else(|| if is_over { files.served.unstapled() } else { None }) {
            let next = Arc::new(FromFiles { served: Arc::new(served), ..(*files).clone() });
            // Not if other files have come meanwhile.
            certificates.files.compare_and_swap(&Some(files), Some(next));
        }
    }
}

impl super::Served {
    /// The same with a response of the authority's to go with it (RFC 6066, section 8).
    fn stapled(&self, response: Vec<u8>, times: Times) -> Option<Self> {
        self.with_response(Some(response), Some(times))
    }

    fn unstapled(&self) -> Option<Self> {
        self.with_response(None, None)
    }

    fn with_response(&self, response: Option<Vec<u8>>, times: Option<Times>) -> Option<Self> {
        let asks = self.asks.as_deref()?;
        let pair = CertifiedKey { ocsp: response, ..asks.pair.clone() };
        let config = super::served::configured(pair.clone(), self.config.ticketer.clone()).ok()?;
        let asks = Some(Box::new(Asks { pair, staple: times, ..asks.clone() }));
        Some(Self { config, names: self.names.clone(), not_after: self.not_after, asks })
    }
}

/// TLS feature (RFC 7633, section 4.1); 5 is `status_request`.
const TLS_FEATURE: Oid<'static> = oid!(1.3.6.1.5.5.7.1.24);
/// RFC 5280, section 4.2.2.1.
const OCSP: Oid<'static> = oid!(1.3.6.1.5.5.7.48.1);
/// Bytes of a response that are read.
const MAX_RESPONSE: usize = 64 << 10;
/// Certificates that come with a response and are looked at.
const MAX_DELEGATES: usize = 4;
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
const CLOCKS_DIFFER: Duration = Duration::from_secs(300);
const LOOK_EVERY: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_secs(60);
/// A response is kept for that long at least, whatever it says of itself.
const SOONEST: Duration = Duration::from_secs(60);
