//! What do signing and verifying a token cost? Both happen once per organisation, host and half minute, not per
//! request.

use std::hint::black_box;
use std::sync::Arc;

use arc_swap::ArcSwap;
use criterion::{Criterion, criterion_group, criterion_main};
use gmah_shared::hostname::Hostname;
use gmah_shared::tenant::{Generation, TenantId, TenantSlug};
use gmah_shared::token::{AUDIENCE_API, Keyring, Signer, SigningKey, Verifier, now_seconds};

fn token(c: &mut Criterion) {
    let ring = Keyring::new(Some(SigningKey::generate().expect("key")), []);
    let ring = Arc::new(ArcSwap::from_pointee(ring));
    let (signer, verifier) = (Signer::new(ring.clone()), Verifier::new(ring, AUDIENCE_API));
    let id = TenantId::generate();
    let slug = TenantSlug::parse("paris").expect("slug");
    let host = Hostname::parse("paris.gmah.com").expect("host");
    let now = now_seconds();
    let sign = || signer.sign(AUDIENCE_API, id, &slug, &host, Generation(1), now).expect("signed");
    c.bench_function("token, sign", |b| b.iter(|| black_box(sign())));
    let text = sign();
    c.bench_function("token, verify", |b| b.iter(|| black_box(verifier.verify(&text, now).is_ok())));
}

criterion_group!(benches, token);
criterion_main!(benches);
