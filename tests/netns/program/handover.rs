//! One process beside another, and what happens if it does not end as planned.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use nix::sys::signal::Signal;
use socket2::{Domain, Socket, Type};
use viaduct::capture::Mode;
use viaduct::model::Protocol;

use super::node::{BOTH, Node, SERVICE, Web};
use super::targets;
use crate::rig::all_rules;
use crate::world::{Answer, Place, QUIET, eventually, patience};

/// Whoever is served is served by the one Pod of that name.
fn assert_served(node: &Node, by: &str) {
    for to in targets() {
        for protocol in BOTH {
            let ask = || node.ask(Place::Outside, protocol, to, QUIET);
            eventually(|| match ask() {
                Answer::Words(words) if words == by => Ok(()),
                other => Err(format!("{to}/{protocol}: {other:?}")),
            });
        }
    }
}

pub(super) fn a_successor_that_ends_leaves_everything_to_the_one_before(mut node: Node) {
    let before = all_rules(&node.world);
    node.apply(&Web {
        endpoints: &["local"],
        ..Web::default()
    });
    node.start();
    assert_served(&node, "local");
    let ends: [(Signal, &'static [&'static str]); 2] = [
        (Signal::SIGKILL, &["remote"]),
        (Signal::SIGTERM, &["local"]),
    ];
    for (end, endpoints) in ends {
        node.try_successor(end);
        node.apply(&Web {
            endpoints,
            ..Web::default()
        });
        assert_served(&node, endpoints[0]);
    }
    assert!(node.end().success());
    assert_eq!(all_rules(&node.world), before, "nothing stays");
}

/// The next process captures by another mode, beside the one before and after it.
pub(super) fn another_mode_follows(mut node: Node) {
    let before = all_rules(&node.world);
    node.apply(&Web {
        endpoints: &["local"],
        ..Web::default()
    });
    node.start();
    assert_served(&node, "local");
    let next = match node.mode {
        Mode::Nftables => Mode::Local,
        Mode::Iptables => Mode::Nftables,
        Mode::Tproxy => Mode::Iptables,
        Mode::Local | Mode::Loopback | Mode::None => Mode::Tproxy,
    };
    node.capture = Some(next.as_str());
    node.hand_over();
    node.apply(&Web {
        endpoints: &["remote"],
        ..Web::default()
    });
    assert_served(&node, "remote");
    assert!(node.end().success());
    assert_eq!(all_rules(&node.world), before, "nothing stays of either");
}

/// A stranger who is at the address all the time, with `SO_REUSEPORT` and as the same user, so that even a successor may bind
/// beside him.
pub(super) fn a_stranger_at_a_port_that_is_taken_over_is_noticed(mut node: Node) {
    let at = SocketAddr::new(SERVICE[0].parse().unwrap(), 80);
    let strangers = node.world.in_ns(Place::Node, || {
        [Type::STREAM, Type::DGRAM].map(|kind| {
            let socket = Socket::new(Domain::IPV4, kind, None).unwrap();
            socket.set_freebind_v4(true).unwrap();
            socket.set_reuse_port(true).unwrap();
            socket.bind(&at.into()).unwrap();
            if kind == Type::STREAM {
                socket.listen(1).unwrap();
            }
            socket
        })
    });
    node.apply(&Web {
        endpoints: &["local"],
        ..Web::default()
    });
    node.start();
    let other = SocketAddr::new(SERVICE[1].parse().unwrap(), 80);
    node.await_served(other);
    node.hand_over();
    eventually(|| {
        let log = node.log();
        if log.contains("somebody else served this port as well") {
            Ok(())
        } else {
            Err(log)
        }
    });
    let ask = || node.ask(Place::Outside, Protocol::Udp, at, QUIET);
    assert_eq!(
        ask(),
        Answer::Silence,
        "it is the stranger's, who is silent"
    );
    drop(strangers);
    assert_served(&node, "local");
}

/// The client has its half of a connection when the process that it came to ends: the rest of the handshake arrives when
/// there is only the next one.
pub(super) fn a_handshake_under_way_goes_on_with_the_successor(mut node: Node) {
    node.apply(&Web {
        endpoints: &["local"],
        ..Web::default()
    });
    node.start();
    assert_served(&node, "local");
    let hold_back = "nft 'add table inet hold; \
        add chain inet hold out { type filter hook output priority 0; }; \
        add rule inet hold out tcp flags & syn == 0 tcp dport { 80, 30080 } drop'";
    node.world.shell(Place::Outside, hold_back);
    let mut clients = targets().map(|to| {
        let connect = || TcpStream::connect_timeout(&to, patience());
        let mut client = node.world.in_ns(Place::Outside, connect).unwrap();
        client.set_read_timeout(Some(patience())).unwrap();
        client.write_all(b"hello\n").unwrap();
        client
    });
    node.hand_over();
    node.world
        .shell(Place::Outside, "nft delete table inet hold");
    for (client, to) in clients.iter_mut().zip(targets()) {
        let mut words = String::new();
        let read = client.read_to_string(&mut words);
        assert_eq!(read.map(|_| words).unwrap(), "local", "{to}");
    }
}
