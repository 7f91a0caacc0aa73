//! UDP flows: datagrams keep size and order, replies find their client, flows follow the endpoints.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use viaduct::balancers::Algorithms;
use viaduct::capture::plan::ListenerState;
use viaduct::dataplane::Config;
use viaduct::model::{Knobs, Protocol::Udp, TrafficPolicy};

use super::rig::{PATIENCE, POISONOUS, Rig, State, eventually, one_thread, soon};

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

/// One flow to the first of two backends, and what becomes of it when the endpoints change to `after` of the two.
async fn next_datagram_after(
    after: impl FnOnce([SocketAddr; 2]) -> Vec<(SocketAddr, State)>,
) -> (usize, Outlived) {
    let backends = two_backends().await;
    let addrs = backends.each_ref().map(addr);
    let mut rig = Rig::start(Udp, &addrs);
    let client = client(rig.open().await).await;
    client.send(b"1").await.unwrap();
    let (_, before) = receive(&backends[0]).await;
    rig.set_endpoints(&after(addrs));
    // The table says it at once, the flows a moment later: whoever stays is told so by nothing.
    let still_serves = {
        let table = rig.published.load();
        table.route(&rig.route()).unwrap().still_serves(addrs[0])
    };
    if !still_serves {
        eventually("the flow ends", || rig.plane.active_flows() == (0, 0)).await;
    }
    client.send(b"2").await.unwrap();
    let receiver = usize::from(!still_serves);
    let (got, from) = receive(&backends[receiver]).await;
    assert_eq!(got, b"2");
    backends[receiver].send_to(b"3", from).await.unwrap();
    assert_eq!(receive(&client).await.0, b"3", "and back");
    (
        receiver,
        if from == before {
            Outlived::Same
        } else {
            Outlived::New
        },
    )
}

/// Whether the flow is still the one it was.
#[derive(Debug, PartialEq, Eq)]
enum Outlived {
    Same,
    New,
}

#[tokio::test]
async fn a_flow_whose_backend_becomes_unready_moves_on() {
    let after = next_datagram_after(|[first, second]| {
        vec![(first, State::Unready), (second, State::Ready)]
    });
    assert_eq!(after.await, (1, Outlived::New));
}

#[tokio::test]
async fn a_flow_whose_backend_changes_its_port_moves_on() {
    // The same address at another port is another backend.
    let after = next_datagram_after(|[_, second]| vec![(second, State::Ready)]);
    assert_eq!(after.await, (1, Outlived::New));
}

#[tokio::test]
async fn a_flow_stays_while_its_backend_terminates_and_still_serves() {
    let after = next_datagram_after(|[first, second]| {
        vec![(first, State::Draining), (second, State::Ready)]
    });
    assert_eq!(after.await, (0, Outlived::Same));
}

#[tokio::test]
async fn a_flow_stays_when_a_policy_would_not_choose_its_backend_any_more() {
    let backend = socket().await;
    let mut rig = Rig::start(Udp, &[addr(&backend)]);
    let at = rig.open().await;
    let old = client(at).await;
    old.send(b"1").await.unwrap();
    let (_, before) = receive(&backend).await;
    // No endpoint is on this node.
    rig.apply_service_with(|service| service.internal_policy = TrafficPolicy::Local);
    let new = client(at).await;
    new.send(b"kept out").await.unwrap();
    eventually("new flows are kept out", || {
        rig.metric("viaduct_udp_dropped_datagrams_total", "policy") == 1.0
    })
    .await;
    old.send(b"2").await.unwrap();
    assert_eq!(receive(&backend).await, (b"2".to_vec(), before));
}

