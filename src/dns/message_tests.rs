//! Tests of `message` that need no socket: what the parser makes of any octets, and that replies keep their bounds.

use hickory_proto::op::Query;
use hickory_proto::rr::RData;
use proptest::prelude::*;

use super::super::relayed::{Age, Relayed};
use super::super::wire::MAX_UDP;
use super::*;

fn question() -> Vec<u8> {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(
        Name::from_ascii("Www.Test.").unwrap(),
        RecordType::A,
    ));
    message.set_edns(hickory_proto::op::Edns::new());
    message.to_vec().unwrap()
}

fn relayed(code: ResponseCode, answers: usize) -> Relayed {
    let mut message = Message::from_vec(&question()).unwrap();
    message.metadata.message_type = MessageType::Response;
    message.metadata.authoritative = true;
    message.metadata.response_code = code;
    let data = RData::A(std::net::Ipv4Addr::LOCALHOST.into());
    let owner = Name::from_ascii("www.test.").unwrap();
    message.add_answers((0..answers).map(|_| Record::from_rdata(owner.clone(), 60, data.clone())));
    Relayed::read(message.to_vec().unwrap()).unwrap()
}

fn reply_to(octets: &[u8]) -> Option<Vec<u8>> {
    match Question::parse(octets, MAX_UDP) {
        Ok(question) => Some(question.failure(ResponseCode::ServFail).octets),
        Err(Rejected::With(reply)) => Some(reply.octets),
        Err(Rejected::Silently) => None,
    }
}

#[test]
fn what_is_relayed_loses_the_upstreams_flags() {
    let asked = Question::parse(&question(), MAX_UDP).unwrap();
    let reply = asked
        .relayed_reply(
            &relayed(ResponseCode::NoError, 1),
            Age::Seconds(0),
            Transport::Udp,
        )
        .unwrap();
    let header = Message::from_vec(&reply.octets).unwrap().metadata;
    assert!(!header.authoritative && header.recursion_available && header.recursion_desired);
    assert_eq!(header.id, 7);
}

#[test]
fn a_long_response_code_needs_room_that_a_plain_client_has_not() {
    let mut octets = question();
    let with_edns = Question::parse(&octets, MAX_UDP).unwrap();
    octets.truncate(octets.len() - 11);
    octets[11] = 0;
    let plain = Question::parse(&octets, MAX_UDP).unwrap();
    let relayed = relayed(ResponseCode::BADCOOKIE, 0);
    assert_eq!(relayed.code(), None);
    let code = |asked: &Question| {
        let reply = asked
            .relayed_reply(&relayed, Age::Seconds(0), Transport::Udp)
            .unwrap();
        Message::from_vec(&reply.octets)
            .unwrap()
            .metadata
            .response_code
    };
    assert_eq!(code(&with_edns), ResponseCode::BADCOOKIE);
    assert_eq!(code(&plain), ResponseCode::ServFail);
}

#[test]
fn an_answer_to_another_question_is_not_passed_on() {
    let asked = Question::parse(&question(), MAX_UDP).unwrap();
    let other = asked.about(Name::from_ascii("a.longer.name.").unwrap());
    let relayed = relayed(ResponseCode::NoError, 1);
    assert!(
        other
            .relayed_reply(&relayed, Age::Seconds(0), Transport::Udp)
            .is_err()
    );
}

proptest! {
    #[test]
    fn any_octets_get_a_reply_or_silence(octets in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Some(reply) = reply_to(&octets) {
            prop_assert!((HEADER..=PLAIN_UDP).contains(&reply.len()));
            prop_assert_eq!(&reply[..2], &octets[..2]);
            prop_assert!(reply[2] & FLAG_QR != 0);
        }
    }

    #[test]
    fn a_damaged_question_gets_a_reply_or_silence(at in any::<prop::sample::Index>(), value in any::<u8>()) {
        let mut octets = question();
        let at = at.index(octets.len());
        octets[at] = value;
        if let Some(reply) = reply_to(&octets) {
            prop_assert!(wire::layout(&reply).is_ok());
        }
    }

    #[test]
    fn no_reply_is_longer_than_its_client_takes(answers in 0usize..200, payload in any::<u16>()) {
        let mut octets = question();
        let size_at = octets.len() - 8;
        octets[size_at..size_at + 2].copy_from_slice(&payload.to_be_bytes());
        let asked = Question::parse(&octets, MAX_UDP).unwrap();
        let reply = asked.relayed_reply(&relayed(ResponseCode::NoError, answers), Age::Seconds(3), Transport::Udp).unwrap();
        let limit = usize::from(payload.clamp(512, MAX_UDP));
        prop_assert!(reply.octets.len() <= limit);
        let read = Message::from_vec(&reply.octets).unwrap();
        let truncated = reply.cut == Cut::Needed;
        prop_assert_eq!(read.metadata.truncation, truncated);
        prop_assert_eq!(truncated, read.answers.len() < answers);
        prop_assert!(read.edns.is_some());
        prop_assert!(read.answers.iter().all(|record| record.ttl == 57));
    }
}
