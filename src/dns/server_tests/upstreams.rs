//! Resolvers that lose, forge, fail or ask back.

use super::*;

#[tokio::test]
async fn a_lost_datagram_is_sent_again() {
    let stub = Stub::start().await;
    let client = start(vec![stub.addr]).await;
    let reply = client.ask("dropped-once.test.", RecordType::A).await;
    assert_eq!(data(&reply), ["192.0.2.80"]);
    assert_eq!(stub.asked("dropped-once.test."), 2);
}

#[tokio::test]
async fn forged_replies_are_not_believed() {
    let stub = Stub::start().await;
    let client = start(vec![stub.addr]).await;
    assert_eq!(
        data(&client.ask("forged.test.", RecordType::A).await),
        ["192.0.2.80"]
    );
    assert_eq!(stub.asked("forged.test."), 1);
}

#[tokio::test]
async fn a_resolver_that_fails_is_passed_over() {
    let (sick, well) = (Stub::broken().await, Stub::start().await);
    let closed = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    for _ in 0..4 {
        // A new server each time: in which order they are asked is chance.
        let client = start(vec![sick.addr, closed, well.addr]).await;
        let reply = client.ask("www.test.", RecordType::A).await;
        assert_eq!(data(&reply), ["192.0.2.80"]);
    }
    let client = start(vec![sick.addr]).await;
    let reply = client.ask("www.test.", RecordType::A).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn a_refusal_without_a_question_is_understood() {
    let stub = Stub::start().await;
    let client = start(vec![stub.addr]).await;
    let reply = client.ask("curt.test.", RecordType::A).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(stub.asked("curt.test."), 1);
}

#[tokio::test]
async fn a_record_that_cannot_be_read_is_a_failure_and_not_silence() {
    let stub = Stub::start().await;
    let client = start(vec![stub.addr]).await;
    let reply = client.ask("spoilt.test.", RecordType::A).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(reply.queries[0].name().to_ascii(), "spoilt.test.");
}

#[tokio::test]
async fn a_resolver_older_than_edns_is_asked_without() {
    let stub = Stub::start().await;
    let client = start(vec![stub.addr]).await;
    let question = with_edns(query("old.test.", RecordType::A), 1232, false);
    let reply = client.udp(&question).await;
    assert_eq!(data(&reply), ["192.0.2.80"]);
    assert!(reply.edns.is_some(), "the client's EDNS is our own affair");
    assert_eq!(stub.asked("old.test."), 2);
}

#[tokio::test]
async fn a_question_that_comes_back_is_dropped() {
    // A resolver that hands our own question back to us, octet by octet.
    let mirror = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let client = start(vec![mirror.local_addr().unwrap()]).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(client.at).await.unwrap();
    let question = query("www.test.", RecordType::A).to_vec().unwrap();
    socket.send(&question).await.unwrap();
    let mut buffer = vec![0; 512];
    // The first thing it hears is the question that would show a loop.
    let (mut length, mut upstream_side) = mirror.recv_from(&mut buffer).await.unwrap();
    if !buffer[..length].windows(3).any(|part| part == b"www") {
        (length, upstream_side) = mirror.recv_from(&mut buffer).await.unwrap();
    }
    let mut reply = Message::from_vec(&buffer[..length]).unwrap();
    socket.send(&buffer[..length]).await.unwrap();
    let probe = query("web.ns.svc.cluster.local.", RecordType::A)
        .to_vec()
        .unwrap();
    socket.send(&probe).await.unwrap();
    let length = socket.recv(&mut buffer).await.unwrap();
    assert_eq!(
        data(&Message::from_vec(&buffer[..length]).unwrap()),
        ["10.96.0.1"]
    );
    // The first question is still answered once the upstream comes to its senses.
    reply.metadata.message_type = MessageType::Response;
    mirror
        .send_to(&reply.to_vec().unwrap(), upstream_side)
        .await
        .unwrap();
    let length = socket.recv(&mut buffer).await.unwrap();
    assert_eq!(
        Message::from_vec(&buffer[..length]).unwrap().metadata.id,
        0x1234
    );
    let dropped = client
        .metrics
        .dropped
        .with_label_values(&["own_loop"])
        .get();
    assert_eq!(dropped, 1);
}

#[tokio::test]
async fn without_anybody_to_ask_other_names_fail_at_once() {
    let closed = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let client = start(vec![closed]).await;
    for name in ["www.test.", "out-www.ns.svc.cluster.local."] {
        let reply = client.ask(name, RecordType::A).await;
        assert_eq!(
            reply.metadata.response_code,
            ResponseCode::ServFail,
            "{name}"
        );
        assert!(reply.answers.is_empty());
    }
}

#[tokio::test]
async fn a_server_is_never_its_own_upstream() {
    let free = listen::bind("127.0.0.1:0".parse().unwrap(), &[], Sharing::First).unwrap();
    let at = free[0].address;
    let upstreams = Upstreams::new(&[], &[at], &[at]);
    drop(free);
    assert!(format!("{upstreams:?}").contains("others: []"));
}

#[tokio::test]
async fn silence_is_asked_four_times_within_the_budget() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let client = start(vec![silent.local_addr().unwrap()]).await;
    let begun = std::time::Instant::now();
    let reply = client.ask("www.test.", RecordType::A).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    // glibc gives up after 5 s, and has to hear of the failure before.
    assert!(begun.elapsed() < Duration::from_secs(5));
    let mut buffer = [0; 512];
    let mut ids = BTreeSet::new();
    while let Ok((length, _)) = silent.try_recv_from(&mut buffer) {
        let asked = Message::from_vec(&buffer[..length]).unwrap();
        if asked.queries[0].name().to_ascii() == "www.test." {
            ids.insert(asked.metadata.id);
        }
    }
    assert_eq!(ids.len(), 4, "{ids:?}");
    assert_eq!(client.metrics.upstream_requests.get(), 4);
}
