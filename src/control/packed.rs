//! An object in few bytes: its JSON, compressed against a text that has what such objects have in common. Pure.
//!
//! Small texts compress badly alone, because they repeat little of themselves; but they repeat each other. The same
//! object is the same bytes, so packed objects can be compared.

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Kind, Object};

/// What the compressor may refer to before the first byte. In the order in which the fields are written, and the most
/// frequent kind last. Lives in memory only, so it may change with any version.
const DICTIONARY: &[u8] = br#"{"apiVersion":"v1","kind":"Namespace","metadata":{"creationTimestamp":"2026-01-01T00:00:00Z","name":"default","uid":"00000000-0000-0000-0000-000000000000"},"status":{"phase":"Active"}}{"apiVersion":"v1","kind":"Pod","metadata":{"creationTimestamp":"2026-01-01T00:00:00Z","name":"web","namespace":"default","uid":"00000000-0000-0000-0000-000000000000"},"spec":{"containers":[],"hostNetwork":true,"nodeName":"node-1"},"status":{"conditions":[{"lastTransitionTime":"2026-01-01T00:00:00Z","status":"True","type":"Ready"}],"phase":"Running","podIP":"10.0.0.1","podIPs":[{"ip":"10.0.0.1"}]}}{"apiVersion":"v1","kind":"Service","metadata":{"annotations":{"viaduct.dev/"},"creationTimestamp":"2026-01-01T00:00:00Z","deletionTimestamp":"labels":{"app":"web","app.kubernetes.io/component":"app.kubernetes.io/instance":"app.kubernetes.io/managed-by":"Helm","app.kubernetes.io/name":"app.kubernetes.io/part-of":"app.kubernetes.io/version":"helm.sh/chart":"},"name":"web","namespace":"default","resourceVersion":"10000","uid":"00000000-0000-0000-0000-000000000000"},"spec":{"allocateLoadBalancerNodePorts":true,"clusterIP":"10.96.0.1","clusterIPs":["10.96.0.1","fd00::1"],"externalIPs":["externalTrafficPolicy":"Local","healthCheckNodePort":30000,"externalTrafficPolicy":"Cluster","internalTrafficPolicy":"Cluster","ipFamilies":["IPv4","IPv6"],"ipFamilyPolicy":"PreferDualStack","ipFamilies":["IPv4"],"ipFamilyPolicy":"SingleStack","loadBalancerClass":"loadBalancerIP":"loadBalancerSourceRanges":["ports":[{"appProtocol":"http","name":"http","nodePort":30080,"port":80,"protocol":"TCP","targetPort":8080},{"name":"https","port":443,"protocol":"TCP","targetPort":"https"},{"name":"metrics","port":9090,"protocol":"UDP","targetPort":"metrics"}],"publishNotReadyAddresses":true,"selector":{"app":"web","app.kubernetes.io/instance":"app.kubernetes.io/name":"},"sessionAffinity":"ClientIP","sessionAffinityConfig":{"clientIP":{"timeoutSeconds":10800}},"trafficDistribution":"PreferClose","type":"NodePort","clusterIP":"None","clusterIPs":["None"],"sessionAffinity":"None","type":"LoadBalancer"},"status":{"loadBalancer":{"ingress":[{"ip":"192.0.2.1","ipMode":"VIP"},{"hostname":"}]}}},"sessionAffinity":"None","type":"ClusterIP"},"status":{"loadBalancer":{}}}{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","addressType":"IPv6","endpoints":[],"addressType":"IPv4","endpoints":[{"addresses":["10.0.0.1"],"conditions":{"ready":false,"serving":true,"terminating":true},"hints":{"forNodes":[{"name":"forZones":[{"name":"zone-a"}]},"hostname":"web-0","nodeName":"node-1","zone":"zone-a"},{"addresses":["10.0.0.1"],"conditions":{"ready":true,"serving":true,"terminating":false},"nodeName":"node-1","targetRef":{"kind":"Pod","name":"web","namespace":"default"},"zone":"zone-a"}],"metadata":{"annotations":{"endpoints.kubernetes.io/last-change-trigger-time":"2026-01-01T00:00:00Z"},"creationTimestamp":"2026-01-01T00:00:00Z","generation":1,"labels":{"app":"web","endpointslice.kubernetes.io/managed-by":"endpointslice-controller.k8s.io","service.kubernetes.io/headless":"","kubernetes.io/service-name":"web"},"name":"web","namespace":"default","resourceVersion":"10000","uid":"00000000-0000-0000-0000-000000000000"},"ports":[{"name":"","port":8080,"protocol":"TCP"},{"name":"http","port":8080,"protocol":"TCP"}]}"#;

