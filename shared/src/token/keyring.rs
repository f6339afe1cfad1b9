//! Keys: one that signs, several that verify, and the document that publishes them.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{DecodingKey, EncodingKey};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use zeroize_pkcs8::Pkcs8;

/// A private Ed25519 key and its id. `Debug` shows the id only.
#[derive(Clone)]
pub struct SigningKey {
    pub(super) kid: Arc<str>,
    public: [u8; 32],
    pkcs8: Arc<Pkcs8>,
    pub(super) encoding: EncodingKey,
}

/// A public Ed25519 key and its id.
#[derive(Clone)]
pub struct VerifyingKey {
    kid: Arc<str>,
    public: [u8; 32],
    pub(super) decoding: DecodingKey,
}

/// Why a key cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// No PKCS#8 document of an Ed25519 key.
    #[error("not an Ed25519 private key in PKCS#8 form")]
    BadPrivateKey,
    /// Not 32 bytes.
    #[error("not an Ed25519 public key of 32 bytes")]
    BadPublicKey,
    /// The operating system gave no random bytes.
    #[error("no random bytes for a new key")]
    NoRandomness,
}

impl SigningKey {
    /// A fresh key.
    ///
    /// # Errors
    /// [`KeyError::NoRandomness`].
    pub fn generate() -> Result<Self, KeyError> {
        let rng = ring::rand::SystemRandom::new();
        let document = Ed25519KeyPair::generate_pkcs8(&rng).map_err(|_| KeyError::NoRandomness)?;
        Self::from_pkcs8(document.as_ref())
    }

    /// A key from its PKCS#8 document (RFC 5958).
    ///
    /// # Errors
    /// [`KeyError::BadPrivateKey`].
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, KeyError> {
        super::provider::install();
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).map_err(|_| KeyError::BadPrivateKey)?;
        let public: [u8; 32] = pair.public_key().as_ref().try_into().map_err(|_| KeyError::BadPrivateKey)?;
        Ok(Self {
            kid: thumbprint(&public).into(),
            public,
            pkcs8: Arc::new(Pkcs8(der.to_vec())),
            encoding: EncodingKey::from_ed_der(der),
        })
    }

    /// The key's id: its RFC 7638 thumbprint.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The PKCS#8 document, to be encrypted before it is stored.
    pub fn pkcs8(&self) -> &[u8] {
        &self.pkcs8.0
    }

    /// The 32 bytes of the public key.
    pub fn public(&self) -> &[u8; 32] {
        &self.public
    }

    /// The public half.
    pub fn verifying(&self) -> VerifyingKey {
        VerifyingKey::from_array(self.public)
    }
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningKey").field("kid", &self.kid).finish_non_exhaustive()
    }
}

impl VerifyingKey {
    /// A key from its 32 bytes.
    ///
    /// # Errors
    /// [`KeyError::BadPublicKey`].
    pub fn from_bytes(public: &[u8]) -> Result<Self, KeyError> {
        Ok(Self::from_array(public.try_into().map_err(|_| KeyError::BadPublicKey)?))
    }

    fn from_array(public: [u8; 32]) -> Self {
        super::provider::install();
        Self { kid: thumbprint(&public).into(), public, decoding: DecodingKey::from_ed_der(&public) }
    }

    /// The key's id: its RFC 7638 thumbprint.
    pub fn kid(&self) -> &str {
        &self.kid
    }
}

impl std::fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VerifyingKey").field("kid", &self.kid).finish_non_exhaustive()
    }
}

/// The keys of one moment: at most one signs, all of them verify.
#[derive(Debug, Clone, Default)]
pub struct Keyring {
    signing: Option<SigningKey>,
    verifying: HashMap<Arc<str>, VerifyingKey>,
}

impl Keyring {
    /// A ring of public keys, and of the private one that signs, if this process has it.
    pub fn new(signing: Option<SigningKey>, verifying: impl IntoIterator<Item = VerifyingKey>) -> Self {
        let mut map: HashMap<_, _> = verifying.into_iter().map(|k| (k.kid.clone(), k)).collect();
        if let Some(key) = &signing {
            map.insert(key.kid.clone(), key.verifying());
        }
        Self { signing, verifying: map }
    }

    /// The key that signs.
    pub fn signing(&self) -> Option<&SigningKey> {
        self.signing.as_ref()
    }

    /// The key of that id.
    pub fn verifying(&self, kid: &str) -> Option<&VerifyingKey> {
        self.verifying.get(kid)
    }

    /// Ids of the keys that verify, in their order.
    pub fn kids(&self) -> Vec<&str> {
        let mut kids: Vec<&str> = self.verifying.keys().map(|kid| &**kid).collect();
        kids.sort_unstable();
        kids
    }

    /// How many keys verify.
    pub fn len(&self) -> usize {
        self.verifying.len()
    }

    /// Whether no key verifies.
    pub fn is_empty(&self) -> bool {
        self.verifying.is_empty()
    }

    /// The public keys as a JWK set (RFC 7517, RFC 8037), in order of their ids.
    pub fn jwks(&self) -> serde_json::Value {
        let mut keys: Vec<_> = self.verifying.values().collect();
        keys.sort_by(|a, b| a.kid.cmp(&b.kid));
        let keys: Vec<_> = keys
            .into_iter()
            .map(|k| {
                serde_json::json!({
                    "kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA",
                    "kid": &*k.kid, "x": URL_SAFE_NO_PAD.encode(k.public),
                })
            })
            .collect();
        serde_json::json!({ "keys": keys })
    }
}

/// RFC 7638, section 3: SHA-256 over the required members in lexical order (RFC 8037, appendix A.3).
fn thumbprint(public: &[u8; 32]) -> String {
    let x = URL_SAFE_NO_PAD.encode(public);
    let canonical = format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#);
    URL_SAFE_NO_PAD.encode(ring::digest::digest(&ring::digest::SHA256, canonical.as_bytes()))
}

mod zeroize_pkcs8 {
    /// Private key bytes that are overwritten when dropped.
    pub(super) struct Pkcs8(pub(super) Vec<u8>);

    impl Drop for Pkcs8 {
        fn drop(&mut self) {
            zeroize::Zeroize::zeroize(&mut self.0);
        }
    }
}
