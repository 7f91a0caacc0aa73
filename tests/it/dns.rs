//! DNS through the whole program, asked over UDP and TCP.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};

use crate::cluster::{Cluster, eventually, patience, pod, service};

fn question(name: &str, record_type: RecordType) -> Vec<u8> {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), record_type));
    message.to_vec().unwrap()
}

fn ask_udp(server: SocketAddr, name: &str, record_type: RecordType) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(patience())).unwrap();
    socket.connect(server).unwrap();
    socket.send(&question(name, record_type)).unwrap();
    let mut buffer = [0; 4096];
    let n = socket.recv(&mut buffer).unwrap();
    Message::from_vec(&buffer[..n]).unwrap()
}

fn ask_tcp(server: SocketAddr, name: &str, record_type: RecordType) -> Message {
    let mut stream = TcpStream::connect(server).unwrap();
    stream.set_read_timeout(Some(patience())).unwrap();
    let query = question(name, record_type);
    stream
        .write_all(&u16::try_from(query.len()).unwrap().to_be_bytes())
        .unwrap();
    stream.write_all(&query).unwrap();
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut buffer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut buffer).unwrap();
    Message::from_vec(&buffer).unwrap()
}

fn answers(message: &Message) -> Vec<String> {
    let mut answers: Vec<String> = message
        .answers
        .iter()
        .map(|record| record.data.to_string())
        .collect();
    answers.sort();
    answers
}

#[test]
fn names_of_every_kind_are_answered_over_udp_and_tcp() {
    let headless = "apiVersion: v1\nkind: Service\nmetadata: {name: db}\nspec:\n  clusterIP: None\n  selector: {app: db}\n  ports:\n  - {name: sql, port: 8080}\n";
    let alias = "apiVersion: v1\nkind: Service\nmetadata: {name: docs}\nspec:\n  type: ExternalName\n  externalName: web.default.svc.cluster.local\n";
    let cluster = Cluster::start(&[
        (
            "web.yaml",
            &service("web", 8080).replace("- port", "- name: http\n    port"),
        ),
        ("db.yaml", headless),
        ("docs.yaml", alias),
        ("a.yaml", &pod("db", "a", true)),
        ("b.yaml", &pod("db", "b", false)),
        ("w.yaml", &pod("web", "w", true)),
    ]);
    let server = cluster.address("DNS");
    let web_ip = cluster.served_at("web").ip().to_string();
    let a_ip = cluster
        .items("pods")
        .iter()
        .find(|p| p["metadata"]["name"] == "a")
        .unwrap()["status"]["podIP"]
        .as_str()
        .unwrap()
        .to_owned();
    let endpoint = format!("{}.db.default.svc.cluster.local.", a_ip.replace('.', "-"));
    let octets: Vec<&str> = web_ip.split('.').rev().collect();
    let reverse = format!("{}.in-addr.arpa.", octets.join("."));
    let rows = [
        (
            "web.default.svc.cluster.local.",
            RecordType::A,
            vec![web_ip.clone()],
        ),
        (
            "WEB.default.svc.Cluster.local.",
            RecordType::A,
            vec![web_ip.clone()],
        ),
        (
            "_http._tcp.web.default.svc.cluster.local.",
            RecordType::SRV,
            vec!["8080 web.default.svc.cluster.local.".to_owned()],
        ),
        (
            "db.default.svc.cluster.local.",
            RecordType::A,
            vec![a_ip.clone()],
        ),
        (&endpoint, RecordType::A, vec![a_ip.clone()]),
        (
            &reverse,
            RecordType::PTR,
            vec!["web.default.svc.cluster.local.".to_owned()],
        ),
        (
            "docs.default.svc.cluster.local.",
            RecordType::A,
            vec![web_ip.clone(), "web.default.svc.cluster.local.".to_owned()],
        ),
    ];
    for (name, record_type, expected) in rows {
        for ask in [ask_udp, ask_tcp] {
            let message = ask(server, name, record_type);
            assert_eq!(
                message.metadata.response_code,
                ResponseCode::NoError,
                "{name}"
            );
            assert!(message.metadata.authoritative, "{name}");
            let found = answers(&message);
            assert_eq!(found.len(), expected.len(), "{name}: {found:?}");
            for part in &expected {
                assert!(
                    found.iter().any(|answer| answer.ends_with(part)),
                    "{name}: {part} is not in {found:?}"
                );
            }
        }
    }
}

#[test]
fn a_missing_name_is_nxdomain_and_a_missing_type_is_nodata() {
    let cluster = Cluster::start(&[
        ("web.yaml", &service("web", 8080)),
        ("w.yaml", &pod("web", "w", true)),
    ]);
    let server = cluster.address("DNS");
    for ask in [ask_udp, ask_tcp] {
        let missing = ask(server, "nothing.default.svc.cluster.local.", RecordType::A);
        assert_eq!(missing.metadata.response_code, ResponseCode::NXDomain);
        let no_data = ask(server, "web.default.svc.cluster.local.", RecordType::AAAA);
        assert_eq!(no_data.metadata.response_code, ResponseCode::NoError);
        for message in [missing, no_data] {
            assert!(message.answers.is_empty());
            let soa = message
                .authorities
                .iter()
                .filter(|record| matches!(record.data, RData::SOA(_)))
                .count();
            assert_eq!(soa, 1, "every negative answer has exactly one SOA");
        }
    }
}

#[test]
fn a_change_is_in_the_answers() {
    let cluster = Cluster::start(&[]);
    let server = cluster.address("DNS");
    let code = || {
        ask_udp(server, "late.default.svc.cluster.local.", RecordType::A)
            .metadata
            .response_code
    };
    assert_eq!(code(), ResponseCode::NXDomain);
    cluster.write("late.yaml", &service("late", 8080));
    eventually("the new name", || {
        if code() == ResponseCode::NoError {
            Ok(())
        } else {
            Err(code())
        }
    });
    cluster.remove("late.yaml");
    eventually("the name is gone", || {
        if code() == ResponseCode::NXDomain {
            Ok(())
        } else {
            Err(code())
        }
    });
}
