//! The PROXY protocol, versions 1 and 2: a proxy in front says whose connection it hands on.
//!
//! Only from the networks of `router.proxies.proxy_protocol_from`, and from those always: a client could otherwise
//! claim any address, and a proxy that forgets its header would make all its clients one.

use std::io;
use std::net::SocketAddr;

use ppp::{HeaderResult, v1, v2};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

/// Why there is no header.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProxyProtocolError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("closed before its end")]
    Closed,
    #[error("longer than {MAX} bytes")]
    TooLong,
    #[error("not a PROXY header")]
    Malformed,
}

/// A header is at most this long: the addresses, and what else version 2 may carry.
const MAX: usize = 4096;

/// Reads the header off a fresh connection. `read` is left with what came after it. Nothing where the proxy speaks for
/// itself (`LOCAL`, `UNKNOWN`).
pub(super) async fn read(
    stream: &mut TcpStream,
    read: &mut Vec<u8>,
) -> Result<Option<SocketAddr>, ProxyProtocolError> {
    loop {
        if stream.read_buf(read).await? == 0 {
            return Err(ProxyProtocolError::Closed);
        }
        if let Some((client, length)) = parse(read)? {
            read.drain(..length);
            return Ok(client);
        }
        if read.len() > MAX {
            return Err(ProxyProtocolError::TooLong);
        }
    }
}

/// The client and the header's length, once it is complete.
fn parse(bytes: &[u8]) -> Result<Option<(Option<SocketAddr>, usize)>, ProxyProtocolError> {
    if !is_whole(bytes)? {
        return Ok(None);
    }
    match HeaderResult::parse(bytes) {
        HeaderResult::V1(Ok(header)) => {
            let client = match header.addresses {
                v1::Addresses::Tcp4(a) => Some((a.source_address, a.source_port).into()),
                v1::Addresses::Tcp6(a) => Some((a.source_address, a.source_port).into()),
                v1::Addresses::Unknown => None,
            };
            Ok(Some((client, header.header.len())))
        }
        HeaderResult::V2(Ok(header)) => {
            let client = match (header.command, header.addresses) {
                (v2::Command::Local, _) => None,
                (v2::Command::Proxy, v2::Addresses::IPv4(a)) => {
                    Some((a.source_address, a.source_port).into())
                }
                (v2::Command::Proxy, v2::Addresses::IPv6(a)) => {
                    Some((a.source_address, a.source_port).into())
                }
                (v2::Command::Proxy, v2::Addresses::Unix(_) | v2::Addresses::Unspecified) => None,
            };
            Ok(Some((client, header.header.len())))
        }
        HeaderResult::V1(Err(_)) | HeaderResult::V2(Err(_)) => Err(ProxyProtocolError::Malformed),
    }
}

/// Whether a header has arrived to its end, which the parser cannot always tell.
fn is_whole(bytes: &[u8]) -> Result<bool, ProxyProtocolError> {
    let begins = |with: &[u8]| bytes.iter().zip(with).all(|(a, b)| a == b);
    if begins(v2::PROTOCOL_PREFIX) {
        let length = bytes.get(14..16).and_then(|b| b.try_into().ok()).map(u16::from_be_bytes);
        return Ok(length.is_some_and(|n| bytes.len() >= V2_HEAD + usize::from(n)));
    }
    if begins(b"PROXY ") {
        let line = &bytes[..bytes.len().min(V1_MAX)];
        let ended = line.windows(2).any(|w| w == b"\r\n");
        return if ended || bytes.len() < V1_MAX { Ok(ended) } else { Err(ProxyProtocolError::TooLong) };
    }
    Err(ProxyProtocolError::Malformed)
}

/// The longest line of version 1.
const V1_MAX: usize = 107;
/// Version 2 up to and with the length of the rest.
const V2_HEAD: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    /// Version 2, TCP over IPv4, 192.0.2.7:1234 to 198.51.100.1:443.
    pub(crate) const V2: [u8; 28] = [
        0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a, 0x21, 0x11, 0, 12, 192, 0, 2,
        7, 198, 51, 100, 1, 0x04, 0xd2, 0x01, 0xbb,
    ];

    fn client(bytes: &[u8]) -> Option<SocketAddr> {
        parse(bytes).expect("readable").expect("complete").0
    }

    #[test]
    fn both_versions_and_those_that_speak_for_themselves() {
        let v1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 1234 443\r\nGET /";
        assert_eq!(client(v1), Some("192.0.2.7:1234".parse().expect("address")));
        assert_eq!(parse(v1).expect("ok").expect("whole").1, v1.len() - 5);
        let six = b"PROXY TCP6 2001:db8::7 2001:db8::1 1234 443\r\n";
        assert_eq!(client(six), Some("[2001:db8::7]:1234".parse().expect("address")));
        assert_eq!(client(b"PROXY UNKNOWN\r\n"), None);
        assert_eq!(client(&V2), Some("192.0.2.7:1234".parse().expect("address")));
        let mut local = V2;
        local[12] = 0x20;
        assert_eq!(client(&local), None);
    }

    #[test]
    fn every_beginning_is_incomplete_and_junk_is_refused() {
        let v1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 1234 443\r\n";
        for whole in [&v1[..], &V2[..]] {
            for n in 1..whole.len() {
                assert!(matches!(parse(&whole[..n]), Ok(None)), "{n} bytes of {whole:?}");
            }
        }
        for junk in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"PROXY TCP4 192.0.2.7\r\n",
            b"PROXY TCP4 192.0.2.777 198.51.100.1 1234 443\r\n",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 99999 443\r\n",
            b"PROXY TCP4 2001:db8::1 198.51.100.1 1 443\r\n",
            b"\x16\x03\x01\x02\x00",
            b"\r\n\r\n\x00\r\nQUIT\n\x31\x11\x00\x00",
            &[b"PROXY ", &[b'x'; 120][..]].concat(),
        ] {
            assert!(parse(junk).is_err(), "{junk:?}");
        }
    }
}
