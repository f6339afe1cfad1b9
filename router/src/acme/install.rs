//! A new certificate is written, looked for on the real listener, and taken back if it does not show there.

use std::sync::Arc;
use std::time::Duration;

use gmah_shared::hostname::Hostname;
use instant_acme::{Account, CertificateIdentifier};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, ring as provider};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use time::OffsetDateTime;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use uuid::Uuid;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::order::Issued;
use super::{Acme, AcmeError, Job, Subject};
use crate::certs::Served;
use crate::certs::tickets::Tickets;

pub(super) async fn install(
    acme: &Acme,
    job: &Job,
    order: Uuid,
    issued: Issued,
    account: &Account,
) -> Result<(), AcmeError> {
    let fault = |e: &dyn std::fmt::Display| AcmeError::Certificate(e.to_string());
    let hostname = job.subject.hostname();
    // As the listener will read it, before it is anybody's.
    let served = Served::from_pem(issued.chain_pem.as_bytes(), issued.key_pem.as_bytes(), Tickets::new())
        .map_err(|e| fault(&e))?;
    if job.subject.names().iter().any(|name| !served.names.contains(name)) {
        return Err(fault(&"it is for other names"));
    }
    let leaf = CertificateDer::from_pem_slice(issued.chain_pem.as_bytes()).map_err(|e| fault(&e))?;
    let (from, until) = validity(&leaf)?;
    let percent = i32::try_from(acme.acme.renew_percent.get()).unwrap_or(100);
    let mut renew_at: OffsetDateTime = from + (until - from) * percent / 100;
    // Where the authority says when (RFC 9773), it knows better.
    if let Ok(id) = CertificateIdentifier::try_from(&leaf)
        && let Ok((info, _)) = account.renewal_info(&id).await
    {
        let (start, end) = (info.suggested_window.start, info.suggested_window.end);
        renew_at = renew_at.min(start + (end - start) * rand::random_range(0.0..1.0));
    }
    // It may know nothing of this.
    acme.authority.forget_retry_after();
    // Never at once again, whatever anybody's clock says.
    let now = OffsetDateTime::now_utc();
    let left: time::Duration = until - now;
    let soonest: time::Duration = std::cmp::min(left / 4, time::Duration::hours(1));
    let renew_at = renew_at.max(now + soonest);

    let sealed = acme
        .settings
        .master_key
        .seal(&job.subject.context(), issued.key_pem.as_bytes())
        .map_err(|e| AcmeError::Master(e.to_string()))?;
    let client = acme.client().await?;
    let row = client
        .query_opt(
            // Due again at its renewal from now on: whoever dies here leaves nothing to be ordered twice.
            "with mine as (update certificate_orders set due_at = $8
                           where id = $1 and fence = $2 and holder = $3 returning domain_id, base_domain)
             insert into certificates (hostname, chain_pem, private_key, not_after, renew_at, order_id, domain_id,
                                       base_domain)
             select $4, $5, $6, $7, $8, $9, domain_id, base_domain from mine returning id",
            &[
                &job.order,
                &job.fence,
                &acme.me,
                &hostname.as_str(),
                &issued.chain_pem,
                &sealed,
                &until,
                &renew_at,
                &order,
            ],
        )
        .await?;
    let id: Uuid = row.ok_or(AcmeError::Fenced)?.get(0);
    // Notices may be slow, or not come at all; this router need not wait for its own.
    match &job.subject {
        Subject::Claim { claim, .. } => acme.held.invalidate(claim.organization),
        Subject::Base(_) => acme.wake.base.notify_one(),
    }
    if !shows(acme, hostname, &leaf).await {
        acme.metrics.certificate_probe_failures.inc();
        tracing::error!(hostname = %hostname, "a new certificate was not served, and is taken back");
        client.execute("delete from certificates where id = $1", &[&id]).await?;
        return Err(AcmeError::Probe);
    }
    client
        .execute(
            "with mine as (
                 update certificate_orders set holder = null, held_until = null, attempts = 0, due_at = $4,
                     last_error = null
                 where id = $1 and fence = $2 and holder = $3 returning domain_id, base_domain),
             old as (
                 delete from certificates c using mine where (c.domain_id = mine.domain_id
                     or c.base_domain = mine.base_domain) and c.id <> $5
                     and c.created_at < (select created_at from certificates where id = $5))
             update organization_domains set status = 'active', reason = null, updated_at = now()
             where id in (select domain_id from mine) and status in ('verified', 'active')",
            &[&job.order, &job.fence, &acme.me, &renew_at, &id],
        )
        .await?;
    Ok(())
}

fn validity(leaf: &CertificateDer<'_>) -> Result<(OffsetDateTime, OffsetDateTime), AcmeError> {
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|e| AcmeError::Certificate(e.to_string()))?;
    let validity = parsed.validity();
    let (from, until) = (validity.not_before.to_datetime(), validity.not_after.to_datetime());
    if until <= OffsetDateTime::now_utc() || until <= from {
        return Err(AcmeError::Certificate("it has ended already".into()));
    }
    Ok((from, until))
}

/// Whether our own listener shows that very certificate to whoever asks for that name, within some seconds.
async fn shows(acme: &Acme, hostname: &Hostname, leaf: &CertificateDer<'static>) -> bool {
    let deadline = tokio::time::Instant::now() + PROBE_TIMEOUT;
    loop {
        let seen = tokio::time::timeout(PROBE_ONE, handshake(acme, hostname)).await;
        if matches!(&seen, Ok(Ok(seen)) if seen == leaf) {
            return true;
        }
        if tokio::time::Instant::now() > deadline {
            // Another certificate, or none, is a fault of the new one; a listener that cannot be reached says nothing.
            let is_unreachable =
                matches!(&seen, Ok(Err(e)) if e.kind() == std::io::ErrorKind::ConnectionRefused);
            return is_unreachable;
        }
        tokio::time::sleep(PROBE_PAUSE).await;
    }
}

async fn handshake(acme: &Acme, hostname: &Hostname) -> std::io::Result<CertificateDer<'static>> {
    let provider = Arc::new(provider::default_provider());
    let algorithms = provider.signature_verification_algorithms;
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(std::io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(algorithms)))
        .with_no_client_auth();
    let mut tcp = TcpStream::connect(acme.probe).await?;
    if acme.proxies.speaks_proxy_protocol(tcp.local_addr()?.ip()) {
        tcp.write_all(b"PROXY UNKNOWN\r\n").await?;
    }
    let name = ServerName::try_from(hostname.as_str().to_owned()).map_err(std::io::Error::other)?;
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
    let seen = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).cloned();
    let _ = stream.shutdown().await;
    seen.map(CertificateDer::into_owned).ok_or_else(|| std::io::Error::other("no certificate"))
}

const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
const PROBE_ONE: Duration = Duration::from_secs(3);
const PROBE_PAUSE: Duration = Duration::from_millis(100);

/// Who signed it is not the question: the certificate is compared with the one that was just issued. That the other side
/// has its key is checked.
#[derive(Debug)]
struct AnyCertificate(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
