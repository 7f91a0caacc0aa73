//! The bounds of the server and what is counted, over real sockets.

use super::*;

// A resolver that hears everything and says nothing.
async fn silent() -> UdpSocket {
    UdpSocket::bind("127.0.0.1:0").await.unwrap()
}

#[tokio::test]
async fn a_flood_that_nobody_answers_costs_cluster_names_nothing() {
    const CLIENTS: u16 = 6;
    const OF_ONE: u16 = 250;
    let (one, other) = (silent().await, silent().await);
    let dead = vec![one.local_addr().unwrap(), other.local_addr().unwrap()];
    let client = start(dead).await;
    let probe = query("web.ns.svc.cluster.local.", RecordType::A)
        .to_vec()
        .unwrap();
    let mut buffer = vec![0; 512];
    let (mut answered, mut refused) = (0, 0);
    for number in 1..=CLIENTS {
        let flooder = UdpSocket::bind(format!("127.0.0.{number}:0"))
            .await
            .unwrap();
        flooder.connect(client.at).await.unwrap();
        for id in 0..OF_ONE {
            let mut question = query(&format!("x{id}-{number}.test."), RecordType::A);
            question.metadata.id = id;
            flooder.send(&question.to_vec().unwrap()).await.unwrap();
            if id % 50 != 49 {
                continue;
            }
            // Among what waits, names of the cluster are answered, and refusals come at once.
            flooder.send(&probe).await.unwrap();
            loop {
                let received = tokio::time::timeout(PATIENCE, flooder.recv(&mut buffer)).await;
                let length = received.expect("no reply").unwrap();
                let reply = Message::from_vec(&buffer[..length]).unwrap();
                if reply.metadata.id == 0x1234 {
                    assert_eq!(data(&reply), ["10.96.0.1"]);
                    answered += 1;
                    break;
                }
                assert_eq!(reply.metadata.response_code, ResponseCode::Refused);
                refused += 1;
            }
        }
    }
    assert_eq!(answered, CLIENTS * OF_ONE / 50);
    // 200 of each of five clients wait; the sixth finds all 1,000 places taken.
    assert_eq!(refused, 5 * 50 + OF_ONE);
    assert_eq!(client.metrics.forwards_in_flight.get(), 1000);
    assert_eq!(client.metrics.forwards_rejected.get(), u64::from(refused));
}

