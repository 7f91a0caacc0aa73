//! A small cluster for the tests of this folder.
//!
//! Objects go through [`TableBuilder`], so that the tests read what a running server reads.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use prometheus::Registry;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::model::{
    Algorithm, Endpoint, EndpointSlice, Event, Family, Frontend, Knobs, Pod, Port, Protocol,
    Service, ServiceKind, ServiceName, ServicePort, SliceKey, SlicePort, TrafficPolicy,
};
use crate::routing::{Balancer, BalancerFactory, Choice, Published, RoutingTable, TableBuilder};

use super::exchange::Exchange;
use super::forward::{Forwarder, Upstreams};
use super::health::Probes;
use super::names::Zone;
use super::records::Authority;
use super::{Limits, Metrics, PodMode, UpstreamOrder};

use Protocol::{Tcp, Udp};

/// DNS never asks for a balancer, but every route has one.
#[derive(Debug)]
struct Unused;

impl Balancer for Unused {
    fn pick(&self, _choice: &Choice<'_>) -> Option<usize> {
        None
    }
}

impl BalancerFactory for Unused {
    fn make(&self, _algorithm: Algorithm, _affinity: Option<Duration>) -> Arc<dyn Balancer> {
        Arc::new(Self)
    }
}

/// A builder without anything.
pub(super) fn empty() -> TableBuilder {
    TableBuilder::new(Arc::new(Unused), Algorithm::default())
}

/// The cluster that the tests ask about. Every Service is in the namespace `ns`; `bare` is a namespace without any.
pub(super) fn cluster() -> TableBuilder {
    let mut builder = empty();
    for namespace in ["ns", "bare", "kube-system"] {
        builder.apply(Event::NamespaceApplied(namespace.into()));
    }
    let http: &[_] = &[("http", Tcp, 80)];
    let many: &[_] = &[
        ("http", Tcp, 80),
        ("dns", Udp, 53),
        ("dns-tcp", Tcp, 53),
        ("", Tcp, 9),
    ];
    let services = [
        ("web", ServiceKind::ClusterIp, "10.96.0.1", http),
        (
            "dual",
            ServiceKind::NodePort,
            "10.96.0.2 fd00:10:96::2",
            http,
        ),
        ("many", ServiceKind::LoadBalancer, "10.96.0.3", many),
        ("idle", ServiceKind::ClusterIp, "10.96.0.4", http),
        ("db", ServiceKind::Headless, "", http),
        ("six", ServiceKind::Headless, "", http),
        ("sick", ServiceKind::Headless, "", http),
        ("none", ServiceKind::Headless, "", http),
        ("plain", ServiceKind::Headless, "", http),
    ];
    for (name, kind, ips, ports) in services {
        builder.apply(service(name, kind, ips, ports));
    }
    let aliases = [
        ("out", "Www.Example.Com."),
        ("in", "web.ns.svc.cluster.local"),
        ("in-twice", "in.ns.svc.cluster.local"),
        ("to-out", "out.ns.svc.cluster.local"),
        ("lost", "gone.ns.svc.cluster.local"),
        ("itself", "itself.ns.svc.cluster.local"),
        ("ring-a", "ring-b.ns.svc.cluster.local"),
        ("ring-b", "ring-a.ns.svc.cluster.local"),
        ("address", "192.0.2.7"),
        ("nonsense", "a..b"),
    ];
    for (name, target) in aliases {
        builder.apply(service(
            name,
            ServiceKind::ExternalName(target.into()),
            "",
            http,
        ));
    }
    builder.apply(slice(
        "web-1",
        "web",
        http,
        &[ready("10.1.0.1", Some("w-0")), ready("10.1.0.2", None)],
    ));
    builder.apply(slice(
        "db-4",
        "db",
        &[("http", Tcp, 8080), ("admin", Tcp, 9000)],
        &[
            ready("10.1.1.1", Some("db-0")),
            ready("10.1.1.2", Some("db-1")),
            ready("10.1.1.3", None),
        ],
    ));
    // The same Pod in a second slice while slices are rebalanced, and its address of the other family.
    builder.apply(slice(
        "db-4b",
        "db",
        &[("http", Tcp, 8080)],
        &[ready("10.1.1.2", Some("db-1"))],
    ));
    builder.apply(slice(
        "db-6",
        "db",
        &[("http", Tcp, 8080)],
        &[ready("fd00:1::1", Some("db-0"))],
    ));
    builder.apply(slice(
        "six-6",
        "six",
        http,
        &[ready("fd00:1:2::", None), ready("fd00:1::7", None)],
    ));
    let unready = Endpoint {
        ready: false,
        ..ready("10.1.2.1", Some("s-0"))
    };
    builder.apply(slice("sick-4", "sick", http, &[unready]));
    builder.apply(slice("plain-4", "plain", &[], &[ready("10.1.3.1", None)]));
    builder.apply(slice(
        "ghost-4",
        "ghost",
        http,
        &[ready("10.1.4.1", Some("g-0"))],
    ));
    // A Pod behind two Services.
    builder.apply(slice("many-4", "many", http, &[ready("10.1.1.1", None)]));
    builder.apply(pod("one", "10.1.0.1", false));
    builder.apply(pod("done", "10.1.0.9", true));
    builder
}

