//! What PostgreSQL stores of a password (SCRAM-SHA-256: RFC 5802, RFC 7677; PostgreSQL, chapter "pg_authid").

use std::num::NonZeroU32;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::{digest, hmac, pbkdf2};
use secrecy::{ExposeSecret as _, SecretString};

/// Rounds of stretching. They make guessing dear where a person chose the password; ours are made by
/// [`crate::secret::random_password`], which nobody guesses in any number of rounds, and whoever connects pays for each
/// round, each time. Of the 4096 that are usual, one connection in a pool of many databases costs most of a millisecond.
const ROUNDS: NonZeroU32 = NonZeroU32::MIN;

/// The verifier of a random password, for `ALTER ROLE … PASSWORD`: the server's log may show it, and from it nobody can
/// log in.
pub fn verifier_of_random(password: &SecretString) -> String {
    let salt: [u8; 16] = rand::random();
    verifier(password, &salt, ROUNDS)
}

fn verifier(password: &SecretString, salt: &[u8], rounds: NonZeroU32) -> String {
    let mut salted = zeroize::Zeroizing::new([0u8; digest::SHA256_OUTPUT_LEN]);
    pbkdf2::derive(
        pbkdf2::PBKDF2_HMAC_SHA256,
        rounds,
        salt,
        password.expose_secret().as_bytes(),
        &mut *salted,
    );
    let key = hmac::Key::new(hmac::HMAC_SHA256, &*salted);
    let stored = digest::digest(&digest::SHA256, hmac::sign(&key, b"Client Key").as_ref());
    let server = hmac::sign(&key, b"Server Key");
    format!(
        "SCRAM-SHA-256${rounds}:{}${}:{}",
        STANDARD.encode(salt),
        STANDARD.encode(stored),
        STANDARD.encode(server)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `postgres` itself stores for this password, salt and number of rounds (RFC 7677, section 3, has the same).
    #[test]
    fn as_the_server_has_it() {
        let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").expect("salt");
        let rounds = NonZeroU32::new(4096).expect("rounds");
        assert_eq!(
            verifier(&"pencil".to_owned().into(), &salt, rounds),
            "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:\
             wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
        );
        let made = verifier_of_random(&crate::secret::random_password());
        assert!(made.starts_with("SCRAM-SHA-256$1:") && made.len() < 160, "{made}");
    }
}
