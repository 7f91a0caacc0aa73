//! Backends of every service port with their live figures: rows of our own.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use crate::dataplane::Carried;
use crate::faults::ActiveFaults;
use crate::model::NodeName;
use crate::routing::{Backend, Route, RoutingTable};

use super::cells::{measured, or_none};
use super::{Selection, Snapshot};

/// A backend within a route.
pub(super) struct BackendRow {
    route: Arc<Route>,
    backend: Arc<Backend>,
}

impl BackendRow {
    /// All cells, the wide ones last.
    pub(super) fn cells(&self, at: &Snapshot) -> Vec<String> {
        let key = &self.route.key;
        let live = &self.backend.live;
        let carried = self.carried(at);
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
            or_none(carried.connect_p99.map(measured).unwrap_or_default()),
            self.state(at.instant).to_owned(),
            carried.bytes_to_backend.to_string(),
            carried.bytes_to_client.to_string(),
            or_none(
                self.backend
                    .node
                    .as_ref()
                    .map(ToString::to_string)
                    .unwrap_or_default(),
            ),
            self.route.algorithm.as_str().to_owned(),
            or_none(self.faults(&at.faults).unwrap_or_default()),
        ]
    }

    // Nothing before its first flow.
    fn carried(&self, at: &Snapshot) -> Carried {
        let whose = (self.route.key.clone(), self.backend.addr);
        at.carried.get(&whose).copied().unwrap_or_default()
    }

    // What goes wrong on purpose on the way to it.
    fn faults(&self, active: &ActiveFaults) -> Option<String> {
        let (route, backend) = (&self.route, &self.backend);
        let injection =
            active.between(&route.key, route.port, backend.addr, backend.pod.as_deref())?;
        Some(injection.faults().to_string())
    }

    fn state(&self, now: Instant) -> &'static str {
        if self.backend.is_ejected(now) {
            "ejected"
        } else if self.backend.is_warming() {
            "warming"
        } else {
            "ready"
        }
    }

    /// The row as an object.
    pub(super) fn to_json(&self, at: &Snapshot) -> Value {
        let key = &self.route.key;
        let live = &self.backend.live;
        let carried = self.carried(at);
        json!({
            "apiVersion": "viaduct.dev/v1alpha1",
            "kind": "Backend",
            "metadata": { "namespace": &*key.service.namespace, "name": self.backend.addr.to_string() },
            "service": &*key.service.name,
            "port": { "name": &*key.port, "port": self.route.port, "protocol": key.protocol.as_str() },
            "family": key.family.as_str(),
            "pod": self.backend.pod.as_deref(),
            "node": self.backend.node.as_ref().map(NodeName::as_str),
            "algorithm": self.route.algorithm.as_str(),
            "activeFlows": live.active(),
            "flowsTotal": live.flows_total(),
            "failuresTotal": live.failures_total(),
            "bytesToBackend": carried.bytes_to_backend,
            "bytesToClient": carried.bytes_to_client,
            "connectP99Seconds": carried.connect_p99.map(|p99| p99.as_secs_f64()),
            "state": self.state(at.instant),
            "faults": self.faults(&at.faults),
        })
    }
}

/// The backends of the selected Services, by service port and address.
pub(super) fn backend_rows(table: &RoutingTable, selection: &Selection) -> Vec<BackendRow> {
    let mut rows: Vec<BackendRow> = Vec::new();
    for route in table
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
