use super::*;

fn head(text: &str) -> Result<Option<String>, Rejection> {
    raw(text.as_bytes())
}

fn raw(bytes: &[u8]) -> Result<Option<String>, Rejection> {
    match find_end(bytes, 0)? {
        Progress::Partial(_) => panic!("incomplete: {:?}", String::from_utf8_lossy(bytes)),
        Progress::Complete(end) => {
            check(&bytes[..end]).map(|o| o.map(|b| String::from_utf8(b).expect("ASCII")))
        }
    }
}

fn with(fields: &str) -> Result<Option<String>, Rejection> {
    head(&format!("POST /x HTTP/1.1\r\nHost: acme.gmah.com\r\n{fields}\r\n"))
}

#[test]
fn ordinary_heads_pass_unchanged() {
    for text in [
        "GET / HTTP/1.1\r\nHost: acme.gmah.com\r\n\r\n",
        "GET /a?b=c&d=%20 HTTP/1.1\r\nhost:acme.gmah.com:8443\r\nAccept: */*\r\nX: \tv w\t \r\n\r\n",
        "POST /a HTTP/1.1\r\nHost: a.b\r\nContent-Length: 0\r\n\r\n",
        "POST /a HTTP/1.1\r\nHost: a.b\r\nTransfer-Encoding: Chunked\r\n\r\n",
        "GET / HTTP/1.0\r\nHost: a.b\r\nConnection: keep-alive\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.b\r\nConnection: Upgrade, X-Tenant-Token\r\nUpgrade: websocket\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.b\r\nX-Name: caf\u{e9}\r\n\r\n",
    ] {
        assert_eq!(head(text), Ok(None), "{text}");
    }
}

#[test]
fn h07_h09_h10_hosts() {
    for text in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost:\r\n\r\n",
        "GET / HTTP/1.1\r\nHost:   \r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.b\r\nHost: a.b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.b@c.d\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a.b\r\nHOST: c.d\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
    ] {
        assert_eq!(head(text), Err(Rejection::BadHost), "{text}");
    }
}

#[test]
fn h12_h16_h18_h19_request_lines() {
    for line in [
        "GET / ",
        "GET /",
        "GET",
        "",
        " GET / HTTP/1.1",
        "GET  / HTTP/1.1",
        "GET /  HTTP/1.1",
        "GET / HTTP/1.1 ",
        "GET / HTTP/2.0",
        "GET / HTTP/1.2",
        "GET / http/1.1",
        "GET / HTTP/1.10",
        "GET / XTTP/1.1",
        "GET\t/\tHTTP/1.1",
        "GET x HTTP/1.1",
        "GET * HTTP/1.1",
        "OPTIONS * HTTP/1.1",
        "OPTIONS */x HTTP/1.1",
        "GET https:acme.gmah.com/ HTTP/1.1",
        "GET http:\\\\globex.gmah.com/ HTTP/1.1",
        "GET http:///x HTTP/1.1",
        "GET globex.gmah.com:80 HTTP/1.1",
        "GET ftp://a.b/ HTTP/1.1",
        "GET /a#b HTTP/1.1",
        "GET /a\\b HTTP/1.1",
        "GET /\u{e9} HTTP/1.1",
        "G\"T / HTTP/1.1",
        "PRI * HTTP/2.0",
    ] {
        let seen = head(&format!("{line}\r\nHost: a.b\r\n\r\n"));
        assert_eq!(seen, Err(Rejection::Malformed), "{line}");
    }
    for method in ["CONNECT a.b:443", "CONNECT 127.0.0.1:5432", "TRACE /"] {
        assert_eq!(head(&format!("{method} HTTP/1.1\r\nHost: a.b\r\n\r\n")), Err(Rejection::Method));
    }
}

