//! What becomes of every endpoint of a service port, and why: the reasoning behind `eligible` and `explain`.
//!
//! Source: KEP-1669 (terminating fallback), KEP-2433 and KEP-3015 (hints); kube-proxy `CategorizeEndpoints`.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::model::{Endpoint, NodeName};

use super::NodeView;

/// How topology hints narrowed the cluster set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Topology {
    /// Not at all.
    None,
    /// To endpoints hinted to this node.
    SameNode,
    /// To endpoints hinted to this zone.
    SameZone,
}

/// Every endpoint of a service port with what became of it.
#[derive(Debug)]
pub(super) struct Judged<'a> {
    /// By address; entries whose address another one has won come last.
    pub(super) endpoints: Vec<Judgement<'a>>,
    /// How hints narrowed the cluster set.
    pub(super) topology: Topology,
}

/// One endpoint and what became of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Judgement<'a> {
    /// Its address within the service port.
    pub(super) addr: SocketAddr,
    /// What its slice says of it.
    pub(super) endpoint: &'a Endpoint,
    /// Its standing in the cluster set.
    pub(super) cluster: Standing,
    /// Its standing in the local set.
    pub(super) local: Standing,
}

/// Whether an endpoint is a candidate of a set, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// A candidate: it is ready.
    Ready,
    /// A candidate although it terminates: it still serves, and nothing that the set could have is ready.
    Fallback,
    /// Left out: not ready.
    NotReady,
    /// Left out: it terminates and no longer serves.
    NotServing,
    /// Left out: it terminates, and others are ready.
    Terminating,
    /// Left out of the local set: on another node, or on none that is known.
    OtherNode,
    /// Left out of the cluster set: hinted to other nodes or zones.
    OtherHint,
    /// Left out: another entry has the same address and counts.
    Duplicate,
}

impl Standing {
    /// Whether it may be picked.
    pub fn is_candidate(self) -> bool {
        match self {
            Self::Ready | Self::Fallback => true,
            Self::NotReady
            | Self::NotServing
            | Self::Terminating
            | Self::OtherNode
            | Self::OtherHint
            | Self::Duplicate => false,
        }
    }
}

/// Judges every endpoint.
///
/// Ready endpoints win; if none is ready, those that still serve while terminating are used, so a rolling update never
/// falls to zero. That fallback is decided for each set on its own. Hints narrow the cluster set only, and only among
/// ready endpoints. One address counts once: an entry that does not terminate wins over one that does, then a ready one
/// over one that is not, so that nothing depends on the order of slices.
pub(super) fn judge<'a>(endpoints: &[(SocketAddr, &'a Endpoint)], node: &NodeView) -> Judged<'a> {
    let (merged, duplicates) = merge(endpoints);
    let ready: Vec<_> = merged.iter().copied().filter(|(_, e)| e.ready).collect();
    let topology = topology_mode(&ready, node);
    let is_local = |e: &Endpoint| e.node.is_some() && e.node == node.name;
    let is_ready_here = ready.iter().any(|(_, e)| is_local(e));

    let cluster = |e: &Endpoint| match Condition::of(e) {
        Condition::Ready if admits(topology, e, node) => Standing::Ready,
        Condition::Ready => Standing::OtherHint,
        Condition::Draining if ready.is_empty() => Standing::Fallback,
        Condition::Draining => Standing::Terminating,
        Condition::NotReady => Standing::NotReady,
        Condition::NotServing => Standing::NotServing,
    };
    let local = |e: &Endpoint| match Condition::of(e) {
        Condition::NotReady => Standing::NotReady,
        Condition::NotServing => Standing::NotServing,
        Condition::Ready | Condition::Draining if !is_local(e) => Standing::OtherNode,
        Condition::Ready => Standing::Ready,
        Condition::Draining if is_ready_here => Standing::Terminating,
        Condition::Draining => Standing::Fallback,
    };
    let kept = merged.into_iter().map(|(addr, endpoint)| Judgement {
        addr,
        endpoint,
        cluster: cluster(endpoint),
        local: local(endpoint),
    });
    let dropped = duplicates.into_iter().map(|(addr, endpoint)| Judgement {
        addr,
        endpoint,
        cluster: Standing::Duplicate,
        local: Standing::Duplicate,
    });
    Judged {
        endpoints: kept.chain(dropped).collect(),
        topology,
    }
}

