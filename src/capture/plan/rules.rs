//! The rules of one family: what the kernel should do, whole, and what one Service adds to them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use imbl::{OrdMap, OrdSet};
use ipnet::IpNet;

use crate::model::{Family, Frontend, Protocol};
use crate::routing::{FrontendKind, Route};

use super::{Entry, allowed_at, silence};

/// Everything the kernel should do for one family: the desired state, whole. Capture modes work out the difference
/// to what they applied last; what both have in common they share, so that it costs nothing to keep and to compare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The family.
    pub family: Family,
    /// Frontend → proxy port.
    pub redirects: OrdMap<Frontend, u16>,
    /// Cluster IPs that are captured: at any other port of theirs callers are refused, where the mode can do that.
    pub cluster_ips: OrdSet<IpAddr>,
    /// Node port → proxy port, at every one of `node_addresses` that is no frontend itself.
    pub node_ports: OrdMap<(Protocol, u16), u16>,
    /// The addresses that answer node ports. 127.0.0.1 stands for all of 127.0.0.0/8; `::1` is never here.
    pub node_addresses: BTreeSet<IpAddr>,
    /// Frontends that give no answer, and to whom.
    pub silent: OrdMap<Frontend, Silence>,
    /// Node ports that give no answer to callers from outside.
    pub silent_node_ports: OrdSet<(Protocol, u16)>,
    /// Frontends that answer only callers from these networks, and give no answer to anybody else.
    pub source_ranges: OrdMap<Frontend, Vec<IpNet>>,
    /// UDP proxy ports: a datagram to one of them at a local address that was not captured is turned away and counted.
    pub guarded_udp_ports: OrdSet<u16>,
    /// Every address of the node's interfaces. Set before [`Self::add`]. 127.0.0.1 stands for all of 127.0.0.0/8.
    pub local_addresses: BTreeSet<IpAddr>,
    /// Pods of this node: not outside.
    pub pod_cidrs: Vec<IpNet>,
}

/// To whom a frontend gives no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Silence {
    /// To nobody.
    Everyone,
    /// Only to callers that are neither Pods of this node nor the node itself.
    Outside,
}

impl Rules {
    /// No rules at all.
    pub fn none(family: Family) -> Self {
        Self {
            family,
            redirects: OrdMap::new(),
            cluster_ips: OrdSet::new(),
            node_ports: OrdMap::new(),
            node_addresses: BTreeSet::new(),
            silent: OrdMap::new(),
            silent_node_ports: OrdSet::new(),
            source_ranges: OrdMap::new(),
            guarded_udp_ports: OrdSet::new(),
            local_addresses: BTreeSet::new(),
            pod_cidrs: Vec::new(),
        }
    }

    /// Rules that capture nobody: their only redirect is for an address that no packet has. It keeps the kernel's
    /// connection tracking and NAT at work, which it takes down with the last rule that needs them, and established
    /// flows with it.
    pub fn translating(family: Family) -> Self {
        let mut rules = Self::none(family);
        let nobody = Frontend {
            ip: family.unspecified(),
            port: 1,
            protocol: Protocol::Tcp,
        };
        rules.redirects.insert(nobody, 1);
        rules
    }

    /// The node's own address that captured traffic is led to. `before` stays as long as the node has it; otherwise one
    /// that comes and goes neither with Pods nor with a load balancer is preferred. `None` if there is nothing but loopback and link-local ones:
    /// then it is the address of the interface that the traffic came in by, and the kernel drops what comes in by one
    /// without, as the Pods of many network plugins do.
    pub fn landing(&self, before: Option<IpAddr>) -> Option<IpAddr> {
        let is_frontend = |ip| self.redirects.keys().any(|frontend| frontend.ip == ip);
        let is_pods = |ip: &IpAddr| self.pod_cidrs.iter().any(|cidr| cidr.contains(ip));
        let lasting = |ip: &IpAddr| !is_pods(ip) && !is_frontend(*ip);
        let usable = || {
            self.local_addresses
                .iter()
                .filter(|ip| is_global(**ip))
                .copied()
        };
        before
            .filter(|ip| self.local_addresses.contains(ip))
            .or_else(|| usable().find(lasting))
            .or_else(|| usable().next())
    }

    /// What gives no answer, and to whom, node ports included. At a frontend's own address and port the frontend
    /// decides, not the node port.
    pub fn silenced(&self) -> OrdMap<Frontend, Silence> {
        let mut silenced = self.silent.clone();
        for (protocol, port) in &self.silent_node_ports {
            let at = |ip: &IpAddr| Frontend {
                ip: *ip,
                port: *port,
                protocol: *protocol,
            };
            // Nobody calls from outside there.
            let reachable = self.node_addresses.iter().filter(|ip| !ip.is_loopback());
            let node_ports = reachable.map(at);
            let node_ports = node_ports.filter(|frontend| !self.redirects.contains_key(frontend));
            silenced.extend(node_ports.map(|frontend| (frontend, Silence::Outside)));
        }
        silenced
    }

