//! The EndpointSlice controller: the slices of one Service with a selector. Source: KEP-752.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::events::{ControllerEvent, Severity};
use super::hints::hint_by_distribution;
use super::metadata::{
    is_owned_by, new_slice_name, owner_reference, set_trigger_time, slice_labels,
};
use super::packing::{Held, Packed, pack};
use super::ports::sort_ports;
use super::select::{Group, wanted_groups};
use super::topology::{self, ZoneShares, zone_shares};
use super::trigger::TRIGGER_TIME;
use super::{Controllers, MANAGED_BY, SLICE_CONTROLLER};
use crate::control::object::{Kind, Object, ObjectKey};
use crate::control::predicates::{families, spec_of};
use crate::control::store::{ServiceId, Store};
use crate::model::Family;

/// What is to become of the slices of a Service.
#[derive(Debug, Default)]
pub(super) struct SlicePlan {
    /// Slices that stay or are re-used, complete but for the trigger time.
    kept: Vec<EndpointSlice>,
    /// New slices, without a name.
    created: Vec<EndpointSlice>,
    /// Names of slices that go.
    deleted: Vec<String>,
}

impl Controllers {
    /// What the slices of `service` should be, given the Pods it selects.
    pub(super) fn plan_slices(
        &mut self,
        store: &Store,
        id: &ServiceId,
        service: &Service,
        pods: &[&Pod],
    ) -> SlicePlan {
        let mut plan = SlicePlan::default();
        let mut own: BTreeMap<String, Vec<EndpointSlice>> = BTreeMap::new();
        for slice in store
            .slices_of(id)
            .filter(|slice| is_managed_by(slice, SLICE_CONTROLLER))
        {
            if is_owned_by(&slice.metadata, &service.metadata) {
                let kind = slice.address_type.clone();
                own.entry(kind).or_default().push(slice.clone());
            } else {
                plan.deleted.extend(slice.metadata.name.clone());
            }
        }
        for family in Family::BOTH {
            let wanted = families(spec_of(service));
            if !wanted.iter().any(|name| name == family.as_str()) {
                continue;
            }
            let existing = own.remove(family.as_str()).unwrap_or_default();
            let groups = wanted_groups(store, service, pods, family);
            let mut part = self.plan_family(service, family, existing, groups);
            let slices = part.kept.iter_mut().chain(&mut part.created);
            let endpoints = slices.flat_map(|slice| slice.endpoints.iter_mut().flatten());
            self.hint(store, id, service, family, endpoints.collect());
            plan.kept.extend(part.kept);
            plan.created.extend(part.created);
            plan.deleted.extend(part.deleted);
        }
        // What is left belongs to families that the Service no longer has.
        let leftovers = own.into_values().flatten();
        plan.deleted
            .extend(leftovers.filter_map(|slice| slice.metadata.name));
        plan
    }

    // Hints the endpoints of one family, by share of CPUs or as `trafficDistribution` says.
    fn hint(
        &mut self,
        store: &Store,
        id: &ServiceId,
        service: &Service,
        family: Family,
        mut endpoints: Vec<&mut Endpoint>,
    ) {
        let key = (id.clone(), family);
        let outcome = topology::is_wanted(service)
            .then(|| topology::hint_by_share(&mut endpoints, &node_shares(store)));
        match outcome {
            Some(Ok(())) => {
                self.hinted.insert(key);
                self.say_hints(
                    id,
                    family,
                    Severity::Normal,
                    "Topology Aware Hints has been enabled",
                );
                return;
            }
            Some(Err(ref why)) => {
                self.hinted.remove(&key);
                self.say_hints(id, family, Severity::Warning, why);
            }
            None => {
                if self.hinted.remove(&key) {
                    let why = "Topology Aware Hints has been disabled";
                    self.say_hints(id, family, Severity::Warning, why);
                }
            }
        }
        // `Auto` beats the distribution even where it comes to nothing.
        let wish = spec_of(service).traffic_distribution.as_deref();
        let wish = wish.filter(|_| outcome.is_none());
        for endpoint in endpoints {
            hint_by_distribution(endpoint, wish);
        }
    }

