//! Keys of one organisation, for fields that nobody may read in its database, its backups or its logs.
//!
//! Two secrets of 32 bytes are kept together in the master, sealed with the master key (an envelope): one encrypts, the
//! other makes blind indexes. A new pair is put before the older ones, which still open what they sealed. Without the
//! master's row nothing of it opens any more, which is how an organisation's fields are destroyed in every copy.
//!
//! The associated data is organisation, table, column and row: a value moved to another place does not open.

use uuid::Uuid;
use zeroize::Zeroizing;

use super::{Key, MasterKey, SecretError};
use crate::tenant::TenantId;

/// Keys of an organisation, the current one first. No `Debug` of it shows any.
pub struct DataKeys {
    tenant: TenantId,
    keys: Vec<Key>,
    index: ring::hmac::Key,
}

/// Where a value belongs.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Table.
    pub table: &'static str,
    /// Column.
    pub column: &'static str,
    /// Primary key of the row.
    pub row: Uuid,
}

const SECRETS: usize = 64;

impl DataKeys {
    /// A new sealed pair for an organisation. The index goes on with that of `earlier`, if there is one: what was
    /// indexed must be found.
    ///
    /// # Errors
    /// [`SecretError`] when `earlier` does not open.
    pub fn generate(
        master: &MasterKey,
        tenant: TenantId,
        earlier: Option<&[u8]>,
    ) -> Result<Vec<u8>, SecretError> {
        let mut secrets = Zeroizing::new(rand::random::<[[u8; 32]; 2]>().concat());
        if let Some(earlier) = earlier {
            secrets[32..].copy_from_slice(&open(master, tenant, earlier)?[32..]);
        }
        master.seal(&context(tenant), &secrets)
    }

    /// A new sealed pair for an organisation that becomes a copy of another one: what that had indexed must be found in it.
    ///
    /// # Errors
    /// [`SecretError`] when the pair of the other one does not open.
    pub fn generate_for_copy(
        master: &MasterKey,
        tenant: TenantId,
        of: TenantId,
        earlier: &[u8],
    ) -> Result<Vec<u8>, SecretError> {
        let mut secrets = Zeroizing::new(rand::random::<[[u8; 32]; 2]>().concat());
        secrets[32..].copy_from_slice(&open(master, of, earlier)?[32..]);
        master.seal(&context(tenant), &secrets)
    }

    /// Opens pairs, the current one first.
    ///
    /// # Errors
    /// [`SecretError`] when one of them does not open; [`SecretError::BadKey`] when there are none.
    pub fn unwrap(master: &MasterKey, tenant: TenantId, sealed: &[Vec<u8>]) -> Result<Self, SecretError> {
        let pairs: Vec<_> = sealed.iter().map(|s| open(master, tenant, s)).collect::<Result<_, _>>()?;
        let first = pairs.first().ok_or(SecretError::BadKey)?;
        let index = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &first[32..]);
        let key = |pair: &Zeroizing<Vec<u8>>| {
            let bytes = <[u8; 32]>::try_from(&pair[..32]).map_err(|_| SecretError::BadKey)?;
            Ok(Key::new(b"gmah data key id", bytes))
        };
        let keys = pairs.iter().map(key).collect::<Result<_, SecretError>>()?;
        Ok(Self { tenant, keys, index })
    }

    /// Seals a value for its place, with the current key.
    ///
    /// # Errors
    /// [`SecretError::NotSealed`].
    pub fn seal(&self, place: Place, plain: &[u8]) -> Result<Vec<u8>, SecretError> {
        self.keys.first().ok_or(SecretError::BadKey)?.seal(&self.aad(place), plain)
    }

    /// Opens what any of the keys sealed for that place.
    ///
    /// # Errors
    /// [`SecretError`].
    pub fn open(&self, place: Place, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SecretError> {
        for key in &self.keys {
            if key.sealed(sealed)? {
                return key.open(&self.aad(place), sealed).map(Zeroizing::new);
            }
        }
        Err(SecretError::OtherKey)
    }

    /// Whether a value is sealed with the current key.
    pub fn is_current(&self, sealed: &[u8]) -> bool {
        self.keys.first().is_some_and(|key| key.sealed(sealed) == Ok(true))
    }

    /// What equal values of a column have in common, and nobody without the key can compute: HMAC-SHA-256.
    pub fn blind_index(&self, table: &str, column: &str, value: &str) -> Vec<u8> {
        let mut context = ring::hmac::Context::with_key(&self.index);
        for part in [table, column, value] {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part.as_bytes());
        }
        context.sign().as_ref().to_vec()
    }

    fn aad(&self, place: Place) -> Vec<u8> {
        let Place { table, column, row } = place;
        let mut aad = self.tenant.as_uuid().as_bytes().to_vec();
        for part in [table, column] {
            aad.extend((part.len() as u64).to_be_bytes());
            aad.extend(part.as_bytes());
        }
        aad.extend(row.as_bytes());
        aad
    }
}

