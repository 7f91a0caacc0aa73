//! The store: every object that a source knows, and what its changes mean for routing, DNS and simulated Pods.
//!
//! Owns the objects and the count of what lives in each namespace. Where objects come from is the business of
//! `standalone`; whoever feeds the store says how a remark about an object is to be told.

use std::collections::HashMap;
use std::sync::Arc;

use crate::control::{Change, Kind, Object, ObjectKey, Objects, ProbeChange};
use crate::model::{Event, Names, NodeName, ServiceName, SliceKey};
use crate::sources::convert::{self, Note};
use crate::workload::SimulatedPod;

use super::remark::Remark;
use super::simulated::{fault_note, is_simulated, simulated_pod};

/// All stored objects.
pub(super) struct Store {
    node_name: NodeName,
    loopback: LoopbackEndpoints,
    objects: Objects,
    names: Names,
    per_namespace: HashMap<Arc<str>, usize>,
}

/// What a batch of changes comes to.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// For routing and DNS, in order.
    pub(super) events: Vec<Event>,
    /// All simulated Pods, if they changed.
    pub(super) simulated: Option<Vec<SimulatedPod>>,
    /// Whether our own Node is there and stays, if a Node changed.
    pub(super) node_eligible: Option<bool>,
    /// What is to be probed from now on.
    pub(super) probes: Vec<ProbeChange>,
    /// For the authors of objects, in the order in which it came up.
    pub(super) remarks: Vec<Remark>,
    /// The source has told everything that it had at start.
    pub(super) synced: bool,
}

/// What becomes of endpoints in 127.0.0.0/8 and `::1`: backends of a local tool, but from an API server a way into
/// whatever listens on the node for itself alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LoopbackEndpoints {
    /// They are served.
    Allowed,
    /// They are left out, with a remark.
    Refused,
}

impl Store {
    /// Nothing is stored yet; of Nodes only the one of that name matters to routing.
    ///
    /// `objects` says in which form they are stored.
    pub(super) fn new(node_name: NodeName, loopback: LoopbackEndpoints, objects: Objects) -> Self {
        Self {
            node_name,
            loopback,
            objects,
            names: Names::default(),
            per_namespace: HashMap::new(),
        }
    }

    /// The stored objects.
    pub(super) fn objects(&self) -> &Objects {
        &self.objects
    }

    /// Takes over changes, in order, and adds to `outcome` what they mean. `remark` tells about a field of an object.
    pub(super) fn take(
        &mut self,
        changes: &[Change],
        remark: &dyn Fn(&ObjectKey, &Note) -> Remark,
        outcome: &mut Outcome,
    ) {
        for change in changes {
            let (mut key, object) = match change {
                Change::Applied(object) => (object.key(), Some(object)),
                Change::Deleted(key) => (key.clone(), None),
            };
            self.names.share(&mut key.namespace);
            self.names.share(&mut key.name);
            let existed = self.objects.contains(&key);
            let was_simulated = || self.objects.get(&key).is_some_and(|o| is_simulated(&o));
            if (key.kind == Kind::Pod && was_simulated()) || object.is_some_and(is_simulated) {
                outcome.simulated = Some(Vec::new());
            }
            self.count_namespace(&key, existed, object.is_some(), &mut outcome.events);
            let converted = object.and_then(|object| self.event_of(object, remark, outcome));
            match converted {
                Some(event) => outcome.events.push(event),
                None if existed => outcome
                    .events
                    .extend(self.gone(&key, &mut outcome.node_eligible)),
                None => {}
            }
            match object {
                Some(object) => self.objects.insert(key, object),
                None => self.objects.remove(&key),
            }
        }
        if outcome.simulated.is_some() {
            let pods = self.objects.list(Kind::Pod);
            outcome.simulated = Some(pods.filter_map(|object| simulated_pod(&object)).collect());
        }
    }

    // `None` where the object says nothing to routing or DNS.
    fn event_of(
        &mut self,
        object: &Object,
        remark: &dyn Fn(&ObjectKey, &Note) -> Remark,
        outcome: &mut Outcome,
    ) -> Option<Event> {
        let key = object.key();
        let mut tell = |notes: &[Note]| {
            let remarks = notes.iter().map(|note| remark(&key, note));
            outcome.remarks.extend(remarks);
        };
        match object {
            Object::Service(service) => {
                let mut converted = convert::service(service);
                tell(&converted.notes);
                converted.value.share(&mut self.names);
                Some(Event::ServiceApplied(Arc::new(converted.value)))
            }
            Object::EndpointSlice(slice) => {
                let mut converted = convert::slice(slice)?;
                if self.loopback == LoopbackEndpoints::Refused {
                    converted = convert::without_loopback(converted);
                }
                tell(&converted.notes);
                converted.value.share(&mut self.names);
                Some(Event::SliceApplied(Arc::new(converted.value)))
            }
            Object::Pod(pod) => {
                tell(fault_note(object).as_slice());
                convert::pod(pod).map(|pod| Event::PodApplied(Arc::new(pod)))
            }
            Object::Node(node) => {
                let converted = convert::node(node).filter(|node| node.name == self.node_name)?;
                outcome.node_eligible =
                    Some(node.metadata.deletion_timestamp.is_none() && !to_be_deleted(node));
                Some(Event::NodeApplied(converted))
            }
            // Counted for every object alike.
            Object::Namespace(_) | Object::Endpoints(_) => None,
        }
    }

    fn gone(&self, key: &ObjectKey, node_eligible: &mut Option<bool>) -> Option<Event> {
        let (namespace, name) = (key.namespace.clone(), key.name.clone());
        match key.kind {
            Kind::Service => Some(Event::ServiceDeleted(ServiceName { namespace, name })),
            Kind::EndpointSlice => Some(Event::SliceDeleted(SliceKey { namespace, name })),
            Kind::Pod => Some(Event::PodDeleted(namespace, name)),
            Kind::Node if *name == *self.node_name.as_str() => {
                *node_eligible = Some(false);
                Some(Event::NodeDeleted)
            }
            Kind::Node | Kind::Namespace | Kind::Endpoints => None,
        }
    }

    // A namespace exists as long as it is declared or anything lives in it.
    fn count_namespace(
        &mut self,
        key: &ObjectKey,
        existed: bool,
        exists: bool,
        events: &mut Vec<Event>,
    ) {
        let namespace = match key.kind {
            Kind::Namespace => key.name.clone(),
            Kind::Node => return,
            Kind::Service | Kind::Pod | Kind::EndpointSlice | Kind::Endpoints => {
                key.namespace.clone()
            }
        };
        let count = self.per_namespace.entry(namespace.clone()).or_default();
        match (existed, exists) {
            (false, true) => {
                *count += 1;
                if *count == 1 {
                    events.push(Event::NamespaceApplied(namespace));
                }
            }
            (true, false) => {
                *count -= 1;
                if *count == 0 {
                    self.per_namespace.remove(&namespace);
                    events.push(Event::NamespaceDeleted(namespace));
                }
            }
            (true, true) | (false, false) => {}
        }
    }
}

fn to_be_deleted(node: &k8s_openapi::api::core::v1::Node) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    taints.is_some_and(|taints| {
        taints
            .iter()
            .any(|taint| taint.key == "ToBeDeletedByClusterAutoscaler")
    })
}
