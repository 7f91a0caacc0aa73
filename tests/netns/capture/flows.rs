//! UDP clients that keep their port: whatever conntrack remembers of them, they get where the rules lead now.

use std::net::SocketAddr;

use viaduct::capture::Mode;
use viaduct::model::Protocol;

use super::Case;
use crate::rig::{CALLERS, NODE_PORT, PORT, Rig};
use crate::world::{Answer, Place, QUIET, ask_again, patience};

pub(super) const CASES: &[Case] = &[
    (
        "a_client_from_before_the_capture_is_served",
        a_client_from_before_the_capture_is_served,
    ),
    (
        "a_client_follows_the_listener",
        a_client_follows_the_listener,
    ),
    (
        "a_client_survives_removal_and_return",
        a_client_survives_removal_and_return,
    ),
    ("a_client_survives_a_crash", a_client_survives_a_crash),
    (
        "a_client_of_a_silent_frontend_is_served_later",
        a_client_of_a_silent_frontend_is_served_later,
    ),
    (
        "flows_of_other_services_are_left_alone",
        flows_of_other_services_are_left_alone,
    ),
    (
        "a_flow_that_goes_right_is_not_forgotten",
        a_flow_that_goes_right_is_not_forgotten,
    ),
    (
        "a_client_survives_the_loss_of_a_node_address",
        a_client_survives_the_loss_of_a_node_address,
    ),
];

fn targets(rig: &Rig) -> [SocketAddr; 2] {
    [
        SocketAddr::new(rig.service(1), PORT),
        SocketAddr::new(Place::Node.ip(rig.v6()), NODE_PORT),
    ]
}

fn a_client_from_before_the_capture_is_served(mut rig: Rig) {
    let stand_in = rig.stand_in("here");
    rig.lead(1, &stand_in);
    let clients: Vec<_> = CALLERS
        .into_iter()
        .flat_map(|from| targets(&rig).map(|to| rig.world.udp_client(from, to)))
        .collect();
    for client in &clients {
        assert_ne!(ask_again(client, QUIET), Answer::Words("here".into()));
    }
    rig.apply();
    for client in &clients {
        assert_eq!(ask_again(client, patience()).words(), "here", "{client:?}");
    }
}

fn a_client_follows_the_listener(mut rig: Rig) {
    let (first, second) = (rig.stand_in("first"), rig.stand_in("second"));
    rig.lead(1, &first);
    rig.apply();
    let clients: Vec<_> = CALLERS
        .into_iter()
        .flat_map(|from| targets(&rig).map(|to| rig.world.udp_client(from, to)))
        .collect();
    for client in &clients {
        assert_eq!(ask_again(client, patience()).words(), "first", "{client:?}");
    }
    rig.lead(1, &second);
    rig.apply();
    drop(first);
    for client in &clients {
        assert_eq!(
            ask_again(client, patience()).words(),
            "second",
            "{client:?}"
        );
    }
}

fn a_client_survives_removal_and_return(mut rig: Rig) {
    let stand_in = rig.stand_in("here");
    rig.lead(1, &stand_in);
    rig.apply();
    let client = rig.world.udp_client(Place::Pod, targets(&rig)[0]);
    assert_eq!(ask_again(&client, patience()).words(), "here");
    rig.rules.redirects.clear();
    rig.apply();
    assert_eq!(ask_again(&client, QUIET), Answer::Silence);
    rig.lead(1, &stand_in);
    rig.apply();
    assert_eq!(ask_again(&client, patience()).words(), "here");
}

fn a_client_survives_a_crash(mut rig: Rig) {
    let first = rig.stand_in("first");
    rig.lead(1, &first);
    rig.apply();
    let clients = targets(&rig).map(|to| rig.world.udp_client(Place::Outside, to));
    for client in &clients {
        assert_eq!(ask_again(client, patience()).words(), "first");
    }
    drop(first);
    rig.restart();
    rig.rules.guarded_udp_ports.clear();
    let second = rig.stand_in("second");
    rig.lead(1, &second);
    rig.apply();
    for client in &clients {
        assert_eq!(ask_again(client, patience()).words(), "second");
    }
}

