//! A Service narrowed: its kind, addresses, ports and policies.
//!
//! Which of them are served, and what wins where two Services claim the same, is for `routing`.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as k8s;

use super::{
    Converted, Note, SCTP, annotations, exactly, identity, label, parse_ip, parse_net, protocol,
};
use crate::model::{
    LoadBalancerAddress, Port, SctpPort, Service, ServiceKind, ServiceName, ServicePort,
    TrafficPolicy,
};

/// Gives a Service to another proxy, whatever its value. Source: KEP-2447.
const SERVICE_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Three hours, the API server's default of `timeoutSeconds`.
const DEFAULT_AFFINITY_TIMEOUT: i32 = 10_800;
/// One day, the most that the API server accepts.
const MAX_AFFINITY_TIMEOUT: i32 = 86_400;

/// Narrows a Service as stored. Also one that never saw an API server's defaults: an absent field is its default.
pub fn service(object: &k8s::Service) -> Converted<Service> {
    let empty = k8s::ServiceSpec::default();
    let spec = object.spec.as_ref().unwrap_or(&empty);
    let mut notes = Vec::new();
    let kind = kind(spec, &mut notes);
    let external_policy = policy(
        "spec.externalTrafficPolicy",
        spec.external_traffic_policy.as_deref(),
        &mut notes,
    );
    let (namespace, name) = identity(&object.metadata);
    let value = Service {
        name: ServiceName { namespace, name },
        cluster_ips: cluster_ips(spec, &kind, &mut notes),
        ports: ports(spec, &kind, &mut notes),
        sctp_ports: sctp_ports(spec),
        external_ips: external_ips(spec, &mut notes),
        load_balancer_ips: load_balancer_ips(object.status.as_ref(), &mut notes),
        source_ranges: source_ranges(spec, &mut notes),
        internal_policy: policy(
            "spec.internalTrafficPolicy",
            spec.internal_traffic_policy.as_deref(),
            &mut notes,
        ),
        external_policy,
        affinity: affinity(spec, &mut notes),
        health_check_node_port: health_check_node_port(spec, &kind, external_policy),
        foreign_proxy: label(&object.metadata, SERVICE_PROXY_NAME).is_some(),
        knobs: annotations::knobs(&object.metadata, &mut notes),
        kind,
    };
    annotations::note_idle_annotations(&value.knobs, &value.ports, &mut notes);
    Converted { value, notes }
}

fn kind(spec: &k8s::ServiceSpec, notes: &mut Vec<Note>) -> ServiceKind {
    let kind = match spec.type_.as_deref() {
        None | Some("" | "ClusterIP") => ServiceKind::ClusterIp,
        Some("NodePort") => ServiceKind::NodePort,
        Some("LoadBalancer") => ServiceKind::LoadBalancer,
        Some("ExternalName") => {
            let target = spec.external_name.as_deref().unwrap_or_default();
            return ServiceKind::ExternalName(alias_target(target));
        }
        Some(other) => {
            let message = format!("unknown type {other:?}; served as ClusterIP");
            notes.push(Note::new("spec.type", message));
            ServiceKind::ClusterIp
        }
    };
    if is_headless(spec) {
        ServiceKind::Headless
    } else {
        kind
    }
}

fn is_headless(spec: &k8s::ServiceSpec) -> bool {
    let first = spec.cluster_ips.as_deref().and_then(<[String]>::first);
    [spec.cluster_ip.as_ref(), first]
        .into_iter()
        .flatten()
        .any(|ip| ip == "None")
}

/// DNS names compare without case, and the API allows a final dot: one spelling from here on.
fn alias_target(raw: &str) -> Arc<str> {
    let name = raw.strip_suffix('.').unwrap_or(raw);
    name.to_ascii_lowercase().into()
}

