//! Explanations: the decision path of each kind of target. That it is the one that flows take is a property of tables.

use std::net::SocketAddr;

use crate::model::{
    EndpointSlice, LoadBalancerAddress, Protocol, SctpPort, ServiceKind, TrafficPolicy,
};
use crate::routing::{
    ExplainedPort, Explanation, NodeView, Outcome, RoutingTable, Standing, Topology,
};
use crate::testkit::{
    EndpointWith, ep, ip, node_name, port, service_port, slice, slice_port, start, tcp,
};

use super::*;

fn explain(table: &RoutingTable, target: &str) -> Explanation {
    table.explain(&target.parse().unwrap(), start()).unwrap()
}

fn unknown(table: &RoutingTable, target: &str) -> String {
    table
        .explain(&target.parse().unwrap(), start())
        .unwrap_err()
        .to_string()
}

/// The one service port of an explanation.
fn only(explanation: Explanation) -> ExplainedPort {
    let [port] = explanation.service_ports.try_into().unwrap();
    port
}

fn here() -> NodeView {
    NodeView {
        name: Some(node_name("here")),
        zone: Some("z1".into()),
        node_port_addresses: [ip("172.18.0.2")].into(),
        ..NodeView::default()
    }
}

/// A table as of the node `here`.
fn table(service: Service, slices: impl IntoIterator<Item = EndpointSlice>) -> Arc<RoutingTable> {
    let mut builder = builder();
    builder.set_node(here());
    builder.set_synced();
    let slices = slices.into_iter().map(put_slice);
    apply(&mut builder, std::iter::once(put(service)).chain(slices))
}

fn outcomes(port: &ExplainedPort, frontend: usize) -> [Outcome; 3] {
    let flows = port.frontends[frontend].flows.iter();
    let outcomes: Vec<Outcome> = flows.map(|flow| flow.outcome).collect();
    outcomes.try_into().unwrap()
}

fn balanced() -> Service {
    Service {
        kind: ServiceKind::LoadBalancer,
        load_balancer_ips: vec![LoadBalancerAddress {
            ip: ip("192.0.2.2"),
        }],
        ports: vec![crate::model::ServicePort {
            node_port: Some(port(30080)),
            ..service_port("", Protocol::Tcp, 80)
        }],
        ..web()
    }
}

#[test]
fn a_service_that_works_says_what_is_picked_from_and_who_is_left_out() {
    let endpoints = [
        ep("10.1.0.1").on("here"),
        ep("10.1.0.2").on("there"),
        ep("10.1.0.3").unready(),
    ];
    let table = table(web(), [slice("web-1", "web", endpoints)]);
    let explanation = explain(&table, "default/web");
    assert!(explanation.served);
    assert_eq!(explanation.remarks, [""; 0]);
    let port = only(explanation);
    assert_eq!((port.service_port.as_str(), port.port), ("default/web", 80));
    assert_eq!(port.frontends.len(), 1);
    let frontend = &port.frontends[0];
    assert_eq!(
        (frontend.address.as_str(), frontend.kind.as_str()),
        ("10.96.0.10:80", "ClusterIP")
    );
    let both: Vec<SocketAddr> = ["10.1.0.1:8080", "10.1.0.2:8080"]
        .map(|a| a.parse().unwrap())
        .into();
    for (flow, from) in frontend.flows.iter().zip(["outside", "pod", "node"]) {
        assert_eq!(
            (flow.from.as_str(), flow.policy.as_str()),
            (from, "Cluster")
        );
        assert_eq!((flow.outcome, &flow.backends), (Outcome::Served, &both));
    }
    let standings: Vec<_> = port
        .endpoints
        .iter()
        .map(|e| (e.cluster, e.local))
        .collect();
    assert_eq!(
        standings,
        [
            (Standing::Ready, Standing::Ready),
            (Standing::Ready, Standing::OtherNode),
            (Standing::NotReady, Standing::NotReady),
        ]
    );
}

