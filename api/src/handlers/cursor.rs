//! Cursors of lists: the id after which a page begins, signed for one organisation and one list.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use gmah_shared::tenant::TenantId;
use ring::hmac;
use uuid::Uuid;

use crate::error::ApiError;

/// Signs and checks cursors.
pub struct Cursors {
    key: hmac::Key,
}

const TAG: usize = 16;

impl Cursors {
    /// From a key of 32 bytes that all api nodes share.
    pub fn new(key: &[u8]) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, key) }
    }

    /// The cursor after `id`.
    pub fn encode(&self, tenant: TenantId, list: &str, id: Uuid) -> String {
        let mut bytes = id.as_bytes().to_vec();
        bytes.extend(&self.tag(tenant, list, id).as_ref()[..TAG]);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The id of a cursor of this organisation and list.
    ///
    /// # Errors
    /// [`ApiError::Malformed`] for anything else.
    pub fn decode(&self, tenant: TenantId, list: &str, cursor: &str) -> Result<Uuid, ApiError> {
        let refused = || ApiError::Malformed("the cursor is not one of this list".into());
        if cursor.len() > 64 {
            return Err(refused());
        }
        let bytes = URL_SAFE_NO_PAD.decode(cursor).map_err(|_| refused())?;
        let (id, tag) = bytes.split_at_checked(16).ok_or_else(refused)?;
        let id = Uuid::from_slice(id).map_err(|_| refused())?;
        let expected = self.tag(tenant, list, id);
        let same: bool = subtle::ConstantTimeEq::ct_eq(&expected.as_ref()[..TAG], tag).into();
        if same { Ok(id) } else { Err(refused()) }
    }

    fn tag(&self, tenant: TenantId, list: &str, id: Uuid) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(tenant.as_uuid().as_bytes());
        context.update(id.as_bytes());
        context.update(list.as_bytes());
        context.sign()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a03_a_cursor_belongs_to_one_organisation_and_list() {
        let c = Cursors::new(&[7; 32]);
        let (a, b, id) = (TenantId::generate(), TenantId::generate(), Uuid::now_v7());
        let text = c.encode(a, "members", id);
        assert_eq!(c.decode(a, "members", &text), Ok(id));
        assert!(c.decode(b, "members", &text).is_err());
        assert!(c.decode(a, "loans", &text).is_err());
        for n in 0..text.len() {
            let mut bad = text.clone().into_bytes();
            bad[n] = if bad[n] == b'A' { b'B' } else { b'A' };
            let bad = String::from_utf8(bad).expect("ASCII");
            assert!(bad == text || c.decode(a, "members", &bad).is_err());
            assert!(c.decode(a, "members", &text[..n]).is_err());
        }
        for junk in ["", "-1", "'", &"A".repeat(1 << 20)] {
            assert!(c.decode(a, "members", junk).is_err());
        }
    }
}
