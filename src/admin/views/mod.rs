//! Rows for people and lists for programs: what `viaduct get` shows. Pure.
//!
//! Objects appear as Kubernetes spells them; backends and flows are rows of our own in the same kind of list.

mod backend_row;
mod cells;
mod flow_row;
mod rows;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::control::{Kind, Object, Objects};
use crate::dataplane::{Carried, OpenFlows};
use crate::faults::ActiveFaults;
use crate::model::ServicePortKey;
use crate::routing::RoutingTable;

use backend_row::backend_rows;
use flow_row::{flow_cells, flow_items};

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
    /// Flows at this moment.
    Flows,
}

impl Resource {
    /// All of them with the names that users type, the full one first.
    pub const ALL: [(Self, &'static [&'static str]); 6] = [
        (Self::Services, &["services", "service", "svc"]),
        (
            Self::EndpointSlices,
            &["endpointslices", "endpointslice", "eps"],
        ),
        (Self::Pods, &["pods", "pod", "po"]),
        (Self::Nodes, &["nodes", "node", "no"]),
        (Self::Backends, &["backends", "backend"]),
        (Self::Flows, &["flows", "flow"]),
    ];

    /// The resource of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .find(|(_, names)| names.contains(&name))
            .map(|(resource, _)| *resource)
    }

    fn rows(self) -> Rows {
        match self {
            Self::Services => Rows::Objects(Kind::Service),
            Self::EndpointSlices => Rows::Objects(Kind::EndpointSlice),
            Self::Pods => Rows::Objects(Kind::Pod),
            Self::Nodes => Rows::Objects(Kind::Node),
            Self::Backends => Rows::Backends,
            Self::Flows => Rows::Flows,
        }
    }
}

// What rows are made from.
enum Rows {
    Objects(Kind),
    Backends,
    Flows,
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
    /// The faults that are on.
    pub faults: ActiveFaults,
    /// What went to each backend; without it those cells are empty.
    pub carried: HashMap<(ServicePortKey, SocketAddr), Carried>,
    /// Flows, where they are asked for.
    pub flows: OpenFlows,
    /// The time of asking.
    pub now: Timestamp,
    /// The same on the clock that only goes forward.
    pub instant: Instant,
}

/// Which rows are wanted.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// One namespace, or all.
    pub namespace: Option<String>,
    /// One name, or all. For backends and flows: the name of their Service.
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
        let items: Vec<Value> = match resource.rows() {
            Rows::Objects(kind) => self
                .selected(kind, selection)
                .map(|object| to_json(&object))
                .collect(),
            Rows::Flows => flow_items(&self.flows, &self.table, self.instant),
            Rows::Backends => backend_rows(&self.table, selection)
                .iter()
                .map(|row| row.to_json(self))
                .collect(),
        };
        let mut metadata = json!({ "resourceVersion": "" });
        if resource == Resource::Flows && self.flows.unlisted > 0 {
            metadata["remainingItemCount"] = self.flows.unlisted.into();
        }
        json!({ "apiVersion": "v1", "kind": "List", "metadata": metadata, "items": items })
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
                &["SELECTOR", "CONNECTIONS"],
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
                    "CONNECT-P99",
                    "STATE",
                ],
                &["TO-BACKEND", "TO-CLIENT", "NODE", "ALGORITHM", "FAULTS"],
            ),
            Resource::Flows => (
                &[
                    "NAMESPACE",
                    "SERVICE",
                    "PORT",
                    "PROTOCOL",
                    "CLIENT",
                    "BACKEND",
                    "POD",
                    "TO-BACKEND",
                    "TO-CLIENT",
                    "AGE",
                ],
                &[],
            ),
        };
        let mut rows: Vec<Vec<String>> = match resource.rows() {
            Rows::Objects(kind) => self
                .selected(kind, selection)
                .map(|object| self.row(&object))
                .collect(),
            Rows::Flows => flow_cells(&self.flows, &self.table, self.instant),
            Rows::Backends => backend_rows(&self.table, selection)
                .iter()
                .map(|row| row.cells(self))
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

    fn selected(&self, kind: Kind, selection: &Selection) -> impl Iterator<Item = Arc<Object>> {
        let keys = self.objects.keys(kind).into_iter();
        keys.filter(|key| selection.takes(&key.namespace, &key.name))
            .filter_map(|key| self.objects.get(key))
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

#[cfg(test)]
mod tests {
    use super::*;

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
