//! What a capture mode and the data path are asked to do: listeners and rules. Pure values.
//!
//! ```text
//!  client ─► 10.96.0.10:80 ──[ Rules.redirects ]──► proxy port ──► listener ──► Route
//!  client ─► 127.96.0.10:8080 ────────── bound directly ─────────► listener ──► Route
//! ```

mod rules;

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net};

use crate::model::{Family, Frontend, Protocol, ServicePortKey};
use crate::routing::{FrontendKind, NodeView, Origin, Route, Verdict};

pub use rules::{Rules, Share, Silence};

/// How captured traffic reaches a listener, which decides where listeners are bound and how a flow's destination is
/// found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// NAT leads it to a proxy port; TCP asks the kernel for the original destination.
    Redirected,
    /// It arrives as it was sent: TCP at a proxy port, where the connection's own address is the destination; datagrams
    /// at listeners that are bound to the frontends, because replies must come from there.
    Diverted,
    /// The listener is bound to the frontend itself.
    Direct,
}

/// Identifies a listener: a service port and which of its addresses lead there.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ListenerId {
    /// The service port.
    pub route: ServicePortKey,
    /// Which of its addresses.
    pub entry: Entry,
}

impl fmt::Display for ListenerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {}/{}",
            self.route, self.route.family, self.route.protocol
        )
    }
}

/// Which addresses of a service port lead to a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Entry {
    /// All of them: redirected TCP, which can ask for the original destination.
    All,
    /// All of them: diverted TCP, whose connections have the destination as their own address.
    Diverted,
    /// The cluster IP: redirected UDP, which cannot ask.
    ClusterIp,
    /// External, load-balancer and node-port addresses: redirected UDP.
    External,
    /// Exactly this address: bound directly.
    At(Frontend, FrontendKind),
}

/// A listener that should exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerSpec {
    /// Its identity.
    pub id: ListenerId,
    /// Where to bind. Port 0 = any; a port that may not be bound is served 8000 higher or at the next free one.
    pub bind: SocketAddr,
    /// Whether it serves or only holds its port.
    pub state: ListenerState,
    /// Who is heard there; where rules decide it, everybody.
    pub callers: Callers,
    /// Whether its address may stay one that is not the node's.
    pub tenure: Tenure,
}

/// What a listener is to the addresses that it answers from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tenure {
    /// They are the node's own, or become so.
    Owned,
    /// They stay others': the socket is transparent (`IP_TRANSPARENT`).
    Transparent,
}

/// Who is heard at a listener; everybody else meets silence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Callers {
    /// Everybody.
    All,
    /// These networks, of the listener's family. None = nobody.
    Only(Vec<IpNet>),
}

impl Callers {
    // Those of them that are in `ranges`.
    fn among(self, ranges: &[IpNet]) -> Self {
        let networks = match self {
            Self::All => return Self::Only(ranges.to_vec()),
            Self::Only(networks) => networks,
        };
        // Of two networks that meet, one is in the other.
        let smaller =
            |(one, other): (&IpNet, &IpNet)| match (one.contains(other), other.contains(one)) {
                (true, _) => Some(*other),
                (false, true) => Some(*one),
                (false, false) => None,
            };
        let pairs = networks
            .iter()
            .flat_map(|network| ranges.iter().map(move |range| (network, range)));
        Self::Only(pairs.filter_map(smaller).collect())
    }
}

impl ListenerSpec {
    /// The protocol of its service port.
    pub fn protocol(&self) -> Protocol {
        self.id.route.protocol
    }

    /// How flows arrive here.
    pub fn arrival(&self) -> Arrival {
        match self.id.entry {
            Entry::All | Entry::ClusterIp | Entry::External => Arrival::Redirected,
            Entry::Diverted => Arrival::Diverted,
            Entry::At(..) => Arrival::Direct,
        }
    }
}

/// What a listener does with what reaches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerState {
    /// Takes flows.
    Serving,
    /// Nothing can serve: bound, so that nobody else takes the port, but refusing. TCP: bound without `listen`, which
    /// answers RST. UDP: bound and connected to a dead peer, which answers port unreachable.
    HeldClosed,
}

