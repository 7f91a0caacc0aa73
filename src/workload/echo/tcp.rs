//! The TCP side of a simulated Pod: takes connections, tells HTTP from anything else, and echoes the latter by lines.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, BufWriter};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Limits;
use super::http::{self, Opening};
use super::idle::Idle;

/// How long a client may pause inside what may become a request line; then it is taken for no request.
const OPENING_PAUSE: Duration = Duration::from_secs(1);

/// Bytes read at once, and answers gathered into one write.
const CHUNK: usize = 16 * 1024;

/// Takes connections until it is dropped; each is a task of `tasks` that ends with `stop`. At the limit of connections
/// the next ones wait in the kernel's queue.
pub(super) async fn serve(
    listener: TcpListener,
    pod: Arc<str>,
    limits: Limits,
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(limits.connections));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, client)) => {
                let pod = pod.clone();
                let connection = async move {
                    if let Err(error) = talk(stream, client, &pod, limits.idle).await {
                        tracing::debug!(pod = &*pod, %client, %error, "connection ended");
                    }
                    drop(place);
                };
                tasks.spawn(stop.clone().run_until_cancelled_owned(connection));
            }
            Err(error) => {
                // Out of descriptors, most likely: the connection stays queued, and trying at once would spin.
                tracing::warn!(pod = &*pod, %error, "no connection taken");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn talk(stream: TcpStream, client: SocketAddr, pod: &str, idle: Duration) -> io::Result<()> {
    let mut stream = Idle::new(stream, idle);
    let mut opening = Vec::with_capacity(CHUNK);
    loop {
        match http::opening(&opening) {
            Opening::Request => return http::serve(stream, opening, client, pod).await,
            Opening::Other => break,
            Opening::Unclear => {}
        }
        // A client that says nothing at all is waited for as long as any other that is idle.
        let pause = if opening.is_empty() {
            Duration::MAX
        } else {
            OPENING_PAUSE
        };
        match tokio::time::timeout(pause, stream.read_buf(&mut opening)).await {
            Ok(Ok(0)) | Err(_) => break,
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(error),
        }
    }
    echo_lines(stream, opening, pod).await
}

// Answers as the bytes come, so that a client which sends no line end waits for nothing and no line is too long. After
// its FIN everything has been answered, and ours follows.
async fn echo_lines(stream: Idle<TcpStream>, mut chunk: Vec<u8>, pod: &str) -> io::Result<()> {
    let mut stream = BufWriter::with_capacity(CHUNK, stream);
    let mut at_line_start = true;
    loop {
        write_lines(&mut stream, &chunk, pod, &mut at_line_start).await?;
        stream.flush().await?;
        chunk.clear();
        if stream.read_buf(&mut chunk).await? == 0 {
            return stream.shutdown().await;
        }
    }
}

async fn write_lines(
    out: &mut (impl AsyncWrite + Unpin),
    chunk: &[u8],
    pod: &str,
    at_line_start: &mut bool,
) -> io::Result<()> {
    for line in chunk.split_inclusive(|byte| *byte == b'\n') {
        if *at_line_start {
            out.write_all(pod.as_bytes()).await?;
            out.write_all(b": ").await?;
        }
        out.write_all(line).await?;
        *at_line_start = line.ends_with(b"\n");
    }
    Ok(())
}
