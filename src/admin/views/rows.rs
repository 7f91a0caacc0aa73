//! Objects as rows, in kubectl's manner.

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::control::Object;
use crate::model::{Frontend, Service, ServiceKind, ServiceName, ServicePort};
use crate::routing::ServiceEntry;

use super::Snapshot;
use super::cells::{age, or, or_none};

impl Snapshot {
    /// All cells, the wide ones last.
    pub(super) fn row(&self, object: &Object) -> Vec<String> {
        let key = object.key();
        let age = age(object.metadata(), self.now);
        let rest = match object {
            Object::Service(service) => {
                let (namespace, name) = (key.namespace.clone(), key.name.clone());
                self.service_row(&ServiceName { namespace, name }, service, age)
            }
            Object::EndpointSlice(slice) => slice_row(slice, age),
            Object::Pod(pod) => pod_row(pod, age),
            Object::Node(node) => node_row(node, age),
            Object::Namespace(_) | Object::Endpoints(_) => vec![age],
        };
        let mut cells = vec![key.namespace.to_string(), key.name.to_string()];
        cells.extend(rest);
        cells
    }

    fn service_row(&self, name: &ServiceName, service: &core::Service, age: String) -> Vec<String> {
        // Stored but not yet in the table: its cells follow in a moment.
        let Some(entry) = self.table.service(name) else {
            return Vec::new();
        };
        let selector = service
            .spec
            .as_ref()
            .and_then(|spec| spec.selector.as_ref());
        let pairs = selector
            .into_iter()
            .flatten()
            .map(|(k, v)| format!("{k}={v}"));
        let selector = pairs.collect::<Vec<_>>().join(",");
        let mut cells = self.service_cells(entry, service).to_vec();
        cells.extend([age, or_none(selector), connections_cell(entry)]);
        cells
    }

    fn service_cells(&self, entry: &ServiceEntry, object: &core::Service) -> [String; 5] {
        let service = &entry.service;
        let cluster_ip = match &service.kind {
            ServiceKind::Headless => "None".to_owned(),
            ServiceKind::ExternalName(_) => "<none>".to_owned(),
            ServiceKind::ClusterIp | ServiceKind::NodePort | ServiceKind::LoadBalancer => or_none(
                service
                    .cluster_ips
                    .first()
                    .map(ToString::to_string)
                    .unwrap_or_default(),
            ),
        };
        let ports: Vec<String> = service
            .ports
            .iter()
            .map(|port| self.port_cell(service, port))
            .collect();
        [
            service.kind.as_str().to_owned(),
            cluster_ip,
            external_ip(service, object.status.as_ref()),
            or_none(ports.join(",")),
            ready_cell(entry),
        ]
    }

    // `port:nodePort/PROTOCOL` as kubectl has it; `port→served` where loopback had to move it.
    fn port_cell(&self, service: &Service, port: &ServicePort) -> String {
        let number = port.port.number();
        let served = service.cluster_ips.first().map_or(number, |ip| {
            self.table.served_port(&Frontend {
                ip: *ip,
                port: number,
                protocol: port.protocol,
            })
        });
        let moved = if served == number {
            String::new()
        } else {
            format!("→{served}")
        };
        let node_port = port
            .node_port
            .map(|port| format!(":{port}"))
            .unwrap_or_default();
        format!("{number}{moved}{node_port}/{}", port.protocol)
    }
}

fn slice_row(slice: &EndpointSlice, age: String) -> Vec<String> {
    let ports = slice
        .ports
        .iter()
        .flatten()
        .filter_map(|port| port.port)
        .map(|port| port.to_string());
    let ports = ports.collect::<Vec<_>>().join(",");
    let addresses: Vec<&str> = slice
        .endpoints
        .iter()
        .flatten()
        .flat_map(|e| &e.addresses)
        .map(String::as_str)
        .collect();
    let shown = match addresses.len() {
        0..=3 => addresses.join(","),
        n => format!("{} + {} more...", addresses[..3].join(","), n - 3),
    };
    vec![
        slice.address_type.clone(),
        or(ports, "<unset>"),
        or(shown, "<unset>"),
        age,
    ]
}

fn pod_row(pod: &Pod, age: String) -> Vec<String> {
    let status = pod.status.as_ref();
    let mut conditions = status
        .and_then(|status| status.conditions.as_ref())
        .into_iter()
        .flatten();
    let ready = conditions
        .find(|condition| condition.type_ == "Ready")
        .map(|condition| condition.status.clone());
    let phase = match &pod.metadata.deletion_timestamp {
        Some(_) => Some("Terminating".to_owned()),
        None => status.and_then(|status| status.phase.clone()),
    };
    let ip = status.and_then(|status| status.pod_ip.clone());
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    let unknown = |cell: Option<String>| cell.unwrap_or_else(|| "Unknown".to_owned());
    vec![
        unknown(ready),
        unknown(phase),
        age,
        or_none(ip.unwrap_or_default()),
        or_none(node.unwrap_or_default()),
    ]
}

fn node_row(node: &Node, age: String) -> Vec<String> {
    let status = node.status.as_ref();
    let mut conditions = status
        .and_then(|status| status.conditions.as_ref())
        .into_iter()
        .flatten();
    let ready = conditions.find(|condition| condition.type_ == "Ready");
    let word = match ready.map(|condition| condition.status.as_str()) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    };
    let addresses = status
        .and_then(|status| status.addresses.as_ref())
        .into_iter()
        .flatten();
    let internal = addresses
        .filter(|address| address.type_ == "InternalIP")
        .map(|address| address.address.as_str());
    let internal = internal.collect::<Vec<_>>().join(",");
    let labels = node.metadata.labels.as_ref();
    let zone = labels
        .and_then(|map| map.get("topology.kubernetes.io/zone"))
        .cloned();
    vec![
        word.to_owned(),
        age,
        or_none(internal),
        or_none(zone.unwrap_or_default()),
    ]
}

// Ready backends of all: endpoints are counted once however many ports they have.
// How many there are, and may be.
fn connections_cell(entry: &ServiceEntry) -> String {
    let connections = entry.load.connections();
    match entry.service.knobs.max_connections {
        Some(max) => format!("{connections}/{max}"),
        None => connections.to_string(),
    }
}

fn ready_cell(entry: &ServiceEntry) -> String {
    if matches!(entry.service.kind, ServiceKind::ExternalName(_)) {
        return "-".to_owned();
    }
    let endpoints = entry.endpoints();
    let ready = endpoints.values().filter(|is_ready| **is_ready).count();
    format!("{ready}/{}", endpoints.len())
}

// As kubectl has it: all that the status names, whoever answers there, then the external IPs.
fn external_ip(service: &Service, status: Option<&core::ServiceStatus>) -> String {
    if let ServiceKind::ExternalName(name) = &service.kind {
        return name.to_string();
    }
    let balancer = status.and_then(|status| status.load_balancer.as_ref()?.ingress.as_deref());
    let balancer = balancer
        .filter(|_| service.kind == ServiceKind::LoadBalancer)
        .unwrap_or_default()
        .iter()
        .filter_map(|ingress| ingress.ip.clone().or_else(|| ingress.hostname.clone()));
    let ips: Vec<String> = balancer
        .chain(service.external_ips.iter().map(ToString::to_string))
        .collect();
    match (&service.kind, ips.is_empty()) {
        (ServiceKind::LoadBalancer, true) => "<pending>".to_owned(),
        (_, _) => or_none(ips.join(",")),
    }
}
