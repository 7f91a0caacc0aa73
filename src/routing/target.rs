//! What an explanation can be asked about, as users write it.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use crate::model::ServiceName;

/// A Service, one of its ports, or an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `namespace/name`, or `namespace/name:port` with a port's name or number.
    Service(ServiceName, Option<String>),
    /// `ip:port`, with brackets around an IPv6 address.
    Address(SocketAddr),
}

/// A text that is no target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither NAMESPACE/NAME[:PORT] nor IP:PORT")]
pub struct InvalidTarget(String);

/// A target that is not here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnknownTarget {
    /// No Service of that name.
    #[error("there is no Service {0}")]
    Service(ServiceName),
    /// The Service has no such port.
    #[error("the Service {service} has no port {port}; its ports are {known}")]
    Port {
        /// The Service.
        service: ServiceName,
        /// What was asked for.
        port: String,
        /// What there is.
        known: String,
    },
    /// No Service has the address.
    #[error("no Service is served at {address}: {why}")]
    Address {
        /// What was asked for.
        address: SocketAddr,
        /// What is known of it.
        why: String,
    },
}

impl FromStr for Target {
    type Err = InvalidTarget;

    fn from_str(text: &str) -> Result<Self, InvalidTarget> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        let invalid = || InvalidTarget(text.to_owned());
        let (namespace, rest) = text.split_once('/').ok_or_else(invalid)?;
        let (name, port) = match rest.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (rest, None),
        };
        let is_part = |part: &str| !part.is_empty() && !part.contains(['/', ':']);
        if !is_part(namespace) || !is_part(name) || !port.is_none_or(is_part) {
            return Err(invalid());
        }
        let service = ServiceName::new(namespace, name);
        Ok(Self::Service(service, port.map(str::to_owned)))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(name, None) => name.fmt(f),
            Self::Service(name, Some(port)) => write!(f, "{name}:{port}"),
            Self::Address(address) => address.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_services_ports_and_addresses() {
        for text in [
            "default/web",
            "default/web:http",
            "default/web:80",
            "10.96.0.1:80",
            "[fd00::1]:80",
        ] {
            let target: Target = text.parse().unwrap();
            assert_eq!(target.to_string(), text);
        }
        for text in [
            "",
            "web",
            "web:80",
            "/web",
            "default/",
            "default/web:",
            "default/:80",
            "a/b/c",
            "default/web:80:81",
            "10.96.0.1",
            "fd00::1",
            "10.96.0.1:65536",
        ] {
            let invalid = text.parse::<Target>().unwrap_err();
            assert_eq!(invalid, InvalidTarget(text.to_owned()), "{text}");
        }
    }
}
