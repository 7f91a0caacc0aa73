//! Nodes and Pods narrowed: addresses, zone, and what DNS must know of a Pod.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as k8s;

use super::{identity, label, parse_ip, parse_net};
use crate::model::{Node, NodeName, Pod};

/// The zone of a node.
const ZONE: &str = "topology.kubernetes.io/zone";

/// Narrows a Node; `None` if it has no name.
pub fn node(object: &k8s::Node) -> Option<Node> {
    let name = NodeName::parse(object.metadata.name.as_deref()?)?;
    let zone = label(&object.metadata, ZONE).filter(|zone| !zone.is_empty());
    Some(Node {
        name,
        zone: zone.map(Into::into),
        addresses: node_addresses(object),
        pod_cidrs: pod_cidrs(object.spec.as_ref()),
    })
}

/// `podCIDRs`, or `podCIDR` where only the older field is set.
fn pod_cidrs(spec: Option<&k8s::NodeSpec>) -> Vec<IpNet> {
    let Some(spec) = spec else {
        return Vec::new();
    };
    let listed = spec.pod_cidrs.as_deref().unwrap_or_default();
    let texts = listed.iter().chain(&spec.pod_cidr);
    let mut found: Vec<IpNet> = Vec::new();
    for cidr in texts.filter_map(|text| parse_net(text)) {
        if !found.contains(&cidr) {
            found.push(cidr);
        }
    }
    found
}

/// Internal addresses come first whatever their place in the list, as in kube-proxy (`GetNodeHostIPs`).
fn node_addresses(object: &k8s::Node) -> Vec<IpAddr> {
    let listed = object
        .status
        .as_ref()
        .and_then(|status| status.addresses.as_deref())
        .unwrap_or_default();
    let mut found: Vec<IpAddr> = Vec::new();
    for wanted in ["InternalIP", "ExternalIP"] {
        let of_type = listed.iter().filter(|address| address.type_ == wanted);
        for ip in of_type.filter_map(|address| parse_ip(&address.address)) {
            if !found.contains(&ip) {
                found.push(ip);
            }
        }
    }
    found
}

/// Narrows a Pod; `None` if it has no name or no address yet.
pub fn pod(object: &k8s::Pod) -> Option<Pod> {
    let (namespace, name) = identity(&object.metadata);
    let ips = pod_ips(object.status.as_ref()?);
    if name.is_empty() || ips.is_empty() {
        return None;
    }
    let phase = object.status.as_ref()?.phase.as_deref();
    let is_deleted = object.metadata.deletion_timestamp.is_some();
    let spec = object.spec.as_ref();
    Some(Pod {
        namespace,
        name,
        ips,
        finished: is_deleted || matches!(phase, Some("Succeeded" | "Failed")),
        host_network: spec.and_then(|spec| spec.host_network) == Some(true),
    })
}

