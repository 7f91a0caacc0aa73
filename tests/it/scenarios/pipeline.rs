//! From objects to the routing table without a socket: what the reconciler does of it, with a clock and seed of its own.
//!
//! ```text
//!  ControlPlane::apply / delete ─► reconcile ─► convert ─► TableBuilder ─► RoutingTable ─► Rules
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use viaduct::balancers::Algorithms;
use viaduct::capture::plan::Rules;
use viaduct::control::{
    Change, Config, ControlPlane, Kind, Object, ObjectKey, OwnNode, Rejection, Warning,
};
use viaduct::model::{Algorithm, Event, Family, Node, NodeName, ServiceName, SliceKey};
use viaduct::routing::{Conflict, NodePortAddresses, NodeView, RoutingTable, TableBuilder};
use viaduct::sources::convert::{self, Note};

/// The name of the node that every scenario plays on.
pub(super) const NODE: &str = "n1";

/// When every scenario begins; each batch of changes is one second later.
const BEGINNING: Timestamp = Timestamp::constant(1_767_225_600, 0);

/// What a scenario may set up before it begins.
#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) service_cidrs: Vec<IpNet>,
    pub(super) node_ports: RangeInclusive<u16>,
    pub(super) load_balancers: Option<IpNet>,
}

/// What the node is, beside its object.
#[derive(Clone, Debug)]
pub(super) struct Interfaces {
    pub(super) addresses: Vec<IpAddr>,
    pub(super) node_port_addresses: NodePortAddresses,
    pub(super) pod_cidrs: Vec<IpNet>,
}

impl Interfaces {
    /// Those that other hosts can reach, the primary first.
    pub(super) fn reachable(&self) -> Vec<IpAddr> {
        let reachable = self.addresses.iter().filter(|ip| !ip.is_loopback());
        reachable.copied().collect()
    }
}

/// What one object of a batch was told.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) key: ObjectKey,
    pub(super) rejection: Option<Rejection>,
    /// Field and message, of the control plane and of the conversion.
    pub(super) warnings: Vec<(String, String)>,
}

/// A cluster of one node, as the reconciler would run it.
pub(super) struct Pipeline {
    control: ControlPlane,
    builder: TableBuilder,
    interfaces: Interfaces,
    node: Option<Node>,
    /// Objects that routing has heard of.
    known: BTreeSet<ObjectKey>,
    /// Refused because something is taken; tried again after every batch.
    waiting: BTreeMap<ObjectKey, Object>,
    accepted: BTreeMap<ObjectKey, Object>,
    table: Arc<RoutingTable>,
    conflicts: Vec<Conflict>,
    now: Timestamp,
}

impl Pipeline {
    pub(super) fn new(cluster: Cluster, interfaces: Interfaces) -> Result<Self, String> {
        let control = ControlPlane::new(Config {
            service_cidrs: cluster.service_cidrs,
            node_port_range: cluster.node_ports,
            load_balancer_range: cluster.load_balancers,
            pod_cidr: None,
            allow_loopback_endpoints: true,
            own_node: Some(OwnNode {
                name: NODE.to_owned(),
                addresses: interfaces.reachable(),
            }),
            max_endpoints_per_slice: 100,
            seed: 0,
        });
        let mut builder = TableBuilder::new(Arc::new(Algorithms::default()), Algorithm::RoundRobin);
        builder.set_synced();
        let mut pipeline = Self {
            control: control.map_err(|error| error.to_string())?,
            builder,
            interfaces,
            node: None,
            known: BTreeSet::new(),
            waiting: BTreeMap::new(),
            accepted: BTreeMap::new(),
            table: Arc::default(),
            conflicts: Vec::new(),
            now: BEGINNING,
        };
        pipeline.change(Vec::new(), &[]);
        Ok(pipeline)
    }

    /// The newest table.
    pub(super) fn table(&self) -> &RoutingTable {
        &self.table
    }

    /// What the kernel is asked to do for a family, as if every listener were open.
    pub(super) fn rules(&self, family: Family) -> Rules {
        let of_family = |ips: &BTreeSet<IpAddr>| {
            let ips = ips.iter().copied();
            ips.filter(|ip| Family::of(*ip) == family).collect()
        };
        let node = &self.table.node;
        let mut rules = Rules::none(family);
        rules.local_addresses = of_family(&node.local_addresses);
        rules.node_addresses = of_family(&node.node_port_addresses);
        for route in self.table.routes().filter(|r| r.key.family == family) {
            rules.add(route, |_| Some(1));
        }
        rules
    }

    /// Addresses that the last change left in dispute.
    pub(super) fn conflicts(&self) -> &[Conflict] {
        &self.conflicts
    }

    /// The stored objects.
    pub(super) fn control(&self) -> &ControlPlane {
        &self.control
    }

    /// What is known of the node beside its object.
    pub(super) fn interfaces(&self) -> &Interfaces {
        &self.interfaces
    }

    /// What manifests last said of every object, as far as it was accepted.
    pub(super) fn accepted(&self) -> &BTreeMap<ObjectKey, Object> {
        &self.accepted
    }

    /// The interfaces or the flags are different from now on.
    pub(super) fn set_interfaces(&mut self, interfaces: Interfaces) {
        self.interfaces = interfaces;
        self.change(Vec::new(), &[]);
    }

