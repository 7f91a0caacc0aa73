//! The table builder, event by event. Here is what all of these tests use.

mod addresses;
mod carry_over;
mod explain;
mod held_back;
mod properties;
mod slices;
mod takeover;

use std::sync::Arc;

use crate::model::{Algorithm, EndpointSlice, Event, Service, ServicePortKey};
use crate::testkit::{FirstUntried, port_key, service, service_name, tcp};

use super::{RoutingTable, TableBuilder};

fn builder() -> TableBuilder {
    TableBuilder::new(Arc::new(FirstUntried), Algorithm::RoundRobin)
}

fn built(events: impl IntoIterator<Item = Event>) -> (TableBuilder, Arc<RoutingTable>) {
    let mut builder = builder();
    let table = apply(&mut builder, events);
    (builder, table)
}

fn apply(builder: &mut TableBuilder, events: impl IntoIterator<Item = Event>) -> Arc<RoutingTable> {
    for event in events {
        builder.apply(event);
    }
    builder.build().table
}

fn put(service: Service) -> Event {
    Event::ServiceApplied(Arc::new(service))
}

fn put_slice(slice: EndpointSlice) -> Event {
    Event::SliceApplied(Arc::new(slice))
}

fn drop_service(name: &str) -> Event {
    Event::ServiceDeleted(service_name(name))
}

/// Who answers at a TCP address, by the Service's name; empty if nobody does.
fn at(table: &RoutingTable, text: &str) -> String {
    let destination = table.destination(&tcp(text));
    destination.map_or_else(String::new, |d| d.route.key.service.name.to_string())
}

/// The cluster set of a service port, sorted.
fn backends_of(table: &RoutingTable, key: &ServicePortKey) -> Vec<String> {
    let mut all: Vec<String> = table
        .route(key)
        .into_iter()
        .flat_map(|route| &route.cluster)
        .map(|backend| backend.addr.to_string())
        .collect();
    all.sort();
    all
}

fn web_backends(table: &RoutingTable) -> Vec<String> {
    backends_of(table, &port_key("web"))
}

fn web() -> Service {
    service("web", "10.96.0.10")
}
