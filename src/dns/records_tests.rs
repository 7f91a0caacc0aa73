//! The rules of `records`, each a row: question, type, answer.
//!
//! Answers are written as the records in them: aliases first, then the data; `nodata`, `nxdomain`, `unsynced`,
//! `outside` or `forward` where there is none.

use super::super::fixture::{cluster, ip, ready, service, slice, table, tcp};
use super::*;
use crate::model::{Event, Port, Protocol, SctpPort};

fn authority() -> Authority {
    Authority {
        zones: vec![
            Zone::parse("cluster.local").unwrap(),
            Zone::parse("other.example").unwrap(),
        ],
        pods: PodMode::Insecure,
        dns_service: ServiceName::new("kube-system", "kube-dns"),
        own_addresses: vec![ip("127.0.0.1")],
        hide_empty: false,
        ttl: 5,
        negative_ttl: 7,
        max_aliases: 10,
        owned_ranges: vec![
            "10.96.0.0/16".parse().unwrap(),
            "fd00:10:96::/112".parse().unwrap(),
        ],
    }
}

fn ask(authority: &Authority, table: &RoutingTable, name: &str, kind: RecordType) -> Answer {
    let mut name = Name::from_ascii(name).unwrap();
    name.set_fqdn(true);
    authority.answer(table, 42, &name, kind)
}

fn show(answer: Answer) -> String {
    let local = match answer {
        Answer::Cluster(local) | Answer::Reverse(local) => local,
        Answer::Forward => return "forward".to_owned(),
    };
    let mut words: Vec<String> = local
        .aliases
        .iter()
        .map(|alias| alias.data.to_string())
        .collect();
    match local.end {
        End::Records { answers, .. } => {
            words.extend(answers.iter().map(|one| one.data.to_string()))
        }
        End::NoData(_) => words.push("nodata".to_owned()),
        End::NxDomain(_) => words.push("nxdomain".to_owned()),
        End::Unsynced => words.push("unsynced".to_owned()),
        End::Outside(target) => words.push(format!("outside {target}")),
    }
    words.join(", ").replace(".cluster.local.", ".Z")
}

fn check(authority: &Authority, table: &RoutingTable, rows: &[(&str, RecordType, &str)]) {
    for (name, kind, expected) in rows {
        let name = name.replace(".Z", ".cluster.local");
        assert_eq!(
            show(ask(authority, table, &name, *kind)),
            *expected,
            "{name} {kind}"
        );
    }
}

use RecordType::{
    A, AAAA, ANY, CNAME, HTTPS, MX, NS as NAME_SERVER, PTR as POINTER, SOA as START, SRV as PORT,
    TXT as TEXT,
};

#[test]
fn services_with_cluster_ips() {
    check(
        &authority(),
        &table(),
        &[
            ("web.ns.svc.Z", A, "10.96.0.1"),
            ("WEB.ns.SVC.Z", A, "10.96.0.1"),
            ("web.ns.svc.Z", AAAA, "nodata"),
            ("dual.ns.svc.Z", A, "10.96.0.2"),
            ("dual.ns.svc.Z", AAAA, "fd00:10:96::2"),
            ("idle.ns.svc.Z", A, "10.96.0.4"),
            ("web.ns.svc.Z", MX, "nodata"),
            ("web.ns.svc.Z", HTTPS, "nodata"),
            ("web.ns.svc.Z", CNAME, "nodata"),
            ("web.ns.svc.Z", ANY, "nodata"),
            ("web.ns.svc.Z", START, "nodata"),
            ("gone.ns.svc.Z", A, "nxdomain"),
            ("web.bare.svc.Z", A, "nxdomain"),
            ("web.ns.svc.Z", PORT, "0 100 80 web.ns.svc.Z"),
            ("_http._tcp.web.ns.svc.Z", PORT, "0 100 80 web.ns.svc.Z"),
            ("_http._tcp.dual.ns.svc.Z", PORT, "0 100 80 dual.ns.svc.Z"),
            ("_http._tcp.web.ns.svc.Z", A, "nodata"),
            ("_http._udp.web.ns.svc.Z", PORT, "nxdomain"),
            ("_https._tcp.web.ns.svc.Z", PORT, "nxdomain"),
            ("_tcp.web.ns.svc.Z", PORT, "nodata"),
            ("_udp.web.ns.svc.Z", PORT, "nxdomain"),
            ("_dns._udp.many.ns.svc.Z", PORT, "0 100 53 many.ns.svc.Z"),
            ("_._tcp.many.ns.svc.Z", PORT, "nxdomain"),
            // 53/UDP and 53/TCP are one pair of port and target; the unnamed port is listed here only.
            (
                "many.ns.svc.Z",
                PORT,
                "0 33 9 many.ns.svc.Z, 0 33 53 many.ns.svc.Z, 0 33 80 many.ns.svc.Z",
            ),
        ],
    );
}

