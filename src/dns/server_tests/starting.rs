//! Before the sources have told everything.

use super::*;

#[tokio::test]
async fn before_the_sources_have_told_everything_only_a_miss_fails() {
    let stub = Stub::start().await;
    let client = serve(crowded(), vec![stub.addr], |_| {}).await;
    for (name, kind, expected) in [
        ("web.ns.svc.cluster.local.", RecordType::A, "10.96.0.1"),
        (
            "1.0.96.10.in-addr.arpa.",
            RecordType::PTR,
            "web.ns.svc.cluster.local.",
        ),
        ("www.test.", RecordType::A, "192.0.2.80"),
    ] {
        let question = query(name, kind);
        for reply in [client.udp(&question).await, client.tcp(&question).await] {
            assert_eq!(data(&reply), [expected], "{name}");
        }
    }
    for (name, kind) in [
        ("web.ns.svc.cluster.local.", RecordType::AAAA),
        ("gone.ns.svc.cluster.local.", RecordType::A),
        ("99.0.96.10.in-addr.arpa.", RecordType::PTR),
    ] {
        let question = query(name, kind);
        for reply in [client.udp(&question).await, client.tcp(&question).await] {
            assert_eq!(
                reply.metadata.response_code,
                ResponseCode::ServFail,
                "{name}"
            );
        }
    }
    assert!(
        !stub
            .names()
            .contains(&"gone.ns.svc.cluster.local.".to_owned())
    );
}
