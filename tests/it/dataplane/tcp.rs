//! TCP connections: bytes, ends and resets arrive as what they are; a dead backend is not noticed.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use viaduct::dataplane::Drained;
use viaduct::model::Protocol::Tcp;

use super::rig::{POISONOUS, Rig, eventually, is_reset, soon};

/// A backend, and a client connected to it through the data path.
struct Pair {
    rig: Rig,
    backend_addr: String,
    client: TcpStream,
    backend: TcpStream,
}

impl Pair {
    async fn connect() -> Self {
        Self::connect_on("127.0.0.1:0").await
    }

    async fn connect_on(loopback: &str) -> Self {
        let listener = TcpListener::bind(loopback).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let rig = Rig::start(Tcp, &[addr]);
        let client = TcpStream::connect(rig.open().await).await.unwrap();
        let (backend, _) = soon("accept", listener.accept()).await.unwrap();
        Self {
            rig,
            backend_addr: addr.to_string(),
            client,
            backend,
        }
    }
}

async fn backend() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

fn reset(stream: TcpStream) {
    stream.set_zero_linger().unwrap();
    drop(stream);
}

/// Bytes that repeat at no multiple of a buffer's size.
fn pattern(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let unit: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    })
    .take(100_003)
    .collect();
    let mut bytes = unit.repeat(len / unit.len() + 1);
    bytes.truncate(len);
    bytes
}

#[tokio::test]
async fn bytes_go_both_ways_and_are_counted() {
    let mut pair = Pair::connect().await;
    let mut buffer = [0; 16];
    pair.backend.write_all(b"220 hello").await.unwrap();
    let n = soon("the server speaks first", pair.client.read(&mut buffer))
        .await
        .unwrap();
    assert_eq!(&buffer[..n], b"220 hello");
    pair.client.write_all(b"EHLO").await.unwrap();
    let n = soon("request", pair.backend.read(&mut buffer))
        .await
        .unwrap();
    assert_eq!(&buffer[..n], b"EHLO");
    assert_eq!(pair.rig.plane.active_flows(), (1, 0));
    eventually("bytes are counted", || {
        pair.rig.metric("viaduct_tcp_bytes_total", "to_backend") == 4.0
            && pair.rig.metric("viaduct_tcp_bytes_total", "to_client") == 9.0
    })
    .await;
    assert_eq!(pair.rig.metric("viaduct_tcp_connections_active", ""), 1.0);
    drop(pair.client);
    drop(pair.backend);
    eventually("the flow ends", || pair.rig.plane.active_flows() == (0, 0)).await;
    assert_eq!(pair.rig.metric("viaduct_tcp_connections_total", ""), 1.0);
    for (figure, label) in [
        ("viaduct_service_flows_total", "web"),
        ("viaduct_backend_flows_total", &pair.backend_addr),
    ] {
        assert_eq!(pair.rig.metric(figure, label), 1.0, "{figure}");
    }
    let bytes = |family| pair.rig.metric(family, "to_client");
    assert_eq!(bytes("viaduct_service_bytes_total"), 9.0);
    assert_eq!(bytes("viaduct_backend_bytes_total"), 9.0);
}

