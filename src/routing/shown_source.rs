//! Whose address a backend sees: the node's, or the client's where a Service asks for that (`viaduct.dev/source-ip`). Pure.
//!
//! A backend answers the address that it sees, so the client's is shown only where that answer passes through this node
//! and can be led to the proxy's socket. The rows are those of the kernel proxies for cluster IPs and for external traffic
//! that a policy keeps on the node.

use std::net::IpAddr;

use crate::model::{SourceIp, TrafficPolicy};

use super::{FrontendKind, NodeView, Origin, Route};

/// Who begins a flow, and what the address that it used is to the Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Its address.
    pub ip: IpAddr,
    /// Where it is.
    pub origin: Origin,
    /// What it called.
    pub kind: FrontendKind,
}

impl NodeView {
    /// The address that `backend` is to see in place of the node's: the caller's, if the Service asks for it and the
    /// answers come back this way. They do not from an endpoint on the node itself, nor from one that is the caller.
    pub fn shown_source(&self, route: &Route, caller: Caller, backend: IpAddr) -> Option<IpAddr> {
        if route.knobs.source_ip != Some(SourceIp::Transparent)
            || !self.shows_clients.contains(&route.key.family)
        {
            return None;
        }
        let ip = caller.ip.to_canonical();
        let returns = route.answers_pass(caller.kind, caller.origin)
            && ip != backend
            && self.origin(backend) != Origin::Node;
        returns.then_some(ip)
    }
}

impl Route {
    // Whether a backend's answer to such a caller passes through this node: the caller is a Pod here, or the backend is.
    fn answers_pass(&self, kind: FrontendKind, origin: Origin) -> bool {
        match origin {
            Origin::LocalPod => true,
            Origin::Outside => self.policy(kind, origin) == TrafficPolicy::Local,
            Origin::Node => false,
        }
    }
}

/// What is to be said of a Service that asks for it; `None` of one that does not.
pub(super) fn about_source(route: &Route, node: &NodeView) -> Option<String> {
    route.knobs.source_ip?;
    let family = route.key.family;
    Some(if node.shows_clients.contains(&family) {
        let outside = [FrontendKind::ClusterIp, FrontendKind::NodePort]
            .map(|kind| route.answers_pass(kind, Origin::Outside));
        let outside = match outside {
            [false, false] => "callers from outside as this node",
            [true, false] => "callers from outside too, but only at the cluster IP",
            [false, true] => "callers from outside too, except at the cluster IP",
            [true, true] => "callers from outside too",
        };
        format!("backends see Pods of this node under their own addresses, {outside}")
    } else {
        format!(
            "source-ip: {} has no effect over {family}: only the capture mode tproxy can; backends see this node's address",
            SourceIp::TRANSPARENT
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Family;
    use crate::testkit::{ip, port_key, route};

    const POD: &str = "10.244.0.10";
    const OUTSIDE: &str = "192.0.2.10";
    const NODE: &str = "172.18.0.2";

    fn here() -> NodeView {
        NodeView {
            pod_cidrs: vec!["10.244.0.0/24".parse().unwrap()],
            local_addresses: [ip(NODE)].into(),
            shows_clients: [Family::V4].into(),
            ..NodeView::default()
        }
    }

    fn asking(internal: TrafficPolicy, external: TrafficPolicy) -> Route {
        let mut route = Route {
            internal_policy: internal,
            external_policy: external,
            ..route(port_key("web"))
        };
        route.knobs.source_ip = Some(SourceIp::Transparent);
        route
    }

    fn seen(node: &NodeView, route: &Route, from: &str, kind: FrontendKind, backend: &str) -> bool {
        let caller = Caller {
            ip: ip(from),
            origin: node.origin(ip(from)),
            kind,
        };
        let shown = node.shown_source(route, caller, ip(backend));
        assert!(shown.is_none_or(|shown| shown == ip(from)));
        shown.is_some()
    }

    #[test]
    fn the_client_is_shown_where_the_answer_passes_here() {
        use FrontendKind::{ClusterIp, LoadBalancer, NodePort};
        use TrafficPolicy::{Cluster, Local};
        let node = here();
        for (internal, external, from, kind, shown) in [
            (Cluster, Cluster, POD, ClusterIp, true),
            (Cluster, Cluster, POD, NodePort, true),
            (Cluster, Local, POD, LoadBalancer, true),
            (Cluster, Cluster, OUTSIDE, ClusterIp, false),
            (Local, Cluster, OUTSIDE, ClusterIp, true),
            (Cluster, Cluster, OUTSIDE, NodePort, false),
            (Cluster, Local, OUTSIDE, NodePort, true),
            (Cluster, Local, OUTSIDE, LoadBalancer, true),
            (Cluster, Local, OUTSIDE, ClusterIp, false),
            (Local, Local, NODE, ClusterIp, false),
            (Local, Local, "127.0.0.1", NodePort, false),
        ] {
            let route = asking(internal, external);
            let found = seen(&node, &route, from, kind, "10.244.0.21");
            assert_eq!(found, shown, "{from} {kind:?} {internal:?} {external:?}");
        }
    }

    #[test]
    fn it_is_not_shown_to_itself_to_the_node_or_unasked() {
        let (node, route) = (
            here(),
            asking(TrafficPolicy::Cluster, TrafficPolicy::Cluster),
        );
        let kind = FrontendKind::ClusterIp;
        assert!(!seen(&node, &route, POD, kind, POD), "hairpin");
        assert!(!seen(&node, &route, POD, kind, NODE), "host network");
        let plain = crate::testkit::route(port_key("web"));
        assert!(!seen(&node, &plain, POD, kind, "10.244.0.21"));
        let cannot = NodeView {
            shows_clients: [Family::V6].into(),
            ..here()
        };
        assert!(!seen(&cannot, &route, POD, kind, "10.244.0.21"));
        assert!(
            about_source(&route, &cannot)
                .unwrap()
                .contains("no effect over IPv4")
        );
        assert!(
            about_source(&route, &node)
                .unwrap()
                .contains("as this node")
        );
    }
}