#[test]
fn h13_h15_absolute_form() {
    assert_eq!(
        head("GET http://acme.gmah.com/who?a=1 HTTP/1.1\r\nHost: ACME.gmah.com\r\nA: b\r\n\r\n"),
        Ok(Some("GET /who?a=1 HTTP/1.1\r\nHost: ACME.gmah.com\r\nA: b\r\n\r\n".into()))
    );
    assert_eq!(
        head("GET HTTPS://acme.gmah.com?a HTTP/1.0\r\nHost: acme.gmah.com\r\n\r\n"),
        Ok(Some("GET /?a HTTP/1.0\r\nHost: acme.gmah.com\r\n\r\n".into()))
    );
    for text in [
        "GET http://globex.gmah.com/who HTTP/1.1\r\nHost: acme.gmah.com\r\n\r\n",
        "GET http://acme.gmah.com/who HTTP/1.1\r\n\r\n",
        "GET http://acme.gmah.com@globex.gmah.com/ HTTP/1.1\r\nHost: acme.gmah.com\r\n\r\n",
        "GET http://acme.gmah.com:81/ HTTP/1.1\r\nHost: acme.gmah.com\r\n\r\n",
    ] {
        assert_eq!(head(text), Err(Rejection::BadHost), "{text}");
    }
}

#[test]
fn h30_h31_h33_bytes_and_folds() {
    for text in [
        "GET / HTTP/1.1\r\nHost : a.b\r\n\r\n",
        "GET / HTTP/1.1\r\n Host: a.b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost\t: a.b\r\n\r\n",
        "GET / HTTP/1.1\r\nH\0ost: a.b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: acme.\r\n gmah.com\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.b\r\nX: y\r\n Host: c.d\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.b\r\nX\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.b\r\n: x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.b\r\nX(y): z\r\n\r\n",
    ] {
        assert_eq!(head(text), Err(Rejection::Malformed), "{text:?}");
    }
    for byte in (0u8..0x20).chain([0x7f]).filter(|b| !matches!(b, b'\t' | b'\n' | b'\r')) {
        for at in ["%acme.gmah.com", "ac%me.gmah.com", "acme.gmah.com%"] {
            let mut bytes = format!("GET / HTTP/1.1\r\nHost: {at}\r\n\r\n").into_bytes();
            let n = bytes.iter().position(|b| *b == b'%').expect("a place");
            bytes[n] = byte;
            assert!(raw(&bytes).is_err(), "{byte:#x} {at}");
        }
    }
}

#[test]
fn m10_line_ends() {
    for text in [
        "GET / HTTP/1.1\nHost: a.b\n\n",
        "GET / HTTP/1.1\r\nHost: a.b\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.b\r\n\n",
        "\r\nGET / HTTP/1.1\r\nHost: a.b\r\n\r\n",
        "\nGET / HTTP/1.1\r\nHost: a.b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.b\rX: y\r\n\r\n",
        "GET / HTTP/1.1\r\r\nHost: a.b\r\n\r\n",
    ] {
        assert_eq!(head(text), Err(Rejection::Malformed), "{text:?}");
    }
}

#[test]
fn m01_m03_m04_transfer_encoding() {
    for value in [
        "identity",
        "x",
        "chunked, chunked",
        "gzip, chunked",
        "chunked, gzip",
        ", chunked",
        "",
        "xchunked",
        "\"chunked\"",
        "chunked;q=1",
        "\x0bchunked",
        "chun\0ked",
        "chunked,",
        "chunked chunked",
    ] {
        assert_eq!(with(&format!("Transfer-Encoding: {value}\r\n")), Err(Rejection::Malformed), "{value:?}");
    }
    for fields in [
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 6\r\n",
        "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n",
        "Transfer_Encoding: chunked\r\n",
        "Transfer.Encoding: chunked\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Transfer-Encoding:\r\n chunked\r\n",
    ] {
        assert_eq!(with(fields), Err(Rejection::Malformed), "{fields:?}");
    }
    assert_eq!(
        head("POST / HTTP/1.0\r\nHost: a.b\r\nTransfer-Encoding: chunked\r\n\r\n"),
        Err(Rejection::Malformed)
    );
}

#[test]
fn m06_content_length() {
    for value in [
        "5, 6",
        "5, 5",
        "+5",
        "-0",
        "-1",
        "0x5",
        "5 5",
        "05",
        "\u{665}",
        "",
        "18446744073709551616",
        "5;",
        "5.0",
        "1e3",
        "\"5\"",
    ] {
        assert_eq!(with(&format!("Content-Length: {value}\r\n")), Err(Rejection::Malformed), "{value:?}");
    }
    assert_eq!(with("Content-Length: 5\r\nContent-Length: 5\r\n"), Err(Rejection::Malformed));
    assert_eq!(with("Content-Length: 5\r\ncontent_length: 6\r\n"), Err(Rejection::Malformed));
    assert_eq!(with("Content-Length: 12\r\n"), Ok(None));
}

