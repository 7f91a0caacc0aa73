//! Aliases, and chains of them.

use super::*;

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
