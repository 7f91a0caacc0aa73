//! The addresses of a Service and who is calling: kinds of frontend, node addresses, origins.
//!
//! Source: spec.clusterIPs, externalIPs, status.loadBalancer, nodePort; kube-proxy `--nodeport-addresses` and
//! `--cluster-cidr`.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;

use crate::model::{Family, Frontend, NodeName, Service, ServiceKind, ServicePort};

/// What a frontend's address is to its Service; decides which traffic policy holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FrontendKind {
    /// `spec.clusterIPs`.
    ClusterIp,
    /// `spec.externalIPs`.
    ExternalIp,
    /// `status.loadBalancer.ingress`.
    LoadBalancer,
    /// An address of the node at a node port.
    NodePort,
}

impl FrontendKind {
    /// As it is shown to users.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClusterIp => "ClusterIP",
            Self::ExternalIp => "ExternalIP",
            Self::LoadBalancer => "LoadBalancer",
            Self::NodePort => "NodePort",
        }
    }
}

/// Where a flow comes from, as far as policies tell it apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Another host, or a Pod of another node.
    Outside,
    /// A Pod on this node.
    LocalPod,
    /// This node itself.
    Node,
}

impl Origin {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Outside, Self::LocalPod, Self::Node];

    /// As it is shown to users.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Outside => "outside",
            Self::LocalPod => "pod",
            Self::Node => "node",
        }
    }
}

/// `--nodeport-addresses`: which of the node's addresses answer node ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// Every local address; `::1` never.
    #[default]
    All,
    /// The Node object's primary address of each family.
    Primary,
    /// Local addresses inside one of these. A family without any entry means all of that family, and a zero CIDR of
    /// any family means all.
    Within(Vec<IpNet>),
}

/// What routing knows of the node: who is local, and where node ports answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeView {
    /// The node's name; without one nothing is local.
    pub name: Option<NodeName>,
    /// Its zone.
    pub zone: Option<Arc<str>>,
    /// The CIDRs of Pods on this node (`--cluster-cidr`); empty = Pods cannot be told from outsiders.
    pub pod_cidrs: Vec<IpNet>,
    /// Every address of the node's interfaces.
    pub local_addresses: BTreeSet<IpAddr>,
    /// Those of them that answer node ports.
    pub node_port_addresses: BTreeSet<IpAddr>,
    /// Where health-check node ports are bound; an unspecified address stands for all of its family.
    pub health_check_addresses: BTreeSet<IpAddr>,
    /// Families in which a backend can be shown its client's address: replies to it are led here.
    pub shows_clients: BTreeSet<Family>,
}

impl NodeView {
    /// Where a client at `ip` is.
    pub fn origin(&self, ip: IpAddr) -> Origin {
        let ip = ip.to_canonical();
        if ip.is_loopback() || self.local_addresses.contains(&ip) {
            Origin::Node
        } else if self.pod_cidrs.iter().any(|cidr| cidr.contains(&ip)) {
            Origin::LocalPod
        } else {
            Origin::Outside
        }
    }

    /// Whether node ports answer at `ip`. All of 127.0.0.0/8 counts as one interface address.
    pub fn answers_node_ports(&self, ip: IpAddr) -> bool {
        self.node_port_addresses.contains(&ip)
            || (matches!(ip, IpAddr::V4(v4) if v4.is_loopback())
                && self
                    .node_port_addresses
                    .contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)))
    }
}

impl NodePortAddresses {
    /// Chooses among the `local` addresses; `primary` are the Node object's, first of a family first.
    pub fn select(&self, local: &BTreeSet<IpAddr>, primary: &[IpAddr]) -> BTreeSet<IpAddr> {
        let never = |ip: &IpAddr| *ip == IpAddr::V6(Ipv6Addr::LOCALHOST) || is_link_local(*ip);
        let mut chosen: BTreeSet<IpAddr> = match self {
            Self::All => local.clone(),
            Self::Primary => {
                let first = |family| {
                    primary
                        .iter()
                        .find(|ip| Family::of(**ip) == family && !ip.is_loopback())
                        .copied()
                };
                Family::BOTH.into_iter().filter_map(first).collect()
            }
            Self::Within(cidrs) => {
                let inside = |ip: &IpAddr| cidrs.iter().any(|cidr| cidr.contains(ip));
                let answers = |ip: &IpAddr| self.is_all_of(Family::of(*ip)) || inside(ip);
                local.iter().copied().filter(answers).collect()
            }
        };
        chosen.retain(|ip| !never(ip));
        chosen
    }