fn cluster_ips(spec: &k8s::ServiceSpec, kind: &ServiceKind, notes: &mut Vec<Note>) -> Vec<IpAddr> {
    if !has_virtual_addresses(kind) {
        return Vec::new();
    }
    // Objects from before dual-stack have `clusterIP` only.
    let listed = match spec.cluster_ips.as_deref() {
        Some(listed) if !listed.is_empty() => listed,
        Some(_) | None => spec.cluster_ip.as_slice(),
    };
    let narrow = |(index, text): (usize, &String)| {
        let ip = parse_ip(text);
        if ip.is_none() {
            notes.push(not_an_address(format!("spec.clusterIPs[{index}]"), text));
        }
        ip
    };
    let filled = listed.iter().filter(|text| !text.is_empty());
    exactly(filled.enumerate().filter_map(narrow))
}

fn sctp_ports(spec: &k8s::ServiceSpec) -> Vec<SctpPort> {
    let raw = spec.ports.iter().flatten();
    raw.filter(|raw| raw.protocol.as_deref() == Some(SCTP))
        .filter_map(|raw| {
            Some(SctpPort {
                name: raw.name.as_deref().unwrap_or_default().into(),
                port: Port::try_from(raw.port).ok()?,
            })
        })
        .collect()
}

fn ports(spec: &k8s::ServiceSpec, kind: &ServiceKind, notes: &mut Vec<Note>) -> Vec<ServicePort> {
    let raw = spec.ports.as_deref().unwrap_or_default();
    let narrow = |(index, raw): (usize, &k8s::ServicePort)| {
        let field = |name: &str| format!("spec.ports[{index}].{name}");
        let protocol = protocol(raw.protocol.as_deref())
            .map_err(|why| notes.push(Note::new(field("protocol"), why)))
            .ok()?;
        let port = Port::try_from(raw.port)
            .map_err(|why| {
                let message = format!("{why}; the port is skipped");
                notes.push(Note::new(field("port"), message));
            })
            .ok()?;
        let node_port = match raw.node_port {
            None | Some(0) => None,
            Some(_) if !has_virtual_addresses(kind) => None,
            Some(number) => Port::try_from(number)
                .map_err(|why| {
                    let message = format!("{why}; no node port is served");
                    notes.push(Note::new(field("nodePort"), message));
                })
                .ok(),
        };
        Some(ServicePort {
            name: raw.name.as_deref().unwrap_or_default().into(),
            protocol,
            port,
            node_port,
        })
    };
    exactly(raw.iter().enumerate().filter_map(narrow))
}

fn external_ips(spec: &k8s::ServiceSpec, notes: &mut Vec<Note>) -> Vec<IpAddr> {
    let raw = spec.external_ips.as_deref().unwrap_or_default();
    let narrow = |(index, text): (usize, &String)| {
        let ip = parse_ip(text);
        if ip.is_none() {
            notes.push(not_an_address(format!("spec.externalIPs[{index}]"), text));
        }
        ip
    };
    exactly(raw.iter().enumerate().filter_map(narrow))
}

/// Addresses of mode `Proxy` are left out: traffic to them has to travel to the real load balancer. Source: KEP-1860.
fn load_balancer_ips(
    status: Option<&k8s::ServiceStatus>,
    notes: &mut Vec<Note>,
) -> Vec<LoadBalancerAddress> {
    let ingress = status
        .and_then(|status| status.load_balancer.as_ref()?.ingress.as_deref())
        .unwrap_or_default();
    let narrow = |(index, entry): (usize, &k8s::LoadBalancerIngress)| {
        let text = entry.ip.as_deref().filter(|text| !text.is_empty())?;
        if !matches!(entry.ip_mode.as_deref(), None | Some("VIP")) {
            return None;
        }
        let ip = parse_ip(text);
        if ip.is_none() {
            let field = format!("status.loadBalancer.ingress[{index}].ip");
            notes.push(not_an_address(field, text));
        }
        ip.map(|ip| LoadBalancerAddress { ip })
    };
    exactly(ingress.iter().enumerate().filter_map(narrow))
}

fn source_ranges(spec: &k8s::ServiceSpec, notes: &mut Vec<Note>) -> Vec<IpNet> {
    let raw = spec
        .load_balancer_source_ranges
        .as_deref()
        .unwrap_or_default();
    let narrow = |(index, text): (usize, &String)| {
        let net = parse_net(text);
        if net.is_none() {
            let field = format!("spec.loadBalancerSourceRanges[{index}]");
            notes.push(Note::new(
                field,
                format!("{text:?} is no CIDR; it is skipped"),
            ));
        }
        net
    };
    exactly(raw.iter().enumerate().filter_map(narrow))
}

