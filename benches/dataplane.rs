//! The data path on loopback, with a real table and balancer, client and backend in the same process: what a bulk
//! stream carries (1 MiB pieces, GiB/s), what a small request costs (64 B each way), what a connection costs (opened, one
//! byte each way, closed), and what a datagram costs (64 B each way, 64 at a time) in one flow and over 1,000 flows,
//! which is the flow table's price.
//!
//! Loopback shares the cores among all three, so figures are for comparing commits; proxies are compared by the
//! namespace rig (`benches/README.md`).

use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use prometheus::Registry;
use tokio::runtime::Runtime;
use viaduct::balancers::Algorithms;
use viaduct::capture::plan::{Callers, Entry, ListenerId, ListenerSpec, ListenerState, Tenure};
use viaduct::dataplane::{Config, Dataplane, Metrics};
use viaduct::model::{
    Algorithm, Endpoint, EndpointSlice, Event, Family, Frontend, Knobs, Port, Protocol, Service,
    ServiceKind, ServiceName, ServicePort, ServicePortKey, SliceKey, SlicePort, TrafficPolicy,
};
use viaduct::routing::{FrontendKind, NodeView, Published, TableBuilder};

const PIECE: usize = 1 << 20;
const SMALL: usize = 64;
const BATCH: usize = 64;
const FLOWS: usize = 1_000;

/// A data path with one Service that has one backend, and where clients reach it.
struct Proxy {
    _runtime: Runtime,
    _plane: Dataplane,
    at: SocketAddr,
}

impl Proxy {
    fn start(protocol: Protocol, backend: SocketAddr) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let metrics = Metrics::new(&Registry::new()).expect("a new registry");
        let published = Published::default();
        let mut builder = TableBuilder::new(Arc::new(Algorithms::default()), Algorithm::RoundRobin);
        builder.set_node(NodeView::default());
        builder.apply(Event::ServiceApplied(Arc::new(service(protocol))));
        builder.apply(Event::SliceApplied(Arc::new(slice(protocol, backend))));
        published.publish(builder.build().table);
        let config = Config::default();
        let plane = Dataplane::start(config, published, Arc::new(metrics)).expect("data threads");
        let at = runtime.block_on(plane.open(&listener(protocol)));
        Self {
            at: at.expect("a free port"),
            _runtime: runtime,
            _plane: plane,
        }
    }
}

fn name() -> ServiceName {
    ServiceName::new("bench", "web")
}

fn service(protocol: Protocol) -> Service {
    Service {
        name: name(),
        kind: ServiceKind::ClusterIp,
        cluster_ips: vec![cluster_ip(protocol).ip],
        ports: vec![ServicePort {
            name: "".into(),
            protocol,
            port: Port::try_from(80).expect("not zero"),
            node_port: None,
        }],
        external_ips: vec![],
        load_balancer_ips: vec![],
        source_ranges: vec![],
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        affinity: None,
        health_check_node_port: None,
        foreign_proxy: false,
        sctp_ports: vec![],
        knobs: Knobs::default(),
    }
}

fn slice(protocol: Protocol, backend: SocketAddr) -> EndpointSlice {
    EndpointSlice {
        key: SliceKey {
            namespace: "bench".into(),
            name: "web-1".into(),
        },
        service: name(),
        family: Family::V4,
        ports: vec![SlicePort {
            name: "".into(),
            protocol,
            port: backend.port(),
        }],
        endpoints: vec![Endpoint {
            addresses: [backend.ip()].into(),
            ready: true,
            serving: true,
            terminating: false,
            node: None,
            zone: None,
            hostname: None,
            pod: None,
            hints: None,
        }],
        sctp_ports: Vec::new(),
        headless: false,
        triggered: None,
    }
}

fn cluster_ip(protocol: Protocol) -> Frontend {
    Frontend {
        ip: "10.96.0.1".parse().expect("an address"),
        port: 80,
        protocol,
    }
}

