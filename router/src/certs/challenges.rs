//! Proofs that the certificate authority may ask for, whichever router it comes to.
//!
//! All of them are in memory: there are as many as orders under way, and no question from outside reaches the master.

use std::sync::Arc;

use arc_swap::ArcSwap;
use gmah_shared::catalog::Proof;
use gmah_shared::hostname::Hostname;
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use ring::digest::{SHA256, digest};
use rustls::ServerConfig;
use rustls::crypto::ring as provider;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::PrivatePkcs8KeyDer;

/// The protocol in whose name the authority comes (RFC 8737, section 3).
pub const ACME_TLS: &[u8] = b"acme-tls/1";
/// Where it looks on the plain port (RFC 8555, section 8.3).
pub const PATH: &str = "/.well-known/acme-challenge/";

/// The proofs of this moment.
#[derive(Default)]
pub struct Challenges(ArcSwap<Vec<Proof>>);

impl Challenges {
    /// Exchanges them.
    pub fn exchange(&self, proofs: Vec<Proof>) {
        self.0.store(Arc::new(proofs));
    }

    /// What to answer on the plain port, for a path that begins with [`PATH`].
    pub fn answer(&self, host: &Hostname, path: &str) -> Option<String> {
        let token = path.strip_prefix(PATH)?;
        let proofs = self.0.load();
        let proof =
            proofs.iter().find(|p| p.kind == "http-01" && p.hostname == host.as_str() && p.token == token)?;
        Some(proof.key_authorization.clone())
    }

    /// The certificate that proves a name on the TLS port.
    pub fn certificate(&self, host: &Hostname) -> Option<Arc<ServerConfig>> {
        let proofs = self.0.load();
        let proof = proofs.iter().find(|p| p.kind == "tls-alpn-01" && p.hostname == host.as_str())?;
        certificate(host, &proof.key_authorization)
    }
}

/// A self-signed certificate with the digest in its acmeIdentifier extension (RFC 8737, section 3).
fn certificate(host: &Hostname, key_authorization: &str) -> Option<Arc<ServerConfig>> {
    let mut params = CertificateParams::new(vec![host.as_str().to_owned()]).ok()?;
    let hash = digest(&SHA256, key_authorization.as_bytes());
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(hash.as_ref())];
    let key = KeyPair::generate().ok()?;
    let leaf = params.self_signed(&key).ok()?;
    let signing = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    // Not checked as a pair: the extension is critical, and the library knows no use for it.
    let pair =
        CertifiedKey::new(vec![leaf.der().clone()], provider::sign::any_supported_type(&signing).ok()?);
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .ok()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(pair)));
    config.alpn_protocols = vec![ACME_TLS.to_vec()];
    Some(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t12_only_what_is_asked_for_by_its_name() {
        let challenges = Challenges::default();
        let proof = |kind: &str| Proof {
            hostname: "shop.example".into(),
            token: "abc".into(),
            kind: kind.into(),
            key_authorization: "abc.thumb".into(),
        };
        challenges.exchange(vec![proof("http-01")]);
        let host = |h: &str| Hostname::parse(h).expect("name");
        let answer = |h: &str, path: &str| challenges.answer(&host(h), path);
        assert_eq!(answer("shop.example", "/.well-known/acme-challenge/abc").as_deref(), Some("abc.thumb"));
        let long = format!("{PATH}{}", "a".repeat(4096));
        for path in [
            PATH,
            "/.well-known/acme-challenge/../../etc/passwd",
            "/abc",
            "/.well-known/acme-challenge/ABC",
            &long,
        ] {
            assert_eq!(answer("shop.example", path), None, "{path}");
        }
        assert_eq!(answer("other.example", "/.well-known/acme-challenge/abc"), None);
        assert!(challenges.certificate(&host("shop.example")).is_none(), "another kind");
        challenges.exchange(vec![proof("tls-alpn-01")]);
        assert!(challenges.certificate(&host("shop.example")).is_some());
        assert!(challenges.certificate(&host("evil.example")).is_none());
    }
}
