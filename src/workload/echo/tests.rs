//! Simulated Pods over real sockets on loopback.

use std::io::ErrorKind;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use crate::faults::{ActiveFaults, Carrier, FaultTarget, Faults};
use crate::model::Protocol;

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

fn pod(name: &str, ports: &[(u16, Protocol)]) -> SimulatedPod {
    SimulatedPod {
        namespace: "default".into(),
        name: name.into(),
        ip: [127, 0, 0, 1].into(),
        ports: ports.to_vec(),
        faults: Faults::default(),
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

fn faulty(text: &str, protocol: Protocol) -> SimulatedPod {
    SimulatedPod {
        faults: Faults::parse(text).unwrap(),
        ..pod("web-0", &[(0, protocol)])
    }
}

async fn ask(addr: SocketAddr, request: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(addr).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    soon(stream.read_to_end(&mut answer)).await?;
    Ok(String::from_utf8(answer).unwrap())
}

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

#[tokio::test]
async fn answers_fail_as_asked_and_repeatably() {
    let mut runs = Vec::new();
    for _ in 0..2 {
        let pods = vec![faulty(
            "error=30%; reset=30%; cut=30%; seed=3",
            Protocol::Tcp,
        )];
        let simulator = simulate(Limits::default(), pods).await;
        let addr = address(&simulator, "web-0");
        let mut run = Vec::new();
        for _ in 0..30 {
            run.push(match ask(addr, GET).await {
                Ok(answer) if answer.ends_with("web-0\n") => answer[9..12].to_owned(),
                Ok(answer) if answer.ends_with("\r\n\r\nweb") => "cut".to_owned(),
                Ok(answer) => panic!("{answer:?}"),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => "reset".to_owned(),
                Err(error) => panic!("{error}"),
            });
        }
        for expected in ["200", "500", "cut", "reset"] {
            assert!(run.iter().any(|met| met == expected), "{expected}: {run:?}");
        }
        runs.push(run);
    }
    assert_eq!(runs[0], runs[1]);
}

#[tokio::test]
async fn lines_are_late_cut_or_reset() {
    for (text, expected) in [("cut=100%", "web-0: he"), ("delay=40ms", "web-0: hello")] {
        let pods = vec![faulty(text, Protocol::Tcp)];
        let simulator = simulate(Limits::default(), pods).await;
        let mut stream = TcpStream::connect(address(&simulator, "web-0"))
            .await
            .unwrap();
        let before = std::time::Instant::now();
        stream.write_all(b"hello").await.unwrap();
        assert_eq!(read_exactly(&mut stream, expected.len()).await, expected);
        if text.starts_with("delay") {
            assert!(before.elapsed() >= Duration::from_millis(40));
        } else {
            assert_eq!(read_to_end(&mut stream).await, "", "then it ends");
        }
    }
    let simulator = simulate(Limits::default(), vec![faulty("reset=100%", Protocol::Tcp)]).await;
    let error = ask(address(&simulator, "web-0"), "hello\n")
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_refusing_pod_has_no_socket_until_it_is_well_again() {
    let active = ActiveFaults::default();
    let target = FaultTarget::pod("default", "web-0");
    let mut simulator = Simulator::new(active.clone());
    let ports = [(0, Protocol::Tcp), (0, Protocol::Udp)];
    assert!(simulator.set(vec![pod("web-0", &ports)]).await.is_empty());
    let addresses: Vec<_> = simulator.addresses().map(|(_, addr, _)| addr).collect();
    let refuse = Faults::parse("refuse").unwrap();
    active
        .turn_on(target.clone(), refuse, std::time::Instant::now())
        .unwrap();
    soon(async {
        while TcpStream::connect(addresses[0]).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.connect(addresses[1]).await.unwrap();
    let refused = soon(async {
        loop {
            // The refusal of one datagram is told at the next call.
            if let Err(error) = client.send(b"hi").await {
                return error;
            }
            tokio::task::yield_now().await;
        }
    });
    assert_eq!(refused.await.kind(), ErrorKind::ConnectionRefused);
    assert!(active.turn_off(&target));
    soon(async {
        while TcpStream::connect(addresses[0]).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(ask(addresses[0], GET).await.unwrap().ends_with("web-0\n"));
}

#[tokio::test]
async fn a_black_hole_takes_everything_and_says_nothing() {
    let simulator = simulate(Limits::default(), vec![faulty("blackhole", Protocol::Tcp)]).await;
    for text in [GET, "hello\n"] {
        let mut stream = TcpStream::connect(address(&simulator, "web-0"))
            .await
            .unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut byte = [0];
        let read = tokio::time::timeout(Duration::from_millis(50), stream.read(&mut byte));
        assert!(read.await.is_err(), "{text:?}");
    }
}

#[tokio::test]
async fn datagrams_are_lost_and_doubled_as_the_seed_says() {
    let simulator = simulate(
        Limits::default(),
        vec![faulty("loss=30%; duplicate=30%; seed=5", Protocol::Udp)],
    )
    .await;
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.connect(address(&simulator, "web-0")).await.unwrap();
    let expected = {
        let faults = Faults::parse("loss=30%; duplicate=30%; seed=5").unwrap();
        let now = std::time::Instant::now();
        let same = ActiveFaults::default().injection(faults, now);
        let fates = (0..40).map(|_| same.draw(now, Carrier::Udp));
        fates
            .map(|fate| {
                if fate.loss {
                    0
                } else {
                    1 + usize::from(fate.duplicate)
                }
            })
            .collect::<Vec<_>>()
    };
    assert!((0..=2).all(|n| expected.contains(&n)), "{expected:?}");
    let mut copies = vec![0; expected.len()];
    let mut answer = [0; 64];
    let last = expected.iter().rposition(|n| *n > 0).unwrap();
    for n in 0..expected.len() {
        client.send(n.to_string().as_bytes()).await.unwrap();
    }
    while copies[last] < expected[last] {
        let n = soon(client.recv(&mut answer)).await.unwrap();
        let text = std::str::from_utf8(&answer[..n]).unwrap();
        copies[text
            .strip_prefix("web-0: ")
            .unwrap()
            .parse::<usize>()
            .unwrap()] += 1;
    }
    assert_eq!(copies, expected);
}

#[tokio::test]
async fn only_probes_hear_that_a_flapping_pod_is_not_ready() {
    let simulator = simulate(Limits::default(), vec![faulty("flap=1ns", Protocol::Tcp)]).await;
    let addr = address(&simulator, "web-0");
    let probe = GET.replace("Host", "User-Agent: kube-probe/1.36\r\nHost");
    let mut statuses = std::collections::BTreeSet::new();
    soon(async {
        while statuses.len() < 2 {
            statuses.insert(ask(addr, &probe).await.unwrap()[9..12].to_owned());
        }
    })
    .await;
    assert_eq!(statuses.into_iter().collect::<Vec<_>>(), ["200", "503"]);
    for _ in 0..10 {
        assert_eq!(&ask(addr, GET).await.unwrap()[9..12], "200");
    }
}
