//! Mirrors hand-written Endpoints into slices, for Services without a selector. Source: KEP-752, the mirroring
//! controller.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointSubset, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::events::{ControllerEvent, Severity};
use super::metadata::{is_owned_by, new_slice_name, owner_reference};
use super::packing::{Held, pack};
use super::ports::sort_ports;
use super::select::Group;
use super::slices::{is_managed_by, new_slice, ports_key, slice_key, write_if_changed};
use super::subsets::repack;
use super::trigger::TRIGGER_TIME;
use super::{Controllers, MANAGED_BY};
use crate::control::object::Kind;
use crate::control::predicates::{has_selector, spec_of};
use crate::control::store::{SERVICE_NAME, ServiceId, Store};
use crate::control::validation::ips;
use crate::model::Family;

/// Who maintains mirrored slices.
const MIRROR: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP_MIRROR: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Addresses of one subset, both families together, that are mirrored.
const MAX_ADDRESSES: usize = 1000;

impl Controllers {
    /// Brings the mirrored slices of that name up to date; `service` is the Service of that name.
    pub(super) fn sync_mirror(
        &mut self,
        store: &mut Store,
        id: &ServiceId,
        service: Option<&Service>,
        now: Timestamp,
    ) {
        let selectorless = service.is_some_and(|service| !has_selector(spec_of(service)));
        let source = store
            .endpoints(id)
            .filter(|endpoints| selectorless && is_mirrored(endpoints))
            .cloned();
        let mut gone = Vec::new();
        let mut existing = Vec::new();
        for slice in store
            .slices_of(id)
            .filter(|slice| is_managed_by(slice, MIRROR))
        {
            let owned = source
                .as_ref()
                .is_some_and(|source| is_owned_by(&slice.metadata, &source.metadata));
            if owned {
                existing.push(slice.clone());
            } else {
                gone.push(slice.metadata.name.clone().unwrap_or_default());
            }
        }
        if let Some(source) = &source {
            gone.extend(self.mirror(store, id, source, existing, now));
        } else {
            self.events.forget(&id.key(Kind::Endpoints));
        }
        for name in gone {
            store.remove(&slice_key(id, &name));
        }
    }

    // Returns the names of slices that are not needed any more.
    fn mirror(
        &mut self,
        store: &mut Store,
        id: &ServiceId,
        source: &Endpoints,
        existing: Vec<EndpointSlice>,
        now: Timestamp,
    ) -> Vec<String> {
        let mut skipped = 0;
        let mut wanted: BTreeMap<Family, Vec<Group>> = BTreeMap::new();
        for subset in repack(source.subsets.as_deref().unwrap_or_default()) {
            let ports = slice_ports(&subset);
            let (by_family, left_out) = mirrored_endpoints(&subset);
            skipped += left_out;
            for (family, endpoints) in by_family {
                let ports = ports.clone();
                wanted
                    .entry(family)
                    .or_default()
                    .push(Group { ports, endpoints });
            }
        }
        if skipped > 0 {
            self.events.say(
                "mirror",
                ControllerEvent {
                    object: id.key(Kind::Endpoints),
                    severity: Severity::Warning,
                    reason: "TooManyAddressesToMirror",
                    message: format!(
                        "A max of {MAX_ADDRESSES} addresses can be mirrored to EndpointSlices per Endpoints subset. {skipped} addresses were skipped"
                    ),
                },
            );
        }
        let mut gone = Vec::new();
        for family in Family::BOTH {
            let same = existing
                .iter()
                .filter(|slice| slice.address_type == family.as_str());
            let groups = wanted.remove(&family).unwrap_or_default();
            let (slices, left_over) = place(source, family, same.cloned().collect(), groups);
            gone.extend(left_over);
            for mut slice in slices {
                if slice.metadata.name.is_none() {
                    slice.metadata.name = Some(new_slice_name(store, id));
                }
                write_if_changed(store, id, slice, None, now);
            }
        }
        gone
    }
}

