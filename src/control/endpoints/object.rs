//! The Endpoints object of a Service with a selector, for clients of the old API. Source: the endpoints controller.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::HEADLESS_LABEL;
use super::metadata::set_trigger_time;
use super::ports::find_port;
use super::select::{has_address, hostname_of, is_ready, is_terminating, node_name, reference_to};
use super::subsets::repack;
use crate::control::predicates::{families, is_headless, spec_of};
use crate::control::store::{ServiceId, Store};
use crate::control::validation::ips;

/// The label that tells these objects from hand-written ones.
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// Addresses beyond these are left out, ready ones last.
const MAX_ADDRESSES: usize = 1000;

/// The Endpoints that `service` should have, in place of whatever has that name; `None` if it has them.
pub(super) fn plan_endpoints(
    store: &Store,
    id: &ServiceId,
    service: &Service,
    pods: &[&Pod],
    trigger: Option<Timestamp>,
) -> Option<Endpoints> {
    let mut subsets = repack(&subsets_of(service, pods));
    let truncated = truncate(&mut subsets);
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(MANAGED_BY.to_owned(), "endpoint-controller".to_owned());
    if is_headless(spec_of(service)) {
        labels.insert(HEADLESS_LABEL.to_owned(), String::new());
    } else {
        labels.remove(HEADLESS_LABEL);
    }
    let old = store.endpoints(id);
    let mut metadata = old
        .map(|old| old.metadata.clone())
        .unwrap_or_else(|| ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            ..ObjectMeta::default()
        });
    metadata.labels = Some(labels);
    let annotations = metadata.annotations.get_or_insert_default();
    if truncated {
        annotations.insert(OVER_CAPACITY.to_owned(), "truncated".to_owned());
    } else {
        annotations.remove(OVER_CAPACITY);
    }
    metadata
        .annotations
        .take_if(|annotations| annotations.is_empty());
    let mut new = Endpoints {
        metadata,
        subsets: (!subsets.is_empty()).then_some(subsets),
    };
    if old == Some(&new) {
        return None;
    }
    set_trigger_time(&mut new.metadata, trigger);
    Some(new)
}

fn subsets_of(service: &Service, pods: &[&Pod]) -> Vec<EndpointSubset> {
    let spec = spec_of(service);
    let publishes = spec.publish_not_ready_addresses == Some(true);
    let ports = spec.ports.as_deref().unwrap_or_default();
    let mut subsets = Vec::new();
    for pod in pods.iter().filter(|pod| has_address(pod)) {
        if is_terminating(pod) && !publishes {
            continue;
        }
        let Some(address) = address_of(pod, service) else {
            continue;
        };
        let ready = publishes || is_ready(pod);
        let mut add = |port: Option<EndpointPort>| {
            let list = Some(vec![address.clone()]);
            let (addresses, not_ready_addresses) = if ready { (list, None) } else { (None, list) };
            subsets.push(EndpointSubset {
                addresses,
                not_ready_addresses,
                ports: port.map(|port| vec![port]),
            });
        };
        if ports.is_empty() && is_headless(spec) {
            add(None);
        }
        for port in ports {
            if let Some(number) = find_port(pod, port) {
                add(Some(EndpointPort {
                    app_protocol: port.app_protocol.clone(),
                    name: port.name.clone(),
                    port: number,
                    protocol: port.protocol.clone(),
                }));
            }
        }
    }
    subsets
}

// Only the first family of the Service.
fn address_of(pod: &Pod, service: &Service) -> Option<EndpointAddress> {
    let wants_v6 = families(spec_of(service))
        .first()
        .is_some_and(|family| family == "IPv6");
    let listed = pod.status.as_ref()?.pod_ips.as_ref()?;
    let ip = listed
        .iter()
        .filter_map(|entry| ips::parse_sloppily(&entry.ip))
        .find(|ip| ip.is_ipv6() == wants_v6)?;
    Some(EndpointAddress {
        hostname: hostname_of(pod, service),
        ip: ip.to_string(),
        node_name: node_name(pod).map(str::to_owned),
        target_ref: Some(reference_to(pod)),
    })
}

// Says whether anything was left out.
fn truncate(subsets: &mut Vec<EndpointSubset>) -> bool {
    let mut room = MAX_ADDRESSES;
    let mut over = false;
    let mut cut = |list: &mut Option<Vec<EndpointAddress>>| {
        if let Some(addresses) = list {
            over |= addresses.len() > room;
            addresses.truncate(room);
            room -= addresses.len();
        }
        list.take_if(|addresses| addresses.is_empty());
    };
    for subset in subsets.iter_mut() {
        cut(&mut subset.addresses);
    }
    for subset in subsets.iter_mut() {
        cut(&mut subset.not_ready_addresses);
    }
    subsets.retain(|subset| subset.addresses.is_some() || subset.not_ready_addresses.is_some());
    over
}
