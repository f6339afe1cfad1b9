//! HTTP/1.1 request heads, read strictly (RFC 9112): what can be read in two ways is refused before anything routes
//! on it.
//!
//! The framework forgives more than an edge may: it takes bare line feeds, folds, several `Transfer-Encoding` fields,
//! a missing `Host`, and lets `Transfer-Encoding` win over `Content-Length`. Everything of that kind ends here.

use memchr::{memchr, memchr_iter};

use crate::reject::Rejection;

/// Longest head in bytes.
pub const MAX_HEAD: usize = 32 * 1024;
/// Longest request target in bytes.
pub const MAX_TARGET: usize = 8 * 1024;
/// Most fields.
pub const MAX_FIELDS: usize = 100;

/// What has come of a head so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// More is needed; scanning goes on at this offset.
    Partial(usize),
    /// The head ends here (length in bytes, its blank line included).
    Complete(usize),
}

/// Looks for the end of the head. `scanned` bytes were looked at before.
///
/// # Errors
/// [`Rejection`] when it is too long already, or when it cannot become a head any more.
pub fn find_end(buf: &[u8], scanned: usize) -> Result<Progress, Rejection> {
    // A line ends in CR LF and nothing else; a line feed by itself ends the matter.
    for at in memchr_iter(b'\n', &buf[scanned..]) {
        let at = scanned + at;
        if at == 0 || buf[at - 1] != b'\r' {
            return Err(Rejection::Malformed);
        }
        if at == 1 || (at >= 3 && buf[at - 2] == b'\n') {
            // A blank line: the end, unless nothing stood before it.
            return if at == 1 { Err(Rejection::Malformed) } else { within(at + 1) };
        }
    }
    if memchr(b'\n', buf).is_none() && buf.len() > MAX_TARGET + 64 {
        return Err(Rejection::TargetTooLong);
    }
    if buf.len() > MAX_HEAD {
        return Err(Rejection::HeadTooLarge);
    }
    Ok(Progress::Partial(buf.len()))
}

fn within(end: usize) -> Result<Progress, Rejection> {
    if end > MAX_HEAD { Err(Rejection::HeadTooLarge) } else { Ok(Progress::Complete(end)) }
}

/// Checks a complete head. When its target is in absolute form, returns the head in origin form instead: the
/// authority of the target is then the `Host` (RFC 9112, section 3.2.2), and must have been the same.
///
/// # Errors
/// [`Rejection`] by the first rule that is broken.
pub fn check(head: &[u8]) -> Result<Option<Vec<u8>>, Rejection> {
    let mut lines = Lines(head);
    let request_line = lines.next().ok_or(Rejection::Malformed)?;
    let line = RequestLine::parse(request_line)?;
    let mut seen = Seen::default();
    let mut fields = 0;
    for field in lines {
        if field.is_empty() {
            break;
        }
        fields += 1;
        if fields > MAX_FIELDS {
            return Err(Rejection::HeadTooLarge);
        }
        seen.field(field)?;
    }
    seen.finish(&line)?;
    line.to_origin_form(head, request_line.len(), seen.host)
}

/// Lines without their CR LF. The head is known to have no other line ends.
struct Lines<'a>(&'a [u8]);

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let end = memchr(b'\n', self.0)?;
        let line = &self.0[..end - 1];
        self.0 = &self.0[end + 1..];
        Some(line)
    }
}

struct RequestLine<'a> {
    method: &'a [u8],
    target: &'a [u8],
    is_http_10: bool,
}

impl<'a> RequestLine<'a> {
    fn parse(line: &'a [u8]) -> Result<Self, Rejection> {
        let mut parts = line.split(|b| *b == b' ');
        let (Some(method), Some(target), Some(version), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Rejection::Malformed);
        };
        let is_http_10 = match version {
            b"HTTP/1.1" => false,
            b"HTTP/1.0" => true,
            _ => return Err(Rejection::Malformed),
        };
        if method.is_empty() || method.len() > 32 || !method.iter().all(|b| is_token(*b)) {
            return Err(Rejection::Malformed);
        }
        if target.len() > MAX_TARGET {
            return Err(Rejection::TargetTooLong);
        }
        if method == b"CONNECT" || method == b"TRACE" {
            return Err(Rejection::Method);
        }
        if !is_target(target) {
            return Err(Rejection::Malformed);
        }
        Ok(Self { method, target, is_http_10 })
    }

    fn to_origin_form(
        &self,
        head: &[u8],
        line_length: usize,
        host: Option<&[u8]>,
    ) -> Result<Option<Vec<u8>>, Rejection> {
        let Some((authority, rest)) = absolute(self.target) else {
            return Ok(None);
        };
        if !host.is_some_and(|h| h.eq_ignore_ascii_case(authority)) {
            return Err(Rejection::BadHost);
        }
        let mut out = Vec::with_capacity(head.len());
        out.extend(self.method);
        out.push(b' ');
        if !rest.starts_with(b"/") {
            out.push(b'/');
        }
        out.extend(rest);
        out.extend(if self.is_http_10 { b" HTTP/1.0" } else { b" HTTP/1.1" });
        out.extend(&head[line_length..]);
        Ok(Some(out))
    }
}

/// Visible ASCII, in origin form or in absolute form with an authority. No fragment, no backslash. `OPTIONS *` asks about
/// a server, and a server of many organisations has nothing to say as a whole.
fn is_target(target: &[u8]) -> bool {
    let fine = all(target, |b| b > 0x20 && b < 0x7f && b != b'#' && b != b'\\');
    let form = match target {
        [b'/', ..] => true,
        other => absolute(other).is_some_and(|(authority, _)| !authority.is_empty()),
    };
    fine && form
}

