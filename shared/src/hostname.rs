//! Host names in one canonical form: the only normaliser in the repository.
//!
//! Every name that enters the system (request authority, SNI, certificate, registration, command line) becomes a
//! [`Hostname`] here or is refused. Two names that a browser, a certificate authority or a person would hold for the
//! same compare equal afterwards, byte for byte, and nothing further in normalises again.
//!
//! Refused rather than repaired: IP literals, underscores, white space, control bytes, empty labels, more than one
//! trailing dot, percent signs, user information.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

/// Longest name in bytes, without the trailing dot (RFC 1035, section 2.3.4).
pub const MAX_NAME_BYTES: usize = 253;
/// Longest label in bytes (RFC 1035, section 2.3.4).
pub const MAX_LABEL_BYTES: usize = 63;

/// A DNS name: ASCII lower case A-labels, letters, digits and hyphens only, no port, no trailing dot, at most
/// 253 bytes, never an IP address.
///
/// `Hostname::parse(h.as_str()) == Ok(h)` for every `h`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hostname(Box<str>);

/// Why a text is not a host name. The text itself is not repeated: it came from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HostnameError {
    /// Nothing before the port, or nothing at all.
    #[error("host name is empty")]
    Empty,
    /// Over 253 bytes in all, or a label over 63.
    #[error("host name is longer than 253 bytes or a label longer than 63")]
    TooLong,
    /// A label is empty, or begins or ends with a hyphen.
    #[error("host name has an empty label or one that begins or ends with a hyphen")]
    BadLabel,
    /// A byte that is no letter, digit, hyphen or dot, and no valid IDNA input either.
    #[error("host name has a character that no DNS name has")]
    BadCharacter,
    /// IPv4 in any of its spellings, or a bracketed IPv6 address.
    #[error("an IP address is not a host name")]
    IpLiteral,
    /// What follows the colon is not a port.
    #[error("port is not a number from 0 to 65535")]
    BadPort,
}

impl Hostname {
    /// Parses a bare name (no port).
    ///
    /// # Errors
    /// [`HostnameError`] by the rules of the module.
    pub fn parse(raw: &str) -> Result<Self, HostnameError> {
        // One byte of slack for the trailing dot; IDNA input may be longer in UTF-8 than its A-label form, so the
        // bound for it is generous, and the result is held to 253 all the same.
        if raw.len() > 4 * MAX_NAME_BYTES {
            return Err(HostnameError::TooLong);
        }
        let name = raw.strip_suffix('.').unwrap_or(raw);
        match plain(name) {
            Some(canonical) => Ok(Self(canonical)),
            None => Self::closely(name),
        }
    }

    /// The same of any name.
    fn closely(name: &str) -> Result<Self, HostnameError> {
        if name.is_empty() {
            return Err(HostnameError::Empty);
        }
        let canonical: Box<str> = if name.is_ascii() {
            if name.len() > MAX_NAME_BYTES {
                return Err(HostnameError::TooLong);
            }
            let lower = name.to_ascii_lowercase();
            if labels(&lower).any(|label| label.starts_with(b"xn--")) {
                idna_ascii(&lower)?
            } else {
                lower.into_boxed_str()
            }
        } else {
            idna_ascii(name)?
        };
        check_ldh(&canonical)?;
        if is_ip_like(&canonical) {
            return Err(HostnameError::IpLiteral);
        }
        Ok(Self(canonical))
    }

    /// Parses an authority as it stands in `Host` or `:authority`: a name and perhaps `:port` (RFC 9110, section
    /// 7.2). The port is checked and dropped; an empty one is allowed (RFC 3986, section 3.2.3).
    ///
    /// # Errors
    /// [`HostnameError`] by the rules of the module; user information (`@`) is a bad character.
    pub fn parse_authority(raw: &str) -> Result<Self, HostnameError> {
        if raw.starts_with('[') {
            return Err(HostnameError::IpLiteral);
        }
        match raw.split_once(':') {
            None => Self::parse(raw),
            Some((name, port)) => {
                let numeric = port.bytes().all(|b| b.is_ascii_digit()) && port.len() <= 5;
                if !numeric || (!port.is_empty() && port.parse::<u16>().is_err()) {
                    return Err(HostnameError::BadPort);
                }
                Self::parse(name)
            }
        }
    }