#[test]
fn headless_services() {
    check(
        &authority(),
        &table(),
        &[
            ("db.ns.svc.Z", A, "10.1.1.1, 10.1.1.2, 10.1.1.3"),
            ("db.ns.svc.Z", AAAA, "fd00:1::1"),
            ("db.ns.svc.Z", TEXT, "nodata"),
            ("six.ns.svc.Z", A, "nodata"),
            ("six.ns.svc.Z", AAAA, "fd00:1::7, fd00:1:2::"),
            ("none.ns.svc.Z", A, "nxdomain"),
            ("none.ns.svc.Z", TEXT, "nxdomain"),
            ("sick.ns.svc.Z", A, "nxdomain"),
            ("s-0.sick.ns.svc.Z", A, "nxdomain"),
            ("ghost.ns.svc.Z", A, "nxdomain"),
            ("g-0.ghost.ns.svc.Z", A, "nxdomain"),
            ("plain.ns.svc.Z", A, "10.1.3.1"),
            ("plain.ns.svc.Z", PORT, "nodata"),
            ("_http._tcp.plain.ns.svc.Z", PORT, "nxdomain"),
            (
                "_http._tcp.db.ns.svc.Z",
                PORT,
                "0 33 8080 10-1-1-3.db.ns.svc.Z, 0 33 8080 db-0.db.ns.svc.Z, 0 33 8080 db-1.db.ns.svc.Z",
            ),
            ("_http._tcp.sick.ns.svc.Z", PORT, "nxdomain"),
        ],
    );
}

#[test]
fn ports_of_sctp_have_names_although_nothing_serves_them() {
    let mut builder = cluster();
    let sctp = |name: &str, port| SctpPort {
        name: name.into(),
        port: Port::try_from(port).unwrap(),
    };
    let (ss7, peers) = (ServiceKind::ClusterIp, ServiceKind::Headless);
    for (name, kind, ips) in [("ss7", ss7, "10.96.0.77"), ("peers", peers, "")] {
        let Event::ServiceApplied(mut applied) = service(name, kind, ips, &[]) else {
            panic!("a Service is applied");
        };
        Arc::make_mut(&mut applied).sctp_ports = vec![sctp("sig", 3868)];
        builder.apply(Event::ServiceApplied(applied));
    }
    let Event::SliceApplied(mut applied) =
        slice("peers-1", "peers", &[], &[ready("10.1.9.1", None)])
    else {
        panic!("a slice is applied");
    };
    Arc::make_mut(&mut applied).sctp_ports = vec![sctp("sig", 3869)];
    builder.apply(Event::SliceApplied(applied));
    builder.set_synced();
    check(
        &authority(),
        &builder.build().table,
        &[
            ("_sig._sctp.ss7.ns.svc.Z", PORT, "0 100 3868 ss7.ns.svc.Z"),
            ("_sctp.ss7.ns.svc.Z", PORT, "nodata"),
            ("_sig._tcp.ss7.ns.svc.Z", PORT, "nxdomain"),
            ("ss7.ns.svc.Z", PORT, "0 100 3868 ss7.ns.svc.Z"),
            (
                "_sig._sctp.peers.ns.svc.Z",
                PORT,
                "0 100 3869 10-1-9-1.peers.ns.svc.Z",
            ),
        ],
    );
}

