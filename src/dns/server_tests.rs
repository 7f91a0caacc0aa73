//! The server over real sockets on loopback: a client of hickory-proto's messages on one side, a scripted upstream on
//! the other.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RecordType};
use prometheus::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::super::fixture::{cluster, pod, ready, service, slice};
use super::super::stub::Stub;
use super::super::wire::layout;
use super::super::{Config, Limits, Metrics, PodMode, UpstreamOrder};
use super::*;
use crate::model::{Protocol, ServiceKind, ServiceName};

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
    builder.apply(slice(
        "crowd-1",
        "crowd",
        &[("http", Protocol::Tcp, 80)],
        &crowd,
    ));
    let alias = |target: &str| ServiceKind::ExternalName(target.into());
    builder.apply(service("out-www", alias("www.test"), "", &[]));
    builder.apply(service("out-gone", alias("gone.test"), "", &[]));
    builder.apply(service("out-sick", alias("servfail.test"), "", &[]));
    builder.apply(pod("client", "127.0.0.1", false));
    builder.set_synced();
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

#[tokio::test]
async fn cluster_names_are_answered_over_both_transports() {
    let client = start(Vec::new()).await;
    let mut question = query("Web.NS.svc.Cluster.Local.", RecordType::A);
    question.metadata.checking_disabled = true;
    for reply in [client.udp(&question).await, client.tcp(&question).await] {
        let header = reply.metadata;
        assert_eq!(header.id, 0x1234);
        assert_eq!(header.response_code, ResponseCode::NoError);
        assert!(header.authoritative && header.recursion_available && header.recursion_desired);
        assert!(header.checking_disabled && !header.authentic_data && !header.truncation);
        assert_eq!(
            reply.queries[0].name().to_ascii(),
            "Web.NS.svc.Cluster.Local."
        );
        assert_eq!(
            reply.answers[0].name.to_ascii(),
            "Web.NS.svc.Cluster.Local."
        );
        assert_eq!(data(&reply), ["10.96.0.1"]);
        assert!(reply.edns.is_none());
    }
    let missing = client
        .ask("gone.ns.svc.cluster.local.", RecordType::A)
        .await;
    assert_eq!(missing.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(missing.authorities.len(), 1);
    assert!(missing.metadata.authoritative);
}

#[tokio::test]
async fn what_is_no_question_for_us_gets_its_rcode_or_silence() {
    let client = start(Vec::new()).await;
    let good = query("web.ns.svc.cluster.local.", RecordType::A);
    let octets = good.to_vec().unwrap();
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut octets = octets.clone();
        change(&mut octets);
        octets
    };
    let mut chaos = good.clone();
    chaos.queries[0].set_query_class(DNSClass::CH);
    let mut newer = with_edns(good.clone(), 1232, false);
    newer.edns.as_mut().unwrap().set_version(1);
    let mut two_opts = with_edns(good.clone(), 1232, false).to_vec().unwrap();
    two_opts.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
    two_opts[11] = 2;
    let transfer = query("cluster.local.", RecordType::AXFR).to_vec().unwrap();
    let rows: Vec<(&str, Vec<u8>, Option<ResponseCode>)> = vec![
        ("eleven octets", octets[..11].to_vec(), None),
        ("a response", changed(&|o| o[2] |= 0x80), None),
        (
            "no question",
            changed(&|o| o[5] = 0),
            Some(ResponseCode::FormErr),
        ),
        (
            "two questions",
            changed(&|o| o[5] = 2),
            Some(ResponseCode::FormErr),
        ),
        (
            "a cut question",
            octets[..20].to_vec(),
            Some(ResponseCode::FormErr),
        ),
        (
            "reserved label bits",
            changed(&|o| o[12] = 0x40),
            Some(ResponseCode::FormErr),
        ),
        (
            "a pointer to itself",
            changed(&|o| o[12..14].copy_from_slice(&[0xC0, 12])),
            Some(ResponseCode::FormErr),
        ),
        (
            "a record too few",
            changed(&|o| o[11] = 1),
            Some(ResponseCode::FormErr),
        ),
        ("two OPT records", two_opts, Some(ResponseCode::FormErr)),
        (
            "opcode NOTIFY",
            changed(&|o| o[2] |= 4 << 3),
            Some(ResponseCode::NotImp),
        ),
        (
            "opcode UPDATE",
            changed(&|o| o[2] |= 5 << 3),
            Some(ResponseCode::NotImp),
        ),
        (
            "class CH",
            chaos.to_vec().unwrap(),
            Some(ResponseCode::Refused),
        ),
        ("a transfer", transfer, Some(ResponseCode::Refused)),
        (
            "EDNS version 1",
            newer.to_vec().unwrap(),
            Some(ResponseCode::BADVERS),
        ),
    ];
    for (what, octets, expected) in rows {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(client.at).await.unwrap();
        socket.send(&octets).await.unwrap();
        // Replies come in order, so the next question shows that the server lives, and what silence was.
        let mut probe = good.clone();
        probe.metadata.id = 0x4321;
        socket.send(&probe.to_vec().unwrap()).await.unwrap();
        let mut buffer = vec![0; 512];
        if let Some(code) = expected {
            let length = socket.recv(&mut buffer).await.unwrap();
            let reply = Message::from_vec(&buffer[..length]).unwrap();
            // BADVERS and BADSIG share the number 16.
            assert_eq!(
                u16::from(reply.metadata.response_code),
                u16::from(code),
                "{what}"
            );
            assert_eq!(reply.metadata.id, 0x1234, "{what}");
            assert_eq!(
                reply.edns.is_some(),
                code == ResponseCode::BADVERS,
                "{what}"
            );
        }
        let length = socket.recv(&mut buffer).await.unwrap();
        let reply = Message::from_vec(&buffer[..length]).unwrap();
        assert_eq!(
            (reply.metadata.id, data(&reply).len()),
            (0x4321, 1),
            "{what}"
        );
    }
}

