//! Builders for unit tests: the shortest way to a value that a test does not care about. Compiled for tests only.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use crate::model::{
    Algorithm, Endpoint, EndpointSlice, Family, Frontend, Knobs, NodeName, OutlierEjection, Port,
    Protocol, Service, ServiceKind, ServiceName, ServicePort, ServicePortKey, SliceKey, SlicePort,
    TrafficPolicy,
};
use crate::routing::{Backend, Balancer, BalancerFactory, Choice, HeldBack, Live, Route};

/// The moment at which tests begin.
pub(crate) fn start() -> Instant {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    *START
}

/// An address.
pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// An address and port.
pub(crate) fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A TCP frontend.
pub(crate) fn tcp(text: &str) -> Frontend {
    Frontend::new(addr(text), Protocol::Tcp)
}

/// A UDP frontend.
pub(crate) fn udp(text: &str) -> Frontend {
    Frontend::new(addr(text), Protocol::Udp)
}

/// A port.
pub(crate) fn port(number: u16) -> Port {
    Port::try_from(i32::from(number)).unwrap()
}

/// A node's name.
pub(crate) fn node_name(name: &str) -> NodeName {
    NodeName::parse(name).unwrap()
}

/// The Service `default/name`.
pub(crate) fn service_name(name: &str) -> ServiceName {
    ServiceName::new("default", name)
}

/// The unnamed IPv4 TCP port of the Service `default/name`.
pub(crate) fn port_key(name: &str) -> ServicePortKey {
    ServicePortKey {
        service: service_name(name),
        port: "".into(),
        protocol: Protocol::Tcp,
        family: Family::V4,
    }
}

/// `default/name` of type ClusterIP, with these cluster IPs (separated by blanks) and the unnamed port 80/TCP.
pub(crate) fn service(name: &str, cluster_ips: &str) -> Service {
    Service {
        name: service_name(name),
        kind: ServiceKind::ClusterIp,
        cluster_ips: cluster_ips.split_whitespace().map(ip).collect(),
        ports: vec![service_port("", Protocol::Tcp, 80)],
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        sctp_ports: Vec::new(),
        source_ranges: Vec::new(),
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        affinity: None,
        health_check_node_port: None,
        foreign_proxy: false,
        knobs: Knobs::default(),
    }
}

/// A port without a node port.
pub(crate) fn service_port(name: &str, protocol: Protocol, number: u16) -> ServicePort {
    ServicePort {
        name: name.into(),
        protocol,
        port: port(number),
        node_port: None,
    }
}

/// `default/name` of the Service `default/service`, with the unnamed port 8080/TCP and the family of its first
/// endpoint.
pub(crate) fn slice(
    name: &str,
    service: &str,
    endpoints: impl IntoIterator<Item = Endpoint>,
) -> EndpointSlice {
    let endpoints: Vec<Endpoint> = endpoints.into_iter().collect();
    EndpointSlice {
        key: slice_key(name),
        service: service_name(service),
        family: endpoints
            .first()
            .map_or(Family::V4, |e| Family::of(e.addresses[0])),
        ports: vec![slice_port("", Protocol::Tcp, 8080)],
        endpoints,
        sctp_ports: Vec::new(),
        headless: false,
        triggered: None,
    }
}

/// The slice `default/name`.
pub(crate) fn slice_key(name: &str) -> SliceKey {
    SliceKey {
        namespace: "default".into(),
        name: name.into(),
    }
}

/// A port of a slice.
pub(crate) fn slice_port(name: &str, protocol: Protocol, port: u16) -> SlicePort {
    SlicePort {
        name: name.into(),
        protocol,
        port,
    }
}

/// A ready endpoint on no node.
pub(crate) fn ep(address: &str) -> Endpoint {
    Endpoint {
        addresses: [ip(address)].into(),
        ready: true,
        serving: true,
        terminating: false,
        node: None,
        zone: None,
        hostname: None,
        pod: None,
        hints: None,
    }
}

