//! A Service, reduced to what routing and DNS need.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::{Family, Names, Port, Protocol, ServiceName};

/// A Service as stored: defaulted, validated, its addresses allocated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub name: ServiceName,
    /// What `spec.type` and `clusterIP: None` make of it.
    pub kind: ServiceKind,
    /// All cluster IPs, primary first; empty for headless and ExternalName.
    pub cluster_ips: Vec<IpAddr>,
    /// Ports of protocols we serve; SCTP has been left out.
    pub ports: Vec<ServicePort>,
    /// Ports of SCTP: for DNS only, never for routing.
    pub sctp_ports: Vec<SctpPort>,
    /// `spec.externalIPs` that parse.
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress` with an address of mode VIP.
    pub load_balancer_ips: Vec<LoadBalancerAddress>,
    /// `spec.loadBalancerSourceRanges` that parse.
    pub source_ranges: Vec<IpNet>,
    /// `spec.internalTrafficPolicy`.
    pub internal_policy: TrafficPolicy,
    /// `spec.externalTrafficPolicy`.
    pub external_policy: TrafficPolicy,
    /// `sessionAffinity: ClientIP` and its timeout; `None` without affinity.
    pub affinity: Option<Duration>,
    /// `spec.healthCheckNodePort`, where it applies.
    pub health_check_node_port: Option<Port>,
    /// The label `service.kubernetes.io/service-proxy-name` gives this Service to another proxy. DNS still names it.
    pub foreign_proxy: bool,
    /// What our annotations ask for.
    pub knobs: Knobs,
}

impl Service {
    /// Has what it says in common with other facts only once.
    pub fn share(&mut self, names: &mut Names) {
        self.name.share(names);
        for port in &mut self.ports {
            names.share(&mut port.name);
        }
    }
}

/// The kinds of Service that differ in what is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceKind {
    /// A cluster IP only.
    ClusterIp,
    /// `clusterIP: None`: DNS names only.
    Headless,
    /// A cluster IP and node ports.
    NodePort,
    /// A cluster IP, load-balancer addresses and (usually) node ports.
    LoadBalancer,
    /// A DNS alias for the given name; no addresses.
    ExternalName(Arc<str>),
}

impl ServiceKind {
    /// As `kubectl get services` shows the type.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::ClusterIp | Self::Headless => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::LoadBalancer => "LoadBalancer",
            Self::ExternalName(_) => "ExternalName",
        }
    }
}

/// One entry of `spec.ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// The name; empty if there is none.
    pub name: Arc<str>,
    /// The protocol.
    pub protocol: Protocol,
    /// The port on cluster, external and load-balancer addresses.
    pub port: Port,
    /// The port on node addresses.
    pub node_port: Option<Port>,
}

/// A port of SCTP, of a Service or of a slice. Nothing serves it here, but DNS names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SctpPort {
    /// The name; empty if there is none.
    pub name: Arc<str>,
    /// The port.
    pub port: Port,
}

/// A load-balancer address that we answer for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadBalancerAddress {
    /// The address.
    pub ip: IpAddr,
}

/// Which endpoints a destination may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrafficPolicy {
    /// Any endpoint of the cluster.
    #[default]
    Cluster,
    /// Endpoints on this node only.
    Local,
}

impl TrafficPolicy {
    /// As Kubernetes spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cluster => "Cluster",
            Self::Local => "Local",
        }
    }
}

/// The balancing algorithms that an annotation or the configuration can name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Algorithm {
    /// Each backend in turn over a shuffled list.
    #[default]
    RoundRobin,
    /// The backend with the fewest flows at this moment.
    LeastConnection,
    /// Of two backends at random the one with fewer flows.
    RandomTwoChoices,
    /// The backend that a hash of the client's address names; few clients move when backends come or go.
    Maglev,
}

impl Algorithm {
    /// All of them, by the name that users write.
    pub const ALL: [(&'static str, Self); 4] = [
        ("round-robin", Self::RoundRobin),
        ("least-connection", Self::LeastConnection),
        ("random-two-choices", Self::RandomTwoChoices),
        ("maglev", Self::Maglev),
    ];

    /// The name that users write.
    pub fn as_str(self) -> &'static str {
        let known = Self::ALL.iter().find(|(_, algorithm)| *algorithm == self);
        known.map_or("", |(name, _)| name)
    }

    /// The algorithm of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, algorithm)| *algorithm)
    }
}

/// What the `viaduct.dev/` annotations of one Service ask for; `None` means the configured default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Knobs {
    /// `viaduct.dev/lb-algorithm`.
    pub algorithm: Option<Algorithm>,
    /// `viaduct.dev/connect-timeout`: how long the first attempt to reach a backend may take; each further one may take
    /// twice as long as the one before.
    pub connect_timeout: Option<Duration>,
    /// `viaduct.dev/retries`: how many attempts may follow the first.
    pub retries: Option<u8>,
    /// `viaduct.dev/max-connections`: TCP connections at a time, over all ports of the Service.
    pub max_connections: Option<NonZeroU32>,
    /// `viaduct.dev/udp-idle-timeout`.
    pub udp_idle_timeout: Option<Duration>,
    /// `viaduct.dev/proxy-protocol`: the header that tells the backend the client's address.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// `viaduct.dev/slow-start`: how long a new backend takes to get its full share of new flows.
    pub slow_start: Option<Duration>,
    /// `viaduct.dev/outlier-ejection`: when a failing backend is left out for a while.
    pub outlier_ejection: Option<OutlierEjection>,
}

impl Knobs {
    /// The most attempts that may follow the first: each takes twice as long as the one before.
    pub const MAX_RETRIES: u8 = 10;
}

/// Versions of the PROXY protocol.
///
/// Source: "The PROXY protocol, versions 1 & 2", HAProxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// A line of text.
    V1,
    /// A binary header.
    V2,
}

impl ProxyProtocol {
    /// Both with the names they are known by.
    pub const ALL: [(&'static str, Self); 2] = [("v1", Self::V1), ("v2", Self::V2)];

    /// The name.
    pub fn as_str(self) -> &'static str {
        let known = Self::ALL.iter().find(|(_, version)| *version == self);
        known.map_or("", |(name, _)| name)
    }
}

/// When a backend that fails is left out for a while. By default after three failed dials in a row: one may be a lost
/// packet, and a backend that is gone costs three clients a retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutlierEjection {
    /// Never.
    Off,
    /// After so many failed dials in a row.
    After(NonZeroU32),
}

impl Service {
    /// The cluster IP of that family.
    pub fn cluster_ip(&self, family: Family) -> Option<IpAddr> {
        self.cluster_ips
            .iter()
            .copied()
            .find(|ip| Family::of(*ip) == family)
    }
}

impl Default for OutlierEjection {
    fn default() -> Self {
        Self::After(const { NonZeroU32::new(3).expect("a literal above 0") })
    }
}

/// A text that is no rule of ejection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither off nor a number of failures from 1")]
pub struct InvalidEjection(String);

impl FromStr for OutlierEjection {
    type Err = InvalidEjection;

    fn from_str(text: &str) -> Result<Self, InvalidEjection> {
        match text {
            "off" => Ok(Self::Off),
            failures => failures
                .parse()
                .map(Self::After)
                .map_err(|_| InvalidEjection(failures.to_owned())),
        }
    }
}

impl fmt::Display for OutlierEjection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::After(failures) => failures.fmt(f),
        }
    }
}