/// The table of [`cluster`], all sources read.
pub(super) fn table() -> RoutingTable {
    let mut builder = cluster();
    builder.set_synced();
    (*builder.build().table).clone()
}

/// A Service in `ns`; cluster IPs are separated by blanks.
pub(super) fn service(
    name: &str,
    kind: ServiceKind,
    ips: &str,
    ports: &[(&str, Protocol, u16)],
) -> Event {
    Event::ServiceApplied(Arc::new(Service {
        name: ServiceName::new("ns", name),
        kind,
        cluster_ips: ips.split_whitespace().map(ip).collect(),
        ports: ports
            .iter()
            .map(|(name, protocol, port)| ServicePort {
                name: (*name).into(),
                protocol: *protocol,
                port: Port::try_from(i32::from(*port)).unwrap(),
                node_port: None,
            })
            .collect(),
        sctp_ports: Vec::new(),
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        source_ranges: Vec::new(),
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        affinity: None,
        health_check_node_port: None,
        foreign_proxy: false,
        knobs: Knobs::default(),
    }))
}

/// A slice in `ns`, of the family of its first endpoint.
pub(super) fn slice(
    name: &str,
    service: &str,
    ports: &[(&str, Protocol, u16)],
    endpoints: &[Endpoint],
) -> Event {
    Event::SliceApplied(Arc::new(EndpointSlice {
        key: SliceKey {
            namespace: "ns".into(),
            name: name.into(),
        },
        service: ServiceName::new("ns", service),
        family: Family::of(endpoints[0].addresses[0]),
        ports: ports
            .iter()
            .map(|(name, protocol, port)| SlicePort {
                name: (*name).into(),
                protocol: *protocol,
                port: *port,
            })
            .collect(),
        sctp_ports: Vec::new(),
        endpoints: endpoints.to_vec(),
        headless: false,
        triggered: None,
    }))
}

/// A ready endpoint.
pub(super) fn ready(address: &str, hostname: Option<&str>) -> Endpoint {
    Endpoint {
        addresses: [ip(address)].into(),
        ready: true,
        serving: true,
        terminating: false,
        node: None,
        zone: None,
        hostname: hostname.map(Into::into),
        pod: None,
        hints: None,
    }
}

/// An address.
pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A frontend over TCP.
pub(super) fn tcp(address: &str) -> Frontend {
    Frontend::new(address.parse().unwrap(), Tcp)
}

/// A Pod in `ns`.
pub(super) fn pod(name: &str, address: &str, finished: bool) -> Event {
    Event::PodApplied(Arc::new(Pod {
        namespace: "ns".into(),
        name: name.into(),
        ips: vec![ip(address)],
        finished,
        host_network: false,
    }))
}

/// What the tests answer for: the namespaces of [`cluster`] under two domains.
pub(super) fn authority() -> Authority {
    Authority {
        zones: vec![
            Zone::parse("cluster.local").unwrap(),
            Zone::parse("other.example").unwrap(),
        ],
        pods: PodMode::Insecure,
        dns_service: ServiceName::new("kube-system", "kube-dns"),
        own_addresses: vec![ip("127.0.0.1")],
        hide_empty: false,
        ttl: 5,
        negative_ttl: 7,
        max_aliases: 10,
        owned_ranges: vec![
            "10.96.0.0/16".parse().unwrap(),
            "fd00:10:96::/112".parse().unwrap(),
        ],
    }
}

/// The cluster with a crowd, all sources read.
pub(super) fn crowded() -> TableBuilder {
    let mut builder = cluster();
    let crowd: Vec<_> = (0..60)
        .map(|n| ready(&format!("10.2.0.{n}"), None))
        .collect();
    builder.apply(service("crowd", ServiceKind::Headless, "", &[]));
    builder.apply(slice("crowd-1", "crowd", &[("http", Tcp, 80)], &crowd));
    builder.set_synced();
    builder
}

/// An exchange over what `builder` knows by now, and what asks `upstreams` for it.
pub(super) fn answering(
    builder: &mut TableBuilder,
    upstreams: Upstreams,
) -> (Exchange, Arc<Forwarder>) {
    let table = Published::default();
    table.publish(builder.build().table);
    let metrics = Arc::new(Metrics::new(&Registry::new()).unwrap());
    let limits = Arc::new(Limits::default());
    let probes = Probes {
        tasks: TaskTracker::new(),
        stop: CancellationToken::new(),
        metrics: metrics.clone(),
    };
    let order = UpstreamOrder::Random;
    let forwarder = Arc::new(Forwarder::new(upstreams, order, &limits, probes));
    let exchange = Exchange::new(authority(), table, forwarder.clone(), limits, metrics);
    (exchange, forwarder)
}
