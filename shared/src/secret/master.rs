//! The key of the platform, and the older and newer ones of an exchange.
//!
//! A file or a variable holds one key, or several of them, one to a line: the first seals, all of them open. A file is
//! read again when somebody says so, and when something was sealed with a key that is not known yet.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::{ExposeSecret as _, SecretString};
use zeroize::Zeroizing;

use super::{Key, SecretError};

/// Keys of the platform: 32 bytes each, from a file or the environment, never from the database. Cheap to clone, and all
/// clones see an exchange. No `Debug` of it shows more than ids.
#[derive(Clone)]
pub struct MasterKey(Arc<Held>);

struct Held {
    ring: ArcSwap<Ring>,
    file: Option<PathBuf>,
    read_at: Mutex<Instant>,
}

/// At least one key, the one that seals first.
struct Ring {
    keys: Vec<Key>,
}

/// Most keys at once.
pub const MAX_KEYS: usize = 16;
/// Least time between two readings of the file because of a key that is not known.
const READ_EVERY: Duration = Duration::from_secs(1);

impl MasterKey {
    /// Reads keys from lines of base64.
    ///
    /// # Errors
    /// [`SecretError::BadKey`].
    pub fn parse(text: &SecretString) -> Result<Self, SecretError> {
        Self::held(text, None)
    }

    /// As [`MasterKey::parse`]; `file` is where the text was read, and will be read again.
    ///
    /// # Errors
    /// [`SecretError::BadKey`].
    pub fn of_file(text: &SecretString, file: PathBuf) -> Result<Self, SecretError> {
        Self::held(text, Some(file))
    }

    fn held(text: &SecretString, file: Option<PathBuf>) -> Result<Self, SecretError> {
        let ring = ArcSwap::from_pointee(Ring::parse(text)?);
        Ok(Self(Arc::new(Held { ring, file, read_at: Mutex::new(Instant::now()) })))
    }

    /// Text of a new random key.
    pub fn generate_text() -> SecretString {
        STANDARD.encode(rand::random::<[u8; 32]>()).into()
    }

    /// Where the keys are, unless they came from a variable.
    pub fn file(&self) -> Option<&Path> {
        self.0.file.as_deref()
    }

    /// Reads the file again, if there is one. With a file that cannot be used everything stays as it was.
    ///
    /// # Errors
    /// [`SecretError::Unreadable`], [`SecretError::BadKey`].
    pub fn reload(&self) -> Result<(), SecretError> {
        let Some(file) = &self.0.file else { return Ok(()) };
        *self.0.read_at.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        let text: SecretString =
            std::fs::read_to_string(file).map_err(|e| SecretError::Unreadable(e.kind()))?.into();
        self.0.ring.store(Arc::new(Ring::parse(&text)?));
        Ok(())
    }

    /// Ids of the keys in hexadecimal digits; the first seals.
    pub fn ids(&self) -> Vec<String> {
        self.0.ring.load().keys.iter().map(Key::id).collect()
    }

    /// Seals `plain` for `context` (table, column and row, for instance).
    ///
    /// # Errors
    /// [`SecretError::NotSealed`].
    pub fn seal(&self, context: &str, plain: &[u8]) -> Result<Vec<u8>, SecretError> {
        let ring = self.0.ring.load();
        ring.keys.first().ok_or(SecretError::BadKey)?.seal(context.as_bytes(), plain)
    }

    /// Opens what [`MasterKey::seal`] sealed for the same context.
    ///
    /// # Errors
    /// [`SecretError::OtherKey`] or [`SecretError::Damaged`].
    pub fn open(&self, context: &str, sealed: &[u8]) -> Result<Vec<u8>, SecretError> {
        match self.0.ring.load().open(context, sealed) {
            // Another node may know more than this one: its file was there earlier.
            Err(SecretError::OtherKey) if self.is_stale() && self.reload().is_ok() => {
                self.0.ring.load().open(context, sealed)
            }
            other => other,
        }
    }

    /// Opens a text.
    ///
    /// # Errors
    /// As [`MasterKey::open`].
    pub fn open_text(&self, context: &str, sealed: &[u8]) -> Result<SecretString, SecretError> {
        let plain = self.open(context, sealed)?;
        Ok(String::from_utf8(plain).map_err(|_| SecretError::Damaged)?.into())
    }

    fn is_stale(&self) -> bool {
        let read_at = self.0.read_at.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.file.is_some() && read_at.elapsed() >= READ_EVERY
    }
}

