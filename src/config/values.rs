//! Values that have one spelling in flags, environment and file.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::model::parse_go_duration;

/// A value that is written as text wherever it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text<T>(pub T);

impl<T: FromStr> FromStr for Text<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        text.trim().parse().map(Self)
    }
}

impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse()
            .map_err(|error| serde::de::Error::custom(format!("{text}: {error}")))
    }
}

impl<T: fmt::Display> Serialize for Text<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// A duration as Go writes it: `250ms`, `30s`, `1m30s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GoDuration(pub Duration);

impl FromStr for GoDuration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse_go_duration(text)
            .map(Self)
            .map_err(|error| error.to_string())
    }
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.subsec_nanos() == 0 {
            write!(f, "{}s", self.0.as_secs())
        } else {
            write!(f, "{}ns", self.0.as_nanos())
        }
    }
}

/// A range of ports, `FIRST-LAST`, both included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRange(pub RangeInclusive<u16>);

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text
            .split_once('-')
            .and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
        match parsed {
            Some((first, last)) if 0 < first && first <= last => Ok(Self(first..=last)),
            Some(_) | None => Err("not FIRST-LAST, two ports in ascending order".to_owned()),
        }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0.start(), self.0.end())
    }
}

/// A DNS server to forward to, for all names or for one domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// The domain it serves, lower-cased, without a dot at the end; `None` = all names.
    pub domain: Option<String>,
    /// Where it listens.
    pub address: SocketAddr,
}

impl FromStr for Upstream {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (domain, address) = match text.split_once('=') {
            Some((domain, address)) => (Some(domain.trim_end_matches('.').to_lowercase()), address),
            None => (None, text),
        };
        if domain.as_deref() == Some("") {
            return Err("the domain before = is empty".to_owned());
        }
        let with_port = address.parse::<SocketAddr>().ok();
        let address = with_port.or_else(|| {
            address
                .parse::<IpAddr>()
                .ok()
                .map(|ip| SocketAddr::new(ip, 53))
        });
        let address = address
            .ok_or("not [DOMAIN=]ADDRESS[:PORT]; an IPv6 address with a port needs [brackets]")?;
        Ok(Self { domain, address })
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(domain) = &self.domain {
            write!(f, "{domain}=")?;
        }
        self.address.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_ranges_are_in_order() {
        assert_eq!("1-65535".parse(), Ok(PortRange(1..=65535)));
        assert_eq!("7-7".parse(), Ok(PortRange(7..=7)));
        for bad in ["", "7", "8-7", "0-7", "1-65536", "a-b"] {
            assert!(bad.parse::<PortRange>().is_err(), "{bad}");
        }
    }

    #[test]
    fn upstreams_may_name_a_domain_and_lack_a_port() {
        let show = |text: &str| {
            text.parse::<Upstream>()
                .map(|upstream| upstream.to_string())
        };
        assert_eq!(show("192.0.2.1").as_deref(), Ok("192.0.2.1:53"));
        assert_eq!(
            show("Corp.Example.=[2001:db8::1]:5353").as_deref(),
            Ok("corp.example=[2001:db8::1]:5353")
        );
        assert_eq!(show("2001:db8::1").as_deref(), Ok("[2001:db8::1]:53"));
        assert!(show("=192.0.2.1").is_err());
        assert!(show("example.com").is_err());
    }
}
