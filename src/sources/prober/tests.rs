//! Probes against small real servers on loopback, and workers against the reports that they should make.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use prometheus::Registry;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

use crate::control::{
    Config, ControlPlane, Handler, HttpGet, Outcome, ProbeChange, ProbeKind, ProbeSpec, Readiness,
    Timing, UnknownFields, decode,
};

use super::attempt::Attempt;
use super::*;

/// A server that answers the n-th request with what `answer` makes of n and its head, and closes. Heads come out of the
/// receiver.
async fn serve(
    answer: impl Fn(usize, &str) -> Vec<u8> + Send + Sync + 'static,
) -> (SocketAddr, mpsc::Receiver<String>) {
    let (listener, address) = listen().await;
    let (heads, receiver) = mpsc::channel(64);
    tokio::spawn(async move {
        for n in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            answer_one(stream, n, &answer, &heads).await;
        }
    });
    (address, receiver)
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

async fn answer_one(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    n: usize,
    answer: &impl Fn(usize, &str) -> Vec<u8>,
    heads: &mpsc::Sender<String>,
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8(head).unwrap();
    // Whoever asks may leave as soon as he has read enough.
    let _ = stream.write_all(&answer(n, &head)).await;
    let _ = stream.shutdown().await;
    let _ = heads.send(head).await;
}

fn status(code: u16) -> Vec<u8> {
    format!("HTTP/1.1 {code} Word\r\nContent-Length: 2\r\n\r\nhi").into_bytes()
}

fn redirect(code: u16, location: &str) -> Vec<u8> {
    format!("HTTP/1.1 {code} Word\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n")
        .into_bytes()
}

fn get(address: SocketAddr) -> HttpGet {
    HttpGet {
        tls: false,
        host: address.ip().to_string(),
        port: address.port(),
        path: "/healthz?full".to_owned(),
        headers: Vec::new(),
    }
}

async fn attempt(handler: Handler) -> Attempt {
    let metrics = Metrics::new(&Registry::new()).unwrap();
    let attempts = Attempts::new(ExecProbes::Allowed, metrics);
    attempts.run(ProbeKind::Readiness, &spec(handler, 20)).await
}

async fn attempt_http(get: HttpGet) -> Attempt {
    attempt(Handler::HttpGet(get)).await
}

fn spec(handler: Handler, timeout: u64) -> ProbeSpec {
    ProbeSpec {
        handler,
        timing: Timing {
            initial_delay: Duration::ZERO,
            period: Duration::from_secs(1),
            success_threshold: 1,
            failure_threshold: 1,
        },
        timeout: Duration::from_secs(timeout),
    }
}

#[track_caller]
fn assert_fails(attempt: Attempt, with: &str) {
    let failed = matches!(&attempt, Attempt::Failure(text) if text.contains(with));
    assert!(failed, "{attempt:?} is no failure with {with}");
}

#[track_caller]
fn assert_warns(attempt: Attempt, of: &str) {
    let warned = matches!(&attempt, Attempt::Warning(text) if text.contains(of));
    assert!(warned, "{attempt:?} is no warning of {of}");
}

#[tokio::test]
async fn statuses_from_200_to_399_are_successes() {
    let (address, _heads) =
        serve(|n, _| status([200, 204, 299, 300, 304, 399, 400, 404, 503][n])).await;
    for code in [200, 204, 299, 300, 304, 399] {
        let attempt = attempt_http(get(address)).await;
        assert_eq!(attempt.outcome(), Outcome::Success, "{code}");
    }
    for code in [400, 404, 503] {
        assert_fails(
            attempt_http(get(address)).await,
            &format!("HTTP status {code}"),
        );
    }
    let (address, _heads) = serve(|_, _| status(199)).await;
    assert_eq!(attempt_http(get(address)).await.outcome(), Outcome::Failure);
}

