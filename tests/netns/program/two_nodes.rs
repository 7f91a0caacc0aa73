//! Two nodes, each with a program of its own and the same manifests: what is local, and what is near, differs.
//!
//! The second node is the place of the remote backend; callers from outside reach its node port through the first.

use std::net::SocketAddr;

use crate::world::{Answer, Place, QUIET, eventually};

use super::HEALTH_PORT;
use super::node::{BOTH, NODE_PORT, Node, SERVICE, Web};

/// Its address as a node.
fn second(v6: bool, port: u16) -> SocketAddr {
    SocketAddr::new(Place::Remote.ip(v6), port)
}

fn first(v6: bool, port: u16) -> SocketAddr {
    SocketAddr::new(Place::Node.ip(v6), port)
}

pub(super) fn local_policies_differ_from_node_to_node(mut node: Node) {
    let web = || Web {
        kind: "LoadBalancer",
        spec: "externalTrafficPolicy: Local\n  internalTrafficPolicy: Local\n  healthCheckNodePort: 30081",
        ..Web::default()
    };
    node.apply(&web());
    node.start();
    node.start_second();
    for v6 in [false, true] {
        node.await_served(first(v6, NODE_PORT));
        node.await_served(second(v6, NODE_PORT));
        let service = SocketAddr::new(SERVICE[usize::from(v6)].parse().unwrap(), 80);
        // Until the second node captures, its route to the Service leads to the first.
        for protocol in BOTH {
            eventually(|| match node.ask(Place::Remote, protocol, service, QUIET) {
                Answer::Words(words) if words == "remote" => Ok(()),
                other => Err(format!("{service}/{protocol}: {other:?}")),
            });
        }
        for protocol in BOTH {
            node.assert_backends(Place::Outside, protocol, first(v6, NODE_PORT), &["local"]);
            node.assert_backends(Place::Outside, protocol, second(v6, NODE_PORT), &["remote"]);
            node.assert_backends(Place::Pod, protocol, service, &["local"]);
            node.assert_backends(Place::Remote, protocol, service, &["remote"]);
        }
        node.await_health(Place::Outside, first(v6, HEALTH_PORT), "200 1");
        node.await_health(Place::Outside, second(v6, HEALTH_PORT), "200 1");
    }
    // The first node has nobody left: no answer there, and the load balancer is told to go elsewhere.
    node.apply(&Web {
        endpoints: &["remote"],
        ..web()
    });
    for v6 in [false, true] {
        node.await_health(Place::Outside, first(v6, HEALTH_PORT), "503 0");
        node.await_health(Place::Outside, second(v6, HEALTH_PORT), "200 1");
        let service = SocketAddr::new(SERVICE[usize::from(v6)].parse().unwrap(), 80);
        for protocol in BOTH {
            let silence = |from, to| {
                eventually(|| match node.ask(from, protocol, to, QUIET) {
                    Answer::Silence => Ok(()),
                    other => Err(format!("{from:?} to {to}/{protocol}: {other:?}")),
                });
            };
            silence(Place::Outside, first(v6, NODE_PORT));
            silence(Place::Pod, service);
            node.assert_backends(Place::Outside, protocol, second(v6, NODE_PORT), &["remote"]);
            node.assert_backends(Place::Remote, protocol, service, &["remote"]);
            // As if it had gone out to the load balancer and back.
            node.assert_backends(Place::Pod, protocol, first(v6, NODE_PORT), &["remote"]);
        }
    }
}

pub(super) fn hints_keep_each_zone_to_itself(mut node: Node) {
    let nodes = |zones: [&str; 2]| {
        let object = |(name, zone): (&str, &str)| {
            format!(
                "---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}, labels: {{topology.kubernetes.io/zone: {zone}}}}}\n"
            )
        };
        ["n0", "n1"]
            .into_iter()
            .zip(zones)
            .map(object)
            .collect::<String>()
    };
    let hinted = Web::default()
        .manifest()
        .replace(
            "nodeName: n0",
            "nodeName: n0, hints: {forZones: [{name: za}]}",
        )
        .replace(
            "nodeName: n1",
            "nodeName: n1, hints: {forZones: [{name: zb}]}",
        );
    node.apply_text(&(hinted.clone() + &nodes(["za", "zb"])));
    node.start();
    node.start_second();
    let services = SERVICE.map(|ip| SocketAddr::new(ip.parse().unwrap(), 80));
    for service in services {
        node.await_served(service);
        // Until the second node's program captures, the first one's answers by way of the default route.
        eventually(|| match node.ask(Place::Remote, BOTH[0], service, QUIET) {
            Answer::Words(words) if words == "remote" => Ok(()),
            other => Err(format!("{other:?}")),
        });
        for protocol in BOTH {
            node.assert_backends(Place::Pod, protocol, service, &["local"]);
            node.assert_backends(Place::Node, protocol, service, &["local"]);
            node.assert_backends(Place::Remote, protocol, service, &["remote"]);
        }
    }
    // The first node moves to the other zone.
    node.apply_text(&(hinted + &nodes(["zb", "zb"])));
    for service in services {
        for protocol in BOTH {
            eventually(|| match node.ask(Place::Pod, protocol, service, QUIET) {
                Answer::Words(words) if words == "remote" => Ok(()),
                other => Err(format!("{other:?}")),
            });
            node.assert_backends(Place::Remote, protocol, service, &["remote"]);
        }
    }
}
