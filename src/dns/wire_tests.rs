//! Tests of `wire`: what is cut, what is changed in place, and that no octets make it panic.

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::rdata::{CNAME, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn record(owner: &str, data: RData) -> Record {
    Record::from_rdata(name(owner), 60, data)
}

fn address(n: usize) -> RData {
    let [.., high, low] = n.to_be_bytes();
    RData::A(std::net::Ipv4Addr::new(10, 0, high, low).into())
}

fn soa() -> RData {
    RData::SOA(SOA::new(name("ns.test."), name("hm.test."), 1, 2, 3, 4, 5))
}

/// A reply with that many answers, authority and additional records.
fn reply(answers: usize, authorities: usize, additionals: usize) -> Vec<u8> {
    let mut message = Message::new(7, MessageType::Response, OpCode::Query);
    message.add_query(Query::query(name("www.test."), RecordType::A));
    message.add_answers((0..answers).map(|n| record("www.test.", address(n))));
    message.add_authorities((0..authorities).map(|_| record("test.", soa())));
    message.add_additionals((0..additionals).map(|n| record("extra.test.", address(n))));
    message.to_vec().unwrap()
}

fn opt(dnssec_ok: bool) -> Option<Opt> {
    Some(Opt {
        extended_rcode: 0,
        dnssec_ok,
        options: Vec::new(),
    })
}

// (answers, authorities, additionals without OPT, TC, OPT)
fn shape(octets: &[u8]) -> (usize, usize, usize, bool, bool) {
    let message = Message::from_vec(octets).unwrap();
    (
        message.answers.len(),
        message.authorities.len(),
        message.additionals.len(),
        message.metadata.truncation,
        message.edns.is_some(),
    )
}

#[test]
fn additional_data_goes_first_and_unannounced() {
    let mut octets = reply(20, 1, 20);
    assert!(octets.len() > PLAIN_UDP);
    assert_eq!(finish(&mut octets, None, PLAIN_UDP), Ok(Cut::Extras));
    assert_eq!(shape(&octets), (20, 1, 0, false, false));
}

#[test]
fn the_authority_of_an_answer_goes_next_unless_proofs_are_wanted() {
    let full = reply(26, 2, 0);
    assert!(full.len() > PLAIN_UDP);
    let mut octets = full.clone();
    assert_eq!(finish(&mut octets, opt(false), PLAIN_UDP), Ok(Cut::Extras));
    assert_eq!(shape(&octets), (26, 0, 0, false, true));
    let mut octets = full;
    assert_eq!(finish(&mut octets, opt(true), PLAIN_UDP), Ok(Cut::Needed));
    assert!(shape(&octets).3);
}

#[test]
fn as_many_answers_stay_as_fit() {
    let mut octets = reply(100, 0, 5);
    assert_eq!(finish(&mut octets, opt(false), PLAIN_UDP), Ok(Cut::Needed));
    let (answers, _, additionals, tc, has_opt) = shape(&octets);
    // 512 octets less header (12), question (14) and OPT (11), at 16 octets each.
    assert_eq!((answers, additionals, tc, has_opt), (29, 0, true, true));
    assert!(octets.len() <= PLAIN_UDP);
}

#[test]
fn a_message_of_exactly_the_limit_is_left_alone() {
    let full = reply(10, 0, 0);
    for (limit, cut, kept) in [
        (full.len(), Cut::Nothing, 10),
        (full.len() - 1, Cut::Needed, 9),
    ] {
        let mut octets = full.clone();
        assert_eq!(finish(&mut octets, None, limit), Ok(cut));
        assert_eq!(shape(&octets).0, kept);
    }
    // The OPT record counts, too.
    let mut octets = full.clone();
    assert_eq!(
        finish(&mut octets, opt(false), full.len() + 11),
        Ok(Cut::Nothing)
    );
    let mut octets = full.clone();
    assert_eq!(
        finish(&mut octets, opt(false), full.len() + 10),
        Ok(Cut::Needed)
    );
}

#[test]
fn options_are_given_up_before_the_limit() {
    let mut octets = reply(1, 0, 0);
    let long = Opt {
        options: vec![0; 500],
        ..opt(true).unwrap()
    };
    finish(&mut octets, Some(long), PLAIN_UDP).unwrap();
    assert!(octets.len() <= PLAIN_UDP);
    let edns = Message::from_vec(&octets).unwrap().edns.unwrap();
    assert!(edns.flags().dnssec_ok);
}

#[test]
fn only_extended_errors_are_relayed_of_the_options() {
    let mut message = Message::from_vec(&reply(1, 1, 1)).unwrap();
    let mut edns = hickory_proto::op::Edns::new();
    edns.set_dnssec_ok(true);
    message.set_edns(edns);
    let mut octets = message.to_vec().unwrap();
    // A cookie (10) and an extended error (15) behind the bare record.
    let options = [0, 10, 0, 2, 9, 9, 0, 15, 0, 3, 0, 22, b'x'];
    let at = octets.len() - 2;
    write_u16(&mut octets, at, 13);
    octets.extend(options);
    let mut layout = layout(&octets).unwrap();
    let taken = take_opt(&mut octets, &mut layout).unwrap();
    assert!(taken.dnssec_ok);
    assert_eq!(taken.options, [0, 15, 0, 3, 0, 22, b'x']);
    assert_eq!(shape(&octets), (1, 1, 1, false, false));
}

#[test]
fn ages_are_taken_off_every_ttl() {
    let mut octets = reply(1, 1, 1);
    let layout = layout(&octets).unwrap();
    age(&mut octets, &layout, 59);
    let message = Message::from_vec(&octets).unwrap();
    assert!(message.all_sections().all(|record| record.ttl == 1));
    age(&mut octets, &layout, 59);
    let message = Message::from_vec(&octets).unwrap();
    assert!(message.all_sections().all(|record| record.ttl == 0));
}

#[test]
fn shuffling_moves_addresses_and_nothing_else() {
    let mut message = Message::new(7, MessageType::Response, OpCode::Query);
    message.add_query(Query::query(name("www.test."), RecordType::A));
    message.add_answer(record("www.test.", RData::CNAME(CNAME(name("web.test.")))));
    message.add_answers((0..4).map(|n| record("web.test.", address(n))));
    let before = message.to_vec().unwrap();
    let layout = layout(&before).unwrap();
    let mut rng = StdRng::seed_from_u64(1);
    let mut firsts = std::collections::BTreeSet::new();
    for _ in 0..64 {
        let mut octets = before.clone();
        shuffle_addresses(&mut octets, &layout, &mut rng);
        let shuffled = Message::from_vec(&octets).unwrap();
        assert_eq!(shuffled.answers[0], message.answers[0]);
        let mut data: Vec<String> = shuffled.answers[1..]
            .iter()
            .map(|r| r.data.to_string())
            .collect();
        firsts.insert(data[0].clone());
        data.sort();
        assert_eq!(data, ["10.0.0.0", "10.0.0.1", "10.0.0.2", "10.0.0.3"]);
    }
    assert_eq!(firsts.len(), 4);
}

#[test]
fn names_must_lead_backwards() {
    let valid = reply(1, 0, 0);
    assert!(layout(&valid).is_ok());
    let pointer = valid.len() - 16;
    assert_eq!(valid[pointer] & 0xC0, 0xC0);
    for target in [pointer, pointer + 2, 0] {
        let mut octets = valid.clone();
        write_u16(
            &mut octets,
            pointer,
            0xC000 | u16::try_from(target).unwrap(),
        );
        assert_eq!(layout(&octets), Err(Malformed), "to {target}");
    }
    let mut reserved = valid.clone();
    reserved[HEADER] = 0x40;
    assert_eq!(layout(&reserved), Err(Malformed));
}

#[test]
fn every_cut_of_a_message_is_malformed_or_complete() {
    let valid = reply(2, 1, 1);
    for length in 0..valid.len() {
        assert_eq!(layout(&valid[..length]), Err(Malformed), "{length} octets");
    }
}

proptest! {
    #[test]
    fn no_octets_panic(octets in proptest::collection::vec(any::<u8>(), 0..600), limit in 0usize..600, seconds in any::<u32>()) {
        let mut message = octets;
        if let Ok(mut found) = layout(&message) {
            age(&mut message, &found, seconds);
            shuffle_addresses(&mut message, &found, &mut StdRng::seed_from_u64(1));
            take_opt(&mut message, &mut found);
        }
        let _ = finish(&mut message, opt(true), limit);
    }

    #[test]
    fn damaged_messages_do_not_panic(answers in 0usize..40, at in any::<prop::sample::Index>(), value in any::<u8>()) {
        let mut message = reply(answers, 1, 2);
        let at = at.index(message.len());
        message[at] = value;
        if let Ok(mut found) = layout(&message) {
            age(&mut message, &found, 1);
            take_opt(&mut message, &mut found);
            prop_assert!(layout(&message).is_ok());
        }
        let readable = layout(&message).is_ok();
        let finished = finish(&mut message, opt(false), PLAIN_UDP).is_ok();
        prop_assert!(!(readable && finished) || layout(&message).is_ok());
    }
}
