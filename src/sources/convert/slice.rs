//! An EndpointSlice narrowed: its family, its usable ports, its endpoints with conditions filled in.

use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::discovery::v1 as k8s;
use smallvec::SmallVec;

use super::{Converted, Note, SCTP, exactly, identity, label, parse_ip, protocol};
use crate::model::{
    Endpoint, EndpointSlice, Family, Hints, NodeName, Port, SctpPort, ServiceName, SliceKey,
    SlicePort,
};

/// Names the Service that a slice belongs to.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Marks slices of Services without a cluster IP; present counts, whatever its value.
const HEADLESS: &str = "service.kubernetes.io/headless";

/// When the change that the slice tells of happened.
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// Narrows a slice. `None` if it belongs to no Service, or if its addresses are no IP addresses (`FQDN`): there is
/// nothing in it to route to.
pub fn slice(object: &k8s::EndpointSlice) -> Option<Converted<EndpointSlice>> {
    let service = label(&object.metadata, SERVICE_NAME).filter(|name| !name.is_empty())?;
    let family = match object.address_type.as_str() {
        "IPv4" => Family::V4,
        "IPv6" => Family::V6,
        _ => return None,
    };
    let (namespace, name) = identity(&object.metadata);
    let mut notes = Vec::new();
    let value = EndpointSlice {
        service: ServiceName::new(Arc::clone(&namespace), service),
        key: SliceKey { namespace, name },
        family,
        ports: ports(object, &mut notes),
        sctp_ports: sctp_ports(object),
        endpoints: endpoints(object, family, &mut notes),
        triggered: triggered(object),
        headless: label(&object.metadata, HEADLESS).is_some(),
    };
    Some(Converted { value, notes })
}

// For a figure only, so one that cannot be read is none.
fn triggered(object: &k8s::EndpointSlice) -> Option<Timestamp> {
    let annotations = object.metadata.annotations.as_ref()?;
    annotations.get(TRIGGER_TIME)?.parse().ok()
}

/// The slice without endpoints at loopback addresses, which an API server would not have accepted: behind them is
/// whatever listens on this node for itself alone. Routing uses an endpoint's first address, so that one decides.
pub fn without_loopback(slice: Converted<EndpointSlice>) -> Converted<EndpointSlice> {
    let Converted {
        mut value,
        mut notes,
    } = slice;
    value.endpoints.retain(|endpoint| {
        let loopback = endpoint.addresses.first().filter(|ip| ip.is_loopback());
        if let Some(ip) = loopback {
            let message = format!("{ip} is a loopback address; the endpoint is skipped");
            notes.push(Note::new("endpoints", message));
        }
        loopback.is_none()
    });
    Converted { value, notes }
}

fn sctp_ports(object: &k8s::EndpointSlice) -> Vec<SctpPort> {
    let raw = object.ports.iter().flatten();
    raw.filter(|raw| raw.protocol.as_deref() == Some(SCTP))
        .filter_map(|raw| {
            Some(SctpPort {
                name: raw.name.as_deref()?.into(),
                port: Port::try_from(raw.port?).ok()?,
            })
        })
        .collect()
}

/// A port is paired by its name, so one without a name field pairs with nothing; the name `""` is a name. A port
/// without a number means "all ports", which no proxy implements.
fn ports(object: &k8s::EndpointSlice, notes: &mut Vec<Note>) -> Vec<SlicePort> {
    let raw = object.ports.as_deref().unwrap_or_default();
    let narrow = |(index, raw): (usize, &k8s::EndpointPort)| {
        let mut skipped = |name: &str, why: String| {
            notes.push(Note::new(format!("ports[{index}].{name}"), why));
        };
        let Some(name) = raw.name.as_deref() else {
            skipped("name", "a port without a name field is skipped".to_owned());
            return None;
        };
        let number = raw.port.unwrap_or_default();
        let port = Port::try_from(number)
            .map_err(|why| skipped("port", format!("{why}; the port is skipped")))
            .ok()?;
        let protocol = protocol(raw.protocol.as_deref())
            .map_err(|why| skipped("protocol", why))
            .ok()?;
        Some(SlicePort {
            name: name.into(),
            protocol,
            port: port.number(),
        })
    };
    exactly(raw.iter().enumerate().filter_map(narrow))
}

