//! Session tickets (RFC 5077; RFC 8446, section 4.6.1) that any router can read.
//!
//! Keys are derived from secrets in the master, which change every half day; until those are read, and with the master
//! away, a secret of this router's own serves. A ticket is `name (16) ‖ nonce (12) ‖ sealed`, the name telling which key.

use std::sync::Arc;

use arc_swap::ArcSwap;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, KeyType, Salt};
use rustls::server::ProducesTickets;

/// Makes and reads tickets.
pub struct Tickets(ArcSwap<Vec<TicketKey>>);

struct TicketKey {
    name: [u8; NAME_LEN],
    key: LessSafeKey,
}

const NAME_LEN: usize = 16;
/// What clients are told, in seconds. Secrets are kept for longer.
const LIFETIME: u32 = 12 * 3600;

impl Tickets {
    /// With a secret of this router's own.
    pub fn new() -> Arc<Self> {
        let own: [u8; 32] = rand::random();
        Arc::new(Self(ArcSwap::from_pointee(TicketKey::derive(&own).into_iter().collect())))
    }

    /// Exchanges the secrets: the first makes tickets, all read them. None leaves everything as it is.
    pub fn exchange(&self, secrets: &[impl AsRef<[u8]>]) {
        let keys: Vec<_> = secrets.iter().filter_map(|s| TicketKey::derive(s.as_ref())).collect();
        if !keys.is_empty() {
            self.0.store(Arc::new(keys));
        }
    }
}

impl TicketKey {
    fn derive(secret: &[u8]) -> Option<Self> {
        let pseudo_random = Salt::new(HKDF_SHA256, b"gmah session tickets 1").extract(secret);
        let mut name = [0; NAME_LEN];
        let mut key = [0; 32];
        pseudo_random.expand(&[b"name"], Length(NAME_LEN)).ok()?.fill(&mut name).ok()?;
        pseudo_random.expand(&[b"key"], Length(key.len())).ok()?.fill(&mut key).ok()?;
        Some(Self { name, key: LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key).ok()?) })
    }
}

struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        LIFETIME
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let keys = self.0.load();
        let key = keys.first()?;
        // Random, and far fewer than 2^32 under one key.
        let nonce: [u8; NONCE_LEN] = rand::random();
        let mut sealed = plain.to_vec();
        let aad = Aad::from(key.name);
        key.key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut sealed).ok()?;
        Some([&key.name[..], &nonce[..], &sealed[..]].concat())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (name, rest) = ticket.split_at_checked(NAME_LEN)?;
        let (nonce, sealed) = rest.split_at_checked(NONCE_LEN)?;
        let keys = self.0.load();
        let key = keys.iter().find(|k| k.name == name)?;
        let mut plain = sealed.to_vec();
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let length = key.key.open_in_place(nonce, Aad::from(key.name), &mut plain).ok()?.len();
        plain.truncate(length);
        Some(plain)
    }
}

impl std::fmt::Debug for Tickets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tickets").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_of_one_router_is_read_by_another() {
        let (one, two) = (Tickets::new(), Tickets::new());
        let ticket = one.encrypt(b"session").expect("ticket");
        assert_eq!(one.decrypt(&ticket).as_deref(), Some(&b"session"[..]));
        assert_eq!(two.decrypt(&ticket), None, "each its own, until they share");
        let (old, new) = ([1u8; 32], [2u8; 32]);
        one.exchange(&[old]);
        let ticket = one.encrypt(b"session").expect("ticket");
        two.exchange(&[new, old]);
        assert_eq!(two.decrypt(&ticket).as_deref(), Some(&b"session"[..]), "an older secret still reads");
        two.exchange(&[[0u8; 0]; 0]);
        assert!(two.decrypt(&ticket).is_some(), "none changes nothing");
        assert_ne!(one.encrypt(b"session"), one.encrypt(b"session"));
        for n in 0..ticket.len() {
            let mut bent = ticket.clone();
            bent[n] ^= 1;
            assert_eq!(two.decrypt(&bent), None, "byte {n}");
            assert_eq!(two.decrypt(&ticket[..n]), None);
        }
    }
}
