//! What outlives a table: shared routes, live figures, balancers, the order of backends.

use std::time::Duration;

use crate::model::{Endpoint, Protocol};
use crate::routing::{NodeView, Route};
use crate::testkit::{EndpointWith, addr, ep, ip, node_name, port, service_port, slice, slice_key};

use super::*;

#[test]
fn what_did_not_change_is_shared_with_the_table_before() {
    let (mut builder, before) = built([
        put(web()),
        put(service("api", "10.96.0.11")),
        put_slice(slice("web-1", "web", [ep("10.1.0.1")])),
    ]);
    builder.apply(put_slice(slice("web-1", "web", [ep("10.1.0.2")])));
    let after = builder.build();
    assert_eq!(after.changed, [service_name("web")]);
    assert_eq!(after.table.generation, before.generation + 1);
    let api = port_key("api");
    assert!(Arc::ptr_eq(
        before.route(&api).unwrap(),
        after.table.route(&api).unwrap()
    ));
    assert_eq!(
        web_backends(&before),
        ["10.1.0.1:8080"],
        "the old table stays"
    );
    assert_eq!(web_backends(&after.table), ["10.1.0.2:8080"]);
    assert_eq!(builder.build().changed, []);
}

#[test]
fn live_figures_stay_as_long_as_the_endpoint_is_in_the_slices() {
    let (mut builder, table) = built([
        put(web()),
        put_slice(slice("web-1", "web", [ep("10.1.0.1"), ep("10.1.0.2")])),
    ]);
    let live_of = |table: &RoutingTable, text: &str| {
        let route = table.route(&port_key("web")).unwrap();
        let found = route.cluster.iter().find(|b| b.addr == addr(text));
        found.map(|b| b.live.clone())
    };
    let live = live_of(&table, "10.1.0.1:8080").unwrap();
    live.begin();
    let unready = slice("web-1", "web", [ep("10.1.0.1").unready(), ep("10.1.0.2")]);
    let table = apply(&mut builder, [put_slice(unready)]);
    assert!(live_of(&table, "10.1.0.1:8080").is_none());
    let on_a_node = slice("web-2", "web", [ep("10.1.0.1").on("n1")]);
    let table = apply(&mut builder, [put_slice(on_a_node)]);
    let again = live_of(&table, "10.1.0.1:8080").unwrap();
    assert!(Arc::ptr_eq(&live, &again), "its flow still counts");
    let removed = Event::SliceDeleted(slice_key("web-2"));
    let other = put_slice(slice("web-1", "web", [ep("10.1.0.2")]));
    apply(&mut builder, [removed, other]);
    let table = apply(
        &mut builder,
        [put_slice(slice("web-2", "web", [ep("10.1.0.1")]))],
    );
    assert_eq!(live_of(&table, "10.1.0.1:8080").unwrap().active(), 0);
}

#[test]
fn one_address_in_both_sets_is_one_set_of_figures() {
    let mut builder = builder();
    builder.set_node(NodeView {
        name: Some(node_name("n1")),
        ..NodeView::default()
    });
    let table = apply(
        &mut builder,
        [
            put(web()),
            put_slice(slice("web-1", "web", [ep("10.1.0.1").on("n1")])),
        ],
    );
    let route = table.route(&port_key("web")).unwrap();
    assert!(Arc::ptr_eq(&route.cluster[0].live, &route.local[0].live));
}

#[test]
fn the_balancer_stays_until_algorithm_or_affinity_change() {
    let balancer = |table: &RoutingTable| table.route(&port_key("web")).unwrap().balancer.clone();
    let (mut builder, table) = built([put(web())]);
    let first = balancer(&table);

    let mut web = web();
    web.ports[0].node_port = Some(port(30080));
    let endpoints = put_slice(slice("web-1", "web", [ep("10.1.0.1")]));
    let table = apply(&mut builder, [put(web.clone()), endpoints]);
    assert!(Arc::ptr_eq(&first, &balancer(&table)));

    web.knobs.algorithm = Some(Algorithm::RoundRobin);
    let table = apply(&mut builder, [put(web.clone())]);
    assert!(
        Arc::ptr_eq(&first, &balancer(&table)),
        "the default spelled out"
    );

    web.knobs.algorithm = Some(Algorithm::LeastConnection);
    let table = apply(&mut builder, [put(web.clone())]);
    let second = balancer(&table);
    assert!(!Arc::ptr_eq(&first, &second));

    web.affinity = Some(Duration::from_secs(5));
    let table = apply(&mut builder, [put(web.clone())]);
    let third = balancer(&table);
    assert!(!Arc::ptr_eq(&second, &third));

    web.affinity = Some(Duration::from_secs(6));
    let table = apply(&mut builder, [put(web)]);
    assert!(!Arc::ptr_eq(&third, &balancer(&table)));
}

