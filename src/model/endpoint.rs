//! An EndpointSlice, reduced to what routing and DNS need.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use smallvec::SmallVec;

use super::{Family, Names, NodeName, Protocol, SctpPort, ServiceName};

/// A slice by namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SliceKey {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
}

impl fmt::Display for SliceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A slice of a Service's endpoints, all of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Its own name.
    pub key: SliceKey,
    /// The Service named by the label `kubernetes.io/service-name`.
    pub service: ServiceName,
    /// `addressType`; FQDN slices are left out where slices are read.
    pub family: Family,
    /// Ports with a usable number and protocol.
    pub ports: Vec<SlicePort>,
    /// Ports of SCTP: for DNS only, never for routing.
    pub sctp_ports: Vec<SctpPort>,
    /// Endpoints with at least one address.
    pub endpoints: Vec<Endpoint>,
    /// The label `service.kubernetes.io/headless`: for DNS only, never for routing.
    pub headless: bool,
    /// When the change that it tells of happened: `endpoints.kubernetes.io/last-change-trigger-time`.
    pub triggered: Option<Timestamp>,
}

impl EndpointSlice {
    /// Has what it says in common with other facts only once.
    pub fn share(&mut self, names: &mut Names) {
        names.share(&mut self.key.namespace);
        names.share(&mut self.key.name);
        self.service.share(names);
        for port in &mut self.ports {
            names.share(&mut port.name);
        }
        for endpoint in &mut self.endpoints {
            if let Some(node) = &mut endpoint.node {
                node.share(names);
            }
            if let Some(zone) = &mut endpoint.zone {
                names.share(zone);
            }
        }
    }
}

/// One entry of a slice's `ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// The name that pairs it with a service port; empty is a name too.
    pub name: Arc<str>,
    /// The protocol.
    pub protocol: Protocol,
    /// The port at the endpoint.
    pub port: u16,
}

/// What a slice says of one endpoint. Missing conditions have their defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its addresses; routing uses the first. Never empty.
    pub addresses: SmallVec<[IpAddr; 1]>,
    /// May receive traffic.
    pub ready: bool,
    /// Still answers; matters while terminating.
    pub serving: bool,
    /// Is going away.
    pub terminating: bool,
    /// The node it runs on.
    pub node: Option<NodeName>,
    /// Its zone.
    pub zone: Option<Arc<str>>,
    /// The hostname that DNS gives it.
    pub hostname: Option<Arc<str>>,
    /// The Pod behind it, where one is named.
    pub pod: Option<Arc<str>>,
    /// Where its traffic should come from, if that is said.
    pub hints: Option<Box<Hints>>,
}

impl Endpoint {
    /// The zones it is meant for; empty is no hint.
    pub fn hinted_zones(&self) -> &[Arc<str>] {
        self.hints.as_deref().map_or(&[], |hints| &hints.zones)
    }

    /// The nodes it is meant for; empty is no hint.
    pub fn hinted_nodes(&self) -> &[Arc<str>] {
        self.hints.as_deref().map_or(&[], |hints| &hints.nodes)
    }
}

/// Topology hints of an endpoint; empty lists are no hint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// `forZones`.
    pub zones: Vec<Arc<str>>,
    /// `forNodes`.
    pub nodes: Vec<Arc<str>>,
}
