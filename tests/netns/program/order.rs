//! In which order changes take effect: whoever has met a change finds those before it in effect too, with the first packet.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use viaduct::model::Protocol;

use super::CALLERS;
use super::node::{BOTH, Node, SERVICE, Web};
use crate::backends::PORT;
use crate::world::{Answer, Place, QUIET, ask_again, patience};

/// The cluster addresses of a Service that was there before; it gets another port with each change.
const MARKER: [&str; 2] = ["10.96.0.20", "fd00:10:96::20"];

/// The node port of the first step; each has the next.
const FIRST_NODE_PORT: u16 = 30100;

const STEPS: u8 = 4;

pub(super) fn what_was_changed_before_is_in_effect_before(mut node: Node) {
    node.apply_text(&manifest(0));
    node.start();
    for step in 1..=STEPS {
        for marker in at(MARKER, marker_port(step - 1)) {
            await_connection(&node, marker);
        }
        node.apply_text(&manifest(step));
        for (marker, service) in at(MARKER, marker_port(step))
            .into_iter()
            .zip(at(address(step), 80))
        {
            await_connection(&node, marker);
            let ask = |protocol, to| node.ask(Place::Outside, protocol, to, QUIET);
            assert_eq!(ask(Protocol::Udp, service).words(), "local", "{service}");
            assert_eq!(ask(Protocol::Tcp, service).words(), "local", "{service}");
            let before = SocketAddr::new(Place::Node.ip(marker.is_ipv6()), node_port(step - 1));
            for protocol in BOTH {
                assert_eq!(
                    ask(protocol, before),
                    Answer::Refused,
                    "{before}/{protocol}"
                );
            }
        }
    }
}

pub(super) fn a_client_that_was_there_before_the_service_is_served(mut node: Node) {
    node.apply_text("");
    node.start();
    let services = at(SERVICE.map(str::to_owned), 80);
    let clients: Vec<_> = CALLERS
        .into_iter()
        .flat_map(|from| services.map(|to| node.world.udp_client(from, to)))
        .collect();
    for client in &clients {
        assert_eq!(ask_again(client, QUIET).words(), "", "{client:?}");
    }
    node.apply(&Web::default());
    for to in services {
        node.await_served(to);
    }
    for client in &clients {
        assert_ne!(ask_again(client, patience()).words(), "", "{client:?}");
    }
}

fn at(addresses: [impl AsRef<str>; 2], port: u16) -> [SocketAddr; 2] {
    addresses.map(|ip| {
        let ip: IpAddr = ip.as_ref().parse().unwrap();
        SocketAddr::new(ip, port)
    })
}

fn marker_port(step: u8) -> u16 {
    1000 + u16::from(step)
}

fn node_port(step: u8) -> u16 {
    FIRST_NODE_PORT + u16::from(step)
}

// Of the Service that is new in that step.
fn address(step: u8) -> [String; 2] {
    let number = 30 + step;
    [format!("10.96.0.{number}"), format!("fd00:10:96::{number}")]
}

// Without a pause: what is late is late by milliseconds.
fn await_connection(node: &Node, to: SocketAddr) {
    let until = Instant::now() + patience();
    let connect = || TcpStream::connect_timeout(&to, Duration::from_millis(20));
    while let Err(error) = node.world.in_ns(Place::Outside, connect) {
        assert!(Instant::now() < until, "{to}: {error}");
        thread::yield_now();
    }
}

// The marker comes first: its name is the lesser, and so is its place in the file.
fn manifest(step: u8) -> String {
    let [v4, v6] = MARKER;
    let marker = (format!("'{v4}', '{v6}'"), marker_port(step));
    let [v4, v6] = address(step);
    let fresh = (format!("'{v4}', '{v6}'"), node_port(step));
    let marker = format!(
        "{}  type: ClusterIP\n  ports: [{{name: t{step}, port: {}, protocol: TCP}}]\n{}",
        head("marker", &marker.0),
        marker.1,
        slices(
            "marker",
            &format!("{{name: t{step}, port: {PORT}, protocol: TCP}}")
        ),
    );
    let name = format!("web-{step}");
    let ports = ["TCP", "UDP"].map(|p| {
        format!(
            "{{name: {}, port: 80, protocol: {p}, nodePort: {}}}",
            p.to_lowercase(),
            fresh.1
        )
    });
    let served = ["TCP", "UDP"].map(|p| {
        format!(
            "{{name: {}, port: {PORT}, protocol: {p}}}",
            p.to_lowercase()
        )
    });
    let web = format!(
        "{}  type: NodePort\n  ports: [{}]\n{}",
        head(&name, &fresh.0),
        ports.join(", "),
        slices(&name, &served.join(", ")),
    );
    marker + &web
}

fn head(name: &str, addresses: &str) -> String {
    let first = addresses.split(',').next().unwrap_or_default();
    format!(
        "---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: default}}
spec:
  ipFamilyPolicy: RequireDualStack
  ipFamilies: [IPv4, IPv6]
  clusterIP: {first}
  clusterIPs: [{addresses}]
"
    )
}

fn slices(service: &str, ports: &str) -> String {
    let slice = |(family, v6)| {
        format!(
            "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {service}-{}, namespace: default, labels: {{kubernetes.io/service-name: {service}}}}}
addressType: {family}
ports: [{ports}]
endpoints: [{{addresses: ['{}'], nodeName: n0, conditions: {{ready: true}}}}]
",
            family_word(v6),
            Place::Local.ip(v6)
        )
    };
    [("IPv4", false), ("IPv6", true)].map(slice).concat()
}

fn family_word(v6: bool) -> &'static str {
    if v6 { "ipv6" } else { "ipv4" }
}
