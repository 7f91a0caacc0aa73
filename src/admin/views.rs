//! Rows for people and lists for programs: what `viaduct get` shows. Pure.
//!
//! Objects appear as Kubernetes spells them; backends are rows of our own in the same kind of list.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::control::{Kind, Object, Objects};
use crate::model::{Algorithm, Frontend, NodeName, Service, ServiceKind, ServiceName, ServicePort};
use crate::routing::{Backend, Route, RoutingTable, ServiceEntry};

/// What can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Services.
    Services,
    /// EndpointSlices.
    EndpointSlices,
    /// Pods.
    Pods,
    /// Nodes.
    Nodes,
    /// Backends of every service port, with live figures.
    Backends,
}

impl Resource {
    /// All of them with the names that users type, the full one first.
    pub const ALL: [(Self, &'static [&'static str]); 5] = [
        (Self::Services, &["services", "service", "svc"]),
        (
            Self::EndpointSlices,
            &["endpointslices", "endpointslice", "eps"],
        ),
        (Self::Pods, &["pods", "pod", "po"]),
        (Self::Nodes, &["nodes", "node", "no"]),
        (Self::Backends, &["backends", "backend"]),
    ];

    /// The resource of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .find(|(_, names)| names.contains(&name))
            .map(|(resource, _)| *resource)
    }

    fn kind(self) -> Option<Kind> {
        match self {
            Self::Services => Some(Kind::Service),
            Self::EndpointSlices => Some(Kind::EndpointSlice),
            Self::Pods => Some(Kind::Pod),
            Self::Nodes => Some(Kind::Node),
            Self::Backends => None,
        }
    }
}

/// Rows with their headings. The first column is the namespace; who prints them may leave it out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableView {
    /// The headings.
    pub columns: Vec<String>,
    /// The rows.
    pub rows: Vec<Vec<String>>,
}

/// What views are made from.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The stored objects.
    pub objects: Arc<Objects>,
    /// The table in force.
    pub table: Arc<RoutingTable>,
    /// The time of asking.
    pub now: Timestamp,
}

/// Which rows are wanted.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// One namespace, or all.
    pub namespace: Option<String>,
    /// One name, or all. For backends: the name of their Service.
    pub name: Option<String>,
    /// More columns.
    pub wide: bool,
}

impl Selection {
    fn takes(&self, namespace: &str, name: &str) -> bool {
        let namespace_matches = namespace.is_empty()
            || self
                .namespace
                .as_deref()
                .is_none_or(|wanted| wanted == namespace);
        namespace_matches && self.name.as_deref().is_none_or(|wanted| wanted == name)
    }
}

impl Snapshot {
    /// A `v1` List of the selected objects, as Kubernetes spells them.
    pub fn list(&self, resource: Resource, selection: &Selection) -> Value {
        let items: Vec<Value> = match resource.kind() {
            Some(kind) => self
                .selected(kind, selection)
                .into_iter()
                .map(|object| to_json(object))
                .collect(),
            None => self
                .backends(selection)
                .iter()
                .map(BackendRow::to_json)
                .collect(),
        };
        json!({ "apiVersion": "v1", "kind": "List", "metadata": { "resourceVersion": "" }, "items": items })
    }

