use std::sync::Arc;

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::hostname::Hostname;
use crate::tenant::TenantSlug;

const NOW: u64 = 1_800_000_000;

struct Pair {
    ring: Arc<ArcSwap<Keyring>>,
    signer: Signer,
    verifier: Verifier,
    id: TenantId,
}

fn pair() -> Pair {
    let ring = Arc::new(ArcSwap::from_pointee(Keyring::new(Some(SigningKey::generate().expect("key")), [])));
    Pair {
        signer: Signer::new(ring.clone()),
        verifier: Verifier::new(ring.clone(), AUDIENCE_API),
        ring,
        id: TenantId::generate(),
    }
}

impl Pair {
    fn token(&self) -> String {
        let slug = TenantSlug::parse("paris").expect("slug");
        let host = Hostname::parse("paris.gmah.com").expect("host");
        self.signer.sign(AUDIENCE_API, self.id, &slug, &host, Generation(7), NOW).expect("signed")
    }

    fn claims(&self) -> Value {
        json!({"iss": ISSUER, "aud": AUDIENCE_API, "sub": self.id, "slug": "paris", "host": "paris.gmah.com",
               "gen": 7, "iat": NOW, "exp": NOW + 60})
    }

    fn check(&self, claims: &Value) -> Result<VerifiedToken, TokenError> {
        self.verifier.verify(&self.signer.sign_claims(claims).expect("signed"), NOW)
    }

    /// A token with that header and payload text under a true signature.
    fn raw(&self, header: &str, payload: &str) -> String {
        let message = format!("{}.{}", B64.encode(header), B64.encode(payload));
        let ring = self.ring.load();
        let key = ring.signing().expect("key");
        let pair = ring::signature::Ed25519KeyPair::from_pkcs8_maybe_unchecked(key.pkcs8()).expect("pair");
        format!("{message}.{}", B64.encode(pair.sign(message.as_bytes())))
    }

    fn kid(&self) -> String {
        self.ring.load().signing().expect("key").kid().to_owned()
    }
}

#[test]
fn a_token_says_what_it_was_given() {
    let p = pair();
    let v = p.verifier.verify(&p.token(), NOW).expect("verifies");
    assert_eq!((v.tenant, v.slug.as_str(), v.host.as_str()), (p.id, "paris", "paris.gmah.com"));
    assert_eq!((v.generation, v.expires), (Generation(7), NOW + 60));
}

