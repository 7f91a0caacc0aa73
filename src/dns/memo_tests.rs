//! The memo against the usual way: the same question through both must get the same reply, but for the order of
//! addresses.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use proptest::prelude::*;

use crate::model::{Event, Protocol, ServiceKind, SliceKey};
use crate::routing::TableBuilder;

use super::super::cache::Key;
use super::super::exchange::{Answered, Exchange, Step};
use super::super::fixture::{answering, crowded, ready, service, slice};
use super::super::forward::Upstreams;
use super::super::message::{Question, Transport};
use super::super::relayed::Relayed;
use super::super::wire::MAX_UDP;
use super::*;

// An exchange over the fixture's cluster, which also remembers `www.test`.
fn exchange() -> Exchange {
    exchange_over(&mut crowded())
}

fn exchange_over(builder: &mut TableBuilder) -> Exchange {
    let (exchange, forwarder) = answering(builder, Upstreams::new(&[], &[], &[]));
    for kind in [RecordType::A, RecordType::TXT] {
        let question = query("www.test.", kind, 0x0100, None);
        let key = Key::of(&Question::parse(&question, MAX_UDP).unwrap());
        forwarder.remember(&key, &Arc::new(said(kind)));
    }
    exchange
}

// What an upstream says of `www.test`: an alias to several addresses, or a text.
fn said(kind: RecordType) -> Relayed {
    let name = |text: &str| Name::from_ascii(text).unwrap();
    let mut reply = Message::response(9, OpCode::Query);
    reply.metadata.recursion_available = true;
    reply.metadata.authentic_data = true;
    reply.metadata.response_code = ResponseCode::NoError;
    reply.add_query(Query::query(name("www.test."), kind));
    if kind == RecordType::A {
        let alias = RData::CNAME(hickory_proto::rr::rdata::CNAME(name("www.cdn.test.")));
        reply.add_answer(Record::from_rdata(name("www.test."), 300, alias));
        for last in 1..9 {
            let data = RData::A(std::net::Ipv4Addr::new(192, 0, 2, last).into());
            reply.add_answer(Record::from_rdata(name("www.cdn.test."), 60, data));
        }
    } else {
        let text = hickory_proto::rr::rdata::TXT::new(vec!["x".repeat(200)]);
        reply.add_answer(Record::from_rdata(name("www.test."), 30, RData::TXT(text)));
    }
    reply.set_edns(Edns::new());
    Relayed::read(reply.to_vec().unwrap()).unwrap()
}

fn query(name: &str, kind: RecordType, flags: u16, edns: Option<(u16, bool)>) -> Vec<u8> {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    if let Some((payload, dnssec_ok)) = edns {
        let mut edns = Edns::new();
        edns.set_max_payload(payload).set_dnssec_ok(dnssec_ok);
        message.set_edns(edns);
    }
    let mut octets = message.to_vec().unwrap();
    octets[2..4].copy_from_slice(&flags.to_be_bytes());
    octets
}

fn client() -> SocketAddr {
    "127.0.0.1:4000".parse().unwrap()
}

fn usual_way(exchange: &Exchange, message: &[u8]) -> Option<Answered> {
    match exchange.begin(message, client(), Transport::Udp) {
        Step::Reply(answered) => Some(answered),
        Step::Silence | Step::Wait(_) => None,
    }
}

// A thread's way of answering; what it says, and whether it had to ask.
fn thread_way(
    exchange: &Exchange,
    memo: &mut Memo<()>,
    message: &[u8],
    now: Instant,
) -> Option<(Vec<u8>, bool)> {
    let mut simple = Simple::new();
    let mut buffer = [0; 2000];
    buffer[..message.len()].copy_from_slice(message);
    let table = exchange.table().load_full();
    let moment = Moment { table: &table, now };
    let plain = simple.read(message, MAX_UDP);
    if plain
        && let Some((length, ())) = memo.answer(&simple, &mut buffer, &moment, &mut rand::rng())
    {
        return Some((buffer[..length].to_vec(), true));
    }
    let answered = usual_way(exchange, message)?;
    if let Some(again) = answered.again.filter(|_| plain) {
        memo.keep(simple.key(), &answered.octets, again.lasting, ());
    }
    Some((answered.octets, false))
}

