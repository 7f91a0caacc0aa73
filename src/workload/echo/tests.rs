//! Simulated Pods over real sockets on loopback.

use std::io::ErrorKind;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use crate::model::Protocol;

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

fn pod(name: &str, ports: &[(u16, Protocol)]) -> SimulatedPod {
    SimulatedPod {
        namespace: "default".into(),
        name: name.into(),
        ip: [127, 0, 0, 1].into(),
        ports: ports.to_vec(),
    }
}

async fn simulate(limits: Limits, pods: Vec<SimulatedPod>) -> Simulator {
    let mut simulator = Simulator::with_limits(limits);
    let failures = simulator.set(pods).await;
    assert!(failures.is_empty(), "{failures:?}");
    simulator
}

fn address(simulator: &Simulator, name: &str) -> SocketAddr {
    simulator
        .addresses()
        .find(|(pod, ..)| *pod == name)
        .unwrap()
        .1
}

async fn tcp(limits: Limits) -> (Simulator, TcpStream) {
    let simulator = simulate(limits, vec![pod("web-0", &[(0, Protocol::Tcp)])]).await;
    let stream = TcpStream::connect(address(&simulator, "web-0"))
        .await
        .unwrap();
    (simulator, stream)
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.unwrap()
}

async fn read_exactly(stream: &mut TcpStream, n: usize) -> String {
    let mut bytes = vec![0; n];
    soon(stream.read_exact(&mut bytes)).await.unwrap();
    String::from_utf8(bytes).unwrap()
}

async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut text = String::new();
    soon(stream.read_to_string(&mut text)).await.unwrap();
    text
}

/// Sends everything, then FIN, and returns everything that comes back before the other FIN.
async fn exchange(bytes: &[u8]) -> String {
    let (_simulator, mut stream) = tcp(Limits::default()).await;
    stream.write_all(bytes).await.unwrap();
    stream.shutdown().await.unwrap();
    read_to_end(&mut stream).await
}

#[tokio::test]
async fn each_line_is_answered_with_the_name_of_the_pod() {
    let (_simulator, mut stream) = tcp(Limits::default()).await;
    stream.write_all(b"one\n\ntw").await.unwrap();
    assert_eq!(
        read_exactly(&mut stream, 28).await,
        "web-0: one\nweb-0: \nweb-0: tw"
    );
    stream.write_all(b"o\nthree").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut stream).await, "o\nweb-0: three");
}

#[tokio::test]
async fn after_a_fin_everything_has_been_answered() {
    let line = "x".repeat(3_000_000);
    assert_eq!(exchange(b"").await, "");
    assert_eq!(exchange(b"hi").await, "web-0: hi");
    let (simulator, stream) = tcp(Limits::default()).await;
    let (mut reader, mut writer) = stream.into_split();
    let sent = line.clone();
    let sender = tokio::spawn(async move {
        writer.write_all(sent.as_bytes()).await.unwrap();
        writer.shutdown().await.unwrap();
    });
    let mut answer = String::new();
    soon(reader.read_to_string(&mut answer)).await.unwrap();
    sender.await.unwrap();
    assert!(
        answer == format!("web-0: {line}"),
        "{} bytes back",
        answer.len()
    );
    soon(simulator.shutdown()).await;
}

#[tokio::test]
async fn what_only_begins_like_a_request_is_echoed_too() {
    assert_eq!(
        exchange(b"PUT the kettle on\n").await,
        "web-0: PUT the kettle on\n"
    );
    assert_eq!(exchange(b"GE").await, "web-0: GE");
    let (_simulator, mut stream) = tcp(Limits::default()).await;
    stream.write_all(b"GET").await.unwrap();
    assert_eq!(
        read_exactly(&mut stream, 10).await,
        "web-0: GET",
        "without waiting for more than the pause"
    );
}