    /// The canonical text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The label in front of `base`, if this name is exactly one label below it.
    ///
    /// `paris.gmah.com` under `gmah.com` gives `paris`; `a.paris.gmah.com` and `gmah.com` give nothing.
    pub fn label_under(&self, base: &Hostname) -> Option<&str> {
        let label = self.0.strip_suffix(&*base.0)?.strip_suffix('.')?;
        (!label.contains('.')).then_some(label)
    }

    /// Whether `pattern` (a name, or `*.` before a name) covers this name, the wildcard standing for exactly one
    /// label (RFC 6125, section 6.4.3).
    pub fn is_covered_by(&self, pattern: &str) -> bool {
        let name = self.0.as_bytes();
        match pattern.strip_prefix("*.").map(str::as_bytes) {
            Some(parent) => name.len().checked_sub(parent.len() + 1).is_some_and(|dot| {
                name[dot] == b'.'
                    && !name[..dot].contains(&b'.')
                    && name[dot + 1..].eq_ignore_ascii_case(parent)
            }),
            None => self.0.eq_ignore_ascii_case(pattern),
        }
    }
}

impl FromStr for Hostname {
    type Err = HostnameError;

    fn from_str(raw: &str) -> Result<Self, Self::Err> {
        Self::parse(raw)
    }
}

impl fmt::Display for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl AsRef<str> for Hostname {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Hostname {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl<'de> serde::Deserialize<'de> for Hostname {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

impl serde::Serialize for Hostname {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

/// UTS 46 to A-labels, non-transitional, with the checks that make the result stable: an `xn--` label that decodes
/// to plain ASCII is refused (RUSTSEC-2024-0421).
fn idna_ascii(name: &str) -> Result<Box<str>, HostnameError> {
    use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46};
    let ascii = Uts46::new()
        .to_ascii(name.as_bytes(), AsciiDenyList::STD3, Hyphens::Allow, DnsLength::Ignore)
        .map_err(|_| HostnameError::BadCharacter)?;
    Ok(ascii.into_owned().into_boxed_str())
}

/// A name whose labels are letters, digits and single hyphens in their middle, the last of which begins with a letter: what
/// nearly every request has, in one pass. Nothing where the name has to be looked at more closely, which says nothing of it.
fn plain(name: &str) -> Option<Box<str>> {
    if name.len() > MAX_NAME_BYTES {
        return None;
    }
    let (mut length, mut before, mut first) = (0, b'.', b'.');
    for b in name.bytes() {
        match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => {}
            // At the beginning of a label, or the second of two, as in A-labels.
            b'-' if before != b'.' && before != b'-' => {}
            b'.' if before != b'.' && before != b'-' => length = 0,
            _ => return None,
        }
        if before == b'.' {
            first = b;
        }
        length += usize::from(b != b'.');
        if length > MAX_LABEL_BYTES {
            return None;
        }
        before = b;
    }
    let is_plain = first.is_ascii_alphabetic() && before != b'.' && before != b'-';
    is_plain.then(|| name.to_ascii_lowercase().into_boxed_str())
}

fn check_ldh(name: &str) -> Result<(), HostnameError> {
    if name.len() > MAX_NAME_BYTES {
        return Err(HostnameError::TooLong);
    }
    for label in labels(name) {
        if label.len() > MAX_LABEL_BYTES {
            return Err(HostnameError::TooLong);
        }
        if !label.iter().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-')) {
            return Err(HostnameError::BadCharacter);
        }
        if label.is_empty() || label.starts_with(b"-") || label.ends_with(b"-") {
            return Err(HostnameError::BadLabel);
        }
    }
    Ok(())
}

/// Byte by byte: labels are shorter than what a searcher for characters needs to get going, and every request passes
/// here.
fn labels(name: &str) -> impl DoubleEndedIterator<Item = &[u8]> {
    name.as_bytes().split(|b| *b == b'.')
}

/// Whether a resolver could take the name for an IPv4 address: its last label is a number in decimal, octal or
/// hexadecimal spelling (WHATWG URL, "ends in a number").
fn is_ip_like(name: &str) -> bool {
    let last = labels(name).next_back().unwrap_or_default();
    let hex = last.strip_prefix(b"0x");
    last.iter().all(u8::is_ascii_digit) || hex.is_some_and(|h| h.iter().all(u8::is_ascii_hexdigit))
}

#[cfg(test)]
mod tests;
