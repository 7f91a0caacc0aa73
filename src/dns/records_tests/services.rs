//! Services: their addresses, ports and endpoints.

use super::*;

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
