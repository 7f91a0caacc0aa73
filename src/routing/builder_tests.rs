//! The table builder by example: what each event makes of the table. Chance is in `builder_properties`.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::model::{
    Algorithm, Endpoint, EndpointSlice, Event, Family, LoadBalancerAddress, Pod, Protocol, Service,
    ServiceKind, ServicePortKey,
};
use crate::testkit::*;

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

#[test]
fn slices_of_one_service_are_merged_and_each_takes_away_what_it_brought() {
    let (mut builder, table) = built([
        put(web()),
        put_slice(slice("web-1", "web", [ep("10.1.0.1"), ep("10.1.0.2")])),
        put_slice(slice("web-2", "web", [ep("10.1.0.2"), ep("10.1.0.3")])),
        put_slice(slice("other-1", "other", [ep("10.1.0.9")])),
    ]);
    assert_eq!(
        web_backends(&table),
        ["10.1.0.1:8080", "10.1.0.2:8080", "10.1.0.3:8080"]
    );
    let table = apply(&mut builder, [Event::SliceDeleted(slice_key("web-2"))]);
    assert_eq!(web_backends(&table), ["10.1.0.1:8080", "10.1.0.2:8080"]);
    let table = apply(&mut builder, [Event::SliceDeleted(slice_key("never"))]);
    assert_eq!(web_backends(&table).len(), 2);
}

#[test]
fn a_slice_that_moves_to_another_service_leaves_the_first() {
    let (mut builder, _) = built([
        put(web()),
        put(service("api", "10.96.0.11")),
        put_slice(slice("web-1", "web", [ep("10.1.0.1")])),
    ]);
    let table = apply(
        &mut builder,
        [put_slice(slice("web-1", "api", [ep("10.1.0.1")]))],
    );
    assert_eq!(web_backends(&table), [""; 0]);
    assert_eq!(backends_of(&table, &port_key("api")), ["10.1.0.1:8080"]);
    assert_eq!(table.owners_of(ip("10.1.0.1")), [service_name("api")]);
}

#[test]
fn it_does_not_matter_whether_the_service_or_its_slice_comes_first() {
    let events = [
        put_slice(slice("web-1", "web", [ep("10.1.0.1")])),
        put(web()),
    ];
    let (_, slice_first) = built(events.clone());
    let (_, service_first) = built(events.into_iter().rev());
    for table in [&slice_first, &service_first] {
        assert_eq!(web_backends(table), ["10.1.0.1:8080"]);
    }
}

#[test]
fn a_deleted_service_leaves_its_slices_for_the_next_of_its_name() {
    let (mut builder, _) = built([
        put(web()),
        put_slice(slice("web-1", "web", [ep("10.1.0.1")])),
    ]);
    let table = apply(&mut builder, [drop_service("web")]);
    assert_eq!(at(&table, "10.96.0.10:80"), "");
    assert!(table.service(&service_name("web")).is_none());
    assert_eq!(table.owners_of(ip("10.1.0.1")), []);
    let table = apply(&mut builder, [put(service("web", "10.96.0.99"))]);
    assert_eq!(at(&table, "10.96.0.99:80"), "web");
    assert_eq!(web_backends(&table), ["10.1.0.1:8080"]);
}