// A reply as text, the records of its sections in one order. Names are compared as DNS compares them, but for owners
// that are the asked name: those must have the client's spelling.
fn in_order(reply: &[u8]) -> (Vec<u8>, Vec<Vec<String>>, Option<Edns>) {
    let message = Message::from_vec(reply).unwrap();
    let question = layout(reply).unwrap().question;
    let sections = [message.answers, message.authorities, message.additionals];
    let sections = sections.into_iter().map(|records| {
        if let Some(asked) = message.queries.first() {
            let spelled =
                |record: &Record| record.name != *asked.name() || record.name.eq_case(asked.name());
            assert!(records.iter().all(spelled));
        }
        let texts = records
            .iter()
            .map(|record| record.to_string().to_ascii_lowercase());
        let mut texts: Vec<String> = texts.collect();
        texts.sort();
        texts
    });
    let head = reply[..question.end].to_vec();
    (head, sections.collect(), message.edns)
}

const NAMES: [&str; 22] = [
    "web.ns.svc.cluster.local.",
    "dual.ns.svc.cluster.local.",
    "many.ns.svc.cluster.local.",
    "db.ns.svc.cluster.local.",
    "db-0.db.ns.svc.cluster.local.",
    "_http._tcp.db.ns.svc.cluster.local.",
    "_http._tcp.crowd.ns.svc.cluster.local.",
    "crowd.ns.svc.cluster.local.",
    "none.ns.svc.cluster.local.",
    "gone.ns.svc.cluster.local.",
    "www.example.com.ns.svc.cluster.local.",
    "ns.svc.cluster.local.",
    "cluster.local.",
    "dns-version.cluster.local.",
    "ns.dns.cluster.local.",
    "in-twice.ns.svc.cluster.local.",
    "out.ns.svc.cluster.local.",
    "10-1-2-3.ns.pod.cluster.local.",
    "1.0.96.10.in-addr.arpa.",
    "9.9.96.10.in-addr.arpa.",
    "www.test.",
    "www.cdn.test.",
];

const KINDS: [RecordType; 9] = [
    RecordType::A,
    RecordType::AAAA,
    RecordType::SRV,
    RecordType::PTR,
    RecordType::TXT,
    RecordType::SOA,
    RecordType::NS,
    RecordType::ANY,
    RecordType::AXFR,
];

fn any_question() -> impl Strategy<Value = Vec<u8>> {
    let name = (0..NAMES.len(), any::<u64>()).prop_map(|(index, cases)| {
        let letters = NAMES[index].bytes().enumerate();
        let spelled = letters.map(|(at, letter)| {
            if cases >> (at % 64) & 1 == 1 {
                char::from(letter.to_ascii_uppercase())
            } else {
                char::from(letter)
            }
        });
        spelled.collect::<String>()
    });
    // RD, AD and CD; now and then another opcode, or TC.
    let flags = prop_oneof![
        9 => (0..8u16).prop_map(|bits| (bits & 1) << 8 | (bits >> 1 & 3) << 4),
        1 => prop_oneof![Just(0x1100), Just(0x0300), Just(0x0040)],
    ];
    let edns = proptest::option::of((prop_oneof![Just(1232), 0..5000u16], any::<bool>()));
    (name, 0..KINDS.len(), flags, edns)
        .prop_map(|(name, kind, flags, edns)| query(&name, KINDS[kind], flags, edns))
}

