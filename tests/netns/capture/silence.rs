//! Who gets no answer: silent frontends, callers outside the source ranges, and datagrams to a proxy port itself.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};

use viaduct::capture::Mode;
use viaduct::capture::plan::Silence;
use viaduct::model::Protocol;

use super::Case;
use crate::rig::{CALLERS, NODE_PORT, PORT, Rig};
use crate::world::{Answer, Place, QUIET, ask_again, patience};

pub(super) const CASES: &[Case] = &[
    (
        "a_silent_frontend_answers_nobody",
        a_silent_frontend_answers_nobody,
    ),
    (
        "silence_outside_spares_pods_and_the_node",
        silence_outside_spares_pods_and_the_node,
    ),
    (
        "open_connections_outlive_silence",
        open_connections_outlive_silence,
    ),
    ("udp_flows_outlive_silence", udp_flows_outlive_silence),
    (
        "source_ranges_let_in_whom_they_name",
        source_ranges_let_in_whom_they_name,
    ),
    (
        "the_proxy_port_itself_takes_no_datagrams",
        the_proxy_port_itself_takes_no_datagrams,
    ),
    (
        "replies_to_masqueraded_pods_pass_the_guard",
        replies_to_masqueraded_pods_pass_the_guard,
    ),
];

fn a_silent_frontend_answers_nobody(mut rig: Rig) {
    let stand_in = rig.stand_in("here");
    rig.lead(1, &stand_in);
    let frontend = rig.frontend(1, Protocol::Tcp);
    rig.rules.silent.insert(frontend, Silence::Everyone);
    rig.apply();
    for from in CALLERS {
        rig.assert_silent(from, Protocol::Tcp, frontend.addr());
    }
    rig.rules.silent.clear();
    rig.apply();
    for from in CALLERS {
        assert_eq!(
            rig.ask(from, Protocol::Tcp, frontend.addr()).words(),
            frontend.to_string().replace("/TCP", "")
        );
    }
}

fn silence_outside_spares_pods_and_the_node(mut rig: Rig) {
    let stand_in = rig.stand_in("here");
    rig.lead(1, &stand_in);
    let frontend = rig.frontend(1, Protocol::Tcp);
    rig.rules.silent.insert(frontend, Silence::Outside);
    rig.rules
        .silent_node_ports
        .insert((Protocol::Tcp, NODE_PORT));
    rig.apply();
    let node_port = SocketAddr::new(Place::Node.ip(rig.v6()), NODE_PORT);
    for to in [frontend.addr(), node_port] {
        rig.assert_silent(Place::Outside, Protocol::Tcp, to);
        for from in [Place::Pod, Place::Node] {
            assert_eq!(
                rig.ask(from, Protocol::Tcp, to),
                Answer::Words(to.to_string()),
                "{from:?}"
            );
        }
    }
}

fn open_connections_outlive_silence(mut rig: Rig) {
    let stand_in = rig.stand_in("here");
    rig.lead(1, &stand_in);
    rig.apply();
    let frontend = rig.frontend(1, Protocol::Tcp);
    let connect = || TcpStream::connect_timeout(&frontend.addr(), patience()).unwrap();
    let mut open = rig.world.in_ns(Place::Outside, connect);
    rig.rules.silent.insert(frontend, Silence::Everyone);
    rig.apply();
    rig.assert_silent(Place::Outside, Protocol::Tcp, frontend.addr());
    open.set_read_timeout(Some(patience())).unwrap();
    open.write_all(b"hello\n").unwrap();
    let mut words = String::new();
    open.read_to_string(&mut words).unwrap();
    assert_eq!(words, frontend.addr().to_string());
}

fn udp_flows_outlive_silence(mut rig: Rig) {
    let stand_in = rig.stand_in("here");
    rig.lead(1, &stand_in);
    rig.apply();
    let frontend = rig.frontend(1, Protocol::Udp);
    let client = rig.world.udp_client(Place::Outside, frontend.addr());
    assert_eq!(ask_again(&client, patience()).words(), "here");
    rig.rules.silent.insert(frontend, Silence::Everyone);
    rig.apply();
    assert_eq!(ask_again(&client, patience()).words(), "here");
    if rig.mode == Mode::Nftables {
        // With iptables it is the listener that gives no answer.
        rig.assert_silent(Place::Outside, Protocol::Udp, frontend.addr());
    }
}