#[tokio::test]
async fn requests_are_answered_one_after_the_other_on_one_connection() {
    let (_simulator, mut stream) = tcp(Limits::default()).await;
    let client = stream.local_addr().unwrap();
    // In pieces, with a body to skip that looks like a request itself.
    for piece in [
        "POST /a HT",
        "TP/1.1\r\nHost: a\r\nContent-Length: 20\r\n\r\nGET / HTTP",
        "/1.1\r\n\r\nGET",
        " /b HTTP/1.1\r\nHost: a\r\n\r\n",
        "HEAD /c HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    ] {
        stream.write_all(piece.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        tokio::task::yield_now().await;
    }
    let text = read_to_end(&mut stream).await;
    let answers: Vec<&str> = text.split_inclusive("\r\n\r\n").collect();
    assert_eq!(answers.len(), 3, "{text}");
    for answer in &answers {
        let answer = answer.strip_prefix("web-0\n").unwrap_or(answer);
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
        assert!(answer.contains("content-type: text/plain; charset=utf-8\r\n"));
        assert!(answer.contains("x-pod: web-0\r\n"));
        assert!(answer.contains(&format!("x-client: {client}\r\n")));
        assert!(answer.contains("content-length: 6\r\n"), "{text}");
    }
    assert!(answers[1].starts_with("web-0\n") && answers[2].starts_with("web-0\n"));
    assert!(
        text.ends_with("\r\n\r\n"),
        "the answer to HEAD has no body: {text}"
    );
}

#[tokio::test]
async fn a_head_that_is_too_long_is_refused() {
    for (n, status) in [(8_000, "200"), (17_000, "431")] {
        let request = format!("GET / HTTP/1.0\r\nX: {}\r\n\r\n", "a".repeat(n));
        let answer = exchange(request.as_bytes()).await;
        assert_eq!(answer.split(' ').nth(1), Some(status), "{n}");
    }
}

#[tokio::test]
async fn a_silent_client_is_kept_until_the_idle_time_has_passed() {
    let limits = Limits {
        idle: Duration::from_millis(200),
        ..Limits::default()
    };
    let (_simulator, mut silent) = tcp(limits).await;
    let before = std::time::Instant::now();
    assert_eq!(read_to_end(&mut silent).await, "");
    assert!(before.elapsed() >= Duration::from_millis(150));
}

#[tokio::test]
async fn a_client_that_never_reads_is_given_up() {
    let limits = Limits {
        connections: 1,
        idle: Duration::from_millis(200),
    };
    let (simulator, mut deaf) = tcp(limits).await;
    let flood = vec![b'\n'; 64 * 1024];
    // Every line end comes back with a name, so the answers soon fill all buffers; then the connection is reset.
    let error = soon(async {
        loop {
            if let Err(error) = deaf.write_all(&flood).await {
                return error;
            }
        }
    })
    .await;
    assert!(matches!(
        error.kind(),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
    ));
    let mut next = TcpStream::connect(address(&simulator, "web-0"))
        .await
        .unwrap();
    next.write_all(b"hi").await.unwrap();
    assert_eq!(read_exactly(&mut next, 9).await, "web-0: hi");
}

#[tokio::test]
async fn past_the_limit_a_connection_waits_until_one_ends() {
    let limits = Limits {
        connections: 2,
        ..Limits::default()
    };
    let (simulator, mut first) = tcp(limits).await;
    let addr = address(&simulator, "web-0");
    let mut second = TcpStream::connect(addr).await.unwrap();
    for stream in [&mut first, &mut second] {
        stream.write_all(b"a").await.unwrap();
        assert_eq!(read_exactly(stream, 8).await, "web-0: a");
    }
    let mut third = TcpStream::connect(addr).await.unwrap();
    third.write_all(b"b").await.unwrap();
    let mut byte = [0];
    let early = tokio::time::timeout(Duration::from_millis(100), third.read(&mut byte)).await;
    assert!(early.is_err(), "both places are taken");
    drop(first);
    assert_eq!(read_exactly(&mut third, 8).await, "web-0: b");
}

#[tokio::test]
async fn datagrams_come_back_with_the_name_if_both_fit() {
    let simulator = simulate(
        Limits::default(),
        vec![pod("dns-0", &[(0, Protocol::Udp), (0, Protocol::Tcp)])],
    )
    .await;
    let (_, addr, _) = simulator
        .addresses()
        .find(|(.., protocol)| *protocol == Protocol::Udp)
        .unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(addr).await.unwrap();
    let largest_named = 65_507 - "dns-0: ".len();
    for n in [0, 1, largest_named, largest_named + 1, 65_507] {
        let datagram = vec![b'x'; n];
        socket.send(&datagram).await.unwrap();
        let mut answer = vec![0; 65_536];
        let got = soon(socket.recv(&mut answer)).await.unwrap();
        if n <= largest_named {
            assert_eq!(&answer[..7], b"dns-0: ");
            assert!(answer[7..got] == datagram, "{n}");
        } else {
            assert!(answer[..got] == datagram, "{n}");
        }
    }
}

#[tokio::test]
async fn unchanged_pods_are_not_disturbed_and_the_others_end() {
    let kept = pod("kept", &[(0, Protocol::Tcp)]);
    let gone = pod("gone", &[(0, Protocol::Tcp)]);
    let mut simulator = simulate(Limits::default(), vec![kept.clone(), gone]).await;
    let mut to_kept = TcpStream::connect(address(&simulator, "kept"))
        .await
        .unwrap();
    let gone_addr = address(&simulator, "gone");
    let mut to_gone = TcpStream::connect(gone_addr).await.unwrap();
    to_gone.write_all(b"a").await.unwrap();
    assert_eq!(read_exactly(&mut to_gone, 7).await, "gone: a");

    let new = pod("new", &[(0, Protocol::Tcp)]);
    assert!(soon(simulator.set(vec![new, kept])).await.is_empty());
    assert_eq!(
        read_to_end(&mut to_gone).await,
        "",
        "its connections end with it"
    );
    let refused = TcpStream::connect(gone_addr).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    to_kept.write_all(b"b").await.unwrap();
    assert_eq!(read_exactly(&mut to_kept, 7).await, "kept: b");
    assert_eq!(simulator.addresses().count(), 2);
    soon(simulator.shutdown()).await;
    assert_eq!(read_to_end(&mut to_kept).await, "");
}

#[tokio::test]
async fn a_place_that_is_taken_is_reported_and_tried_again() {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let mut simulator = simulate(Limits::default(), vec![pod("first", &[(0, protocol)])]).await;
        let port = address(&simulator, "first").port();
        let first = pod("first", &[(port, protocol)]);
        let second = pod("second", &[(port, protocol), (port, protocol)]);
        let third = pod("third", &[(0, protocol)]);

        let failures = simulator.set(vec![first, second.clone(), third]).await;
        assert_eq!(failures.len(), 2, "each time it is asked for: {failures:?}");
        assert_eq!(failures[0].name, "second");
        assert_eq!(failures[0].error.kind(), ErrorKind::AddrInUse);
        assert!(failures[0].to_string().starts_with(&format!(
            "simulated pod default/second cannot answer at 127.0.0.1:{port}/{protocol}: "
        )));
        let names: Vec<&str> = simulator.addresses().map(|(pod, ..)| pod).collect();
        assert_eq!(
            names,
            ["first", "third"],
            "one failure does not stop the next"
        );

        assert!(
            simulator.set(vec![second]).await.is_empty(),
            "the first has gone"
        );
        assert_eq!(address(&simulator, "second").port(), port);
    }
}
