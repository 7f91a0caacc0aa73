//! What the exchange does when something inside it breaks, and how soon a changed object is in its answers.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};

use super::super::fixture::{answering, empty, ip, ready, service, slice};
use super::super::forward::Upstreams;
use super::*;
use crate::model::ServiceKind;
use crate::routing::TableBuilder;

const SERVICES: u32 = 10_000;

/// From the event to the answer, at the latest.
const SOON: Duration = Duration::from_secs(1);

fn exchange(builder: &mut TableBuilder) -> Exchange {
    answering(builder, Upstreams::new(&[], &[], &[])).0
}

fn query(name: &str) -> Vec<u8> {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    let name = Name::from_ascii(name).unwrap();
    message.add_query(Query::query(name, RecordType::A));
    message.to_vec().unwrap()
}

fn reply(step: Step) -> Message {
    let Step::Reply(reply) = step else {
        panic!("no reply: {step:?}");
    };
    Message::from_vec(&reply.octets).unwrap()
}

fn addresses(exchange: &Exchange, name: &str) -> Vec<IpAddr> {
    let client = SocketAddr::from((Ipv4Addr::LOCALHOST, 4000));
    let reply = reply(exchange.begin(&query(name), client, Transport::Udp));
    let found = reply.answers.iter();
    found.filter_map(|record| record.data.ip_addr()).collect()
}

#[test]
fn a_panic_is_a_servfail_and_the_next_question_is_answered() {
    let mut builder = empty();
    builder.apply(service("web", ServiceKind::ClusterIp, "10.96.0.10", &[]));
    builder.set_synced();
    let exchange = exchange(&mut builder);
    let message = query("web.ns.svc.cluster.local.");
    let broken = exchange.guarded(&message, Instant::now(), || panic!("as a bug would"));
    let broken = reply(broken);
    assert_eq!(broken.metadata.id, 0x1234);
    assert_eq!(broken.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(exchange.metrics.panics.get(), 1);
    let found = addresses(&exchange, "web.ns.svc.cluster.local.");
    assert_eq!(found, [ip("10.96.0.10")]);
    assert_eq!(exchange.metrics.panics.get(), 1);
}

#[test]
fn a_change_among_ten_thousand_services_is_in_the_next_answer() {
    let mut builder = empty();
    for n in 0..SERVICES {
        let name = format!("db-{n}");
        builder.apply(service(&name, ServiceKind::Headless, "", &[]));
        let address = format!("10.1.{}.{}", n / 250, n % 250);
        builder.apply(slice(&name, &name, &[], &[ready(&address, None)]));
    }
    builder.set_synced();
    let exchange = exchange(&mut builder);
    let name = "db-7.ns.svc.cluster.local.";
    assert_eq!(addresses(&exchange, name), [ip("10.1.0.7")]);
    let began = Instant::now();
    builder.apply(slice("db-7", "db-7", &[], &[ready("10.2.0.7", None)]));
    exchange.table().publish(builder.build().table);
    assert_eq!(addresses(&exchange, name), [ip("10.2.0.7")]);
    let took = began.elapsed();
    assert!(took < SOON, "{took:?}");
}