/// Authority and the rest of an absolute form in `http` or `https`.
fn absolute(target: &[u8]) -> Option<(&[u8], &[u8])> {
    let rest = strip_ignore_case(target, b"http://").or_else(|| strip_ignore_case(target, b"https://"))?;
    let end = rest.iter().position(|b| matches!(b, b'/' | b'?')).unwrap_or(rest.len());
    Some(rest.split_at(end))
}

fn strip_ignore_case<'a>(text: &'a [u8], prefix: &[u8]) -> Option<&'a [u8]> {
    let (head, rest) = text.split_at_checked(prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then_some(rest)
}

#[derive(Default)]
struct Seen<'a> {
    host: Option<&'a [u8]>,
    content_length: bool,
    transfer_encoding: bool,
}

impl<'a> Seen<'a> {
    fn field(&mut self, line: &'a [u8]) -> Result<(), Rejection> {
        let colon = memchr(b':', line).ok_or(Rejection::Malformed)?;
        let (name, value) = (&line[..colon], trim(&line[colon + 1..]));
        // No space before the colon, and no fold: a line that begins with white space has no token before its colon.
        if name.is_empty() || !name.iter().all(|b| is_token(*b)) || !all(value, is_field_byte) {
            return Err(Rejection::Malformed);
        }
        // Few fields concern us; their lengths tell most others apart.
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                // Bytes that no host name has, in front of the framework, which has a refusal of its own for some.
                let fine = value.iter().all(|b| is_host_byte(*b));
                if self.host.replace(value).is_some() || !fine {
                    return Err(Rejection::BadHost);
                }
                Ok(())
            }
            10 if name.eq_ignore_ascii_case(b"connection") => connection(value),
            14 if folds_to(name, b"content-length") => {
                let digits = !value.is_empty() && value.len() <= 18 && value.iter().all(u8::is_ascii_digit);
                let canonical = digits && (value.len() == 1 || value[0] != b'0');
                let fresh = !std::mem::replace(&mut self.content_length, true);
                require(canonical && fresh && name.contains(&b'-'))
            }
            17 if folds_to(name, b"transfer-encoding") => {
                let fresh = !std::mem::replace(&mut self.transfer_encoding, true);
                require(value.eq_ignore_ascii_case(b"chunked") && fresh && name.contains(&b'-'))
            }
            _ => Ok(()),
        }
    }

    fn finish(&self, line: &RequestLine<'_>) -> Result<(), Rejection> {
        if self.host.is_none_or(<[u8]>::is_empty) {
            return Err(Rejection::BadHost);
        }
        require(!(self.content_length && self.transfer_encoding))?;
        require(!(self.transfer_encoding && line.is_http_10))
    }
}

fn require(rule: bool) -> Result<(), Rejection> {
    if rule { Ok(()) } else { Err(Rejection::Malformed) }
}

/// Nominations of `Connection` (RFC 9110, section 7.6.1) are removed on the way. A field whose loss would change what
/// the request asks for may not be among them.
fn connection(value: &[u8]) -> Result<(), Rejection> {
    const NEVER: [&[u8]; 15] = [
        b"authorization",
        b"content-length",
        b"content-type",
        b"cookie",
        b"forwarded",
        b"host",
        b"idempotency-key",
        b"if-match",
        b"if-none-match",
        b"if-unmodified-since",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
        b"x-request-id",
        b"traceparent",
    ];
    for token in value.split(|b| *b == b',') {
        let token = trim(token);
        let sound = token.iter().all(|b| is_token(*b));
        require(sound && !NEVER.iter().any(|n| token.eq_ignore_ascii_case(n)))?;
    }
    Ok(())
}

/// Whether a backend that folds names would take this one for a framing field, which it is not.
pub fn is_framing_look_alike(name: &[u8]) -> bool {
    let odd = name.iter().any(|b| matches!(b, b'_' | b'.'));
    odd && (folds_to(name, b"content-length") || folds_to(name, b"transfer-encoding"))
}

/// Whether a name is `wanted` once `_` and `.` are read as `-`, in any case.
fn folds_to(name: &[u8], wanted: &[u8]) -> bool {
    name.len() == wanted.len()
        && name.iter().zip(wanted).all(|(n, w)| {
            let n = if matches!(n, b'_' | b'.') { b'-' } else { n.to_ascii_lowercase() };
            n == *w
        })
}

fn trim(value: &[u8]) -> &[u8] {
    let blank = |b: &u8| matches!(b, b' ' | b'\t');
    let start = value.iter().position(|b| !blank(b)).unwrap_or(value.len());
    let end = value.iter().rposition(|b| !blank(b)).map_or(start, |n| n + 1);
    &value[start..end]
}

/// Letters, digits, what separates them, a port; and bytes of a name that is yet to become A-labels.
fn is_host_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':') || b >= 0x80
}

/// RFC 9110, section 5.6.2.
fn is_token(b: u8) -> bool {
    // By table: every byte of every name passes here.
    const TOKEN: [bool; 256] = {
        let (mut table, mut b) = ([false; 256], 0);
        while b < 256 {
            table[b] = matches!(b as u8, b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'!' | b'#' | b'$' | b'%' | b'&' | b'\''
                | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~');
            b += 1;
        }
        table
    };
    TOKEN[usize::from(b)]
}

/// RFC 9110, section 5.5: visible, space, tab, and opaque bytes; no other control byte.
fn is_field_byte(b: u8) -> bool {
    (b >= 0x20 && b != 0x7f) || b == b'\t'
}

/// Whether all bytes are so: to the end in any case, which is many at a time where the first that is not would have to be
/// looked for one by one.
fn all(bytes: &[u8], is_so: impl Fn(u8) -> bool) -> bool {
    bytes.iter().fold(true, |so, b| so & is_so(*b))
}

#[cfg(test)]
mod tests;
