//! One order: the authority asks for a proof, any router shows it, the authority signs.

use std::time::Duration;

use gmah_shared::config::Challenge;
use gmah_shared::hostname::Hostname;
use instant_acme::{
    Account, AuthorizationHandle, AuthorizationStatus, ChallengeType, Error, Identifier, NewOrder, Order,
    OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use zeroize::Zeroizing;

use super::hook::{self, Record};
use super::{Acme, AcmeError, Job, Subject};

/// Asks again where nothing but the nonce was refused: the request was not looked at (RFC 8555, section 6.5). The library
/// tries three times. A macro, because what is asked borrows the order anew each time.
macro_rules! steadily {
    ($asked:expr) => {{
        let mut tries = 0;
        loop {
            tries += 1;
            match $asked.await {
                Err(Error::Api(p)) if tries < 5 && p.r#type.as_deref() == Some(BAD_NONCE) => {}
                other => break other,
            }
        }
    }};
}

/// What came of an order.
pub(super) struct Issued {
    /// Leaf first.
    pub(super) chain_pem: String,
    pub(super) key_pem: Zeroizing<String>,
}

const POLL: RetryPolicy = RetryPolicy::new()
    .initial_delay(Duration::from_millis(250))
    .backoff(1.6)
    .timeout(Duration::from_secs(90));

/// Takes away what a router left that did not get that far. Before anything is counted or asked: an order that is begun is
/// not to be lost to it.
pub(super) async fn tidy(acme: &Acme, job: &Job) -> Result<(), AcmeError> {
    let Subject::Base(base) = &job.subject else { return Ok(()) };
    let left: Vec<_> = job.left.iter().map(|value| Record::of(base, value.clone())).collect();
    hook::cleanup(acme, job, &left).await
}

pub(super) async fn issue(acme: &Acme, account: &Account, job: &Job) -> Result<Issued, AcmeError> {
    let error = |e| acme.authority.error(e);
    let subject = &job.subject;
    let names = subject.names();
    let identifiers: Vec<_> = names.iter().cloned().map(Identifier::Dns).collect();
    let mut order = steadily!(account.new_order(&NewOrder::new(&identifiers))).map_err(error)?;
    let mut shown = Vec::new();
    let proven =
        tokio::time::timeout(subject.proof_timeout(), prove(acme, &mut order, job, &mut shown)).await;
    let forgotten = match subject {
        Subject::Claim { claim, .. } => forget(acme, &claim.hostname).await,
        Subject::Base(_) => hook::cleanup(acme, job, &shown).await,
    };
    proven.unwrap_or(Err(AcmeError::Timeout))?;
    forgotten?;
    // A key of its own for each certificate.
    let fault = |e: rcgen::Error| AcmeError::Certificate(e.to_string());
    let key = KeyPair::generate().map_err(fault)?;
    let mut params = CertificateParams::new(names).map_err(fault)?;
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(&key).map_err(fault)?;
    steadily!(order.finalize_csr(request.der())).map_err(error)?;
    let chain_pem = steadily!(order.poll_certificate(&POLL)).map_err(error)?;
    Ok(Issued { chain_pem, key_pem: Zeroizing::new(key.serialize_pem()) })
}

const BAD_NONCE: &str = "urn:ietf:params:acme:error:badNonce";

/// Shows every proof that is asked for, and waits until the authority has seen them. What the hook is about to show is put
/// into `shown` before.
async fn prove(acme: &Acme, order: &mut Order, job: &Job, shown: &mut Vec<Record>) -> Result<(), AcmeError> {
    let error = |e| acme.authority.error(e);
    let subject = &job.subject;
    let kind = match (subject, acme.acme.challenge) {
        (Subject::Base(_), _) => ChallengeType::Dns01,
        (_, Challenge::Http01) => ChallengeType::Http01,
        (_, Challenge::TlsAlpn01) => ChallengeType::TlsAlpn01,
    };
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization.map_err(error)?;
        if !is_pending(&authorization)? {
            continue;
        }
        let challenge = authorization.challenge(kind.clone()).ok_or_else(|| missing(&kind))?;
        let answer = challenge.key_authorization();
        match subject {
            Subject::Claim { claim, .. } => {
                show(acme, &claim.hostname, &challenge.token, answer.as_str()).await?;
            }
            Subject::Base(base) => {
                let record = Record::of(base, answer.dns_value());
                shown.push(record.clone());
                hook::present(acme, job, &record).await?;
            }
        }
    }
    match subject {
        // The others hear of it by a notice.
        Subject::Claim { .. } => tokio::time::sleep(*acme.acme.propagation).await,
        Subject::Base(_) => hook::settled(acme, shown).await,
    }
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization.map_err(error)?;
        if !is_pending(&authorization)? {
            continue;
        }
        let mut challenge = authorization.challenge(kind.clone()).ok_or_else(|| missing(&kind))?;
        steadily!(challenge.set_ready()).map_err(error)?;
    }
    let status = steadily!(order.poll_ready(&POLL)).map_err(error)?;
    if matches!(status, OrderStatus::Ready | OrderStatus::Valid) {
        return Ok(());
    }
    Err(AcmeError::Authority(refusal(order).await.unwrap_or_else(|| format!("the order is {status:?}"))))
}

/// Whether an authorization waits for a proof; false where it has been given already.
fn is_pending(authorization: &AuthorizationHandle<'_>) -> Result<bool, AcmeError> {
    match authorization.status {
        AuthorizationStatus::Pending => Ok(true),
        AuthorizationStatus::Valid => Ok(false),
        other => Err(AcmeError::Authority(format!("the authorization is {other:?}"))),
    }
}

fn missing(kind: &ChallengeType) -> AcmeError {
    AcmeError::Authority(format!("it offers no {kind:?} here"))
}

/// What the authority says of the proof that it did not accept.
async fn refusal(order: &mut Order) -> Option<String> {
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        let state = authorization.refresh().await.ok()?;
        let problem = state.challenges.iter().find_map(|c| c.error.as_ref());
        if let Some(detail) = problem.and_then(|p| p.detail.clone()) {
            return Some(detail.chars().take(500).collect());
        }
    }
    None
}

async fn show(acme: &Acme, hostname: &Hostname, token: &str, answer: &str) -> Result<(), AcmeError> {
    acme.client()
        .await?
        .execute(
            "insert into acme_challenges (hostname, token, kind, key_authorization, expires_at)
             values ($1, $2, $3, $4, now() + interval '10 minutes')
             on conflict (hostname, token) do update set kind = excluded.kind,
                 key_authorization = excluded.key_authorization, expires_at = excluded.expires_at",
            &[&hostname.as_str(), &token, &acme.acme.challenge.as_str(), &answer],
        )
        .await?;
    Ok(())
}

async fn forget(acme: &Acme, hostname: &Hostname) -> Result<(), AcmeError> {
    acme.client()
        .await?
        .execute(
            "delete from acme_challenges where hostname = $1 or expires_at < now()",
            &[&hostname.as_str()],
        )
        .await?;
    Ok(())
}