/// An object, packed. Cloning shares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Packed(Arc<[u8]>);

impl Packed {
    /// `None` if it cannot be written as JSON.
    pub(super) fn of(object: &Object) -> Option<Self> {
        let json = match object {
            Object::Namespace(object) => json(object),
            Object::Node(object) => json(object),
            Object::Service(object) => json(object),
            Object::Pod(object) => json(object),
            Object::EndpointSlice(object) => json(object),
            Object::Endpoints(object) => json(object),
        };
        let packed = lz4_flex::block::compress_prepend_size_with_dict(&json?, DICTIONARY);
        Some(Self(packed.into()))
    }

    /// The object again; `None` if it is of another kind.
    pub(super) fn read(&self, kind: Kind) -> Option<Object> {
        let json = lz4_flex::block::decompress_size_prepended_with_dict(&self.0, DICTIONARY);
        let json = json.ok()?;
        Some(match kind {
            Kind::Namespace => Object::Namespace(object(&json)?),
            Kind::Node => Object::Node(object(&json)?),
            Kind::Service => Object::Service(object(&json)?),
            Kind::Pod => Object::Pod(object(&json)?),
            Kind::EndpointSlice => Object::EndpointSlice(object(&json)?),
            Kind::Endpoints => Object::Endpoints(object(&json)?),
        })
    }
}

fn json(object: &impl Serialize) -> Option<Vec<u8>> {
    serde_json::to_vec(object).ok()
}

fn object<T: DeserializeOwned>(json: &[u8]) -> Option<Box<T>> {
    serde_json::from_slice(json).ok().map(Box::new)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::control::{UnknownFields, decode};

    #[test]
    fn what_all_slices_say_takes_little() {
        let endpoint = |i: u32| {
            json!({
                "addresses": [format!("10.12.7.{i}")], "conditions": {"ready": true, "serving": true, "terminating": false},
                "nodeName": format!("worker-{i}.example"), "zone": "eu-1b",
                "targetRef": {"kind": "Pod", "namespace": "shop", "name": format!("checkout-7d4b9c-{i}")},
            })
        };
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {
                "name": "checkout-x7k2p", "namespace": "shop", "resourceVersion": "8812345",
                "labels": {
                    "kubernetes.io/service-name": "checkout",
                    "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                },
            },
            "endpoints": [endpoint(1), endpoint(2), endpoint(3)],
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        });
        let (slice, _) = decode(slice, UnknownFields::Refuse).unwrap();
        let packed = Packed::of(&slice).unwrap();
        assert_eq!(packed.read(Kind::EndpointSlice).unwrap(), slice);
        let Object::EndpointSlice(inner) = &slice else {
            panic!("it is a slice")
        };
        let whole = serde_json::to_vec(inner).unwrap().len();
        let share = 100 * packed.0.len() / whole;
        assert!(share < 45, "{share} % of {whole} bytes");
    }

    #[test]
    fn what_cannot_be_read_is_nothing() {
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}});
        let (namespace, _) = decode(namespace, UnknownFields::Refuse).unwrap();
        let packed = Packed::of(&namespace).unwrap();
        assert_eq!(packed.read(Kind::Service), None, "of another kind");
        let cut = packed.0[..packed.0.len() / 2].into();
        assert_eq!(Packed(cut).read(Kind::Namespace), None);
        assert_eq!(Packed([].into()).read(Kind::Namespace), None);
    }
}
