//! Who gets whom: a Pod that calls its own Service, and clients that return.

use std::net::SocketAddr;

use viaduct::model::Protocol;

use crate::world::{Place, patience};

use super::node::{BOTH, NODE_PORT, Node, SERVICE, Web};

pub(super) fn a_pod_reaches_itself_through_its_service(mut node: Node) {
    node.apply(&Web {
        endpoints: &["local"],
        ..Web::default()
    });
    node.start();
    for v6 in [false, true] {
        let service = SocketAddr::new(SERVICE[usize::from(v6)].parse().unwrap(), 80);
        let node_port = SocketAddr::new(Place::Node.ip(v6), NODE_PORT);
        for to in [service, node_port] {
            node.await_served(to);
            for protocol in BOTH {
                node.assert_backends(Place::Local, protocol, to, &["local"]);
            }
        }
    }
}

pub(super) fn a_client_returns_to_its_backend_over_both_protocols(mut node: Node) {
    node.apply(&Web {
        spec: "sessionAffinity: ClientIP",
        ..Web::default()
    });
    node.start();
    for v6 in [false, true] {
        let service = SocketAddr::new(SERVICE[usize::from(v6)].parse().unwrap(), 80);
        let node_port = SocketAddr::new(Place::Node.ip(v6), NODE_PORT);
        node.await_served(service);
        node.await_served(node_port);
        for protocol in BOTH {
            for from in [Place::Pod, Place::Outside] {
                let answer = |to| {
                    let answer = node.ask(from, protocol, to, patience());
                    assert_ne!(
                        answer.words(),
                        "",
                        "{from:?} to {to}/{protocol}: {answer:?}"
                    );
                    answer
                };
                // One memory for all addresses of a service port; every call comes from a port of its own.
                let first = answer(service);
                for to in [service, node_port, service, node_port, service, node_port] {
                    assert_eq!(answer(to), first, "{from:?} to {to}/{protocol}");
                }
            }
        }
    }
    // Off again: everybody reaches everybody.
    node.apply(&Web::default());
    let service = SocketAddr::new(SERVICE[0].parse().unwrap(), 80);
    crate::world::eventually(|| {
        let words = |_| {
            node.ask(Place::Pod, Protocol::Tcp, service, patience())
                .words()
                .to_owned()
        };
        let mut seen: Vec<String> = (0..8).map(words).collect();
        seen.sort();
        seen.dedup();
        match seen.as_slice() {
            [local, remote] if local == "local" && remote == "remote" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}
