//! How every HTTP server here runs and ends.

use std::io;
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use tokio_util::sync::CancellationToken;

/// How long requests under way may take after the stop. A client that holds half a request open must not hold up the
/// end of the process.
const GRACE: Duration = Duration::from_secs(1);

/// Serves until `stop`, finishes what is under way within [`GRACE`] and leaves the rest.
///
/// # Errors
///
/// The listener failed.
pub(super) async fn serve<L>(listener: L, router: Router, stop: CancellationToken) -> io::Result<()>
where
    L: Listener,
    L::Addr: std::fmt::Debug,
{
    let served =
        axum::serve(listener, router).with_graceful_shutdown(stop.clone().cancelled_owned());
    let overdue = async {
        stop.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        outcome = served => outcome,
        () = overdue => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    #[tokio::test]
    async fn half_a_request_does_not_hold_up_the_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let served = tokio::spawn(serve(listener, Router::new(), stop.clone()));
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nHo").await.unwrap();
        stop.cancel();
        served.await.unwrap().unwrap();
    }
}
