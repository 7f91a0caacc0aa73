//! The cluster that fuzzed questions are asked about: one Service of each kind that DNS tells apart.

use std::net::IpAddr;
use std::sync::Arc;

use viaduct::balancers::Algorithms;
use viaduct::model::{
    Algorithm, Endpoint, EndpointSlice, Event, Family, Knobs, Port, Protocol, Service, ServiceKind,
    ServiceName, ServicePort, SliceKey, SlicePort, TrafficPolicy,
};
use viaduct::routing::{RoutingTable, TableBuilder};

/// More than fit into a datagram.
const CROWD: u8 = 150;

/// Names of `ns`, all sources read.
pub(crate) fn table() -> RoutingTable {
    let mut builder = TableBuilder::new(Arc::new(Algorithms::default()), Algorithm::default());
    let alias = ServiceKind::ExternalName("web.ns.svc.cluster.local".into());
    let outside = ServiceKind::ExternalName("www.test".into());
    builder.apply(service("web", ServiceKind::ClusterIp, Some([10, 96, 0, 1])));
    builder.apply(service("crowd", ServiceKind::Headless, None));
    builder.apply(service("alias", alias, None));
    builder.apply(service("outside", outside, None));
    builder.apply(crowd());
    builder.set_synced();
    (*builder.build().table).clone()
}

fn service(name: &str, kind: ServiceKind, cluster_ip: Option<[u8; 4]>) -> Event {
    Event::ServiceApplied(Arc::new(Service {
        name: ServiceName::new("ns", name),
        kind,
        cluster_ips: cluster_ip.map(IpAddr::from).into_iter().collect(),
        ports: vec![ServicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: Port::try_from(80).expect("a port"),
            node_port: None,
        }],
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

fn crowd() -> Event {
    let endpoint = |n: u8| Endpoint {
        addresses: [IpAddr::from([10, 2, 0, n])].into(),
        ready: true,
        serving: true,
        terminating: false,
        node: None,
        zone: None,
        hostname: n.is_multiple_of(2).then(|| format!("crowd-{n}").into()),
        pod: None,
        hints: None,
    };
    Event::SliceApplied(Arc::new(EndpointSlice {
        key: SliceKey {
            namespace: "ns".into(),
            name: "crowd-1".into(),
        },
        service: ServiceName::new("ns", "crowd"),
        family: Family::V4,
        ports: vec![SlicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 8080,
        }],
        sctp_ports: Vec::new(),
        endpoints: (0..CROWD).map(endpoint).collect(),
        headless: true,
        triggered: None,
    }))
}
