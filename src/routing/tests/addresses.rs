//! The addresses of a Service: kinds, families, node ports, and Services that have none.

use crate::model::{Family, LoadBalancerAddress, Protocol, ServiceKind};
use crate::routing::{FrontendKind, NodeView};
use crate::testkit::{ep, ip, port, service_port, slice, udp};

use super::*;

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
