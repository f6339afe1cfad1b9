//! Whether a customer's name is theirs and points at us.
//!
//! A name is proven by a TXT record below it that nobody else can have been told, and must lead here: by a CNAME to a
//! target that is this claim's own and cannot be guessed, or by addresses that are ours. A CNAME alone proves nothing: it
//! may be left over from another customer. Only the DNS is asked; no connection is made to wherever a name points.

use std::net::IpAddr;

use crate::config::{AcmeSettings, DomainSettings};
use crate::dns::{Dns, DnsError};
use crate::hostname::Hostname;
use crate::tenant::TenantId;

/// A name that an organisation says is its own.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The name.
    pub hostname: Hostname,
    /// Whose it is said to be.
    pub organization: TenantId,
    /// Random, of this claim.
    pub nonce: String,
    /// First label of the target.
    pub target_label: String,
}

/// Why a name is not served. The sentences are for whoever runs the name's zone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The DNS could not be asked: this says nothing about the name.
    #[error("the DNS gave no answer: {0}")]
    Unknown(String),
    /// The TXT record is not there.
    #[error("there is no TXT record at {0} with the value {1}")]
    NoProof(String, String),
    /// The name leads elsewhere.
    #[error("{0} does not lead here: make it a CNAME to {1}, or give it our addresses")]
    Elsewhere(Hostname, String),
    /// The name leads to a private address.
    #[error("{0} resolves to {1}, which is not a public address")]
    Private(Hostname, IpAddr),
    /// A CAA record forbids our authority.
    #[error("a CAA record of {0} does not allow {1}")]
    Caa(Hostname, String),
}

impl Fault {
    /// Whether the name itself is at fault, and not the way to find out.
    pub const fn is_certain(&self) -> bool {
        !matches!(self, Self::Unknown(_))
    }
}

impl Claim {
    /// Name of the TXT record.
    pub fn proof_name(&self) -> String {
        format!("_gmah-verify.{}", self.hostname)
    }

    /// Its value: whose claim it is, and what only this claim was told.
    pub fn proof_value(&self) -> String {
        format!("gmah-verify={}.{}", self.organization, self.nonce)
    }

    /// What the name should be a CNAME to.
    pub fn target(&self, base: &Hostname) -> String {
        format!("{}.{base}", self.target_label)
    }
}

/// Checks a claim.
///
/// # Errors
/// The first [`Fault`].
pub async fn check(
    dns: &Dns,
    claim: &Claim,
    settings: &DomainSettings,
    target_base: &Hostname,
    acme: Option<&AcmeSettings>,
) -> Result<(), Fault> {
    let unknown = |e: DnsError| Fault::Unknown(e.to_string());
    let (name, value) = (claim.proof_name(), claim.proof_value());
    let proofs = match dns.texts(&name).await {
        Ok(texts) => texts,
        Err(DnsError::NoRecords) => Vec::new(),
        Err(e) => return Err(unknown(e)),
    };
    if !proofs.contains(&value) {
        return Err(Fault::NoProof(name, value));
    }
    leads_here(dns, claim, settings, target_base).await?;
    match acme {
        Some(acme) if !acme.caa_identities.is_empty() => allows(dns, &claim.hostname, acme).await,
        _ => Ok(()),
    }
}