/// The vector that a backend in another language can test itself with.
#[test]
fn test_vector() {
    // PKCS#8 of the private key of RFC 8037, appendix A.1.
    let mut der =
        vec![0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
    der.extend(B64.decode("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A").expect("d"));
    let key = SigningKey::from_pkcs8(&der).expect("key");
    assert_eq!(key.kid(), "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
    let jwks = Keyring::new(Some(key), []).jwks();
    assert_eq!(jwks["keys"][0]["x"], "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo");
    assert!(jwks["keys"][0].get("d").is_none());
}

#[test]
fn k01_k03_other_algorithms() {
    let p = pair();
    let payload = p.claims().to_string();
    let signature = p.token().rsplit('.').next().expect("sig").to_owned();
    for alg in
        ["none", "None", "nOnE", "NONE", "HS256", "HS512", "ES256", "RS256", "PS256", "Ed25519", "eddsa", ""]
    {
        let header = json!({"alg": alg, "typ": "JWT", "kid": p.kid()}).to_string();
        let head = format!("{}.{}", B64.encode(&header), B64.encode(&payload));
        for sig in ["", signature.as_str(), "AAAA"] {
            assert!(p.verifier.verify(&format!("{head}.{sig}"), NOW).is_err(), "{alg}");
        }
        assert!(p.verifier.verify(&p.raw(&header, &payload), NOW).is_err(), "{alg} with a true signature");
    }
    let header = json!({"typ": "JWT", "kid": p.kid()}).to_string();
    assert!(p.verifier.verify(&p.raw(&header, &payload), NOW).is_err());
}

#[test]
fn k04_key_ids() {
    let p = pair();
    let payload = p.claims().to_string();
    let long = "k".repeat(1 << 20);
    for kid in ["unknown", "../../etc/passwd", "' OR 1=1--", "https://evil.test/jwks", "", "\0", &long] {
        let header = json!({"alg": "EdDSA", "typ": "JWT", "kid": kid}).to_string();
        assert!(p.verifier.verify(&p.raw(&header, &payload), NOW).is_err());
    }
    let stranger = pair();
    assert_eq!(p.verifier.verify(&stranger.token(), NOW).expect_err("other key"), TokenError::UnknownKey);
    for extra in ["jwk", "jku", "x5u", "crit", "b64"] {
        let header = json!({"alg": "EdDSA", "typ": "JWT", "kid": p.kid(), extra: ["x"]}).to_string();
        assert_eq!(
            p.verifier.verify(&p.raw(&header, &payload), NOW).expect_err(extra),
            TokenError::Malformed
        );
    }
}

#[test]
fn k06_k07_claims_of_another_type_missing_or_out_of_time() {
    let p = pair();
    assert!(p.check(&p.claims()).is_ok());
    for claim in ["iss", "aud", "sub", "slug", "host", "gen", "iat", "exp"] {
        let mut c = p.claims();
        c.as_object_mut().expect("object").remove(claim);
        assert_eq!(p.check(&c).expect_err(claim), TokenError::Claims);
        for odd in [json!(null), json!([]), json!({}), json!(true), json!(1.5), json!(-1.0e30)] {
            let mut c = p.claims();
            c[claim] = odd.clone();
            assert!(p.check(&c).is_err(), "{claim} {odd}");
        }
    }
    for (claim, value) in [
        ("exp", json!("9999999999")),
        ("exp", json!(1e99)),
        ("exp", json!(-1)),
        ("exp", json!(NOW - 5)),
        ("exp", json!(NOW + 61)),
        ("exp", json!(u64::MAX)),
        ("exp", json!(NOW)),
        ("iat", json!(NOW + 6)),
        ("iat", json!("1")),
        ("iat", json!(0)),
        ("aud", json!("gmah-platform")),
        ("aud", json!(["gmah-api"])),
        ("iss", json!("evil")),
        ("sub", json!("PARIS")),
        ("slug", json!("admin")),
        ("host", json!("PARIS.gmah.com")),
        ("host", json!("127.0.0.1")),
        ("gen", json!("7")),
    ] {
        let mut c = p.claims();
        c[claim] = value.clone();
        assert!(p.check(&c).is_err(), "{claim} {value}");
    }
    let t = p.token();
    assert!(p.verifier.verify(&t, NOW + 64).is_ok(), "within the leeway");
    assert_eq!(p.verifier.verify(&t, NOW + 65).expect_err("expired"), TokenError::Time);
    assert!(p.verifier.verify(&t, NOW - 5).is_ok());
    assert_eq!(p.verifier.verify(&t, NOW - 6).expect_err("future"), TokenError::Time);
}

#[test]
fn k16_duplicate_keys_depth_and_size() {
    let p = pair();
    let header = json!({"alg": "EdDSA", "typ": "JWT", "kid": p.kid()}).to_string();
    let good = p.claims().to_string();
    assert!(p.verifier.verify(&p.raw(&header, &good), NOW).is_ok());
    let other = TenantId::generate();
    let twice = good.replacen('{', &format!("{{\"sub\":\"{other}\","), 1);
    let escaped = good.replacen('{', &format!("{{\"s\\u0075b\":\"{other}\","), 1);
    let deep = good.replacen('{', &format!("{{\"x\":{}{},", "[".repeat(5000), "]".repeat(5000)), 1);
    for payload in [&twice, &escaped, &deep] {
        assert!(p.verifier.verify(&p.raw(&header, payload), NOW).is_err(), "{payload}");
    }
    for n in [MAX_TOKEN_BYTES, 10 << 20] {
        let huge = good.replacen('{', &format!("{{\"x\":\"{}\",", "a".repeat(n)), 1);
        assert_eq!(p.verifier.verify(&p.raw(&header, &huge), NOW).expect_err("huge"), TokenError::TooLong);
    }
    let header_twice = header.replacen('{', "{\"alg\":\"none\",", 1);
    assert!(p.verifier.verify(&p.raw(&header_twice, &good), NOW).is_err());
    for junk in ["", ".", "..", "...", "a.b.c", "a.b.c.d", "\u{e9}.\u{e9}.\u{e9}", " "] {
        assert!(p.verifier.verify(junk, NOW).is_err());
    }
}

#[test]
fn k18_rotation_overlaps() {
    let p = pair();
    let old = p.token();
    let old_key = p.ring.load().signing().expect("key").clone();
    let new_key = SigningKey::generate().expect("key");
    p.ring.store(Arc::new(Keyring::new(Some(new_key.clone()), [old_key.verifying()])));
    assert!(p.verifier.verify(&old, NOW).is_ok());
    assert!(p.verifier.verify(&p.token(), NOW).is_ok());
    p.ring.store(Arc::new(Keyring::new(Some(new_key), [])));
    assert_eq!(p.verifier.verify(&old, NOW).expect_err("removed"), TokenError::UnknownKey);
    p.ring.store(Arc::new(Keyring::default()));
    assert!(matches!(p.signer.sign_claims(&p.claims()), Err(SignError::NoKey)));
}

#[test]
fn k19_debug_shows_no_key() {
    let key = SigningKey::generate().expect("key");
    let shown = format!("{key:?} {:?}", Keyring::new(Some(key.clone()), []));
    assert!(!shown.contains(&B64.encode(key.pkcs8())) && !shown.contains("pkcs8"));
    assert!(shown.contains(key.kid()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// K-15: one flipped bit anywhere is refused.
    #[test]
    fn k15_bit_flips(byte in 0usize..4096, bit in 0u8..8) {
        let p = pair();
        let mut token = p.token().into_bytes();
        let at = byte % token.len();
        token[at] ^= 1 << bit;
        if let Ok(text) = String::from_utf8(token) {
            prop_assert!(p.verifier.verify(&text, NOW).is_err());
        }
    }

    #[test]
    fn k16_any_text(text in "\\PC{0,200}") {
        prop_assert!(pair().verifier.verify(&text, NOW).is_err());
    }
}