#[test]
fn endpoint_names() {
    check(
        &authority(),
        &table(),
        &[
            ("db-0.db.ns.svc.Z", A, "10.1.1.1"),
            ("DB-0.db.ns.svc.Z", AAAA, "fd00:1::1"),
            ("db-1.db.ns.svc.Z", A, "10.1.1.2"),
            ("db-1.db.ns.svc.Z", AAAA, "nodata"),
            ("db-1.db.ns.svc.Z", PORT, "nodata"),
            ("10-1-1-3.db.ns.svc.Z", A, "10.1.1.3"),
            ("10-1-1-1.db.ns.svc.Z", A, "nxdomain"),
            ("fd00-1-2--0.six.ns.svc.Z", AAAA, "fd00:1:2::"),
            ("fd00-1--7.six.ns.svc.Z", AAAA, "fd00:1::7"),
            ("fd00-1-0-0-0-0-0-7.six.ns.svc.Z", AAAA, "nxdomain"),
            ("db-9.db.ns.svc.Z", A, "nxdomain"),
            ("*.db.ns.svc.Z", A, "nxdomain"),
            ("any.db.ns.svc.Z", A, "nxdomain"),
            ("w-0.web.ns.svc.Z", A, "10.1.0.1"),
            ("10-1-0-2.web.ns.svc.Z", A, "10.1.0.2"),
            ("a.w-0.web.ns.svc.Z", A, "nxdomain"),
        ],
    );
}

#[test]
fn aliases() {
    check(
        &authority(),
        &table(),
        &[
            ("out.ns.svc.Z", CNAME, "www.example.com."),
            (
                "out.ns.svc.Z",
                A,
                "www.example.com., outside www.example.com.",
            ),
            ("out.ns.svc.Z", ANY, "www.example.com."),
            ("in.ns.svc.Z", A, "web.ns.svc.Z, 10.96.0.1"),
            ("in.ns.svc.Z", AAAA, "web.ns.svc.Z, nodata"),
            ("in.ns.svc.Z", CNAME, "web.ns.svc.Z"),
            (
                "in-twice.ns.svc.Z",
                A,
                "in.ns.svc.Z, web.ns.svc.Z, 10.96.0.1",
            ),
            (
                "to-out.ns.svc.Z",
                A,
                "out.ns.svc.Z, www.example.com., outside www.example.com.",
            ),
            ("lost.ns.svc.Z", A, "gone.ns.svc.Z, nxdomain"),
            ("itself.ns.svc.Z", A, "itself.ns.svc.Z"),
            ("ring-a.ns.svc.Z", A, "ring-b.ns.svc.Z, ring-a.ns.svc.Z"),
            ("address.ns.svc.Z", A, "nxdomain"),
            ("nonsense.ns.svc.Z", CNAME, "nxdomain"),
            ("x.in.ns.svc.Z", A, "nxdomain"),
            ("_http._tcp.in.ns.svc.Z", PORT, "nxdomain"),
        ],
    );
}

