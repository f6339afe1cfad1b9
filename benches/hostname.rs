//! What does the normaliser cost?

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use gmah_shared::hostname::Hostname;

fn parse(c: &mut Criterion) {
    for (name, raw) in [
        ("plain", "paris.gmah.com"),
        ("port and case", "Paris.GMAH.com:8443"),
        ("A-label", "xn--bcher-kva.example"),
        ("unicode", "b\u{fc}cher.example"),
        ("refused", "paris.gmah.com@lyon.gmah.com"),
    ] {
        c.bench_function(&format!("hostname, {name}"), |b| {
            b.iter(|| black_box(Hostname::parse_authority(black_box(raw)).is_ok()));
        });
    }
}

criterion_group!(benches, parse);
criterion_main!(benches);
