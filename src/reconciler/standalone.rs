//! Standalone: manifests go through the control plane and come out as events.
//!
//! Owns the control plane, which manifest every object came from, and the file that keeps allocations across restarts.
//! A document that is refused because something is taken waits here until something is released.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use tracing::{error, info, warn};

use crate::control::{
    Allocations, Change, ControlPlane, Kind, Object, ObjectKey, Objects, Rejection,
};
use crate::model::{Event, NodeName, Protocol, ServiceName, SliceKey};
use crate::sources::convert::{self, Note};
use crate::sources::manifests::{Finding, Manifest, Origin, Update};
use crate::workload::SimulatedPod;

/// The annotation that makes Viaduct serve a Pod's ports itself.
const SIMULATE: &str = "viaduct.dev/simulate";

/// The control plane with its manifests.
pub(super) struct Standalone {
    control: ControlPlane,
    node_name: NodeName,
    origins: HashMap<ObjectKey, Origin>,
    waiting: BTreeMap<ObjectKey, Pending>,
    refused: BTreeSet<ObjectKey>,
    objects: Objects,
    per_namespace: HashMap<Arc<str>, usize>,
    state_file: PathBuf,
    saved: Option<Allocations>,
    /// In `dev`, cluster IPs outside this range are replaced by one inside.
    replace_outside: Option<IpNet>,
}

// A manifest on its way to the control plane.
struct Pending {
    manifest: Manifest,
    /// The cluster IP that was taken out of it.
    replaced: Option<String>,
    /// A refusal has been told already.
    reported: bool,
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
}

impl Standalone {
    /// `state_file` is where allocations are kept; what it holds is preferred, never reserved.
    pub(super) fn new(
        mut control: ControlPlane,
        node_name: NodeName,
        state_file: PathBuf,
        replace_outside: Option<IpNet>,
    ) -> Self {
        match read_state(&state_file) {
            Ok(Some(allocations)) => control.restore(allocations),
            Ok(None) => {}
            Err(error) => {
                warn!(file = %state_file.display(), %error, "kept allocations cannot be read; starting anew")
            }
        }
        Self {
            control,
            node_name,
            origins: HashMap::new(),
            waiting: BTreeMap::new(),
            refused: BTreeSet::new(),
            objects: Objects::default(),
            per_namespace: HashMap::new(),
            state_file,
            saved: None,
            replace_outside,
        }
    }

    /// The stored objects.
    pub(super) fn objects(&self) -> &Objects {
        &self.objects
    }

    /// Takes a batch of updates through the control plane.
    pub(super) fn take(&mut self, updates: Vec<Update>, now: Timestamp) -> Outcome {
        let mut manifests = Vec::new();
        for update in updates {
            match update {
                Update::Applied(manifest) => manifests.push(*manifest),
                Update::Removed(key) => self.remove(&key, now),
                Update::Problem(finding) => report(&finding),
                Update::Warning(finding) => {
                    warn!(file = %finding.file.display(), line = finding.line, "{finding}")
                }
                Update::Healed(file) => info!(file = %file.display(), "manifest is good again"),
            }
        }
        let mut pending: Vec<Pending> = manifests
            .into_iter()
            .map(|manifest| self.adapt(manifest))
            .collect();
        for pending in &pending {
            self.control.announce(&pending.manifest.object);
        }
        pending.sort_by_key(|pending| self.rank(&pending.manifest.object));
        for pending in pending {
            self.apply(pending, now);
        }
        for waiting in std::mem::take(&mut self.waiting).into_values() {
            self.apply(waiting, now);
        }
        let changes = self.control.reconcile(now);
        let outcome = self.convert(&changes);
        self.save();
        outcome
    }

    fn apply(&mut self, pending: Pending, now: Timestamp) {
        let manifest = &pending.manifest;
        let key = manifest.object.key();
        self.waiting.remove(&key);
        match self.control.apply(manifest.object.clone(), now) {
            Ok(warnings) => {
                for warning in warnings {
                    report_warning(&manifest.origin, &key, &warning.field, &warning.message);
                }
                if let Some(given) = &pending.replaced {
                    self.report_replacement(manifest, &key, given);
                }
                if self.refused.remove(&key) {
                    info!(object = %key, "accepted after all");
                }
                self.origins.insert(key, pending.manifest.origin);
            }
            Err(rejection) => {
                if !pending.reported {
                    report_rejection(manifest, &key, &rejection);
                }
                self.refused.insert(key.clone());
                if rejection.retry {
                    let reported = true;
                    self.waiting.insert(
                        key,
                        Pending {
                            reported,
                            ..pending
                        },
                    );
                }
            }
        }
    }

    fn remove(&mut self, key: &ObjectKey, now: Timestamp) {
        self.waiting.remove(key);
        self.refused.remove(key);
        self.origins.remove(key);
        self.control.delete(key, now);
    }

    // Loopback can serve only its own addresses: in `dev` a cluster IP outside the range is taken out.
    fn adapt(&self, mut manifest: Manifest) -> Pending {
        let mut replaced = None;
        if let (Some(range), Object::Service(service)) =
            (self.replace_outside, &mut manifest.object)
            && let Some(spec) = &mut service.spec
        {
            let first = spec
                .cluster_ips
                .as_ref()
                .and_then(|list| list.first().cloned());
            let given = spec.cluster_ip.clone().or(first);
            let ip = given
                .as_deref()
                .and_then(|text| text.parse::<IpAddr>().ok());
            if ip.is_some_and(|ip| !range.contains(&ip)) {
                spec.cluster_ip = None;
                spec.cluster_ips = None;
                replaced = given;
            }
        }
        Pending {
            manifest,
            replaced,
            reported: false,
        }
    }