fn policy(field: &str, raw: Option<&str>, notes: &mut Vec<Note>) -> TrafficPolicy {
    match raw {
        None | Some("" | "Cluster") => TrafficPolicy::Cluster,
        Some("Local") => TrafficPolicy::Local,
        Some(other) => {
            let message = format!("unknown policy {other:?}; Cluster is used");
            notes.push(Note::new(field, message));
            TrafficPolicy::Cluster
        }
    }
}

fn affinity(spec: &k8s::ServiceSpec, notes: &mut Vec<Note>) -> Option<Duration> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let config = spec.session_affinity_config.as_ref();
    let given = config.and_then(|config| config.client_ip.as_ref()?.timeout_seconds);
    let seconds = given.unwrap_or(DEFAULT_AFFINITY_TIMEOUT);
    if (1..=MAX_AFFINITY_TIMEOUT).contains(&seconds) {
        return Some(Duration::from_secs(u64::from(seconds.unsigned_abs())));
    }
    notes.push(Note::new(
        "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
        format!(
            "{seconds} is not within 1-{MAX_AFFINITY_TIMEOUT}; {DEFAULT_AFFINITY_TIMEOUT} is used"
        ),
    ));
    Some(Duration::from_secs(u64::from(
        DEFAULT_AFFINITY_TIMEOUT.unsigned_abs(),
    )))
}

/// Only a LoadBalancer Service with the policy Local has one; on others the field is a leftover.
fn health_check_node_port(
    spec: &k8s::ServiceSpec,
    kind: &ServiceKind,
    policy: TrafficPolicy,
) -> Option<Port> {
    let applies = *kind == ServiceKind::LoadBalancer && policy == TrafficPolicy::Local;
    Port::try_from(spec.health_check_node_port.filter(|_| applies)?).ok()
}

fn has_virtual_addresses(kind: &ServiceKind) -> bool {
    match kind {
        ServiceKind::ClusterIp | ServiceKind::NodePort | ServiceKind::LoadBalancer => true,
        ServiceKind::Headless | ServiceKind::ExternalName(_) => false,
    }
}

