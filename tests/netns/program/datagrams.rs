//! UDP through the program between machines: each datagram arrives as it was sent, of any size, by itself or as part of
//! what the kernel carries as one message and both ends' sockets cut or gather.

use std::net::{SocketAddr, UdpSocket};

use nix::sys::socket::{setsockopt, sockopt};

use viaduct::model::Protocol;

use super::BALANCER;
use super::node::{NODE_PORT, Node, SERVICE, Web};
use super::pods::PORT;
use crate::world::{Answer, Place, QUIET, eventually, patience};

/// What is sent at a time: so many bytes, in pieces of that many.
const MESSAGES: [(usize, usize); 8] = [
    (60_000, 1_472),
    (7, 7),
    (12_001, 1_200),
    (0, 1),
    (640, 10),
    // More than the path takes in one piece: in fragments.
    (2_000, 2_000),
    (65_507, 65_507),
    (1_400, 700),
];

/// Longer than it takes for both sides to count as busy.
const ROUNDS: u8 = 8;

// Sends `bytes`, which the kernel cuts.
fn send(socket: &UdpSocket, to: Option<SocketAddr>, bytes: &[u8], piece: usize) {
    // Nothing to cut is told by zero.
    let size = if bytes.len() > piece { piece } else { 0 };
    setsockopt(
        socket,
        sockopt::UdpGsoSegment,
        &i32::try_from(size).unwrap(),
    )
    .unwrap();
    let sent = match to {
        Some(to) => socket.send_to(bytes, to).unwrap(),
        None => socket.send(bytes).unwrap(),
    };
    assert_eq!(sent, bytes.len());
}

// Receives them; from whom.
fn receive(socket: &UdpSocket, bytes: &[u8], piece: usize) -> SocketAddr {
    let mut buffer = vec![0; 70_000];
    // Of nothing there is one piece too.
    let empty = bytes.is_empty().then_some(bytes);
    let mut last = None;
    for piece in bytes.chunks(piece).chain(empty) {
        let (n, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!(n, piece.len());
        assert!(buffer[..n] == *piece, "as it was sent");
        last = Some(from);
    }
    last.unwrap()
}

pub(super) fn datagrams_arrive_as_they_were_sent(mut node: Node) {
    let address = Place::Remote.ip(false);
    let backend = node
        .world
        .in_ns(Place::Remote, || UdpSocket::bind((address, PORT)).unwrap());
    node.apply_text(&format!(
        "apiVersion: v1
kind: Service
metadata: {{name: web, namespace: default}}
spec: {{clusterIP: '{}', ports: [{{name: u, port: 80, protocol: UDP}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: web, namespace: default, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv4
ports: [{{name: u, port: {PORT}, protocol: UDP}}]
endpoints: [{{addresses: ['{address}']}}]
",
        SERVICE[0]
    ));
    node.start();
    let service = SocketAddr::new(SERVICE[0].parse().unwrap(), 80);
    let client = node.world.udp_client(Place::Outside, service);
    backend.set_read_timeout(Some(QUIET)).unwrap();
    eventually(|| {
        client.send(b"?").map_err(|error| error.to_string())?;
        let heard = backend.recv(&mut [0; 8]);
        heard.map_err(|error| error.to_string())
    });
    while backend.recv(&mut [0; 8]).is_ok() {}
    for socket in [&client, &backend] {
        socket.set_read_timeout(Some(patience())).unwrap();
    }
    for round in 0..ROUNDS {
        for (len, piece) in MESSAGES {
            let bytes: Vec<u8> = (0..len)
                .map(|at| u8::try_from((at / piece + at) % 251).unwrap() ^ round)
                .collect();
            send(&client, None, &bytes, piece);
            let from = receive(&backend, &bytes, piece);
            send(&backend, Some(from), &bytes, piece);
            receive(&client, &bytes, piece);
        }
    }
}

/// A socket of its own port asks at all addresses of the Service in turn, and is answered from the address that it asked.
pub(super) fn one_socket_reaches_every_address(mut node: Node) {
    node.apply(&Web {
        kind: "LoadBalancer",
        spec: "externalIPs: ['198.51.100.7', '2001:db8:5::7']",
        status: "{loadBalancer: {ingress: [{ip: 203.0.113.7}, {ip: '2001:db8:7::7'}]}}",
        endpoints: &["local"],
    });
    node.start();
    let families = [
        ("0.0.0.0", [SERVICE[0], "198.51.100.7", BALANCER[0]]),
        ("::", [SERVICE[1], "2001:db8:5::7", BALANCER[1]]),
    ];
    for (any, fixed) in families {
        let fixed = fixed.map(|ip| SocketAddr::new(ip.parse().unwrap(), 80));
        let node_port = SocketAddr::new(Place::Node.ip(fixed[0].is_ipv6()), NODE_PORT);
        for from in [Place::Pod, Place::Outside, Place::Node] {
            let all = || fixed.into_iter().chain([node_port]);
            for to in all() {
                eventually(|| match node.ask(from, Protocol::Udp, to, QUIET) {
                    Answer::Words(_) => Ok(()),
                    other => Err(format!("{from:?} to {to}: {other:?}")),
                });
            }
            let socket = node
                .world
                .in_ns(from, || UdpSocket::bind((any, 0)).unwrap());
            socket.set_read_timeout(Some(patience())).unwrap();
            for to in all().chain(all()) {
                socket.send_to(b"hello", to).unwrap();
                let (_, answered) = socket
                    .recv_from(&mut [0; 64])
                    .unwrap_or_else(|error| panic!("{from:?} to {to}: {error}"));
                assert_eq!(answered, to, "{from:?}");
            }
        }
    }
}