#[test]
fn a_local_policy_is_silent_outside_and_binds_nobody_on_the_node() {
    let service = Service {
        external_policy: TrafficPolicy::Local,
        source_ranges: vec!["198.51.100.0/24".parse().unwrap()],
        ..balanced()
    };
    let table = table(
        service,
        [slice("web-1", "web", [ep("10.1.0.1").on("there")])],
    );
    let explanation = explain(&table, "default/web");
    assert!(explanation.served, "the cluster IP serves everybody");
    let port = only(explanation);
    let addresses: Vec<&str> = port.frontends.iter().map(|f| f.address.as_str()).collect();
    assert_eq!(addresses, ["10.96.0.10:80", "192.0.2.2:80", "*:30080"]);
    use Outcome::{Served, Silent};
    assert_eq!(outcomes(&port, 0), [Served; 3]);
    for frontend in [1, 2] {
        assert_eq!(outcomes(&port, frontend), [Silent, Served, Served]);
        let flows = &port.frontends[frontend].flows;
        assert_eq!(flows[0].why, "endpoints exist, but none on here");
        assert!(flows[1].why.ends_with("binds callers outside alone"));
    }
    assert_eq!(port.frontends[1].source_ranges, ["198.51.100.0/24"]);
    assert!(port.frontends[2].source_ranges.is_empty());

    let address = explain(&table, "192.0.2.2:80");
    assert!(!address.served, "not from everywhere");
    assert_eq!(only(address).frontends, port.frontends[1..2]);
    let node_port = only(explain(&table, "172.18.0.2:30080"));
    assert_eq!(node_port.frontends[0].address, "172.18.0.2:30080");
    assert_eq!(node_port.frontends[0].flows, port.frontends[2].flows);
}

#[test]
fn without_an_endpoint_it_is_refused_and_the_likely_reason_is_named() {
    let reason = |slices: Vec<EndpointSlice>| {
        let explanation = explain(&table(web(), slices), "default/web:80");
        assert!(!explanation.served);
        let port = only(explanation);
        assert_eq!(outcomes(&port, 0), [Outcome::Refused; 3]);
        port.remarks
    };
    assert_eq!(
        reason(Vec::new()),
        ["no slice has an IPv4 endpoint: no Pod matches, or none has an address"]
    );
    let other_name = EndpointSlice {
        ports: vec![slice_port("http", Protocol::Tcp, 8080)],
        ..slice("web-1", "web", [ep("10.1.0.1")])
    };
    assert_eq!(
        reason(vec![other_name]),
        ["the slice default/web-1 has no TCP port named \"\"; its ports are http 8080/TCP"]
    );
    let unready = slice("web-1", "web", [ep("10.1.0.1").unready()]);
    assert_eq!(
        reason(vec![unready]),
        [""; 0],
        "the endpoint's line says it"
    );
}

#[test]
fn hints_and_the_terminating_fallback_are_told() {
    let hinted = [
        ep("10.1.0.1").for_zones(&["z1"]),
        ep("10.1.0.2").for_zones(&["z2"]),
    ];
    let port = only(explain(
        &table(web(), [slice("web-1", "web", hinted)]),
        "default/web",
    ));
    assert_eq!(port.topology, Topology::SameZone);
    assert_eq!(port.remarks, ["hints keep traffic in this zone"]);
    assert_eq!(port.endpoints[1].cluster, Standing::OtherHint);
    let terminating = [ep("10.1.0.1").terminating()];
    let port = only(explain(
        &table(web(), [slice("web-1", "web", terminating)]),
        "default/web",
    ));
    assert_eq!(port.endpoints[0].cluster, Standing::Fallback);
    assert_eq!(
        port.remarks,
        ["no endpoint is ready: those that still serve while terminating are used"]
    );
}

#[test]
fn services_that_are_not_proxied_say_why() {
    let kinds = [
        (ServiceKind::Headless, "headless: "),
        (
            ServiceKind::ExternalName("example.org".into()),
            "an alias of example.org",
        ),
    ];
    for (kind, why) in kinds {
        let explanation = explain(&table(Service { kind, ..web() }, []), "default/web");
        assert!(!explanation.served && explanation.service_ports.is_empty());
        assert!(explanation.remarks[0].starts_with(why), "{explanation:?}");
    }
    let foreign = Service {
        foreign_proxy: true,
        ..web()
    };
    let explanation = explain(&table(foreign, []), "default/web");
    assert!(explanation.remarks[0].starts_with("left to another proxy"));
    let sctp = Service {
        sctp_ports: vec![SctpPort {
            name: "s".into(),
            port: port(132),
        }],
        ..web()
    };
    let explanation = explain(&table(sctp, []), "default/web:s");
    assert_eq!(explanation.remarks, ["port 132/SCTP is not served"]);
    assert!(!explanation.served);
}

