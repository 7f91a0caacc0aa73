//! Search lists that the server follows for its clients, over real sockets.

use super::*;

async fn completing(stub: &Stub) -> Client {
    start_as(vec![stub.addr], |config| {
        config.search_completion = Some(vec!["corp.test".to_owned()]);
    })
    .await
}

#[tokio::test]
async fn a_search_list_is_followed_to_the_first_name_that_exists() {
    let stub = Stub::start().await;
    let client = completing(&stub).await;
    let asked = "Www.test.ns.svc.cluster.local.";
    for _ in 0..2 {
        let reply = client.ask(asked, RecordType::A).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
        assert_eq!(reply.answers[0].name.to_ascii(), asked);
        assert_eq!(data(&reply), ["Www.test.", "192.0.2.80"]);
        // The other family decides for the same name, though it has nothing.
        let other = client.tcp(&query(asked, RecordType::AAAA)).await;
        assert_eq!(other.metadata.response_code, ResponseCode::NoError);
        assert_eq!(data(&other), ["Www.test."]);
        assert_eq!(other.authorities.len(), 1);
    }
    assert_eq!(stub.asked("www.test.corp.test."), 1, "the node's domain");
    assert_eq!(stub.asked("www.test."), 2, "each type once");
    // Names of the cluster further down the list need nobody else.
    let asked = "web.ns.ns.svc.cluster.local.";
    for _ in 0..2 {
        let reply = client.ask(asked, RecordType::A).await;
        assert_eq!(data(&reply), ["web.ns.svc.cluster.local.", "10.96.0.1"]);
        let other = client.ask(asked, RecordType::AAAA).await;
        assert_eq!(data(&other), ["web.ns.svc.cluster.local."]);
        assert_eq!(other.metadata.response_code, ResponseCode::NoError);
    }
    assert_eq!(client.metrics.completed_searches.get(), 8);
    assert_eq!(client.metrics.forwards_in_flight.get(), 0, "seats are free");
}

#[tokio::test]
async fn when_nothing_in_the_list_exists_the_first_answer_stands() {
    let stub = Stub::start().await;
    let client = completing(&stub).await;
    for _ in 0..2 {
        let reply = client
            .ask("nothing.test.ns.svc.cluster.local.", RecordType::A)
            .await;
        assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
        assert!(reply.answers.is_empty());
        assert_eq!(reply.authorities[0].name.to_ascii(), "cluster.local.");
    }
    // Nobody can say whether the name exists.
    let reply = client
        .ask("servfail.test.ns.svc.cluster.local.", RecordType::A)
        .await;
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn only_the_list_of_the_pod_that_asks_is_followed() {
    let stub = Stub::start().await;
    let client = completing(&stub).await;
    let questions = [
        ("www.test.bare.svc.cluster.local.", RecordType::A),
        ("www.test.ns.svc.cluster.local.", RecordType::TXT),
        ("www.test.ns.pod.cluster.local.", RecordType::A),
        ("x.alias.ns.svc.other.local.cluster.local.", RecordType::A),
    ];
    for (name, kind) in questions {
        let reply = client.ask(name, kind).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
        assert!(reply.answers.is_empty(), "{name} {kind}");
    }
    // Somebody who is no Pod asks first, and what he got is not what the Pod gets.
    let asked = query("www.test.ns.svc.cluster.local.", RecordType::A);
    let stranger = UdpSocket::bind("127.0.0.2:0").await.unwrap();
    stranger
        .send_to(&asked.to_vec().unwrap(), client.at)
        .await
        .unwrap();
    let mut buffer = vec![0; 512];
    let length = stranger.recv(&mut buffer).await.unwrap();
    let reply = Message::from_vec(&buffer[..length]).unwrap();
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
    assert!(stub.names().is_empty(), "{:?}", stub.names());
    assert_eq!(data(&client.udp(&asked).await), ["www.test.", "192.0.2.80"]);
}
