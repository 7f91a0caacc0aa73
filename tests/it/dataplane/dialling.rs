//! Reaching a backend: how long and how often it is tried, and that nobody else has to wait for it.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use viaduct::balancers::Algorithms;
use viaduct::model::{Knobs, Protocol::Tcp};

use super::rig::{Rig, eventually, is_reset, one_thread, soon};

/// A backend that does not answer: its backlog is full, which swallows further handshakes.
struct Silent {
    listener: std::net::TcpListener,
    addr: SocketAddr,
    _fills_the_backlog: std::net::TcpStream,
}

impl Silent {
    fn new() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        socket2::SockRef::from(&listener).listen(0).unwrap();
        let addr = listener.local_addr().unwrap();
        Self {
            _fills_the_backlog: std::net::TcpStream::connect(addr).unwrap(),
            listener,
            addr,
        }
    }

    /// Answers from now on. Returns the second connection, the first that was not ours.
    async fn wake(self) -> std::net::TcpStream {
        let accept = move || {
            self.listener.accept().unwrap();
            self.listener.accept().unwrap().0
        };
        soon("accept", tokio::task::spawn_blocking(accept))
            .await
            .unwrap()
    }
}

async fn live() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

fn patience(first: Duration, retries: u8) -> Knobs {
    Knobs {
        connect_timeout: Some(first),
        retries: Some(retries),
        ..Knobs::default()
    }
}

/// Far more than any test takes.
const FOR_EVER: Duration = Duration::from_secs(3600);

fn timeouts(rig: &Rig) -> f64 {
    rig.metric("viaduct_dial_failures_total", "timeout")
}

#[tokio::test]
async fn a_service_says_how_long_and_how_often_it_is_tried() {
    let silent = Silent::new();
    let mut rig = Rig::start(Tcp, &[silent.addr]);
    let at = rig.open().await;
    // 40 ms, 80 ms and 160 ms.
    rig.apply_service(patience(Duration::from_millis(40), 2));
    let begun = Instant::now();
    is_reset(at).await;
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(279), "{took:?}");
    assert_eq!(timeouts(&rig), 3.0);

    rig.apply_service(patience(Duration::from_millis(10), 0));
    let begun = Instant::now();
    is_reset(at).await;
    let took = begun.elapsed();
    assert!(took < Duration::from_millis(240), "{took:?}");
    assert_eq!(timeouts(&rig), 4.0);
}

#[tokio::test]
async fn a_client_that_goes_away_ends_the_dialling_at_once() {
    let silent = Silent::new();
    let mut rig = Rig::start(Tcp, &[silent.addr]);
    rig.apply_service(patience(FOR_EVER, 0));
    let at = rig.open().await;
    let client = TcpStream::connect(at).await.unwrap();
    eventually("it is dialled", || rig.figures(silent.addr) == (1, 0)).await;
    client.set_zero_linger().unwrap();
    drop(client);
    eventually("it is counted", || {
        rig.metric("viaduct_tcp_refused_connections_total", "client_gone") == 1.0
    })
    .await;
    eventually("nothing is left of it", || {
        rig.plane.active_flows() == (0, 0)
    })
    .await;
    assert_eq!(
        rig.figures(silent.addr),
        (0, 0),
        "the backend is not to blame"
    );
}

#[tokio::test]
async fn a_client_that_has_only_finished_its_question_still_gets_its_answer() {
    let silent = Silent::new();
    let mut rig = Rig::start(Tcp, &[silent.addr]);
    rig.apply_service(patience(FOR_EVER, 0));
    let mut client = TcpStream::connect(rig.open().await).await.unwrap();
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    eventually("it is dialled", || rig.figures(silent.addr) == (1, 0)).await;
    let backend = silent.wake().await;
    backend.set_nonblocking(true).unwrap();
    let mut backend = TcpStream::from_std(backend).unwrap();
    let mut question = Vec::new();
    soon("question", backend.read_to_end(&mut question))
        .await
        .unwrap();
    assert_eq!(question, b"question");
    backend.write_all(b"answer").await.unwrap();
    drop(backend);
    let mut answer = Vec::new();
    soon("answer", client.read_to_end(&mut answer))
        .await
        .unwrap();
    assert_eq!(answer, b"answer");
}

