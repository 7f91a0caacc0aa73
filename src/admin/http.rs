//! How every HTTP server here runs and ends. Anybody may reach some of them, so each has its bounds.

use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::net::connections::Connections;

/// Connections of one server at a time; past it the oldest gives way.
const MAX_CONNECTIONS: usize = 64;

/// Bytes of a request's head; a longer one is answered with status 431.
const MAX_HEAD: usize = 16 * 1024;

/// How long a connection may wait for the head of its next request.
const IDLE: Duration = Duration::from_secs(120);

/// How long requests under way may take after the stop. A client that holds half a request open must not hold up the
/// end of the process.
const GRACE: Duration = Duration::from_secs(1);

/// Serves until `stop`, finishes what is under way within [`GRACE`] and leaves the rest.
pub(super) async fn serve<L: Listener>(mut listener: L, router: Router, stop: CancellationToken) {
    let mut connections = Connections::new(MAX_CONNECTIONS);
    // The listener waits by itself when descriptors run out.
    while let Some((stream, _client)) = stop.run_until_cancelled(listener.accept()).await {
        connections.add(serve_one(stream, router.clone(), stop.clone()));
    }
    drop(listener);
    connections.ended().await;
}

async fn serve_one<S>(stream: S, router: Router, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut builder = http1::Builder::new();
    builder
        .half_close(true)
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .max_buf_size(MAX_HEAD);
    let connection =
        builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(connection);
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(GRACE, connection).await {
                Ok(outcome) => outcome,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = outcome {
        debug!(%error, "HTTP connection ended");
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    const HALF: &[u8] = b"GET / HTTP/1.1\r\nHo";

    async fn started() -> (
        std::net::SocketAddr,
        CancellationToken,
        tokio::task::JoinHandle<()>,
    ) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let router = Router::new().route("/", get(async || "well"));
        (
            address,
            stop.clone(),
            tokio::spawn(serve(listener, router, stop)),
        )
    }

    #[tokio::test]
    async fn half_a_request_does_not_hold_up_the_end() {
        let (address, stop, served) = started().await;
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(HALF).await.unwrap();
        stop.cancel();
        served.await.unwrap();
    }

    #[tokio::test]
    async fn held_connections_keep_nobody_out() {
        let (address, _stop, _served) = started().await;
        let mut held = Vec::new();
        for _ in 0..2 * MAX_CONNECTIONS {
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(HALF).await.unwrap();
            held.push(client);
        }
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("well"), "{answer}");
        assert_eq!(
            held[0].read(&mut [0; 1]).await.unwrap_or(0),
            0,
            "the oldest gave way"
        );
    }
}
