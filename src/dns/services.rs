//! The names of one Service: its addresses, endpoints and ports. Pure.
//!
//! Reads a [`ServiceEntry`] and answers with addresses and (port, target) pairs; what records they become is decided
//! in `records`. An endpoint counts when its slice says `ready`; `serving` and `terminating` do not matter to DNS.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::model::{Endpoint, EndpointSlice, Frontend, Protocol, ServiceKind};
use crate::routing::{RoutingTable, ServiceEntry};

use super::names::{dashed, undashed};

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
        /// `tcp` or `udp`.
        protocol: &'a str,
    },
    /// Every named one of a protocol.
    Protocol(&'a str),
}

impl PortFilter<'_> {
    fn admits(self, name: &str, protocol: Protocol) -> bool {
        match self {
            Self::All => true,
            Self::Named {
                port,
                protocol: asked,
            } => !name.is_empty() && name.eq_ignore_ascii_case(port) && asked == protocol.lower(),
            Self::Protocol(asked) => !name.is_empty() && asked == protocol.lower(),
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
                let ports = slice.ports.iter();
                for port in ports.filter(|port| filter.admits(&port.name, port.protocol)) {
                    for ip in &endpoint.addresses {
                        let target = PortTarget {
                            port: port.port,
                            target: Target::Endpoint(endpoint_label(endpoint, *ip)),
                        };
                        targets.entry(target).or_default().insert(*ip);
                    }
                }
            }
        }
        ServiceKind::ClusterIp | ServiceKind::NodePort | ServiceKind::LoadBalancer => {
            let ports = entry.service.ports.iter();
            for port in ports.filter(|port| filter.admits(&port.name, port.protocol)) {
                let own = port.port.number();
                // A Service of two families has one record, which tells the port of its primary address.
                let served = entry.service.cluster_ips.first().map(|ip| {
                    table.served_port(&Frontend {
                        ip: *ip,
                        port: own,
                        protocol: port.protocol,
                    })
                });
                let target = PortTarget {
                    port: served.unwrap_or(own),
                    target: Target::Service,
                };
                targets.insert(target, addresses(entry));
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
