//! What is kept of an object: what routing, DNS and `viaduct get` read. Pure.
//!
//! The rest would be most of the memory of a large cluster: field managers, the manifest that kubectl keeps in an
//! annotation, images of a node, containers of a Pod.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Namespace, NamespaceSpec, NamespaceStatus, Node, NodeSpec, NodeStatus, Pod, PodSpec, PodStatus,
    Service,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::control::Object;

/// A copy of the object as it was applied, for kubectl's own use.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The annotations that are ours, or that we read as ours.
const OUR_ANNOTATIONS: [&str; 2] = ["viaduct.dev/", "service.cilium.io/"];

/// The object without what nobody here reads.
pub(super) fn trimmed(object: Object) -> Object {
    match object {
        Object::Service(mut service) => {
            trim_metadata(&mut service.metadata);
            trim_service(&mut service);
            Object::Service(service)
        }
        Object::EndpointSlice(mut slice) => {
            trim_metadata(&mut slice.metadata);
            trim_slice(&mut slice);
            Object::EndpointSlice(slice)
        }
        Object::Node(node) => Object::Node(Box::new(trimmed_node(*node))),
        Object::Pod(pod) => Object::Pod(Box::new(trimmed_pod(*pod))),
        Object::Namespace(namespace) => Object::Namespace(Box::new(Namespace {
            metadata: identity(namespace.metadata),
            spec: None::<NamespaceSpec>,
            status: namespace.status.map(|status| NamespaceStatus {
                phase: status.phase,
                ..NamespaceStatus::default()
            }),
        })),
        Object::Endpoints(endpoints) => Object::Endpoints(endpoints),
    }
}

fn trim_metadata(metadata: &mut ObjectMeta) {
    metadata.managed_fields = None;
    let Some(annotations) = &mut metadata.annotations else {
        return;
    };
    annotations.remove(LAST_APPLIED);
    if annotations.is_empty() {
        metadata.annotations = None;
    }
}

// Annotations of others may be long, and nobody here reads them.
fn trim_service(service: &mut Service) {
    let Some(annotations) = &mut service.metadata.annotations else {
        return;
    };
    annotations.retain(|key, _| OUR_ANNOTATIONS.iter().any(|prefix| key.starts_with(prefix)));
    if annotations.is_empty() {
        service.metadata.annotations = None;
    }
}

fn trim_slice(slice: &mut EndpointSlice) {
    slice.metadata.generate_name = None;
    slice.metadata.owner_references = None;
    for endpoint in slice.endpoints.iter_mut().flatten() {
        endpoint.deprecated_topology = None;
        if let Some(target) = &mut endpoint.target_ref {
            target.uid = None;
            target.resource_version = None;
        }
    }
}

// What tells one object from another, and when it came and goes. Without the version: it grows with every heartbeat of
// a node, and an object that says nothing new should look the same.
fn identity(metadata: ObjectMeta) -> ObjectMeta {
    ObjectMeta {
        name: metadata.name,
        namespace: metadata.namespace,
        uid: metadata.uid,
        creation_timestamp: metadata.creation_timestamp,
        deletion_timestamp: metadata.deletion_timestamp,
        ..ObjectMeta::default()
    }
}

fn trimmed_node(node: Node) -> Node {
    let labels = node.metadata.labels.clone();
    let topology = |map: BTreeMap<String, String>| -> BTreeMap<String, String> {
        let kept = map
            .into_iter()
            .filter(|(key, _)| key.contains("kubernetes.io/"));
        kept.collect()
    };
    let status = node.status.map(|status| NodeStatus {
        addresses: status.addresses,
        conditions: status.conditions.map(|conditions| {
            let ready = conditions.into_iter().filter(|c| c.type_ == "Ready");
            // The heartbeat changes every few seconds and tells nothing.
            ready
                .map(|mut condition| {
                    condition.last_heartbeat_time = None;
                    condition
                })
                .collect()
        }),
        ..NodeStatus::default()
    });
    Node {
        metadata: ObjectMeta {
            labels: labels.map(topology),
            ..identity(node.metadata)
        },
        spec: node.spec.map(|spec| NodeSpec {
            pod_cidr: spec.pod_cidr,
            pod_cidrs: spec.pod_cidrs,
            taints: spec.taints,
            unschedulable: spec.unschedulable,
            ..NodeSpec::default()
        }),
        status,
    }
}

