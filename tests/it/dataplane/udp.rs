//! UDP flows: datagrams keep size and order, replies find their client, flows follow the endpoints.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::UdpSocket;
use viaduct::dataplane::Config;
use viaduct::model::Knobs;
use viaduct::model::Protocol::Udp;

use super::rig::{POISONOUS, Rig, eventually, one_thread, soon};

async fn socket() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let buffer = socket2::SockRef::from(&socket);
    buffer.set_recv_buffer_size(4 << 20).unwrap();
    socket
}

async fn client(of: SocketAddr) -> UdpSocket {
    let client = socket().await;
    client.connect(of).await.unwrap();
    client
}

/// Two backends, the one first that the rig's balancer prefers.
async fn two_backends() -> [UdpSocket; 2] {
    let mut sockets = [socket().await, socket().await];
    sockets.sort_by_key(|socket| socket.local_addr().unwrap());
    sockets
}

fn addr(socket: &UdpSocket) -> SocketAddr {
    socket.local_addr().unwrap()
}

async fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = vec![0; 70_000];
    let (n, from) = soon("a datagram", socket.recv_from(&mut buffer))
        .await
        .unwrap();
    buffer.truncate(n);
    (buffer, from)
}

#[tokio::test]
async fn datagrams_of_all_sizes_go_both_ways_in_order() {
    let backend = socket().await;
    let rig = Rig::start(Udp, &[addr(&backend)]);
    let client = client(rig.open().await).await;
    let sizes = [0, 1, 512, 1472, 4097, 9000, 65_507, 0, 2];
    for (mark, size) in sizes.iter().enumerate() {
        client
            .send(&vec![u8::try_from(mark).unwrap(); *size])
            .await
            .unwrap();
    }
    for (mark, size) in sizes.iter().enumerate() {
        let (got, from) = receive(&backend).await;
        assert_eq!(got, vec![u8::try_from(mark).unwrap(); *size]);
        backend.send_to(&got, from).await.unwrap();
    }
    for (mark, size) in sizes.iter().enumerate() {
        let (got, _) = receive(&client).await;
        assert_eq!(got, vec![u8::try_from(mark).unwrap(); *size]);
    }
    assert_eq!(rig.plane.active_flows(), (0, 1));
    let n = sizes.len() as f64;
    eventually("all are counted", || {
        rig.metric("viaduct_udp_datagrams_total", "to_backend") == n
            && rig.metric("viaduct_udp_datagrams_total", "to_client") == n
    })
    .await;
    assert_eq!(rig.metric("viaduct_udp_dropped_datagrams_total", ""), 0.0);
}

#[tokio::test]
async fn ipv6_works_the_same() {
    let backend = UdpSocket::bind("[::1]:0").await.unwrap();
    let rig = Rig::start(Udp, &[addr(&backend)]);
    let client = UdpSocket::bind("[::1]:0").await.unwrap();
    client.connect(rig.open().await).await.unwrap();
    client.send(&[7; 60_000]).await.unwrap();
    let (got, from) = receive(&backend).await;
    assert_eq!(got, [7; 60_000]);
    backend.send_to(b"", from).await.unwrap();
    assert_eq!(receive(&client).await.0, b"");
}

#[tokio::test]
async fn a_panic_does_not_end_the_listener() {
    let backend = socket().await;
    let rig = Rig::start(Udp, &[addr(&backend)]);
    let at = rig.open().await;
    let client = client(at).await;
    client.send(b"1").await.unwrap();
    let (_, first) = receive(&backend).await;
    let poisonous = UdpSocket::bind((POISONOUS, 0)).await.unwrap();
    poisonous.send_to(b"x", at).await.unwrap();
    eventually("open flows end", || rig.plane.active_flows() == (0, 0)).await;
    client.send(b"2").await.unwrap();
    let (got, second) = receive(&backend).await;
    assert_eq!(got, b"2");
    assert_ne!(first, second, "a new flow");
}

#[tokio::test]
async fn clients_are_told_apart() {
    let backend = socket().await;
    let rig = Rig::with(Udp, &[addr(&backend)], Config::default());
    let at = rig.open().await;
    let mut clients = Vec::new();
    for mark in 0..100u8 {
        let client = client(at).await;
        client.send(&[mark]).await.unwrap();
        clients.push(client);
    }
    for _ in 0..100 {
        let (got, from) = receive(&backend).await;
        backend.send_to(&got, from).await.unwrap();
    }
    for (mark, client) in clients.iter().enumerate() {
        assert_eq!(receive(client).await.0, [u8::try_from(mark).unwrap()]);
    }
    assert_eq!(rig.plane.active_flows(), (0, 100));
}

#[tokio::test]
async fn a_flow_keeps_its_backend_until_that_leaves() {
    let [first, second] = two_backends().await;
    let mut rig = Rig::start(Udp, &[addr(&second)]);
    let client = client(rig.open().await).await;
    client.send(b"1").await.unwrap();
    assert_eq!(receive(&second).await.0, b"1");

    rig.set_backends(&[addr(&first), addr(&second)]);
    client.send(b"2").await.unwrap();
    assert_eq!(receive(&second).await.0, b"2", "its backend still serves");

    rig.set_backends(&[addr(&first)]);
    eventually("the flow ends", || rig.plane.active_flows() == (0, 0)).await;
    client.send(b"3").await.unwrap();
    let (got, from) = receive(&first).await;
    assert_eq!(got, b"3");
    first.send_to(b"4", from).await.unwrap();
    assert_eq!(receive(&client).await.0, b"4");
}

