//! The flows there are at this moment: rows of our own.

use std::time::Instant;

use serde_json::{Value, json};

use crate::dataplane::{OpenFlow, OpenFlows};
use crate::routing::RoutingTable;

use super::cells::{or_none, span};

/// A flow, with what the table says of its two ends.
struct FlowRow<'a> {
    flow: &'a OpenFlow,
    // Of the service port; `None` if that is gone.
    port: Option<u16>,
    // Of the backend.
    pod: Option<&'a str>,
}

/// Cells of each flow, by service port and client; a last row says how many more there are.
pub(super) fn flow_cells(
    flows: &OpenFlows,
    table: &RoutingTable,
    now: Instant,
) -> Vec<Vec<String>> {
    let rows = sorted(flows, table);
    let mut cells: Vec<Vec<String>> = rows.iter().map(|row| row.cells(now)).collect();
    if flows.unlisted > 0 {
        cells.push(vec![String::new(), format!("({} more)", flows.unlisted)]);
    }
    cells
}

/// The same as objects; how many more there are is for the list to say.
pub(super) fn flow_items(flows: &OpenFlows, table: &RoutingTable, now: Instant) -> Vec<Value> {
    let rows = sorted(flows, table);
    rows.iter().map(|row| row.to_json(now)).collect()
}

fn sorted<'a>(flows: &'a OpenFlows, table: &'a RoutingTable) -> Vec<FlowRow<'a>> {
    let mut listed: Vec<&OpenFlow> = flows.listed.iter().collect();
    listed.sort_by_key(|flow| (&flow.service, flow.client, flow.backend));
    let row = |flow: &'a OpenFlow| {
        let route = table.route(&flow.service);
        let mut backends = route
            .into_iter()
            .flat_map(|r| r.cluster.iter().chain(&r.local));
        let backend = backends.find(|backend| Some(backend.addr) == flow.backend);
        FlowRow {
            flow,
            port: route.map(|route| route.port),
            pod: backend.and_then(|backend| backend.pod.as_deref()),
        }
    };
    listed.into_iter().map(row).collect()
}

impl FlowRow<'_> {
    fn cells(&self, now: Instant) -> Vec<String> {
        let key = &self.flow.service;
        let text = |number: Option<u16>| number.map(|n| n.to_string()).unwrap_or_default();
        let backend = self.flow.backend.map(|addr| addr.to_string());
        let age = now.saturating_duration_since(self.flow.opened);
        vec![
            key.service.namespace.to_string(),
            key.service.name.to_string(),
            if key.port.is_empty() {
                or_none(text(self.port))
            } else {
                key.port.to_string()
            },
            key.protocol.to_string(),
            self.flow.client.to_string(),
            or_none(backend.unwrap_or_default()),
            or_none(self.pod.unwrap_or_default().to_owned()),
            self.flow.bytes_to_backend.to_string(),
            self.flow.bytes_to_client.to_string(),
            span(age),
        ]
    }

    fn to_json(&self, now: Instant) -> Value {
        let (flow, key) = (self.flow, &self.flow.service);
        let backend = flow.backend.map(|addr| addr.to_string());
        let to = backend.as_deref().unwrap_or("none");
        let age = now.saturating_duration_since(flow.opened);
        json!({
            "apiVersion": "viaduct.dev/v1alpha1",
            "kind": "Flow",
            "metadata": { "namespace": &*key.service.namespace, "name": format!("{}→{to}", flow.client) },
            "service": &*key.service.name,
            "port": { "name": &*key.port, "port": self.port, "protocol": key.protocol.as_str() },
            "family": key.family.as_str(),
            "client": flow.client.to_string(),
            "backend": backend,
            "pod": self.pod,
            "seconds": age.as_secs_f64(),
            "bytesToBackend": flow.bytes_to_backend,
            "bytesToClient": flow.bytes_to_client,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::testkit::{addr, port_key};

    fn flow(client: &str, backend: Option<&str>, opened: Instant) -> OpenFlow {
        OpenFlow {
            service: port_key("web"),
            client: addr(client),
            backend: backend.map(addr),
            opened,
            bytes_to_backend: 3,
            bytes_to_client: 4,
        }
    }

    #[test]
    fn flows_of_a_service_that_is_gone_are_shown_and_what_is_not_listed_is_told() {
        let now = Instant::now();
        let opened = now.checked_sub(Duration::from_secs(5)).unwrap();
        let flows = OpenFlows {
            listed: vec![
                flow("10.0.0.2:1", Some("10.1.0.1:80"), opened),
                flow("10.0.0.1:1", None, now),
            ],
            unlisted: 7,
        };
        let table = RoutingTable::default();
        let rows = flow_cells(&flows, &table, now);
        let clients: Vec<&str> = rows[..2].iter().map(|row| row[4].as_str()).collect();
        assert_eq!(clients, ["10.0.0.1:1", "10.0.0.2:1"]);
        assert_eq!(rows[0][5..7], ["<none>", "<none>"]);
        assert_eq!(rows[1][5..], ["10.1.0.1:80", "<none>", "3", "4", "5s"]);
        assert_eq!(rows[2][1], "(7 more)");
        let items = flow_items(&flows, &table, now);
        assert_eq!(items.len(), 2);
        assert_eq!(items[1]["metadata"]["name"], "10.0.0.2:1→10.1.0.1:80");
        assert!(items[0]["backend"].is_null());
    }
}
