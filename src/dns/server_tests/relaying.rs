//! Names of others: relayed, remembered, asked once, and by domain.

use super::*;

#[tokio::test]
async fn other_names_are_relayed_unchanged() {
    let stub = Stub::start().await;
    let client = start(vec![stub.addr]).await;
    let mut question = with_edns(query("Www.TEST.", RecordType::A), 1232, false);
    let reply = client.udp(&question).await;
    assert_eq!(reply.queries[0].name().to_ascii(), "Www.TEST.");
    assert_eq!(reply.answers[0].name.to_ascii(), "Www.TEST.");
    assert_eq!(data(&reply), ["192.0.2.80"]);
    let header = reply.metadata;
    assert!(header.recursion_available && !header.authoritative);
    assert!(
        !header.authentic_data,
        "nobody asked whether it was validated"
    );
    assert!(reply.edns.is_some());
    question.metadata.authentic_data = true;
    assert!(client.udp(&question).await.metadata.authentic_data);

    let odd = client.ask("odd.test.", RecordType::Unknown(65400)).await;
    assert_eq!(odd.answers[0].record_type(), RecordType::Unknown(65400));
    let alias = client.tcp(&query("alias.test.", RecordType::A)).await;
    assert_eq!(data(&alias), ["target.test.", "192.0.2.81"]);
    let missing = client.ask("missing.test.", RecordType::A).await;
    assert_eq!(missing.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(missing.authorities.len(), 1);
}

#[tokio::test]
async fn what_was_asked_is_remembered() {
    let stub = Stub::start().await;
    let client = start(vec![stub.addr]).await;
    for name in ["www.test.", "WWW.test.", "www.TEST."] {
        let reply = client.ask(name, RecordType::A).await;
        assert_eq!(reply.answers[0].name.to_ascii(), name);
    }
    assert_eq!(stub.asked("www.test."), 1);
    for kind in [RecordType::A, RecordType::AAAA, RecordType::TXT] {
        let reply = client.ask("missing.test.", kind).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(reply.queries[0].query_type(), kind);
    }
    assert_eq!(
        stub.asked("missing.test."),
        1,
        "a name that does not exist has no type at all"
    );
}

#[tokio::test]
async fn truncated_answers_are_fetched_over_tcp() {
    let stub = Stub::start().await;
    let client = start(vec![stub.addr]).await;
    let question = query("big.test.", RecordType::TXT);
    assert_eq!(client.tcp(&question).await.answers.len(), 12);
    let short = client.udp(&question).await;
    assert!(short.metadata.truncation && short.answers.len() < 12);
    // The connection is kept for the next one.
    let next = client.tcp(&query("big.test.", RecordType::A)).await;
    assert_eq!(next.answers.len(), 12);
    assert_eq!(stub.connections(), 1);
}

#[tokio::test]
async fn a_cut_answer_behind_an_alias_is_told() {
    let stub = Stub::start().await;
    let client = start(vec![stub.addr]).await;
    let question = query("out-big.ns.svc.cluster.local.", RecordType::TXT);
    let short = client.udp(&question).await;
    assert!(short.metadata.truncation && short.answers.len() < 13);
    assert_eq!(short.answers[0].record_type(), RecordType::CNAME);
    let whole = client.tcp(&question).await;
    assert!(!whole.metadata.truncation);
    assert_eq!(whole.answers.len(), 13);
}

#[tokio::test]
async fn identical_questions_are_asked_once() {
    let stub = Stub::start().await;
    let client = start(vec![stub.addr]).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(client.at).await.unwrap();
    let mut question = query("held.test.", RecordType::A);
    for id in 0..20 {
        question.metadata.id = id;
        socket.send(&question.to_vec().unwrap()).await.unwrap();
    }
    // Answered by the loop behind all twenty.
    question = query("web.ns.svc.cluster.local.", RecordType::A);
    socket.send(&question.to_vec().unwrap()).await.unwrap();
    let mut buffer = vec![0; 512];
    socket.recv(&mut buffer).await.unwrap();
    assert_eq!(buffer[..2], [0x12, 0x34], "a cluster name waits for nobody");
    stub.release();
    let mut ids = BTreeSet::new();
    for _ in 0..20 {
        let received = tokio::time::timeout(PATIENCE, socket.recv(&mut buffer)).await;
        let length = received.expect("no reply").unwrap();
        let reply = Message::from_vec(&buffer[..length]).unwrap();
        assert_eq!(data(&reply), ["192.0.2.80"]);
        ids.insert(reply.metadata.id);
    }
    assert_eq!(ids.len(), 20);
    assert_eq!(stub.asked("held.test."), 1);
}

#[tokio::test]
async fn aliases_out_of_the_cluster_are_followed() {
    let stub = Stub::start().await;
    let client = start(vec![stub.addr]).await;
    for _ in 0..2 {
        let reply = client
            .ask("out-www.ns.svc.cluster.local.", RecordType::A)
            .await;
        assert_eq!(data(&reply), ["www.test.", "192.0.2.80"]);
        assert!(reply.metadata.authoritative);
    }
    assert_eq!(stub.asked("www.test."), 1);
    let nothing = client
        .ask("out-www.ns.svc.cluster.local.", RecordType::AAAA)
        .await;
    assert_eq!(nothing.metadata.response_code, ResponseCode::NoError);
    assert_eq!(
        (data(&nothing), nothing.authorities.len()),
        (vec!["www.test.".to_owned()], 1)
    );
    let gone = client
        .ask("out-gone.ns.svc.cluster.local.", RecordType::A)
        .await;
    assert_eq!(gone.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(
        (data(&gone), gone.authorities.len()),
        (vec!["gone.test.".to_owned()], 1)
    );
    let sick = client
        .ask("out-servfail.ns.svc.cluster.local.", RecordType::A)
        .await;
    assert_eq!(sick.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn names_of_the_cluster_never_leave_it() {
    let stub = Stub::start().await;
    let client = start(vec![stub.addr]).await;
    for name in [
        "www.example.com.ns.svc.cluster.local.",
        "gone.ns.svc.cluster.local.",
        "Cluster.LOCAL.",
        "99.0.96.10.in-addr.arpa.",
        "lost.ns.svc.cluster.local.",
    ] {
        client.ask(name, RecordType::A).await;
    }
    client.ask("1.2.1.10.in-addr.arpa.", RecordType::PTR).await;
    assert_eq!(stub.names(), ["1.2.1.10.in-addr.arpa."]);
}

#[tokio::test]
async fn a_domain_may_have_its_own_resolvers() {
    let (here, there) = (Stub::start().await, Stub::start().await);
    let client = start_with(vec![here.addr], vec![("Corp.Test".to_owned(), there.addr)]).await;
    client.ask("a.corp.test.", RecordType::A).await;
    client.ask("xcorp.test.", RecordType::A).await;
    assert_eq!(
        (there.names(), here.names()),
        (
            vec!["a.corp.test.".to_owned()],
            vec!["xcorp.test.".to_owned()]
        )
    );
}
