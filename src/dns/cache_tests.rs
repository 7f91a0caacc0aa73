//! Tests of `cache`: what is kept, for how long, and what goes at the bound.

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::rdata::{CNAME, SOA};
use hickory_proto::rr::{RData, Record, RecordType};

use super::*;

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn key(text: &str, kind: RecordType) -> Key {
    let mut wire = Vec::new();
    for label in name(text).iter() {
        wire.push(u8::try_from(label.len()).unwrap());
        wire.extend_from_slice(label);
    }
    wire.push(0);
    Key {
        name: wire.into(),
        kind: kind.into(),
        dnssec_ok: false,
        checking_disabled: false,
    }
}

const STALE_FOR: Duration = Duration::from_secs(100);

fn cache() -> Cache {
    small_cache(1 << 20)
}

fn small_cache(octets: usize) -> Cache {
    Cache::new(octets, STALE_FOR)
}

fn message(code: ResponseCode) -> Message {
    let mut message = Message::new(7, MessageType::Response, OpCode::Query);
    message.add_query(Query::query(name("www.test."), RecordType::A));
    message.metadata.response_code = code;
    message
}

fn a(ttl: u32) -> Record {
    let data = RData::A(std::net::Ipv4Addr::LOCALHOST.into());
    Record::from_rdata(name("www.test."), ttl, data)
}

fn alias(ttl: u32) -> Record {
    Record::from_rdata(
        name("www.test."),
        ttl,
        RData::CNAME(CNAME(name("web.test."))),
    )
}

fn soa(ttl: u32, minimum: u32) -> Record {
    let data = SOA::new(name("ns.test."), name("hm.test."), 1, 2, 3, 4, minimum);
    Record::from_rdata(name("test."), ttl, RData::SOA(data))
}

fn read(message: &Message) -> Arc<Relayed> {
    Arc::new(Relayed::read(message.to_vec().unwrap()).unwrap())
}

// For how many seconds a message is found again, asked for with `kind`.
fn kept_for(message: &Message, kind: RecordType) -> u64 {
    let start = Instant::now();
    let mut cache = cache();
    cache.keep(&key("www.test.", RecordType::A), &read(message), start);
    let found = |cache: &mut Cache, seconds| {
        let now = start + Duration::from_secs(seconds);
        cache.find(&key("www.test.", kind), now).is_some()
    };
    (0..10_000)
        .find(|seconds| !found(&mut cache, *seconds))
        .unwrap()
}

#[test]
fn answers_are_kept_as_long_as_their_shortest_ttl() {
    let with = |records: Vec<Record>| {
        let mut message = message(ResponseCode::NoError);
        message.add_answers(records);
        message
    };
    let rows = [
        (with(vec![a(60)]), 60),
        (with(vec![alias(20), a(60)]), 20),
        (with(vec![a(0)]), 0),
        (with(vec![a(86_400)]), u64::from(MAX_TTL)),
        (with(vec![a(u32::MAX)]), 0),
    ];
    for (message, expected) in rows {
        assert_eq!(kept_for(&message, RecordType::A), expected, "{message}");
        assert_eq!(kept_for(&message, RecordType::AAAA), 0);
    }
}

#[test]
fn absences_are_kept_as_long_as_their_soa_says() {
    let with = |code, answers: Vec<Record>, authorities: Vec<Record>| {
        let mut message = message(code);
        message.add_answers(answers);
        message.add_authorities(authorities);
        message
    };
    let (no_error, missing) = (ResponseCode::NoError, ResponseCode::NXDomain);
    // message, seconds for its own type, seconds for another type
    let rows = [
        (with(no_error, vec![], vec![soa(20, 10)]), 10, 0),
        (with(no_error, vec![], vec![soa(10, 20)]), 10, 0),
        (with(missing, vec![], vec![soa(20, 20)]), 20, 20),
        (with(missing, vec![], vec![soa(900, 900)]), 30, 30),
        (with(missing, vec![], vec![]), 0, 0),
        (with(no_error, vec![], vec![]), 0, 0),
        (with(no_error, vec![alias(5)], vec![soa(20, 20)]), 5, 0),
        (with(missing, vec![alias(60)], vec![soa(20, 20)]), 20, 0),
        (
            with(ResponseCode::ServFail, vec![], vec![soa(20, 20)]),
            0,
            0,
        ),
        (with(ResponseCode::Refused, vec![], vec![soa(20, 20)]), 0, 0),
    ];
    for (message, own, other) in rows {
        assert_eq!(kept_for(&message, RecordType::A), own, "{message}");
        assert_eq!(kept_for(&message, RecordType::AAAA), other, "{message}");
    }
}