/// Ways in which an endpoint differs from [`ep`].
pub(crate) trait EndpointWith: Sized {
    /// Not ready, and not serving either.
    fn unready(self) -> Self;
    /// Terminating and no longer ready; still serving.
    fn terminating(self) -> Self;
    /// Serving, whatever else.
    fn serving(self, serving: bool) -> Self;
    /// On that node.
    fn on(self, node: &str) -> Self;
    /// Hinted to those zones.
    fn for_zones(self, zones: &[&str]) -> Self;
    /// Hinted to those nodes.
    fn for_nodes(self, nodes: &[&str]) -> Self;
}

impl EndpointWith for Endpoint {
    fn unready(self) -> Self {
        Self {
            ready: false,
            serving: false,
            ..self
        }
    }

    fn terminating(self) -> Self {
        Self {
            ready: false,
            terminating: true,
            ..self
        }
    }

    fn serving(self, serving: bool) -> Self {
        Self { serving, ..self }
    }

    fn on(self, node: &str) -> Self {
        Self {
            node: NodeName::parse(node),
            ..self
        }
    }

    fn for_zones(mut self, zones: &[&str]) -> Self {
        let hints = self.hints.get_or_insert_default();
        hints.zones = zones.iter().copied().map(Into::into).collect();
        self
    }

    fn for_nodes(mut self, nodes: &[&str]) -> Self {
        let hints = self.hints.get_or_insert_default();
        hints.nodes = nodes.iter().copied().map(Into::into).collect();
        self
    }
}

/// A fresh backend.
pub(crate) fn backend(addr: SocketAddr) -> Arc<Backend> {
    Arc::new(Backend {
        addr,
        node: None,
        pod: None,
        live: Arc::new(Live::default()),
        held_back: Arc::default(),
    })
}

/// The backends of one service port, that share who is held back; ejected after so many failures in a row.
pub(crate) fn backends_ejected_after(failures: u32, n: u8) -> (Arc<HeldBack>, Vec<Arc<Backend>>) {
    let held_back = Arc::new(HeldBack::default());
    let failures = NonZeroU32::new(failures);
    held_back.set_rule(failures.map_or(OutlierEjection::Off, OutlierEjection::After));
    let backends = backends(n).into_iter().map(|backend| {
        Arc::new(Backend {
            addr: backend.addr,
            node: None,
            pod: None,
            live: backend.live.clone(),
            held_back: held_back.clone(),
        })
    });
    (held_back.clone(), backends.collect())
}

/// Backends at 10.1.0.1:8080, 10.1.0.2:8080 and so on; at most 255.
pub(crate) fn backends(n: u8) -> Vec<Arc<Backend>> {
    (1..=n)
        .map(|last| backend(SocketAddr::from(([10, 1, 0, last], 8080))))
        .collect()
}

/// A choice of 192.0.2.1 at the [`start`].
pub(crate) fn choice<'a>(backends: &'a [Arc<Backend>], tried: &'a [SocketAddr]) -> Choice<'a> {
    Choice {
        client: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
        backends,
        tried,
        passed_over: &[],
        warming: None,
        now: start(),
    }
}

/// Picks the first candidate that has not been tried.
#[derive(Debug)]
pub(crate) struct FirstUntried;

impl Balancer for FirstUntried {
    fn pick(&self, choice: &Choice<'_>) -> Option<usize> {
        (0..choice.backends.len()).find(|index| choice.is_open(*index))
    }
}

impl BalancerFactory for FirstUntried {
    fn make(&self, _algorithm: Algorithm, _affinity: Option<Duration>) -> Arc<dyn Balancer> {
        Arc::new(Self)
    }
}

/// A route of `key` at port 80 without addresses and backends.
pub(crate) fn route(key: ServicePortKey) -> Route {
    Route {
        key,
        port: 80,
        cluster: Vec::new(),
        local: Vec::new(),
        known: Default::default(),
        any_endpoints: false,
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        algorithm: Algorithm::default(),
        affinity: None,
        knobs: Knobs::default(),
        frontends: Vec::new(),
        node_port: None,
        source_ranges: Vec::new(),
        balancer: Arc::new(FirstUntried),
        held_back: Arc::default(),
        load: Arc::default(),
    }
}