#[tokio::test]
async fn without_a_serving_backend_flows_end_and_a_later_one_gets_the_next_datagram() {
    let [first, second] = two_backends().await;
    let mut rig = Rig::start(Udp, &[addr(&first)]);
    let client = client(rig.open().await).await;
    client.send(b"1").await.unwrap();
    assert_eq!(receive(&first).await.0, b"1");
    rig.set_endpoints(&[(addr(&first), State::Unready)]);
    eventually("the flow ends", || rig.plane.active_flows() == (0, 0)).await;
    // What the reconciler does next to a service port that nobody serves.
    rig.plane
        .open(&rig.spec(ListenerState::HeldClosed))
        .await
        .unwrap();
    client.send(b"refused").await.unwrap();
    let refused = soon("an answer", client.recv(&mut [0; 8])).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    rig.set_backends(&[addr(&second)]);
    rig.open().await;
    client.send(b"2").await.unwrap();
    assert_eq!(receive(&second).await.0, b"2");
}

#[tokio::test]
async fn a_deleted_service_ends_its_flows_and_a_new_one_starts_fresh() {
    let [first, second] = two_backends().await;
    let mut rig = Rig::start(Udp, &[addr(&first)]);
    let client = client(rig.open().await).await;
    client.send(b"1").await.unwrap();
    assert_eq!(receive(&first).await.0, b"1");
    rig.delete_service();
    eventually("the flow ends", || rig.plane.active_flows() == (0, 0)).await;
    client.send(b"nobody's").await.unwrap();
    eventually("it is counted", || {
        rig.metric("viaduct_udp_dropped_datagrams_total", "no_backend") == 1.0
    })
    .await;
    rig.apply_service(Knobs::default());
    rig.set_backends(&[addr(&first), addr(&second)]);
    client.send(b"2").await.unwrap();
    assert_eq!(receive(&first).await.0, b"2", "chosen afresh");
    assert_eq!(rig.plane.active_flows(), (0, 1));
}

#[tokio::test]
async fn affinity_decides_when_a_flow_begins() {
    let backends = two_backends().await;
    let addrs = backends.each_ref().map(addr);
    let balancers = Arc::new(Algorithms::default());
    let mut rig = Rig::balanced_by(balancers, Udp, &addrs, one_thread());
    rig.apply_service_with(|service| service.affinity = Some(Duration::from_secs(3600)));
    let at = rig.open().await;
    let one = client(at).await;
    one.send(b"1").await.unwrap();
    eventually("it has a backend", || {
        addrs.iter().any(|addr| rig.figures(*addr).0 == 1)
    })
    .await;
    let chosen = usize::from(rig.figures(addrs[0]).0 == 0);
    assert_eq!(receive(&backends[chosen]).await.0, b"1");
    for _ in 0..5 {
        let more = client(at).await;
        more.send(b"2").await.unwrap();
        assert_eq!(receive(&backends[chosen]).await.0, b"2", "as before");
    }
    rig.apply_service(Knobs::default());
    one.send(b"3").await.unwrap();
    assert_eq!(
        receive(&backends[chosen]).await.0,
        b"3",
        "a flow that is open stays"
    );
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

#[tokio::test]
async fn a_reply_that_is_on_its_way_when_the_listener_ends_arrives() {
    let backend = socket().await;
    let rig = Rig::start(Udp, &[addr(&backend)]);
    let at = rig.open().await;
    let asking = client(at).await;
    asking.send(b"question").await.unwrap();
    let (_, flow) = receive(&backend).await;
    // Its age does not count, only how long the listener has been gone: longer than the wait for a reply.
    tokio::time::sleep(Duration::from_millis(600)).await;
    let draining = tokio::spawn(rig.plane.drain(PATIENCE));
    let left = async {
        let newcomer = client(at).await;
        loop {
            let sent = newcomer.send(b"anybody?").await;
            let heard = newcomer.try_recv(&mut [0; 16]);
            let refused = |kind| kind == ErrorKind::ConnectionRefused;
            if [sent, heard]
                .into_iter()
                .any(|it| it.is_err_and(|e| refused(e.kind())))
            {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    soon("the port is left", left).await;
    backend.send_to(b"answer", flow).await.unwrap();
    assert_eq!(receive(&asking).await.0, b"answer");
    let begun = Instant::now();
    soon("the end", draining).await.unwrap();
    assert!(begun.elapsed() < PATIENCE / 4, "nobody is waited for");
}