#[test]
fn a_chain_of_aliases_ends_at_the_bound() {
    let mut builder = cluster();
    for n in 0..=10 {
        let next = format!("hop-{}.ns.svc.cluster.local", n + 1);
        builder.apply(service(
            &format!("hop-{n}"),
            ServiceKind::ExternalName(next.into()),
            "",
            &[],
        ));
    }
    let end = format!("hop-{}", 10 + 1);
    builder.apply(service(&end, ServiceKind::ClusterIp, "10.96.9.9", &[]));
    builder.set_synced();
    let table = builder.build().table;
    let answer = |from: usize| {
        show(ask(
            &authority(),
            &table,
            &format!("hop-{from}.ns.svc.cluster.local"),
            A,
        ))
    };
    assert!(
        answer(2).ends_with("10.96.9.9"),
        "one hop below the bound: {}",
        answer(2)
    );
    assert!(
        answer(1).ends_with("hop-11.ns.svc.Z"),
        "at the bound nothing more is followed: {}",
        answer(1)
    );
}

#[test]
fn fixed_names() {
    check(
        &authority(),
        &table(),
        &[
            (
                "cluster.local",
                START,
                "ns.dns.Z hostmaster.Z 42 7200 1800 86400 7",
            ),
            ("cluster.local", NAME_SERVER, "ns.dns.Z"),
            ("cluster.local", A, "nodata"),
            ("cluster.local", ANY, "nodata"),
            ("svc.Z", A, "nodata"),
            ("pod.Z", A, "nodata"),
            ("dns.Z", A, "nodata"),
            ("ns.dns.Z", A, "127.0.0.1"),
            ("ns.dns.Z", AAAA, "nodata"),
            ("dns-version.Z", TEXT, "1.1.0"),
            ("dns-version.Z", A, "nodata"),
            ("ns.svc.Z", A, "nodata"),
            ("bare.svc.Z", TEXT, "nodata"),
            ("nowhere.svc.Z", A, "nxdomain"),
            ("ns.pod.Z", A, "nodata"),
            ("nowhere.pod.Z", A, "nxdomain"),
            ("web.ns.Z", A, "nxdomain"),
            ("webs.ns.pood.Z", A, "nxdomain"),
            ("www.example.com.ns.svc.Z", A, "nxdomain"),
            ("www.example.com.Z", A, "nxdomain"),
            ("www.example.com", A, "forward"),
            ("xcluster.local", A, "forward"),
            ("local", A, "forward"),
            (".", NAME_SERVER, "forward"),
        ],
    );
}

#[test]
fn the_dns_service_names_the_server() {
    let mut authority = authority();
    authority.dns_service = ServiceName::new("ns", "dual");
    check(
        &authority,
        &table(),
        &[
            ("ns.dns.Z", A, "10.96.0.2"),
            ("ns.dns.Z", AAAA, "fd00:10:96::2"),
        ],
    );
}

#[test]
fn pod_names_follow_the_mode() {
    let rows = [
        // name, disabled, insecure, verified
        ("10-1-0-1.ns.pod.Z", "nxdomain", "10.1.0.1", "10.1.0.1"),
        ("10-1-0-2.ns.pod.Z", "nxdomain", "10.1.0.2", "nxdomain"),
        ("10-1-0-9.ns.pod.Z", "nxdomain", "10.1.0.9", "nxdomain"),
        ("10-1-0-1.bare.pod.Z", "nxdomain", "10.1.0.1", "nxdomain"),
        ("10-1-0-1.nowhere.pod.Z", "nxdomain", "nxdomain", "nxdomain"),
        ("fd00--1.ns.pod.Z", "nxdomain", "nodata", "nxdomain"),
        ("256-1-1-1.ns.pod.Z", "nxdomain", "nxdomain", "nxdomain"),
        ("01-1-1-1.ns.pod.Z", "nxdomain", "nxdomain", "nxdomain"),
        ("blah.ns.pod.Z", "nxdomain", "nxdomain", "nxdomain"),
        ("x.10-1-0-1.ns.pod.Z", "nxdomain", "nxdomain", "nxdomain"),
        ("ns.pod.Z", "nxdomain", "nodata", "nodata"),
        ("pod.Z", "nodata", "nodata", "nodata"),
    ];
    let table = table();
    for (name, disabled, insecure, verified) in rows {
        let modes = [
            (PodMode::Disabled, disabled),
            (PodMode::Insecure, insecure),
            (PodMode::Verified, verified),
        ];
        for (pods, expected) in modes {
            let authority = Authority {
                pods,
                ..authority()
            };
            check(&authority, &table, &[(name, A, expected)]);
        }
    }
}

