//! The pure plan: which listeners a route needs and what the kernel is told, for both ways of arrival.

use std::collections::BTreeSet;

use super::plan::{
    Arrival, Callers, Entry, ListenerSpec, ListenerState, Rules, Silence, Tenure, plan_listeners,
};
use crate::model::{Family, Frontend, Protocol, ServicePortKey, TrafficPolicy};
use crate::routing::{FrontendKind, NodeView, Route};
use crate::testkit::{addr, backend, ip, port_key, route, tcp, udp};

/// A route with one backend, a cluster IP, an external IP and the node port 30080.
fn exposed(protocol: Protocol) -> Route {
    let at = |text| Frontend::new(addr(text), protocol);
    Route {
        key: ServicePortKey {
            protocol,
            ..port_key("web")
        },
        cluster: vec![backend(addr("10.1.0.1:8080"))],
        any_endpoints: true,
        frontends: vec![
            (at("10.96.0.10:80"), FrontendKind::ClusterIp),
            (at("192.0.2.1:80"), FrontendKind::ExternalIp),
        ],
        node_port: Some(30080),
        ..route(port_key("web"))
    }
}

/// The same with its cluster IP alone.
fn internal(protocol: Protocol) -> Route {
    let mut route = exposed(protocol);
    route.frontends.truncate(1);
    route.node_port = None;
    route
}

fn node() -> NodeView {
    let addresses = ["127.0.0.1", "172.18.0.2", "fd00::2"].map(ip);
    NodeView {
        local_addresses: addresses.into(),
        node_port_addresses: addresses.into(),
        pod_cidrs: vec!["10.244.0.0/24".parse().unwrap()],
        ..NodeView::default()
    }
}

fn entries(specs: &[ListenerSpec]) -> Vec<Entry> {
    specs.iter().map(|spec| spec.id.entry).collect()
}

#[test]
fn redirected_tcp_has_one_listener_at_any_port() {
    for route in [exposed(Protocol::Tcp), internal(Protocol::Tcp)] {
        let specs = plan_listeners(&route, Arrival::Redirected, &node());
        assert_eq!(entries(&specs), [Entry::All]);
        assert_eq!(specs[0].bind, addr("0.0.0.0:0"));
        assert_eq!(specs[0].arrival(), Arrival::Redirected);
        assert_eq!(specs[0].state, ListenerState::Serving);
    }
    let mut six = internal(Protocol::Tcp);
    six.key.family = Family::V6;
    let specs = plan_listeners(&six, Arrival::Redirected, &node());
    assert_eq!(specs[0].bind, addr("[::]:0"));
}

#[test]
fn redirected_udp_has_a_second_listener_if_anything_external_leads_to_it() {
    let of = |route: &Route| entries(&plan_listeners(route, Arrival::Redirected, &node()));
    let mut route = exposed(Protocol::Udp);
    assert_eq!(of(&route), [Entry::ClusterIp, Entry::External]);
    route.frontends.truncate(1);
    assert_eq!(
        of(&route),
        [Entry::ClusterIp, Entry::External],
        "a node port alone"
    );
    route = exposed(Protocol::Udp);
    route.node_port = None;
    assert_eq!(
        of(&route),
        [Entry::ClusterIp, Entry::External],
        "an address alone"
    );
    assert_eq!(of(&internal(Protocol::Udp)), [Entry::ClusterIp]);
}

#[test]
fn direct_listeners_bind_every_address_of_the_family() {
    for (protocol, at) in [
        (Protocol::Tcp, tcp as fn(&str) -> Frontend),
        (Protocol::Udp, udp),
    ] {
        let specs = plan_listeners(&exposed(protocol), Arrival::Direct, &node());
        let expected = [
            (at("10.96.0.10:80"), FrontendKind::ClusterIp),
            (at("192.0.2.1:80"), FrontendKind::ExternalIp),
            (at("127.0.0.1:30080"), FrontendKind::NodePort),
            (at("172.18.0.2:30080"), FrontendKind::NodePort),
        ];
        assert_eq!(
            entries(&specs),
            expected.map(|(frontend, kind)| Entry::At(frontend, kind))
        );
        for (spec, (frontend, _)) in specs.iter().zip(expected) {
            assert_eq!((spec.bind, spec.protocol()), (frontend.addr(), protocol));
            assert_eq!(spec.arrival(), Arrival::Direct);
        }
    }
}

#[test]
fn diverted_tcp_has_one_listener_and_diverted_udp_one_for_each_address() {
    let specs = plan_listeners(&exposed(Protocol::Tcp), Arrival::Diverted, &node());
    assert_eq!(entries(&specs), [Entry::Diverted]);
    assert_eq!(specs[0].bind, addr("0.0.0.0:0"));
    let udp = exposed(Protocol::Udp);
    let datagrams = plan_listeners(&udp, Arrival::Diverted, &node());
    let direct = plan_listeners(&udp, Arrival::Direct, &node());
    assert_eq!(entries(&datagrams), entries(&direct));
    let mut all = specs.iter().chain(&datagrams);
    assert!(all.all(|spec| spec.tenure == Tenure::Transparent));
    assert!(direct.iter().all(|spec| spec.tenure == Tenure::Owned));
}