/// Every byte before, inside and after the name and the value of `Transfer-Encoding`.
#[test]
fn m04_mutations_never_pass_as_another_framing() {
    let mut tried = 0;
    for byte in (0x01u8..=0x1f).chain(0x7f..=0xff) {
        for place in [
            "%Transfer-Encoding: chunked",
            "Transfer%-Encoding: chunked",
            "Transfer-Encoding%: chunked",
            "Transfer-Encoding:%chunked",
            "Transfer-Encoding: chu%nked",
            "Transfer-Encoding: chunked%",
        ] {
            let text = format!("POST / HTTP/1.1\r\nHost: a.b\r\n{place}\r\n\r\n");
            let mut bytes = text.into_bytes();
            let n = bytes.iter().position(|b| *b == b'%').expect("a place");
            bytes[n] = byte;
            tried += 1;
            // Tab and space around the value are its white space; anything else is refused.
            let blank = byte == b'\t' && (place.contains(":%") || place.ends_with('%'));
            assert_eq!(raw(&bytes).is_ok(), blank, "{byte:#x} in {place}");
        }
    }
    assert!(tried > 900);
}

#[test]
fn s07_s09_s10_connection_nominations() {
    for value in [
        "Idempotency-Key",
        "close, if-match",
        "Authorization",
        "cookie",
        "Content-Length",
        "Host",
        "X-Forwarded-For",
        "X-Request-Id",
        "\"X-Tenant-Token\"",
        "x tenant",
        "close;x",
    ] {
        assert_eq!(with(&format!("Connection: {value}\r\n")), Err(Rejection::Malformed), "{value}");
    }
    for value in
        ["close", "keep-alive", "Upgrade", "close, X-Tenant-Token", "x-tenant-token\t", "", ", close"]
    {
        assert_eq!(with(&format!("Connection: {value}\r\n")), Ok(None), "{value}");
    }
}

#[test]
fn r03_bounds() {
    let long = "a".repeat(MAX_TARGET + 1);
    assert_eq!(head(&format!("GET /{long} HTTP/1.1\r\nHost: a.b\r\n\r\n")), Err(Rejection::TargetTooLong));
    assert_eq!(find_end("G".repeat(MAX_TARGET + 65).as_bytes(), 0), Err(Rejection::TargetTooLong));
    let exact = "a".repeat(MAX_TARGET - 1);
    assert_eq!(head(&format!("GET /{exact} HTTP/1.1\r\nHost: a.b\r\n\r\n")), Ok(None));
    let fields = |n: usize| (0..n).map(|i| format!("X-{i}: y\r\n")).collect::<String>();
    assert_eq!(with(&fields(MAX_FIELDS - 1)), Ok(None));
    assert_eq!(with(&fields(MAX_FIELDS)), Err(Rejection::HeadTooLarge));
    let big = format!("X: {}\r\n", "y".repeat(MAX_HEAD));
    assert_eq!(with(&big), Err(Rejection::HeadTooLarge));
    let endless = format!("GET / HTTP/1.1\r\nX: {}", "y".repeat(MAX_HEAD));
    assert_eq!(find_end(endless.as_bytes(), 0), Err(Rejection::HeadTooLarge));
}

/// However the bytes are cut into reads, the verdict is the same.
#[test]
fn t04_pieces_make_no_difference() {
    let text = b"GET /a HTTP/1.1\r\nHost: a.b\r\nX: y\r\n\r\nleftover";
    let whole = find_end(text, 0);
    assert_eq!(whole, Ok(Progress::Complete(text.len() - 8)));
    let mut scanned = 0;
    for n in 1..=text.len() {
        match find_end(&text[..n], scanned).expect("sound") {
            Progress::Partial(s) => scanned = s,
            done @ Progress::Complete(_) => {
                assert_eq!(Ok(done), whole);
                return;
            }
        }
    }
    panic!("never complete");
}