    fn say_hints(&mut self, id: &ServiceId, family: Family, severity: Severity, message: &str) {
        let reason = match severity {
            Severity::Normal => "TopologyAwareHintsEnabled",
            Severity::Warning => "TopologyAwareHintsDisabled",
        };
        let event = ControllerEvent {
            object: id.key(Kind::Service),
            severity,
            reason,
            message: format!("{message}, addressType: {family}"),
        };
        self.events.say(family.as_str(), event);
    }

    fn plan_family(
        &self,
        service: &Service,
        family: Family,
        existing: Vec<EndpointSlice>,
        groups: Vec<Group>,
    ) -> SlicePlan {
        let labels = slice_labels(service);
        let mut by_ports: HashMap<String, Vec<Held>> = HashMap::new();
        let mut by_name: HashMap<String, EndpointSlice> = HashMap::new();
        let count = existing.len();
        for slice in existing {
            let name = slice.metadata.name.clone().unwrap_or_default();
            by_ports.entry(ports_key(&slice)).or_default().push(Held {
                name: name.clone(),
                endpoints: slice.endpoints.clone().unwrap_or_default(),
                written: slice.metadata.labels.as_ref() != Some(&labels),
            });
            by_name.insert(name, slice);
        }
        let mut plan = SlicePlan::default();
        for group in groups {
            let key = format!("{:?}", group.ports);
            let held = by_ports.remove(&key).unwrap_or_default();
            let Packed {
                kept,
                created,
                emptied,
            } = pack(held, group.endpoints, self.max_endpoints_per_slice);
            plan.deleted.extend(emptied);
            for held in kept {
                let old = by_name.get(&held.name).map(|slice| &slice.metadata);
                let metadata = slice_metadata(service, &labels, old);
                plan.kept.push(new_slice(
                    family,
                    metadata,
                    group.ports.clone(),
                    held.endpoints,
                ));
            }
            for endpoints in created {
                let metadata = slice_metadata(service, &labels, None);
                plan.created
                    .push(new_slice(family, metadata, group.ports.clone(), endpoints));
            }
        }
        for held in by_ports.into_values().flatten() {
            plan.deleted.push(held.name);
        }
        if plan.deleted.len() == count && plan.created.is_empty() {
            let metadata = slice_metadata(service, &labels, None);
            plan.created
                .push(new_slice(family, metadata, Vec::new(), Vec::new()));
        }
        plan.deleted.sort();
        reuse_deleted(&mut plan, &by_name, |old| {
            slice_metadata(service, &labels, Some(old))
        });
        plan
    }
}

/// Removes the slices that were maintained for a Service that no longer selects anything.
pub(super) fn drop_slices(store: &mut Store, id: &ServiceId) {
    let Some(owner) = store.service(id).map(|service| service.metadata.clone()) else {
        return;
    };
    let names: Vec<_> = store
        .slices_of(id)
        .filter(|slice| is_managed_by(slice, SLICE_CONTROLLER))
        .filter(|slice| is_owned_by(&slice.metadata, &owner))
        .filter_map(|slice| slice.metadata.name.clone())
        .collect();
    for name in names {
        store.remove(&slice_key(id, &name));
    }
}

impl SlicePlan {
    /// Writes what has changed.
    pub(super) fn write(
        self,
        store: &mut Store,
        id: &ServiceId,
        trigger: Option<Timestamp>,
        now: Timestamp,
    ) {
        for slice in self.kept {
            write_if_changed(store, id, slice, trigger, now);
        }
        for mut slice in self.created {
            slice.metadata.name = Some(new_slice_name(store, id));
            set_trigger_time(&mut slice.metadata, trigger);
            store.put(Object::EndpointSlice(Box::new(slice)), now);
        }
        for name in self.deleted {
            store.remove(&slice_key(id, &name));
        }
    }
}