#[test]
fn what_is_unknown_is_said_to_be_with_what_is_known() {
    let table = table(balanced(), [slice("web-1", "web", [ep("10.1.0.1")])]);
    let rows = [
        ("default/wep", "there is no Service default/wep"),
        (
            "default/web:81",
            "the Service default/web has no port 81; its ports are 80/TCP",
        ),
        (
            "10.96.0.10:81",
            "no Service is served at 10.96.0.10:81: 10.96.0.10 belongs to default/web, whose ports are 80/TCP",
        ),
        (
            "10.1.0.1:8080",
            "no Service is served at 10.1.0.1:8080: 10.1.0.1 is an endpoint of default/web, and who dials that does not pass through here",
        ),
        (
            "172.18.0.3:30080",
            "no Service is served at 172.18.0.3:30080: 30080 is a node port of default/web, but the addresses of this node where node ports answer are 172.18.0.2",
        ),
        (
            "172.18.0.3:80",
            "no Service is served at 172.18.0.3:80: 172.18.0.3 is the address of no Service",
        ),
    ];
    for (target, expected) in rows {
        assert_eq!(unknown(&table, target), expected);
    }
}

#[test]
fn an_address_that_an_older_service_has_is_told_of() {
    let claiming = |name: &str, cluster_ip: &str| Service {
        external_ips: vec![ip("192.0.2.1")],
        ..service(name, cluster_ip)
    };
    let (_, table) = built([
        put(claiming("old", "10.96.0.1")),
        put(claiming("young", "10.96.0.2")),
        put_slice(slice("young-1", "young", [ep("10.1.0.1")])),
    ]);
    let port = only(explain(&table, "default/young"));
    assert_eq!(port.remarks, ["192.0.2.1:80/TCP is held by default/old"]);
    assert_eq!(port.frontends.len(), 1);
    assert_eq!(
        only(explain(&table, "192.0.2.1:80")).service_port,
        "default/old"
    );
}

#[test]
fn a_port_in_two_families_or_protocols_is_served_as_users_see_it() {
    let dual = Service {
        ports: vec![
            service_port("dns", Protocol::Tcp, 53),
            service_port("dns-udp", Protocol::Udp, 53),
        ],
        ..service("web", "10.96.0.10 fd00::10")
    };
    let only_v4 = |ports: &[(&str, Protocol)]| EndpointSlice {
        ports: ports
            .iter()
            .map(|(name, protocol)| slice_port(name, *protocol, 5353))
            .collect(),
        ..slice("web-1", "web", [ep("10.1.0.1")])
    };
    let tcp_alone = table(dual.clone(), [only_v4(&[("dns", Protocol::Tcp)])]);
    let served = |table: &RoutingTable, target: &str| {
        let explanation = explain(table, target);
        (explanation.served, explanation.service_ports.len())
    };
    assert_eq!(served(&tcp_alone, "default/web"), (false, 4));
    assert_eq!(served(&tcp_alone, "default/web:dns"), (true, 2), "by IPv4");
    assert_eq!(served(&tcp_alone, "10.96.0.10:53"), (false, 2));
    let both = [("dns", Protocol::Tcp), ("dns-udp", Protocol::Udp)];
    let both = table(dual, [only_v4(&both)]);
    assert_eq!(served(&both, "default/web:53"), (true, 4));
    assert_eq!(served(&both, "[fd00::10]:53"), (false, 2));
}

#[test]
fn a_frontend_that_had_to_move_is_found_at_both_ports() {
    let mut builder = builder();
    builder.set_served_port(tcp("10.96.0.10:80"), 8080);
    let endpoints = put_slice(slice("web-1", "web", [ep("10.1.0.1")]));
    let table = apply(&mut builder, [put(web()), endpoints]);
    let asked = explain(&table, "10.96.0.10:80");
    assert_eq!(asked.remarks, ["the initial state is not complete yet"]);
    let frontend = only(asked).frontends.remove(0);
    assert_eq!(
        (frontend.address.as_str(), frontend.served_port),
        ("10.96.0.10:80", 8080)
    );
    let bound = only(explain(&table, "10.96.0.10:8080"));
    assert_eq!(bound.frontends, [frontend]);
}