// Something happens to one Service, or to none.
fn change(builder: &mut TableBuilder, what: u8) {
    let http = [("http", Protocol::Tcp, 8080)];
    let last = what / 6;
    let event = match what % 6 {
        0 => Event::NamespaceApplied(format!("new-{last}").into()),
        1 => service(
            "web",
            ServiceKind::ClusterIp,
            &format!("10.96.1.{last}"),
            &http,
        ),
        2 => slice(
            "db-4",
            "db",
            &http,
            &[ready(&format!("10.1.1.{last}"), None)],
        ),
        3 => slice(
            "crowd-1",
            "crowd",
            &http,
            &[ready(&format!("10.2.0.{last}"), None)],
        ),
        4 => Event::SliceDeleted(SliceKey {
            namespace: "ns".into(),
            name: "crowd-1".into(),
        }),
        _ => service(
            "none",
            ServiceKind::ClusterIp,
            &format!("10.96.2.{last}"),
            &http,
        ),
    };
    builder.apply(event);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn both_ways_say_the_same(
        questions in proptest::collection::vec(any_question(), 1..200),
        changes in proptest::collection::vec(proptest::option::weighted(0.2, any::<u8>()), 200),
    ) {
        let mut builder = crowded();
        let exchange = exchange_over(&mut builder);
        let mut memo = Memo::new(1 << 20);
        let now = Instant::now();
        for (question, changed) in questions.into_iter().zip(changes) {
            if let Some(what) = changed {
                change(&mut builder, what);
                exchange.table().publish(builder.build().table);
            }
            let usual = usual_way(&exchange, &question);
            let thread = thread_way(&exchange, &mut memo, &question, now);
            prop_assert_eq!(usual.is_some(), thread.is_some());
            if let (Some(usual), Some((thread, _))) = (usual, thread) {
                // How much fits depends on the order, so only the flags can be compared then.
                if usual.octets[2] & 0x02 != 0 {
                    prop_assert_eq!(&usual.octets[..6], &thread[..6]);
                } else {
                    prop_assert_eq!(in_order(&usual.octets), in_order(&thread));
                }
            }
        }
    }

    #[test]
    fn octets_stay_within_the_bound(lengths in proptest::collection::vec(0..200u16, 0..300)) {
        let exchange = exchange();
        let mut memo = Memo::new(10_000);
        for (n, length) in lengths.into_iter().enumerate() {
            let name = format!("x{n}.ns.svc.cluster.local.");
            let question = query(&name, RecordType::from(length), 0x0100, None);
            thread_way(&exchange, &mut memo, &question, Instant::now());
            prop_assert!(memo.octets <= 10_000);
            let counted: usize = memo.entries.iter().map(|(key, entry)| entry.cost(key)).sum();
            prop_assert_eq!(counted, memo.octets);
        }
    }
}

#[test]
fn the_second_question_is_answered_from_the_memo_until_the_table_changes() {
    let mut builder = crowded();
    let exchange = exchange_over(&mut builder);
    let mut memo = Memo::new(1 << 20);
    let now = Instant::now();
    let mut ask = |name: &str| {
        let question = query(name, RecordType::A, 0x0100, None);
        thread_way(&exchange, &mut memo, &question, now).unwrap().1
    };
    // What is missing tells the serial of its table.
    for name in ["gone.ns.svc.cluster.local.", "web.ns.svc.cluster.local."] {
        assert!(!ask(name));
        assert!(ask(name));
        assert!(ask(&name.replace("ns", "NS")));
    }
    change(&mut builder, 1);
    exchange.table().publish(builder.build().table);
    for name in ["gone.ns.svc.cluster.local.", "web.ns.svc.cluster.local."] {
        assert!(!ask(name), "{name}");
        assert!(ask(name), "{name}");
    }
}