    /// The selected objects as a table in kubectl's manner.
    pub fn table(&self, resource: Resource, selection: &Selection) -> TableView {
        let (columns, wide_columns): (&[&str], &[&str]) = match resource {
            Resource::Services => (
                &[
                    "NAMESPACE",
                    "NAME",
                    "TYPE",
                    "CLUSTER-IP",
                    "EXTERNAL-IP",
                    "PORT(S)",
                    "READY",
                    "AGE",
                ],
                &["SELECTOR"],
            ),
            Resource::EndpointSlices => (
                &[
                    "NAMESPACE",
                    "NAME",
                    "ADDRESSTYPE",
                    "PORTS",
                    "ENDPOINTS",
                    "AGE",
                ],
                &[],
            ),
            Resource::Pods => (
                &["NAMESPACE", "NAME", "READY", "STATUS", "AGE"],
                &["IP", "NODE"],
            ),
            Resource::Nodes => (
                &["NAMESPACE", "NAME", "STATUS", "AGE"],
                &["INTERNAL-IP", "ZONE"],
            ),
            Resource::Backends => (
                &[
                    "NAMESPACE",
                    "SERVICE",
                    "PORT",
                    "PROTOCOL",
                    "BACKEND",
                    "POD",
                    "ACTIVE",
                    "TOTAL",
                    "FAILED",
                ],
                &["NODE", "ALGORITHM"],
            ),
        };
        let mut rows: Vec<Vec<String>> = match resource.kind() {
            Some(kind) => self
                .selected(kind, selection)
                .into_iter()
                .map(|object| self.row(object))
                .collect(),
            None => self
                .backends(selection)
                .iter()
                .map(BackendRow::cells)
                .collect(),
        };
        let mut headings: Vec<String> = columns
            .iter()
            .map(|heading| (*heading).to_owned())
            .collect();
        if selection.wide {
            headings.extend(wide_columns.iter().map(|heading| (*heading).to_owned()));
        }
        for row in &mut rows {
            row.truncate(headings.len());
        }
        TableView {
            columns: headings,
            rows,
        }
    }

    fn selected(&self, kind: Kind, selection: &Selection) -> Vec<&Arc<Object>> {
        let mut objects = self.objects.list(kind);
        objects.retain(|object| {
            let key = object.key();
            selection.takes(&key.namespace, &key.name)
        });
        objects
    }

    // All cells, the wide ones last.
    fn row(&self, object: &Object) -> Vec<String> {
        let key = object.key();
        let mut cells = vec![key.namespace.to_string(), key.name.to_string()];
        let age = age(object.metadata(), self.now);
        match object {
            Object::Service(service) => {
                let name = ServiceName {
                    namespace: key.namespace,
                    name: key.name,
                };
                let Some(entry) = self.table.service(&name) else {
                    return cells;
                };
                cells.extend(self.service_cells(entry));
                let selector = service
                    .spec
                    .as_ref()
                    .and_then(|spec| spec.selector.as_ref());
                let pairs = selector.map(|map| {
                    map.iter()
                        .map(|(k, v)| format!("{k}={v}"))
                        .collect::<Vec<_>>()
                });
                cells.extend([age, or_none(pairs.unwrap_or_default().join(","))]);
            }
            Object::EndpointSlice(slice) => {
                let ports = slice
                    .ports
                    .iter()
                    .flatten()
                    .filter_map(|port| port.port)
                    .map(|port| port.to_string());
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
                let ports = ports.collect::<Vec<_>>().join(",");
                cells.extend([
                    slice.address_type.clone(),
                    or(ports, "<unset>"),
                    or(shown, "<unset>"),
                    age,
                ]);
            }
            Object::Pod(pod) => {
                let status = pod.status.as_ref();
                let conditions = status.and_then(|status| status.conditions.as_ref());
                let ready = conditions
                    .and_then(|list| list.iter().find(|c| c.type_ == "Ready"))
                    .map(|c| c.status.clone());
                let phase = match &pod.metadata.deletion_timestamp {
                    Some(_) => Some("Terminating".to_owned()),
                    None => status.and_then(|status| status.phase.clone()),
                };
                let ip = status.and_then(|status| status.pod_ip.clone());
                let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
                cells.extend([
                    ready.unwrap_or_else(|| "Unknown".into()),
                    phase.unwrap_or_else(|| "Unknown".into()),
                    age,
                ]);
                cells.extend([
                    or_none(ip.unwrap_or_default()),
                    or_none(node.unwrap_or_default()),
                ]);
            }
            Object::Node(node) => {
                let status = node.status.as_ref();
                let conditions = status.and_then(|status| status.conditions.as_ref());
                let ready = conditions.and_then(|list| list.iter().find(|c| c.type_ == "Ready"));
                let word = match ready.map(|condition| condition.status.as_str()) {
                    Some("True") => "Ready",
                    Some(_) => "NotReady",
                    None => "Unknown",
                };
                let ips = status
                    .and_then(|status| status.addresses.as_ref())
                    .into_iter()
                    .flatten();
                let internal: Vec<String> = ips
                    .filter(|a| a.type_ == "InternalIP")
                    .map(|a| a.address.clone())
                    .collect();
                let zone = node
                    .metadata
                    .labels
                    .as_ref()
                    .and_then(|map| map.get("topology.kubernetes.io/zone"))
                    .cloned();
                cells.extend([
                    word.to_owned(),
                    age,
                    or_none(internal.join(",")),
                    or_none(zone.unwrap_or_default()),
                ]);
            }
            Object::Namespace(_) | Object::Endpoints(_) => cells.push(age),
        }
        cells
    }

