//! Identities and addresses: names, ports, protocols, families and what a client can dial.
//!
//! Each is narrowed where it enters; inside, a value of the type is valid.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::Arc;

use super::Names;

/// A port as written in a Service or EndpointSlice. Never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Port(NonZeroU16);

/// A number that is no port: zero, negative or above 65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not a port (1-65535)")]
pub struct InvalidPort(pub i32);

impl Port {
    /// The number itself.
    pub fn number(self) -> u16 {
        self.0.get()
    }
}

impl TryFrom<i32> for Port {
    type Error = InvalidPort;

    // Kubernetes carries ports as i32. This is the only place that narrows them.
    fn try_from(raw: i32) -> Result<Self, InvalidPort> {
        u16::try_from(raw)
            .ok()
            .and_then(NonZeroU16::new)
            .map(Self)
            .ok_or(InvalidPort(raw))
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The transport of a service port. SCTP is skipped where Services are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// As Kubernetes spells it: `TCP`, `UDP`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }

    /// As firewalls and DNS labels spell it: `tcp`, `udp`.
    pub fn lower(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An IP family. The two are separate worlds: nothing of one may stop the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, in the order in which they are worked through.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// As Kubernetes spells it: `IPv4`, `IPv6`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// The address that means "any" in this family.
    pub fn unspecified(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
            Self::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The name of a node: trimmed and lower-cased, as kube-proxy does with a hostname.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeName(Arc<str>);

impl NodeName {
    /// Narrows a hostname; `None` if nothing is left of it.
    pub fn parse(raw: &str) -> Option<Self> {
        let name = raw.trim().to_lowercase();
        (!name.is_empty()).then(|| Self(name.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn share(&mut self, names: &mut Names) {
        names.share(&mut self.0);
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A Service by namespace and name; shown as `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name within it.
    pub name: Arc<str>,
}

impl ServiceName {
    /// Both parts as given; the API has validated them.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    pub(super) fn share(&mut self, names: &mut Names) {
        names.share(&mut self.namespace);
        names.share(&mut self.name);
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// One port of one Service in one family: the unit that owns backends, a balancer and affinity state.
///
/// Shown as `namespace/name:port`, or `namespace/name` where the port has no name. The protocol is part of the key:
/// 53/TCP and 53/UDP are two service ports.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServicePortKey {
    /// The Service.
    pub service: ServiceName,
    /// `spec.ports[].name`; empty where a Service has one port without a name.
    pub port: Arc<str>,
    /// The protocol.
    pub protocol: Protocol,
    /// The family of its addresses and backends.
    pub family: Family,
}

impl fmt::Display for ServicePortKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.service.fmt(f)?;
        if !self.port.is_empty() {
            write!(f, ":{}", self.port)?;
        }
        Ok(())
    }
}

/// What a client dials: `address:port/protocol`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Frontend {
    /// The address.
    pub ip: IpAddr,
    /// The port.
    pub port: u16,
    /// The protocol.
    pub protocol: Protocol,
}

impl Frontend {
    /// A frontend at a socket address. An IPv4-mapped IPv6 address counts as IPv4.
    pub fn new(addr: SocketAddr, protocol: Protocol) -> Self {
        Self {
            ip: addr.ip().to_canonical(),
            port: addr.port(),
            protocol,
        }
    }

    /// Where it is, without the protocol.
    pub fn addr(&self) -> SocketAddr {
        SocketAddr::new(self.ip, self.port)
    }
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr(), self.protocol)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_narrowed_at_both_ends() {
        assert_eq!(Port::try_from(0), Err(InvalidPort(0)));
        assert_eq!(Port::try_from(1).map(Port::number), Ok(1));
        assert_eq!(Port::try_from(65535).map(Port::number), Ok(65535));
        assert_eq!(Port::try_from(65536), Err(InvalidPort(65536)));
        assert_eq!(Port::try_from(-1), Err(InvalidPort(-1)));
    }

    #[test]
    fn node_names_are_trimmed_and_lower_cased() {
        assert_eq!(NodeName::parse("  Node-A\n").unwrap().as_str(), "node-a");
        assert_eq!(NodeName::parse(" \t"), None);
    }

    #[test]
    fn mapped_addresses_are_ipv4_frontends() {
        let frontend = Frontend::new("[::ffff:10.96.0.1]:80".parse().unwrap(), Protocol::Tcp);
        assert_eq!(frontend.to_string(), "10.96.0.1:80/TCP");
    }
}