#[tokio::test]
async fn edns_is_answered_in_kind() {
    let client = start(Vec::new()).await;
    let question = with_edns(
        query("web.ns.svc.cluster.local.", RecordType::A),
        4096,
        true,
    );
    let edns = client.udp(&question).await.edns.expect("an OPT record");
    assert!(edns.flags().dnssec_ok);
    assert_eq!((edns.max_payload(), edns.version()), (1232, 0));
}

#[tokio::test]
async fn long_answers_are_cut_to_the_clients_size() {
    // The library must have room for the owner's name before it compresses it.
    const NAME_IN_FULL: usize = 28;
    let client = start(Vec::new()).await;
    let question = query("crowd.ns.svc.cluster.local.", RecordType::A);
    // limit, and answers of 16 octets that fit beside header, question and OPT
    let rows = [
        (question.clone(), 512),
        (with_edns(question.clone(), 100, false), 512),
        (with_edns(question.clone(), 800, false), 800),
        (with_edns(question.clone(), 65_535, false), 1232),
    ];
    for (question, limit) in rows {
        let octets = client.udp_octets(&question.to_vec().unwrap()).await;
        assert!(
            octets.len() <= limit && octets.len() + 16 + NAME_IN_FULL > limit,
            "{} of {limit}",
            octets.len()
        );
        let reply = Message::from_vec(&octets).unwrap();
        assert!(reply.metadata.truncation);
        assert_eq!(reply.edns.is_some(), question.edns.is_some());
    }
    let whole = client.tcp(&question).await;
    assert!(!whole.metadata.truncation);
    assert_eq!(data(&whole).into_iter().collect::<BTreeSet<_>>().len(), 150);
    let endless = client
        .tcp(&query("legion.ns.svc.cluster.local.", RecordType::A))
        .await;
    assert!(endless.metadata.truncation);
    // Addresses of SRV targets are no reason for another round over TCP.
    let ports = query("_http._tcp.db.ns.svc.cluster.local.", RecordType::SRV);
    assert!(!client.udp(&ports).await.metadata.truncation);
}

#[tokio::test]
async fn addresses_come_in_a_new_order_each_time() {
    let client = start(Vec::new()).await;
    let mut firsts = BTreeSet::new();
    for _ in 0..64 {
        let reply = client.ask("db.ns.svc.cluster.local.", RecordType::A).await;
        firsts.insert(data(&reply)[0].clone());
    }
    assert_eq!(firsts.len(), 3);
}

#[tokio::test]
async fn a_burst_loses_nothing() {
    let client = start(Vec::new()).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(client.at).await.unwrap();
    let mut question = query("web.ns.svc.cluster.local.", RecordType::A);
    for id in 0..100 {
        question.metadata.id = id;
        socket.send(&question.to_vec().unwrap()).await.unwrap();
    }
    let mut buffer = vec![0; 512];
    for id in 0..100 {
        let received = tokio::time::timeout(PATIENCE, socket.recv(&mut buffer)).await;
        received.expect("no reply").unwrap();
        assert_eq!(buffer[..2], u16::to_be_bytes(id));
    }
}

