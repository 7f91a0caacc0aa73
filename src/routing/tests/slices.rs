//! Slices and endpoints: merging, pairing of ports, what comes first, what goes.

use std::sync::Arc;

use crate::model::{Endpoint, Event, Pod, Protocol, ServicePortKey};
use crate::testkit::{
    EndpointWith, addr, ep, ip, port_key, service, service_name, service_port, slice, slice_key,
    slice_port, udp,
};

use super::*;

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
    assert_eq!(
        table.owners_of(ip("10.1.0.1")),
        [service_name("api").into()]
    );
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
        addresses: [ip("10.1.0.1"), ip("10.1.0.2")].into_iter().collect(),
        ..ep("10.1.0.1")
    };
    let (_, table) = built([put(web()), put_slice(slice("web-1", "web", [two]))]);
    assert_eq!(web_backends(&table), ["10.1.0.1:8080"]);
    assert_eq!(
        table.owners_of(ip("10.1.0.2")),
        [service_name("web").into()]
    );
    assert_eq!(
        table.owners_of(ip("10.96.0.10")),
        [service_name("web").into()]
    );
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
