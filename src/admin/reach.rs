//! What the table does not know and `explain` should say: where this machine cannot do what the table decides.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use crate::dataplane::Observer;
use crate::model::{Family, Frontend};
use crate::net::reachable::route_to;
use crate::routing::{ExplainedFrontend, ExplainedPort, FrontendKind, Outcome};

/// Tells of addresses that processes on this node cannot dial, and of those where silence is impossible.
pub(super) fn remark(observer: &Observer, port: &mut ExplainedPort) {
    let addresses = port.frontends.iter().filter_map(addr);
    let addresses: BTreeSet<IpAddr> = addresses.map(|addr| addr.ip()).collect();
    let unreachable = addresses.into_iter().filter_map(|ip| {
        let error = route_to(ip).err()?;
        Some(format!(
            "processes on this node cannot dial {ip} ({error}); any route that leads there mends it, such as a default route"
        ))
    });
    let audible = port.frontends.iter().filter(|frontend| {
        is_meant_to_be_silent(frontend)
            && observer.cannot_be_silent(|bound, kind| is_at(port, frontend, bound, kind))
    });
    let audible = audible.map(|frontend| {
        format!(
            "callers that {} should not answer are refused: this kernel takes no filter of them",
            frontend.address
        )
    });
    let remarks: Vec<String> = unreachable.chain(audible).collect();
    port.remarks.extend(remarks);
}

// A node port at all addresses of the node has none of its own.
fn addr(frontend: &ExplainedFrontend) -> Option<SocketAddr> {
    frontend.address.parse().ok()
}

fn is_at(
    port: &ExplainedPort,
    frontend: &ExplainedFrontend,
    bound: &Frontend,
    kind: FrontendKind,
) -> bool {
    let same_protocol = bound.protocol.as_str() == port.protocol;
    same_protocol
        && match addr(frontend) {
            Some(addr) => bound.addr() == addr,
            None => {
                kind == FrontendKind::NodePort
                    && Family::of(bound.ip).as_str() == port.family
                    && frontend.address == format!("*:{}", bound.port)
            }
        }
}

fn is_meant_to_be_silent(frontend: &ExplainedFrontend) -> bool {
    let mut flows = frontend.flows.iter();
    !frontend.source_ranges.is_empty() || flows.any(|flow| flow.outcome == Outcome::Silent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::{tcp, udp};

    fn asked(protocol: &str, address: &str) -> (ExplainedPort, ExplainedFrontend) {
        let frontend = ExplainedFrontend {
            address: address.to_owned(),
            kind: String::new(),
            served_port: 80,
            source_ranges: Vec::new(),
            flows: Vec::new(),
        };
        let port = ExplainedPort {
            service_port: "default/web".to_owned(),
            port: 80,
            protocol: protocol.to_owned(),
            family: "IPv4".to_owned(),
            algorithm: String::new(),
            affinity_seconds: None,
            connections: None,
            proxy_protocol: None,
            served: true,
            frontends: vec![frontend.clone()],
            topology: crate::routing::Topology::None,
            endpoints: Vec::new(),
            remarks: Vec::new(),
        };
        (port, frontend)
    }

    #[test]
    fn a_frontend_is_known_by_its_address_and_a_node_port_by_its_number() {
        let is = |protocol, address, bound, kind| {
            let (port, frontend) = asked(protocol, address);
            is_at(&port, &frontend, &bound, kind)
        };
        let (cluster, node) = (FrontendKind::ClusterIp, FrontendKind::NodePort);
        assert!(is("TCP", "10.96.0.1:80", tcp("10.96.0.1:80"), cluster));
        assert!(!is("TCP", "10.96.0.1:80", tcp("10.96.0.2:80"), cluster));
        assert!(!is("UDP", "10.96.0.1:80", tcp("10.96.0.1:80"), cluster));
        assert!(is("UDP", "*:30080", udp("172.18.0.2:30080"), node));
        assert!(!is("UDP", "*:30080", udp("172.18.0.2:30080"), cluster));
        assert!(!is("UDP", "*:30080", udp("[fd00::2]:30080"), node));
    }

    #[test]
    fn an_address_that_everybody_finds_is_not_worth_a_word() {
        let (mut port, _) = asked("TCP", "127.0.0.1:80");
        remark(&Observer::default(), &mut port);
        assert_eq!(port.remarks, Vec::<String>::new());
    }
}