#[tokio::test]
async fn other_names_are_relayed_unchanged() {
    let stub = Stub::start().await;
    let client = start(vec![stub.addr]).await;
    let mut question = with_edns(query("Www.TEST.", RecordType::A), 1232, false);
    let reply = client.udp(&question).await;
    assert_eq!(reply.queries[0].name().to_ascii(), "Www.TEST.");
    assert_eq!(reply.answers[0].name.to_ascii(), "Www.TEST.");
    assert_eq!(data(&reply), ["192.0.2.80"]);
    let header = reply.metadata;
    assert!(header.recursion_available && !header.authoritative);
    assert!(
        !header.authentic_data,
        "nobody asked whether it was validated"
    );
    assert!(reply.edns.is_some());
    question.metadata.authentic_data = true;
    assert!(client.udp(&question).await.metadata.authentic_data);

    let odd = client.ask("odd.test.", RecordType::Unknown(65400)).await;
    assert_eq!(odd.answers[0].record_type(), RecordType::Unknown(65400));
    let alias = client.tcp(&query("alias.test.", RecordType::A)).await;
    assert_eq!(data(&alias), ["target.test.", "192.0.2.81"]);
    let missing = client.ask("missing.test.", RecordType::A).await;
    assert_eq!(missing.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(missing.authorities.len(), 1);
}

#[tokio::test]
async fn what_was_asked_is_remembered() {
    let stub = Stub::start().await;
    let client = start(vec![stub.addr]).await;
    for name in ["www.test.", "WWW.test.", "www.TEST."] {
        let reply = client.ask(name, RecordType::A).await;
        assert_eq!(reply.answers[0].name.to_ascii(), name);
    }
    assert_eq!(stub.asked("www.test."), 1);
    for kind in [RecordType::A, RecordType::AAAA, RecordType::TXT] {
        let reply = client.ask("missing.test.", kind).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(reply.queries[0].query_type(), kind);
    }
    assert_eq!(
        stub.asked("missing.test."),
        1,
        "a name that does not exist has no type at all"
    );
}

#[tokio::test]
async fn truncated_answers_are_fetched_over_tcp() {
    let stub = Stub::start().await;
    let client = start(vec![stub.addr]).await;
    let question = query("big.test.", RecordType::TXT);
    assert_eq!(client.tcp(&question).await.answers.len(), 12);
    let short = client.udp(&question).await;
    assert!(short.metadata.truncation && short.answers.len() < 12);
}

#[tokio::test]
async fn a_lost_datagram_is_sent_again() {
    let stub = Stub::start().await;
    let client = start(vec![stub.addr]).await;
    let reply = client.ask("dropped-once.test.", RecordType::A).await;
    assert_eq!(data(&reply), ["192.0.2.80"]);
    assert_eq!(stub.asked("dropped-once.test."), 2);
}

#[tokio::test]
async fn forged_replies_are_not_believed() {
    let stub = Stub::start().await;
    let client = start(vec![stub.addr]).await;
    assert_eq!(
        data(&client.ask("forged.test.", RecordType::A).await),
        ["192.0.2.80"]
    );
    assert_eq!(stub.asked("forged.test."), 1);
}

#[tokio::test]
async fn a_resolver_that_fails_is_passed_over() {
    let (sick, well) = (Stub::broken().await, Stub::start().await);
    let closed = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    for _ in 0..4 {
        // A new server each time: in which order they are asked is chance.
        let client = start(vec![sick.addr, closed, well.addr]).await;
        let reply = client.ask("www.test.", RecordType::A).await;
        assert_eq!(data(&reply), ["192.0.2.80"]);
    }
    let client = start(vec![sick.addr]).await;
    let reply = client.ask("www.test.", RecordType::A).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn a_refusal_without_a_question_is_understood() {
    let stub = Stub::start().await;
    let client = start(vec![stub.addr]).await;
    let reply = client.ask("curt.test.", RecordType::A).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(stub.asked("curt.test."), 1);
}

#[tokio::test]
async fn a_record_that_cannot_be_read_is_a_failure_and_not_silence() {
    let stub = Stub::start().await;
    let client = start(vec![stub.addr]).await;
    let reply = client.ask("spoilt.test.", RecordType::A).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(reply.queries[0].name().to_ascii(), "spoilt.test.");
}

#[tokio::test]
async fn a_resolver_older_than_edns_is_asked_without() {
    let stub = Stub::start().await;
    let client = start(vec![stub.addr]).await;
    let question = with_edns(query("old.test.", RecordType::A), 1232, false);
    let reply = client.udp(&question).await;
    assert_eq!(data(&reply), ["192.0.2.80"]);
    assert!(reply.edns.is_some(), "the client's EDNS is our own affair");
    assert_eq!(stub.asked("old.test."), 2);
}

#[tokio::test]
async fn a_question_that_comes_back_is_dropped() {
    // A resolver that hands our own question back to us, octet by octet.
    let mirror = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let client = start(vec![mirror.local_addr().unwrap()]).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(client.at).await.unwrap();
    let question = query("www.test.", RecordType::A).to_vec().unwrap();
    socket.send(&question).await.unwrap();
    let mut buffer = vec![0; 512];
    // The first thing it hears is the question that would show a loop.
    let (mut length, mut upstream_side) = mirror.recv_from(&mut buffer).await.unwrap();
    if !buffer[..length].windows(3).any(|part| part == b"www") {
        (length, upstream_side) = mirror.recv_from(&mut buffer).await.unwrap();
    }
    let mut reply = Message::from_vec(&buffer[..length]).unwrap();
    socket.send(&buffer[..length]).await.unwrap();
    let probe = query("web.ns.svc.cluster.local.", RecordType::A)
        .to_vec()
        .unwrap();
    socket.send(&probe).await.unwrap();
    let length = socket.recv(&mut buffer).await.unwrap();
    assert_eq!(
        data(&Message::from_vec(&buffer[..length]).unwrap()),
        ["10.96.0.1"]
    );
    // The first question is still answered once the upstream comes to its senses.
    reply.metadata.message_type = MessageType::Response;
    mirror
        .send_to(&reply.to_vec().unwrap(), upstream_side)
        .await
        .unwrap();
    let length = socket.recv(&mut buffer).await.unwrap();
    assert_eq!(
        Message::from_vec(&buffer[..length]).unwrap().metadata.id,
        0x1234
    );
    let dropped = client
        .metrics
        .dropped
        .with_label_values(&["own_loop"])
        .get();
    assert_eq!(dropped, 1);
}

#[tokio::test]
async fn without_anybody_to_ask_other_names_fail_at_once() {
    let closed = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let client = start(vec![closed]).await;
    for name in ["www.test.", "out-www.ns.svc.cluster.local."] {
        let reply = client.ask(name, RecordType::A).await;
        assert_eq!(
            reply.metadata.response_code,
            ResponseCode::ServFail,
            "{name}"
        );
        assert!(reply.answers.is_empty());
    }
}

#[tokio::test]
async fn identical_questions_are_asked_once() {
    let stub = Stub::start().await;
    let client = start(vec![stub.addr]).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(client.at).await.unwrap();
    let mut question = query("held.test.", RecordType::A);
    for id in 0..20 {
        question.metadata.id = id;
        socket.send(&question.to_vec().unwrap()).await.unwrap();
    }
    // Answered by the loop behind all twenty.
    question = query("web.ns.svc.cluster.local.", RecordType::A);
    socket.send(&question.to_vec().unwrap()).await.unwrap();
    let mut buffer = vec![0; 512];
    socket.recv(&mut buffer).await.unwrap();
    assert_eq!(buffer[..2], [0x12, 0x34], "a cluster name waits for nobody");
    stub.release();
    let mut ids = BTreeSet::new();
    for _ in 0..20 {
        let received = tokio::time::timeout(PATIENCE, socket.recv(&mut buffer)).await;
        let length = received.expect("no reply").unwrap();
        let reply = Message::from_vec(&buffer[..length]).unwrap();
        assert_eq!(data(&reply), ["192.0.2.80"]);
        ids.insert(reply.metadata.id);
    }
    assert_eq!(ids.len(), 20);
    assert_eq!(stub.asked("held.test."), 1);
}

#[tokio::test]
async fn aliases_out_of_the_cluster_are_followed() {
    let stub = Stub::start().await;
    let client = start(vec![stub.addr]).await;
    for _ in 0..2 {
        let reply = client
            .ask("out-www.ns.svc.cluster.local.", RecordType::A)
            .await;
        assert_eq!(data(&reply), ["www.test.", "192.0.2.80"]);
        assert!(reply.metadata.authoritative);
    }
    assert_eq!(stub.asked("www.test."), 1);
    let nothing = client
        .ask("out-www.ns.svc.cluster.local.", RecordType::AAAA)
        .await;
    assert_eq!(nothing.metadata.response_code, ResponseCode::NoError);
    assert_eq!(
        (data(&nothing), nothing.authorities.len()),
        (vec!["www.test.".to_owned()], 1)
    );
    let gone = client
        .ask("out-gone.ns.svc.cluster.local.", RecordType::A)
        .await;
    assert_eq!(gone.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(
        (data(&gone), gone.authorities.len()),
        (vec!["gone.test.".to_owned()], 1)
    );
    let sick = client
        .ask("out-sick.ns.svc.cluster.local.", RecordType::A)
        .await;
    assert_eq!(sick.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn names_of_the_cluster_never_leave_it() {
    let stub = Stub::start().await;
    let client = start(vec![stub.addr]).await;
    for name in [
        "www.example.com.ns.svc.cluster.local.",
        "gone.ns.svc.cluster.local.",
        "Cluster.LOCAL.",
        "99.0.96.10.in-addr.arpa.",
        "lost.ns.svc.cluster.local.",
    ] {
        client.ask(name, RecordType::A).await;
    }
    client.ask("1.2.1.10.in-addr.arpa.", RecordType::PTR).await;
    assert_eq!(stub.names(), ["1.2.1.10.in-addr.arpa."]);
}

#[tokio::test]
async fn a_domain_may_have_its_own_resolvers() {
    let (here, there) = (Stub::start().await, Stub::start().await);
    let client = start_with(vec![here.addr], vec![("Corp.Test".to_owned(), there.addr)]).await;
    client.ask("a.corp.test.", RecordType::A).await;
    client.ask("xcorp.test.", RecordType::A).await;
    assert_eq!(
        (there.names(), here.names()),
        (
            vec!["a.corp.test.".to_owned()],
            vec!["xcorp.test.".to_owned()]
        )
    );
}

#[tokio::test]
async fn a_slow_question_holds_up_only_itself_on_a_connection() {
    let stub = Stub::start().await;
    let client = start(vec![stub.addr]).await;
    let mut stream = TcpStream::connect(client.at).await.unwrap();
    let mut slow = query("held.test.", RecordType::A);
    slow.metadata.id = 1;
    send(&mut stream, &slow).await;
    send(
        &mut stream,
        &query("web.ns.svc.cluster.local.", RecordType::A),
    )
    .await;
    assert_eq!(receive(&mut stream).await.metadata.id, 0x1234);
    stub.release();
    assert_eq!(receive(&mut stream).await.metadata.id, 1);
}

#[tokio::test]
async fn a_message_may_come_octet_by_octet() {
    let client = start(Vec::new()).await;
    let mut stream = TcpStream::connect(client.at).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let octets = query("web.ns.svc.cluster.local.", RecordType::A)
        .to_vec()
        .unwrap();
    stream.write_u8(0).await.unwrap();
    stream
        .write_u8(u8::try_from(octets.len()).unwrap())
        .await
        .unwrap();
    for octet in octets {
        stream.write_u8(octet).await.unwrap();
    }
    assert_eq!(data(&receive(&mut stream).await), ["10.96.0.1"]);
}

#[tokio::test]
async fn a_client_that_closes_its_half_still_gets_its_answers() {
    let client = start(Vec::new()).await;
    let mut stream = TcpStream::connect(client.at).await.unwrap();
    send(
        &mut stream,
        &query("web.ns.svc.cluster.local.", RecordType::A),
    )
    .await;
    stream.shutdown().await.unwrap();
    assert_eq!(data(&receive(&mut stream).await), ["10.96.0.1"]);
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn the_oldest_idle_connection_makes_room_for_a_new_one() {
    let client = start(Vec::new()).await;
    let question = query("web.ns.svc.cluster.local.", RecordType::A);
    let mut streams = Vec::new();
    for _ in 0..64 {
        let mut stream = TcpStream::connect(client.at).await.unwrap();
        send(&mut stream, &question).await;
        receive(&mut stream).await;
        streams.push(stream);
    }
    let mut one_more = TcpStream::connect(client.at).await.unwrap();
    send(&mut one_more, &question).await;
    assert_eq!(data(&receive(&mut one_more).await), ["10.96.0.1"]);
    let ended = tokio::time::timeout(PATIENCE, streams[0].read(&mut [0])).await;
    assert_eq!(ended.expect("still open").unwrap(), 0);
    send(&mut streams[1], &question).await;
    assert_eq!(data(&receive(&mut streams[1]).await), ["10.96.0.1"]);
}

#[tokio::test]
async fn a_new_connection_is_refused_when_all_others_are_at_work() {
    let stub = Stub::start().await;
    let client = start(vec![stub.addr]).await;
    let (slow, quick) = (
        query("held.test.", RecordType::A),
        query("web.ns.svc.cluster.local.", RecordType::A),
    );
    let mut streams = Vec::new();
    for _ in 0..64 {
        let mut stream = TcpStream::connect(client.at).await.unwrap();
        send(&mut stream, &slow).await;
        send(&mut stream, &quick).await;
        // The quick answer says that the slow question is under way.
        assert_eq!(data(&receive(&mut stream).await), ["10.96.0.1"]);
        streams.push(stream);
    }
    let mut one_more = TcpStream::connect(client.at).await.unwrap();
    let ended = tokio::time::timeout(PATIENCE, one_more.read(&mut [0])).await;
    assert_eq!(ended.expect("still open").unwrap(), 0);
    stub.release();
    for stream in &mut streams {
        assert_eq!(data(&receive(stream).await), ["192.0.2.80"]);
    }
}

#[tokio::test]
async fn too_many_waiting_questions_of_one_client_are_refused() {
    let stub = Stub::start().await;
    let client = start(vec![stub.addr]).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(client.at).await.unwrap();
    let mut question = query("held.test.", RecordType::A);
    let mut buffer = vec![0; 512];
    let probe = query("web.ns.svc.cluster.local.", RecordType::A)
        .to_vec()
        .unwrap();
    for id in 0..201 {
        question.metadata.id = id;
        socket.send(&question.to_vec().unwrap()).await.unwrap();
        if id % 50 == 49 {
            // The server has read so far: nothing is lost to a full socket.
            socket.send(&probe).await.unwrap();
            socket.recv(&mut buffer).await.unwrap();
            assert_eq!(buffer[..2], [0x12, 0x34]);
        }
    }
    let length = socket.recv(&mut buffer).await.unwrap();
    let refused = Message::from_vec(&buffer[..length]).unwrap();
    assert_eq!(refused.metadata.id, 200);
    assert_eq!(refused.metadata.response_code, ResponseCode::Refused);
    assert_eq!(client.metrics.forwards_rejected.get(), 1);
    stub.release();
    for _ in 0..200 {
        let received = tokio::time::timeout(PATIENCE, socket.recv(&mut buffer)).await;
        received.expect("no reply").unwrap();
    }
    // Their places are free again.
    let reply = client.ask("missing.test.", RecordType::A).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
}

#[tokio::test]
async fn shutdown_finishes_what_was_asked_and_frees_the_port() {
    let stub = Stub::start().await;
    let client = start(vec![stub.addr]).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(client.at).await.unwrap();
    for name in ["held.test.", "web.ns.svc.cluster.local."] {
        socket
            .send(&query(name, RecordType::A).to_vec().unwrap())
            .await
            .unwrap();
    }
    let mut buffer = vec![0; 512];
    // The second question is answered, so the first one is under way.
    socket.recv(&mut buffer).await.unwrap();
    let at = client.at;
    let ending = tokio::spawn(client.server.shutdown(PATIENCE));
    stub.release();
    let length = socket.recv(&mut buffer).await.unwrap();
    assert_eq!(
        data(&Message::from_vec(&buffer[..length]).unwrap()),
        ["192.0.2.80"]
    );
    tokio::time::timeout(PATIENCE, ending)
        .await
        .expect("ends")
        .unwrap();
    UdpSocket::bind(at).await.expect("the port is free");
    TcpListener::bind(at).await.expect("the port is free");
}

#[tokio::test]
async fn a_server_is_never_its_own_upstream() {
    let free = listen::bind("127.0.0.1:0".parse().unwrap(), &[])
        .await
        .unwrap();
    let at = free[0].address;
    let upstreams = Upstreams::new(&[], &[at], &[at]);
    drop(free);
    assert!(format!("{upstreams:?}").contains("others: []"));
}

#[path = "limit_tests.rs"]
mod bounds;
#[path = "completion_tests.rs"]
mod completions;
#[path = "mutation_tests.rs"]
mod mutations;