#[test]
fn truncated_answers_are_not_kept() {
    let mut truncated = message(ResponseCode::NoError);
    truncated.add_answer(a(60));
    truncated.metadata.truncation = true;
    assert_eq!(kept_for(&truncated, RecordType::A), 0);
}

#[test]
fn an_answer_knows_its_age() {
    let start = Instant::now();
    let mut cache = cache();
    let mut answer = message(ResponseCode::NoError);
    answer.add_answer(a(60));
    let key = key("www.test.", RecordType::A);
    cache.keep(&key, &read(&answer), start);
    let kept = cache
        .find(&key, start + Duration::from_millis(2900))
        .unwrap();
    assert_eq!(kept.age, Age::Seconds(2));
}

#[test]
fn questions_that_differ_in_a_flag_are_kept_apart() {
    let start = Instant::now();
    let mut cache = cache();
    let mut answer = message(ResponseCode::NoError);
    answer.add_answer(a(60));
    let plain = key("www.test.", RecordType::A);
    cache.keep(&plain, &read(&answer), start);
    let with_dnssec = Key {
        dnssec_ok: true,
        ..plain.clone()
    };
    let unchecked = Key {
        checking_disabled: true,
        ..plain
    };
    assert!(cache.find(&with_dnssec, start).is_none());
    assert!(cache.find(&unchecked, start).is_none());
}

#[test]
fn at_the_bound_the_oldest_goes_unless_it_was_asked_for_again() {
    let start = Instant::now();
    let mut answer = message(ResponseCode::NoError);
    answer.add_answer(a(60));
    let answer = read(&answer);
    let keys: Vec<Key> = (0..4)
        .map(|n| key(&format!("www{n}.test."), RecordType::A))
        .collect();
    let cost = answer.octets().len() + 2 * keys[0].name.len() + ENTRY_OVERHEAD;
    let mut cache = small_cache(3 * cost);
    for key in &keys[..3] {
        assert_eq!(cache.keep(key, &answer, start), 0);
    }
    assert!(cache.find(&keys[0], start).is_some());
    assert_eq!(cache.keep(&keys[3], &answer, start), 1);
    let found: Vec<bool> = keys
        .iter()
        .map(|key| cache.find(key, start).is_some())
        .collect();
    assert_eq!(found, [true, false, true, true]);
    assert_eq!(cache.len(), 3);
    // Keeping a key again replaces its entry and costs no room.
    assert_eq!(cache.keep(&keys[3], &answer, start), 0);
    assert_eq!(cache.octets, 3 * cost);
}

#[test]
fn an_answer_too_large_for_the_cache_is_not_kept() {
    let mut answer = message(ResponseCode::NoError);
    answer.add_answer(a(60));
    let mut cache = small_cache(10);
    let key = key("www.test.", RecordType::A);
    assert_eq!(cache.keep(&key, &read(&answer), Instant::now()), 1);
    assert_eq!((cache.len(), cache.octets), (0, 0));
}

#[test]
fn domains_are_compared_by_label() {
    let asked = key("a.corp.example.", RecordType::A);
    for (domain, expected) in [
        ("corp.example.", true),
        ("a.corp.example.", true),
        ("example.", true),
        (".", true),
        ("orp.example.", false),
        ("b.a.corp.example.", false),
        ("corp.", false),
    ] {
        assert_eq!(asked.is_under(&name(domain)), expected, "{domain}");
    }
}

#[test]
fn an_expired_answer_is_good_when_nobody_has_a_newer_one() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut cache = cache();
    let asked = key("www.test.", RecordType::A);
    let mut answer = message(ResponseCode::NoError);
    answer.add_answer(a(60));
    cache.keep(&asked, &read(&answer), start);
    assert!(cache.find_stale(&asked, at(59)).is_none(), "it lives");
    let stale = cache.find_stale(&asked, at(60)).unwrap();
    assert_eq!(stale.kept.age, Age::Stale);
    assert!(stale.kept.lasting().is_none());
    assert!(!stale.failed_lately);
    cache.failed(&asked, at(70));
    assert!(cache.find_stale(&asked, at(99)).unwrap().failed_lately);
    assert!(!cache.find_stale(&asked, at(100)).unwrap().failed_lately);
    assert!(cache.find_stale(&asked, at(159)).is_some());
    assert!(cache.find_stale(&asked, at(160)).is_none(), "too old");
    assert!(cache.find(&asked, at(60)).is_none());
    // A newer answer ends it.
    cache.keep(&asked, &read(&answer), at(120));
    assert!(cache.find_stale(&asked, at(121)).is_none());
}
