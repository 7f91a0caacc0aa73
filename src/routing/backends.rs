//! The endpoints of a service port, as backends: joined from its slices, with the figures that outlive a table.

use std::collections::BTreeSet;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::sync::Arc;

use crate::model::{Endpoint, EndpointSlice, Family, ServicePort, ServicePortKey};

use super::{Backend, HeldBack, Live, NodeView};

/// The live figures of every endpoint of a service port, eligible or not, by address: an endpoint that is unready for a
/// moment still has its flows.
#[derive(Debug, Default)]
pub(super) struct Figures(Box<[(SocketAddr, Arc<Live>)]>);

impl Figures {
    fn of(&self, addr: &SocketAddr) -> Option<&Arc<Live>> {
        let place = self.0.binary_search_by_key(addr, |(addr, _)| *addr);
        place.ok().map(|place| &self.0[place].1)
    }
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

/// Addresses to which an existing flow may go on, sorted: whatever some policy could choose on some node.
pub(super) fn serving(endpoints: &[(SocketAddr, &Endpoint)]) -> Vec<SocketAddr> {
    let mut serving: Vec<SocketAddr> = endpoints
        .iter()
        .filter(|(_, e)| e.ready || (e.serving && e.terminating))
        .map(|(addr, _)| *addr)
        .collect();
    serving.sort_unstable();
    serving.dedup();
    serving.shrink_to_fit();
    serving
}

/// The figures of `endpoints`: those that were there before, and new ones for the rest.
pub(super) fn carry_figures(
    endpoints: &[(SocketAddr, &Endpoint)],
    before: Option<&Figures>,
) -> Figures {
    let known = |addr: &SocketAddr| before.and_then(|figures| figures.of(addr)).cloned();
    let addresses: BTreeSet<SocketAddr> = endpoints.iter().map(|(addr, _)| *addr).collect();
    let figures = addresses
        .into_iter()
        .map(|addr| (addr, known(&addr).unwrap_or_default()));
    Figures(figures.collect())
}

/// One candidate set as backends, in an order that depends on nothing but the set, the service port and the node: the
/// same set again has the same order, Services over the same Pods do not all begin with the same one, and neither do
/// the proxies of all nodes.
pub(super) fn shuffled_backends(
    key: &ServicePortKey,
    node: &NodeView,
    candidates: &[(SocketAddr, &Endpoint)],
    figures: &Figures,
    held_back: &Arc<HeldBack>,
) -> Vec<Arc<Backend>> {
    let mut backends: Vec<Arc<Backend>> = candidates
        .iter()
        .map(|(addr, endpoint)| {
            Arc::new(Backend {
                addr: *addr,
                node: endpoint.node.clone(),
                pod: endpoint.pod.clone(),
                live: figures.of(addr).cloned().unwrap_or_default(),
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