    /// Where health-check node ports are bound, if node ports answer at `chosen`: one wildcard for a family that is
    /// chosen whole, so that addresses may come and go, and otherwise each address. Nothing where nothing is chosen.
    ///
    /// Source: kube-proxy's service health server.
    pub fn select_binds(&self, chosen: &BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
        let bind = |ip: &IpAddr| {
            let family = Family::of(*ip);
            if self.is_all_of(family) {
                family.unspecified()
            } else {
                *ip
            }
        };
        chosen.iter().map(bind).collect()
    }

    fn is_all_of(&self, family: Family) -> bool {
        match self {
            Self::All => true,
            Self::Primary => false,
            Self::Within(cidrs) => {
                let zero = cidrs.iter().any(|cidr| cidr.prefix_len() == 0);
                zero || cidrs.iter().all(|cidr| Family::of(cidr.addr()) != family)
            }
        }
    }
}

// A link-local IPv6 address needs a scope that a captured destination does not carry.
fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// Whether the proxy serves the Service at all; DNS names it all the same.
pub(super) fn is_proxied(service: &Service) -> bool {
    match service.kind {
        ServiceKind::Headless | ServiceKind::ExternalName(_) => false,
        ServiceKind::ClusterIp | ServiceKind::NodePort | ServiceKind::LoadBalancer => {
            !service.foreign_proxy && !service.cluster_ips.is_empty()
        }
    }
}

/// The frontends that a service port asks for in one family, node port aside. Empty without a cluster IP of that
/// family. An address that is listed twice counts as what it is listed as first: cluster IP, then external IP.
///
/// Source: the order of rules in kube-proxy's `syncProxyRules`.
pub(super) fn wanted_frontends(
    service: &Service,
    port: &ServicePort,
    family: Family,
) -> Vec<(Frontend, FrontendKind)> {
    let Some(cluster_ip) = service.cluster_ip(family) else {
        return Vec::new();
    };
    let external = service
        .external_ips
        .iter()
        .map(|ip| (*ip, FrontendKind::ExternalIp));
    let balancer = service
        .load_balancer_ips
        .iter()
        .map(|lb| (lb.ip, FrontendKind::LoadBalancer));
    let mut found: Vec<(Frontend, FrontendKind)> = Vec::new();
    for (ip, kind) in std::iter::once((cluster_ip, FrontendKind::ClusterIp))
        .chain(external)
        .chain(balancer)
        .filter(|(ip, _)| Family::of(*ip) == family)
    {
        let frontend = Frontend {
            ip,
            port: port.port.number(),
            protocol: port.protocol,
        };
        if found.iter().all(|(known, _)| *known != frontend) {
            found.push((frontend, kind));
        }
    }
    found
}

