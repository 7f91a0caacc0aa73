//! Probes against small real servers on loopback, and workers against the reports that they should make.

mod commands_and_sockets;
mod http;
mod workers;

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