#[test]
fn diverted_tcp_is_led_to_one_port_and_udp_to_its_own() {
    let tcp_rules = rules(&exposed(Protocol::Tcp), |entry| {
        (entry == Entry::Diverted).then_some(4000)
    });
    let redirects = [
        (tcp("10.96.0.10:80"), 4000_u16),
        (tcp("192.0.2.1:80"), 4000_u16),
    ];
    assert_eq!(tcp_rules.redirects, redirects.into_iter().collect());
    assert_eq!(
        tcp_rules.node_ports,
        [((Protocol::Tcp, 30080), 4000_u16)].into_iter().collect()
    );
    let udp_rules = rules(&exposed(Protocol::Udp), |entry| match entry {
        Entry::At(frontend, _) => Some(frontend.port),
        Entry::All | Entry::Diverted | Entry::ClusterIp | Entry::External => None,
    });
    let redirects = [(udp("10.96.0.10:80"), 80_u16), (udp("192.0.2.1:80"), 80)];
    assert_eq!(udp_rules.redirects, redirects.into_iter().collect());
    assert!(udp_rules.node_ports.is_empty(), "bound where it is");
}

#[test]
fn a_route_without_any_endpoint_is_held_closed_and_one_with_others_is_not() {
    let mut route = exposed(Protocol::Tcp);
    route.internal_policy = TrafficPolicy::Local;
    for arrival in [Arrival::Redirected, Arrival::Direct] {
        let states = |route: &Route| -> BTreeSet<bool> {
            let specs = plan_listeners(route, arrival, &node());
            let held = |spec: &ListenerSpec| spec.state == ListenerState::HeldClosed;
            specs.iter().map(held).collect()
        };
        assert_eq!(states(&route), [false].into(), "endpoints elsewhere");
        let closed = Route {
            any_endpoints: false,
            cluster: Vec::new(),
            ..exposed(Protocol::Tcp)
        };
        assert_eq!(states(&closed), [true].into());
    }
}

#[test]
fn without_rules_the_listener_itself_keeps_silent() {
    let callers = |route: &Route, kind| {
        let specs = plan_listeners(route, Arrival::Direct, &node());
        let of_kind = |spec: &&ListenerSpec| matches!(spec.id.entry, Entry::At(_, k) if k == kind);
        specs.iter().find(of_kind).unwrap().callers.clone()
    };
    let only = |networks: &[&str]| {
        Callers::Only(networks.iter().map(|text| text.parse().unwrap()).collect())
    };
    let elsewhere = Route {
        internal_policy: TrafficPolicy::Local,
        external_policy: TrafficPolicy::Local,
        ..exposed(Protocol::Tcp)
    };
    assert_eq!(callers(&elsewhere, FrontendKind::ClusterIp), only(&[]));
    assert_eq!(
        callers(&elsewhere, FrontendKind::ExternalIp),
        only(&[
            "10.244.0.0/24",
            "127.0.0.0/8",
            "172.18.0.2/32",
            "192.0.2.1/32"
        ])
    );
    let plain = exposed(Protocol::Tcp);
    assert_eq!(callers(&plain, FrontendKind::ClusterIp), Callers::All);
    let mut guarded = exposed(Protocol::Udp);
    guarded.frontends[1].1 = FrontendKind::LoadBalancer;
    guarded.source_ranges = vec!["172.18.0.0/16".parse().unwrap()];
    assert_eq!(
        callers(&guarded, FrontendKind::LoadBalancer),
        only(&["172.18.0.0/16", "192.0.2.1/32"]),
        "the node may call, so may the address"
    );
    guarded.external_policy = TrafficPolicy::Local;
    guarded.source_ranges = ["172.0.0.0/8", "10.244.0.0/28"]
        .map(|text| text.parse().unwrap())
        .into();
    assert_eq!(
        callers(&guarded, FrontendKind::LoadBalancer),
        only(&["10.244.0.0/28", "172.18.0.2/32", "192.0.2.1/32"]),
        "both must allow it"
    );
    guarded.any_endpoints = false;
    assert_eq!(callers(&guarded, FrontendKind::LoadBalancer), Callers::All);
}

/// The rules for one route whose listeners have these proxy ports.
fn rules(route: &Route, port_of: impl Fn(Entry) -> Option<u16>) -> Rules {
    let mut rules = Rules::none(Family::V4);
    rules.add(route, port_of);
    rules
}

fn by_entry(entry: Entry) -> Option<u16> {
    match entry {
        Entry::All => Some(4000),
        Entry::ClusterIp => Some(4001),
        Entry::External => Some(4002),
        Entry::Diverted | Entry::At(..) => None,
    }
}