    /// Adds what `route` needs; see [`Share::add`].
    pub fn add(&mut self, route: &Route, port_of: impl Fn(Entry) -> Option<u16>) {
        let mut share = Share::default();
        share.add(route, &self.local_addresses, port_of);
        self.insert(&share);
    }

    /// Adds a share.
    pub fn insert(&mut self, share: &Share) {
        self.redirects.extend(share.redirects.iter().copied());
        self.cluster_ips.extend(share.cluster_ips.iter().copied());
        self.node_ports.extend(share.node_ports.iter().copied());
        self.silent.extend(share.silent.iter().copied());
        self.silent_node_ports
            .extend(share.silent_node_ports.iter().copied());
        self.source_ranges
            .extend(share.source_ranges.iter().cloned());
        self.guarded_udp_ports
            .extend(share.guarded_udp_ports.iter().copied());
    }

    /// Takes a share out that was added, but for cluster IPs, which others may have too.
    pub fn remove(&mut self, share: &Share) {
        for (frontend, _) in &share.redirects {
            self.redirects.remove(frontend);
        }
        for (node_port, _) in &share.node_ports {
            self.node_ports.remove(node_port);
        }
        for (frontend, _) in &share.silent {
            self.silent.remove(frontend);
        }
        for node_port in &share.silent_node_ports {
            self.silent_node_ports.remove(node_port);
        }
        for (frontend, _) in &share.source_ranges {
            self.source_ranges.remove(frontend);
        }
        for port in &share.guarded_udp_ports {
            self.guarded_udp_ports.remove(port);
        }
    }
}

/// What some routes add to the rules of their family. No two of them have a frontend, a node port or a proxy port in common.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Share {
    redirects: Vec<(Frontend, u16)>,
    cluster_ips: Vec<IpAddr>,
    node_ports: Vec<((Protocol, u16), u16)>,
    silent: Vec<(Frontend, Silence)>,
    silent_node_ports: Vec<(Protocol, u16)>,
    source_ranges: Vec<(Frontend, Vec<IpNet>)>,
    guarded_udp_ports: Vec<u16>,
}

impl Share {
    /// The cluster IPs that it captures.
    pub fn cluster_ips(&self) -> &[IpAddr] {
        &self.cluster_ips
    }

    /// Adds what `route` needs on a node with these addresses; `port_of` is the proxy port of each of its listeners, `None` where one could not be
    /// opened (its frontends are then not captured).
    pub fn add(
        &mut self,
        route: &Route,
        local_addresses: &BTreeSet<IpAddr>,
        port_of: impl Fn(Entry) -> Option<u16>,
    ) {
        let internal = if route.key.protocol == Protocol::Tcp {
            Entry::All
        } else {
            Entry::ClusterIp
        };
        let external = if route.key.protocol == Protocol::Tcp {
            Entry::All
        } else {
            Entry::External
        };
        for (frontend, kind) in &route.frontends {
            let entry = if *kind == FrontendKind::ClusterIp {
                internal
            } else {
                external
            };
            let ways = [entry, Entry::Diverted, Entry::At(*frontend, *kind)];
            let port = ways.into_iter().find_map(&port_of);
            let Some(port) = port else { continue };
            self.redirects.push((*frontend, port));
            if *kind == FrontendKind::ClusterIp && !self.cluster_ips.contains(&frontend.ip) {
                self.cluster_ips.push(frontend.ip);
            }
            if let Some(silence) = silence(route, *kind) {
                self.silent.push((*frontend, silence));
            }
            if *kind == FrontendKind::LoadBalancer
                && let Some(ranges) = allowed_at(frontend.ip, route, local_addresses)
            {
                self.source_ranges.push((*frontend, ranges));
            }
        }
        if let Some(node_port) = route.node_port
            && let Some(port) = port_of(external).or_else(|| port_of(Entry::Diverted))
        {
            self.node_ports
                .push(((route.key.protocol, node_port), port));
            if silence(route, FrontendKind::NodePort).is_some() {
                self.silent_node_ports.push((route.key.protocol, node_port));
            }
        }
        if route.key.protocol == Protocol::Udp {
            self.guarded_udp_ports
                .extend([internal, external].into_iter().filter_map(port_of));
        }
    }
}

// Neither loopback nor link-local.
fn is_global(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
    }
}