#[test]
fn reverse_names() {
    let six = "0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa";
    let short_six = "6.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa";
    check(
        &authority(),
        &table(),
        &[
            ("1.0.96.10.in-addr.arpa", POINTER, "web.ns.svc.Z"),
            ("1.0.96.10.IN-ADDR.arpa", POINTER, "web.ns.svc.Z"),
            ("1.0.96.10.in-addr.arpa", A, "nodata"),
            ("x.1.0.96.10.in-addr.arpa", POINTER, "nxdomain"),
            ("99.0.96.10.in-addr.arpa", POINTER, "nxdomain"),
            ("0.96.10.in-addr.arpa", POINTER, "nodata"),
            ("96.10.in-addr.arpa", START, "nodata"),
            ("10.in-addr.arpa", POINTER, "forward"),
            // Behind two Services; with a hostname in one of them. In the order of DNS names.
            (
                "1.1.1.10.in-addr.arpa",
                POINTER,
                "db-0.db.ns.svc.Z, 10-1-1-1.many.ns.svc.Z",
            ),
            ("2.1.1.10.in-addr.arpa", POINTER, "db-1.db.ns.svc.Z"),
            ("2.0.1.10.in-addr.arpa", POINTER, "10-1-0-2.web.ns.svc.Z"),
            ("2.0.1.10.in-addr.arpa", TEXT, "nodata"),
            ("x.2.0.1.10.in-addr.arpa", TEXT, "nxdomain"),
            ("1.2.1.10.in-addr.arpa", POINTER, "forward"),
            ("1.4.1.10.in-addr.arpa", POINTER, "forward"),
            ("123.2.0.192.in-addr.arpa", POINTER, "forward"),
            (&format!("9.0.0.0.{six}"), POINTER, "nxdomain"),
            (short_six, POINTER, "forward"),
            (six, POINTER, "nodata"),
        ],
    );
    let dual = "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa";
    check(&authority(), &table(), &[(dual, POINTER, "dual.ns.svc.Z")]);
}

#[test]
fn before_everything_is_known_nothing_is_missing() {
    let table = cluster().build().table;
    check(
        &authority(),
        &table,
        &[
            ("web.ns.svc.Z", A, "10.96.0.1"),
            ("web.ns.svc.Z", AAAA, "unsynced"),
            ("gone.ns.svc.Z", A, "unsynced"),
            ("none.ns.svc.Z", A, "unsynced"),
            ("lost.ns.svc.Z", A, "gone.ns.svc.Z, unsynced"),
            ("1.0.96.10.in-addr.arpa", POINTER, "web.ns.svc.Z"),
            ("99.0.96.10.in-addr.arpa", POINTER, "unsynced"),
            ("www.example.com", A, "forward"),
        ],
    );
}

#[test]
fn empty_services_can_be_hidden() {
    let authority = Authority {
        hide_empty: true,
        ..authority()
    };
    check(
        &authority,
        &table(),
        &[
            ("web.ns.svc.Z", A, "10.96.0.1"),
            ("idle.ns.svc.Z", A, "nxdomain"),
            ("_http._tcp.idle.ns.svc.Z", PORT, "nxdomain"),
            ("out.ns.svc.Z", CNAME, "www.example.com."),
            ("db.ns.svc.Z", AAAA, "fd00:1::1"),
        ],
    );
}

