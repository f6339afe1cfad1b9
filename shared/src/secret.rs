//! Encryption of what the master database must keep but nobody may read there: role passwords, private keys.
//!
//! XChaCha20-Poly1305 with a random 24-byte nonce; the associated data names what the secret is for, so that a
//! sealed value moved to another row does not open. Layout: version (1 byte, `1`) | key id (4 bytes) | nonce (24) |
//! ciphertext and tag.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use secrecy::{ExposeSecret as _, SecretString};

pub mod data;

/// The key of the platform: 32 bytes from a file or the environment, never from the database. No `Debug` of it shows
/// more than its id.
#[derive(Clone)]
pub struct MasterKey {
    key: Key,
    derivation: ring::hmac::Key,
}

/// 32 bytes that seal and open, and a name by which what they sealed is known.
#[derive(Clone)]
struct Key {
    cipher: XChaCha20Poly1305,
    id: [u8; 4],
}

/// Why a secret could not be sealed, opened, or a key not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// The text is not 32 bytes in base64.
    #[error("the master key must be 32 bytes in base64")]
    BadKey,
    /// Sealed with another key.
    #[error("sealed with another master key")]
    OtherKey,
    /// Truncated, altered, or sealed for something else.
    #[error("sealed value is damaged or belongs to something else")]
    Damaged,
    /// Encryption failed, which for texts of this size it cannot.
    #[error("value could not be sealed")]
    NotSealed,
}

const VERSION: u8 = 1;
const HEADER: usize = 1 + 4 + 24;

impl MasterKey {
    /// Reads a key from base64 text.
    ///
    /// # Errors
    /// [`SecretError::BadKey`].
    pub fn parse(text: &SecretString) -> Result<Self, SecretError> {
        let bytes = STANDARD.decode(text.expose_secret().trim()).map_err(|_| SecretError::BadKey)?;
        let key: [u8; 32] = bytes.try_into().map_err(|_| SecretError::BadKey)?;
        let derivation = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &[b"gmah derive", &key[..]].concat());
        Ok(Self { key: Key::new(b"gmah master key id", key), derivation })
    }

    /// Text of a new random key.
    pub fn generate_text() -> SecretString {
        STANDARD.encode(rand::random::<[u8; 32]>()).into()
    }

    /// A key of 32 bytes for another purpose, the same on every node.
    pub fn derive(&self, purpose: &str) -> [u8; 32] {
        let tag = ring::hmac::sign(&self.derivation, purpose.as_bytes());
        let mut key = [0; 32];
        key.copy_from_slice(tag.as_ref());
        key
    }

    /// Seals `plain` for `context` (table, column and row, for instance).
    ///
    /// # Errors
    /// [`SecretError::NotSealed`].
    pub fn seal(&self, context: &str, plain: &[u8]) -> Result<Vec<u8>, SecretError> {
        self.key.seal(context.as_bytes(), plain)
    }

    /// Opens what [`MasterKey::seal`] sealed for the same context.
    ///
    /// # Errors
    /// [`SecretError::OtherKey`] or [`SecretError::Damaged`].
    pub fn open(&self, context: &str, sealed: &[u8]) -> Result<Vec<u8>, SecretError> {
        self.key.open(context.as_bytes(), sealed)
    }

    /// Opens a text.
    ///
    /// # Errors
    /// As [`MasterKey::open`].
    pub fn open_text(&self, context: &str, sealed: &[u8]) -> Result<SecretString, SecretError> {
        let plain = self.open(context, sealed)?;
        Ok(String::from_utf8(plain).map_err(|_| SecretError::Damaged)?.into())
    }
}

impl Key {
    fn new(purpose: &[u8], key: [u8; 32]) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, &[purpose, &key[..]].concat());
        let mut id = [0; 4];
        id.copy_from_slice(&digest.as_ref()[..4]);
        Self { cipher: XChaCha20Poly1305::new(&key.into()), id }
    }

    fn seal(&self, aad: &[u8], plain: &[u8]) -> Result<Vec<u8>, SecretError> {
        let nonce: [u8; 24] = rand::random();
        let sealed = self
            .cipher
            .encrypt(&XNonce::from(nonce), Payload { msg: plain, aad })
            .map_err(|_| SecretError::NotSealed)?;
        let mut out = Vec::with_capacity(HEADER + sealed.len());
        out.push(VERSION);
        out.extend(self.id);
        out.extend(nonce);
        out.extend(sealed);
        Ok(out)
    }

    fn open(&self, aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>, SecretError> {
        if !self.sealed(sealed)? {
            return Err(SecretError::OtherKey);
        }
        let nonce: [u8; 24] = sealed[5..HEADER].try_into().map_err(|_| SecretError::Damaged)?;
        self.cipher
            .decrypt(&XNonce::from(nonce), Payload { msg: &sealed[HEADER..], aad })
            .map_err(|_| SecretError::Damaged)
    }

    /// Whether it was this key that sealed.
    fn sealed(&self, sealed: &[u8]) -> Result<bool, SecretError> {
        match sealed {
            [VERSION, id @ ..] if sealed.len() >= HEADER => Ok(id[..4] == self.id),
            _ => Err(SecretError::Damaged),
        }
    }
}

impl std::fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MasterKey").field("id", &self.key.id).finish_non_exhaustive()
    }
}

/// A new random password: 32 letters and digits, 190 bits. No character of it means anything to a shell.
pub fn random_password() -> SecretString {
    use rand::RngExt as _;
    let letters = rand::rng().sample_iter(rand::distr::Alphanumeric).take(32);
    letters.map(char::from).collect::<String>().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_only_for_its_context_and_key() {
        let key = MasterKey::parse(&MasterKey::generate_text()).expect("key");
        let sealed = key.seal("organizations/1", b"secret").expect("sealed");
        assert_eq!(key.open("organizations/1", &sealed).expect("opens"), b"secret");
        assert_eq!(key.open("organizations/2", &sealed), Err(SecretError::Damaged));
        let other = MasterKey::parse(&MasterKey::generate_text()).expect("key");
        assert_eq!(other.open("organizations/1", &sealed), Err(SecretError::OtherKey));
        for n in 0..sealed.len() {
            assert!(key.open("organizations/1", &sealed[..n]).is_err());
            let mut bad = sealed.clone();
            bad[n] ^= 1;
            assert!(key.open("organizations/1", &bad).is_err());
        }
    }

    #[test]
    fn keys_are_32_bytes() {
        for bad in ["", "abc", "AAAA", "not base64!"] {
            assert_eq!(MasterKey::parse(&bad.to_owned().into()).err(), Some(SecretError::BadKey));
        }
        let text = MasterKey::generate_text();
        let shown = format!("{:?}", MasterKey::parse(&text).expect("key"));
        assert!(!shown.contains(text.expose_secret()));
    }
}