#[tokio::test]
async fn requests_look_like_those_of_the_kubelet() {
    let (address, mut heads) = serve(|_, _| status(200)).await;
    let sent = async |get: HttpGet, heads: &mut mpsc::Receiver<String>| {
        assert_eq!(attempt_http(get).await, Attempt::Success);
        heads.recv().await.unwrap()
    };
    let plain = sent(get(address), &mut heads).await;
    let mut lines: Vec<_> = plain.trim_end().split("\r\n").collect();
    assert_eq!(lines.remove(0), "GET /healthz?full HTTP/1.1");
    lines.sort_unstable();
    let host = format!("Host: {address}");
    let expected = [
        "Accept: */*",
        "Connection: close",
        &host,
        "User-Agent: kube-probe/1.36",
    ];
    assert_eq!(lines, expected);

    let given = |headers: &[(&str, &str)]| HttpGet {
        headers: headers
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
        ..get(address)
    };
    let headers = [
        ("host", "shop.example"),
        ("user-agent", "me"),
        ("Accept", "text/plain"),
        ("X-Many", "1"),
        ("X-Many", "2"),
    ];
    let head = sent(given(&headers), &mut heads).await;
    for line in [
        "Host: shop.example",
        "User-Agent: me",
        "Accept: text/plain",
        "X-Many: 1",
        "X-Many: 2",
    ] {
        assert!(head.contains(&format!("{line}\r\n")), "{head}");
    }
    assert!(
        !head.contains("kube-probe") && !head.contains("*/*"),
        "{head}"
    );
    let head = sent(given(&[("Accept", "")]), &mut heads).await;
    assert!(!head.contains("Accept"), "{head}");

    for (path, line) in [
        ("", "GET / HTTP"),
        ("plain", "GET /plain HTTP"),
        ("/a b#c", "GET /a%20b HTTP"),
        ("//x/%2f?q=1&r", "GET //x/%2f?q=1&r HTTP"),
    ] {
        let path = path.to_owned();
        let head = sent(
            HttpGet {
                path,
                ..get(address)
            },
            &mut heads,
        )
        .await;
        assert!(head.starts_with(line), "{head}");
    }
}

#[tokio::test]
async fn a_request_that_cannot_be_built_is_a_malfunction() {
    let (address, _heads) = serve(|_, _| status(200)).await;
    for bad in [
        HttpGet {
            headers: vec![("X".to_owned(), "a\nb".to_owned())],
            ..get(address)
        },
        HttpGet {
            host: "no host".to_owned(),
            ..get(address)
        },
    ] {
        let attempt = attempt_http(bad).await;
        assert_eq!(attempt.outcome(), Outcome::Unknown, "{attempt:?}");
    }
    let unusable = Handler::Unusable("why".to_owned());
    assert_eq!(
        attempt(unusable).await,
        Attempt::Malfunction("why".to_owned())
    );
}

#[tokio::test]
async fn redirects_within_the_host_are_followed_up_to_ten() {
    for (n_redirects, outcome) in [
        (1, Outcome::Success),
        (10, Outcome::Success),
        (11, Outcome::Failure),
    ] {
        let (address, mut heads) = serve(move |n, _| {
            if n < n_redirects {
                redirect([301, 302, 303, 307, 308][n % 5], &format!("/next/{n}"))
            } else {
                status(200)
            }
        })
        .await;
        let custom = vec![("Host".to_owned(), "shop.example".to_owned())];
        let attempt = attempt_http(HttpGet {
            headers: custom,
            ..get(address)
        })
        .await;
        assert_eq!(attempt.outcome(), outcome, "{attempt:?}");
        heads.recv().await.unwrap();
        let second = heads.recv().await.unwrap();
        assert!(second.starts_with("GET /next/0 HTTP"), "{second}");
        assert!(second.contains("Host: shop.example\r\n"), "{second}");
    }
}

#[tokio::test]
async fn a_redirect_may_lead_to_another_port_and_its_answer_counts() {
    let (other, mut heads) = serve(|_, _| status(500)).await;
    let (address, _heads) =
        serve(move |_, _| redirect(302, &format!("http://{other}/there"))).await;
    assert_fails(attempt_http(get(address)).await, "HTTP status 500");
    let head = heads.recv().await.unwrap();
    assert!(head.contains(&format!("Host: {other}\r\n")), "{head}");
}

