//! The routing table: every lookup that flows, DNS and the admin views make. Immutable; owned by whoever holds the
//! pointer, made by `TableBuilder`, published through [`Published`].

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use rpds::HashTrieMapSync;

use crate::model::{
    Endpoint, EndpointSlice, Family, Frontend, Pod, Protocol, Service, ServiceName, ServicePort,
    ServicePortKey,
};

use super::backends::endpoints_of;
use super::by_address::ByAddress;
use super::{FrontendKind, NodeView, Route, ServiceLoad};

/// All routes and names at one moment. Cloning shares everything.
#[derive(Clone, Debug, Default)]
pub struct RoutingTable {
    /// Grows by one with every published table.
    pub generation: u64,
    /// The sources have told everything they had at start; before, a missing name is not known to be missing.
    pub synced: bool,
    /// The node as routing sees it.
    pub node: Arc<NodeView>,
    pub(super) services: HashTrieMapSync<ServiceName, Arc<ServiceEntry>>,
    pub(super) routes: HashTrieMapSync<ServicePortKey, Arc<Route>>,
    pub(super) frontends: HashTrieMapSync<Frontend, (FrontendKind, Arc<Route>)>,
    pub(super) node_ports: HashTrieMapSync<(Family, Protocol, u16), Arc<Route>>,
    pub(super) owners: ByAddress<Arc<ServiceName>>,
    pub(super) namespaces: HashTrieMapSync<Arc<str>, ()>,
    pub(super) pods: ByAddress<Arc<Pod>>,
    pub(super) moved: HashTrieMapSync<Frontend, u16>,
}

/// A Service with its slices: what DNS and the views read.
#[derive(Debug)]
pub struct ServiceEntry {
    /// The Service.
    pub service: Arc<Service>,
    /// Its slices, those with the headless label included, by name.
    pub slices: Vec<Arc<EndpointSlice>>,
    /// Its routes: service ports in order, IPv4 before IPv6. Empty if it is not proxied.
    pub routes: Vec<Arc<Route>>,
    /// Its TCP connections; the same object as long as the Service exists.
    pub load: Arc<ServiceLoad>,
}

impl ServiceEntry {
    /// Its endpoints that count, ready or not, by address: those that some service port has, or all that DNS could name
    /// where nothing is proxied. True for those that are ready.
    pub fn endpoints(&self) -> BTreeMap<IpAddr, bool> {
        let mut found = BTreeMap::new();
        let mut add = |endpoint: &Endpoint| {
            if let Some(ip) = endpoint.addresses.first() {
                *found.entry(*ip).or_default() |= endpoint.ready;
            }
        };
        if self.routes.is_empty() {
            let endpoints = self.slices.iter().flat_map(|slice| &slice.endpoints);
            endpoints.for_each(add);
            return found;
        }
        for route in &self.routes {
            let endpoints = self.endpoints_of(&route.key);
            endpoints.iter().for_each(|(_, endpoint)| add(endpoint));
        }
        found
    }

    /// The port that a key names.
    pub(super) fn port(&self, key: &ServicePortKey) -> Option<&ServicePort> {
        let mut ports = self.service.ports.iter();
        ports.find(|port| port.name == key.port && port.protocol == key.protocol)
    }

    /// Every endpoint of one of its service ports, with its address there.
    pub(super) fn endpoints_of(&self, key: &ServicePortKey) -> Vec<(SocketAddr, &Endpoint)> {
        let endpoints = |port| endpoints_of(port, key.family, &self.slices);
        self.port(key).map(endpoints).unwrap_or_default()
    }
}

/// Where a captured flow wanted to go.
#[derive(Clone, Debug)]
pub struct Destination {
    /// What the address is to the Service.
    pub kind: FrontendKind,
    /// The service port that owns it.
    pub route: Arc<Route>,
}

impl RoutingTable {
    /// The service port behind an address. An exact address wins over a node port of the same number.
    pub fn destination(&self, frontend: &Frontend) -> Option<Destination> {
        if let Some((kind, route)) = self.frontends.get(frontend) {
            return Some(Destination {
                kind: *kind,
                route: route.clone(),
            });
        }
        let route =
            self.node_ports
                .get(&(Family::of(frontend.ip), frontend.protocol, frontend.port))?;
        self.node
            .answers_node_ports(frontend.ip)
            .then(|| Destination {
                kind: FrontendKind::NodePort,
                route: route.clone(),
            })
    }

    /// The route of a service port.
    pub fn route(&self, key: &ServicePortKey) -> Option<&Arc<Route>> {
        self.routes.get(key)
    }

    /// All routes, in no order.
    pub fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.routes.values()
    }

    /// A Service, proxied or not.
    pub fn service(&self, name: &ServiceName) -> Option<&Arc<ServiceEntry>> {
        self.services.get(name)
    }

    /// All Services, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<ServiceEntry>> {
        self.services.values()
    }

    /// Services that own the address, as cluster IP or by one of their endpoints (ready or not).
    pub fn owners_of(&self, ip: IpAddr) -> &[Arc<ServiceName>] {
        self.owners.at(ip)
    }

    /// Whether a namespace exists.
    pub fn has_namespace(&self, name: &str) -> bool {
        self.namespaces.contains_key(name)
    }

    /// Pods that have the address, in any namespace.
    pub fn pods_at(&self, ip: IpAddr) -> &[Arc<Pod>] {
        self.pods.at(ip)
    }

    /// The port that really serves a frontend: its own, unless the loopback mode had to move it.
    pub fn served_port(&self, frontend: &Frontend) -> u16 {
        self.moved.get(frontend).copied().unwrap_or(frontend.port)
    }
}

/// The place where the newest table is found. Cheap to clone; readers never wait.
#[derive(Clone, Debug, Default)]
pub struct Published(Arc<ArcSwap<RoutingTable>>);

impl Published {
    /// The newest table, for as long as the guard is held.
    pub fn load(&self) -> Guard<Arc<RoutingTable>> {
        self.0.load()
    }

    /// The newest table, to keep.
    pub fn load_full(&self) -> Arc<RoutingTable> {
        self.0.load_full()
    }

    /// Makes `table` the newest. Only the reconciler calls this.
    pub fn publish(&self, table: Arc<RoutingTable>) {
        self.0.store(table);
    }
}
