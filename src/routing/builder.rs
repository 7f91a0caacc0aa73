//! Builds the routing table from events, a changed Service at a time. Owned by the reconciler.
//!
//! Events mark Services dirty; [`TableBuilder::build`] recomputes the routes of those only and shares everything else
//! with the table before. Balancers and live figures are carried over from route to route.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::model::{
    Algorithm, Endpoint, EndpointSlice, Event, Family, Frontend, NodeName, Pod, Protocol, Service,
    ServiceName, ServicePort, ServicePortKey, SliceKey,
};

use super::eligible::{Candidates, eligible};
use super::frontends::{is_proxied, wanted_frontends};
use super::{Backend, BalancerFactory, Live, NodeView, Route, RoutingTable, ServiceEntry};

/// The facts behind the table, and what has changed since the last build.
pub struct TableBuilder {
    table: RoutingTable,
    balancers: Arc<dyn BalancerFactory>,
    default_algorithm: Algorithm,
    services: HashMap<ServiceName, Arc<Service>>,
    slices: HashMap<SliceKey, Arc<EndpointSlice>>,
    slices_of: HashMap<ServiceName, BTreeSet<SliceKey>>,
    pods: HashMap<(Arc<str>, Arc<str>), Arc<Pod>>,
    ages: HashMap<ServiceName, u64>,
    next_age: u64,
    claims: HashMap<Claim, BTreeSet<(u64, ServicePortKey)>>,
    claims_of: HashMap<ServicePortKey, BTreeSet<Claim>>,
    dirty: BTreeSet<ServiceName>,
}

/// A table and what became different in it.
#[derive(Debug)]
pub struct Built {
    /// The new table.
    pub table: Arc<RoutingTable>,
    /// Services whose entry was rebuilt or removed, by name.
    pub changed: Vec<ServiceName>,
    /// Addresses that a rebuilt Service asks for and an older one has.
    pub conflicts: Vec<Conflict>,
}

/// Two Services claim one address; the older one keeps it until it lets go.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{address} is held by {owner}; {loser} takes over when it goes")]
pub struct Conflict {
    /// The address or node port, as users write it.
    pub address: String,
    /// Who has it.
    pub owner: ServicePortKey,
    /// Who waits for it.
    pub loser: ServicePortKey,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Claim {
    Frontend(Frontend),
    NodePort(Family, Protocol, u16),
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frontend(frontend) => frontend.fmt(f),
            Self::NodePort(family, protocol, port) => {
                write!(f, "node port {port}/{protocol} ({family})")
            }
        }
    }
}

impl TableBuilder {
    /// An empty builder; `default_algorithm` serves where a Service names none.
    pub fn new(balancers: Arc<dyn BalancerFactory>, default_algorithm: Algorithm) -> Self {
        Self {
            table: RoutingTable::default(),
            balancers,
            default_algorithm,
            services: HashMap::new(),
            slices: HashMap::new(),
            slices_of: HashMap::new(),
            pods: HashMap::new(),
            ages: HashMap::new(),
            next_age: 0,
            claims: HashMap::new(),
            claims_of: HashMap::new(),
            dirty: BTreeSet::new(),
        }
    }