#[test]
fn ports_pair_by_name_and_protocol_and_take_the_number_of_the_slice() {
    let mut web = web();
    web.ports = vec![
        service_port("http", Protocol::Tcp, 80),
        service_port("dns", Protocol::Tcp, 53),
        service_port("dns-udp", Protocol::Udp, 53),
    ];
    let mut first = slice("web-1", "web", [ep("10.1.0.1")]);
    first.ports = vec![
        slice_port("http", Protocol::Tcp, 8080),
        slice_port("dns", Protocol::Udp, 5353),
        slice_port("dns-udp", Protocol::Udp, 5353),
    ];
    let mut second = slice("web-2", "web", [ep("10.1.0.2")]);
    second.ports = vec![
        slice_port("http", Protocol::Tcp, 9090),
        slice_port("http", Protocol::Tcp, 9091),
    ];
    let (_, table) = built([put(web), put_slice(first), put_slice(second)]);
    let of = |name: &str, protocol| {
        let key = ServicePortKey {
            port: name.into(),
            protocol,
            ..port_key("web")
        };
        backends_of(&table, &key)
    };
    assert_eq!(
        of("http", Protocol::Tcp),
        ["10.1.0.1:8080", "10.1.0.2:9090", "10.1.0.2:9091"]
    );
    assert_eq!(of("dns", Protocol::Tcp), [""; 0], "a name is not enough");
    assert_eq!(of("dns-udp", Protocol::Udp), ["10.1.0.1:5353"]);
    assert!(table.destination(&udp("10.96.0.10:53")).is_some());
    assert!(
        table.destination(&udp("10.96.0.10:80")).is_none(),
        "a TCP port does not answer UDP"
    );
}

#[test]
fn only_the_first_address_of_an_endpoint_is_a_backend_and_all_are_owned() {
    let two = Endpoint {
        addresses: vec![ip("10.1.0.1"), ip("10.1.0.2")],
        ..ep("10.1.0.1")
    };
    let (_, table) = built([put(web()), put_slice(slice("web-1", "web", [two]))]);
    assert_eq!(web_backends(&table), ["10.1.0.1:8080"]);
    assert_eq!(table.owners_of(ip("10.1.0.2")), [service_name("web")]);
    assert_eq!(table.owners_of(ip("10.96.0.10")), [service_name("web")]);
}

#[test]
fn a_headless_slice_is_for_names_only() {
    let mut headless = slice("web-1", "web", [ep("10.1.0.1")]);
    headless.headless = true;
    let (mut builder, table) = built([put(web()), put_slice(headless)]);
    assert_eq!(web_backends(&table), [""; 0]);
    let entry = table.service(&service_name("web")).unwrap();
    assert_eq!(entry.slices.len(), 1);
    let plain = slice("web-1", "web", [ep("10.1.0.1")]);
    let table = apply(&mut builder, [put_slice(plain)]);
    assert_eq!(web_backends(&table), ["10.1.0.1:8080"], "the label went");
}

#[test]
fn a_service_that_is_not_proxied_has_an_entry_and_no_routes() {
    let skipped = [
        Service {
            kind: ServiceKind::ExternalName("example.org".into()),
            ..web()
        },
        Service {
            kind: ServiceKind::Headless,
            ..web()
        },
        Service {
            foreign_proxy: true,
            ..web()
        },
        Service {
            cluster_ips: Vec::new(),
            ..web()
        },
    ];
    for skipped in skipped {
        let endpoints = put_slice(slice("web-1", "web", [ep("10.1.0.1")]));
        let (mut builder, table) = built([put(web()), endpoints]);
        assert_eq!(at(&table, "10.96.0.10:80"), "web");
        let table = apply(&mut builder, [put(skipped.clone())]);
        assert_eq!(at(&table, "10.96.0.10:80"), "", "{skipped:?}");
        assert_eq!(table.routes().count(), 0);
        let entry = table.service(&service_name("web")).unwrap();
        assert_eq!((entry.routes.len(), entry.slices.len()), (0, 1));
        let table = apply(&mut builder, [put(web())]);
        assert_eq!(web_backends(&table), ["10.1.0.1:8080"], "and back");
    }
}

