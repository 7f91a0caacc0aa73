//! Damaged packets: each gets a reply or is counted as dropped, and the server goes on answering.

use rand::{RngExt, SeedableRng};

use super::*;

// Sends `n` packets, each a few accidents away from a question, and waits until every one is accounted for.
async fn survive(n: usize) {
    // Nobody is there, so whatever is forwarded fails at once.
    let closed = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let client = start(vec![closed]).await;
    let mut rng = rand::rngs::StdRng::seed_from_u64(7);
    let names = [
        "web.ns.svc.cluster.local.",
        "_http._tcp.db.ns.svc.cluster.local.",
        "crowd.ns.svc.cluster.local.",
        "out-www.ns.svc.cluster.local.",
        "1.0.96.10.in-addr.arpa.",
        "www.test.",
    ];
    let kinds = [
        RecordType::A,
        RecordType::SRV,
        RecordType::PTR,
        RecordType::ANY,
    ];
    let mut seeds = Vec::new();
    for name in names {
        for kind in kinds {
            seeds.push(query(name, kind).to_vec().unwrap());
            seeds.push(with_edns(query(name, kind), 4096, true).to_vec().unwrap());
        }
    }
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(client.at).await.unwrap();
    let probe = query("web.ns.svc.cluster.local.", RecordType::A)
        .to_vec()
        .unwrap();
    let mut buffer = vec![0; 4096];
    let mut n_probes = 0;
    for sent in 0..n {
        let mut packet = seeds[rng.random_range(0..seeds.len())].clone();
        for _ in 0..rng.random_range(1..5) {
            match rng.random_range(0..5) {
                0 => packet.truncate(rng.random_range(0..=packet.len())),
                1 => packet.extend((0..rng.random_range(0..20)).map(|_| rng.random::<u8>())),
                _ if packet.is_empty() => {}
                2 => {
                    let at = rng.random_range(0..packet.len());
                    packet[at] = rng.random();
                }
                3 => {
                    let at = rng.random_range(0..packet.len());
                    packet[at] ^= 1 << rng.random_range(0..8);
                }
                _ => {
                    let at = rng.random_range(0..packet.len().min(14));
                    packet[at] = rng.random();
                }
            }
        }
        // The probe's id is its own.
        if packet.starts_with(&[0x12, 0x34]) {
            packet[0] = 0x13;
        }
        socket.send(&packet).await.unwrap();
        if sent % 64 == 63 {
            socket.send(&probe).await.unwrap();
            n_probes += 1;
            loop {
                let received = tokio::time::timeout(PATIENCE, socket.recv(&mut buffer)).await;
                let length = received.expect("it does not answer any more").unwrap();
                assert!(length >= 12 && buffer[2] & 0x80 != 0, "not a reply");
                if buffer[..2] == [0x12, 0x34] {
                    break;
                }
            }
        }
    }
    let total = f64::from(u32::try_from(n + n_probes).unwrap());
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let answered = total_of(&client.metrics.responses);
        let dropped = total_of(&client.metrics.dropped);
        if answered + dropped == total {
            break;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "{answered} answered, {dropped} dropped of {total}"
        );
        while socket.try_recv(&mut buffer).is_ok() {}
        tokio::task::yield_now().await;
    }
    assert_eq!(client.metrics.panics.get(), 0);
    let reply = client.ask("web.ns.svc.cluster.local.", RecordType::A).await;
    assert_eq!(data(&reply), ["10.96.0.1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_damaged_packet_is_answered_or_counted() {
    survive(20_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; the same as above at full size"]
async fn a_million_damaged_packets_are_answered_or_counted() {
    survive(1_000_000).await;
}