#[tokio::test]
async fn a_redirect_elsewhere_or_nowhere_is_a_success_with_a_warning() {
    let (address, mut heads) = serve(|n, _| match n {
        0 => redirect(302, "http://elsewhere.invalid/"),
        1 => redirect(307, "//elsewhere.invalid/x"),
        _ => status(302),
    })
    .await;
    for expected in ["another host", "another host", "leads nowhere"] {
        assert_warns(attempt_http(get(address)).await, expected);
        heads.recv().await.unwrap();
    }
    let (address, _heads) = serve(|_, _| redirect(302, "http://[nonsense")).await;
    assert_fails(attempt_http(get(address)).await, "redirect to");
}

#[tokio::test]
async fn bodies_are_read_up_to_ten_kilobytes_and_must_be_whole() {
    let body = |length: usize, sent: usize| {
        let mut answer =
            format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").into_bytes();
        answer.resize(answer.len() + sent, b'x');
        answer
    };
    let (address, _heads) = serve(move |n, _| match n {
        0 => body(100, 100),
        // More than is read, and broken off after that.
        1 => body(1 << 30, 1 << 20),
        _ => body(100, 50),
    })
    .await;
    assert_eq!(attempt_http(get(address)).await, Attempt::Success);
    assert_eq!(attempt_http(get(address)).await, Attempt::Success);
    assert_fails(attempt_http(get(address)).await, "HTTP status 200");
}

#[tokio::test]
async fn what_is_no_http_is_a_failure() {
    let (address, _heads) = serve(|_, _| b"SSH-2.0-x\r\n".to_vec()).await;
    assert_eq!(attempt_http(get(address)).await.outcome(), Outcome::Failure);
    let (address, _heads) = serve(|_, _| Vec::new()).await;
    assert_eq!(attempt_http(get(address)).await.outcome(), Outcome::Failure);
}

#[tokio::test]
async fn whoever_takes_too_long_has_failed() {
    // Accepted by the kernel, answered by nobody.
    let (_listener, silent) = listen().await;
    // One byte at a time, each in time, the whole never.
    let (listener, dripping) = listen().await;
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n";
        stream.write_all(head).await.unwrap();
        while stream.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    });
    let metrics = Metrics::new(&Registry::new()).unwrap();
    let attempts = Attempts::new(ExecProbes::Allowed, metrics);
    let slow = Handler::Exec(["sleep", "3600"].map(str::to_owned).to_vec());
    let grpc = Handler::Grpc {
        ip: silent.ip(),
        port: silent.port(),
        service: String::new(),
    };
    let handlers = [
        Handler::HttpGet(get(silent)),
        Handler::HttpGet(get(dripping)),
        grpc,
        slow,
    ];
    let attempts = handlers.map(|handler| {
        let attempts = &attempts;
        async move { attempts.run(ProbeKind::Readiness, &spec(handler, 1)).await }
    });
    for attempt in futures_util::future::join_all(attempts).await {
        assert_fails(attempt, "no answer within 1s");
    }
}

#[tokio::test]
async fn https_takes_any_certificate() {
    let certified = rcgen::generate_simple_self_signed(["somebody.else".to_owned()]).unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let key = certified.signing_key.serialize_der().try_into().unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let (listener, address) = listen().await;
    let (heads, mut receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            if let Ok(stream) = acceptor.accept(stream).await {
                answer_one(stream, 0, &|_, _| status(200), &heads).await;
            }
        }
    });
    let https = HttpGet {
        tls: true,
        ..get(address)
    };
    assert_eq!(attempt_http(https.clone()).await, Attempt::Success);
    assert!(
        receiver
            .recv()
            .await
            .unwrap()
            .contains(&format!("Host: {address}\r\n"))
    );
    let named = HttpGet {
        host: "localhost".to_owned(),
        ..https
    };
    assert_eq!(attempt_http(named).await, Attempt::Success);
    assert_eq!(
        attempt_http(get(address)).await.outcome(),
        Outcome::Failure,
        "plain HTTP to TLS"
    );
    let (plain, _heads) = serve(|_, _| status(200)).await;
    // The greeting of TLS has no end of a head, so the server is told to wait for none.
    let tls = HttpGet {
        tls: true,
        ..get(plain)
    };
    let attempts = Attempts::new(ExecProbes::Allowed, Metrics::new(&Registry::new()).unwrap());
    let attempt = attempts
        .run(ProbeKind::Readiness, &spec(Handler::HttpGet(tls), 1))
        .await;
    assert_eq!(attempt.outcome(), Outcome::Failure, "TLS to plain HTTP");
}