    /// Takes note of one event. Order between a Service and its slices does not matter.
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::ServiceApplied(service) => {
                let name = service.name.clone();
                if !self.ages.contains_key(&name) {
                    self.ages.insert(name.clone(), self.next_age);
                    self.next_age += 1;
                }
                self.services.insert(name.clone(), service);
                self.dirty.insert(name);
            }
            Event::ServiceDeleted(name) => {
                self.ages.remove(&name);
                self.services.remove(&name);
                self.dirty.insert(name);
            }
            Event::SliceApplied(slice) => {
                self.forget_slice(&slice.key);
                self.slices_of
                    .entry(slice.service.clone())
                    .or_default()
                    .insert(slice.key.clone());
                self.dirty.insert(slice.service.clone());
                self.slices.insert(slice.key.clone(), slice);
            }
            Event::SliceDeleted(key) => self.forget_slice(&key),
            // The node reaches routing through `set_node`, joined with what the interfaces say.
            Event::NodeApplied(_) | Event::NodeDeleted => {}
            Event::PodApplied(pod) => {
                let key = (pod.namespace.clone(), pod.name.clone());
                self.forget_pod(&key);
                for ip in &pod.ips {
                    let mut at: Vec<Arc<Pod>> = self.table.pods_at(*ip).to_vec();
                    at.push(pod.clone());
                    self.table.pods.insert_mut(*ip, at.into());
                }
                self.pods.insert(key, pod);
            }
            Event::PodDeleted(namespace, name) => self.forget_pod(&(namespace, name)),
            Event::NamespaceApplied(name) => self.table.namespaces.insert_mut(name, ()),
            Event::NamespaceDeleted(name) => {
                self.table.namespaces.remove_mut(&name);
            }
        }
    }

    /// Sets what is known of the node. A new name or zone re-evaluates every Service.
    pub fn set_node(&mut self, node: NodeView) {
        let before = &self.table.node;
        if before.name != node.name || before.zone != node.zone {
            self.dirty.extend(self.services.keys().cloned());
        }
        self.table.node = Arc::new(node);
    }

    /// Says that the sources have told everything they had at start.
    pub fn set_synced(&mut self) {
        self.table.synced = true;
    }

    /// Whether [`Self::set_synced`] has been called.
    pub fn is_synced(&self) -> bool {
        self.table.synced
    }

    /// Records the port at which a frontend is really served; its own port ends a move.
    pub fn set_served_port(&mut self, frontend: Frontend, port: u16) {
        if port == frontend.port {
            self.table.moved.remove_mut(&frontend);
        } else {
            self.table.moved.insert_mut(frontend, port);
        }
    }

    /// Rebuilds what is dirty. The table's generation grows by one.
    pub fn build(&mut self) -> Built {
        let mut changed = BTreeSet::new();
        let mut conflicts = Vec::new();
        while let Some(name) = self.dirty.pop_first() {
            self.rebuild(&name, &mut conflicts);
            changed.insert(name);
        }
        self.table.generation += 1;
        Built {
            table: Arc::new(self.table.clone()),
            changed: changed.into_iter().collect(),
            conflicts,
        }
    }

    fn forget_slice(&mut self, key: &SliceKey) {
        let Some(slice) = self.slices.remove(key) else {
            return;
        };
        self.dirty.insert(slice.service.clone());
        if let Some(keys) = self.slices_of.get_mut(&slice.service) {
            keys.remove(key);
            if keys.is_empty() {
                self.slices_of.remove(&slice.service);
            }
        }
    }

    fn forget_pod(&mut self, key: &(Arc<str>, Arc<str>)) {
        let Some(pod) = self.pods.remove(key) else {
            return;
        };
        for ip in &pod.ips {
            let rest: Vec<Arc<Pod>> = self
                .table
                .pods_at(*ip)
                .iter()
                .filter(|p| !Arc::ptr_eq(p, &pod))
                .cloned()
                .collect();
            if rest.is_empty() {
                self.table.pods.remove_mut(ip);
            } else {
                self.table.pods.insert_mut(*ip, rest.into());
            }
        }
    }

    fn rebuild(&mut self, name: &ServiceName, conflicts: &mut Vec<Conflict>) {
        let before = self.table.services.get(name).cloned();
        let slices: Vec<Arc<EndpointSlice>> = self
            .slices_of
            .get(name)
            .into_iter()
            .flatten()
            .filter_map(|key| self.slices.get(key).cloned())
            .collect();
        let mut routes = Vec::new();
        if let Some(service) = self
            .services
            .get(name)
            .cloned()
            .filter(|service| is_proxied(service))
        {
            for port in &service.ports {
                for family in Family::BOTH {
                    if service.cluster_ip(family).is_some() {
                        routes.push(self.make_route(&service, port, family, &slices, conflicts));
                    }
                }
            }
        }
        let old_routes = before.as_ref().map_or(&[][..], |entry| &entry.routes);
        self.replace_routes(old_routes, &routes);
        self.replace_owners(
            name,
            before.as_deref(),
            self.services.get(name).cloned().as_deref(),
            &slices,
        );
        match self.services.get(name) {
            Some(service) => {
                let entry = ServiceEntry {
                    service: service.clone(),
                    slices,
                    routes,
                };
                self.table
                    .services
                    .insert_mut(name.clone(), Arc::new(entry));
            }
            None => {
                self.table.services.remove_mut(name);
            }
        }
    }

    fn make_route(
        &mut self,
        service: &Service,
        port: &ServicePort,
        family: Family,
        slices: &[Arc<EndpointSlice>],
        conflicts: &mut Vec<Conflict>,
    ) -> Arc<Route> {
        let key = ServicePortKey {
            service: service.name.clone(),
            port: port.name.clone(),
            protocol: port.protocol,
            family,
        };
        let before = self.table.routes.get(&key).cloned();
        let endpoints = endpoints_of(port, family, slices);
        let candidates = eligible(&endpoints, &self.table.node);
        let (cluster, local) = backends(&key, &candidates, before.as_deref());
        let mut serving: Vec<SocketAddr> = endpoints
            .iter()
            .filter(|(_, e)| e.ready || e.serving)
            .map(|(addr, _)| *addr)
            .collect();
        serving.sort_unstable();
        serving.dedup();

        let algorithm = service.knobs.algorithm.unwrap_or(self.default_algorithm);
        let balancer = match &before {
            Some(route) if route.algorithm == algorithm && route.affinity == service.affinity => {
                route.balancer.clone()
            }
            Some(_) | None => self.balancers.make(algorithm, service.affinity),
        };
        let mut frontends = wanted_frontends(service, port, family);
        let node_port = port.node_port.map(|port| port.number());
        let node_port_claim = node_port.map(|number| Claim::NodePort(family, key.protocol, number));
        let wanted = frontends
            .iter()
            .map(|(frontend, _)| Claim::Frontend(*frontend))
            .chain(node_port_claim)
            .collect();
        let held = self.claim(&key, wanted, conflicts);
        frontends.retain(|(frontend, _)| held.contains(&Claim::Frontend(*frontend)));
        let node_port = node_port
            .filter(|number| held.contains(&Claim::NodePort(family, key.protocol, *number)));
        Arc::new(Route {
            port: port.port.number(),
            cluster,
            local,
            serving,
            any_endpoints: candidates.any,
            internal_policy: service.internal_policy,
            external_policy: service.external_policy,
            algorithm,
            affinity: service.affinity,
            udp_idle_timeout: service.knobs.udp_idle_timeout,
            frontends,
            node_port,
            balancer,
            key,
        })
    }

    // Replaces what `key` claims by `wanted`, in one go; returns those of them that it holds. Claims it no longer makes
    // go to the next in age, whose Service is rebuilt.
    fn claim(
        &mut self,
        key: &ServicePortKey,
        wanted: BTreeSet<Claim>,
        conflicts: &mut Vec<Conflict>,
    ) -> BTreeSet<Claim> {
        let age = self.ages.get(&key.service).copied().unwrap_or(u64::MAX);
        let before = if wanted.is_empty() {
            self.claims_of.remove(key).unwrap_or_default()
        } else {
            self.claims_of
                .insert(key.clone(), wanted.clone())
                .unwrap_or_default()
        };
        for claim in before.difference(&wanted) {
            self.release(*claim, key);
        }
        let mut held = BTreeSet::new();
        for claim in wanted {
            let claimants = self.claims.entry(claim).or_default();
            claimants.retain(|(_, claimant)| claimant != key);
            let displaced = claimants
                .first()
                .filter(|(other, _)| *other > age)
                .map(|(_, owner)| owner.service.clone());
            claimants.insert((age, key.clone()));
            match claimants.first() {
                Some((_, owner)) if owner != key => {
                    conflicts.push(Conflict {
                        address: claim.to_string(),
                        owner: owner.clone(),
                        loser: key.clone(),
                    });
                }
                Some(_) | None => {
                    held.insert(claim);
                }
            }
            self.dirty.extend(displaced);
        }
        held
    }

    // Swaps a Service's routes in the table, gives up claims it no longer makes and wakes who waits for them.
    fn replace_routes(&mut self, before: &[Arc<Route>], after: &[Arc<Route>]) {
        let after_keys: BTreeSet<&ServicePortKey> = after.iter().map(|route| &route.key).collect();
        for route in before {
            for (frontend, _) in &route.frontends {
                if self
                    .table
                    .frontends
                    .get(frontend)
                    .is_some_and(|(_, owner)| owner.key == route.key)
                {
                    self.table.frontends.remove_mut(frontend);
                }
            }
            if let Some(port) = route.node_port {
                let slot = (route.key.family, route.key.protocol, port);
                if self
                    .table
                    .node_ports
                    .get(&slot)
                    .is_some_and(|owner| owner.key == route.key)
                {
                    self.table.node_ports.remove_mut(&slot);
                }
            }
            if !after_keys.contains(&route.key) {
                self.table.routes.remove_mut(&route.key);
                self.claim(&route.key, BTreeSet::new(), &mut Vec::new());
            }
        }
        for route in after {
            for (frontend, kind) in &route.frontends {
                self.table
                    .frontends
                    .insert_mut(*frontend, (*kind, route.clone()));
            }
            if let Some(port) = route.node_port {
                self.table
                    .node_ports
                    .insert_mut((route.key.family, route.key.protocol, port), route.clone());
            }
            self.table
                .routes
                .insert_mut(route.key.clone(), route.clone());
        }
    }

    fn release(&mut self, claim: Claim, key: &ServicePortKey) {
        let Some(claimants) = self.claims.get_mut(&claim) else {
            return;
        };
        claimants.retain(|(_, claimant)| claimant != key);
        match claimants.first() {
            Some((_, next)) => {
                self.dirty.insert(next.service.clone());
            }
            None => {
                self.claims.remove(&claim);
            }
        }
    }

    fn replace_owners(
        &mut self,
        name: &ServiceName,
        before: Option<&ServiceEntry>,
        service: Option<&Service>,
        slices: &[Arc<EndpointSlice>],
    ) {
        let old = before.map_or_else(BTreeSet::new, |entry| {
            addresses_of(&entry.service, &entry.slices)
        });
        let new = service.map_or_else(BTreeSet::new, |service| addresses_of(service, slices));
        for ip in old.difference(&new) {
            let rest: Vec<ServiceName> = self
                .table
                .owners_of(*ip)
                .iter()
                .filter(|owner| *owner != name)
                .cloned()
                .collect();
            if rest.is_empty() {
                self.table.owners.remove_mut(ip);
            } else {
                self.table.owners.insert_mut(*ip, rest.into());
            }
        }
        for ip in new.difference(&old) {
            let mut owners = self.table.owners_of(*ip).to_vec();
            owners.push(name.clone());
            self.table.owners.insert_mut(*ip, owners.into());
        }
    }
}

