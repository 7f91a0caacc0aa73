//! The rules of the Kubernetes DNS specification and of the resolver's own, a row each: question, code and flags, and
//! what stands in each section (`tests/data/dns.rows`). Every row is asked over UDP and over TCP, twice each: the second answer comes from the
//! replies that are kept at hand.

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{Name, Record, RecordType};

use crate::dns_server::{Server, question};

// The records of a section as `name TYPE data`, in order of the alphabet; of an SOA only its owner, name server,
// mailbox, times and negative TTL.
fn section(records: &[Record]) -> String {
    let mut texts: Vec<String> = records
        .iter()
        .map(|record| {
            let data = record.data.to_string();
            let data = if record.record_type() == RecordType::SOA {
                let words: Vec<&str> = data.split(' ').collect();
                format!(
                    "{} {} {}",
                    words[0],
                    words[1],
                    words[words.len() - 4..].join(" ")
                )
            } else {
                data
            };
            let text = format!(
                "{} {} {} {data}",
                record.name,
                record.ttl,
                record.record_type()
            );
            text.replace("cluster.local.", "Z")
        })
        .collect();
    texts.sort();
    texts.join("; ")
}

fn flags(message: &Message) -> String {
    const CODES: [(ResponseCode, &str); 4] = [
        (ResponseCode::NoError, "NOERROR"),
        (ResponseCode::NXDomain, "NXDOMAIN"),
        (ResponseCode::ServFail, "SERVFAIL"),
        (ResponseCode::Refused, "REFUSED"),
    ];
    let code = message.metadata.response_code;
    let known = CODES.iter().find(|(known, _)| *known == code);
    let code = known.map_or("other", |(_, word)| word);
    let metadata = &message.metadata;
    let mut words = vec![code];
    for (set, word) in [
        (metadata.authoritative, "aa"),
        (metadata.truncation, "tc"),
        (metadata.recursion_desired, "rd"),
        (metadata.recursion_available, "ra"),
        (metadata.authentic_data, "ad"),
    ] {
        if set {
            words.push(word);
        }
    }
    words.join(" ")
}

const SOA: &str = "Z 5 SOA ns.dns.Z hostmaster.Z 7200 1800 86400 5";

/// A row of `dns.rows`: a question and what is answered.
struct Row {
    rule: &'static str,
    says: &'static str,
    name: String,
    kind: RecordType,
    code: &'static str,
    answer: &'static str,
    authority: &'static str,
    additional: &'static str,
}

use RecordType::{A, CNAME, PTR, SRV};

const OK: &str = "NOERROR";
const NX: &str = "NXDOMAIN";

fn rows() -> Vec<Row> {
    let lines = include_str!("../data/dns.rows").lines();
    let lines = lines.filter(|line| !line.starts_with('#'));
    lines.map(row).collect()
}

fn row(line: &'static str) -> Row {
    let cells: Vec<&str> = line.split('|').map(str::trim).collect();
    let [rule, says, name, kind, code, answer, additional] = cells[..] else {
        panic!("not seven cells: {line}");
    };
    let unknown = kind
        .strip_prefix("TYPE")
        .and_then(|number| number.parse().ok());
    let kind = unknown.map_or_else(
        || kind.parse().unwrap_or_else(|_| panic!("no type: {line}")),
        RecordType::Unknown,
    );
    let (authority, additional) = match additional {
        "soa" => (SOA, ""),
        _ if answer.is_empty() => (SOA, additional),
        _ => ("", additional),
    };
    Row {
        rule,
        says,
        name: whole(name.trim_start_matches('@')),
        kind,
        code,
        answer,
        authority,
        additional,
    }
}

fn whole(name: &str) -> String {
    if name.ends_with('.') {
        name.to_owned()
    } else if name.is_empty() {
        "cluster.local.".to_owned()
    } else {
        format!("{name}.cluster.local.")
    }
}

fn check(server: &Server, row: &Row) -> Result<(), String> {
    let asked = question(&row.name, row.kind);
    for (transport, reply) in [
        ("UDP", server.udp(&asked)),
        ("UDP again", server.udp(&asked)),
        ("TCP", server.tcp(&asked)),
    ] {
        let message = Message::from_vec(&reply).unwrap();
        let expected = [
            &*format!("{} aa rd ra", row.code),
            row.answer,
            row.authority,
            row.additional,
        ];
        let found = [
            flags(&message),
            section(&message.answers),
            section(&message.authorities),
            section(&message.additionals),
        ];
        if found != expected {
            return Err(format!(
                "{} ({}): {} {} over {transport}\n  got  {found:?}\n  want {expected:?}",
                row.rule, row.says, row.name, row.kind
            ));
        }
    }
    Ok(())
}