async fn leads_here(
    dns: &Dns,
    claim: &Claim,
    settings: &DomainSettings,
    target_base: &Hostname,
) -> Result<(), Fault> {
    let unknown = |e: DnsError| Fault::Unknown(e.to_string());
    let target = claim.target(target_base);
    let elsewhere = || Fault::Elsewhere(claim.hostname.clone(), target.clone());
    let is_target = match dns.alias(claim.hostname.as_str()).await {
        Ok(alias) => alias.eq_ignore_ascii_case(&target),
        Err(DnsError::NoRecords) => false,
        Err(e) => return Err(unknown(e)),
    };
    let addresses = match dns.addresses(&claim.hostname).await {
        Ok(addresses) => addresses,
        // A CNAME to a target that does not resolve yet is a fault of ours, not of the name.
        Err(DnsError::NoRecords) if is_target => return Ok(()),
        Err(DnsError::NoRecords) => return Err(elsewhere()),
        Err(e) => return Err(unknown(e)),
    };
    if let Some(private) = addresses.iter().find(|a| !settings.allow_private && !is_public(**a)) {
        return Err(Fault::Private(claim.hostname.clone(), *private));
    }
    if is_target {
        return Ok(());
    }
    let ours = if settings.addresses.is_empty() {
        let target = Hostname::parse(&target).map_err(|e| Fault::Unknown(e.to_string()))?;
        match dns.addresses(&target).await {
            Ok(ours) => ours,
            Err(DnsError::NoRecords) => return Err(elsewhere()),
            Err(e) => return Err(unknown(e)),
        }
    } else {
        settings.addresses.clone()
    };
    // All of them: one that is somebody else's gets a part of the visitors, and of the authority's questions.
    if addresses.iter().all(|a| ours.contains(a)) { Ok(()) } else { Err(elsewhere()) }
}

/// The closest CAA records up the tree decide (RFC 8659, section 3).
async fn allows(dns: &Dns, hostname: &Hostname, acme: &AcmeSettings) -> Result<(), Fault> {
    let mut name = hostname.as_str();
    while name.contains('.') {
        match dns.issuers(name).await {
            // The closest set decides, and one that says nothing of issuing forbids nothing.
            Ok(issuers) if issuers.is_empty() => return Ok(()),
            Ok(issuers) => {
                let allowed =
                    issuers.iter().any(|i| acme.caa_identities.iter().any(|o| o.eq_ignore_ascii_case(i)));
                let ours = acme.caa_identities.join(", ");
                return if allowed { Ok(()) } else { Err(Fault::Caa(hostname.clone(), ours)) };
            }
            Err(DnsError::NoRecords) => {}
            Err(e) => return Err(Fault::Unknown(e.to_string())),
        }
        name = name.split_once('.').map_or("", |(_, parent)| parent);
    }
    Ok(())
}

/// Whether an address is one of the public internet (RFC 6890).
fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(a) => {
            let [first, second, ..] = a.octets();
            !(a.is_private()
                || a.is_loopback()
                || a.is_link_local()
                || a.is_unspecified()
                || a.is_broadcast()
                || a.is_documentation()
                || a.is_multicast()
                || first == 0
                || first >= 240
                || (first == 100 && (64..128).contains(&second))
                || (first == 198 && (18..20).contains(&second))
                || a.octets()[..3] == [192, 0, 0])
        }
        IpAddr::V6(a) => {
            let first = a.segments()[0];
            // Global unicast, without the documentation networks.
            (first & 0xe000) == 0x2000 && !(first == 0x2001 && a.segments()[1] == 0xdb8) && first != 0x3fff
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_addresses() {
        for public in ["8.8.8.8", "100.63.0.1", "198.20.0.1", "2a00:1450::1", "::ffff:8.8.8.8"] {
            assert!(is_public(public.parse().expect("address")), "{public}");
        }
        for private in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.0.1",
            "169.254.169.254",
            "0.0.0.0",
            "100.64.0.1",
            "198.18.0.1",
            "192.0.2.1",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "fc00::1",
            "2001:db8::1",
            "::ffff:127.0.0.1",
            "ff02::1",
            "64:ff9b::7f00:1",
        ] {
            assert!(!is_public(private.parse().expect("address")), "{private}");
        }
    }

    #[test]
    fn a_proof_names_its_claim() {
        let claim = Claim {
            hostname: Hostname::parse("Shop.Example.ORG").expect("name"),
            organization: TenantId::from_uuid(uuid::Uuid::nil()),
            nonce: "abc".into(),
            target_label: "t".into(),
        };
        assert_eq!(claim.proof_name(), "_gmah-verify.shop.example.org");
        assert_eq!(claim.proof_value(), "gmah-verify=00000000-0000-0000-0000-000000000000.abc");
        assert_eq!(claim.target(&Hostname::parse("edge.gmah.com").expect("name")), "t.edge.gmah.com");
    }
}
