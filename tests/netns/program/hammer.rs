//! Callers at a steady rate while other Services come and go and the program is replaced by its like: nobody is refused,
//! nobody led elsewhere, over both protocols and families, at the cluster address and at the node port.
//!
//! Small in the suite. At full size by hand: `VIADUCT_CHANGES=1000 cargo test --test netns hammer -- --nocapture`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;
use viaduct::model::Protocol;

use super::load::{changes, under_load};
use super::node::{BOTH, Node, Web, slices};
use super::targets;
use crate::world::{Answer, Place, QUIET, World, eventually};

/// How often a caller sends a datagram, as resolvers do: one that is on its way while NAT forgets its flow is lost.
const ATTEMPTS: usize = 3;

/// The program is replaced once in so many changes, and no less than this.
const CHANGES_PER_HANDOVER: u32 = 50;
const HANDOVERS: u32 = 2;

pub(super) fn changes_and_handovers_disturb_nobody(mut node: Node) {
    start(&mut node);
    let rounds = changes() / 3;
    assert_undisturbed(&mut node, |node| {
        (0..rounds).for_each(|round| come_and_go(node, round));
    });
    let replaced = |node: &mut Node| {
        for round in rounds..rounds + HANDOVERS.max(changes() / CHANGES_PER_HANDOVER) {
            node.hand_over();
            come_and_go(node, round);
        }
    };
    assert_undisturbed(&mut node, replaced);
}

/// A new version that ends before the one that it came to follow.
pub(super) fn who_is_called_back_disturbs_nobody(mut node: Node) {
    start(&mut node);
    assert_undisturbed(&mut node, |node| {
        node.try_successor(Signal::SIGTERM);
        come_and_go(node, 0);
    });
}

fn start(node: &mut Node) {
    refuse_what_is_not_captured(&node.world);
    node.apply(&Web {
        endpoints: &["local"],
        ..Web::default()
    });
    node.start();
    for to in targets() {
        eventually(|| served(node, Protocol::Tcp, to, "local"));
        eventually(|| served(node, Protocol::Udp, to, "local"));
    }
}

fn assert_undisturbed(node: &mut Node, during: impl FnOnce(&mut Node)) {
    let world = node.world.clone();
    let places = [Place::Pod, Place::Outside];
    let (outcomes, ()) = under_load(&world, &places, call, || during(node));
    assert_eq!(outcomes.failed, BTreeMap::new());
    let served_by: BTreeSet<String> = outcomes.served_by.into_keys().collect();
    let own = ["local".to_owned()].into();
    assert_eq!(served_by, own, "nobody is led elsewhere");
}

// What nobody captures goes to a place that owns every address and listens at none: it is refused at once.
fn refuse_what_is_not_captured(world: &World) {
    let remote = [false, true].map(|v6| Place::Remote.ip(v6));
    for (flag, range, via) in [
        ("-4", "10.96.0.0/16", remote[0]),
        ("-6", "fd00:10:96::/112", remote[1]),
    ] {
        let line = format!("ip {flag} route add local {range} dev lo");
        world.shell(Place::Remote, &line);
        let line = format!("ip {flag} route add {range} via {via}");
        world.shell(Place::Node, &line);
    }
}

// Another Service is created, given other ports, deleted: each is seen before the next is made.
fn come_and_go(node: &Node, round: u32) {
    let file = node.manifests().join("other.yaml");
    let draft = file.with_extension("tmp");
    let number = u8::try_from(round % 200).unwrap() + 20;
    for port in [80, 81] {
        let addresses = [
            SocketAddr::new(Ipv4Addr::new(10, 96, 0, number).into(), port),
            SocketAddr::new(
                Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, number.into()).into(),
                port,
            ),
        ];
        let node_port = 31_000 + port;
        fs::write(&draft, other_service(round, addresses, node_port)).unwrap();
        fs::rename(&draft, &file).unwrap();
        let at_node = [false, true].map(|v6| SocketAddr::new(Place::Node.ip(v6), node_port));
        for to in addresses.into_iter().chain(at_node) {
            for protocol in BOTH {
                eventually(|| served(node, protocol, to, "remote"));
            }
        }
    }
    fs::remove_file(&file).unwrap();
}

fn other_service(round: u32, addresses: [SocketAddr; 2], node_port: u16) -> String {
    let [v4, v6] = addresses.map(|address| address.ip());
    let port = addresses[0].port();
    let name = format!("other-{round}");
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: default}}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  ipFamilies: [IPv4, IPv6]
  clusterIP: '{v4}'
  clusterIPs: ['{v4}', '{v6}']
  ports:
  - {{name: t, port: {port}, protocol: TCP, nodePort: {node_port}}}
  - {{name: u, port: {port}, protocol: UDP, nodePort: {node_port}}}
{}",
        slices(&name, &["remote"])
    )
}

fn served(node: &Node, protocol: Protocol, to: SocketAddr, by: &str) -> Result<(), String> {
    match node.ask(Place::Outside, protocol, to, QUIET) {
        Answer::Words(words) if words == by => Ok(()),
        other => Err(format!("{to}/{protocol}: {other:?}")),
    }
}

/// Number `n` calls: every address in turn, first over one protocol, then over the other.
async fn call(n: usize) -> io::Result<String> {
    let to = targets()[n % targets().len()];
    let protocol = BOTH[n / targets().len() % BOTH.len()];
    let answer = match protocol {
        Protocol::Tcp => call_tcp(to).await,
        Protocol::Udp => call_udp(to).await,
    };
    answer.map_err(|error| io::Error::new(error.kind(), format!("{to}/{protocol}: {error}")))
}

async fn call_tcp(to: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect(to).await?;
    stream.write_all(b"hello\n").await?;
    let mut words = String::new();
    stream.read_to_string(&mut words).await?;
    Ok(words)
}

async fn call_udp(to: SocketAddr) -> io::Result<String> {
    let any = if to.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(to).await?;
    let mut words = [0; 64];
    for _ in 0..ATTEMPTS {
        socket.send(b"hello").await?;
        if let Ok(received) = timeout(QUIET, socket.recv(&mut words)).await {
            return Ok(String::from_utf8_lossy(&words[..received?]).into_owned());
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}