    fn report_replacement(&self, manifest: &Manifest, key: &ObjectKey, given: &str) {
        let served = self.cluster_ip(key).unwrap_or_default();
        let range = self
            .replace_outside
            .map(|range| range.to_string())
            .unwrap_or_default();
        let message = format!("{given} is outside {range}; served at {served} instead");
        report_warning(&manifest.origin, key, "spec.clusterIP", &message);
    }

    // What others refer to comes first; of two Services the one that was accepted earlier, in an earlier run too.
    fn rank(&self, object: &Object) -> (u8, Timestamp) {
        let kind = match object {
            Object::Namespace(_) => 0,
            Object::Node(_) => 1,
            Object::Service(_) => 2,
            Object::Pod(_) => 3,
            Object::EndpointSlice(_) | Object::Endpoints(_) => 4,
        };
        let accepted = self.control.accepted_at(&object.key());
        (kind, accepted.unwrap_or(Timestamp::MAX))
    }

    fn cluster_ip(&self, key: &ObjectKey) -> Option<String> {
        match self.control.get(key)? {
            Object::Service(service) => service.spec.as_ref()?.cluster_ip.clone(),
            Object::Namespace(_)
            | Object::Node(_)
            | Object::Pod(_)
            | Object::EndpointSlice(_)
            | Object::Endpoints(_) => None,
        }
    }

    fn convert(&mut self, changes: &[Change]) -> Outcome {
        let mut outcome = Outcome::default();
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
            let converted = object.and_then(|object| self.event_of(object, &mut outcome));
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
        outcome
    }

    // `None` where the object says nothing to routing or DNS.
    fn event_of(&self, object: &Object, outcome: &mut Outcome) -> Option<Event> {
        let key = object.key();
        let notes = |notes: &[Note]| {
            for note in notes {
                match self.origins.get(&key) {
                    Some(origin) => report_warning(origin, &key, &note.field, &note.message),
                    None => warn!(object = %key, field = note.field, "{}", note.message),
                }
            }
        };
        match object {
            Object::Service(service) => {
                let converted = convert::service(service);
                notes(&converted.notes);
                Some(Event::ServiceApplied(Arc::new(converted.value)))
            }
            Object::EndpointSlice(slice) => {
                let converted = convert::slice(slice)?;
                notes(&converted.notes);
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

    fn save(&mut self) {
        let allocations = self.control.allocations();
        if self.saved.as_ref() == Some(&allocations) {
            return;
        }
        match write_state(&self.state_file, &allocations) {
            Ok(()) => self.saved = Some(allocations),
            Err(error) => {
                error!(file = %self.state_file.display(), %error, "allocations cannot be kept for the next start")
            }
        }
    }
}

fn report(finding: &Finding) {
    error!(file = %finding.file.display(), line = finding.line, "{finding}");
}

fn report_rejection(manifest: &Manifest, key: &ObjectKey, rejection: &Rejection) {
    let finding = |field: &str, reason: &str, message: &str| {
        manifest.origin.finding(key.clone(), field, reason, message)
    };
    if rejection.causes.is_empty() {
        report(&finding("", rejection.reason, &rejection.message));
    }
    for cause in &rejection.causes {
        report(&finding(&cause.field, cause.reason, &cause.message));
    }
}

fn report_warning(origin: &Origin, key: &ObjectKey, field: &str, message: &str) {
    let line = origin.line_of(field);
    warn!(file = %origin.file.display(), line, "{}:{line}: {key}: {field}: {message}", origin.file.display());
}

fn is_simulated(object: &Object) -> bool {
    match object {
        Object::Pod(pod) => pod
            .metadata
            .annotations
            .as_ref()
            .is_some_and(|map| map.contains_key(SIMULATE)),
        Object::Namespace(_)
        | Object::Node(_)
        | Object::Service(_)
        | Object::EndpointSlice(_)
        | Object::Endpoints(_) => false,
    }
}

// A simulated Pod that has an address and is not over.
fn simulated_pod(object: &Object) -> Option<SimulatedPod> {
    let Object::Pod(pod) = object else {
        return None;
    };
    let pod: &Pod = pod;
    if !is_simulated(object) {
        return None;
    }
    let status = pod.status.as_ref()?;
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return None;
    }
    let containers = &pod.spec.as_ref()?.containers;
    let ports = containers
        .iter()
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            let protocol = match port.protocol.as_deref() {
                None | Some("TCP") => Protocol::Tcp,
                Some("UDP") => Protocol::Udp,
                Some(_) => return None,
            };
            Some((u16::try_from(port.container_port).ok()?, protocol))
        });
    Some(SimulatedPod {
        namespace: pod
            .metadata
            .namespace
            .clone()
            .unwrap_or_else(|| "default".to_owned()),
        name: pod.metadata.name.clone()?,
        ip: status.pod_ip.as_deref()?.parse().ok()?,
        ports: ports.collect(),
    })
}

fn to_be_deleted(node: &k8s_openapi::api::core::v1::Node) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    taints.is_some_and(|taints| {
        taints
            .iter()
            .any(|taint| taint.key == "ToBeDeletedByClusterAutoscaler")
    })
}

fn read_state(path: &std::path::Path) -> std::io::Result<Option<Allocations>> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(Into::into),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

// Written beside and renamed, so that a crash leaves the old file or the new one.
fn write_state(path: &std::path::Path, allocations: &Allocations) -> std::io::Result<()> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let fresh = path.with_extension("tmp");
    std::fs::write(&fresh, serde_json::to_vec(allocations)?)?;
    std::fs::rename(&fresh, path)
}