    fn service_cells(&self, entry: &ServiceEntry) -> [String; 5] {
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
            external_ip(service),
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

    fn backends(&self, selection: &Selection) -> Vec<BackendRow> {
        let mut rows: Vec<BackendRow> = Vec::new();
        for route in self
            .table
            .routes()
            .filter(|r| selection.takes(&r.key.service.namespace, &r.key.service.name))
        {
            let mut seen: BTreeSet<SocketAddr> = BTreeSet::new();
            for backend in route.cluster.iter().chain(&route.local) {
                if seen.insert(backend.addr) {
                    rows.push(BackendRow {
                        route: route.clone(),
                        backend: backend.clone(),
                    });
                }
            }
        }
        rows.sort_by(|a, b| (&a.route.key, a.backend.addr).cmp(&(&b.route.key, b.backend.addr)));
        rows
    }
}

struct BackendRow {
    route: Arc<Route>,
    backend: Arc<Backend>,
}

impl BackendRow {
    fn cells(&self) -> Vec<String> {
        let key = &self.route.key;
        let live = &self.backend.live;
        vec![
            key.service.namespace.to_string(),
            key.service.name.to_string(),
            if key.port.is_empty() {
                self.route.port.to_string()
            } else {
                key.port.to_string()
            },
            key.protocol.to_string(),
            self.backend.addr.to_string(),
            or_none(self.backend.pod.as_deref().unwrap_or_default().to_owned()),
            live.active().to_string(),
            live.flows_total().to_string(),
            live.failures_total().to_string(),
            or_none(
                self.backend
                    .node
                    .as_ref()
                    .map(ToString::to_string)
                    .unwrap_or_default(),
            ),
            algorithm_name(&self.route).to_owned(),
        ]
    }

    fn to_json(&self) -> Value {
        let key = &self.route.key;
        let live = &self.backend.live;
        json!({
            "apiVersion": "viaduct.dev/v1alpha1",
            "kind": "Backend",
            "metadata": { "namespace": &*key.service.namespace, "name": self.backend.addr.to_string() },
            "service": &*key.service.name,
            "port": { "name": &*key.port, "port": self.route.port, "protocol": key.protocol.as_str() },
            "family": key.family.as_str(),
            "pod": self.backend.pod.as_deref(),
            "node": self.backend.node.as_ref().map(NodeName::as_str),
            "algorithm": algorithm_name(&self.route),
            "activeFlows": live.active(),
            "flowsTotal": live.flows_total(),
            "failuresTotal": live.failures_total(),
        })
    }
}

fn algorithm_name(route: &Route) -> &'static str {
    let known = Algorithm::ALL
        .iter()
        .find(|(_, algorithm)| *algorithm == route.algorithm);
    known.map_or("", |(name, _)| name)
}