fn endpoints(object: &k8s::EndpointSlice, family: Family, notes: &mut Vec<Note>) -> Vec<Endpoint> {
    let raw = object.endpoints.as_deref().unwrap_or_default();
    let narrow = |(index, raw): (usize, &k8s::Endpoint)| {
        let addresses = addresses(index, raw, family, notes);
        (!addresses.is_empty()).then(|| endpoint(addresses, raw))
    };
    exactly(raw.iter().enumerate().filter_map(narrow))
}

fn addresses(
    endpoint: usize,
    raw: &k8s::Endpoint,
    family: Family,
    notes: &mut Vec<Note>,
) -> SmallVec<[IpAddr; 1]> {
    let narrow = |(index, text): (usize, &String)| {
        let ip = parse_ip(text).filter(|ip| Family::of(*ip) == family);
        if ip.is_none() {
            let field = format!("endpoints[{endpoint}].addresses[{index}]");
            let message = format!("{text:?} is no {family} address; it is skipped");
            notes.push(Note::new(field, message));
        }
        ip
    };
    raw.addresses
        .iter()
        .enumerate()
        .filter_map(narrow)
        .collect()
}

/// Missing conditions count in favour of the endpoint. Source: the API documentation of `EndpointConditions`.
fn endpoint(addresses: SmallVec<[IpAddr; 1]>, raw: &k8s::Endpoint) -> Endpoint {
    let conditions = raw.conditions.clone().unwrap_or_default();
    let target = raw.target_ref.as_ref();
    let pod = target.filter(|target| target.kind.as_deref() == Some("Pod"));
    Endpoint {
        addresses,
        ready: conditions.ready.unwrap_or(true),
        serving: conditions.serving.unwrap_or(true),
        terminating: conditions.terminating.unwrap_or(false),
        node: raw.node_name.as_deref().and_then(NodeName::parse),
        zone: non_empty(raw.zone.as_deref()),
        hostname: non_empty(raw.hostname.as_deref()),
        pod: pod.and_then(|pod| non_empty(pod.name.as_deref())),
        hints: hints(raw.hints.as_ref()),
    }
}

fn hints(raw: Option<&k8s::EndpointHints>) -> Option<Box<Hints>> {
    let raw = raw?;
    let zones = raw.for_zones.as_deref().unwrap_or_default();
    let nodes = raw.for_nodes.as_deref().unwrap_or_default();
    let hints = Hints {
        zones: zones.iter().map(|zone| zone.name.as_str().into()).collect(),
        nodes: nodes.iter().map(|node| node.name.as_str().into()).collect(),
    };
    (hints != Hints::default()).then(|| Box::new(hints))
}