#[test]
fn tcp_is_led_to_one_port() {
    let rules = rules(&exposed(Protocol::Tcp), by_entry);
    let redirects = [
        (tcp("10.96.0.10:80"), 4000_u16),
        (tcp("192.0.2.1:80"), 4000),
    ];
    let expected = Rules {
        cluster_ips: [ip("10.96.0.10")].into_iter().collect(),
        redirects: redirects.into_iter().collect(),
        node_ports: [((Protocol::Tcp, 30080), 4000_u16)].into_iter().collect(),
        ..Rules::none(Family::V4)
    };
    assert_eq!(rules, expected);
}

#[test]
fn udp_is_led_to_a_port_for_each_class_and_both_are_guarded() {
    let expected = Rules {
        cluster_ips: [ip("10.96.0.10")].into_iter().collect(),
        redirects: [
            (udp("10.96.0.10:80"), 4001_u16),
            (udp("192.0.2.1:80"), 4002),
        ]
        .into_iter()
        .collect(),
        node_ports: [((Protocol::Udp, 30080), 4002_u16)].into_iter().collect(),
        guarded_udp_ports: [4001_u16, 4002].into_iter().collect(),
        ..Rules::none(Family::V4)
    };
    assert_eq!(rules(&exposed(Protocol::Udp), by_entry), expected);
}

#[test]
fn what_has_no_listener_is_not_captured() {
    let only_internal = |entry| by_entry(entry).filter(|_| entry == Entry::ClusterIp);
    let expected = Rules {
        cluster_ips: [ip("10.96.0.10")].into_iter().collect(),
        redirects: [(udp("10.96.0.10:80"), 4001_u16)].into_iter().collect(),
        guarded_udp_ports: [4001_u16].into_iter().collect(),
        ..Rules::none(Family::V4)
    };
    assert_eq!(rules(&exposed(Protocol::Udp), only_internal), expected);
    assert_eq!(
        rules(&exposed(Protocol::Tcp), |_| None),
        Rules::none(Family::V4)
    );
}

#[test]
fn local_policies_without_a_local_endpoint_are_silent_to_whom_they_concern() {
    let mut route = exposed(Protocol::Tcp);
    route.internal_policy = TrafficPolicy::Local;
    route.external_policy = TrafficPolicy::Local;
    let silent = rules(&route, by_entry);
    assert_eq!(
        silent.silent,
        [
            (tcp("10.96.0.10:80"), Silence::Everyone),
            (tcp("192.0.2.1:80"), Silence::Outside)
        ]
        .into_iter()
        .collect()
    );
    assert_eq!(
        silent.silent_node_ports,
        [(Protocol::Tcp, 30080)].into_iter().collect()
    );

    route.local = route.cluster.clone();
    let served = rules(&route, by_entry);
    assert!(served.silent.is_empty() && served.silent_node_ports.is_empty());

    route.local.clear();
    route.cluster.clear();
    route.any_endpoints = false;
    let refused = rules(&route, by_entry);
    assert!(refused.silent.is_empty() && refused.silent_node_ports.is_empty());
}

#[test]
fn source_ranges_guard_load_balancer_addresses_alone() {
    let mut route = exposed(Protocol::Tcp);
    let balancer = tcp("203.0.113.7:80");
    route.frontends.push((balancer, FrontendKind::LoadBalancer));
    route.source_ranges = vec!["192.0.2.0/25".parse().unwrap()];
    let added = rules(&route, by_entry);
    assert_eq!(
        added.source_ranges,
        [(balancer, route.source_ranges.clone())]
            .into_iter()
            .collect()
    );

    route.any_endpoints = false;
    assert!(
        rules(&route, by_entry).source_ranges.is_empty(),
        "refusal wins"
    );
}

#[test]
fn a_node_inside_the_source_ranges_may_call_from_the_address_itself() {
    let mut route = exposed(Protocol::Tcp);
    let balancer = tcp("203.0.113.7:80");
    route.frontends.push((balancer, FrontendKind::LoadBalancer));
    route.source_ranges = vec!["172.18.0.0/16".parse().unwrap()];
    let mut added = Rules::none(Family::V4);
    added.local_addresses = node().local_addresses;
    added.add(&route, by_entry);
    let allowed: Vec<String> = added.source_ranges[&balancer]
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(allowed, ["172.18.0.0/16", "203.0.113.7/32"]);
}

#[test]
fn traffic_lands_at_an_address_that_lasts() {
    let mut rules = Rules::none(Family::V4);
    assert_eq!(rules.landing(None), None);
    rules.local_addresses = ["127.0.0.1", "169.254.0.1"].map(ip).into();
    assert_eq!(rules.landing(None), None);
    rules.pod_cidrs = vec!["10.244.0.0/24".parse().unwrap()];
    rules.local_addresses.insert(ip("10.244.0.1"));
    assert_eq!(rules.landing(None), Some(ip("10.244.0.1")));
    rules.local_addresses.insert(ip("172.18.0.2"));
    assert_eq!(rules.landing(None), Some(ip("172.18.0.2")));
    assert_eq!(
        rules.landing(Some(ip("10.244.0.1"))),
        Some(ip("10.244.0.1")),
        "it stays"
    );
    assert_eq!(
        rules.landing(Some(ip("192.0.2.1"))),
        Some(ip("172.18.0.2")),
        "it is gone"
    );
}
