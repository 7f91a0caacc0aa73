//! The names of one Service: its addresses, endpoints and ports. Pure.
//!
//! Reads a [`ServiceEntry`] and answers with addresses and (port, target) pairs; what records they become is decided
//! in `records`. An endpoint counts when its slice says `ready`; `serving` and `terminating` do not matter to DNS.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::model::{Endpoint, EndpointSlice, Frontend, Service, ServiceKind, ServicePort};
use crate::routing::{RoutingTable, ServiceEntry};

use super::names::{dashed, undashed};

/// SCTP as a label; the model has no such protocol, since nothing serves it.
const SCTP: &str = "sctp";

/// What an SRV record points to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Target<'a> {
    /// The Service's own name.
    Service,
    /// The endpoint of that label below it.
    Endpoint(Cow<'a, str>),
}

/// One SRV record in the making.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PortTarget<'a> {
    /// The port to dial.
    pub(super) port: u16,
    /// Where.
    pub(super) target: Target<'a>,
}

/// Which ports of a Service are meant.
#[derive(Clone, Copy, Debug)]
pub(super) enum PortFilter<'a> {
    /// All, unnamed ones included.
    All,
    /// The named one of a protocol, both as labels spell them.
    Named {
        /// The name; never empty.
        port: &'a str,
        /// `tcp`, `udp` or `sctp`.
        protocol: &'a str,
    },
    /// Every named one of a protocol.
    Protocol(&'a str),
}

impl PortFilter<'_> {
    fn admits(self, name: &str, protocol: &str) -> bool {
        match self {
            Self::All => true,
            Self::Named {
                port,
                protocol: asked,
            } => !name.is_empty() && name.eq_ignore_ascii_case(port) && asked == protocol,
            Self::Protocol(asked) => !name.is_empty() && asked == protocol,
        }
    }
}

/// Whether some endpoint is ready, in any family.
pub(super) fn has_ready_endpoint(entry: &ServiceEntry) -> bool {
    ready_endpoints(entry).next().is_some()
}

/// The addresses of the Service's own name: its cluster IPs, or all ready endpoints of a headless one.
pub(super) fn addresses(entry: &ServiceEntry) -> BTreeSet<IpAddr> {
    match entry.service.kind {
        ServiceKind::Headless => ready_endpoints(entry)
            .flat_map(|(_, endpoint)| endpoint.addresses.iter().copied())
            .collect(),
        ServiceKind::ClusterIp | ServiceKind::NodePort | ServiceKind::LoadBalancer => {
            entry.service.cluster_ips.iter().copied().collect()
        }
        ServiceKind::ExternalName(_) => BTreeSet::new(),
    }
}

/// The addresses of the ready endpoints called `label`. A hostname replaces the dashed address, and may be shared.
pub(super) fn endpoint_addresses(entry: &ServiceEntry, label: &str) -> BTreeSet<IpAddr> {
    // One spelling of an address answers, the one that SRV and PTR records use.
    let by_address = undashed(label).filter(|ip| dashed(*ip) == label);
    ready_endpoints(entry)
        .flat_map(|(_, endpoint)| {
            let named = endpoint
                .hostname
                .as_deref()
                .map(|hostname| hostname.eq_ignore_ascii_case(label));
            endpoint
                .addresses
                .iter()
                .copied()
                .filter(move |ip| named.unwrap_or(by_address == Some(*ip)))
        })
        .collect()
}

/// The ports that `filter` admits, each distinct pair of port and target once, with the target's addresses.
///
/// A Service with cluster IPs gives its own ports, at the number where `table` says they are served. A headless one
/// gives every ready endpoint with the ports of its slice.
pub(super) fn port_targets<'a>(
    entry: &'a ServiceEntry,
    table: &RoutingTable,
    filter: PortFilter<'_>,
) -> BTreeMap<PortTarget<'a>, BTreeSet<IpAddr>> {
    let mut targets: BTreeMap<PortTarget<'a>, BTreeSet<IpAddr>> = BTreeMap::new();
    match entry.service.kind {
        ServiceKind::Headless => {
            for (slice, endpoint) in ready_endpoints(entry) {
                let ports =
                    ports_of(slice).filter(|(name, protocol, _)| filter.admits(name, protocol));
                for (_, _, port) in ports {
                    for ip in &endpoint.addresses {
                        let target = Target::Endpoint(endpoint_label(endpoint, *ip));
                        let target = PortTarget { port, target };
                        targets.entry(target).or_default().insert(*ip);
                    }
                }
            }
        }
        ServiceKind::ClusterIp | ServiceKind::NodePort | ServiceKind::LoadBalancer => {
            for (name, protocol, port) in served_ports(&entry.service, table) {
                if filter.admits(name, protocol) {
                    let target = Target::Service;
                    targets.insert(PortTarget { port, target }, addresses(entry));
                }
            }
        }
        ServiceKind::ExternalName(_) => {}
    }
    targets
}

/// The names of the ready endpoints of a Service that have this address.
pub(super) fn endpoint_labels_at(entry: &ServiceEntry, ip: IpAddr) -> BTreeSet<Cow<'_, str>> {
    ready_endpoints(entry)
        .filter(|(_, endpoint)| endpoint.addresses.contains(&ip))
        .map(|(_, endpoint)| endpoint_label(endpoint, ip))
        .collect()
}

// Name, protocol and number of each port of a slice.
fn ports_of(slice: &EndpointSlice) -> impl Iterator<Item = (&str, &'static str, u16)> {
    let ports = slice.ports.iter();
    let sctp = slice.sctp_ports.iter();
    ports
        .map(|port| (&*port.name, port.protocol.lower(), port.port))
        .chain(sctp.map(|port| (&*port.name, SCTP, port.port.number())))
}

// The same of a Service with cluster IPs. One of two families has one record, which tells the port at its primary
// address.
fn served_ports<'a>(
    service: &'a Service,
    table: &RoutingTable,
) -> impl Iterator<Item = (&'a str, &'static str, u16)> {
    let served = |port: &ServicePort| {
        let (port, protocol) = (port.port.number(), port.protocol);
        let primary = service.cluster_ips.first();
        primary.map_or(port, |ip| {
            let ip = *ip;
            table.served_port(&Frontend { ip, port, protocol })
        })
    };
    let ports = service.ports.iter();
    let sctp = service.sctp_ports.iter();
    ports
        .map(move |port| (&*port.name, port.protocol.lower(), served(port)))
        .chain(sctp.map(|port| (&*port.name, SCTP, port.port.number())))
}

fn ready_endpoints(entry: &ServiceEntry) -> impl Iterator<Item = (&EndpointSlice, &Endpoint)> {
    entry.slices.iter().flat_map(|slice| {
        slice
            .endpoints
            .iter()
            .filter(|endpoint| endpoint.ready)
            .map(move |endpoint| (&**slice, endpoint))
    })
}

fn endpoint_label(endpoint: &Endpoint, ip: IpAddr) -> Cow<'_, str> {
    match &endpoint.hostname {
        Some(hostname) => Cow::Borrowed(hostname),
        None => Cow::Owned(dashed(ip)),
    }
}
