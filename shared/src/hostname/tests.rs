use super::*;
use proptest::prelude::*;

fn ok(raw: &str) -> String {
    Hostname::parse_authority(raw).unwrap_or_else(|e| panic!("{raw:?}: {e}")).as_str().to_owned()
}

fn err(raw: &str) -> HostnameError {
    Hostname::parse_authority(raw).expect_err(raw)
}

#[test]
fn h01_h04_case_port_and_one_dot_are_folded() {
    for raw in [
        "ACME.Gmah.COM",
        "acme.gmah.com.",
        "acme.gmah.com:443",
        "acme.gmah.com:8443",
        "acme.gmah.com:",
        "acme.gmah.com.:8443",
    ] {
        assert_eq!(ok(raw), "acme.gmah.com", "{raw}");
    }
}

#[test]
fn h03_dots_in_the_wrong_place() {
    for raw in ["acme.gmah.com..", ".", "..", ".acme.gmah.com", "acme..gmah.com", ":80", ""] {
        err(raw);
    }
}

#[test]
fn h06_h16_h36_user_information_and_separators() {
    for raw in [
        "acme.gmah.com@globex.gmah.com",
        "user:pw@acme.gmah.com",
        "acme.gmah.com,globex.gmah.com",
        "acme.gmah.com/",
        "acme.gmah.com\\x",
        "acme.gmah.com#",
        "acme.gmah.com?x",
        "acme.gmah.com%2e",
        "http://acme.gmah.com",
        "acme.gmah.com\r\nX: y",
    ] {
        err(raw);
    }
}

#[test]
fn h21_a_labels_that_decode_to_ascii_are_refused() {
    for raw in ["xn--acme-.gmah.com", "XN--ACME-.gmah.com", "xn--.gmah.com", "xn--a.gmah.com"] {
        err(raw);
    }
}

#[test]
fn h22_unicode_look_alikes_fold_or_are_refused() {
    assert_eq!(ok("\u{ff41}cme.gmah.com"), "acme.gmah.com");
    assert_eq!(ok("b\u{fc}cher.example"), "xn--bcher-kva.example");
    assert_eq!(ok("XN--BCHER-KVA.example"), "xn--bcher-kva.example");
    assert_eq!(ok("fa\u{df}.example"), "xn--fa-hia.example");
    assert_eq!(ok("acme\u{3002}gmah.com"), "acme.gmah.com");
    for raw in ["acme .gmah.com", "acme\u{a0}.gmah.com", "acme_x.gmah.com", " acme.gmah.com"] {
        err(raw);
    }
}

#[test]
fn h24_lengths() {
    let label = |n: usize| "a".repeat(n);
    assert!(Hostname::parse(&format!("{}.gmah.com", label(63))).is_ok());
    assert_eq!(err(&format!("{}.gmah.com", label(64))), HostnameError::TooLong);
    let name253 = format!("{0}.{0}.{0}.{1}", label(63), label(61));
    assert_eq!(name253.len(), 253);
    assert!(Hostname::parse(&name253).is_ok());
    assert!(Hostname::parse(&format!("{name253}.")).is_ok());
    assert_eq!(err(&format!("{}a", name253)), HostnameError::TooLong);
    for n in [4096, 65536] {
        assert_eq!(err(&label(n)), HostnameError::TooLong);
    }
}

#[test]
fn h25_ip_literals_in_every_spelling() {
    for raw in [
        "127.0.0.1",
        "127.0.0.1:443",
        "[::1]",
        "[::ffff:127.0.0.1]:443",
        "2130706433",
        "0x7f.1",
        "0177.0.0.1",
        "127.1",
        "acme.1",
        "acme.0x1f",
        "acme.0x",
        "::1",
    ] {
        err(raw);
    }
}

#[test]
fn h30_every_byte_in_every_place() {
    for byte in (0u8..=0x20).chain(0x7f..=0xff) {
        for template in ["%acme.gmah.com", "ac%me.gmah.com", "acme.gmah.com%"] {
            let mut raw = template.as_bytes().to_vec();
            let at = raw.iter().position(|b| *b == b'%').expect("a place");
            raw[at] = byte;
            if let Ok(text) = std::str::from_utf8(&raw) {
                assert!(Hostname::parse_authority(text).is_err(), "{text:?}");
            }
        }
    }
}

#[test]
fn ports() {
    for raw in ["a.b:65536", "a.b:-1", "a.b:+80", "a.b:8 0", "a.b:80:80", "a.b:000080", "a.b:x"] {
        assert_eq!(err(raw), HostnameError::BadPort, "{raw}");
    }
    assert_eq!(ok("a.b:0"), "a.b");
}

#[test]
fn label_and_cover() {
    let base = Hostname::parse("gmah.com").expect("base");
    let h = |s: &str| Hostname::parse(s).expect(s);
    assert_eq!(h("paris.gmah.com").label_under(&base), Some("paris"));
    for other in ["gmah.com", "a.paris.gmah.com", "xgmah.com", "paris.gmah.com.evil.test"] {
        assert_eq!(h(other).label_under(&base), None, "{other}");
    }
    assert!(h("paris.gmah.com").is_covered_by("*.gmah.com"));
    assert!(!h("a.paris.gmah.com").is_covered_by("*.gmah.com"));
    assert!(!h("gmah.com").is_covered_by("*.gmah.com"));
    assert!(h("gmah.com").is_covered_by("GMAH.com"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    /// H-24, H-40: what is plain is what a close look says of it.
    #[test]
    fn h40_the_short_way_is_the_long_one(raw in "([a-zA-Z0-9-]{0,66}\\.|[xX][nN]--[a-z]{0,3}\\.|[aA0.-]{1,3}){0,5}[a-zA-Z0-9.-]{0,66}") {
        if let Some(plain) = plain(&raw) {
            prop_assert_eq!(Hostname::closely(&raw), Ok(Hostname(plain)));
        }
    }

    /// H-22, H-40: parsing is idempotent, whatever comes in.
    #[test]
    fn h40_parse_is_idempotent(raw in "\\PC{0,80}") {
        if let Ok(once) = Hostname::parse_authority(&raw) {
            prop_assert_eq!(Hostname::parse(once.as_str()), Ok(once.clone()));
            prop_assert_eq!(Hostname::parse_authority(once.as_str()), Ok(once));
        }
    }

    #[test]
    fn h40_canonical_form_is_ldh(raw in "[a-zA-Z0-9\\-\\.\u{e0}-\u{ff}\u{ff21}-\u{ff5a}:]{1,70}") {
        if let Ok(h) = Hostname::parse_authority(&raw) {
            prop_assert!(h.as_str().len() <= MAX_NAME_BYTES);
            prop_assert!(h.as_str().bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.')));
            prop_assert!(!h.as_str().ends_with('.') && !h.as_str().starts_with('.'));
        }
    }

    /// Letter case never separates two names.
    #[test]
    fn h01_case_never_matters(raw in "[a-z0-9.-]{1,60}") {
        prop_assert_eq!(Hostname::parse(&raw), Hostname::parse(&raw.to_ascii_uppercase()));
    }
}
