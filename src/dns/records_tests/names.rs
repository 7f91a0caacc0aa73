//! Fixed names, Pods, reverse names, and what all names have in common.

use super::*;

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
