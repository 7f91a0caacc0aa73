//! What becomes of flows that are open when their Service changes, by every kind of address.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use tokio::runtime::Builder;
use viaduct::model::Protocol;

use super::BALANCER;
use super::node::{NODE_PORT, Node, SERVICE, Web};
use super::pods::{HELLO, Pod, State, slice};
use crate::rig::all_rules;
use crate::world::{Answer, Place, QUIET, ask_again, eventually, patience};

/// External addresses of the Service, one of each family.
const EXTERNAL: [&str; 2] = ["198.51.100.7", "2001:db8:5::7"];

/// The largest payload of a UDP datagram over IPv4.
const LARGEST: usize = 65_507;

/// Addresses of the node that come and go, one of each family.
const COMING: [&str; 2] = ["192.0.2.77", "2001:db8::77"];

/// The kernel announces a change of addresses; it is in effect soon after.
const FOLLOWED: Duration = Duration::from_secs(2);

pub(super) fn node_ports_follow_addresses_that_come_and_go(mut node: Node) {
    // Among those that answer node ports, and one that never does.
    node.flags = vec!["--nodeport-addresses=192.0.2.64/26,2001:db8::/120".to_owned()];
    node.apply(&Web::default());
    node.start();
    for ip in SERVICE {
        node.await_served(SocketAddr::new(ip.parse().unwrap(), 80));
    }
    let first = SocketAddr::new(Place::Node.ip(false), NODE_PORT);
    let answer = node.ask(Place::Outside, Protocol::Tcp, first, patience());
    assert_eq!(answer, Answer::Refused, "{first}");
    for round in 0..2 {
        for ip in COMING {
            let to = SocketAddr::new(ip.parse().unwrap(), NODE_PORT);
            let (flag, more) = if to.is_ipv6() {
                ("-6", "/128 nodad")
            } else {
                ("-4", "/32")
            };
            let change = |verb: &str, more: &str| {
                let line = format!("ip {flag} addr {verb} {ip}{more} dev to-outside");
                node.world.shell(Place::Node, &line);
                Instant::now()
            };
            let came = change("add", more);
            node.await_served(to);
            assert!(came.elapsed() < FOLLOWED, "{:?}", came.elapsed());
            for from in [Place::Pod, Place::Node] {
                node.assert_backends(from, Protocol::Tcp, to, &["local", "remote"]);
                node.assert_backends(from, Protocol::Udp, to, &["local", "remote"]);
            }
            // From here on it is not the node's, and no port of it leads here.
            let more = more.split_whitespace().next().unwrap_or(more);
            change("del", more);
            eventually(|| match node.ask(Place::Pod, Protocol::Tcp, to, QUIET) {
                Answer::Words(words) => Err(format!("round {round}: {to} still answers {words}")),
                Answer::Refused | Answer::Silence | Answer::Other(_) => Ok(()),
            });
            eventually(|| match all_rules(&node.world) {
                rules if rules.contains(&format!("{ip} ")) => Err(rules),
                _gone => Ok(()),
            });
        }
    }
}

pub(super) fn udp_clients_of_every_address_move_with_the_endpoints(mut node: Node) {
    let web = |endpoints| Web {
        kind: "LoadBalancer",
        spec: "externalIPs: ['198.51.100.7', '2001:db8:5::7']",
        status: "{loadBalancer: {ingress: [{ip: 203.0.113.7}, {ip: '2001:db8:7::7'}]}}",
        endpoints,
    };
    node.apply(&web(&["local"]));
    node.start();
    let fixed = [SERVICE, EXTERNAL, BALANCER].concat();
    let fixed = fixed
        .iter()
        .map(|ip| SocketAddr::new(ip.parse().unwrap(), 80));
    let node_ports = [false, true].map(|v6| SocketAddr::new(Place::Node.ip(v6), NODE_PORT));
    let clients: Vec<_> = fixed
        .chain(node_ports)
        .map(|to| node.world.udp_client(Place::Outside, to))
        .collect();
    let all = |what: &str, wanted: &dyn Fn(&Answer) -> bool| {
        for client in &clients {
            eventually(|| match ask_again(client, QUIET) {
                answer if wanted(&answer) => Ok(()),
                other => Err(format!("{client:?}: {other:?}, not {what}")),
            });
        }
    };
    let answered_by = |name: &'static str| all(name, &move |answer| answer.words() == name);
    answered_by("local");
    node.apply(&web(&["remote"]));
    answered_by("remote");
    node.apply(&web(&[]));
    all("refused", &|answer| *answer == Answer::Refused);
    node.apply(&web(&["local"]));
    answered_by("local");
    for client in &clients {
        client.set_read_timeout(Some(patience())).unwrap();
        for size in [LARGEST, 4097] {
            let sent: Vec<u8> = (0..=u8::MAX).cycle().take(size).collect();
            client.send(&sent).unwrap();
            let mut got = vec![0; 1 << 16];
            let mut n = client.recv(&mut got).unwrap();
            // On a slow machine the answer to a question that was asked above and given up.
            while &got[..n] == b"local" {
                n = client.recv(&mut got).unwrap();
            }
            assert!(got[..n] == sent, "{client:?}: {n} bytes of {size}");
        }
    }
}

