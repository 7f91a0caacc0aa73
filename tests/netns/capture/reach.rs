//! What is captured: exactly the frontends and node ports that the rules name, from every caller, over both protocols.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use viaduct::model::{Frontend, Protocol};

use super::Case;
use crate::rig::{CALLERS, NODE_PORT, PORT, Rig};
use crate::world::{Answer, Place};

pub(super) const CASES: &[Case] = &[
    (
        "every_caller_reaches_the_cluster_address",
        every_caller_reaches_the_cluster_address,
    ),
    (
        "node_ports_answer_at_the_nodes_addresses",
        node_ports_answer_at_the_nodes_addresses,
    ),
    (
        "nothing_but_the_exact_frontend_is_captured",
        nothing_but_the_exact_frontend_is_captured,
    ),
    (
        "an_external_address_of_the_node_wins_over_a_node_port",
        an_external_address_of_the_node_wins_over_a_node_port,
    ),
    (
        "a_change_takes_effect_and_leaves_the_rest",
        a_change_takes_effect_and_leaves_the_rest,
    ),
    (
        "traffic_through_the_node_is_left_alone",
        traffic_through_the_node_is_left_alone,
    ),
    (
        "a_thousand_services_are_captured",
        a_thousand_services_are_captured,
    ),
    (
        "pods_on_an_interface_without_address_are_served",
        pods_on_an_interface_without_address_are_served,
    ),
];

fn every_caller_reaches_the_cluster_address(mut rig: Rig) {
    let stand_in = rig.stand_in("here");
    rig.lead(1, &stand_in);
    rig.apply();
    let to = SocketAddr::new(rig.service(1), PORT);
    for from in CALLERS {
        assert_eq!(
            rig.ask(from, Protocol::Tcp, to),
            Answer::Words(to.to_string()),
            "{from:?}"
        );
        assert_eq!(
            rig.ask(from, Protocol::Udp, to),
            Answer::Words("here".into()),
            "{from:?}"
        );
    }
}

fn node_ports_answer_at_the_nodes_addresses(mut rig: Rig) {
    let stand_in = rig.stand_in("here");
    rig.lead(1, &stand_in);
    rig.apply();
    let served = |from, ip: IpAddr| {
        let to = SocketAddr::new(ip, NODE_PORT);
        assert_eq!(
            rig.ask(from, Protocol::Tcp, to),
            Answer::Words(to.to_string()),
            "{from:?}"
        );
        assert_eq!(
            rig.ask(from, Protocol::Udp, to),
            Answer::Words("here".into()),
            "{from:?}"
        );
    };
    for from in CALLERS {
        served(from, Place::Node.ip(rig.v6()));
        served(from, Place::Pod.gateway(rig.v6()));
    }
    if rig.v6() {
        let never = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), NODE_PORT);
        assert_eq!(rig.ask(Place::Node, Protocol::Tcp, never), Answer::Refused);
        assert_eq!(rig.ask(Place::Node, Protocol::Udp, never), Answer::Refused);
    } else {
        served(Place::Node, Ipv4Addr::LOCALHOST.into());
        served(Place::Node, Ipv4Addr::new(127, 1, 2, 3).into());
    }
}

fn nothing_but_the_exact_frontend_is_captured(mut rig: Rig) {
    let stand_in = rig.stand_in("here");
    rig.lead(1, &stand_in);
    let udp = rig.frontend(1, Protocol::Udp);
    rig.rules.redirects.remove(&udp);
    rig.rules.node_ports.remove(&(Protocol::Udp, NODE_PORT));
    rig.apply();
    let (service, node) = (rig.service(1), Place::Node.ip(rig.v6()));
    for from in CALLERS {
        rig.assert_silent(from, Protocol::Udp, SocketAddr::new(service, PORT));
        rig.assert_silent(from, Protocol::Tcp, SocketAddr::new(service, PORT + 1));
        rig.assert_silent(from, Protocol::Tcp, SocketAddr::new(rig.service(2), PORT));
        assert_eq!(
            rig.ask(from, Protocol::Udp, SocketAddr::new(node, NODE_PORT)),
            Answer::Refused
        );
        assert_eq!(
            rig.ask(from, Protocol::Tcp, SocketAddr::new(node, NODE_PORT + 1)),
            Answer::Refused
        );
    }
}

fn an_external_address_of_the_node_wins_over_a_node_port(mut rig: Rig) {
    let (node_port, external) = (rig.stand_in("node port"), rig.stand_in("external"));
    rig.lead(1, &node_port);
    let ip = Place::Node.ip(rig.v6());
    let frontend = Frontend {
        ip,
        port: NODE_PORT,
        protocol: Protocol::Udp,
    };
    rig.rules.redirects.insert(frontend, external.udp);
    rig.rules.guarded_udp_ports.insert(external.udp);
    rig.apply();
    for from in CALLERS {
        assert_eq!(
            rig.ask(from, Protocol::Udp, frontend.addr()).words(),
            "external",
            "{from:?}"
        );
        let elsewhere = SocketAddr::new(Place::Pod.gateway(rig.v6()), NODE_PORT);
        assert_eq!(
            rig.ask(from, Protocol::Udp, elsewhere).words(),
            "node port",
            "{from:?}"
        );
    }
}