#[tokio::test]
async fn ipv6_works_the_same() {
    let mut pair = Pair::connect_on("[::1]:0").await;
    pair.client.write_all(b"question").await.unwrap();
    pair.client.shutdown().await.unwrap();
    let mut question = Vec::new();
    soon("question", pair.backend.read_to_end(&mut question))
        .await
        .unwrap();
    assert_eq!(question, b"question");
    reset(pair.backend);
    let error = soon("reset", pair.client.read(&mut [0; 1])).await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_panic_costs_one_connection_only() {
    let (listener, addr) = backend().await;
    let rig = Rig::start(Tcp, &[addr]);
    let at = rig.open().await;
    let _before = TcpStream::connect(at).await.unwrap();
    soon("accept", listener.accept()).await.unwrap();
    let poisonous = tokio::net::TcpSocket::new_v4().unwrap();
    poisonous.bind((POISONOUS, 0).into()).unwrap();
    let end = async { poisonous.connect(at).await?.read(&mut [0; 1]).await };
    let end = soon("its end", end).await.unwrap_err();
    assert_eq!(end.kind(), ErrorKind::ConnectionReset);
    let _after = TcpStream::connect(at).await.unwrap();
    soon("accept", listener.accept()).await.unwrap();
    eventually("it is gone", || rig.plane.active_flows() == (2, 0)).await;
}

#[tokio::test]
async fn the_client_may_end_first_and_still_gets_its_answer() {
    let mut pair = Pair::connect().await;
    pair.client.write_all(b"question").await.unwrap();
    pair.client.shutdown().await.unwrap();
    let mut question = Vec::new();
    soon("question", pair.backend.read_to_end(&mut question))
        .await
        .unwrap();
    assert_eq!(question, b"question");
    pair.backend.write_all(b"answer").await.unwrap();
    drop(pair.backend);
    let mut answer = Vec::new();
    soon("answer", pair.client.read_to_end(&mut answer))
        .await
        .unwrap();
    assert_eq!(answer, b"answer");
    eventually("the flow ends", || pair.rig.plane.active_flows() == (0, 0)).await;
}

#[tokio::test]
async fn the_backend_may_end_first_and_still_gets_what_follows() {
    let mut pair = Pair::connect().await;
    pair.backend.write_all(b"answer").await.unwrap();
    pair.backend.shutdown().await.unwrap();
    let mut answer = Vec::new();
    soon("answer", pair.client.read_to_end(&mut answer))
        .await
        .unwrap();
    assert_eq!(answer, b"answer");
    pair.client.write_all(b"afterthought").await.unwrap();
    drop(pair.client);
    let mut rest = Vec::new();
    soon("afterthought", pair.backend.read_to_end(&mut rest))
        .await
        .unwrap();
    assert_eq!(rest, b"afterthought");
}

#[tokio::test]
async fn a_reset_by_the_backend_reaches_the_client_as_a_reset() {
    let mut pair = Pair::connect().await;
    pair.backend.write_all(b"half an ans").await.unwrap();
    let mut buffer = [0; 16];
    let n = soon("first half", pair.client.read(&mut buffer))
        .await
        .unwrap();
    assert_eq!(&buffer[..n], b"half an ans");
    reset(pair.backend);
    let error = soon("reset", pair.client.read(&mut buffer))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    eventually("the flow ends", || pair.rig.plane.active_flows() == (0, 0)).await;
}

#[tokio::test]
async fn a_reset_by_the_client_reaches_the_backend_as_a_reset() {
    let mut pair = Pair::connect().await;
    pair.client.write_all(b"half a quest").await.unwrap();
    let mut buffer = [0; 16];
    soon("first half", pair.backend.read_exact(&mut buffer[..12]))
        .await
        .unwrap();
    reset(pair.client);
    let error = soon("reset", pair.backend.read(&mut buffer))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_reset_after_the_other_side_has_ended_is_still_a_reset() {
    let mut pair = Pair::connect().await;
    pair.client.shutdown().await.unwrap();
    let mut buffer = [0; 16];
    assert_eq!(
        soon("end", pair.backend.read(&mut buffer)).await.unwrap(),
        0
    );
    reset(pair.backend);
    let error = soon("reset", pair.client.read(&mut buffer))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_reset_is_noticed_while_the_other_side_is_stalled() {
    let mut pair = Pair::connect().await;
    let chunk = pattern(1 << 20);
    let stalled = Duration::from_millis(300);
    while let Ok(written) = tokio::time::timeout(stalled, pair.client.write(&chunk)).await {
        written.unwrap();
    }
    reset(pair.client);
    let error = || pair.backend.take_error().unwrap().map(|error| error.kind());
    eventually("reset", || error() == Some(ErrorKind::ConnectionReset)).await;
    eventually("the flow ends", || pair.rig.plane.active_flows() == (0, 0)).await;
}

#[tokio::test]
async fn a_reset_after_its_own_end_is_noticed() {
    let mut pair = Pair::connect().await;
    pair.client.shutdown().await.unwrap();
    assert_eq!(pair.backend.read(&mut [0; 1]).await.unwrap(), 0);
    reset(pair.client);
    let error = || pair.backend.take_error().unwrap().map(|error| error.kind());
    // The backend has been told of an end, so its kernel calls the reset that follows a broken pipe.
    eventually("reset", || error().is_some()).await;
    eventually("the flow ends", || pair.rig.plane.active_flows() == (0, 0)).await;
}

#[tokio::test]
async fn a_stalled_side_goes_on_after_the_other_direction_was_used() {
    let mut pair = Pair::connect().await;
    let chunk = pattern(1 << 20);
    let stalled = Duration::from_millis(300);
    let mut accepted = 0;
    while let Ok(written) = tokio::time::timeout(stalled, pair.client.write(&chunk)).await {
        accepted += written.unwrap();
    }
    // More than the sockets hold, towards a side that is being watched.
    let answer = pattern(32 << 20);
    let (mut client_in, client_out) = pair.client.into_split();
    let (mut backend_in, mut backend_out) = pair.backend.into_split();
    let copy = answer.clone();
    let answering = tokio::spawn(async move {
        backend_out.write_all(&copy).await.unwrap();
        backend_out
    });
    let mut got = vec![0; answer.len()];
    soon("answer", client_in.read_exact(&mut got))
        .await
        .unwrap();
    assert!(got == answer);
    drop(client_out);
    let mut rest = Vec::new();
    soon("the rest", backend_in.read_to_end(&mut rest))
        .await
        .unwrap();
    assert_eq!(rest.len(), accepted);
    answering.await.unwrap();
}

#[tokio::test]
async fn a_hundred_mebibytes_arrive_intact_in_both_directions_at_once() {
    let pair = Pair::connect().await;
    let sent = pattern(100 << 20);
    let (mut client_in, mut client_out) = pair.client.into_split();
    let (mut backend_in, mut backend_out) = pair.backend.into_split();
    let copy = sent.clone();
    let up = tokio::spawn(async move {
        client_out.write_all(&copy).await.unwrap();
    });
    let copy = sent.clone();
    let down = tokio::spawn(async move {
        backend_out.write_all(&copy).await.unwrap();
    });
    let to_client = tokio::spawn(async move {
        let mut got = Vec::new();
        client_in.read_to_end(&mut got).await.unwrap();
        got
    });
    let mut got = Vec::new();
    soon("upload", backend_in.read_to_end(&mut got))
        .await
        .unwrap();
    assert!(got == sent, "upload differs");
    assert!(
        soon("download", to_client).await.unwrap() == sent,
        "download differs"
    );
    up.await.unwrap();
    down.await.unwrap();
    eventually("bytes are counted", || {
        pair.rig.metric("viaduct_tcp_bytes_total", "") == 2.0 * sent.len() as f64
    })
    .await;
}

#[tokio::test]
async fn a_stalled_reader_stalls_the_sender_and_nobody_else() {
    let mut pair = Pair::connect().await;
    let chunk = pattern(1 << 20);
    let mut accepted = 0;
    // What the kernel and the relay buffer is bounded: the sender blocks well before 64 MiB.
    while let Ok(written) =
        tokio::time::timeout(Duration::from_millis(300), pair.client.write(&chunk)).await
    {
        accepted += written.unwrap();
        assert!(accepted < 64 << 20, "no back-pressure");
    }
    let relayed = pair.rig.metric("viaduct_tcp_bytes_total", "to_backend");
    assert!(relayed < accepted as f64);

    pair.backend.write_all(b"still alive").await.unwrap();
    let mut buffer = [0; 11];
    soon("other direction", pair.client.read_exact(&mut buffer))
        .await
        .unwrap();

    drop(pair.client);
    let mut got = Vec::new();
    soon("the rest", pair.backend.read_to_end(&mut got))
        .await
        .unwrap();
    assert_eq!(got.len(), accepted, "nothing is lost once it reads on");
}

#[tokio::test]
async fn a_stalled_reader_leaves_a_fast_one_its_pace_and_takes_bounded_memory() {
    let (listener, addr) = backend().await;
    let rig = Rig::start(Tcp, &[addr]);
    let at = rig.open().await;
    let mut stuffed = Vec::new();
    let chunk = pattern(1 << 20);
    for _ in 0..20 {
        let mut client = TcpStream::connect(at).await.unwrap();
        let (stalled, _) = soon("accept", listener.accept()).await.unwrap();
        while let Ok(written) =
            tokio::time::timeout(Duration::from_millis(50), client.write(&chunk)).await
        {
            written.unwrap();
        }
        stuffed.push((client, stalled));
    }
    let mut fast = TcpStream::connect(at).await.unwrap();
    let (mut served, _) = soon("accept", listener.accept()).await.unwrap();
    let sent = pattern(64 << 20);
    let copy = sent.clone();
    let sending = tokio::spawn(async move {
        fast.write_all(&copy).await.unwrap();
    });
    let mut got = Vec::new();
    soon("the fast one", served.read_to_end(&mut got))
        .await
        .unwrap();
    assert!(got == sent);
    sending.await.unwrap();
    // What a stalled flow holds is in a pipe or in what is left of one read; pipes are bounded for all.
    let pipes = std::fs::read_dir("/proc/self/fd").unwrap().filter(|fd| {
        let target = std::fs::read_link(fd.as_ref().unwrap().path());
        target.is_ok_and(|target| target.to_string_lossy().starts_with("pipe:"))
    });
    let pipes = pipes.count() / 2;
    assert!(pipes <= 64, "{pipes} pipes");
}

#[tokio::test]
async fn a_reset_in_the_middle_of_a_transfer_is_no_end() {
    let mut pair = Pair::connect().await;
    let answer = pattern(64 << 20);
    // More than all buffers on the way hold, so bytes are under way when the backend breaks.
    let half = tokio::time::timeout(Duration::from_millis(300), pair.backend.write_all(&answer));
    assert!(half.await.is_err(), "it fits into the buffers on the way");
    reset(pair.backend);
    let mut got = Vec::new();
    let end = soon("its end", pair.client.read_to_end(&mut got)).await;
    assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(got.len() < answer.len() && answer.starts_with(&got));
    eventually("the flow ends", || pair.rig.plane.active_flows() == (0, 0)).await;
    let resets = pair
        .rig
        .metric("viaduct_service_faults_total", "backend_reset");
    assert_eq!(resets, 1.0);
}

#[tokio::test]
async fn a_dead_backend_is_not_noticed() {
    let (dead, dead_addr) = backend().await;
    let (live, live_addr) = backend().await;
    // The rig's balancer prefers the lower address.
    let (dead, live, addrs) = if dead_addr < live_addr {
        (dead, live, [dead_addr, live_addr])
    } else {
        (live, dead, [live_addr, dead_addr])
    };
    drop(dead);
    let rig = Rig::start(Tcp, &addrs);
    let mut client = TcpStream::connect(rig.open().await).await.unwrap();
    let begun = Instant::now();
    let (mut served, _) = soon("accept", live.accept()).await.unwrap();
    served.write_all(b"hi").await.unwrap();
    soon("hi", client.read_exact(&mut [0; 2])).await.unwrap();
    assert!(
        begun.elapsed() < Duration::from_millis(250),
        "a refusal costs no time"
    );
    assert_eq!(rig.metric("viaduct_dial_failures_total", "refused"), 1.0);
    let table = rig.published.load();
    let route = table.route(&rig.route()).unwrap();
    let figures = |addr| {
        let backend = route.cluster.iter().find(|b| b.addr == addr).unwrap();
        (backend.live.active(), backend.live.failures_total())
    };
    assert_eq!(figures(addrs[0]), (0, 1));
    assert_eq!(figures(addrs[1]), (1, 0));
}

#[tokio::test]
async fn a_client_nobody_can_serve_is_reset() {
    let (dead, addr) = backend().await;
    drop(dead);
    let rig = Rig::start(Tcp, &[addr]);
    is_reset(rig.open().await).await;
    eventually("it is counted", || {
        rig.metric("viaduct_tcp_refused_connections_total", "dial_failed") == 1.0
    })
    .await;
    eventually("the flow ends", || rig.plane.active_flows() == (0, 0)).await;
}

#[tokio::test]
async fn a_silent_backend_costs_a_quarter_of_a_second() {
    // A full backlog swallows further handshakes.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    socket2::SockRef::from(&silent).listen(0).unwrap();
    let silent_addr = silent.local_addr().unwrap();
    let _fills_it = std::net::TcpStream::connect(silent_addr).unwrap();
    let live = loop {
        let (live, addr) = backend().await;
        if addr > silent_addr {
            break live;
        }
    };
    let rig = Rig::start(Tcp, &[silent_addr, live.local_addr().unwrap()]);
    let addr = rig.open().await;
    let begun = Instant::now();
    let _client = TcpStream::connect(addr).await.unwrap();
    soon("accept", live.accept()).await.unwrap();
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(240), "{took:?}");
    assert!(took < Duration::from_millis(450), "{took:?}");
    assert_eq!(rig.metric("viaduct_dial_failures_total", "timeout"), 1.0);
}

#[tokio::test]
async fn a_single_backend_that_missed_a_packet_gets_another_chance() {
    let slow = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    socket2::SockRef::from(&slow).listen(0).unwrap();
    let addr = slow.local_addr().unwrap();
    let _fills_the_backlog = std::net::TcpStream::connect(addr).unwrap();
    let rig = Rig::start(Tcp, &[addr]);
    let mut client = TcpStream::connect(rig.open().await).await.unwrap();
    eventually("an attempt fails", || {
        rig.metric("viaduct_dial_failures_total", "timeout") == 1.0
    })
    .await;
    let serve = move || {
        slow.accept().unwrap();
        slow.accept().unwrap().0
    };
    let accepted = soon("accept", tokio::task::spawn_blocking(serve))
        .await
        .unwrap();
    drop(accepted);
    assert_eq!(soon("end", client.read(&mut [0; 1])).await.unwrap(), 0);
}

#[tokio::test]
async fn established_connections_outlive_their_endpoint_service_and_listener() {
    let mut pair = Pair::connect().await;
    pair.rig.set_backends(&[]);
    pair.rig.delete_service();
    let id = pair
        .rig
        .spec(viaduct::capture::plan::ListenerState::Serving)
        .id;
    pair.rig.plane.close(&id).await;
    pair.client.write_all(b"x").await.unwrap();
    soon("x", pair.backend.read_exact(&mut [0; 1]))
        .await
        .unwrap();
    assert_eq!(pair.rig.plane.active_flows(), (1, 0));
}

#[tokio::test]
async fn draining_waits_for_those_that_end_and_resets_the_rest() {
    let (listener, addr) = backend().await;
    let rig = Rig::start(Tcp, &[addr]);
    let at = rig.open().await;
    let leaves = TcpStream::connect(at).await.unwrap();
    let mut stays = TcpStream::connect(at).await.unwrap();
    let (_one, _) = soon("accept", listener.accept()).await.unwrap();
    let (_two, _) = soon("accept", listener.accept()).await.unwrap();
    let leave = async {
        // The port is free as soon as draining has begun.
        while TcpListener::bind(at).await.is_err() {
            tokio::task::yield_now().await;
        }
        reset(leaves);
    };
    let (drained, ()) = soon("drain", async {
        tokio::join!(rig.plane.drain(Duration::from_millis(500)), leave)
    })
    .await;
    let expected = Drained {
        finished: 1,
        aborted: 1,
    };
    assert_eq!(drained, expected);
    let error = soon("reset", stays.read(&mut [0; 1])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}