fn source_ranges_let_in_whom_they_name(mut rig: Rig) {
    let stand_in = rig.stand_in("here");
    rig.lead(1, &stand_in);
    let outside = if rig.v6() {
        "2001:db8::/120"
    } else {
        "192.0.2.8/29"
    };
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let frontend = rig.frontend(1, protocol);
        rig.rules
            .source_ranges
            .insert(frontend, vec![outside.parse().unwrap()]);
    }
    rig.apply();
    let to = SocketAddr::new(rig.service(1), PORT);
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        rig.assert_silent(Place::Pod, protocol, to);
        assert_ne!(rig.ask(Place::Outside, protocol, to).words(), "");
        // The ranges belong to that address, not to the service.
        let node_port = SocketAddr::new(Place::Node.ip(rig.v6()), NODE_PORT);
        assert_ne!(rig.ask(Place::Pod, protocol, node_port).words(), "");
    }
}

fn the_proxy_port_itself_takes_no_datagrams(mut rig: Rig) {
    let stand_in = rig.stand_in("here");
    rig.lead(1, &stand_in);
    rig.apply();
    for from in CALLERS {
        for ip in [Place::Node.ip(rig.v6()), Place::Pod.gateway(rig.v6())] {
            let to = SocketAddr::new(ip, stand_in.udp);
            let answer = rig.world.ask_udp(from, to, QUIET);
            // What `nat` drops in output, its sender is told.
            let forbidden = from == Place::Node && rig.mode == Mode::Nftables;
            assert!(
                match &answer {
                    Answer::Silence | Answer::Refused => true,
                    Answer::Other(error) => forbidden && error.contains("not permitted"),
                    Answer::Words(_) => false,
                },
                "{from:?} to {to}: {answer:?}"
            );
        }
    }
    if rig.mode == Mode::Nftables {
        let table = if rig.v6() { "ip6" } else { "ip" };
        let counted = rig.world.shell(
            Place::Node,
            &format!("nft list counter {table} viaduct uncaptured"),
        );
        assert!(counted.contains("packets 6 "), "{counted}");
    } else {
        let tool = if rig.v6() { "ip6tables" } else { "iptables" };
        let counted = rig
            .world
            .shell(Place::Node, &format!("{tool} -t nat -vxnL VIADUCT-GUARD"));
        let rule = counted
            .lines()
            .find(|line| line.contains("dpt:"))
            .unwrap_or_default();
        assert_eq!(rule.split_whitespace().next(), Some("6"), "{counted}");
    }
}

fn replies_to_masqueraded_pods_pass_the_guard(mut rig: Rig) {
    let stand_in = rig.stand_in("here");
    rig.lead(1, &stand_in);
    rig.apply();
    let table = if rig.v6() { "ip6" } else { "ip" };
    let masquerade = format!(
        "nft 'add table {table} foreign; add chain {table} foreign post {{ type nat hook postrouting priority 100; }}; \
         add rule {table} foreign post oifname to-outside masquerade'"
    );
    rig.world.shell(Place::Node, &masquerade);
    let (outside, pod) = (Place::Outside.ip(rig.v6()), Place::Pod.ip(rig.v6()));
    let port = stand_in.udp;
    let server = rig
        .world
        .in_ns(Place::Outside, || UdpSocket::bind((outside, 0)).unwrap());
    let client = rig
        .world
        .in_ns(Place::Pod, || UdpSocket::bind((pod, port)).unwrap());
    client.set_read_timeout(Some(patience())).unwrap();
    server.set_read_timeout(Some(patience())).unwrap();
    client
        .send_to(b"question", server.local_addr().unwrap())
        .unwrap();
    let mut buffer = [0; 64];
    let (_, from) = server.recv_from(&mut buffer).unwrap();
    assert_eq!(
        from,
        SocketAddr::new(Place::Node.ip(rig.v6()), stand_in.udp),
        "the port of the pod is kept"
    );
    server.send_to(b"answer", from).unwrap();
    let (length, _) = client.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"answer");
}