#[test]
fn every_rule_holds_over_both_transports() {
    let server = Server::start(&[]);
    let rows = rows();
    assert!(rows.len() > 100, "{} rows", rows.len());
    let broken: Vec<String> = rows
        .iter()
        .filter_map(|row| check(&server, row).err())
        .collect();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

// Reverse names that are missing: the SOA is that of the range they are in, rounded to whole labels.
#[test]
fn missing_reverse_names_are_answered_within_our_ranges_only() {
    let server = Server::start(&[]);
    for (name, kind, code) in [
        ("99.0.96.10.in-addr.arpa.", PTR, NX),
        ("x.10.0.96.10.in-addr.arpa.", PTR, NX),
        ("10.0.96.10.in-addr.arpa.", A, OK),
        ("0.96.10.in-addr.arpa.", PTR, OK),
    ] {
        for octets in [
            server.udp(&question(name, kind)),
            server.tcp(&question(name, kind)),
        ] {
            let reply = Message::from_vec(&octets).unwrap();
            assert_eq!(flags(&reply), format!("{code} aa rd ra"), "{name}");
            assert_eq!(
                section(&reply.authorities),
                "96.10.in-addr.arpa. 5 SOA ns.dns.Z hostmaster.Z 7200 1800 86400 5",
                "{name}"
            );
        }
    }
    // An endpoint that is not ready, a Pod of nobody, an address elsewhere, and too few nibbles: others may know.
    for name in [
        "3.0.1.10.in-addr.arpa.",
        "1.2.1.10.in-addr.arpa.",
        "7.113.0.203.in-addr.arpa.",
        "8.e.f.ip6.arpa.",
    ] {
        let reply = Message::from_vec(&server.udp(&question(name, PTR))).unwrap();
        assert_eq!(flags(&reply), "SERVFAIL rd ra", "{name}");
    }
}

// What the settings change: pod names, empty Services.
#[test]
fn pod_modes_and_hidden_services_change_only_their_names() {
    let disabled = Server::start(&["--dns-pods", "disabled", "--dns-hide-empty"]);
    let verified = Server::start(&["--dns-pods", "verified"]);
    for (server, name, code) in [
        (&disabled, "10-1-2-3.ns.pod", NX),
        (&disabled, "ns.pod", NX),
        (&disabled, "pod", OK),
        (&disabled, "unnamed.ns.svc", NX),
        (&disabled, "web.ns.svc", OK),
        (&disabled, "alias.ns.svc", OK),
        (&disabled, "db.ns.svc", OK),
        (&verified, "10-1-2-3.ns.pod", NX),
        (&verified, "10-1-0-1.ns.pod", OK),
        (&verified, "10-1-0-1.bare.pod", NX),
        (&verified, "10-1-0-2.ns.pod", NX),
        (&verified, "ns.pod", OK),
        (&verified, "unnamed.ns.svc", OK),
    ] {
        for octets in [
            server.udp(&question(&whole(name), A)),
            server.tcp(&question(&whole(name), A)),
        ] {
            let reply = Message::from_vec(&octets).unwrap();
            assert_eq!(flags(&reply), format!("{code} aa rd ra"), "{name}");
        }
    }
}

// Owner names are compressed, targets of SRV are not (RFC 2782).
#[test]
fn targets_of_srv_are_spelled_out() {
    let server = Server::start(&[]);
    let reply = server.udp(&question("_http._tcp.web.ns.svc.cluster.local.", SRV));
    let target = b"\x03web\x02ns\x03svc\x07cluster\x05local\0";
    let places = reply.windows(target.len()).filter(|part| part == target);
    assert_eq!(places.count(), 2, "in the question and in the record");
    assert_eq!(reply[12 + 11 + target.len() + 4..][..2], [0xC0, 12]);
}

#[test]
fn rules_of_the_message_hold() {
    let server = Server::start(&[
        "--cluster-domain",
        "cluster.local,other.example",
        "--dns-ttl",
        "30",
    ]);
    let ask = |octets: &[u8]| Message::from_vec(&server.udp(octets)).unwrap();
    // The question and the names equal to it come back as they were spelled.
    for _ in 0..2 {
        let asked = question("wEb.Ns.sVc.ClUsTeR.lOcAl.", A);
        let reply = server.udp(&asked);
        assert_eq!(reply[12..asked.len()], asked[12..]);
        let message = Message::from_vec(&reply).unwrap();
        let spelled = Name::from_ascii("wEb.Ns.sVc.ClUsTeR.lOcAl.").unwrap();
        assert!(message.answers[0].name.eq_case(&spelled));
        assert_eq!(message.answers[0].ttl, 30);
    }
    // Every domain has every name; addresses have the first one's.
    let other = ask(&question("alias.ns.svc.other.example.", A));
    assert_eq!(
        section(&other.answers),
        "alias.ns.svc.other.example. 30 CNAME web.ns.svc.Z; web.ns.svc.Z 30 A 10.96.0.10"
    );
    let missing = ask(&question("gone.ns.svc.other.example.", A));
    assert_eq!(missing.authorities[0].name.to_ascii(), "other.example.");
    // A name that only looks like ours is forwarded, which fails here.
    for name in ["xcluster.local.", "local.", "outside.ns.svc.cluster.local."] {
        let reply = ask(&question(name, A));
        assert_eq!(flags(&reply), "SERVFAIL rd ra", "{name}");
        assert!(reply.answers.is_empty());
    }
    // Loops end at once.
    let looping = ask(&question("itself.ns.svc.cluster.local.", A));
    assert!(
        looping
            .answers
            .iter()
            .all(|record| record.record_type() == CNAME)
    );
    // Transfers, other classes and opcodes.
    let plain = question("cluster.local.", A);
    for (at, value, code) in [
        (plain.len() - 3, 252, ResponseCode::Refused),
        (plain.len() - 3, 251, ResponseCode::Refused),
        (plain.len() - 1, 3, ResponseCode::Refused),
        (2, 0x21, ResponseCode::NotImp),
        (2, 0x29, ResponseCode::NotImp),
        (5, 2, ResponseCode::FormErr),
        (5, 0, ResponseCode::FormErr),
        (7, 1, ResponseCode::FormErr),
        (12, 0xC0, ResponseCode::FormErr),
        (12, 0x80, ResponseCode::FormErr),
    ] {
        let mut octets = plain.clone();
        octets[at] = value;
        let reply = ask(&octets);
        assert_eq!(reply.metadata.response_code, code, "octet {at} = {value}");
        assert_eq!(reply.metadata.id, 7);
    }
    // EDNS: in kind, version 0 only, one record only, and no option comes back.
    let opt = |version: u8, options: &[u8]| {
        let length = u8::try_from(options.len()).unwrap();
        let fixed = [0, 0, 41, 0xFF, 0xFF, 0, version, 0x80, 0, 0, length];
        [&fixed[..], options].concat()
    };
    let with = |records: &[Vec<u8>]| {
        let mut octets = question("web.ns.svc.cluster.local.", A);
        octets[11] = u8::try_from(records.len()).unwrap();
        octets.extend(records.concat());
        octets
    };
    let cookie = [0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8];
    for options in [&[][..], &cookie[..]] {
        let edns = ask(&with(&[opt(0, options)])).edns.unwrap();
        assert!(edns.flags().dnssec_ok);
        assert_eq!(edns.max_payload(), 1232);
        assert!(edns.options().as_ref().is_empty());
    }
    // Who asks which server answers gets its number, the same each time (RFC 5001).
    let who = |reply: Message| {
        let options = reply.edns.unwrap();
        format!("{:?}", options.options().as_ref())
    };
    let asked = [0, 3, 0, 0];
    let told = who(ask(&with(&[opt(0, &asked)])));
    assert!(told.contains("NSID"), "{told}");
    assert_eq!(told, who(ask(&with(&[opt(0, &asked)]))));
    let reply = ask(&with(&[opt(1, &[])]));
    // One number stands for BADVERS and for BADSIG (RFC 6891, 9; RFC 8945, 3).
    let code = u16::from(reply.metadata.response_code);
    assert_eq!(code, u16::from(ResponseCode::BADVERS));
    let reply = ask(&with(&[opt(0, &[]), opt(0, &[])]));
    assert_eq!(reply.metadata.response_code, ResponseCode::FormErr);
}