#[tokio::test]
async fn a_socket_that_opens_is_a_success_and_is_closed_at_once() {
    let (listener, address) = listen().await;
    let socket = |address: SocketAddr| Handler::TcpSocket {
        host: address.ip().to_string(),
        port: address.port(),
    };
    assert_eq!(attempt(socket(address)).await, Attempt::Success);
    let (mut stream, _) = listener.accept().await.unwrap();
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    let named = Handler::TcpSocket {
        host: "localhost".to_owned(),
        port: address.port(),
    };
    assert_eq!(attempt(named).await, Attempt::Success);
    drop(listener);
    assert_fails(attempt(socket(address)).await, "refused");
    let http = attempt_http(get(address)).await;
    assert_fails(http, "refused");
}

#[tokio::test]
async fn the_exit_status_of_a_command_decides() {
    let run = async |command: &[&str]| {
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        attempt(Handler::Exec(command)).await
    };
    assert_eq!(run(&["true"]).await, Attempt::Success);
    assert_fails(
        run(&["sh", "-c", "echo noise; exit 3"]).await,
        "exit status: 3",
    );
    assert_fails(run(&["sh", "-c", "kill -9 $$"]).await, "signal: 9");
    assert_eq!(run(&["/no/such/program"]).await.outcome(), Outcome::Unknown);
    assert_eq!(run(&[]).await.outcome(), Outcome::Unknown);

    let metrics = Metrics::new(&Registry::new()).unwrap();
    let refusing = Attempts::new(ExecProbes::Refused, metrics);
    let command = Handler::Exec(vec!["true".to_owned()]);
    let attempt = refusing.run(ProbeKind::Readiness, &spec(command, 1)).await;
    assert_eq!(attempt.outcome(), Outcome::Unknown);
}

#[tokio::test]
async fn a_command_that_takes_too_long_is_killed_with_its_children() {
    // The child holds the writing end of a pipe open for as long as it lives.
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let script = format!("sleep 3600 > {} & wait", pipe.display());
    let command = Handler::Exec(["sh", "-c", &script].map(str::to_owned).to_vec());
    let metrics = Metrics::new(&Registry::new()).unwrap();
    let attempts = Attempts::new(ExecProbes::Allowed, metrics);
    let end = tokio::task::spawn_blocking(move || std::fs::read(pipe));
    let attempt = attempts.run(ProbeKind::Readiness, &spec(command, 1)).await;
    assert_fails(attempt, "no answer within 1s");
    assert!(
        end.await.unwrap().unwrap().is_empty(),
        "the child has ended"
    );
}

/// What a health server answers with.
#[derive(Clone)]
struct Health {
    body: &'static [u8],
    grpc_status: &'static str,
}

async fn serve_health(health: Health) -> (SocketAddr, mpsc::Receiver<(String, Vec<u8>)>) {
    let (listener, address) = listen().await;
    let (calls, receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let (calls, health) = (calls.clone(), health.clone());
                tokio::spawn(async move {
                    let path = request.uri().path().to_owned();
                    let (mut body, mut message) = (request.into_body(), Vec::new());
                    while let Some(Ok(chunk)) = body.data().await {
                        message.extend_from_slice(&chunk);
                    }
                    calls.send((path, message)).await.unwrap();
                    let response = hyper::Response::builder()
                        .header("content-type", "application/grpc")
                        .body(())
                        .unwrap();
                    let mut stream = respond.send_response(response, false).unwrap();
                    stream.send_data(health.body.into(), false).unwrap();
                    let mut trailers = hyper::HeaderMap::new();
                    trailers.insert("grpc-status", health.grpc_status.parse().unwrap());
                    trailers.insert("grpc-message", "words".parse().unwrap());
                    stream.send_trailers(trailers).unwrap();
                });
            }
        }
    });
    (address, receiver)
}