// One slice per list of ports; slices that would go are re-used for lists that have none.
fn place(
    source: &Endpoints,
    family: Family,
    existing: Vec<EndpointSlice>,
    groups: Vec<Group>,
) -> (Vec<EndpointSlice>, Vec<String>) {
    let mut by_ports: HashMap<String, Vec<Held>> = HashMap::new();
    let mut by_name: BTreeMap<String, ObjectMeta> = BTreeMap::new();
    for slice in existing {
        let name = slice.metadata.name.clone().unwrap_or_default();
        by_ports.entry(ports_key(&slice)).or_default().push(Held {
            name: name.clone(),
            endpoints: slice.endpoints.clone().unwrap_or_default(),
            written: false,
        });
        by_name.insert(name, slice.metadata);
    }
    let mut slices = Vec::new();
    let mut created = Vec::new();
    let mut gone = Vec::new();
    for Group { ports, endpoints } in groups {
        let held = by_ports.remove(&format!("{ports:?}")).unwrap_or_default();
        let packed = pack(held, endpoints, MAX_ADDRESSES);
        gone.extend(packed.emptied);
        for held in packed.kept {
            let metadata = slice_metadata(source, by_name.get(&held.name));
            slices.push(new_slice(family, metadata, ports.clone(), held.endpoints));
        }
        for endpoints in packed.created {
            created.push((ports.clone(), endpoints));
        }
    }
    gone.extend(by_ports.into_values().flatten().map(|held| held.name));
    gone.sort();
    let mut reusable = gone.into_iter();
    for (ports, endpoints) in created {
        let old = reusable.next().and_then(|name| by_name.get(&name));
        let metadata = slice_metadata(source, old);
        slices.push(new_slice(family, metadata, ports, endpoints));
    }
    (slices, reusable.collect())
}

fn is_mirrored(endpoints: &Endpoints) -> bool {
    let labels = endpoints.metadata.labels.as_ref();
    let annotations = endpoints.metadata.annotations.as_ref();
    let skipped = labels
        .and_then(|labels| labels.get(SKIP_MIRROR))
        .is_some_and(|value| value == "true");
    let lease = annotations.is_some_and(|annotations| annotations.contains_key(LEADER));
    !skipped && !lease
}

fn slice_ports(subset: &EndpointSubset) -> Vec<EndpointPort> {
    let mut ports: Vec<_> = subset
        .ports
        .iter()
        .flatten()
        .map(|port| EndpointPort {
            app_protocol: port.app_protocol.clone(),
            name: Some(port.name.clone().unwrap_or_default()),
            port: Some(port.port),
            protocol: port.protocol.clone(),
        })
        .collect();
    sort_ports(&mut ports);
    ports
}

// By family, ready ones first, and how many were left out.
fn mirrored_endpoints(subset: &EndpointSubset) -> (BTreeMap<Family, Vec<Endpoint>>, usize) {
    let mut by_family: BTreeMap<Family, Vec<Endpoint>> = BTreeMap::new();
    let mut count = 0;
    let lists = [
        (&subset.addresses, true),
        (&subset.not_ready_addresses, false),
    ];
    for (list, ready) in lists {
        for address in list.iter().flatten() {
            let Some(ip) = ips::parse_sloppily(&address.ip) else {
                continue;
            };
            count += 1;
            if count <= MAX_ADDRESSES {
                let endpoint = mirrored_endpoint(address, ip.to_string(), ready);
                by_family.entry(Family::of(ip)).or_default().push(endpoint);
            }
        }
    }
    (by_family, count.saturating_sub(MAX_ADDRESSES))
}

fn mirrored_endpoint(address: &EndpointAddress, ip: String, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![ip],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            ..EndpointConditions::default()
        }),
        hostname: address.hostname.clone(),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

fn slice_metadata(source: &Endpoints, old: Option<&ObjectMeta>) -> ObjectMeta {
    let mut labels = source.metadata.labels.clone().unwrap_or_default();
    let name = source.metadata.name.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.to_owned(), name);
    labels.insert(MANAGED_BY.to_owned(), MIRROR.to_owned());
    let mut annotations = source.metadata.annotations.clone().unwrap_or_default();
    annotations.remove(TRIGGER_TIME);
    annotations.remove(LAST_APPLIED);
    ObjectMeta {
        annotations: (!annotations.is_empty()).then_some(annotations),
        labels: Some(labels),
        namespace: source.metadata.namespace.clone(),
        owner_references: Some(vec![owner_reference(Kind::Endpoints, &source.metadata)]),
        ..old.cloned().unwrap_or_default()
    }
}