fn non_empty(text: Option<&str>) -> Option<Arc<str>> {
    text.filter(|text| !text.is_empty()).map(Into::into)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::model::Protocol;

    fn converted(mut object: Value) -> Option<Converted<EndpointSlice>> {
        object["metadata"]["name"] = json!("web-abc");
        slice(&serde_json::from_value(object).unwrap())
    }

    fn of_web(ports: Value, endpoints: Value) -> Converted<EndpointSlice> {
        let metadata = json!({"namespace": "shop", "labels": {SERVICE_NAME: "web"}});
        converted(json!({"metadata": metadata, "addressType": "IPv4", "ports": ports, "endpoints": endpoints})).unwrap()
    }

    fn fields(notes: &[Note]) -> Vec<&str> {
        notes.iter().map(|note| note.field.as_str()).collect()
    }

    #[test]
    fn slices_without_a_service_or_without_ip_addresses_are_left_out() {
        let with = |labels: Value, address_type: &str| {
            converted(json!({"metadata": {"labels": labels}, "addressType": address_type}))
                .is_some()
        };
        assert!(with(json!({SERVICE_NAME: "web"}), "IPv4"));
        assert!(with(json!({SERVICE_NAME: "web"}), "IPv6"));
        assert!(!with(json!({SERVICE_NAME: "web"}), "FQDN"));
        assert!(!with(json!({SERVICE_NAME: ""}), "IPv4"));
        assert!(!with(json!({"app": "web"}), "IPv4"));
        assert!(!with(json!(null), "IPv4"));
    }

    #[test]
    fn identity_and_the_headless_label_are_kept() {
        let labels = json!({SERVICE_NAME: "web", HEADLESS: ""});
        let value = converted(json!({"metadata": {"labels": labels}, "addressType": "IPv6"}))
            .unwrap()
            .value;
        assert_eq!(value.key.to_string(), "default/web-abc");
        assert_eq!(value.service.to_string(), "default/web");
        assert_eq!((value.family, value.headless), (Family::V6, true));
        assert!(!of_web(json!(null), json!([])).value.headless);
    }

    #[test]
    fn ports_need_a_name_field_a_number_and_a_served_protocol() {
        let Converted { value, notes } = of_web(
            json!([
                {"name": "", "port": 80},
                {"name": "dns", "port": 53, "protocol": "UDP"},
                {"port": 81},
                {"name": "zero", "port": 0},
                {"name": "all"},
                {"name": "big", "port": 65536},
                {"name": "sctp", "port": 82, "protocol": "SCTP"},
            ]),
            json!([]),
        );
        let port = |name: &str, protocol, port| SlicePort {
            name: name.into(),
            protocol,
            port,
        };
        let sctp: Vec<_> = value.sctp_ports.iter().map(|port| &*port.name).collect();
        assert_eq!(sctp, ["sctp"], "DNS names it");
        assert_eq!(
            value.ports,
            [port("", Protocol::Tcp, 80), port("dns", Protocol::Udp, 53)]
        );
        assert_eq!(
            fields(&notes),
            [
                "ports[2].name",
                "ports[3].port",
                "ports[4].port",
                "ports[5].port",
                "ports[6].protocol"
            ]
        );
    }

    #[test]
    fn missing_conditions_count_in_favour_of_the_endpoint() {
        let conditions = |conditions: Value| {
            let endpoint = json!([{"addresses": ["10.1.0.1"], "conditions": conditions}]);
            let endpoint = of_web(json!([]), endpoint).value.endpoints.remove(0);
            (endpoint.ready, endpoint.serving, endpoint.terminating)
        };
        assert_eq!(conditions(json!(null)), (true, true, false));
        assert_eq!(conditions(json!({})), (true, true, false));
        assert_eq!(conditions(json!({"ready": false})), (false, true, false));
        assert_eq!(
            conditions(json!({"ready": false, "serving": false, "terminating": true})),
            (false, false, true)
        );
    }

    #[test]
    fn endpoints_keep_what_routing_and_dns_need() {
        let Converted { value, notes } = of_web(
            json!([]),
            json!([{
                "addresses": ["10.1.0.01", "10.1.0.2"],
                "nodeName": "Node-A",
                "zone": "z1",
                "hostname": "web-0",
                "targetRef": {"kind": "Pod", "name": "web-0-pod"},
                "hints": {"forZones": [{"name": "z1"}, {"name": "z2"}], "forNodes": [{"name": "node-a"}]},
            }]),
        );
        assert_eq!(notes, []);
        let expected = Endpoint {
            addresses: ["10.1.0.1", "10.1.0.2"]
                .iter()
                .map(|ip| ip.parse().unwrap())
                .collect(),
            ready: true,
            serving: true,
            terminating: false,
            node: NodeName::parse("node-a"),
            zone: Some("z1".into()),
            hostname: Some("web-0".into()),
            pod: Some("web-0-pod".into()),
            hints: Some(Box::new(Hints {
                zones: vec!["z1".into(), "z2".into()],
                nodes: vec!["node-a".into()],
            })),
        };
        assert_eq!(value.endpoints, [expected]);
    }

    #[test]
    fn empty_texts_and_targets_other_than_pods_are_nothing() {
        let value = of_web(
            json!([]),
            json!([{"addresses": ["10.1.0.1"], "nodeName": "", "zone": "", "hostname": "", "targetRef": {"kind": "Node", "name": "n"}}]),
        ).value;
        let endpoint = &value.endpoints[0];
        assert_eq!(
            (
                &endpoint.node,
                &endpoint.zone,
                &endpoint.hostname,
                &endpoint.pod
            ),
            (&None, &None, &None, &None)
        );
    }

    #[test]
    fn unusable_addresses_are_skipped_and_with_the_last_the_endpoint() {
        let Converted { value, notes } = of_web(
            json!([]),
            json!([
                {"addresses": []},
                {"addresses": ["fd00::1"]},
                {"addresses": ["web", "10.1.0.1"]},
            ]),
        );
        assert_eq!(value.endpoints.len(), 1);
        assert_eq!(
            value.endpoints[0].addresses[..],
            ["10.1.0.1".parse::<IpAddr>().unwrap()]
        );
        assert_eq!(
            fields(&notes),
            ["endpoints[1].addresses[0]", "endpoints[2].addresses[0]"]
        );
    }
}
