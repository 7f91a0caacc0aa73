//! Builds the routing table from events, a changed Service at a time. Owned by the reconciler.
//!
//! Events mark Services dirty; [`TableBuilder::build`] recomputes the routes of those only and shares everything else
//! with the table before. Balancers and live figures are carried over from route to route. The table depends on the
//! facts alone, never on the way they came in, save that of two Services that claim one address the older one has it.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use crate::model::{
    Algorithm, EndpointSlice, Event, Family, Frontend, OutlierEjection, Pod, Port, Service,
    ServiceName, ServicePort, ServicePortKey, SliceKey,
};

use super::backends::{Known, endpoints_of, shuffled_backends};
use super::claims::{Claim, Claims};
use super::eligible::eligible;
use super::frontends::{is_proxied, source_ranges, wanted_frontends};
use super::{
    Backend, BalancerFactory, Conflict, HeldBack, NodeView, Route, RoutingTable, ServiceEntry,
    ServiceLoad,
};

/// The facts behind the table, and what has changed since the last build.
pub struct TableBuilder {
    table: RoutingTable,
    balancers: Arc<dyn BalancerFactory>,
    default_algorithm: Algorithm,
    default_ejection: OutlierEjection,
    services: HashMap<ServiceName, Arc<Service>>,
    slices: HashMap<SliceKey, Arc<EndpointSlice>>,
    // In order; a list because nearly all have one, and the first node of a tree has room for eleven.
    slices_of: HashMap<ServiceName, Vec<SliceKey>>,
    pods: HashMap<(Arc<str>, Arc<str>), Arc<Pod>>,
    // The order in which Services appeared; one that went and came back is young again.
    ages: HashMap<ServiceName, u64>,
    next_age: u64,
    claims: Claims,
    dirty: BTreeSet<ServiceName>,
    // Served by this process itself.
    reserved: BTreeSet<SocketAddr>,
}

/// A table and what became different in it.
#[derive(Debug)]
pub struct Built {
    /// The new table.
    pub table: Arc<RoutingTable>,
    /// Services whose entry was rebuilt or removed, by name.
    pub changed: Vec<ServiceName>,
    /// Addresses that one of these asks for and an older Service has.
    pub conflicts: Vec<Conflict>,
}

impl TableBuilder {
    /// An empty builder; `default_algorithm` serves where a Service names none.
    pub fn new(balancers: Arc<dyn BalancerFactory>, default_algorithm: Algorithm) -> Self {
        Self {
            table: RoutingTable::default(),
            balancers,
            default_algorithm,
            default_ejection: OutlierEjection::default(),
            services: HashMap::new(),
            slices: HashMap::new(),
            slices_of: HashMap::new(),
            pods: HashMap::new(),
            ages: HashMap::new(),
            next_age: 0,
            claims: Claims::default(),
            dirty: BTreeSet::new(),
            reserved: BTreeSet::new(),
        }
    }

    /// When failing backends are ejected, where a Service does not say.
    #[must_use]
    pub fn ejecting(mut self, rule: OutlierEjection) -> Self {
        self.default_ejection = rule;
        self
    }