fn listener(protocol: Protocol) -> ListenerSpec {
    let route = ServicePortKey {
        service: name(),
        port: "".into(),
        protocol,
        family: Family::V4,
    };
    let entry = Entry::At(cluster_ip(protocol), FrontendKind::ClusterIp);
    ListenerSpec {
        id: ListenerId { route, entry },
        bind: "127.0.0.1:0".parse().expect("an address"),
        state: ListenerState::Serving,
        callers: Callers::All,
        tenure: Tenure::Owned,
    }
}

/// A TCP backend that gives every connection to `serve` in a thread of its own.
fn backend(serve: fn(TcpStream)) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = listener.local_addr().expect("bound");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || serve(stream));
        }
    });
    addr
}

fn echo(mut stream: TcpStream) {
    let mut buffer = [0; SMALL];
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..n]).is_err() {
            return;
        }
    }
}

// Says one byte per piece that has arrived.
fn sink(mut stream: TcpStream) {
    let mut buffer = vec![0; PIECE];
    while stream.read_exact(&mut buffer).is_ok() && stream.write_all(b".").is_ok() {}
}

fn connect(at: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(at).expect("the proxy listens");
    stream.set_nodelay(true).expect("a TCP socket");
    stream
}

fn relay(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("relay");
    let bulk = Proxy::start(Protocol::Tcp, backend(sink));
    let mut stream = connect(bulk.at);
    let piece = vec![7; PIECE];
    group.throughput(Throughput::Bytes(PIECE as u64));
    group.bench_function("bulk, 1 MiB pieces", |bencher| {
        bencher.iter(|| {
            stream.write_all(&piece).expect("it reads");
            stream.read_exact(&mut [0]).expect("it says so");
        });
    });
    let small = Proxy::start(Protocol::Tcp, backend(echo));
    let mut stream = connect(small.at);
    group.throughput(Throughput::Elements(1));
    group.bench_function("64 B request and answer", |bencher| {
        let mut buffer = [1; SMALL];
        bencher.iter(|| {
            stream.write_all(&buffer).expect("it reads");
            stream.read_exact(&mut buffer).expect("it answers");
            black_box(buffer[0])
        });
    });
    group.bench_function("connection with 1 B each way", |bencher| {
        bencher.iter(|| {
            let mut stream = connect(small.at);
            stream.write_all(b"x").expect("it reads");
            stream.read_exact(&mut [0]).expect("it answers");
        });
    });
    group.finish();
}

fn udp_echo() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let addr = socket.local_addr().expect("bound");
    thread::spawn(move || {
        let mut buffer = [0; SMALL];
        while let Ok((n, from)) = socket.recv_from(&mut buffer) {
            let _client_gone = socket.send_to(&buffer[..n], from);
        }
    });
    addr
}

fn datagrams(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("datagrams");
    let proxy = Proxy::start(Protocol::Udp, udp_echo());
    let client = || {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        socket.connect(proxy.at).expect("an address");
        let patience = Duration::from_secs(5);
        socket.set_read_timeout(Some(patience)).expect("not zero");
        socket
    };
    group.throughput(Throughput::Elements(BATCH as u64));
    for flows in [1, FLOWS] {
        let clients: Vec<_> = (0..flows).map(|_| client()).collect();
        let mut next = clients.iter().cycle();
        group.bench_function(
            format!("64 B each way, 64 at a time, flows: {flows}"),
            |bencher| {
                bencher.iter(|| {
                    let turn: Vec<_> = next.by_ref().take(BATCH).collect();
                    for client in &turn {
                        client.send(&[1; SMALL]).expect("a socket");
                    }
                    for client in &turn {
                        client.recv(&mut [0; SMALL]).expect("nothing is lost");
                    }
                });
            },
        );
    }
    group.finish();
}

criterion_group!(benches, relay, datagrams);
criterion_main!(benches);