fn a_client_of_a_silent_frontend_is_served_later(mut rig: Rig) {
    let stand_in = rig.stand_in("here");
    rig.lead(1, &stand_in);
    let frontend = rig.frontend(1, Protocol::Udp);
    rig.rules
        .silent
        .insert(frontend, viaduct::capture::plan::Silence::Everyone);
    rig.apply();
    let client = rig.world.udp_client(Place::Pod, frontend.addr());
    client.send(b"into silence").unwrap();
    rig.rules.silent.clear();
    rig.apply();
    assert_eq!(ask_again(&client, patience()).words(), "here");
}

fn flows_of_other_services_are_left_alone(mut rig: Rig) {
    let (one, two) = (rig.stand_in("one"), rig.stand_in("two"));
    rig.lead(1, &one);
    rig.lead(2, &two);
    rig.apply();
    let client = rig.world.udp_client(Place::Pod, targets(&rig)[0]);
    assert_eq!(ask_again(&client, patience()).words(), "one");
    stop_capturing(&rig);
    let three = rig.stand_in("three");
    rig.lead(2, &three);
    rig.apply();
    assert_eq!(ask_again(&client, patience()).words(), "one");
    rig.assert_silent(Place::Pod, Protocol::Udp, targets(&rig)[0]);
}

fn a_flow_that_goes_right_is_not_forgotten(mut rig: Rig) {
    let stand_in = rig.stand_in("here");
    rig.lead(1, &stand_in);
    rig.apply();
    let clients = targets(&rig).map(|to| rig.world.udp_client(Place::Outside, to));
    for client in &clients {
        assert_eq!(ask_again(client, patience()).words(), "here");
    }
    rig.restart();
    rig.apply();
    stop_capturing(&rig);
    for client in &clients {
        assert_eq!(ask_again(client, patience()).words(), "here");
    }
}

fn a_client_survives_the_loss_of_a_node_address(mut rig: Rig) {
    let stand_in = rig.stand_in("here");
    rig.lead(1, &stand_in);
    let landing = Place::Remote.gateway(rig.v6());
    let addresses = rig.rules.local_addresses.clone();
    rig.rules.local_addresses = [landing].into();
    rig.apply();
    let clients = CALLERS.map(|from| rig.world.udp_client(from, targets(&rig)[0]));
    for client in &clients {
        assert_eq!(ask_again(client, patience()).words(), "here", "{client:?}");
    }
    let flag = if rig.v6() { "-6" } else { "-4" };
    let line = format!("ip {flag} addr flush dev to-remote scope global");
    rig.world.shell(Place::Node, &line);
    rig.rules.local_addresses = addresses;
    rig.rules.local_addresses.remove(&landing);
    rig.rules.node_addresses.remove(&landing);
    rig.apply();
    for client in &clients {
        assert_eq!(ask_again(client, patience()).words(), "here", "{client:?}");
    }
    let to = targets(&rig)[0];
    assert_eq!(
        rig.ask(Place::Pod, Protocol::Tcp, to).words(),
        to.to_string()
    );
}

// Behind the back of the capture: from then on only a flow that is remembered gets to its listener.
fn stop_capturing(rig: &Rig) {
    let line = match (rig.mode, rig.v6()) {
        (Mode::Nftables, false) => "nft flush chain ip viaduct capture_in",
        (Mode::Nftables, true) => "nft flush chain ip6 viaduct capture_in",
        (_, false) => "iptables -t nat -D PREROUTING -j VIADUCT-CAPTURE",
        (_, true) => "ip6tables -t nat -D PREROUTING -j VIADUCT-CAPTURE",
    };
    rig.world.shell(Place::Node, line);
}
