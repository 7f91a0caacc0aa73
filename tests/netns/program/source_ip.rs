//! `viaduct.dev/source-ip: transparent`: whose address backends see, by caller, address and policy.

use std::net::{IpAddr, SocketAddr};

use viaduct::capture::Mode;

use super::node::{BOTH, NODE_PORT, Node, SERVICE};
use crate::backends::{Backend, TELLING_PORT};
use crate::world::{Answer, Place, QUIET, eventually, patience};

pub(super) fn backends_see_their_clients_where_answers_pass_here(mut node: Node) {
    let _backends =
        [Place::Local, Place::Remote].map(|place| Backend::telling_clients(&node.world, place));
    node.apply_text(&manifest(&[Place::Local, Place::Remote]));
    node.start();
    let can = node.mode == Mode::Tproxy;
    for (v6, service) in [false, true].into_iter().zip(SERVICE) {
        let cluster = SocketAddr::new(service.parse().unwrap(), 80);
        let external = SocketAddr::new(Place::Node.ip(v6), NODE_PORT);
        node.await_served(cluster);
        node.await_served(external);
        for (from, to, shown) in [
            (Place::Pod, cluster, can),
            (Place::Pod, external, can),
            (Place::Outside, external, can),
            (Place::Outside, cluster, false),
            (Place::Node, cluster, false),
        ] {
            for protocol in BOTH {
                // Both backends have their turn.
                for _ in 0..4 {
                    let answer = node.ask(from, protocol, to, patience());
                    let Answer::Words(seen) = &answer else {
                        panic!("{from:?} to {to}/{protocol}: {answer:?}");
                    };
                    let seen: IpAddr = seen.parse().unwrap();
                    let own = from != Place::Node && seen == from.ip(v6);
                    assert_eq!(own, shown, "{from:?} to {to}/{protocol} is seen as {seen}");
                }
            }
        }
    }
    let told = node.log().contains("needs the capture mode tproxy");
    assert_eq!(told, !can);

    // Who is balanced to himself is seen as the node, for he would not hear of his own answer.
    node.apply_text(&manifest(&[Place::Local]));
    for service in SERVICE {
        let to = SocketAddr::new(service.parse().unwrap(), 80);
        for protocol in BOTH {
            eventually(|| match node.ask(Place::Local, protocol, to, QUIET) {
                Answer::Words(seen) if seen != Place::Local.ip(to.is_ipv6()).to_string() => Ok(()),
                other => Err(format!("{to}/{protocol}: {other:?}")),
            });
        }
    }
}

fn manifest(endpoints: &[Place]) -> String {
    let [v4, v6] = SERVICE;
    let service = format!(
        "apiVersion: v1
kind: Service
metadata:
  name: web
  namespace: default
  annotations: {{viaduct.dev/source-ip: transparent}}
spec:
  type: NodePort
  externalTrafficPolicy: Local
  ipFamilyPolicy: RequireDualStack
  ipFamilies: [IPv4, IPv6]
  clusterIP: '{v4}'
  clusterIPs: ['{v4}', '{v6}']
  ports:
  - {{name: t, port: 80, protocol: TCP, nodePort: {NODE_PORT}}}
  - {{name: u, port: 80, protocol: UDP, nodePort: {NODE_PORT}}}
"
    );
    let slices = [("IPv4", false), ("IPv6", true)].map(|(family, v6)| {
        let endpoint = |place: &Place| {
            let node = if *place == Place::Local { "n0" } else { "n1" };
            let ip = place.ip(v6);
            format!("{{addresses: ['{ip}'], nodeName: {node}, conditions: {{ready: true}}}}")
        };
        let endpoints: Vec<String> = endpoints.iter().map(endpoint).collect();
        format!(
            "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: web-{}, namespace: default, labels: {{kubernetes.io/service-name: web}}}}
addressType: {family}
ports: [{{name: t, port: {TELLING_PORT}, protocol: TCP}}, {{name: u, port: {TELLING_PORT}, protocol: UDP}}]
endpoints: [{}]
",
            family.to_lowercase(),
            endpoints.join(", ")
        )
    });
    service + &slices.concat()
}
