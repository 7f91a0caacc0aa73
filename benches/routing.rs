//! What the routing table, a pick and the answer to a name cost.
//!
//! * `table/from_nothing/N`: N Services of one port with 10 endpoints each; elements are Services.
//! * `table/one_change/N`: one slice of one Service changes among N; one element.
//! * `pick/ALGORITHM`: one choice among 10 backends; one element.
//! * `name/N`: one answer with the address of one of N Services, past everything that is remembered; one element.
//!
//! `cargo bench --bench routing`; the last figures are in README.md beside this file.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use viaduct::balancers::Algorithms;
use viaduct::dns::PacketPath;
use viaduct::model::{
    Algorithm, Endpoint, EndpointSlice, Event, Family, Knobs, Port, Protocol, Service, ServiceKind,
    ServiceName, ServicePort, ServicePortKey, SliceKey, SlicePort, TrafficPolicy,
};
use viaduct::routing::{BalancerFactory, Choice, TableBuilder};

const ENDPOINTS: u32 = 10;

fn name(n: u32) -> ServiceName {
    ServiceName::new("default", format!("service-{n}"))
}

fn service(n: u32) -> Event {
    Event::ServiceApplied(Arc::new(Service {
        name: name(n),
        kind: ServiceKind::ClusterIp,
        cluster_ips: vec![IpAddr::V4(Ipv4Addr::from(0x0a60_0000 + n))],
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

fn slice(n: u32, endpoints: u32) -> Event {
    let endpoint = |i: u32| Endpoint {
        addresses: [IpAddr::V4(Ipv4Addr::from(0x0af4_0000 + n * ENDPOINTS + i))].into(),
        ready: true,
        serving: true,
        terminating: false,
        node: None,
        zone: None,
        hostname: None,
        pod: None,
        hints: None,
    };
    Event::SliceApplied(Arc::new(EndpointSlice {
        key: SliceKey {
            namespace: "default".into(),
            name: format!("service-{n}-slice").into(),
        },
        service: name(n),
        family: Family::V4,
        ports: vec![SlicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 8080,
        }],
        sctp_ports: Vec::new(),
        endpoints: (0..endpoints).map(endpoint).collect(),
        headless: false,
        triggered: None,
    }))
}

fn builder(services: u32) -> TableBuilder {
    let mut builder = TableBuilder::new(Arc::new(Algorithms::default()), Algorithm::RoundRobin);
    for n in 0..services {
        builder.apply(service(n));
        builder.apply(slice(n, ENDPOINTS));
    }
    builder
}

fn table(c: &mut Criterion) {
    let mut group = c.benchmark_group("table");
    group.sample_size(10);
    for services in [1_000, 10_000] {
        group.throughput(Throughput::Elements(services.into()));
        group.bench_function(BenchmarkId::new("from_nothing", services), |b| {
            b.iter_batched_ref(
                || builder(services),
                |builder| black_box(builder.build()),
                BatchSize::LargeInput,
            );
        });
        group.throughput(Throughput::Elements(1));
        group.bench_function(BenchmarkId::new("one_change", services), |b| {
            let mut builder = builder(services);
            builder.build();
            let mut endpoints = ENDPOINTS;
            b.iter(|| {
                endpoints = if endpoints == ENDPOINTS {
                    ENDPOINTS - 1
                } else {
                    ENDPOINTS
                };
                builder.apply(slice(7, endpoints));
                black_box(builder.build())
            });
        });
    }
}

fn pick(c: &mut Criterion) {
    let mut group = c.benchmark_group("pick");
    group.throughput(Throughput::Elements(1));
    let table = builder(1).build().table;
    let key = ServicePortKey {
        service: name(0),
        port: "http".into(),
        protocol: Protocol::Tcp,
        family: Family::V4,
    };
    let backends = &table.route(&key).expect("the only route").cluster;
    let hour = Some(Duration::from_secs(3600));
    for (label, algorithm, affinity) in [
        ("round-robin", Algorithm::RoundRobin, None),
        ("least-connection", Algorithm::LeastConnection, None),
        ("random-two-choices", Algorithm::RandomTwoChoices, None),
        ("maglev", Algorithm::Maglev, None),
        ("affinity", Algorithm::RoundRobin, hour),
    ] {
        let balancer = Algorithms::default().make(algorithm, affinity);
        let mut client = 0_u32;
        group.bench_function(label, |b| {
            b.iter(|| {
                client = (client + 1) % 1000;
                balancer.pick(&Choice {
                    client: IpAddr::V4(Ipv4Addr::from(0xc000_0200 + client)),
                    backends,
                    tried: &[],
                    passed_over: &[],
                    warming: None,
                    now: Instant::now(),
                })
            });
        });
    }
}

fn names(c: &mut Criterion) {
    let mut group = c.benchmark_group("name");
    group.throughput(Throughput::Elements(1));
    for services in [10, 1_000, 10_000] {
        let mut builder = builder(services);
        builder.set_synced();
        let path = PacketPath::new((*builder.build().table).clone()).expect("metrics of its own");
        // The same number of names each time, all over the table.
        let asked: Vec<Vec<u8>> = (0..1_000).map(|n| question(n * 7919 % services)).collect();
        let mut next = 0;
        group.bench_function(BenchmarkId::from_parameter(services), |b| {
            b.iter(|| {
                next = (next + 1) % asked.len();
                path.answer(&asked[next]).expect("an answer")
            });
        });
    }
}

fn question(n: u32) -> Vec<u8> {
    let name = format!("service-{n}.default.svc.cluster.local.");
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(
        Name::from_ascii(name).expect("a name"),
        RecordType::A,
    ));
    message.to_vec().expect("a question")
}

criterion_group!(benches, table, pick, names);
criterion_main!(benches);
