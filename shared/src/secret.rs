//! Encryption of what the master database must keep but nobody may read there: role passwords, private keys.
//!
//! XChaCha20-Poly1305 with a random 24-byte nonce; the associated data names what the secret is for, so that a
//! sealed value moved to another row does not open. Layout: version (1 byte, `1`) | key id (4 bytes) | nonce (24) |
//! ciphertext and tag.

use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use secrecy::SecretString;

pub mod data;
mod master;

pub use master::{Derivation, MAX_KEYS, MasterKey};

/// 32 bytes that seal and open, and a name by which what they sealed is known.
#[derive(Clone)]
struct Key {
    cipher: XChaCha20Poly1305,
    id: [u8; 4],
}

/// Why a secret could not be sealed, opened, or a key not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// The text is not 32 bytes in base64, or not one to sixteen different lines of that.
    #[error("the master key must be 32 bytes in base64, or up to 16 different ones, a line each")]
    BadKey,
    /// The file of the master key could not be read.
    #[error("the master key's file cannot be read: {0}")]
    Unreadable(std::io::ErrorKind),
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

impl Key {
    fn new(purpose: &[u8], key: [u8; 32]) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, &[purpose, &key[..]].concat());
        let mut id = [0; 4];
        id.copy_from_slice(&digest.as_ref()[..4]);
        Self { cipher: XChaCha20Poly1305::new(&key.into()), id }
    }

    fn id(&self) -> String {
        self.id.iter().map(|byte| format!("{byte:02x}")).collect()
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

/// A new random password: 32 letters and digits, 190 bits. No character of it means anything to a shell.
pub fn random_password() -> SecretString {
    use rand::RngExt as _;
    let letters = rand::rng().sample_iter(rand::distr::Alphanumeric).take(32);
    letters.map(char::from).collect::<String>().into()
}