/// Who may call the load-balancer addresses of that family; empty = anybody. Ranges of the other family restrict
/// nobody here, and a range of everything restricts nobody at all.
///
/// Source: kube-proxy `loadBalancerSourceRanges`.
pub(super) fn source_ranges(service: &Service, family: Family) -> Vec<IpNet> {
    let of_family = service.source_ranges.iter();
    let ranges: Vec<IpNet> = of_family
        .filter(|range| Family::of(range.addr()) == family)
        .map(IpNet::trunc)
        .collect();
    if ranges.iter().any(|range| range.prefix_len() == 0) {
        return Vec::new();
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::service;

    #[test]
    fn source_ranges_restrict_their_own_family_only() {
        let ranges = |list: &str, family| {
            let mut service = service("web", "10.96.0.10 fd00::10");
            let list = list.split_whitespace();
            service.source_ranges = list.map(|range| range.parse().unwrap()).collect();
            let ranges = source_ranges(&service, family);
            ranges.iter().map(IpNet::to_string).collect::<Vec<_>>()
        };
        assert_eq!(
            ranges("192.0.2.1/25 fd00::/8", Family::V4),
            ["192.0.2.0/25"]
        );
        assert!(ranges("fd00::/8", Family::V4).is_empty());
        assert!(ranges("192.0.2.0/25 0.0.0.0/0", Family::V4).is_empty());
        assert!(ranges("", Family::V6).is_empty());
    }

    fn ips(list: &[&str]) -> BTreeSet<IpAddr> {
        list.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    fn cidrs(list: &[&str]) -> NodePortAddresses {
        NodePortAddresses::Within(list.iter().map(|cidr| cidr.parse().unwrap()).collect())
    }

    #[test]
    fn node_port_addresses_follow_the_table_of_the_specification() {
        let local = ips(&[
            "127.0.0.1",
            "::1",
            "10.0.0.2",
            "192.0.2.1",
            "fd00::2",
            "fe80::1",
        ]);
        let rows = [
            (
                NodePortAddresses::All,
                ips(&["127.0.0.1", "10.0.0.2", "192.0.2.1", "fd00::2"]),
            ),
            (NodePortAddresses::Primary, ips(&["10.0.0.2", "fd00::2"])),
            (cidrs(&["192.0.2.0/24"]), ips(&["192.0.2.1", "fd00::2"])),
            (cidrs(&["192.0.2.0/24", "fd01::/64"]), ips(&["192.0.2.1"])),
            (
                cidrs(&["192.0.2.0/24", "::/0"]),
                ips(&["127.0.0.1", "10.0.0.2", "192.0.2.1", "fd00::2"]),
            ),
            (cidrs(&["198.51.100.0/24", "fd01::/64"]), ips(&[])),
        ];
        let primary = ["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        for (flag, expected) in rows {
            assert_eq!(flag.select(&local, &primary), expected, "{flag:?}");
        }
    }

    #[test]
    fn health_checks_are_bound_to_a_wildcard_where_a_family_is_chosen_whole() {
        let local = ips(&["127.0.0.1", "::1", "10.0.0.2", "192.0.2.1", "fd00::2"]);
        let primary = ["10.0.0.2".parse().unwrap()];
        let rows = [
            (NodePortAddresses::All, ips(&["0.0.0.0", "::"])),
            (NodePortAddresses::Primary, ips(&["10.0.0.2"])),
            (cidrs(&["192.0.2.0/24"]), ips(&["192.0.2.1", "::"])),
            (
                cidrs(&["192.0.2.0/24", "10.0.0.0/8", "fd01::/64"]),
                ips(&["192.0.2.1", "10.0.0.2"]),
            ),
            (cidrs(&["192.0.2.0/24", "::/0"]), ips(&["0.0.0.0", "::"])),
        ];
        for (flag, expected) in rows {
            let chosen = flag.select(&local, &primary);
            assert_eq!(flag.select_binds(&chosen), expected, "{flag:?}");
        }
        let loopback = ips(&["127.0.0.1", "::1"]);
        let chosen = cidrs(&["127.0.0.0/8"]).select(&loopback, &[]);
        assert_eq!(
            cidrs(&["127.0.0.0/8"]).select_binds(&chosen),
            ips(&["127.0.0.1"]),
            "a family of which nothing answers node ports has no wildcard"
        );
    }

    #[test]
    fn origins_are_told_apart() {
        let node = NodeView {
            pod_cidrs: vec!["10.244.0.0/24".parse().unwrap()],
            local_addresses: ips(&["10.244.0.1", "172.18.0.2"]),
            ..NodeView::default()
        };
        let origin = |ip: &str| node.origin(ip.parse().unwrap());
        assert_eq!(origin("172.18.0.2"), Origin::Node);
        assert_eq!(origin("127.0.0.9"), Origin::Node);
        assert_eq!(
            origin("10.244.0.1"),
            Origin::Node,
            "the node's own bridge address is not a Pod"
        );
        assert_eq!(origin("10.244.0.7"), Origin::LocalPod);
        assert_eq!(origin("::ffff:10.244.0.7"), Origin::LocalPod);
        assert_eq!(origin("192.0.2.10"), Origin::Outside);
    }
}
