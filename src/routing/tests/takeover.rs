//! Several Services claim one address: who has it, who waits, who is next.

use crate::model::ServiceKind;
use crate::routing::{Built, NodeView};
use crate::testkit::{ip, port};

use super::*;

/// `name` of type NodePort with its own cluster IP, node port 30080 and external address 192.0.2.1.
fn claimant(name: &str, last: u8) -> Service {
    let mut service = service(name, &format!("10.96.0.{last}"));
    service.kind = ServiceKind::NodePort;
    service.ports[0].node_port = Some(port(30080));
    service.external_ips = vec![ip("192.0.2.1")];
    service
}

fn contested() -> (TableBuilder, Built) {
    let mut builder = builder();
    builder.set_node(NodeView {
        node_port_addresses: [ip("172.18.0.2")].into(),
        ..NodeView::default()
    });
    for (name, last) in [("c", 1), ("b", 2), ("a", 3)] {
        builder.apply(put(claimant(name, last)));
    }
    let built = builder.build();
    (builder, built)
}

#[track_caller]
fn assert_held(table: &RoutingTable, by: &str) {
    for address in ["192.0.2.1:80", "172.18.0.2:30080"] {
        assert_eq!(at(table, address), by, "{address}");
    }
    for (name, address) in [
        ("c", "10.96.0.1:80"),
        ("b", "10.96.0.2:80"),
        ("a", "10.96.0.3:80"),
    ] {
        if table.service(&service_name(name)).is_some() {
            assert_eq!(at(table, address), name, "uncontested addresses stay");
        }
        if let Some(route) = table.route(&port_key(name)) {
            assert_eq!(route.node_port.is_some(), name == by);
            assert_eq!(route.frontends.len(), 1 + usize::from(name == by));
        }
    }
}

#[test]
fn the_older_of_several_claimants_serves_and_the_others_are_reported() {
    let (_, built) = contested();
    assert_held(&built.table, "c");
    let told: Vec<String> = built.conflicts.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "192.0.2.1:80/TCP is held by default/c; default/a takes over when it goes",
            "node port 30080/TCP (IPv4) is held by default/c; default/a takes over when it goes",
            "192.0.2.1:80/TCP is held by default/c; default/b takes over when it goes",
            "node port 30080/TCP (IPv4) is held by default/c; default/b takes over when it goes",
        ]
    );
}

#[test]
fn claimants_take_over_in_the_order_of_their_age() {
    let (mut builder, _) = contested();
    builder.apply(drop_service("c"));
    let built = builder.build();
    assert_held(&built.table, "b");
    assert_eq!(
        built.changed,
        [service_name("b"), service_name("c")],
        "only who gained and who went"
    );
    assert_eq!(built.conflicts, []);
    assert_held(&apply(&mut builder, [drop_service("b")]), "a");
}

#[test]
fn a_claimant_that_vanishes_while_waiting_is_passed_over() {
    let (mut builder, _) = contested();
    assert_held(&apply(&mut builder, [drop_service("b")]), "c");
    assert_held(&apply(&mut builder, [drop_service("c")]), "a");
}

#[test]
fn letting_an_address_go_hands_it_on_without_deletion() {
    let (mut builder, _) = contested();
    let table = apply(&mut builder, [put(service("c", "10.96.0.1"))]);
    assert_held(&table, "b");
    let built = {
        builder.apply(put(claimant("c", 1)));
        builder.build()
    };
    assert_held(&built.table, "c");
    assert_eq!(
        built.conflicts.len(),
        2,
        "the older one is back and displaces: {:?}",
        built.conflicts
    );
}

#[test]
fn a_holder_replaced_by_one_of_its_name_is_young_again() {
    let (mut builder, _) = contested();
    let table = apply(&mut builder, [drop_service("c"), put(claimant("c", 1))]);
    assert_held(&table, "b");
}

#[test]
fn holder_and_successor_may_change_in_one_build() {
    let (mut builder, _) = contested();
    let table = apply(
        &mut builder,
        [
            drop_service("b"),
            put(service("c", "10.96.0.1")),
            put(claimant("a", 3)),
        ],
    );
    assert_held(&table, "a");
}

#[test]
fn one_service_on_the_cluster_ip_of_another_is_a_conflict_too() {
    let mut thief = service("thief", "10.96.0.11");
    thief.external_ips = vec![ip("10.96.0.10")];
    let mut builder = builder();
    builder.apply(put(web()));
    builder.apply(put(thief));
    let built = builder.build();
    assert_eq!(at(&built.table, "10.96.0.10:80"), "web");
    assert_eq!(built.conflicts.len(), 1);
}