#[tokio::test]
async fn what_nobody_serves_is_dropped_and_leaves_no_flow() {
    let backend = socket().await;
    let mut rig = Rig::start(Udp, &[]);
    let client = client(rig.open().await).await;
    client.send(b"too early").await.unwrap();
    eventually("it is counted", || {
        rig.metric("viaduct_udp_dropped_datagrams_total", "no_backend") == 1.0
    })
    .await;
    eventually("no flow", || rig.plane.active_flows() == (0, 0)).await;
    rig.set_backends(&[addr(&backend)]);
    client.send(b"in time").await.unwrap();
    assert_eq!(receive(&backend).await.0, b"in time");
}

#[tokio::test]
async fn a_refusing_backend_is_replaced() {
    let [dead, live] = two_backends().await;
    let rig = Rig::start(Udp, &[addr(&dead), addr(&live)]);
    let dead_addr = addr(&dead);
    drop(dead);
    let client = client(rig.open().await).await;
    client.send(b"lost").await.unwrap();
    let refusals = || {
        let table = rig.published.load();
        let route = table.route(&rig.route()).unwrap();
        let backend = route.cluster.iter().find(|b| b.addr == dead_addr).unwrap();
        (backend.live.active(), backend.live.failures_total())
    };
    eventually("the refusal is noticed", || refusals() == (0, 1)).await;
    client.send(b"found").await.unwrap();
    assert_eq!(receive(&live).await.0, b"found");
    assert_eq!(rig.plane.active_flows(), (0, 1), "still the same flow");
}

#[tokio::test]
async fn a_single_backend_that_was_down_is_found_again() {
    let backend = socket().await;
    let backend_addr = addr(&backend);
    drop(backend);
    let rig = Rig::start(Udp, &[backend_addr]);
    let client = client(rig.open().await).await;
    client.send(b"lost").await.unwrap();
    let failures = || {
        let table = rig.published.load();
        table.route(&rig.route()).unwrap().cluster[0]
            .live
            .failures_total()
    };
    eventually("the refusal is noticed", || failures() == 1).await;
    let backend = UdpSocket::bind(backend_addr).await.unwrap();
    client.send(b"found").await.unwrap();
    assert_eq!(receive(&backend).await.0, b"found");
}

#[tokio::test]
async fn idle_flows_end_and_busy_ones_do_not() {
    let backend = socket().await;
    let mut rig = Rig::start(Udp, &[addr(&backend)]);
    rig.apply_service(Knobs {
        udp_idle_timeout: Some(Duration::from_millis(400)),
        ..Knobs::default()
    });
    let at = rig.open().await;
    let (idle, busy) = (client(at).await, client(at).await);
    idle.send(b"once").await.unwrap();
    receive(&backend).await;
    busy.send(b"first").await.unwrap();
    let (_, busy_flow) = receive(&backend).await;
    assert_eq!(rig.plane.active_flows(), (0, 2));
    // Only the backend speaks now, which keeps the flow as well. Far fewer ticks than these outlast the idle one.
    let mut ticks = 0;
    while rig.plane.active_flows() != (0, 1) {
        ticks += 1;
        assert!(ticks < 1000, "the idle flow does not end");
        backend.send_to(b"tick", busy_flow).await.unwrap();
        assert_eq!(receive(&busy).await.0, b"tick");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    busy.send(b"again").await.unwrap();
    assert_eq!(receive(&backend).await, (b"again".to_vec(), busy_flow));
    eventually("it ends when it is idle too", || {
        rig.plane.active_flows() == (0, 0)
    })
    .await;
}

#[tokio::test]
async fn past_the_bound_new_flows_are_refused_and_counted() {
    let backend = socket().await;
    let config = Config {
        max_udp_flows: 2,
        ..one_thread()
    };
    let rig = Rig::with(Udp, &[addr(&backend)], config);
    let at = rig.open().await;
    let (one, two) = (client(at).await, client(at).await);
    one.send(b"1").await.unwrap();
    assert_eq!(receive(&backend).await.0, b"1");
    two.send(b"2").await.unwrap();
    assert_eq!(receive(&backend).await.0, b"2");
    let three = client(at).await;
    three.send(b"3").await.unwrap();
    eventually("it is counted", || {
        rig.metric("viaduct_udp_dropped_datagrams_total", "limit") == 1.0
    })
    .await;
    one.send(b"1").await.unwrap();
    assert_eq!(receive(&backend).await.0, b"1", "open flows go on");
}

#[tokio::test]
async fn a_burst_arrives_whole_and_in_order() {
    let backend = socket().await;
    let rig = Rig::start(Udp, &[addr(&backend)]);
    let client = client(rig.open().await).await;
    for n in 0..1000u32 {
        client.send(&n.to_le_bytes()).await.unwrap();
    }
    for n in 0..1000u32 {
        assert_eq!(receive(&backend).await.0, n.to_le_bytes());
    }
}

#[tokio::test]
async fn exactly_full_batches_do_not_stall_the_listener() {
    let backend = socket().await;
    let rig = Rig::start(Udp, &[addr(&backend)]);
    let client = client(rig.open().await).await;
    // Whatever way the loop cuts these into batches, it must notice what comes after each of them.
    for _ in 0..200 {
        for n in 0..64u32 {
            client.send(&n.to_le_bytes()).await.unwrap();
        }
        for n in 0..64u32 {
            let (got, from) = receive(&backend).await;
            assert_eq!(got, n.to_le_bytes());
            backend.send_to(&got, from).await.unwrap();
        }
        for n in 0..64u32 {
            assert_eq!(receive(&client).await.0, n.to_le_bytes());
        }
    }
}
