//! Standalone: manifests go through the control plane and come out as events.
//!
//! Owns the stored objects and what follows from their changes for routing, DNS and simulated Pods. `intake` is the way in.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;

use crate::control::{Change, Kind, Object, ObjectKey, Objects};
use crate::model::{Event, NodeName, ServiceName, SliceKey};
use crate::sources::convert::{self, Note};
use crate::sources::manifests::Update;
use crate::workload::SimulatedPod;

use super::intake::Intake;
use super::kept::KeptAllocations;
use super::remark::Remark;
use super::simulated::{is_simulated, simulated_pod};

/// The objects behind an [`Intake`].
pub(super) struct Standalone {
    intake: Intake,
    node_name: NodeName,
    objects: Objects,
    per_namespace: HashMap<Arc<str>, usize>,
    kept: Option<KeptAllocations>,
}

/// What a batch of updates comes to.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// For routing and DNS, in order.
    pub(super) events: Vec<Event>,
    /// All simulated Pods, if they changed.
    pub(super) simulated: Option<Vec<SimulatedPod>>,
    /// Whether our own Node is there and stays, if a Node changed.
    pub(super) node_eligible: Option<bool>,
    /// For the authors of manifests, in the order in which it came up.
    pub(super) remarks: Vec<Remark>,
}

impl Standalone {
    /// `kept` is where allocations outlive the process, if anywhere.
    pub(super) fn new(intake: Intake, node_name: NodeName, kept: Option<KeptAllocations>) -> Self {
        Self {
            intake,
            node_name,
            objects: Objects::default(),
            per_namespace: HashMap::new(),
            kept,
        }
    }

    /// The stored objects.
    pub(super) fn objects(&self) -> &Objects {
        &self.objects
    }

    /// A remark about an object, see [`Intake::remark`].
    pub(super) fn remark(&self, key: &ObjectKey, note: &Note) -> Remark {
        self.intake.remark(key, note)
    }

    /// Takes a batch of updates through the control plane.
    pub(super) fn take(&mut self, updates: Vec<Update>, now: Timestamp) -> Outcome {
        let (changes, remarks) = self.intake.take(updates, now);
        let mut outcome = Outcome {
            remarks,
            ..Outcome::default()
        };
        self.convert(&changes, &mut outcome);
        if let Some(kept) = &mut self.kept {
            kept.keep(self.intake.allocations());
        }
        outcome
    }

    fn convert(&mut self, changes: &[Change], outcome: &mut Outcome) {
        for change in changes {
            let (key, object) = match change {
                Change::Applied(object) => (object.key(), Some(object)),
                Change::Deleted(key) => (key.clone(), None),
            };
            let existed = self.objects.get(&key).is_some();
            let was_simulated = self
                .objects
                .get(&key)
                .is_some_and(|object| is_simulated(object));
            if was_simulated || object.is_some_and(is_simulated) {
                outcome.simulated = Some(Vec::new());
            }
            self.count_namespace(&key, existed, object.is_some(), &mut outcome.events);
            let converted = object.and_then(|object| self.event_of(object, outcome));
            match converted {
                Some(event) => outcome.events.push(event),
                None if existed => outcome
                    .events
                    .extend(self.gone(&key, &mut outcome.node_eligible)),
                None => {}
            }
            self.objects.apply(change);
        }
        if outcome.simulated.is_some() {
            let pods = self.objects.list(Kind::Pod);
            outcome.simulated = Some(
                pods.into_iter()
                    .filter_map(|object| simulated_pod(object))
                    .collect(),
            );
        }
    }

    // `None` where the object says nothing to routing or DNS.
    fn event_of(&self, object: &Object, outcome: &mut Outcome) -> Option<Event> {
        let key = object.key();
        let mut remark = |notes: &[Note]| {
            let remarks = notes.iter().map(|note| self.intake.remark(&key, note));
            outcome.remarks.extend(remarks);
        };
        match object {
            Object::Service(service) => {
                let converted = convert::service(service);
                remark(&converted.notes);
                Some(Event::ServiceApplied(Arc::new(converted.value)))
            }
            Object::EndpointSlice(slice) => {
                let converted = convert::slice(slice)?;
                remark(&converted.notes);
                Some(Event::SliceApplied(Arc::new(converted.value)))
            }
            Object::Pod(pod) => convert::pod(pod).map(|pod| Event::PodApplied(Arc::new(pod))),
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