/// The listeners that `route` needs on `node` under `arrival`.
pub fn plan_listeners(route: &Route, arrival: Arrival, node: &NodeView) -> Vec<ListenerSpec> {
    let state = if route.any_endpoints {
        ListenerState::Serving
    } else {
        ListenerState::HeldClosed
    };
    let spec = |entry, bind| ListenerSpec {
        id: ListenerId {
            route: route.key.clone(),
            entry,
        },
        bind,
        state,
        callers: Callers::All,
        tenure: if arrival == Arrival::Diverted {
            Tenure::Transparent
        } else {
            Tenure::Owned
        },
    };
    let any = SocketAddr::new(route.key.family.unspecified(), 0);
    let has_external = route.node_port.is_some()
        || route
            .frontends
            .iter()
            .any(|(_, kind)| *kind != FrontendKind::ClusterIp);
    match (arrival, route.key.protocol) {
        (Arrival::Redirected, Protocol::Tcp) => vec![spec(Entry::All, any)],
        (Arrival::Redirected, Protocol::Udp) => {
            let external = has_external.then(|| spec(Entry::External, any));
            std::iter::once(spec(Entry::ClusterIp, any))
                .chain(external)
                .collect()
        }
        (Arrival::Diverted, Protocol::Tcp) => vec![spec(Entry::Diverted, any)],
        (Arrival::Direct, protocol) | (Arrival::Diverted, protocol) => {
            let own = route.frontends.iter().copied();
            let node_port = route.node_port.into_iter().flat_map(|port| {
                let of_family = node
                    .node_port_addresses
                    .iter()
                    .filter(|ip| Family::of(**ip) == route.key.family);
                of_family.map(move |ip| {
                    (
                        Frontend {
                            ip: *ip,
                            port,
                            protocol,
                        },
                        FrontendKind::NodePort,
                    )
                })
            });
            own.chain(node_port)
                .map(|(frontend, kind)| ListenerSpec {
                    callers: callers(route, frontend.ip, kind, node),
                    ..spec(Entry::At(frontend, kind), frontend.addr())
                })
                .collect()
        }
    }
}

// Who is heard at the address `ip` of `route`, where no rule decides it. Without any endpoint everybody is refused.
fn callers(route: &Route, ip: IpAddr, kind: FrontendKind, node: &NodeView) -> Callers {
    if !route.any_endpoints {
        return Callers::All;
    }
    let by_policy = callers_by_policy(route, ip, kind, node);
    match allowed_at(ip, route, &node.local_addresses) {
        Some(ranges) if kind == FrontendKind::LoadBalancer => by_policy.among(&ranges),
        Some(_) | None => by_policy,
    }
}

fn callers_by_policy(route: &Route, ip: IpAddr, kind: FrontendKind, node: &NodeView) -> Callers {
    match silence(route, kind) {
        None => Callers::All,
        Some(Silence::Everyone) => Callers::Only(Vec::new()),
        Some(Silence::Outside) => {
            let of_family = |ip: &&IpAddr| Family::of(**ip) == route.key.family;
            let local = node.local_addresses.iter().filter(of_family).copied();
            let pods = node.pod_cidrs.iter().copied();
            let pods = pods.filter(|cidr| Family::of(cidr.addr()) == route.key.family);
            // The node calls an address of its own from that address.
            let local = local.map(local_network).chain([ip.into()]);
            Callers::Only(pods.chain(local).collect())
        }
    }
}

// Who may call the load-balancer address `ip`; `None` = anybody. Without any endpoint everybody is refused. Where the
// node itself may call, so may the address: a node that has it configured calls itself from there.
fn allowed_at(ip: IpAddr, route: &Route, local: &BTreeSet<IpAddr>) -> Option<Vec<IpNet>> {
    if route.source_ranges.is_empty() || !route.any_endpoints {
        return None;
    }
    let mut ranges = route.source_ranges.clone();
    let contains = |local| ranges.iter().any(|range| range.contains(local));
    if local.iter().any(contains) {
        ranges.push(ip.into());
    }
    Some(ranges)
}

/// The addresses that `ip` stands for among a node's own: itself, or all of 127.0.0.0/8.
pub fn local_network(ip: IpAddr) -> IpNet {
    match ip {
        IpAddr::V4(Ipv4Addr::LOCALHOST) => LOOPBACK,
        IpAddr::V4(_) | IpAddr::V6(_) => ip.into(),
    }
}

/// All of it is the node's own.
const LOOPBACK: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8));

fn silence(route: &Route, kind: FrontendKind) -> Option<Silence> {
    let silent = |origin| matches!(route.verdict(kind, origin), Verdict::Silent);
    match (silent(Origin::Outside), silent(Origin::Node)) {
        (true, true) => Some(Silence::Everyone),
        (true, false) => Some(Silence::Outside),
        (false, _) => None,
    }
}
