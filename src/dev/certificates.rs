//! A certificate authority of one's own, and the certificate of the base domain and its wildcard.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use gmah_shared::hostname::Hostname;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};

use super::files::{DataDir, write_private};

const CA_LIFE: Duration = Duration::days(3650);
/// Browsers refuse server certificates that live longer than 398 days.
const SERVER_LIFE: Duration = Duration::days(390);
/// Made anew when less than this is left.
const RENEW: Duration = Duration::days(30);

/// Makes what is missing, for another base domain, or about to end.
pub(super) fn ensure(dir: &DataDir, base: &Hostname) -> anyhow::Result<()> {
    let folder = dir.private_dir("certs")?;
    let path = |name: &str| folder.join(name);
    if !is_good(&path("ca.pem"), None) || !path("ca.key").exists() {
        let key = KeyPair::generate()?;
        let certificate = ca_params()?.self_signed(&key)?;
        write_private(&path("ca.key"), key.serialize_pem().as_bytes())?;
        write_private(&path("ca.pem"), certificate.pem().as_bytes())?;
        // A certificate of another CA is of no use any more.
        super::files::remove(&path("server.pem"))?;
    }
    if !is_good(&path("server.pem"), Some(base)) || !path("server.key").exists() {
        let ca_key = KeyPair::from_pem(&fs::read_to_string(path("ca.key"))?).context("certs/ca.key")?;
        let issuer = Issuer::new(ca_params()?, ca_key);
        let key = KeyPair::generate()?;
        let certificate = server_params(base)?.signed_by(&key, &issuer)?;
        write_private(&path("server.key"), key.serialize_pem().as_bytes())?;
        write_private(&path("server.pem"), certificate.pem().as_bytes())?;
    }
    Ok(())
}

fn ca_params() -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, "gmah development CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = validity(CA_LIFE);
    Ok(params)
}

fn server_params(base: &Hostname) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::new(vec![base.to_string(), format!("*.{base}")])?;
    params.distinguished_name.push(DnType::CommonName, base.as_str());
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    (params.not_before, params.not_after) = validity(SERVER_LIFE);
    Ok(params)
}

/// From an hour ago, for clocks that are a little behind.
fn validity(life: Duration) -> (OffsetDateTime, OffsetDateTime) {
    let from = OffsetDateTime::now_utc() - Duration::HOUR;
    (from, from + life)
}

/// Whether the file holds a certificate that lasts, and for that base domain.
fn is_good(path: &Path, base: Option<&Hostname>) -> bool {
    use x509_parser::prelude::{GeneralName, parse_x509_pem};
    let Ok(text) = fs::read(path) else { return false };
    let Ok((_, pem)) = parse_x509_pem(&text) else { return false };
    let Ok(certificate) = pem.parse_x509() else { return false };
    let left = certificate.validity().not_after.timestamp() - OffsetDateTime::now_utc().unix_timestamp();
    let names_base = base.is_none_or(|base| {
        certificate.subject_alternative_name().ok().flatten().is_some_and(|san| {
            san.value
                .general_names
                .iter()
                .any(|n| matches!(n, GeneralName::DNSName(d) if *d == base.as_str()))
        })
    });
    left > RENEW.whole_seconds() && names_base
}
