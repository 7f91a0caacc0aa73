//! The endpoints of a service port, as backends: joined from its slices, with the figures that outlive a table.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::model::{Endpoint, EndpointSlice, Family, ServicePort, ServicePortKey};

use super::{Backend, HeldBack, Live, NodeView};

/// Every endpoint of a service port, eligible or not, by address: one that is unready for a moment still has its flows.
#[derive(Debug, Default)]
pub(crate) struct Known(Box<[KnownEndpoint]>);

// There are many, and a `SocketAddr` would be 12 octets more.
#[derive(Debug)]
struct KnownEndpoint {
    ip: IpAddr,
    port: u16,
    live: Arc<Live>,
    serves: bool,
}

impl KnownEndpoint {
    fn addr(&self) -> SocketAddr {
        SocketAddr::new(self.ip, self.port)
    }
}

impl Known {
    /// `endpoints`, with the figures that they had before.
    pub(super) fn of(endpoints: &[(SocketAddr, &Endpoint)], before: Option<&Self>) -> Self {
        let mut serves = BTreeMap::new();
        for (addr, endpoint) in endpoints {
            *serves.entry(*addr).or_default() |= serves_existing_flows(endpoint);
        }
        let known = serves.into_iter().map(|(addr, serves)| KnownEndpoint {
            ip: addr.ip(),
            port: addr.port(),
            live: before
                .and_then(|before| before.at(addr))
                .map_or_else(Arc::default, |before| before.live.clone()),
            serves,
        });
        Self(known.collect())
    }

    /// Addresses to which an existing flow may go on.
    pub(super) fn serving(&self) -> impl Iterator<Item = SocketAddr> {
        let serving = self.0.iter().filter(|known| known.serves);
        serving.map(KnownEndpoint::addr)
    }

    /// Whether an existing flow to that address may go on.
    pub(super) fn serves(&self, addr: SocketAddr) -> bool {
        self.at(addr).is_some_and(|known| known.serves)
    }

    fn at(&self, addr: SocketAddr) -> Option<&KnownEndpoint> {
        let place = self.0.binary_search_by_key(&addr, KnownEndpoint::addr);
        place.ok().map(|place| &self.0[place])
    }
}

// Whatever some policy could choose on some node.
fn serves_existing_flows(endpoint: &Endpoint) -> bool {
    endpoint.ready || (endpoint.serving && endpoint.terminating)
}

/// Every endpoint of a service port with its address there: slice ports match by name and protocol, and the number is
/// the slice's. Slices with the headless label are for DNS only.
pub(super) fn endpoints_of<'a>(
    port: &ServicePort,
    family: Family,
    slices: &'a [Arc<EndpointSlice>],
) -> Vec<(SocketAddr, &'a Endpoint)> {
    let mut found = Vec::new();
    for slice in slices
        .iter()
        .filter(|slice| slice.family == family && !slice.headless)
    {
        for number in slice
            .ports
            .iter()
            .filter(|p| p.name == port.name && p.protocol == port.protocol)
            .map(|p| p.port)
        {
            let addressed = slice
                .endpoints
                .iter()
                .filter_map(|e| Some((SocketAddr::new(*e.addresses.first()?, number), e)));
            found.extend(addressed);
        }
    }
    found
}

/// One candidate set as backends, in an order that depends on nothing but the set, the service port and the node: the
/// same set again has the same order, Services over the same Pods do not all begin with the same one, and neither do
/// the proxies of all nodes.
pub(super) fn shuffled_backends(
    key: &ServicePortKey,
    node: &NodeView,
    candidates: &[(SocketAddr, &Endpoint)],
    known: &Known,
    held_back: &Arc<HeldBack>,
) -> Vec<Arc<Backend>> {
    let mut backends: Vec<Arc<Backend>> = candidates
        .iter()
        .map(|(addr, endpoint)| {
            Arc::new(Backend {
                addr: *addr,
                node: endpoint.node.clone(),
                pod: endpoint.pod.clone(),
                live: known
                    .at(*addr)
                    .map_or_else(Arc::default, |known| known.live.clone()),
                held_back: held_back.clone(),
            })
        })
        .collect();
    let n = backends.len();
    backends.sort_by_cached_key(|backend| {
        let mut hasher = DefaultHasher::new();
        (key, &node.name, backend.addr, n).hash(&mut hasher);
        (hasher.finish(), backend.addr)
    });
    backends
}