#[tokio::test]
async fn a_health_service_must_answer_serving() {
    let check = async |body: &'static [u8], grpc_status: &'static str| {
        let (address, mut calls) = serve_health(Health { body, grpc_status }).await;
        let handler = Handler::Grpc {
            ip: address.ip(),
            port: address.port(),
            service: "shop".to_owned(),
        };
        let attempt = attempt(handler).await;
        let (path, message) = calls.recv().await.unwrap();
        assert_eq!(path, "/grpc.health.v1.Health/Check");
        assert_eq!(message, b"\0\0\0\0\x06\x0a\x04shop");
        attempt
    };
    assert_eq!(check(b"\0\0\0\0\x02\x08\x01", "0").await, Attempt::Success);
    assert_fails(check(b"\0\0\0\0\x02\x08\x02", "0").await, "NOT_SERVING");
    assert_fails(check(b"\0\0\0\0\0", "0").await, "UNKNOWN");
    assert_fails(check(b"", "12").await, "gRPC status 12 words");
    assert_fails(check(b"\0\0\0\0\x02\x08\x01", "5").await, "gRPC status 5");
    assert_fails(check(b"junk", "0").await, "no HealthCheckResponse");
    let (address, _heads) = serve(|_, _| status(200)).await;
    let handler = Handler::Grpc {
        ip: address.ip(),
        port: address.port(),
        service: String::new(),
    };
    assert_eq!(
        attempt(handler).await.outcome(),
        Outcome::Failure,
        "HTTP/1.1"
    );
}

#[test]
fn texts_are_short_and_on_one_line() {
    let text = Attempt::Failure(format!("a\nb{}", "ü".repeat(500))).into_text();
    assert_eq!(text.chars().count(), 200);
    assert!(text.starts_with("a bü"), "{text}");
    assert_eq!(Attempt::Success.into_text(), "");
}

/// The changes that a Pod with this container at this address makes.
fn changes(ip: Ipv4Addr, container: &serde_json::Value) -> Vec<ProbeChange> {
    let mut plane = ControlPlane::new(Config {
        service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
        node_port_range: 30000..=32767,
        load_balancer_range: None,
        pod_cidr: None,
        allow_loopback_endpoints: true,
        own_node: None,
        max_endpoints_per_slice: 100,
        seed: 1,
    })
    .unwrap();
    let manifest = serde_json::json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [container]}, "status": {"podIP": ip.to_string()}});
    let (pod, _) = decode(manifest, UnknownFields::Refuse).unwrap();
    plane.apply(pod, jiff::Timestamp::UNIX_EPOCH).unwrap();
    plane.take_probe_changes()
}

fn id_of(changes: &[ProbeChange]) -> ProbeId {
    match &changes[0] {
        ProbeChange::Start(target) => target.id,
        ProbeChange::Terminate(id) | ProbeChange::Stop(id) => panic!("{id:?} was never started"),
    }
}

#[tokio::test]
async fn a_worker_reports_news_only_and_ends_when_it_is_told_to() {
    let (address, mut heads) =
        serve(|n, _| status(if (1..3).contains(&n) { 503 } else { 200 })).await;
    let registry = Registry::new();
    let (mut prober, mut reports) =
        Prober::new(ExecProbes::Allowed, Metrics::new(&registry).unwrap());
    let container = serde_json::json!({"name": "c", "readinessProbe": {"periodSeconds": 1, "failureThreshold": 2,
        "httpGet": {"host": "127.0.0.1", "port": address.port()}}});
    let changes = changes(Ipv4Addr::new(192, 0, 2, 1), &container);
    let id = id_of(&changes);
    prober.apply(changes);
    let mut seen = Vec::new();
    for _ in 0..3 {
        let report = reports.recv().await.unwrap();
        assert_eq!(report.target.id, id);
        seen.push((report.readiness, report.reason));
    }
    let well = |readiness| (readiness, String::new());
    assert_eq!(
        seen,
        [
            well(Readiness::Ready),
            (Readiness::NotReady, "HTTP status 503".to_owned()),
            well(Readiness::Ready)
        ]
    );
    let mut n_probes = 0;
    while heads.try_recv().is_ok() {
        n_probes += 1;
    }
    assert!(n_probes >= 4, "{n_probes}");
    let count = |name: &str| {
        let families = registry.gather();
        let family = families.iter().find(|f| f.name() == name).unwrap();
        family
            .get_metric()
            .iter()
            .map(|m| m.get_counter().get_value() + m.get_gauge().get_value())
            .sum::<f64>()
    };
    assert!(count("viaduct_probe_results_total") >= 4.0);
    assert_eq!(count("viaduct_probe_targets"), 1.0);
    prober.apply(vec![ProbeChange::Stop(id)]);
    assert_eq!(count("viaduct_probe_targets"), 0.0);
    prober.shutdown().await;
    assert!(reports.recv().await.is_none(), "nobody is left to report");
}

