//! Who counts as a Pod of this node, as `--detect-local-mode` says.

use std::net::SocketAddr;

use super::node::{NODE_PORT, Node, Web};
use crate::world::{Answer, Place, QUIET, eventually};
use viaduct::model::Protocol;

/// A Pod may use endpoints elsewhere where outsiders may not, so the answer tells which of them it is taken for.
pub(super) fn pods_are_recognised_by_their_interfaces(mut node: Node) {
    node.flags = vec![
        "--detect-local-mode=InterfaceNamePrefix".to_owned(),
        "--pod-interface-name-prefix=pods-".to_owned(),
    ];
    node.apply(&Web {
        spec: "externalTrafficPolicy: Local",
        endpoints: &["remote"],
        ..Web::default()
    });
    node.start();
    let to = SocketAddr::new(Place::Node.ip(false), NODE_PORT);
    let served = |node: &Node, from| {
        eventually(|| match node.ask(from, Protocol::Tcp, to, QUIET) {
            Answer::Words(_) => Ok(()),
            other => Err(format!("{other:?}")),
        });
    };
    served(&node, Place::Node);
    assert_eq!(
        node.ask(Place::Pod, Protocol::Tcp, to, QUIET),
        Answer::Silence
    );
    node.world.shell(
        Place::Node,
        "ip link set to-pod down && ip link set to-pod name pods-0 && ip link set pods-0 up",
    );
    served(&node, Place::Pod);
    assert_eq!(
        node.ask(Place::Outside, Protocol::Tcp, to, QUIET),
        Answer::Silence
    );
}