pub(super) fn established_connections_survive_every_change(mut node: Node) {
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let pods = [100, 101].map(|number| Pod::start(&node.world, &runtime, number));
    let [first, second] = pods.each_ref().map(|pod| pod.ip);
    let mut service = Service::of(first);
    service.step(&node);
    node.start();
    service.await_effect(&node);

    let mut connections: Vec<Connection> = [
        SocketAddr::new(SERVICE[0].parse().unwrap(), 80),
        SocketAddr::new(EXTERNAL[0].parse().unwrap(), 80),
        SocketAddr::new(BALANCER[0].parse().unwrap(), 80),
        SocketAddr::new(Place::Node.ip(false), NODE_PORT),
    ]
    .into_iter()
    .map(|to| Connection::open(&node, to))
    .collect();
    let mut change = |what: &str, change: &dyn Fn(&mut Service)| {
        change(&mut service);
        service.step(&node);
        service.await_effect(&node);
        for connection in &mut connections {
            connection.still_speaks_to(first, what);
        }
    };
    change("port added", &|s| {
        s.more_ports = ", {name: x, port: 81, protocol: TCP}"
    });
    change("port removed", &|s| s.more_ports = "");
    change("node port changed", &|s| s.node_port = Some(NODE_PORT + 1));
    change("external policy", &|s| {
        s.spec = "externalTrafficPolicy: Local"
    });
    change("internal policy", &|s| {
        s.spec = "externalTrafficPolicy: Local\n  internalTrafficPolicy: Local";
    });
    change("affinity", &|s| s.spec = "sessionAffinity: ClientIP");
    change("source ranges", &|s| {
        s.spec = "loadBalancerSourceRanges: [203.0.113.0/24]"
    });
    change("external IPs gone", &|s| {
        s.spec = "";
        s.external_ips = "";
    });
    change("type NodePort", &|s| s.kind = "NodePort");
    change("type ClusterIP", &|s| {
        s.kind = "ClusterIP";
        s.node_port = None;
    });
    change("another endpoint", &|s| {
        s.endpoints = vec![(first, State::Ready), (second, State::Ready)];
    });
    change("unready", &|s| s.endpoints[0].1 = State::Unready);
    change("terminating", &|s| s.endpoints[0].1 = State::Terminating);
    change("endpoint removed", &|s| {
        s.endpoints.remove(0);
    });
    change("no endpoint", &|s| s.endpoints.clear());
    change("own port removed", &|s| s.port = 82);
    change("Service deleted", &|s| s.deleted = true);
}

/// The Service and its slice, and another Service that tells when a change is in effect.
struct Service {
    kind: &'static str,
    spec: &'static str,
    external_ips: &'static str,
    port: u16,
    more_ports: &'static str,
    node_port: Option<u16>,
    endpoints: Vec<(IpAddr, State)>,
    deleted: bool,
    pod: IpAddr,
    steps: u16,
}

impl Service {
    fn of(pod: IpAddr) -> Self {
        Self {
            kind: "LoadBalancer",
            spec: "",
            external_ips: "externalIPs: ['198.51.100.7']",
            port: 80,
            more_ports: "",
            node_port: Some(NODE_PORT),
            endpoints: vec![(pod, State::Ready)],
            deleted: false,
            pod,
            steps: 0,
        }
    }

    /// Applies it as it is now.
    fn step(&mut self, node: &Node) {
        self.steps += 1;
        // Changes of one file take effect together: once this port is served, so is the rest.
        let mut text = format!(
            "apiVersion: v1
kind: Service
metadata: {{name: marker, namespace: default}}
spec: {{clusterIP: {MARKER}, ports: [{{name: t, port: {}}}]}}
{}",
            1000 + self.steps,
            slice(&[(self.pod, State::Ready)]).replace("web", "marker"),
        );
        if !self.deleted {
            let node_port = self.node_port.map(|port| format!(", nodePort: {port}"));
            let status = if self.kind == "LoadBalancer" {
                "{loadBalancer: {ingress: [{ip: 203.0.113.7}]}}"
            } else {
                "{}"
            };
            text += &format!(
                "---
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: default}}
spec:
  type: {}
  clusterIP: '{}'
  ports: [{{name: t, port: {}, protocol: TCP{}}}{}]
  {}
  {}
status: {status}
{}",
                self.kind,
                SERVICE[0],
                self.port,
                node_port.unwrap_or_default(),
                self.more_ports,
                self.external_ips,
                self.spec,
                slice(&self.endpoints),
            );
        }
        node.apply_text(&text);
    }

    fn await_effect(&self, node: &Node) {
        let to = SocketAddr::new(MARKER.parse().unwrap(), 1000 + self.steps);
        eventually(|| {
            // Until it is served, nobody answers there.
            let connect = || TcpStream::connect_timeout(&to, SHORT).map(drop);
            let connected = node.world.in_ns(Place::Outside, connect);
            connected.map_err(|error| error.to_string())
        });
    }
}

/// How long an attempt to see an effect may take.
const SHORT: Duration = Duration::from_millis(50);

/// The cluster address of the Service that tells when a change is in effect.
const MARKER: &str = "10.96.0.20";

/// A connection that stays open.
struct Connection {
    to: SocketAddr,
    stream: BufReader<TcpStream>,
}

impl Connection {
    fn open(node: &Node, to: SocketAddr) -> Self {
        let connect = || TcpStream::connect(to);
        let stream = node.world.in_ns(Place::Outside, connect).unwrap();
        stream.set_read_timeout(Some(patience())).unwrap();
        let stream = BufReader::new(stream);
        Self { to, stream }
    }

    fn still_speaks_to(&mut self, pod: IpAddr, after: &str) {
        let mut answer = String::new();
        let spoken = self.stream.get_mut().write_all(HELLO);
        let spoken = spoken.and_then(|()| self.stream.read_line(&mut answer));
        let told = spoken.map(|_| answer.trim_end().to_owned());
        let expected = pod.to_string();
        assert_eq!(
            told.unwrap_or_else(|e| e.to_string()),
            expected,
            "{} after: {after}",
            self.to
        );
    }
}