#[tokio::test]
async fn a_terminating_target_ends_its_startup_probe() {
    let (listener, address) = listen().await;
    let (mut prober, mut reports) =
        Prober::new(ExecProbes::Allowed, Metrics::new(&Registry::new()).unwrap());
    let container = serde_json::json!({"name": "c", "startupProbe": {"periodSeconds": 3600, "failureThreshold": 1,
        "tcpSocket": {"host": "127.0.0.1", "port": address.port()}}});
    drop(listener);
    let changes = changes(Ipv4Addr::new(192, 0, 2, 1), &container);
    let id = id_of(&changes);
    prober.apply(changes);
    assert_eq!(reports.recv().await.unwrap().readiness, Readiness::NotReady);
    prober.apply(vec![ProbeChange::Terminate(id)]);
    // The worker, which would have waited for an hour, has nothing left to do.
    prober.tasks.close();
    prober.tasks.wait().await;
}

#[tokio::test]
async fn a_worker_is_small() {
    let probe = serde_json::json!({"name": "c", "readinessProbe": {"tcpSocket": {"port": 1}}});
    let ProbeChange::Start(target) = changes(Ipv4Addr::LOCALHOST, &probe).remove(0) else {
        unreachable!("a new Pod starts probes")
    };
    let metrics = Metrics::new(&Registry::new()).unwrap();
    let worker = worker::probe(
        Arc::new(*target),
        Instant::now(),
        CancellationToken::new(),
        Arc::new(Attempts::new(ExecProbes::Allowed, metrics)),
        mpsc::channel(1).0,
    );
    let size = size_of_val(&worker);
    assert!(size <= 1536, "{size} bytes for each of 10,000 Pods");
}

#[tokio::test]
async fn past_the_bound_nothing_more_is_probed() {
    let registry = Registry::new();
    let (mut prober, _reports) = Prober::new(ExecProbes::Allowed, Metrics::new(&registry).unwrap());
    prober.max_targets = 1;
    let probe = serde_json::json!({"exec": {"command": ["true"]}});
    let one = changes(
        Ipv4Addr::new(192, 0, 2, 1),
        &serde_json::json!({"name": "c", "readinessProbe": probe}),
    );
    let id = id_of(&one);
    prober.apply(one.clone());
    assert_eq!(prober.workers.len(), 1);
    let mut other = one.clone();
    let ProbeChange::Start(target) = &mut other[0] else {
        unreachable!("it was one")
    };
    target.container = "d".into();
    prober.apply(other);
    assert_eq!(prober.workers.len(), 1);
    assert_eq!(prober.attempts.metrics.rejected.get(), 1);
    prober.apply(vec![ProbeChange::Stop(id)]);
    prober.apply(one);
    assert_eq!(prober.workers.len(), 1, "there is room again");
    assert_eq!(prober.attempts.metrics.rejected.get(), 1);
}

#[tokio::test]
async fn connections_are_opened_by_turns() {
    let (listener, address) = listen().await;
    let metrics = Metrics::new(&Registry::new()).unwrap();
    let attempts = Arc::new(Attempts::with_bounds(1, 1, metrics));
    let run = |timeout| {
        let (attempts, spec) = (
            attempts.clone(),
            spec(Handler::HttpGet(get(address)), timeout),
        );
        tokio::spawn(async move { attempts.run(ProbeKind::Readiness, &spec).await })
    };
    let first = run(60);
    let (held, _) = listener.accept().await.unwrap();
    // Its second of time begins with its turn.
    let second = run(60);
    while attempts.metrics.delayed.get() == 0 {
        tokio::task::yield_now().await;
    }
    drop(held);
    assert_eq!(first.await.unwrap().outcome(), Outcome::Failure);
    let (mut stream, _): (TcpStream, _) = listener.accept().await.unwrap();
    stream.write_all(&status(200)).await.unwrap();
    assert_eq!(second.await.unwrap(), Attempt::Success);
    assert_eq!(attempts.metrics.delayed.get(), 1);
}