#[test]
fn the_two_families_are_two_worlds() {
    let mut dual = service("web", "10.96.0.10 fd00::10");
    dual.kind = ServiceKind::LoadBalancer;
    dual.ports[0].node_port = Some(port(30080));
    dual.external_ips = vec![ip("192.0.2.1"), ip("2001:db8::1")];
    let lb = |text| LoadBalancerAddress { ip: ip(text) };
    dual.load_balancer_ips = vec![lb("192.0.2.2"), lb("2001:db8::2")];
    let (mut builder, table) = built([
        put(dual.clone()),
        put_slice(slice("web-1", "web", [ep("10.1.0.1")])),
        put_slice(slice("web-2", "web", [ep("fd01::1")])),
    ]);
    let v6 = ServicePortKey {
        family: Family::V6,
        ..port_key("web")
    };
    assert_eq!(web_backends(&table), ["10.1.0.1:8080"]);
    assert_eq!(backends_of(&table, &v6), ["[fd01::1]:8080"]);
    let frontends = |key| {
        let all = table.route(key).unwrap().frontends.iter();
        all.map(|(frontend, kind)| format!("{frontend} {}", kind.as_str()))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        frontends(&v6),
        [
            "[fd00::10]:80/TCP ClusterIP",
            "[2001:db8::1]:80/TCP ExternalIP",
            "[2001:db8::2]:80/TCP LoadBalancer"
        ]
    );
    assert_eq!(table.route(&v6).unwrap().node_port, Some(30080));

    dual.cluster_ips.pop();
    let table = apply(&mut builder, [put(dual)]);
    assert!(table.route(&v6).is_none());
    assert_eq!(
        at(&table, "[2001:db8::1]:80"),
        "",
        "no cluster IP, no family"
    );
    assert_eq!(at(&table, "192.0.2.1:80"), "web");
}

#[test]
fn an_address_listed_twice_is_what_it_is_listed_as_first() {
    let mut web = web();
    web.external_ips = vec![ip("10.96.0.10"), ip("192.0.2.1"), ip("192.0.2.1")];
    web.load_balancer_ips = vec![LoadBalancerAddress {
        ip: ip("192.0.2.1"),
    }];
    let (_, table) = built([put(web)]);
    let kind = |text| table.destination(&tcp(text)).unwrap().kind;
    assert_eq!(kind("10.96.0.10:80"), FrontendKind::ClusterIp);
    assert_eq!(kind("192.0.2.1:80"), FrontendKind::ExternalIp);
    assert_eq!(table.route(&port_key("web")).unwrap().frontends.len(), 2);
}

#[test]
fn ports_come_and_go_without_a_trace_and_a_renamed_one_keeps_its_address() {
    let mut web = web();
    web.ports = vec![
        service_port("a", Protocol::Tcp, 80),
        service_port("b", Protocol::Tcp, 81),
    ];
    let (mut builder, _) = built([put(web.clone())]);
    web.ports[0].name = "z".into();
    web.ports.pop();
    builder.apply(put(web));
    let built = builder.build();
    assert_eq!(built.conflicts, []);
    let destination = built.table.destination(&tcp("10.96.0.10:80")).unwrap();
    assert_eq!(&*destination.route.key.port, "z");
    assert_eq!(at(&built.table, "10.96.0.10:81"), "");
    assert_eq!(built.table.routes().count(), 1);
}