#[test]
fn the_order_of_backends_depends_on_the_set_the_service_port_and_the_node() {
    let all: Vec<Endpoint> = (1..=8).map(|n| ep(&format!("10.1.0.{n}"))).collect();
    let order = |table: &RoutingTable, name: &str| -> Vec<String> {
        let route = table.route(&port_key(name)).unwrap();
        route.cluster.iter().map(|b| b.addr.to_string()).collect()
    };
    let (mut builder, table) = built([
        put(web()),
        put(service("api", "10.96.0.11")),
        put_slice(slice("web-1", "web", all.clone())),
        put_slice(slice("api-1", "api", all.clone())),
    ]);
    let first = order(&table, "web");
    assert_ne!(first, order(&table, "api"));
    let reversed = slice("web-1", "web", all.into_iter().rev());
    let table = apply(&mut builder, [put_slice(reversed)]);
    assert_eq!(order(&table, "web"), first);
    builder.set_node(NodeView {
        name: Some(node_name("n2")),
        ..NodeView::default()
    });
    assert_ne!(order(&builder.build().table, "web"), first);
}

#[test]
fn a_new_name_or_zone_of_the_node_reaches_every_service_and_other_news_do_not() {
    let hinted = |zone: &str, address: &str| ep(address).for_zones(&[zone]);
    let (mut builder, _) = built([
        put(web()),
        put(service("api", "10.96.0.11")),
        put_slice(slice(
            "web-1",
            "web",
            [hinted("z1", "10.1.0.1"), hinted("z2", "10.1.0.2")],
        )),
    ]);
    let mut node = NodeView {
        zone: Some("z1".into()),
        ..NodeView::default()
    };
    builder.set_node(node.clone());
    let built = builder.build();
    assert_eq!(built.changed.len(), 2);
    assert_eq!(web_backends(&built.table), ["10.1.0.1:8080"]);
    node.local_addresses = [ip("172.18.0.2")].into();
    builder.set_node(node.clone());
    let built = builder.build();
    assert_eq!(built.changed, []);
    assert_eq!(built.table.node.local_addresses, node.local_addresses);
}

#[test]
fn connections_are_counted_per_service_for_as_long_as_it_exists() {
    let mut both = service("web", "10.96.0.10 fd00:96::10");
    both.ports.push(service_port("admin", Protocol::Tcp, 81));
    let (mut builder, table) = built([put(both.clone()), put(service("api", "10.96.0.11"))]);
    let load = |table: &RoutingTable, name: &str| {
        let entry = table.service(&service_name(name)).unwrap();
        let same = |route: &Arc<Route>| Arc::ptr_eq(&route.load, &entry.load);
        assert!(entry.routes.iter().all(same));
        entry.load.clone()
    };
    assert_eq!(
        table.routes().count(),
        5,
        "two ports in two families, and another"
    );
    let first = load(&table, "web");
    assert!(!Arc::ptr_eq(&first, &load(&table, "api")));

    let endpoints = put_slice(slice("web-1", "web", [ep("10.1.0.1")]));
    let foreign = Service {
        foreign_proxy: true,
        ..both.clone()
    };
    for change in [endpoints, put(foreign), put(both.clone())] {
        let table = apply(&mut builder, [change]);
        assert!(Arc::ptr_eq(&first, &load(&table, "web")));
    }
    apply(&mut builder, [drop_service("web")]);
    let table = apply(&mut builder, [put(both)]);
    assert!(
        !Arc::ptr_eq(&first, &load(&table, "web")),
        "another Service"
    );
}
