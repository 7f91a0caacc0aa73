//! Which Pods are endpoints of a Service, and what a slice says of each. Source: KEP-752, `podToEndpoint`.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort};

use super::ports::ports_of_pod;
use crate::control::object::{Kind, ObjectKey};
use crate::control::predicates::spec_of;
use crate::control::store::Store;
use crate::control::validation::ips;
use crate::model::Family;

/// The label of a Node that names its zone.
const ZONE: &str = "topology.kubernetes.io/zone";

/// Endpoints that share a family and a list of ports, and so may share slices.
#[derive(Debug)]
pub(super) struct Group {
    /// The ports, in canonical order.
    pub(super) ports: Vec<EndpointPort>,
    /// The endpoints, by Pod name, without hints.
    pub(super) endpoints: Vec<Endpoint>,
}

/// The Pods that the Service selects, whatever their state, by name.
pub(super) fn selected_pods<'a>(store: &'a Store, service: &Service) -> Vec<&'a Pod> {
    let namespace = service.metadata.namespace.as_deref().unwrap_or("default");
    match &spec_of(service).selector {
        Some(selector) => store.select_pods(&namespace.into(), selector),
        None => Vec::new(),
    }
}

/// The endpoints that `service` should have among `pods`, by list of ports.
pub(super) fn wanted_groups(
    store: &Store,
    service: &Service,
    pods: &[&Pod],
    family: Family,
) -> Vec<Group> {
    let spec = spec_of(service);
    let publishes = spec.publish_not_ready_addresses == Some(true);
    let mut groups: Vec<Group> = Vec::new();
    let mut by_ports: HashMap<String, usize> = HashMap::new();
    for pod in pods.iter().filter(|pod| has_address(pod)) {
        let node = node_of(store, pod);
        if node.is_none() && !publishes {
            continue;
        }
        let Some(endpoint) = endpoint_of(pod, node, service, family) else {
            continue;
        };
        let ports = ports_of_pod(spec, pod);
        let key = format!("{ports:?}");
        let index = *by_ports.entry(key).or_insert_with(|| {
            groups.push(Group {
                ports,
                endpoints: Vec::new(),
            });
            groups.len() - 1
        });
        groups[index].endpoints.push(endpoint);
    }
    groups
}

/// The zone of a Node, if it has one.
pub(super) fn zone_of(node: &Node) -> Option<&str> {
    let zone = node.metadata.labels.as_ref()?.get(ZONE)?;
    (!zone.is_empty()).then_some(zone)
}

/// The Pod's Ready condition is True.
pub(super) fn is_ready(pod: &Pod) -> bool {
    ready_condition(pod).is_some_and(|condition| condition.status == "True")
}

/// The Pod's Ready condition.
pub(super) fn ready_condition(pod: &Pod) -> Option<&k8s_openapi::api::core::v1::PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions
        .iter()
        .find(|condition| condition.type_ == "Ready")
}

/// Deletion has begun.
pub(super) fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// A Pod that has not finished and has an address; other Pods are no endpoints.
pub(super) fn has_address(pod: &Pod) -> bool {
    let Some(status) = &pod.status else {
        return false;
    };
    !matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"))
        && status.pod_ips.as_ref().is_some_and(|ips| !ips.is_empty())
}

/// The Pod as the target of an endpoint.
pub(super) fn reference_to(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".to_owned()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

/// The hostname that DNS gives the Pod under this Service.
pub(super) fn hostname_of(pod: &Pod, service: &Service) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let hostname = spec.hostname.as_ref().filter(|name| !name.is_empty())?;
    (spec.subdomain == service.metadata.name).then(|| hostname.clone())
}

fn node_of<'a>(store: &'a Store, pod: &Pod) -> Option<&'a Node> {
    let name = node_name(pod)?;
    let key = ObjectKey {
        kind: Kind::Node,
        namespace: "".into(),
        name: name.into(),
    };
    store.get(&key)?.as_node()
}

/// The node that the Pod is on.
pub(super) fn node_name(pod: &Pod) -> Option<&str> {
    let name = pod.spec.as_ref()?.node_name.as_deref()?;
    (!name.is_empty()).then_some(name)
}

fn endpoint_of(
    pod: &Pod,
    node: Option<&Node>,
    service: &Service,
    family: Family,
) -> Option<Endpoint> {
    let addresses: Vec<_> = pod
        .status
        .iter()
        .filter_map(|status| status.pod_ips.as_ref())
        .flatten()
        .filter_map(|entry| ips::parse_sloppily(&entry.ip))
        .filter(|ip| Family::of(*ip) == family)
        .map(|ip| ip.to_string())
        .collect();
    if addresses.is_empty() {
        return None;
    }
    let serving = is_ready(pod);
    let terminating = is_terminating(pod);
    let publishes = spec_of(service).publish_not_ready_addresses == Some(true);
    Some(Endpoint {
        addresses,
        conditions: Some(EndpointConditions {
            ready: Some(publishes || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: hostname_of(pod, service),
        node_name: node_name(pod).map(str::to_owned),
        target_ref: Some(reference_to(pod)),
        zone: node.and_then(zone_of).map(str::to_owned),
        ..Endpoint::default()
    })
}