// One write instead of a deletion and a creation.
fn reuse_deleted(
    plan: &mut SlicePlan,
    by_name: &HashMap<String, EndpointSlice>,
    metadata: impl Fn(&ObjectMeta) -> ObjectMeta,
) {
    let count = plan.deleted.len().min(plan.created.len());
    for name in plan.deleted.drain(..count) {
        let (Some(mut slice), Some(old)) = (plan.created.pop(), by_name.get(&name)) else {
            continue;
        };
        slice.metadata = metadata(&old.metadata);
        plan.kept.push(slice);
    }
}

/// Whether the label of the slice says that this controller maintains it.
pub(super) fn is_managed_by(slice: &EndpointSlice, controller: &str) -> bool {
    let labels = slice.metadata.labels.as_ref();
    labels
        .and_then(|labels| labels.get(MANAGED_BY))
        .map(String::as_str)
        == Some(controller)
}

/// The list of ports of a slice, for comparison.
pub(super) fn ports_key(slice: &EndpointSlice) -> String {
    let mut ports = slice.ports.clone().unwrap_or_default();
    sort_ports(&mut ports);
    format!("{ports:?}")
}

// The metadata of a slice of `service`; annotations of others on an existing slice stay.
fn slice_metadata(
    service: &Service,
    labels: &BTreeMap<String, String>,
    old: Option<&ObjectMeta>,
) -> ObjectMeta {
    ObjectMeta {
        labels: Some(labels.clone()),
        namespace: service.metadata.namespace.clone(),
        owner_references: Some(vec![owner_reference(Kind::Service, &service.metadata)]),
        ..old.cloned().unwrap_or_default()
    }
}

/// A slice with what it is to hold.
pub(super) fn new_slice(
    family: Family,
    metadata: ObjectMeta,
    ports: Vec<EndpointPort>,
    endpoints: Vec<Endpoint>,
) -> EndpointSlice {
    EndpointSlice {
        address_type: family.as_str().to_owned(),
        endpoints: (!endpoints.is_empty()).then_some(endpoints),
        metadata,
        ports: (!ports.is_empty()).then_some(ports),
    }
}

/// Writes `slice` with its trigger time, unless nothing else about it has changed.
pub(super) fn write_if_changed(
    store: &mut Store,
    id: &ServiceId,
    mut slice: EndpointSlice,
    trigger: Option<Timestamp>,
    now: Timestamp,
) {
    let name = slice.metadata.name.clone().unwrap_or_default();
    let stored = store.get(&slice_key(id, &name)).and_then(Object::as_slice);
    let unchanged = stored.is_some_and(|old| is_same(old, &slice));
    if !unchanged {
        set_trigger_time(&mut slice.metadata, trigger);
        store.put(Object::EndpointSlice(Box::new(slice)), now);
    }
}

fn is_same(old: &EndpointSlice, new: &EndpointSlice) -> bool {
    let mut old_ports = old.ports.clone().unwrap_or_default();
    sort_ports(&mut old_ports);
    let annotations = |metadata: &ObjectMeta| {
        let mut annotations = metadata.annotations.clone().unwrap_or_default();
        annotations.remove(TRIGGER_TIME);
        annotations
    };
    old.metadata.labels == new.metadata.labels
        && annotations(&old.metadata) == annotations(&new.metadata)
        && old.metadata.owner_references == new.metadata.owner_references
        && old.endpoints.as_deref().unwrap_or_default()
            == new.endpoints.as_deref().unwrap_or_default()
        && old_ports == new.ports.as_deref().unwrap_or_default()
}

/// The key of a slice in the Service's namespace.
pub(super) fn slice_key(id: &ServiceId, name: &str) -> ObjectKey {
    ObjectKey {
        kind: Kind::EndpointSlice,
        namespace: id.namespace.clone(),
        name: name.into(),
    }
}

fn node_shares(store: &Store) -> ZoneShares {
    let nodes = store.list(Kind::Node).filter_map(Object::as_node);
    zone_shares(nodes)
}