#[tokio::test]
async fn clients_that_wait_for_a_silent_backend_delay_nobody() {
    let silent = Silent::new();
    let (listener, addr) = live().await;
    let mut rig = Rig::start(Tcp, &[silent.addr]);
    rig.apply_service(patience(FOR_EVER, 0));
    let at = rig.open().await;
    let mut waiting = Vec::new();
    for _ in 0..50 {
        waiting.push(TcpStream::connect(at).await.unwrap());
    }
    eventually("they are dialled", || rig.figures(silent.addr).0 == 50).await;
    rig.set_backends(&[addr]);
    let _client = TcpStream::connect(at).await.unwrap();
    soon("it is served", listener.accept()).await.unwrap();
    assert_eq!(rig.plane.active_flows(), (51, 0));
}

#[tokio::test]
async fn a_backend_that_is_replaced_while_it_is_dialled_is_not_asked_again() {
    let silent = Silent::new();
    let (listener, addr) = live().await;
    let mut rig = Rig::start(Tcp, &[silent.addr]);
    rig.apply_service(patience(Duration::from_millis(300), 1));
    let _client = TcpStream::connect(rig.open().await).await.unwrap();
    eventually("it is dialled", || rig.figures(silent.addr) == (1, 0)).await;
    rig.set_backends(&[addr]);
    soon("it reaches the new one", listener.accept())
        .await
        .unwrap();
    assert_eq!(timeouts(&rig), 1.0);
}

#[tokio::test]
async fn a_service_that_is_deleted_meanwhile_still_serves_whom_it_has_accepted() {
    let silent = Silent::new();
    let mut rig = Rig::start(Tcp, &[silent.addr]);
    rig.apply_service(patience(Duration::from_millis(100), 5));
    let mut client = TcpStream::connect(rig.open().await).await.unwrap();
    eventually("an attempt fails", || timeouts(&rig) == 1.0).await;
    rig.delete_service();
    drop(silent.wake().await);
    assert_eq!(soon("end", client.read(&mut [0; 1])).await.unwrap(), 0);
}

#[tokio::test]
async fn a_backend_that_fails_loses_its_clients_to_another() {
    let mut backends = [live().await, live().await];
    backends.sort_by_key(|(_, addr)| *addr);
    let addrs = [backends[0].1, backends[1].1];
    let balancers = Arc::new(Algorithms::default());
    let mut rig = Rig::balanced_by(balancers, Tcp, &addrs, one_thread());
    rig.apply_service_with(|service| service.affinity = Some(FOR_EVER));
    let at = rig.open().await;
    let _first = TcpStream::connect(at).await.unwrap();
    eventually("it is served", || {
        addrs.iter().any(|addr| rig.figures(*addr).0 == 1)
    })
    .await;
    let [lower, upper] = backends;
    let (dying, surviving) = if rig.figures(lower.1).0 == 1 {
        (lower, upper)
    } else {
        (upper, lower)
    };
    drop(dying.0);
    for _ in 0..5 {
        let _client = TcpStream::connect(at).await.unwrap();
        soon("the other serves", surviving.0.accept())
            .await
            .unwrap();
    }
    let (_, failures) = rig.figures(dying.1);
    assert_eq!(
        failures, 1,
        "asked once, then the client belongs to the other"
    );
}

#[tokio::test]
async fn a_single_backend_that_refuses_is_asked_once() {
    let (listener, addr) = live().await;
    drop(listener);
    let rig = Rig::start(Tcp, &[addr]);
    let at = rig.open().await;
    let outcome = async { TcpStream::connect(at).await?.read(&mut [0; 1]).await };
    let error = soon("reset", outcome).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(rig.figures(addr), (0, 1));
}

#[tokio::test]
async fn a_backend_that_fails_three_times_in_a_row_is_left_alone_for_a_while() {
    let (listener, good) = live().await;
    let accept = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            drop(stream);
        }
    });
    let gone = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let balancers = Arc::new(Algorithms::default());
    let rig = Rig::balanced_by(balancers, Tcp, &[good, gone], one_thread());
    let at = rig.open().await;
    let failures = || rig.figures(gone).1;
    let connect = || async {
        let mut client = TcpStream::connect(at).await.unwrap();
        assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0, "it was served");
    };
    for _ in 0..6 {
        connect().await;
    }
    assert_eq!(failures(), 3, "every second flow met it");
    assert_eq!(rig.metric("viaduct_backend_ejections_total", ""), 1.0);
    let ejected = Instant::now();
    for _ in 0..20 {
        connect().await;
    }
    let too_slow = ejected.elapsed() >= Duration::from_secs(1);
    assert!(failures() == 3 || too_slow, "it was not left alone");
    while failures() == 3 {
        assert!(ejected.elapsed() < Duration::from_secs(20), "never again");
        connect().await;
    }
    assert_eq!(failures(), 4, "one dial to see whether it is back");
    accept.abort();
}