impl std::fmt::Debug for DataKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DataKeys").field("tenant", &self.tenant).finish_non_exhaustive()
    }
}

fn context(tenant: TenantId) -> String {
    format!("organizations/{tenant}/data")
}

fn open(master: &MasterKey, tenant: TenantId, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SecretError> {
    let secrets = Zeroizing::new(master.open(&context(tenant), sealed)?);
    if secrets.len() == SECRETS { Ok(secrets) } else { Err(SecretError::Damaged) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn master() -> MasterKey {
        MasterKey::parse(&MasterKey::generate_text()).expect("key")
    }

    const ROW: Uuid = Uuid::from_u128(7);
    const PLACE: Place = Place { table: "patients", column: "notes", row: ROW };

    #[test]
    fn a_value_opens_in_its_place_only() {
        let (master, tenant) = (master(), TenantId::generate());
        let pair = DataKeys::generate(&master, tenant, None).expect("pair");
        let keys = DataKeys::unwrap(&master, tenant, std::slice::from_ref(&pair)).expect("keys");
        let sealed = keys.seal(PLACE, b"allergic").expect("sealed");
        assert_eq!(**keys.open(PLACE, &sealed).expect("opens"), *b"allergic");
        for elsewhere in [
            Place { row: Uuid::from_u128(8), ..PLACE },
            Place { column: "address", ..PLACE },
            Place { table: "members", ..PLACE },
            // The parts do not run together.
            Place { table: "patientsn", column: "otes", row: ROW },
        ] {
            assert_eq!(keys.open(elsewhere, &sealed).err(), Some(SecretError::Damaged));
        }
        for n in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[n] ^= 1;
            assert!(keys.open(PLACE, &bad).is_err() && keys.open(PLACE, &sealed[..n]).is_err());
        }
        // Another organisation's keys, and its row in the master under another's id.
        let other = TenantId::generate();
        assert!(DataKeys::unwrap(&master, other, std::slice::from_ref(&pair)).is_err());
        let pair = DataKeys::generate(&master, other, None).expect("pair");
        let others = DataKeys::unwrap(&master, other, &[pair]).expect("keys");
        assert_eq!(others.open(PLACE, &sealed).err(), Some(SecretError::OtherKey));
        assert!(!format!("{keys:?}").contains("cipher"));
    }

    #[test]
    fn rotation_keeps_what_was_sealed_and_indexed() {
        let (master, tenant) = (master(), TenantId::generate());
        let old = DataKeys::generate(&master, tenant, None).expect("pair");
        let before = DataKeys::unwrap(&master, tenant, std::slice::from_ref(&old)).expect("keys");
        let new = DataKeys::generate(&master, tenant, Some(&old)).expect("pair");
        let after = DataKeys::unwrap(&master, tenant, &[new.clone(), old]).expect("keys");
        let sealed = before.seal(PLACE, b"x").expect("sealed");
        assert_eq!(**after.open(PLACE, &sealed).expect("opens"), *b"x");
        assert!(before.is_current(&sealed) && !after.is_current(&sealed));
        let index = |keys: &DataKeys| keys.blind_index("patients", "national_id", "1850712345678");
        assert_eq!(index(&before), index(&after));
        assert_ne!(index(&after), after.blind_index("patients", "notes", "1850712345678"));
        // The old one is thrown away: what was not sealed anew is gone.
        let only = DataKeys::unwrap(&master, tenant, &[new]).expect("keys");
        assert_eq!(only.open(PLACE, &sealed).err(), Some(SecretError::OtherKey));
        assert_eq!(DataKeys::unwrap(&master, tenant, &[]).err(), Some(SecretError::BadKey));
    }
}