fn addresses_of(service: &Service, slices: &[Arc<EndpointSlice>]) -> BTreeSet<IpAddr> {
    let endpoints = slices
        .iter()
        .flat_map(|slice| &slice.endpoints)
        .flat_map(|endpoint| &endpoint.addresses);
    service
        .cluster_ips
        .iter()
        .chain(endpoints)
        .copied()
        .collect()
}

// Every endpoint of a service port with its address there: slice ports match by name and protocol, and the number is
// the slice's. Slices with the headless label are for DNS only.
fn endpoints_of<'a>(
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

// The two candidate sets as backends. An address that was there before keeps its live figures, and a set that holds
// the same addresses as before keeps its order; a new set is shuffled anew.
fn backends(
    key: &ServicePortKey,
    candidates: &Candidates<'_>,
    before: Option<&Route>,
) -> (Vec<Arc<Backend>>, Vec<Arc<Backend>>) {
    let known: HashMap<SocketAddr, &Arc<Backend>> = before
        .into_iter()
        .flat_map(|route| route.cluster.iter().chain(&route.local))
        .map(|b| (b.addr, b))
        .collect();
    let mut made: HashMap<SocketAddr, Arc<Backend>> = HashMap::new();
    let mut backend = |(addr, endpoint): &(SocketAddr, &Endpoint)| {
        made.entry(*addr)
            .or_insert_with(|| renew(known.get(addr).copied(), *addr, endpoint))
            .clone()
    };
    let mut set = |wanted: &[(SocketAddr, &Endpoint)], old: &[Arc<Backend>]| {
        let mut fresh: Vec<Arc<Backend>> = wanted.iter().map(&mut backend).collect();
        let position: HashMap<SocketAddr, usize> =
            old.iter().enumerate().map(|(i, b)| (b.addr, i)).collect();
        if position.len() == fresh.len() && fresh.iter().all(|b| position.contains_key(&b.addr)) {
            fresh.sort_by_key(|b| position[&b.addr]);
        } else {
            let salt = fresh.len();
            fresh.sort_by_cached_key(|b| (shuffled(key, b.addr, salt), b.addr));
        }
        fresh
    };
    let cluster = set(
        &candidates.cluster,
        before.map_or(&[], |route| &route.cluster),
    );
    let local = set(&candidates.local, before.map_or(&[], |route| &route.local));
    (cluster, local)
}

fn renew(known: Option<&Arc<Backend>>, addr: SocketAddr, endpoint: &Endpoint) -> Arc<Backend> {
    let same = |b: &&Arc<Backend>| b.node == endpoint.node && b.pod == endpoint.pod;
    if let Some(backend) = known.filter(same) {
        return backend.clone();
    }
    let node: Option<NodeName> = endpoint.node.clone();
    let live = known.map_or_else(|| Arc::new(Live::default()), |backend| backend.live.clone());
    Arc::new(Backend {
        addr,
        node,
        pod: endpoint.pod.clone(),
        live,
    })
}

// A place in the order that differs between service ports, so that Services over the same Pods do not all begin with
// the same one.
fn shuffled(key: &ServicePortKey, addr: SocketAddr, salt: usize) -> u64 {
    let mut hasher = DefaultHasher::new();
    (key, addr, salt).hash(&mut hasher);
    hasher.finish()
}