// What the conditions of an endpoint alone make of it.
enum Condition {
    Ready,
    // Terminating, and still serving.
    Draining,
    NotServing,
    NotReady,
}

impl Condition {
    fn of(endpoint: &Endpoint) -> Self {
        match (endpoint.ready, endpoint.terminating, endpoint.serving) {
            (true, _, _) => Self::Ready,
            (false, true, true) => Self::Draining,
            (false, true, false) => Self::NotServing,
            (false, false, _) => Self::NotReady,
        }
    }
}

type Addressed<'a> = Vec<(SocketAddr, &'a Endpoint)>;

// One entry per address, by address; and those that lose their address to another.
fn merge<'a>(endpoints: &[(SocketAddr, &'a Endpoint)]) -> (Addressed<'a>, Addressed<'a>) {
    let mut by_addr: BTreeMap<SocketAddr, &Endpoint> = BTreeMap::new();
    let mut duplicates = Vec::new();
    let worth = |e: &Endpoint| (!e.terminating, e.ready, e.serving);
    for &(addr, endpoint) in endpoints {
        match by_addr.entry(addr) {
            Entry::Vacant(free) => {
                free.insert(endpoint);
            }
            Entry::Occupied(mut kept) if worth(endpoint) > worth(kept.get()) => {
                duplicates.push((addr, kept.insert(endpoint)));
            }
            Entry::Occupied(_) => duplicates.push((addr, endpoint)),
        }
    }
    (by_addr.into_iter().collect(), duplicates)
}

fn topology_mode(ready: &[(SocketAddr, &Endpoint)], node: &NodeView) -> Topology {
    if ready.is_empty() {
        return Topology::None;
    }
    let names_node = |name: &NodeName, e: &Endpoint| {
        e.hinted_nodes().iter().any(|hint| **hint == *name.as_str())
    };
    if let Some(name) = &node.name
        && ready.iter().all(|(_, e)| !e.hinted_nodes().is_empty())
        && ready.iter().any(|(_, e)| names_node(name, e))
    {
        return Topology::SameNode;
    }
    if let Some(zone) = &node.zone
        && ready.iter().all(|(_, e)| !e.hinted_zones().is_empty())
        && ready.iter().any(|(_, e)| e.hinted_zones().contains(zone))
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
                .hinted_nodes()
                .iter()
                .any(|hint| **hint == *name.as_str())
        }),
        Topology::SameZone => node
            .zone
            .as_ref()
            .is_some_and(|zone| endpoint.hinted_zones().contains(zone)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::{EndpointWith, ep, node_name};

    fn standings(endpoints: &[Endpoint]) -> Vec<(Standing, Standing)> {
        let here = NodeView {
            name: Some(node_name("here")),
            zone: Some("z1".into()),
            ..NodeView::default()
        };
        let endpoints: Vec<_> = endpoints
            .iter()
            .map(|e| (SocketAddr::new(e.addresses[0], 80), e))
            .collect();
        let judged = judge(&endpoints, &here).endpoints.into_iter();
        judged.map(|j| (j.cluster, j.local)).collect()
    }

    #[test]
    fn every_endpoint_is_told_why() {
        use Standing::*;
        let endpoints = [
            ep("10.1.0.1").on("here").for_zones(&["z2"]),
            ep("10.1.0.2").for_zones(&["z1"]),
            ep("10.1.0.2").terminating(),
            ep("10.1.0.3").terminating().on("here"),
            ep("10.1.0.4").unready().on("here"),
            ep("10.1.0.5").terminating().serving(false),
        ];
        assert_eq!(
            standings(&endpoints),
            [
                (OtherHint, Ready),
                (Ready, OtherNode),
                (Terminating, Terminating),
                (NotReady, NotReady),
                (NotServing, NotServing),
                (Duplicate, Duplicate),
            ]
        );
        let fallback = [
            ep("10.1.0.1").terminating().on("here"),
            ep("10.1.0.2").terminating(),
        ];
        assert_eq!(
            standings(&fallback),
            [(Fallback, Fallback), (Fallback, OtherNode)]
        );
    }
}