#[tokio::test]
async fn too_many_waiting_questions_of_one_client_are_refused() {
    let stub = Stub::start().await;
    let client = start(vec![stub.addr]).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(client.at).await.unwrap();
    let mut question = query("held.test.", RecordType::A);
    let mut buffer = vec![0; 512];
    let probe = query("web.ns.svc.cluster.local.", RecordType::A)
        .to_vec()
        .unwrap();
    for id in 0..201 {
        question.metadata.id = id;
        socket.send(&question.to_vec().unwrap()).await.unwrap();
        if id % 50 == 49 {
            // The server has read so far: nothing is lost to a full socket.
            socket.send(&probe).await.unwrap();
            socket.recv(&mut buffer).await.unwrap();
            assert_eq!(buffer[..2], [0x12, 0x34]);
        }
    }
    let length = socket.recv(&mut buffer).await.unwrap();
    let refused = Message::from_vec(&buffer[..length]).unwrap();
    assert_eq!(refused.metadata.id, 200);
    assert_eq!(refused.metadata.response_code, ResponseCode::Refused);
    assert_eq!(client.metrics.forwards_rejected.get(), 1);
    stub.release();
    for _ in 0..200 {
        let received = tokio::time::timeout(PATIENCE, socket.recv(&mut buffer)).await;
        received.expect("no reply").unwrap();
    }
    // Their places are free again.
    let reply = client.ask("missing.test.", RecordType::A).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn questions_that_find_no_room_are_counted() {
    // Of 4,000 octets each: twice what a buffer of 4 MiB holds, whatever the kernel adds.
    const FLOOD: u32 = 2_500;
    let (exchange, _) = answering(&mut cluster(), Upstreams::new(&[], &[], &[]));
    let metrics = exchange.metrics().clone();
    let mut sockets = listen::bind("127.0.0.1:0".parse().unwrap(), &[], Sharing::First).unwrap();
    let at = sockets[0].address;
    let socket = sockets.remove(0).udp.remove(0);
    let flooder = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    flooder.connect(at).await.unwrap();
    let probe = query("web.ns.svc.cluster.local.", RecordType::A);
    let mut probe = probe.to_vec().unwrap();
    let mut long = probe.clone();
    long[0] = 0;
    long.resize(4_000, 0);
    for _ in 0..FLOOD {
        flooder.send(&long).await.unwrap();
    }
    let (runtime, tasks) = (Handle::current(), TaskTracker::new());
    let _listener = Listener::start(socket, Arc::new(exchange), 1 << 20, runtime, tasks).unwrap();
    let deadline = std::time::Instant::now() + PATIENCE;
    let mut sent = f64::from(FLOOD);
    let mut buffer = vec![0; 4096];
    loop {
        // The next datagram tells how many were lost before it.
        flooder.send(&probe).await.unwrap();
        sent += 1.0;
        probe[1] = probe[1].wrapping_add(1);
        let waiting = tokio::time::timeout(PATIENCE / 100, flooder.recv(&mut buffer));
        let _reply_or_none = waiting.await;
        while flooder.try_recv(&mut buffer).is_ok() {}
        let answered = total_of(&metrics.responses);
        let lost = total_of(&metrics.dropped);
        if answered + lost == sent {
            let overload = metrics.dropped.with_label_values(&["overload"]).get();
            assert!(overload > 0, "{answered} answered, {lost} lost of {sent}");
            break;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "{answered} answered, {lost} lost of {sent}"
        );
    }
}

#[tokio::test]
async fn connections_of_all_clients_together_are_bounded() {
    let client = start_as(Vec::new(), |config| config.limits.connections = 2).await;
    let question = query("web.ns.svc.cluster.local.", RecordType::A);
    let mut streams = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(client.at).await.unwrap();
        send(&mut stream, &question).await;
        assert_eq!(data(&receive(&mut stream).await), ["10.96.0.1"]);
        streams.push(stream);
    }
    let ended = tokio::time::timeout(PATIENCE, streams[0].read(&mut [0])).await;
    assert_eq!(ended.expect("still open").unwrap(), 0);
    for stream in &mut streams[1..] {
        send(stream, &question).await;
        assert_eq!(data(&receive(stream).await), ["10.96.0.1"]);
    }
}

#[tokio::test]
async fn nothing_is_read_past_the_bound_of_questions_under_way() {
    let stub = Stub::start().await;
    let client = start_as(vec![stub.addr], |config| config.limits.pipelined = 2).await;
    let mut stream = TcpStream::connect(client.at).await.unwrap();
    let mut question = query("held.test.", RecordType::A);
    for id in 1..=2 {
        question.metadata.id = id;
        send(&mut stream, &question).await;
    }
    // It would be answered at once, were it read.
    send(
        &mut stream,
        &query("web.ns.svc.cluster.local.", RecordType::A),
    )
    .await;
    // Another connection's question is read behind it, so by then it could have been.
    let reply = client
        .tcp(&query("web.ns.svc.cluster.local.", RecordType::A))
        .await;
    assert_eq!(data(&reply), ["10.96.0.1"]);
    stub.release();
    let first = receive(&mut stream).await.metadata.id;
    assert!([1, 2].contains(&first), "{first:#x} came first");
    let rest = [
        receive(&mut stream).await.metadata.id,
        receive(&mut stream).await.metadata.id,
    ];
    assert!(rest.contains(&0x1234), "{rest:?}");
}