impl Ring {
    fn parse(text: &SecretString) -> Result<Self, SecretError> {
        let mut keys: Vec<Key> = Vec::new();
        for line in text.expose_secret().split_ascii_whitespace() {
            let bytes = Zeroizing::new(STANDARD.decode(line).map_err(|_| SecretError::BadKey)?);
            let bytes = <[u8; 32]>::try_from(&bytes[..]).map_err(|_| SecretError::BadKey)?;
            let key = Key::new(b"gmah master key id", bytes);
            if keys.iter().any(|known| known.id == key.id) {
                return Err(SecretError::BadKey);
            }
            keys.push(key);
        }
        if (1..=MAX_KEYS).contains(&keys.len()) { Ok(Self { keys }) } else { Err(SecretError::BadKey) }
    }

    fn open(&self, context: &str, sealed: &[u8]) -> Result<Vec<u8>, SecretError> {
        for key in &self.keys {
            if key.sealed(sealed)? {
                return key.open(context.as_bytes(), sealed);
            }
        }
        Err(SecretError::OtherKey)
    }
}

impl std::fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MasterKey").field("ids", &self.ids()).finish_non_exhaustive()
    }
}

/// What keys for other purposes are derived from, the same on every node: kept in the master, so that it outlives an
/// exchange of the master key.
#[derive(Clone)]
pub struct Derivation(ring::hmac::Key);

impl Derivation {
    /// From the bytes that the master keeps.
    pub(crate) fn new(bytes: &[u8]) -> Self {
        Self(ring::hmac::Key::new(ring::hmac::HMAC_SHA256, bytes))
    }

    /// A key of 32 bytes for a purpose.
    pub fn derive(&self, purpose: &str) -> [u8; 32] {
        let tag = ring::hmac::sign(&self.0, purpose.as_bytes());
        let mut key = [0; 32];
        key.copy_from_slice(tag.as_ref());
        key
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(lines: &[&SecretString]) -> SecretString {
        lines.iter().map(|l| format!("{}\n", l.expose_secret())).collect::<String>().into()
    }

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
        let one = MasterKey::generate_text();
        let shown = format!("{:?}", MasterKey::parse(&one).expect("key"));
        assert!(!shown.contains(one.expose_secret()));
        // The same one twice is a slip; so are more than anybody exchanges.
        assert_eq!(MasterKey::parse(&text(&[&one, &one])).err(), Some(SecretError::BadKey));
        let many: Vec<_> = (0..=MAX_KEYS).map(|_| MasterKey::generate_text()).collect();
        let most: Vec<_> = many.iter().take(MAX_KEYS).collect();
        assert!(MasterKey::parse(&text(&most)).is_ok());
        assert!(MasterKey::parse(&text(&many.iter().collect::<Vec<_>>())).is_err());
    }

    #[test]
    fn the_first_seals_and_all_open() {
        let (old, new) = (MasterKey::generate_text(), MasterKey::generate_text());
        let before = MasterKey::parse(&old).expect("key");
        let sealed = before.seal("x", b"secret").expect("sealed");
        let to_come = MasterKey::parse(&text(&[&old, &new])).expect("keys");
        let after = MasterKey::parse(&text(&[&new, &old])).expect("keys");
        let only = MasterKey::parse(&new).expect("key");
        assert_eq!(
            (to_come.ids()[0].clone(), after.ids()[0].clone()),
            (before.ids()[0].clone(), only.ids()[0].clone())
        );
        assert_eq!(after.open("x", &sealed).expect("opens"), b"secret");
        let anew = after.seal("x", b"secret").expect("sealed");
        assert!(to_come.open("x", &anew).is_ok() && only.open("x", &anew).is_ok());
        assert_eq!(before.open("x", &anew), Err(SecretError::OtherKey));
    }

    #[test]
    fn a_file_is_read_again_for_a_key_that_is_not_known() {
        let dir = tempfile::tempdir().expect("dir");
        let file = dir.path().join("master.key");
        let (old, new) = (MasterKey::generate_text(), MasterKey::generate_text());
        let key = MasterKey::of_file(&old, file.clone()).expect("key");
        let clone = key.clone();
        let sealed = MasterKey::parse(&new).expect("key").seal("x", b"secret").expect("sealed");
        std::fs::write(&file, text(&[&old, &new]).expose_secret()).expect("written");
        // Not for every stranger's value: once a second at most.
        assert_eq!(key.open("x", &sealed), Err(SecretError::OtherKey));
        *key.0.read_at.lock().expect("lock") -= READ_EVERY;
        assert_eq!(key.open("x", &sealed).expect("opens"), b"secret");
        assert_eq!(clone.ids().len(), 2);
        // A file that somebody broke changes nothing.
        std::fs::write(&file, "oops").expect("written");
        assert_eq!(key.reload(), Err(SecretError::BadKey));
        std::fs::remove_file(&file).expect("removed");
        assert_eq!(key.reload(), Err(SecretError::Unreadable(std::io::ErrorKind::NotFound)));
        assert_eq!(key.open("x", &sealed).expect("opens"), b"secret");
    }
}
