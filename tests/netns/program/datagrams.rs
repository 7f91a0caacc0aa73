//! UDP through the program between machines: each datagram arrives as it was sent, of any size, by itself or as part of
//! what the kernel carries as one message and both ends' sockets cut or gather.

use std::net::{SocketAddr, UdpSocket};

use nix::sys::socket::{setsockopt, sockopt};

use super::node::{Node, SERVICE};
use super::pods::PORT;
use crate::world::{Place, QUIET, eventually, patience};

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
