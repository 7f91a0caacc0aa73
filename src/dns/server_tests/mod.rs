//! The server over real sockets on loopback: a client of hickory-proto's messages on one side, a scripted upstream on
//! the other.

mod answers;
mod completion;
mod connections;
mod ending;
mod limits;
mod messages;
mod mutations;
mod relaying;
mod starting;
mod upstreams;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RecordType};
use prometheus::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::super::fixture::{answering, cluster, pod, ready, service, slice};
use super::super::stub::Stub;
use super::super::wire::layout;
use super::super::{Config, Limits, Metrics, PodMode, UpstreamOrder};
use super::*;
use crate::model::{Protocol, ServiceKind, ServiceName};
use crate::routing::TableBuilder;

const PATIENCE: Duration = Duration::from_secs(10);

struct Client {
    registry: Registry,
    server: Server,
    at: SocketAddr,
    metrics: Arc<Metrics>,
}

async fn start(upstreams: Vec<SocketAddr>) -> Client {
    start_with(upstreams, Vec::new()).await
}

async fn start_with(upstreams: Vec<SocketAddr>, domains: Vec<(String, SocketAddr)>) -> Client {
    start_as(upstreams, |config| config.domain_upstreams = domains).await
}

async fn start_as(upstreams: Vec<SocketAddr>, adjust: impl FnOnce(&mut Config)) -> Client {
    let mut builder = crowded();
    builder.set_synced();
    serve(builder, upstreams, adjust).await
}

// The fixture's cluster with Services of many endpoints and aliases to names of the stub.
fn crowded() -> TableBuilder {
    let mut builder = cluster();
    let legion: Vec<_> = (0..5000)
        .map(|n| ready(&format!("10.3.{}.{}", n / 250, n % 250), None))
        .collect();
    builder.apply(service("legion", ServiceKind::Headless, "", &[]));
    builder.apply(slice("legion-1", "legion", &[], &legion));
    let crowd: Vec<_> = (0..150)
        .map(|n| ready(&format!("10.2.0.{n}"), None))
        .collect();
    builder.apply(service("crowd", ServiceKind::Headless, "", &[]));
    let http = [("http", Protocol::Tcp, 80)];
    builder.apply(slice("crowd-1", "crowd", &http, &crowd));
    for name in ["www", "gone", "servfail", "big"] {
        let alias = ServiceKind::ExternalName(format!("{name}.test").into());
        builder.apply(service(&format!("out-{name}"), alias, "", &[]));
    }
    builder.apply(pod("client", "127.0.0.1", false));
    builder
}

// A server of what `builder` knows by now.
async fn serve(
    mut builder: TableBuilder,
    upstreams: Vec<SocketAddr>,
    adjust: impl FnOnce(&mut Config),
) -> Client {
    let table = Published::default();
    table.publish(builder.build().table);
    let mut config = Config {
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        domains: vec!["cluster.local".to_owned()],
        upstreams,
        upstream_order: UpstreamOrder::Random,
        domain_upstreams: Vec::new(),
        pods: PodMode::Insecure,
        dns_service: ServiceName::new("kube-system", "kube-dns"),
        hide_empty: false,
        search_completion: None,
        ttl: 5,
        negative_ttl: 5,
        limits: Limits::default(),
        succession: None,
        owned_ranges: vec!["10.96.0.0/16".parse().unwrap()],
    };
    adjust(&mut config);
    let registry = Registry::new();
    let metrics = Arc::new(Metrics::new(&registry).unwrap());
    let server = Server::start(config, table, metrics.clone()).await.unwrap();
    let at = server.addresses()[0];
    Client {
        registry,
        server,
        at,
        metrics,
    }
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn with_edns(mut message: Message, payload: u16, dnssec_ok: bool) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(payload).set_dnssec_ok(dnssec_ok);
    message.set_edns(edns);
    message
}

fn data(message: &Message) -> Vec<String> {
    message
        .answers
        .iter()
        .map(|record| record.data.to_string())
        .collect()
}

// The sum over all labels.
fn total_of(counters: &prometheus::IntCounterVec) -> f64 {
    let families = prometheus::core::Collector::collect(counters);
    let metrics = families.iter().flat_map(|family| family.get_metric());
    metrics.map(|metric| metric.get_counter().get_value()).sum()
}

impl Client {
    async fn udp(&self, message: &Message) -> Message {
        let octets = self.udp_octets(&message.to_vec().unwrap()).await;
        Message::from_vec(&octets).unwrap()
    }

    async fn udp_octets(&self, message: &[u8]) -> Vec<u8> {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(self.at).await.unwrap();
        socket.send(message).await.unwrap();
        let mut buffer = vec![0; 65_535];
        let received = tokio::time::timeout(PATIENCE, socket.recv(&mut buffer)).await;
        buffer.truncate(received.expect("no reply").unwrap());
        let end = layout(&buffer).unwrap().end();
        assert_eq!(buffer.len(), end, "octets behind the last record");
        buffer
    }

    async fn tcp(&self, message: &Message) -> Message {
        let mut stream = TcpStream::connect(self.at).await.unwrap();
        send(&mut stream, message).await;
        receive(&mut stream).await
    }

    async fn ask(&self, name: &str, kind: RecordType) -> Message {
        self.udp(&query(name, kind)).await
    }
}

async fn send(stream: &mut TcpStream, message: &Message) {
    let octets = message.to_vec().unwrap();
    let mut framed = u16::try_from(octets.len()).unwrap().to_be_bytes().to_vec();
    framed.extend(octets);
    stream.write_all(&framed).await.unwrap();
}

async fn receive(stream: &mut TcpStream) -> Message {
    let reading = async {
        let length = stream.read_u16().await.unwrap();
        let mut octets = vec![0; usize::from(length)];
        stream.read_exact(&mut octets).await.unwrap();
        octets
    };
    let octets = tokio::time::timeout(PATIENCE, reading)
        .await
        .expect("no reply");
    assert_eq!(octets.len(), layout(&octets).unwrap().end());
    Message::from_vec(&octets).unwrap()
}
