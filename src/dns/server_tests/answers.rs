//! Answers of the server's own, over both transports: sections, sizes, order.

use super::*;

#[tokio::test]
async fn cluster_names_are_answered_over_both_transports() {
    let client = start(Vec::new()).await;
    let mut question = query("Web.NS.svc.Cluster.Local.", RecordType::A);
    question.metadata.checking_disabled = true;
    for reply in [client.udp(&question).await, client.tcp(&question).await] {
        let header = reply.metadata;
        assert_eq!(header.id, 0x1234);
        assert_eq!(header.response_code, ResponseCode::NoError);
        assert!(header.authoritative && header.recursion_available && header.recursion_desired);
        assert!(header.checking_disabled && !header.authentic_data && !header.truncation);
        assert_eq!(
            reply.queries[0].name().to_ascii(),
            "Web.NS.svc.Cluster.Local."
        );
        assert_eq!(
            reply.answers[0].name.to_ascii(),
            "Web.NS.svc.Cluster.Local."
        );
        assert_eq!(data(&reply), ["10.96.0.1"]);
        assert!(reply.edns.is_none());
    }
    let missing = client
        .ask("gone.ns.svc.cluster.local.", RecordType::A)
        .await;
    assert_eq!(missing.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(missing.authorities.len(), 1);
    assert!(missing.metadata.authoritative);
}

#[tokio::test]
async fn long_answers_are_cut_to_the_clients_size() {
    // The library must have room for the owner's name before it compresses it.
    const NAME_IN_FULL: usize = 28;
    let client = start(Vec::new()).await;
    let question = query("crowd.ns.svc.cluster.local.", RecordType::A);
    // limit, and answers of 16 octets that fit beside header, question and OPT
    let rows = [
        (question.clone(), 512),
        (with_edns(question.clone(), 100, false), 512),
        (with_edns(question.clone(), 800, false), 800),
        (with_edns(question.clone(), 65_535, false), 1232),
    ];
    for (question, limit) in rows {
        let octets = client.udp_octets(&question.to_vec().unwrap()).await;
        assert!(
            octets.len() <= limit && octets.len() + 16 + NAME_IN_FULL > limit,
            "{} of {limit}",
            octets.len()
        );
        let reply = Message::from_vec(&octets).unwrap();
        assert!(reply.metadata.truncation);
        assert_eq!(reply.edns.is_some(), question.edns.is_some());
    }
    let whole = client.tcp(&question).await;
    assert!(!whole.metadata.truncation);
    assert_eq!(data(&whole).into_iter().collect::<BTreeSet<_>>().len(), 150);
    let endless = client
        .tcp(&query("legion.ns.svc.cluster.local.", RecordType::A))
        .await;
    assert!(endless.metadata.truncation);
    // Addresses of SRV targets are no reason for another round over TCP.
    let ports = query("_http._tcp.db.ns.svc.cluster.local.", RecordType::SRV);
    assert!(!client.udp(&ports).await.metadata.truncation);
}

#[tokio::test]
async fn addresses_come_in_a_new_order_each_time() {
    let client = start(Vec::new()).await;
    let mut firsts = BTreeSet::new();
    for _ in 0..64 {
        let reply = client.ask("db.ns.svc.cluster.local.", RecordType::A).await;
        firsts.insert(data(&reply)[0].clone());
    }
    assert_eq!(firsts.len(), 3);
}

#[tokio::test]
async fn a_burst_loses_nothing() {
    let client = start(Vec::new()).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(client.at).await.unwrap();
    let mut question = query("web.ns.svc.cluster.local.", RecordType::A);
    for id in 0..100 {
        question.metadata.id = id;
        socket.send(&question.to_vec().unwrap()).await.unwrap();
    }
    let mut buffer = vec![0; 512];
    for id in 0..100 {
        let received = tokio::time::timeout(PATIENCE, socket.recv(&mut buffer)).await;
        received.expect("no reply").unwrap();
        assert_eq!(buffer[..2], u16::to_be_bytes(id));
    }
}

#[tokio::test]
async fn both_families_are_listened_at() {
    let client = start_as(Vec::new(), |config| {
        config.listen.push("[::1]:0".parse().unwrap());
    })
    .await;
    let [four, six] = client.server.addresses() else {
        panic!("two addresses");
    };
    assert!(four.is_ipv4() && six.is_ipv6());
    let socket = UdpSocket::bind("[::1]:0").await.unwrap();
    socket.connect(six).await.unwrap();
    let question = query("dual.ns.svc.cluster.local.", RecordType::AAAA);
    socket.send(&question.to_vec().unwrap()).await.unwrap();
    let mut buffer = vec![0; 512];
    let received = tokio::time::timeout(PATIENCE, socket.recv(&mut buffer)).await;
    let length = received.expect("no reply").unwrap();
    let reply = Message::from_vec(&buffer[..length]).unwrap();
    assert_eq!(data(&reply), ["fd00:10:96::2"]);
    assert_eq!(data(&client.udp(&question).await), ["fd00:10:96::2"]);
    let text = crate::telemetry::render(&client.registry);
    let line =
        r#"viaduct_dns_requests_total{family="ipv6",proto="udp",type="AAAA",zone="cluster"} 1"#;
    assert!(text.lines().any(|found| found == line), "{text}");
}