fn not_an_address(field: String, text: &str) -> Note {
    Note::new(field, format!("{text:?} is no IP address; it is skipped"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::model::{Family, Protocol};

    fn converted(spec: Value) -> Converted<Service> {
        let object = json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec});
        service(&serde_json::from_value(object).unwrap())
    }

    fn with_status(status: Value) -> Converted<Service> {
        let object = json!({
            "metadata": {"name": "web"},
            "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.1"},
            "status": {"loadBalancer": {"ingress": status}},
        });
        service(&serde_json::from_value(object).unwrap())
    }

    fn fields(notes: &[Note]) -> Vec<&str> {
        notes.iter().map(|note| note.field.as_str()).collect()
    }

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_complete_service_is_narrowed() {
        let Converted { value, notes } = converted(json!({
            "type": "NodePort",
            "clusterIP": "10.96.0.10",
            "clusterIPs": ["10.96.0.10", "fd00::10"],
            "ports": [
                {"name": "http", "port": 80, "nodePort": 30080, "protocol": "TCP"},
                {"name": "dns", "port": 53, "protocol": "UDP"},
            ],
            "externalIPs": ["192.0.2.010"],
            "loadBalancerSourceRanges": [" 10.0.0.0/8 ", "fd00::/8"],
            "internalTrafficPolicy": "Local",
            "externalTrafficPolicy": "Local",
        }));
        assert_eq!(notes, []);
        assert_eq!(value.name.to_string(), "shop/web");
        assert_eq!(value.kind, ServiceKind::NodePort);
        assert_eq!(value.cluster_ips, ips(&["10.96.0.10", "fd00::10"]));
        assert_eq!(value.cluster_ip(Family::V6), Some(ips(&["fd00::10"])[0]));
        assert_eq!(value.external_ips, ips(&["192.0.2.10"]));
        assert_eq!(value.source_ranges.len(), 2);
        assert_eq!(value.internal_policy, TrafficPolicy::Local);
        assert_eq!(value.external_policy, TrafficPolicy::Local);
        let port = |name: &str, protocol, port, node_port: Option<i32>| ServicePort {
            name: name.into(),
            protocol,
            port: Port::try_from(port).unwrap(),
            node_port: node_port.map(|number| Port::try_from(number).unwrap()),
        };
        let expected = [
            port("http", Protocol::Tcp, 80, Some(30080)),
            port("dns", Protocol::Udp, 53, None),
        ];
        assert_eq!(value.ports, expected);
    }

    #[test]
    fn an_empty_service_is_a_cluster_ip_service_without_addresses() {
        let Converted { value, notes } = service(&k8s::Service::default());
        assert_eq!(value.name.to_string(), "default/");
        assert_eq!(value.kind, ServiceKind::ClusterIp);
        assert!(value.cluster_ips.is_empty());
        assert_eq!((value.affinity, notes), (None, vec![]));
    }

    #[test]
    fn old_objects_have_only_one_cluster_ip_field() {
        for spec in [
            json!({"clusterIP": "010.96.0.1"}),
            json!({"clusterIP": "10.96.0.1", "clusterIPs": []}),
            json!({"clusterIPs": ["10.96.0.1"]}),
        ] {
            assert_eq!(converted(spec).value.cluster_ips, ips(&["10.96.0.1"]));
        }
        let unallocated = converted(json!({"clusterIP": ""}));
        assert_eq!(
            (unallocated.value.cluster_ips, unallocated.notes),
            (vec![], vec![])
        );
    }

    #[test]
    fn headless_services_have_no_addresses_and_no_node_ports() {
        for spec in [
            json!({"clusterIP": "None"}),
            json!({"clusterIPs": ["None"]}),
            json!({"clusterIP": "None", "clusterIPs": ["None"], "type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]}),
        ] {
            let Converted { value, notes } = converted(spec);
            assert_eq!(value.kind, ServiceKind::Headless);
            assert_eq!((value.cluster_ips, notes), (vec![], vec![]));
            assert!(value.ports.iter().all(|port| port.node_port.is_none()));
        }
    }

    #[test]
    fn an_alias_has_one_spelling_and_ignores_a_stale_cluster_ip() {
        let value = converted(json!({"type": "ExternalName", "externalName": "Db.Example.COM.", "clusterIP": "10.96.0.1"})).value;
        assert_eq!(
            value.kind,
            ServiceKind::ExternalName("db.example.com".into())
        );
        assert!(value.cluster_ips.is_empty());
        let headless =
            converted(json!({"type": "ExternalName", "externalName": "a.b", "clusterIP": "None"}))
                .value;
        assert_eq!(headless.kind, ServiceKind::ExternalName("a.b".into()));
    }

    #[test]
    fn ports_that_cannot_be_served_are_skipped_and_the_others_kept() {
        let Converted { value, notes } = converted(json!({"ports": [
            {"name": "a", "port": 80, "protocol": "SCTP"},
            {"name": "b", "port": 0},
            {"name": "c", "port": 65536},
            {"name": "d", "port": 65535, "nodePort": 0},
            {"name": "e", "port": 1, "nodePort": -1},
        ]}));
        let sctp: Vec<_> = value.sctp_ports.iter().map(|port| &*port.name).collect();
        assert_eq!(sctp, ["a"], "DNS names it");
        let kept: Vec<_> = value
            .ports
            .iter()
            .map(|port| (&*port.name, port.node_port))
            .collect();
        assert_eq!(kept, [("d", None), ("e", None)]);
        let expected = [
            "spec.ports[0].protocol",
            "spec.ports[1].port",
            "spec.ports[2].port",
            "spec.ports[4].nodePort",
        ];
        assert_eq!(fields(&notes), expected);
        assert!(notes[0].message.contains("SCTP"));
    }

    #[test]
    fn bad_addresses_are_noted_and_skipped() {
        let Converted { value, notes } = converted(json!({
            "clusterIPs": ["10.96.0.256", "fd00::1"],
            "externalIPs": ["", "192.0.2.1", "example.com"],
            "loadBalancerSourceRanges": ["10.0.0.0", "10.0.0.0/8"],
        }));
        assert_eq!(value.cluster_ips, ips(&["fd00::1"]));
        assert_eq!(value.external_ips, ips(&["192.0.2.1"]));
        assert_eq!(value.source_ranges.len(), 1);
        let expected = [
            "spec.clusterIPs[0]",
            "spec.externalIPs[0]",
            "spec.externalIPs[2]",
            "spec.loadBalancerSourceRanges[0]",
        ];
        assert_eq!(fields(&notes), expected);
    }

    #[test]
    fn only_load_balancer_addresses_of_mode_vip_are_ours() {
        let Converted { value, notes } = with_status(json!([
            {"ip": "192.0.2.1"},
            {"ip": "192.0.2.2", "ipMode": "VIP"},
            {"ip": "192.0.2.3", "ipMode": "Proxy"},
            {"hostname": "lb.example.com"},
            {"ip": "", "hostname": "lb.example.com"},
            {"ip": "nonsense"},
        ]));
        let found: Vec<IpAddr> = value
            .load_balancer_ips
            .iter()
            .map(|entry| entry.ip)
            .collect();
        assert_eq!(found, ips(&["192.0.2.1", "192.0.2.2"]));
        assert_eq!(fields(&notes), ["status.loadBalancer.ingress[5].ip"]);
    }

    #[test]
    fn affinity_timeouts_have_a_default_and_bounds() {
        let timeout = |seconds: Value| {
            let config = json!({"clientIP": {"timeoutSeconds": seconds}});
            let Converted { value, notes } =
                converted(json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": config}));
            (value.affinity.unwrap().as_secs(), notes.len())
        };
        assert_eq!(timeout(json!(null)), (10_800, 0));
        assert_eq!(timeout(json!(1)), (1, 0));
        assert_eq!(timeout(json!(86_400)), (86_400, 0));
        assert_eq!(timeout(json!(0)), (10_800, 1));
        assert_eq!(timeout(json!(-5)), (10_800, 1));
        assert_eq!(timeout(json!(86_401)), (10_800, 1));
        let without_config = converted(json!({"sessionAffinity": "ClientIP"})).value;
        assert_eq!(without_config.affinity, Some(Duration::from_secs(10_800)));
        let config = json!({"clientIP": {"timeoutSeconds": 5}});
        let none =
            converted(json!({"sessionAffinity": "None", "sessionAffinityConfig": config})).value;
        assert_eq!(none.affinity, None);
    }

    #[test]
    fn the_health_check_port_needs_a_load_balancer_with_a_local_policy() {
        let port = |kind: &str, policy: &str, number: i32| {
            let spec = json!({"type": kind, "externalTrafficPolicy": policy, "healthCheckNodePort": number});
            converted(spec)
                .value
                .health_check_node_port
                .map(Port::number)
        };
        assert_eq!(port("LoadBalancer", "Local", 31000), Some(31000));
        assert_eq!(port("LoadBalancer", "Local", 0), None);
        assert_eq!(port("LoadBalancer", "Cluster", 31000), None);
        assert_eq!(port("NodePort", "Local", 31000), None);
    }

    #[test]
    fn unknown_words_are_noted_and_the_default_holds() {
        let Converted { value, notes } = converted(
            json!({"type": "Magic", "internalTrafficPolicy": "Near", "externalTrafficPolicy": "Far"}),
        );
        assert_eq!(value.kind, ServiceKind::ClusterIp);
        assert_eq!(value.internal_policy, TrafficPolicy::Cluster);
        assert_eq!(
            fields(&notes),
            [
                "spec.type",
                "spec.externalTrafficPolicy",
                "spec.internalTrafficPolicy"
            ]
        );
    }

    #[test]
    fn any_value_of_the_proxy_name_label_gives_the_service_away() {
        for value in ["", "cilium"] {
            let object =
                json!({"metadata": {"name": "web", "labels": {SERVICE_PROXY_NAME: value}}});
            assert!(
                service(&serde_json::from_value(object).unwrap())
                    .value
                    .foreign_proxy
            );
        }
        assert!(!converted(json!({})).value.foreign_proxy);
    }
}