fn a_change_takes_effect_and_leaves_the_rest(mut rig: Rig) {
    let (one, two) = (rig.stand_in("one"), rig.stand_in("two"));
    rig.lead(1, &one);
    rig.lead(2, &two);
    rig.apply();
    let to = |rig: &Rig, number| SocketAddr::new(rig.service(number), PORT);
    let ask = |rig: &Rig, number| rig.ask(Place::Pod, Protocol::Udp, to(rig, number));
    assert_eq!(ask(&rig, 1).words(), "one");
    assert_eq!(ask(&rig, 2).words(), "two");

    let udp = rig.frontend(1, Protocol::Udp);
    rig.rules.redirects.insert(udp, two.udp);
    rig.rules.redirects.remove(&rig.frontend(2, Protocol::Tcp));
    let come = rig.frontend(3, Protocol::Udp);
    rig.rules.redirects.insert(come, one.udp);
    rig.rules.pod_cidrs.clear();
    rig.apply();
    assert_eq!(ask(&rig, 1).words(), "two");
    assert_eq!(ask(&rig, 2).words(), "two");
    assert_eq!(ask(&rig, 3).words(), "one");
    rig.assert_silent(Place::Pod, Protocol::Tcp, to(&rig, 2));
    let here = to(&rig, 1);
    assert_eq!(
        rig.ask(Place::Pod, Protocol::Tcp, here),
        Answer::Words(here.to_string())
    );
    assert!(
        !rig.reassert(),
        "what was applied in steps is what should be there"
    );
}

fn traffic_through_the_node_is_left_alone(mut rig: Rig) {
    let stand_in = rig.stand_in("here");
    rig.lead(1, &stand_in);
    rig.apply();
    // Neither a node port nor a guarded port of another machine is ours.
    for port in [NODE_PORT, stand_in.udp, stand_in.tcp] {
        let to = SocketAddr::new(Place::Remote.ip(rig.v6()), port);
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            assert_eq!(rig.ask(Place::Pod, protocol, to), Answer::Refused, "{to}");
            assert_eq!(rig.ask(Place::Node, protocol, to), Answer::Refused, "{to}");
        }
    }
}

fn a_thousand_services_are_captured(mut rig: Rig) {
    let stand_in = rig.stand_in("here");
    rig.lead(1, &stand_in);
    for number in 0..1000_u16 {
        let ip: IpAddr = if rig.v6() {
            Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 1, number).into()
        } else {
            let [high, low] = number.to_be_bytes();
            Ipv4Addr::new(10, 97, high, low).into()
        };
        rig.rules.redirects.insert(
            Frontend {
                ip,
                port: PORT,
                protocol: Protocol::Tcp,
            },
            stand_in.tcp,
        );
    }
    rig.apply();
    assert!(
        !rig.reassert(),
        "a whole table reads back as it was written"
    );
    let last = *rig.rules.redirects.keys().next_back().unwrap();
    assert_eq!(
        rig.ask(Place::Pod, Protocol::Tcp, last.addr()).words(),
        last.addr().to_string()
    );
}

// As many network plugins make them: the node's end of a pod's link has no address of its own.
fn pods_on_an_interface_without_address_are_served(mut rig: Rig) {
    let (pod, gateway) = (Place::Pod.ip(rig.v6()), Place::Pod.gateway(rig.v6()));
    let mac = rig
        .world
        .shell(Place::Node, "ip -br link show to-pod | awk '{print $3}'");
    let flag = if rig.v6() { "-6" } else { "-4" };
    rig.world.shell(
        Place::Node,
        &format!(
            "ip {flag} addr flush dev to-pod scope global; ip {flag} route replace {pod} dev to-pod"
        ),
    );
    let line = format!(
        "ip {flag} neigh replace {gateway} lladdr {} dev eth0 nud permanent",
        mac.trim()
    );
    rig.world.shell(Place::Pod, &line);
    rig.rules.local_addresses.remove(&gateway);
    rig.rules.node_addresses.remove(&gateway);
    let stand_in = rig.stand_in("here");
    rig.lead(1, &stand_in);
    rig.apply();
    for to in [
        SocketAddr::new(rig.service(1), PORT),
        SocketAddr::new(Place::Node.ip(rig.v6()), NODE_PORT),
    ] {
        assert_eq!(
            rig.ask(Place::Pod, Protocol::Tcp, to),
            Answer::Words(to.to_string())
        );
        assert_eq!(
            rig.ask(Place::Pod, Protocol::Udp, to),
            Answer::Words("here".into())
        );
    }
}