#[tokio::test]
async fn connections_that_say_nothing_or_half_are_closed() {
    let client = start_as(Vec::new(), |config| {
        config.limits.idle_timeout = Duration::from_millis(100);
        config.limits.read_timeout = Duration::from_millis(100);
    })
    .await;
    for half in [&[][..], &[0], &[0, 40, 1, 2]] {
        let mut stream = TcpStream::connect(client.at).await.unwrap();
        stream.write_all(half).await.unwrap();
        let ended = tokio::time::timeout(PATIENCE, stream.read(&mut [0])).await;
        assert!(
            matches!(ended.expect("still open"), Ok(0) | Err(_)),
            "after {half:?}"
        );
    }
    // What is no question ends the conversation, too.
    let mut stream = TcpStream::connect(client.at).await.unwrap();
    stream.write_all(&[0, 2, 7, 7]).await.unwrap();
    let ended = tokio::time::timeout(PATIENCE, stream.read(&mut [0])).await;
    assert!(matches!(ended.expect("still open"), Ok(0) | Err(_)));
    let reply = client.ask("web.ns.svc.cluster.local.", RecordType::A).await;
    assert_eq!(data(&reply), ["10.96.0.1"]);
}

#[tokio::test]
async fn a_client_that_takes_no_replies_is_left() {
    let client = start_as(Vec::new(), |config| {
        config.limits.write_timeout = Duration::from_millis(100);
    })
    .await;
    let mut stream = TcpStream::connect(client.at).await.unwrap();
    let octets = query("legion.ns.svc.cluster.local.", RecordType::A)
        .to_vec()
        .unwrap();
    let mut framed = u16::try_from(octets.len()).unwrap().to_be_bytes().to_vec();
    framed.extend(octets);
    // 64 KB each, which fill both sides' buffers sooner or later; the server then ends it.
    let asking = async { while stream.write_all(&framed).await.is_ok() {} };
    let ended = tokio::time::timeout(PATIENCE, asking).await;
    assert!(ended.is_ok(), "it is still read from");
}

#[tokio::test]
async fn everything_that_dashboards_ask_for_is_counted() {
    let stub = Stub::start().await;
    let client = start(vec![stub.addr]).await;
    client.ask("web.ns.svc.cluster.local.", RecordType::A).await;
    client.ask("1.0.96.10.in-addr.arpa.", RecordType::PTR).await;
    for _ in 0..2 {
        client.ask("www.test.", RecordType::Unknown(4711)).await;
    }
    client.tcp(&query("www.test.", RecordType::A)).await;
    client
        .ask("crowd.ns.svc.cluster.local.", RecordType::A)
        .await;
    client.ask("servfail.test.", RecordType::A).await;
    let text = crate::telemetry::render(&client.registry);
    for line in [
        r#"viaduct_dns_requests_total{family="ipv4",proto="udp",type="A",zone="cluster"} 2"#,
        r#"viaduct_dns_requests_total{family="ipv4",proto="udp",type="PTR",zone="reverse"} 1"#,
        r#"viaduct_dns_requests_total{family="ipv4",proto="udp",type="other",zone="forward"} 2"#,
        r#"viaduct_dns_requests_total{family="ipv4",proto="tcp",type="A",zone="forward"} 1"#,
        r#"viaduct_dns_responses_total{rcode="SERVFAIL"} 1"#,
        "viaduct_dns_truncated_responses_total 1",
        "viaduct_dns_cache_entries 2",
        "viaduct_dns_cache_evictions_total 0",
        "viaduct_dns_cache_hits_total 1",
        "viaduct_dns_cache_misses_total 3",
        "viaduct_dns_cache_stale_total 0",
        "viaduct_dns_coalesced_forwards_total 0",
        "viaduct_dns_forwards_in_flight 0",
        "viaduct_dns_rejected_forwards_total 0",
        r#"viaduct_dns_upstream_failures_total{reason="rcode"} 1"#,
        "viaduct_dns_upstream_health_failures_total 0",
        "viaduct_dns_upstreams_all_down_total 0",
        "viaduct_dns_panics_total 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    for name in [
        "viaduct_dns_request_duration_seconds_bucket{le=\"0.0001\"}",
        "viaduct_dns_request_size_bytes_count",
        "viaduct_dns_response_size_bytes_count",
        "viaduct_dns_upstream_duration_seconds_count{",
        "viaduct_dns_tcp_connections",
        "viaduct_dns_table_services",
        "viaduct_dns_table_timestamp_seconds",
        "viaduct_dns_cache_bytes",
    ] {
        let mut lines = text.lines();
        assert!(lines.any(|found| found.starts_with(name)), "{name}\n{text}");
    }
}