fn trimmed_pod(pod: Pod) -> Pod {
    Pod {
        metadata: identity(pod.metadata),
        spec: pod.spec.map(|spec| PodSpec {
            host_network: spec.host_network,
            node_name: spec.node_name,
            ..PodSpec::default()
        }),
        status: pod.status.map(|status| PodStatus {
            phase: status.phase,
            pod_ip: status.pod_ip,
            pod_ips: status.pod_ips,
            conditions: status.conditions.map(|conditions| {
                conditions
                    .into_iter()
                    .filter(|c| c.type_ == "Ready")
                    .collect()
            }),
            ..PodStatus::default()
        }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::control::{UnknownFields, decode};

    fn kept(document: Value) -> Value {
        let (object, _) = decode(document, UnknownFields::Refuse).unwrap();
        trimmed(object).to_json().unwrap()
    }

    #[test]
    fn a_service_keeps_its_spec_and_our_annotations() {
        let spec = json!({"type": "ClusterIP", "clusterIP": "10.96.0.1", "selector": {"a": "b"}, "ports": [{"port": 80}]});
        let kept = kept(json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "name": "web", "namespace": "shop", "resourceVersion": "7", "labels": {"x": "y"},
                "annotations": {LAST_APPLIED: "{}", "example.com/long": "text", "viaduct.dev/retries": "2"},
                "managedFields": [{"manager": "kubectl"}],
            },
            "spec": spec,
        }));
        assert_eq!(kept["spec"]["selector"], spec["selector"]);
        assert_eq!(
            kept["metadata"],
            json!({
                "name": "web", "namespace": "shop", "resourceVersion": "7", "labels": {"x": "y"},
                "annotations": {"viaduct.dev/retries": "2"},
            })
        );
    }

    #[test]
    fn a_slice_keeps_what_routing_and_dns_read() {
        let endpoint = json!({
            "addresses": ["10.1.0.1"], "conditions": {"ready": true}, "hostname": "a", "nodeName": "n1", "zone": "z",
            "hints": {"forZones": [{"name": "z"}]}, "targetRef": {"kind": "Pod", "name": "p", "namespace": "default"},
        });
        let mut given = endpoint.clone();
        given["targetRef"]["uid"] = "1234".into();
        given["deprecatedTopology"] = json!({"old": "label"});
        let kept = kept(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "web-1", "generateName": "web-", "annotations": {LAST_APPLIED: "{}"}},
            "endpoints": [given], "ports": [{"name": "", "port": 80}],
        }));
        assert_eq!(kept["endpoints"], json!([endpoint]));
        assert_eq!(kept["metadata"], json!({"name": "web-1"}));
    }

    #[test]
    fn a_node_keeps_where_and_whether_it_is() {
        let kept = kept(json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "z", "flavour": "large"}},
            "spec": {"podCIDRs": ["10.1.0.0/24"], "providerID": "x", "taints": [{"key": "k", "effect": "NoSchedule"}]},
            "status": {
                "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}],
                "images": [{"names": ["a"], "sizeBytes": 1}],
                "conditions": [
                    {"type": "Ready", "status": "True", "lastHeartbeatTime": "2026-01-01T00:00:00Z"},
                    {"type": "DiskPressure", "status": "False"},
                ],
            },
        }));
        assert_eq!(
            kept["metadata"]["labels"],
            json!({"topology.kubernetes.io/zone": "z"})
        );
        assert_eq!(
            kept["spec"],
            json!({"podCIDRs": ["10.1.0.0/24"], "taints": [{"key": "k", "effect": "NoSchedule"}]})
        );
        assert_eq!(
            kept["status"],
            json!({
                "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}],
                "conditions": [{"type": "Ready", "status": "True"}],
            })
        );
    }

    #[test]
    fn a_pod_keeps_its_addresses() {
        let kept = kept(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "p", "namespace": "shop", "labels": {"a": "b"}},
            "spec": {"hostNetwork": true, "nodeName": "n1", "containers": [{"name": "c", "env": [{"name": "PASSWORD", "value": "x"}]}]},
            "status": {"phase": "Running", "podIP": "10.1.0.1", "hostIP": "192.0.2.1"},
        }));
        assert_eq!(kept["spec"]["hostNetwork"], true);
        assert_eq!(kept["spec"]["containers"], json!([]));
        assert_eq!(
            kept["status"],
            json!({"phase": "Running", "podIP": "10.1.0.1"})
        );
        assert_eq!(kept["metadata"], json!({"name": "p", "namespace": "shop"}));
    }
}
