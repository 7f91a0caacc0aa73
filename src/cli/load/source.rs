//! Where requests come from, as users write it: `10.0.0.1`, `10.0.0.1:4000`, `[fd00::1]:4000-4063`. Pure.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// Own addresses, in the order in which they are used; port 0 is any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SourceText(pub(super) Vec<SocketAddr>);

/// A text that is no source.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is none of ADDR, ADDR:PORT and ADDR:FIRST-LAST (an IPv6 address before a port in brackets)"
)]
pub(super) struct InvalidSource(String);

impl FromStr for SourceText {
    type Err = InvalidSource;

    fn from_str(text: &str) -> Result<Self, InvalidSource> {
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(Self(vec![SocketAddr::new(ip, 0)]));
        }
        let invalid = || InvalidSource(text.to_owned());
        let (before, last) = match text.rsplit_once('-') {
            Some((before, last)) => (before, Some(last)),
            None => (text, None),
        };
        let first: SocketAddr = before.parse().map_err(|_| invalid())?;
        let last = match last {
            Some(last) => last.parse().map_err(|_| invalid())?,
            None => first.port(),
        };
        if first.port() == 0 || last < first.port() {
            return Err(invalid());
        }
        let ports = first.port()..=last;
        Ok(Self(
            ports
                .map(|port| SocketAddr::new(first.ip(), port))
                .collect(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_ports_and_ranges_are_read() {
        let read = |text: &str| {
            let source = text.parse::<SourceText>().map_err(|_| ())?;
            let texts: Vec<String> = source.0.iter().map(ToString::to_string).collect();
            Ok(texts.join(" "))
        };
        for (text, expected) in [
            ("10.0.0.1", "10.0.0.1:0"),
            ("fd00::1", "[fd00::1]:0"),
            ("10.0.0.1:4000", "10.0.0.1:4000"),
            ("10.0.0.1:65534-65535", "10.0.0.1:65534 10.0.0.1:65535"),
            ("[fd00::1]:7-8", "[fd00::1]:7 [fd00::1]:8"),
        ] {
            assert_eq!(read(text), Ok(expected.to_owned()), "{text}");
        }
        for text in [
            "",
            "here",
            "10.0.0.1:0",
            "10.0.0.1:2-1",
            "10.0.0.1:1-65536",
            "10.0.0.1-2",
        ] {
            assert_eq!(read(text), Err(()), "{text}");
        }
    }
}