#[test]
fn srv_records_tell_the_port_that_is_really_served() {
    let mut builder = cluster();
    builder.set_served_port(tcp("10.96.0.1:80"), 8080);
    let table = builder.build().table;
    check(
        &authority(),
        &table,
        &[
            ("_http._tcp.web.ns.svc.Z", PORT, "0 100 8080 web.ns.svc.Z"),
            ("_http._tcp.dual.ns.svc.Z", PORT, "0 100 80 dual.ns.svc.Z"),
        ],
    );
}

#[test]
fn srv_answers_carry_each_targets_addresses_once() {
    let rows = [
        (
            "_http._tcp.dual.ns.svc.Z",
            vec!["10.96.0.2", "fd00:10:96::2"],
        ),
        ("many.ns.svc.Z", vec!["10.96.0.3"]),
        (
            "db.ns.svc.Z",
            vec!["10.1.1.1", "10.1.1.2", "10.1.1.3", "fd00:1::1"],
        ),
        ("cluster.local", vec!["127.0.0.1"]),
    ];
    for (name, expected) in rows {
        let kind = if name == "cluster.local" {
            NAME_SERVER
        } else {
            PORT
        };
        let name = name.replace(".Z", ".cluster.local");
        let Answer::Cluster(local) = ask(&authority(), &table(), &name, kind) else {
            panic!("{name} is ours");
        };
        let End::Records { additionals, .. } = local.end else {
            panic!("{name} has records");
        };
        let mut told: Vec<String> = additionals.iter().map(|one| one.data.to_string()).collect();
        told.sort();
        assert_eq!(told, expected, "{name}");
    }
}

#[test]
fn negative_answers_carry_one_soa_of_their_zone() {
    let rows = [
        ("gone.ns.svc.cluster.local", "cluster.local."),
        ("Cluster.LOCAL", "Cluster.LOCAL."),
        ("99.0.96.10.in-addr.arpa", "96.10.in-addr.arpa."),
        ("2.0.1.10.in-addr.arpa", "2.0.1.10.in-addr.arpa."),
    ];
    for (name, zone) in rows {
        let (Answer::Cluster(local) | Answer::Reverse(local)) =
            ask(&authority(), &table(), name, A)
        else {
            panic!("{name} is ours");
        };
        let (End::NoData(soa) | End::NxDomain(soa)) = local.end else {
            panic!("{name} has no A record");
        };
        assert_eq!((soa.name.to_ascii().as_str(), soa.ttl), (zone, 7), "{name}");
        assert!(matches!(soa.data, RData::SOA(soa) if soa.minimum == 7 && soa.serial == 42));
    }
}

#[test]
fn records_have_the_configured_ttl_and_the_clients_spelling() {
    let Answer::Cluster(local) = ask(&authority(), &table(), "In.NS.svc.Cluster.Local", A) else {
        panic!("ours");
    };
    assert_eq!(local.aliases[0].name.to_ascii(), "In.NS.svc.Cluster.Local.");
    let End::Records { answers, .. } = local.end else {
        panic!("has records");
    };
    assert_eq!(answers[0].name.to_ascii(), "web.ns.svc.cluster.local.");
    assert!(
        local
            .aliases
            .iter()
            .chain(&answers)
            .all(|record| record.ttl == 5)
    );
}

#[test]
fn a_moved_endpoint_changes_its_reverse_name() {
    let mut builder = cluster();
    builder.set_synced();
    builder.apply(slice(
        "web-1",
        "web",
        &[("http", Protocol::Tcp, 80)],
        &[ready("10.1.0.5", None)],
    ));
    builder.apply(Event::ServiceDeleted(ServiceName::new("ns", "dual")));
    let table = builder.build().table;
    check(
        &authority(),
        &table,
        &[
            ("2.0.1.10.in-addr.arpa", POINTER, "forward"),
            ("5.0.1.10.in-addr.arpa", POINTER, "10-1-0-5.web.ns.svc.Z"),
            ("2.0.96.10.in-addr.arpa", POINTER, "nxdomain"),
            ("dual.ns.svc.Z", A, "nxdomain"),
        ],
    );
}