    /// Leaves these addresses to servers of this process, whatever Service has them: they are no frontends.
    #[must_use]
    pub fn reserving(mut self, addresses: impl IntoIterator<Item = SocketAddr>) -> Self {
        self.reserved.extend(addresses);
        self
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
                let keys = self.slices_of.entry(slice.service.clone()).or_default();
                let place = keys.partition_point(|other| *other < slice.key);
                keys.reserve_exact(1);
                keys.insert(place, slice.key.clone());
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
                    self.table.pods.add(*ip, pod.clone());
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
        // A Service that lets an address go makes the next claimant dirty in turn; ages decide, so this ends.
        while let Some(name) = self.dirty.pop_first() {
            self.rebuild(&name);
            changed.insert(name);
        }
        let conflicts = changed
            .iter()
            .filter_map(|name| self.table.services.get(name))
            .flat_map(|entry| &entry.routes)
            .flat_map(|route| self.claims.conflicts(&route.key))
            .collect();
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
            keys.retain(|other| other != key);
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
            self.table
                .pods
                .remove(*ip, |other| Arc::ptr_eq(other, &pod));
        }
    }

    fn rebuild(&mut self, name: &ServiceName) {
        let before = self.table.services.get(name).cloned();
        let service = self.services.get(name).cloned();
        let slices: Vec<Arc<EndpointSlice>> = self
            .slices_of
            .get(name)
            .into_iter()
            .flatten()
            .filter_map(|key| self.slices.get(key).cloned())
            .collect();
        let old_routes = before.as_deref().map_or(&[][..], |entry| &entry.routes);
        let ports = service.as_deref().map_or_else(Vec::new, proxied_ports);
        let load = before.as_deref().map(|entry| entry.load.clone());
        let load = load.unwrap_or_default();

        // Claims before routes, all of them: within a Service a renamed port passes its addresses on.
        for route in old_routes {
            if ports.iter().all(|(key, _)| *key != route.key) {
                self.claim(&route.key, BTreeSet::new());
            }
        }
        let mut routes = Vec::new();
        if let Some(service) = &service {
            for (key, port) in &ports {
                self.claim(key, wanted_claims(service, port, key.family));
            }
            for (key, port) in ports {
                routes.push(self.make_route(service, port, key, &slices, &load));
            }
        }
        let entry = service.map(|service| ServiceEntry {
            service,
            slices,
            routes,
            load,
        });
        self.table.replace(name, entry);
    }

    // Others that gain or lose an address by this are rebuilt too; the routes of this Service are still to be made.
    fn claim(&mut self, key: &ServicePortKey, wanted: BTreeSet<Claim>) {
        let age = self.ages.get(&key.service).copied().unwrap_or(u64::MAX);
        let affected = self.claims.set(key, age, wanted);
        let others = affected.into_iter().filter(|name| *name != key.service);
        self.dirty.extend(others);
    }

    fn make_route(
        &mut self,
        service: &Service,
        port: &ServicePort,
        key: ServicePortKey,
        slices: &[Arc<EndpointSlice>],
        load: &Arc<ServiceLoad>,
    ) -> Arc<Route> {
        let node = &self.table.node;
        let endpoints = endpoints_of(port, key.family, slices);
        let candidates = eligible(&endpoints, node);
        let before = self.table.routes.get(&key);
        let known = Known::of(&endpoints, before.map(|before| &before.known));

        let algorithm = service.knobs.algorithm.unwrap_or(self.default_algorithm);
        let balancer = match before {
            Some(before)
                if before.algorithm == algorithm && before.affinity == service.affinity =>
            {
                before.balancer.clone()
            }
            Some(_) | None => self.balancers.make(algorithm, service.affinity),
        };
        let held_back = match before {
            Some(before) => before.held_back.clone(),
            None => Arc::default(),
        };
        held_back.set_rule(
            service
                .knobs
                .outlier_ejection
                .unwrap_or(self.default_ejection),
        );
        let sets = [&candidates.cluster, &candidates.local]
            .map(|candidates| shuffled_backends(&key, node, candidates, &known, &held_back));
        let [cluster, local] = sets;
        match (before, service.knobs.slow_start) {
            (Some(before), Some(_)) => warm_up(before, &cluster, &local, &held_back),
            (None, _) | (_, None) => held_back.count_warming([].into_iter()),
        }
        let holds = |claim| self.claims.holds(&key, claim);
        let mut frontends: Vec<_> = wanted_frontends(service, port, key.family)
            .into_iter()
            .filter(|(frontend, _)| holds(Claim::Frontend(*frontend)))
            .filter(|(frontend, _)| {
                let address = SocketAddr::new(frontend.ip, frontend.port);
                !self.reserved.contains(&address)
            })
            .collect();
        frontends.shrink_to_fit();
        let node_port = port
            .node_port
            .map(Port::number)
            .filter(|number| holds(Claim::NodePort(key.family, key.protocol, *number)));
        let route = Route {
            port: port.port.number(),
            cluster,
            local,
            known,
            any_endpoints: candidates.any,
            internal_policy: service.internal_policy,
            external_policy: service.external_policy,
            algorithm,
            affinity: service.affinity,
            knobs: service.knobs,
            frontends,
            node_port,
            source_ranges: source_ranges(service, key.family),
            balancer,
            held_back,
            load: load.clone(),
            key,
        };
        Arc::new(route)
    }
}

// Backends that join others which served before them warm up; where nobody served, there is nobody to spare them.
fn warm_up(before: &Route, cluster: &[Arc<Backend>], local: &[Arc<Backend>], held_back: &HeldBack) {
    let served = |backend: &Backend| {
        let mut all = before.cluster.iter().chain(&before.local);
        all.any(|other| other.addr == backend.addr)
    };
    let all = || {
        let only_local = local.iter().filter(|backend| {
            let mut others = cluster.iter();
            others.all(|other| other.addr != backend.addr)
        });
        cluster.iter().chain(only_local)
    };
    if all().any(|backend| served(backend)) {
        for newcomer in all().filter(|backend| !served(backend)) {
            newcomer.join();
        }
    }
    held_back.count_warming(all());
}

// The service ports of a Service in order, IPv4 before IPv6; none if it is not proxied.
fn proxied_ports(service: &Service) -> Vec<(ServicePortKey, &ServicePort)> {
    let mut found = Vec::new();
    if !is_proxied(service) {
        return found;
    }
    for port in &service.ports {
        for family in Family::BOTH {
            if service.cluster_ip(family).is_some() {
                let key = ServicePortKey {
                    service: service.name.clone(),
                    port: port.name.clone(),
                    protocol: port.protocol,
                    family,
                };
                found.push((key, port));
            }
        }
    }
    found
}

fn wanted_claims(service: &Service, port: &ServicePort, family: Family) -> BTreeSet<Claim> {
    let frontends = wanted_frontends(service, port, family).into_iter();
    let node_port = port.node_port.map(Port::number);
    frontends
        .map(|(frontend, _)| Claim::Frontend(frontend))
        .chain(node_port.map(|number| Claim::NodePort(family, port.protocol, number)))
        .collect()
}
