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
    facts: HashMap<ServiceName, Facts>,
    slices: HashMap<SliceKey, Arc<EndpointSlice>>,
    pods: HashMap<(Arc<str>, Arc<str>), Arc<Pod>>,
    // The order in which Services appeared.
    next_age: u64,
    claims: Claims,
    dirty: BTreeSet<ServiceName>,
    // Served by this process itself.
    reserved: BTreeSet<SocketAddr>,
}

// A Service and its slices, whichever came first; kept while there is either.
#[derive(Default)]
struct Facts {
    // With its age: one that went and came back is young again.
    service: Option<(u64, Arc<Service>)>,
    // By name; a list because nearly all have one, and the first node of a tree has room for eleven.
    slices: Vec<Arc<EndpointSlice>>,
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
            facts: HashMap::new(),
            slices: HashMap::new(),
            pods: HashMap::new(),
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
                let facts = self.facts.entry(name.clone()).or_default();
                let age = facts.service.take().map_or_else(
                    || {
                        self.next_age += 1;
                        self.next_age
                    },
                    |(age, _)| age,
                );
                facts.service = Some((age, service));
                self.dirty.insert(name);
            }
            Event::ServiceDeleted(name) => {
                self.change_facts(&name, |facts| facts.service = None);
                self.dirty.insert(name);
            }
            Event::SliceApplied(slice) => {
                self.forget_slice(&slice.key);
                let slices = &mut self.facts.entry(slice.service.clone()).or_default().slices;
                let place = slices.partition_point(|other| other.key < slice.key);
                slices.reserve_exact(1);
                slices.insert(place, slice.clone());
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
            let services = self
                .facts
                .iter()
                .filter(|(_, facts)| facts.service.is_some());
            self.dirty.extend(services.map(|(name, _)| name.clone()));
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
            .flat_map(|entry| entry.routes.iter().map(|route| (&**entry, &route.key)))
            .flat_map(|(entry, key)| self.claims.conflicts(key, &claims_of(entry, key)))
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
        self.change_facts(&slice.service, |facts| {
            facts.slices.retain(|other| other.key != *key);
        });
    }

    fn change_facts(&mut self, name: &ServiceName, change: impl FnOnce(&mut Facts)) {
        let Some(facts) = self.facts.get_mut(name) else {
            return;
        };
        change(facts);
        if facts.service.is_none() && facts.slices.is_empty() {
            self.facts.remove(name);
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
        let facts = self.facts.get(name);
        let service = facts.and_then(|facts| facts.service.clone());
        let (age, service) = service.unzip();
        let slices = facts.map_or_else(Vec::new, |facts| facts.slices.clone());
        let old_routes = before.as_deref().map_or(&[][..], |entry| &entry.routes);
        let ports = service.as_deref().map_or_else(Vec::new, proxied_ports);
        let load = before.as_deref().map(|entry| entry.load.clone());
        let load = load.unwrap_or_default();

        // Claims before routes, all of them: within a Service a renamed port passes its addresses on.
        let age = age.unwrap_or(u64::MAX);
        let claimed = |key: &ServicePortKey| match &before {
            Some(entry) => claims_of(entry, key),
            None => BTreeSet::new(),
        };
        for route in old_routes {
            if ports.iter().all(|(key, _)| *key != route.key) {
                self.claim(&route.key, age, &claimed(&route.key), &BTreeSet::new());
            }
        }
        let mut routes = Vec::new();
        if let Some(service) = &service {
            for (key, port) in &ports {
                let wanted = wanted_claims(service, port, key.family);
                self.claim(key, age, &claimed(key), &wanted);
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
    fn claim(
        &mut self,
        key: &ServicePortKey,
        age: u64,
        before: &BTreeSet<Claim>,
        wanted: &BTreeSet<Claim>,
    ) {
        let affected = self.claims.set(key, age, before, wanted);
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

// What a service port claims by what the table has of its Service.
fn claims_of(entry: &ServiceEntry, key: &ServicePortKey) -> BTreeSet<Claim> {
    let port = entry.routes.iter().any(|route| route.key == *key);
    let port = port.then(|| entry.port(key)).flatten();
    port.map_or_else(BTreeSet::new, |port| {
        wanted_claims(&entry.service, port, key.family)
    })
}

fn wanted_claims(service: &Service, port: &ServicePort, family: Family) -> BTreeSet<Claim> {
    let frontends = wanted_frontends(service, port, family).into_iter();
    let node_port = port.node_port.map(Port::number);
    frontends
        .map(|(frontend, _)| Claim::Frontend(frontend))
        .chain(node_port.map(|number| Claim::NodePort(family, port.protocol, number)))
        .collect()
}