/// `podIPs`, or `podIP` where only the older field is set.
fn pod_ips(status: &k8s::PodStatus) -> Vec<IpAddr> {
    let listed = status.pod_ips.as_deref().unwrap_or_default();
    let ips: Vec<IpAddr> = listed
        .iter()
        .filter_map(|entry| parse_ip(&entry.ip))
        .collect();
    if !ips.is_empty() {
        return ips;
    }
    status
        .pod_ip
        .as_deref()
        .and_then(parse_ip)
        .into_iter()
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn narrowed_node(object: Value) -> Option<Node> {
        node(&serde_json::from_value(object).unwrap())
    }

    fn narrowed_pod(mut status: Value, spec: Value) -> Option<Pod> {
        status["phase"] = status.get("phase").cloned().unwrap_or(json!("Running"));
        let metadata = json!({"name": "web-0", "namespace": "shop"});
        pod(
            &serde_json::from_value(json!({"metadata": metadata, "spec": spec, "status": status}))
                .unwrap(),
        )
    }

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn internal_addresses_come_before_external_ones() {
        let found = narrowed_node(json!({
            "metadata": {"name": "Node-A", "labels": {ZONE: "z1"}},
            "status": {"addresses": [
                {"type": "Hostname", "address": "node-a"},
                {"type": "ExternalIP", "address": "192.0.2.1"},
                {"type": "InternalIP", "address": "10.0.0.1"},
                {"type": "InternalIP", "address": "fd00::1"},
                {"type": "ExternalIP", "address": "10.0.0.1"},
                {"type": "InternalIP", "address": "nonsense"},
            ]},
        }))
        .unwrap();
        assert_eq!(found.name.as_str(), "node-a");
        assert_eq!(found.zone.as_deref(), Some("z1"));
        assert_eq!(found.addresses, ips(&["10.0.0.1", "fd00::1", "192.0.2.1"]));
    }

    #[test]
    fn pod_cidrs_come_from_either_field() {
        let cidrs = |spec: Value| -> Vec<String> {
            let found = narrowed_node(json!({"metadata": {"name": "a"}, "spec": spec})).unwrap();
            found.pod_cidrs.iter().map(ToString::to_string).collect()
        };
        let both = json!({"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24", "fd00::/64", "x"]});
        assert_eq!(cidrs(both), ["10.1.0.0/24", "fd00::/64"]);
        assert_eq!(cidrs(json!({"podCIDR": "10.1.0.0/24"})), ["10.1.0.0/24"]);
        assert_eq!(cidrs(json!({})), [""; 0]);
    }

    #[test]
    fn a_node_may_lack_everything_but_its_name() {
        let found =
            narrowed_node(json!({"metadata": {"name": "a", "labels": {ZONE: ""}}})).unwrap();
        assert_eq!((found.zone, found.addresses), (None, vec![]));
        assert_eq!(narrowed_node(json!({"metadata": {}})), None);
        assert_eq!(narrowed_node(json!({"metadata": {"name": " "}})), None);
    }

    #[test]
    fn a_pod_is_known_by_all_its_addresses() {
        let found = narrowed_pod(
            json!({"podIP": "10.1.0.1", "podIPs": [{"ip": "10.1.0.1"}, {"ip": "fd00::1"}]}),
            json!(null),
        )
        .unwrap();
        assert_eq!((&*found.namespace, &*found.name), ("shop", "web-0"));
        assert_eq!(found.ips, ips(&["10.1.0.1", "fd00::1"]));
        assert!(!found.finished && !found.host_network);
        let old = narrowed_pod(json!({"podIP": "10.1.0.1"}), json!(null)).unwrap();
        assert_eq!(old.ips, ips(&["10.1.0.1"]));
    }

    #[test]
    fn pods_without_an_address_or_a_name_are_left_out() {
        assert_eq!(narrowed_pod(json!({}), json!(null)), None);
        assert_eq!(narrowed_pod(json!({"podIP": ""}), json!(null)), None);
        assert_eq!(pod(&k8s::Pod::default()), None);
        let nameless = json!({"metadata": {}, "status": {"podIP": "10.1.0.1"}});
        assert_eq!(pod(&serde_json::from_value(nameless).unwrap()), None);
    }

    #[test]
    fn a_pod_that_is_being_deleted_counts_as_finished() {
        let leaving = json!({
            "metadata": {"namespace": "shop", "name": "web-0", "deletionTimestamp": "2026-01-01T00:00:00Z"},
            "status": {"podIP": "10.1.0.1", "phase": "Running"},
        });
        let found = pod(&serde_json::from_value(leaving).unwrap()).unwrap();
        assert!(found.finished);
    }

    #[test]
    fn finished_and_host_network_pods_are_marked() {
        for (phase, finished) in [
            ("Succeeded", true),
            ("Failed", true),
            ("Running", false),
            ("Pending", false),
        ] {
            let found = narrowed_pod(
                json!({"podIP": "10.1.0.1", "phase": phase}),
                json!({"hostNetwork": true, "containers": []}),
            )
            .unwrap();
            assert_eq!(
                (found.finished, found.host_network),
                (finished, true),
                "{phase}"
            );
        }
    }
}
