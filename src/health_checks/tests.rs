//! Health-check node ports over real sockets on loopback.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::routing::HealthCheck;
use crate::telemetry::Health;
use crate::testkit::service_name;

use super::HealthCheckPorts;
use super::ports::MAX_CONNECTIONS;

const TIMEOUT: Duration = Duration::from_secs(60);

fn ports() -> HealthCheckPorts {
    HealthCheckPorts::new(Health::default(), TIMEOUT)
}

fn check(service: &str, bind: &str, local_endpoints: usize) -> HealthCheck {
    HealthCheck {
        service: service_name(service),
        bind: bind.parse().unwrap(),
        local_endpoints,
    }
}

fn address_of(ports: &HealthCheckPorts, service: &str) -> SocketAddr {
    let mut addresses = ports.addresses();
    let found = addresses.find(|(name, _)| **name == service_name(service));
    found.unwrap().1
}

/// An answer: its status, its head in lower case and its body.
struct Answer {
    status: String,
    head: String,
    body: Value,
}

async fn ask(address: SocketAddr, request: &str) -> Answer {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("{request} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    Answer {
        status: head.split_whitespace().nth(1).unwrap().to_owned(),
        head: head.to_lowercase(),
        body: serde_json::from_str(body).unwrap_or(Value::Null),
    }
}

/// A connection on which one request has been answered, and which is kept open.
async fn kept_alive(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    ask_again(&mut stream).await.unwrap();
    stream
}

async fn ask_again(stream: &mut TcpStream) -> std::io::Result<()> {
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .await?;
    let mut buffer = vec![0; 4096];
    match stream.read(&mut buffer).await? {
        0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

#[tokio::test]
async fn every_path_and_method_has_the_same_answer() {
    let mut ports = ports();
    let unbound = ports.set(&[check("web", "127.0.0.1:0", 2)]).await;
    assert!(unbound.is_empty());
    let address = address_of(&ports, "web");
    for request in [
        "GET /",
        "GET /healthz",
        "POST /a/b?c",
        "OPTIONS *",
        "BREW /pot",
    ] {
        let answer = ask(address, request).await;
        assert_eq!(answer.status, "200", "{request}");
        for line in [
            "content-type: application/json",
            "x-content-type-options: nosniff",
            "x-load-balancing-endpoint-weight: 2",
        ] {
            assert!(
                answer.head.lines().any(|found| found == line),
                "{line}: {}",
                answer.head
            );
        }
        assert_eq!(
            answer.body,
            json!({
                "service": { "namespace": "default", "name": "web" },
                "localEndpoints": 2,
                "serviceProxyHealthy": true,
            })
        );
    }
    assert_eq!(ask(address, "HEAD /").await.body, Value::Null);
}

#[tokio::test]
async fn without_local_endpoints_it_is_503_and_a_change_keeps_the_connection() {
    let mut ports = ports();
    ports.set(&[check("web", "127.0.0.1:0", 1)]).await;
    let address = address_of(&ports, "web");
    let mut client = kept_alive(address).await;
    ports.set(&[check("web", "127.0.0.1:0", 0)]).await;
    assert_eq!(address_of(&ports, "web"), address);
    let answer = ask(address, "GET /").await;
    assert_eq!(
        (answer.status.as_str(), &answer.body["localEndpoints"]),
        ("503", &json!(0))
    );
    assert!(answer.head.contains("x-load-balancing-endpoint-weight: 0"));
    ask_again(&mut client).await.unwrap();
}

#[tokio::test]
async fn a_proxy_that_does_not_keep_up_is_503_though_its_node_may_go() {
    let health = Health::default();
    let mut ports = HealthCheckPorts::new(health.clone(), TIMEOUT);
    ports.set(&[check("web", "127.0.0.1:0", 1)]).await;
    let address = address_of(&ports, "web");
    health.set_node_eligible(false);
    assert_eq!(ask(address, "GET /").await.status, "200");
    let long_ago = Instant::now().checked_sub(2 * TIMEOUT).unwrap();
    health.queued("IPv4", long_ago);
    let answer = ask(address, "GET /").await;
    assert_eq!(answer.status, "503");
    assert_eq!(answer.body["serviceProxyHealthy"], json!(false));
    assert_eq!(answer.body["localEndpoints"], json!(1));
}

#[tokio::test]
async fn a_port_that_is_not_wanted_ends_with_its_connections_and_can_be_taken_over() {
    let mut ports = ports();
    ports.set(&[check("web", "127.0.0.1:0", 1)]).await;
    let address = address_of(&ports, "web");
    let mut client = kept_alive(address).await;
    let unbound = ports.set(&[check("shop", &address.to_string(), 3)]).await;
    assert!(unbound.is_empty(), "{unbound:?}");
    assert!(ask_again(&mut client).await.is_err());
    assert_eq!(
        ask(address, "GET /").await.body["service"]["name"],
        json!("shop")
    );
    ports.shutdown().await;
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_port_that_is_taken_is_reported_alone_and_had_as_soon_as_it_is_free() {
    let hog = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = hog.local_addr().unwrap();
    let mut ports = ports();
    let wanted = [
        check("web", &taken.to_string(), 1),
        check("shop", "127.0.0.1:0", 1),
    ];
    let unbound = ports.set(&wanted).await;
    assert_eq!(unbound.len(), 1);
    assert_eq!(
        (&unbound[0].service, unbound[0].bind),
        (&service_name("web"), taken)
    );
    assert_eq!(ask(address_of(&ports, "shop"), "GET /").await.status, "200");
    drop(hog);
    assert!(ports.set(&wanted).await.is_empty());
    assert_eq!(ask(taken, "GET /").await.status, "200");
}

#[tokio::test]
async fn whoever_holds_every_connection_keeps_nobody_waiting() {
    let mut ports = ports();
    ports.set(&[check("web", "127.0.0.1:0", 1)]).await;
    let address = address_of(&ports, "web");
    let mut held = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        held.push(kept_alive(address).await);
    }
    ask_again(&mut held[0]).await.unwrap();
    assert_eq!(ask(address, "GET /").await.status, "200");
    assert!(
        ask_again(&mut held[0]).await.is_err(),
        "the oldest made room"
    );
    ask_again(&mut held[1]).await.unwrap();
}

#[tokio::test]
async fn what_is_no_request_ends_its_own_connection_only() {
    let mut ports = ports();
    ports.set(&[check("web", "127.0.0.1:0", 1)]).await;
    let address = address_of(&ports, "web");
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream
        .write_all(b"\x16\x03\x01 hello\r\n\r\n")
        .await
        .unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert!(!rest.starts_with(b"HTTP/1.1 200"));
    let mut stream = TcpStream::connect(address).await.unwrap();
    let long = vec![b'a'; 64 * 1024];
    // The server may have had enough before all is written.
    let _ = stream.write_all(&[b"GET /", &long[..]].concat()).await;
    assert_eq!(ask(address, "GET /").await.status, "200");
}
