//! The addresses of one PostgreSQL server: one, or the members of a cluster of which one takes writes.

use std::fmt;

/// A list of hosts: names, addresses or folders of Unix sockets, each with its port. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hosts(Box<[(Box<str>, u16)]>);

/// Why a text is no list of hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HostsError {
    /// Nothing between two commas, or nothing at all.
    #[error("a host is missing")]
    Empty,
    /// More than anybody has.
    #[error("at most 16 hosts")]
    TooMany,
    /// Not a number from 1 to 65535 behind the colon.
    #[error("a port is not a number from 1 to 65535")]
    Port,
    /// Neither a name, nor an address, nor a folder.
    #[error("not a name, an address or a folder")]
    Host,
}

impl Hosts {
    /// From `db1`, `db1,db2:5433`, `[2001:db8::1]:5432` or `/run/postgresql`; `port` is that of hosts without one.
    ///
    /// # Errors
    /// [`HostsError`].
    pub fn parse(text: &str, port: u16) -> Result<Self, HostsError> {
        let hosts = text.split(',').map(|one| host(one.trim(), port)).collect::<Result<Box<[_]>, _>>()?;
        if hosts.len() > 16 { Err(HostsError::TooMany) } else { Ok(Self(hosts)) }
    }

    /// Each host and its port, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u16)> {
        self.0.iter().map(|(host, port)| (&**host, *port))
    }

    /// Whether there is a choice.
    pub fn are_several(&self) -> bool {
        self.0.len() > 1
    }
}

fn host(text: &str, port: u16) -> Result<(Box<str>, u16), HostsError> {
    if text.is_empty() {
        return Err(HostsError::Empty);
    }
    if text.starts_with('/') {
        return Ok((text.into(), port));
    }
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, "")) => (host, port),
        Some((host, rest)) => (host, number(rest.strip_prefix(':').ok_or(HostsError::Port)?)?),
        // More than one colon: an IPv6 address without a port.
        None => match text.split_once(':') {
            Some((host, rest)) if !rest.contains(':') => (host, number(rest)?),
            _ => (text, port),
        },
    };
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':');
    if host.is_empty() || !host.bytes().all(plain) { Err(HostsError::Host) } else { Ok((host.into(), port)) }
}

fn number(text: &str) -> Result<u16, HostsError> {
    text.parse().ok().filter(|n| *n > 0).ok_or(HostsError::Port)
}

impl fmt::Display for Hosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (host, port)) in self.iter().enumerate() {
            let comma = if n == 0 { "" } else { "," };
            if host.contains(':') {
                write!(f, "{comma}[{host}]:{port}")?;
            } else {
                write!(f, "{comma}{host}:{port}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form() {
        let read = |text: &str| Hosts::parse(text, 5432).map(|h| h.to_string());
        assert_eq!(read("db1").as_deref(), Ok("db1:5432"));
        assert_eq!(read("db1, db2:5433").as_deref(), Ok("db1:5432,db2:5433"));
        assert_eq!(
            read("10.0.0.1,[::1]:6,2001:db8::1").as_deref(),
            Ok("10.0.0.1:5432,[::1]:6,[2001:db8::1]:5432")
        );
        assert_eq!(read("/run/postgresql").as_deref(), Ok("/run/postgresql:5432"));
        for (text, why) in [
            ("", HostsError::Empty),
            ("a,,b", HostsError::Empty),
            ("a:0", HostsError::Port),
            ("a:x", HostsError::Port),
            ("a:65536", HostsError::Port),
            ("[::1]5432", HostsError::Port),
            ("a b", HostsError::Host),
            (":5432", HostsError::Host),
            ("a';--", HostsError::Host),
        ] {
            assert_eq!(read(text), Err(why), "{text}");
        }
        assert_eq!(read(&["a"; 17].join(",")), Err(HostsError::TooMany));
    }
}