    /// One batch of manifests and removals, as the reconciler takes it: what others refer to comes first, then the
    /// older of two Services, and who waits is tried again at the end.
    pub(super) fn change(&mut self, objects: Vec<Object>, removed: &[ObjectKey]) -> Vec<Answer> {
        self.now += SignedDuration::from_secs(1);
        for key in removed {
            self.waiting.remove(key);
            self.accepted.remove(key);
            self.control.delete(key, self.now);
        }
        let mut objects = objects;
        for object in &objects {
            self.control.announce(object);
        }
        objects.sort_by_key(|object| {
            let key = object.key();
            let age = self.control.accepted_at(&key).unwrap_or(Timestamp::MAX);
            (key.kind, age)
        });
        let mut answers: Vec<Answer> = objects.into_iter().map(|o| self.apply(o)).collect();
        for waiting in std::mem::take(&mut self.waiting).into_values() {
            self.apply(waiting);
        }
        for change in self.control.reconcile(self.now) {
            let (key, notes) = self.tell_routing(&change);
            let notes = notes.into_iter().map(|note| (note.field, note.message));
            if let Some(answer) = answers.iter_mut().find(|answer| answer.key == key) {
                answer.warnings.extend(notes);
            }
        }
        self.view_node();
        let built = self.builder.build();
        self.table = built.table;
        self.conflicts = built.conflicts;
        answers
    }

    fn apply(&mut self, object: Object) -> Answer {
        let key = object.key();
        self.waiting.remove(&key);
        let shown = |warning: Warning| (warning.field, warning.message);
        match self.control.apply(object.clone(), self.now) {
            Ok(warnings) => {
                self.accepted.insert(key.clone(), object);
                Answer {
                    key,
                    rejection: None,
                    warnings: warnings.into_iter().map(shown).collect(),
                }
            }
            Err(rejection) => {
                if rejection.retry {
                    self.waiting.insert(key.clone(), object);
                }
                Answer {
                    key,
                    rejection: Some(rejection),
                    warnings: Vec::new(),
                }
            }
        }
    }

    fn tell_routing(&mut self, change: &Change) -> (ObjectKey, Vec<Note>) {
        let mut notes = Vec::new();
        let (key, event) = match change {
            Change::Applied(object) => (object.key(), self.event_of(object, &mut notes)),
            Change::Deleted(key) => (key.clone(), None),
        };
        match event {
            Some(event) => {
                self.known.insert(key.clone());
                self.tell(event);
            }
            // An object that says nothing any more is gone to routing.
            None if self.known.remove(&key) => {
                if let Some(event) = gone(&key) {
                    self.tell(event);
                }
            }
            None => {}
        }
        (key, notes)
    }

    fn tell(&mut self, event: Event) {
        match event {
            Event::NodeApplied(node) => self.node = Some(node),
            Event::NodeDeleted => self.node = None,
            Event::ServiceApplied(_)
            | Event::ServiceDeleted(_)
            | Event::SliceApplied(_)
            | Event::SliceDeleted(_)
            | Event::PodApplied(_)
            | Event::PodDeleted(..)
            | Event::NamespaceApplied(_)
            | Event::NamespaceDeleted(_) => self.builder.apply(event),
        }
    }

    fn event_of(&self, object: &Object, notes: &mut Vec<Note>) -> Option<Event> {
        match object {
            Object::Service(service) => {
                let converted = convert::service(service);
                notes.extend(converted.notes);
                Some(Event::ServiceApplied(Arc::new(converted.value)))
            }
            Object::EndpointSlice(slice) => {
                let converted = convert::slice(slice)?;
                notes.extend(converted.notes);
                Some(Event::SliceApplied(Arc::new(converted.value)))
            }
            Object::Pod(pod) => convert::pod(pod).map(|pod| Event::PodApplied(Arc::new(pod))),
            Object::Node(node) => convert::node(node)
                .filter(|node| node.name.as_str() == NODE)
                .map(Event::NodeApplied),
            Object::Namespace(_) | Object::Endpoints(_) => None,
        }
    }

    fn view_node(&mut self) {
        let local: BTreeSet<IpAddr> = self.interfaces.addresses.iter().copied().collect();
        let primary = self.node.as_ref().map_or(&[][..], |node| &node.addresses);
        self.builder.set_node(NodeView {
            name: NodeName::parse(NODE),
            zone: self.node.as_ref().and_then(|node| node.zone.clone()),
            pod_cidrs: self.interfaces.pod_cidrs.clone(),
            node_port_addresses: self.interfaces.node_port_addresses.select(&local, primary),
            local_addresses: local,
            ..NodeView::default()
        });
    }
}

fn gone(key: &ObjectKey) -> Option<Event> {
    let (namespace, name) = (key.namespace.clone(), key.name.clone());
    match key.kind {
        Kind::Service => Some(Event::ServiceDeleted(ServiceName { namespace, name })),
        Kind::EndpointSlice => Some(Event::SliceDeleted(SliceKey { namespace, name })),
        Kind::Pod => Some(Event::PodDeleted(namespace, name)),
        Kind::Node => Some(Event::NodeDeleted),
        Kind::Namespace | Kind::Endpoints => None,
    }
}
