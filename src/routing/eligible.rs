//! Which endpoints may serve: the cluster set and the local set of one service port.
//!
//! Source: KEP-1669 (terminating fallback), KEP-2433 and KEP-3015 (hints); kube-proxy `CategorizeEndpoints`.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::model::{Endpoint, NodeName};

use super::NodeView;

/// The two candidate sets of a service port, by address, and whether anything could serve anywhere.
#[derive(Debug)]
pub struct Candidates<'a> {
    /// Usable from anywhere.
    pub cluster: Vec<(SocketAddr, &'a Endpoint)>,
    /// Usable where a policy says Local.
    pub local: Vec<(SocketAddr, &'a Endpoint)>,
    /// Some endpoint is ready or serves while terminating, wherever it is.
    pub any: bool,
    /// Why endpoints were kept or left out of the cluster set.
    pub topology: Topology,
}

/// How topology hints narrowed the cluster set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    /// Not at all.
    None,
    /// To endpoints hinted to this node.
    SameNode,
    /// To endpoints hinted to this zone.
    SameZone,
}

/// Judges `endpoints`, given with their addresses within the service port, for a proxy on `node`.
///
/// Ready endpoints win; if none is ready, those that still serve while terminating are used, so a rolling update never
/// falls to zero. That fallback is decided for each set on its own. Hints narrow the cluster set only, and only among
/// ready endpoints. One address counts once: an entry that does not terminate wins over one that does.
pub fn eligible<'a>(endpoints: &[(SocketAddr, &'a Endpoint)], node: &NodeView) -> Candidates<'a> {
    let merged = merge(endpoints);
    let ready: Vec<_> = merged.iter().copied().filter(|(_, e)| e.ready).collect();
    let fallback: Vec<_> = merged
        .iter()
        .copied()
        .filter(|(_, e)| e.serving && e.terminating)
        .collect();
    let topology = topology_mode(&ready, node);

    let admitted = |(_, e): &&(SocketAddr, &Endpoint)| admits(topology, e, node);
    let mut cluster: Vec<_> = ready.iter().filter(admitted).copied().collect();
    if cluster.is_empty() {
        cluster.clone_from(&fallback);
    }

    let is_local = |(_, e): &&(SocketAddr, &Endpoint)| e.node.is_some() && e.node == node.name;
    let mut local: Vec<_> = ready.iter().filter(is_local).copied().collect();
    if local.is_empty() {
        local = fallback.iter().filter(is_local).copied().collect();
    }
    Candidates {
        cluster,
        local,
        any: !ready.is_empty() || !fallback.is_empty(),
        topology,
    }
}

fn merge<'a>(endpoints: &[(SocketAddr, &'a Endpoint)]) -> Vec<(SocketAddr, &'a Endpoint)> {
    let mut by_addr: BTreeMap<SocketAddr, &Endpoint> = BTreeMap::new();
    for &(addr, endpoint) in endpoints {
        let kept = by_addr.entry(addr).or_insert(endpoint);
        if kept.terminating && !endpoint.terminating {
            *kept = endpoint;
        }
    }
    by_addr.into_iter().collect()
}

fn topology_mode(ready: &[(SocketAddr, &Endpoint)], node: &NodeView) -> Topology {
    if ready.is_empty() {
        return Topology::None;
    }
    let names_node =
        |name: &NodeName, e: &Endpoint| e.hints.nodes.iter().any(|hint| **hint == *name.as_str());
    if let Some(name) = &node.name
        && ready.iter().all(|(_, e)| !e.hints.nodes.is_empty())
        && ready.iter().any(|(_, e)| names_node(name, e))
    {
        return Topology::SameNode;
    }
    if let Some(zone) = &node.zone
        && ready.iter().all(|(_, e)| !e.hints.zones.is_empty())
        && ready.iter().any(|(_, e)| e.hints.zones.contains(zone))
    {
        return Topology::SameZone;
    }
    Topology::None
}

fn admits(topology: Topology, endpoint: &Endpoint, node: &NodeView) -> bool {
    match topology {
        Topology::None => true,
        Topology::SameNode => node.name.as_ref().is_some_and(|name| {
            endpoint
                .hints
                .nodes
                .iter()
                .any(|hint| **hint == *name.as_str())
        }),
        Topology::SameZone => node
            .zone
            .as_ref()
            .is_some_and(|zone| endpoint.hints.zones.contains(zone)),
    }
}