// Ready backends of all: endpoints are counted once however many ports they have.
fn ready_cell(entry: &ServiceEntry) -> String {
    if matches!(entry.service.kind, ServiceKind::ExternalName(_)) {
        return "-".to_owned();
    }
    let mut all: BTreeSet<IpAddr> = BTreeSet::new();
    let mut ready: BTreeSet<IpAddr> = BTreeSet::new();
    for endpoint in entry.slices.iter().flat_map(|slice| &slice.endpoints) {
        let Some(address) = endpoint.addresses.first() else {
            continue;
        };
        all.insert(*address);
        if endpoint.ready {
            ready.insert(*address);
        }
    }
    format!("{}/{}", ready.len(), all.len())
}

fn external_ip(service: &Service) -> String {
    if let ServiceKind::ExternalName(name) = &service.kind {
        return name.to_string();
    }
    let balancer = service.load_balancer_ips.iter().map(|lb| lb.ip);
    let ips: Vec<String> = balancer
        .chain(service.external_ips.iter().copied())
        .map(|ip| ip.to_string())
        .collect();
    match (&service.kind, ips.is_empty()) {
        (ServiceKind::LoadBalancer, true) => "<pending>".to_owned(),
        (_, _) => or_none(ips.join(",")),
    }
}

fn to_json(object: &Object) -> Value {
    let json = match object {
        Object::Namespace(object) => serde_json::to_value(object),
        Object::Node(object) => serde_json::to_value(object),
        Object::Service(object) => serde_json::to_value(object),
        Object::Pod(object) => serde_json::to_value(object),
        Object::EndpointSlice(object) => serde_json::to_value(object),
        Object::Endpoints(object) => serde_json::to_value(object),
    };
    // Maps have string keys throughout, the only thing that serialisation could trip over.
    json.unwrap_or(Value::Null)
}

fn or(text: String, empty: &str) -> String {
    if text.is_empty() {
        empty.to_owned()
    } else {
        text
    }
}

fn or_none(text: String) -> String {
    or(text, "<none>")
}

// As kubectl: the two largest units while they matter.
fn age(metadata: &ObjectMeta, now: Timestamp) -> String {
    let Some(created) = &metadata.creation_timestamp else {
        return "<unknown>".to_owned();
    };
    let seconds = now.as_second().saturating_sub(created.0.as_second()).max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => format!("{minutes}m{}s", seconds % 60),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => format!("{hours}h{}m", minutes % 60),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => format!("{days}d{}h", hours % 24),
        _ => format!("{days}d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_written_as_kubectl_writes_them() {
        let now = Timestamp::from_second(10_000_000).unwrap();
        let rows = [
            (0, "0s"),
            (119, "119s"),
            (120, "2m0s"),
            (599, "9m59s"),
            (600, "10m"),
            (10_799, "179m"),
            (10_800, "3h0m"),
            (28_800, "8h"),
            (172_800, "2d0h"),
            (691_200, "8d"),
        ];
        for (seconds, expected) in rows {
            let created = Timestamp::from_second(10_000_000 - seconds).unwrap();
            let metadata = ObjectMeta {
                creation_timestamp: Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
                    created,
                )),
                ..ObjectMeta::default()
            };
            assert_eq!(age(&metadata, now), expected);
        }
        assert_eq!(age(&ObjectMeta::default(), now), "<unknown>");
    }

    #[test]
    fn resources_have_the_names_that_kubectl_users_type() {
        assert_eq!(Resource::parse("svc"), Some(Resource::Services));
        assert_eq!(
            Resource::parse("endpointslices"),
            Some(Resource::EndpointSlices)
        );
        assert_eq!(Resource::parse("deployments"), None);
    }

    #[test]
    fn a_selection_takes_by_namespace_and_name() {
        let selection = Selection {
            namespace: Some("a".into()),
            name: Some("x".into()),
            wide: false,
        };
        assert!(selection.takes("a", "x"));
        assert!(!selection.takes("b", "x"));
        assert!(!selection.takes("a", "y"));
        assert!(selection.takes("", "x"), "nodes live in no namespace");
    }
}