#[test]
fn a_changed_service_costs_the_answers_of_no_other() {
    let mut builder = crowded();
    let exchange = exchange_over(&mut builder);
    let mut memo = Memo::new(1 << 20);
    let now = Instant::now();
    let names = [
        "db.ns.svc.cluster.local.",
        "10-1-1-3.db.ns.svc.cluster.local.",
        "web.ns.svc.cluster.local.",
        "many.ns.svc.cluster.local.",
        "w-0.web.ns.svc.other.example.",
    ];
    let mut anew = || -> Vec<&str> {
        let mut ask = |name: &str| {
            let question = query(name, RecordType::A, 0x0100, None);
            thread_way(&exchange, &mut memo, &question, now).unwrap().1
        };
        names.into_iter().filter(|name| !ask(name)).collect()
    };
    assert_eq!(anew(), names);
    assert_eq!(anew(), [""; 0]);
    let db = slice(
        "db-4b",
        "db",
        &[("http", Protocol::Tcp, 8080)],
        &[ready("10.1.1.9", None)],
    );
    builder.apply(db);
    exchange.table().publish(builder.build().table);
    assert_eq!(anew(), names[..2], "those of the changed Service");
    assert_eq!(anew(), [""; 0]);
    // A Service that is gone takes its answers along, also when another of its name comes.
    builder.apply(Event::ServiceDeleted(crate::model::ServiceName::new(
        "ns", "web",
    )));
    exchange.table().publish(builder.build().table);
    assert_eq!(anew(), [names[2], names[4]]);
    change(&mut builder, 1);
    exchange.table().publish(builder.build().table);
    assert_eq!(anew(), [names[2], names[4]]);
}

// An endpoint event among 10,000 Services replaces what is known of one, and of its addresses.
#[test]
fn a_changed_slice_replaces_one_service_of_ten_thousand() {
    const SERVICES: usize = 10_000;
    let http = [("http", Protocol::Tcp, 80)];
    let mut builder = crowded();
    for n in 0..SERVICES {
        let name = format!("service-{n}");
        let (high, low) = (n / 250, n % 250);
        builder.apply(service(&name, ServiceKind::Headless, "", &http));
        let endpoint = ready(&format!("10.9.{high}.{low}"), None);
        builder.apply(slice(&format!("{name}-1"), &name, &http, &[endpoint]));
    }
    let before = builder.build();
    assert!(before.changed.len() >= SERVICES);
    let moved = ready("10.8.0.1", None);
    builder.apply(slice("service-77-1", "service-77", &http, &[moved]));
    let after = builder.build();
    assert_eq!(after.changed.len(), 1);
    let replaced = after.table.services().filter(|entry| {
        let same = before.table.service(&entry.service.name);
        !same.is_some_and(|same| Arc::ptr_eq(same, entry))
    });
    let replaced: Vec<&str> = replaced.map(|entry| &*entry.service.name.name).collect();
    assert_eq!(replaced, ["service-77"]);
}

#[test]
fn remembered_ttls_count_down_and_end() {
    let exchange = exchange();
    let mut memo = Memo::new(1 << 20);
    let start = Instant::now();
    let mut ttl_after = |seconds: u64| {
        let question = query("www.test.", RecordType::A, 0x0100, None);
        let now = start + Duration::from_secs(seconds);
        let (reply, remembered) = thread_way(&exchange, &mut memo, &question, now).unwrap();
        let message = Message::from_vec(&reply).unwrap();
        (remembered, message.answers[1].ttl)
    };
    assert_eq!(ttl_after(0), (false, 60));
    assert!(ttl_after(0).0);
    assert_eq!(ttl_after(5), (true, 55));
    // The shared cache is asked from time to time; it has a clock of its own.
    assert!(!ttl_after(11).0);
    assert!(!ttl_after(90).0);
}

#[test]
fn every_order_of_addresses_is_given() {
    let exchange = exchange();
    let mut memo = Memo::new(1 << 20);
    let question = query("db.ns.svc.cluster.local.", RecordType::A, 0x0100, None);
    let mut orders: HashMap<Vec<String>, usize> = HashMap::new();
    for _ in 0..1200 {
        let (reply, _) = thread_way(&exchange, &mut memo, &question, Instant::now()).unwrap();
        let message = Message::from_vec(&reply).unwrap();
        let order = message.answers.iter().map(|one| one.data.to_string());
        *orders.entry(order.collect()).or_default() += 1;
    }
    assert_eq!(orders.len(), 6);
    assert!(
        orders.values().all(|times| (120..280).contains(times)),
        "{orders:?}"
    );
}