#[test]
fn node_ports_answer_at_node_addresses_unless_another_service_has_the_exact_one() {
    let mut web = web();
    web.kind = ServiceKind::NodePort;
    web.ports[0].node_port = Some(port(30080));
    let mut exact = service("exact", "10.96.0.11");
    exact.ports[0].port = port(30080);
    exact.external_ips = vec![ip("172.18.0.2")];
    let mut builder = builder();
    builder.set_node(NodeView {
        node_port_addresses: ["127.0.0.1", "172.18.0.2", "172.18.0.3", "fd00::2"]
            .map(ip)
            .into(),
        ..NodeView::default()
    });
    let table = apply(&mut builder, [put(web), put(exact)]);
    assert_eq!(at(&table, "172.18.0.3:30080"), "web");
    assert_eq!(at(&table, "127.0.0.9:30080"), "web");
    assert_eq!(at(&table, "172.18.0.2:30080"), "exact");
    assert_eq!(at(&table, "172.18.0.4:30080"), "");
    assert_eq!(at(&table, "172.18.0.3:80"), "");
    assert_eq!(at(&table, "[fd00::2]:30080"), "", "no IPv6 cluster IP");
    assert!(table.destination(&udp("172.18.0.3:30080")).is_none());
    let table = apply(&mut builder, [drop_service("exact")]);
    assert_eq!(at(&table, "172.18.0.2:30080"), "web");
}

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
fn existing_flows_may_go_on_to_ready_endpoints_and_those_that_serve_while_terminating() {
    let (_, table) = built([
        put(web()),
        put_slice(slice(
            "web-1",
            "web",
            [
                ep("10.1.0.1"),
                ep("10.1.0.2").terminating(),
                ep("10.1.0.3").terminating().serving(false),
                ep("10.1.0.4").unready(),
                ep("10.1.0.5").unready().serving(true),
            ],
        )),
    ]);
    let route = table.route(&port_key("web")).unwrap();
    let serves = |last: u8| route.still_serves(addr(&format!("10.1.0.{last}:8080")));
    assert_eq!(
        [1, 2, 3, 4, 5, 6].map(serves),
        [true, true, false, false, false, false]
    );
    assert!(!route.still_serves(addr("10.1.0.1:8081")));
}

#[test]
fn a_moved_frontend_is_remembered_as_long_as_somebody_serves_it() {
    let mut web = web();
    web.kind = ServiceKind::NodePort;
    web.ports[0].node_port = Some(port(30080));
    let mut builder = builder();
    builder.set_node(NodeView {
        node_port_addresses: [ip("127.0.0.1")].into(),
        ..NodeView::default()
    });
    apply(&mut builder, [put(web.clone())]);
    let (own, node_port) = (tcp("10.96.0.10:80"), tcp("127.0.0.1:30080"));
    builder.set_served_port(own, 8080);
    builder.set_served_port(node_port, 38080);
    let table = apply(&mut builder, [put(web.clone())]);
    assert_eq!(
        (table.served_port(&own), table.served_port(&node_port)),
        (8080, 38080)
    );
    let table = apply(&mut builder, [drop_service("web")]);
    assert_eq!(
        (table.served_port(&own), table.served_port(&node_port)),
        (80, 30080)
    );
    apply(&mut builder, [put(web)]);
    builder.set_served_port(own, 8080);
    builder.set_served_port(own, 80);
    assert_eq!(builder.build().table.served_port(&own), 80);
}

#[test]
fn pods_namespaces_and_the_end_of_the_first_listing_are_in_the_table() {
    let pod = |name: &str, ips: &[&str]| {
        Event::PodApplied(Arc::new(Pod {
            namespace: "default".into(),
            name: name.into(),
            ips: ips.iter().map(|text| ip(text)).collect(),
            finished: false,
            host_network: false,
        }))
    };
    let (mut builder, table) = built([
        pod("a", &["10.1.0.1", "fd01::1"]),
        pod("b", &["10.1.0.1"]),
        Event::NamespaceApplied("default".into()),
    ]);
    assert!(!table.synced && table.has_namespace("default"));
    let names = |table: &RoutingTable, text: &str| -> Vec<String> {
        let pods = table.pods_at(ip(text)).iter();
        pods.map(|pod| pod.name.to_string()).collect()
    };
    assert_eq!(names(&table, "10.1.0.1"), ["a", "b"]);
    builder.set_synced();
    let table = apply(
        &mut builder,
        [
            pod("a", &["10.1.0.2"]),
            Event::PodDeleted("default".into(), "b".into()),
            Event::PodDeleted("default".into(), "never".into()),
            Event::NamespaceDeleted("default".into()),
        ],
    );
    assert!(table.synced && !table.has_namespace("default"));
    assert_eq!(names(&table, "10.1.0.1"), [""; 0]);
    assert_eq!(names(&table, "fd01::1"), [""; 0]);
    assert_eq!(names(&table, "10.1.0.2"), ["a"]);
}
