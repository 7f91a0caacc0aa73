//! The EndpointSlice controller: the slices of one Service with a selector. Source: KEP-752.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::hints::hint_by_distribution;
use super::metadata::{
    is_owned_by, new_slice_name, owner_reference, set_trigger_time, slice_labels,
};
use super::packing::{Held, Packed, pack};
use super::ports::sort_ports;
use super::select::{Group, selected_pods, wanted_groups};
use super::{Controllers, MANAGED_BY, SLICE_CONTROLLER, put_slice};
use crate::control::object::{Kind, ObjectKey};
use crate::control::predicates::{families, spec_of};
use crate::control::store::{ServiceId, Store};
use crate::model::Family;

/// The slices of one Service and family, before and after.
#[derive(Debug, Default)]
struct FamilyPlan {
    /// Slices that stay or are re-used, complete but for the trigger time.
    kept: Vec<EndpointSlice>,
    /// New slices, without a name.
    created: Vec<EndpointSlice>,
    /// Names of slices that go.
    deleted: Vec<String>,
}

impl Controllers {
    /// Brings the slices of `service` up to date.
    pub(super) fn sync_slices(
        &mut self,
        store: &mut Store,
        id: &ServiceId,
        service: &Service,
        now: Timestamp,
    ) {
        let pods = selected_pods(store, service);
        let trigger = self.triggers.compute(id, service, &pods);
        let mut gone = Vec::new();
        let mut own: BTreeMap<String, Vec<EndpointSlice>> = BTreeMap::new();
        for slice in store.slices_of(id).filter(|slice| is_controlled(slice)) {
            if is_owned_by(&slice.metadata, &service.metadata) {
                let kind = slice.address_type.clone();
                own.entry(kind).or_default().push(slice.clone());
            } else {
                gone.push(slice.metadata.name.clone().unwrap_or_default());
            }
        }
        let wanted_families = families(spec_of(service));
        let mut plans = Vec::new();
        for family in Family::BOTH {
            if !wanted_families.iter().any(|name| name == family.as_str()) {
                continue;
            }
            let existing = own.remove(family.as_str()).unwrap_or_default();
            let groups = wanted_groups(store, service, &pods, family);
            plans.push(self.plan_family(service, family, existing, groups));
        }
        // What is left belongs to families that the Service no longer has.
        let leftovers = own.into_values().flatten();
        gone.extend(leftovers.filter_map(|slice| slice.metadata.name));

        for plan in &mut plans {
            for slice in plan.kept.iter_mut().chain(&mut plan.created) {
                for endpoint in slice.endpoints.iter_mut().flatten() {
                    let wish = spec_of(service).traffic_distribution.as_deref();
                    hint_by_distribution(endpoint, wish);
                }
            }
        }
        for plan in plans {
            gone.extend(plan.deleted);
            for slice in plan.kept {
                write_if_changed(store, id, slice, trigger, now);
            }
            for mut slice in plan.created {
                slice.metadata.name = Some(new_slice_name(store, id));
                set_trigger_time(&mut slice.metadata, trigger);
                put_slice(store, slice, now);
            }
        }
        for name in gone {
            store.remove(&slice_key(id, &name));
        }
    }

    /// Removes the slices that were maintained for a Service that no longer selects anything, or no longer exists.
    pub(super) fn drop_slices(
        &mut self,
        store: &mut Store,
        id: &ServiceId,
        service: Option<&Service>,
    ) {
        let owned = |slice: &&EndpointSlice| {
            service.is_some_and(|service| is_owned_by(&slice.metadata, &service.metadata))
        };
        let names: Vec<_> = store
            .slices_of(id)
            .filter(|slice| is_controlled(slice))
            .filter(owned)
            .filter_map(|slice| slice.metadata.name.clone())
            .collect();
        for name in names {
            store.remove(&slice_key(id, &name));
        }
    }

    fn plan_family(
        &self,
        service: &Service,
        family: Family,
        existing: Vec<EndpointSlice>,
        groups: Vec<Group>,
    ) -> FamilyPlan {
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
        let mut plan = FamilyPlan::default();
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

// One write instead of a deletion and a creation.
fn reuse_deleted(
    plan: &mut FamilyPlan,
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

fn is_controlled(slice: &EndpointSlice) -> bool {
    let labels = slice.metadata.labels.as_ref();
    labels
        .and_then(|labels| labels.get(MANAGED_BY))
        .map(String::as_str)
        == Some(SLICE_CONTROLLER)
}

fn ports_key(slice: &EndpointSlice) -> String {
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

fn new_slice(
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
    let unchanged = store
        .slices_of(id)
        .find(|old| old.metadata.name.as_deref() == Some(&name))
        .is_some_and(|old| is_same(old, &slice));
    if !unchanged {
        set_trigger_time(&mut slice.metadata, trigger);
        put_slice(store, slice, now);
    }
}

fn is_same(old: &EndpointSlice, new: &EndpointSlice) -> bool {
    let mut old_ports = old.ports.clone().unwrap_or_default();
    sort_ports(&mut old_ports);
    old.metadata.labels == new.metadata.labels
        && old.metadata.owner_references == new.metadata.owner_references
        && old.endpoints.as_deref().unwrap_or_default()
            == new.endpoints.as_deref().unwrap_or_default()
        && old_ports == new.ports.as_deref().unwrap_or_default()
}

fn slice_key(id: &ServiceId, name: &str) -> ObjectKey {
    ObjectKey {
        kind: Kind::EndpointSlice,
        namespace: id.namespace.clone(),
        name: name.into(),
    }
}
