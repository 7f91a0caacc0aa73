//! The TCP side of a simulated Pod: takes connections, tells HTTP from anything else, and echoes the latter by lines.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, BufWriter};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::faults::{Carrier, FaultKind};

use super::Limits;
use super::behaviour::Behaviour;
use super::http::{self, Opening};
use super::idle::Idle;

/// How long a client may pause inside what may become a request line; then it is taken for no request.
const OPENING_PAUSE: Duration = Duration::from_secs(1);

/// Bytes read at once, and answers gathered into one write.
const CHUNK: usize = 16 * 1024;

/// How long to wait before a port that is taken, or an accept that failed, is tried again.
const AGAIN: Duration = Duration::from_millis(100);

/// A TCP port of a simulated Pod.
pub(super) struct Port {
    /// Where.
    pub(super) addr: SocketAddr,
    /// What goes wrong.
    pub(super) behaviour: Behaviour,
    /// What it takes at most.
    pub(super) limits: Limits,
    /// Runs connections.
    pub(super) tasks: TaskTracker,
    /// Ends them.
    pub(super) stop: CancellationToken,
}

impl Port {
    /// Takes connections until it is dropped. While it refuses, there is no listening socket, so that the kernel refuses;
    /// connections that it has go on.
    pub(super) async fn serve(mut self, mut listener: TcpListener) {
        // At the limit of connections the next ones wait in the kernel's queue.
        let places = Arc::new(Semaphore::new(self.limits.connections));
        loop {
            let mut watching = self.behaviour.clone();
            tokio::select! {
                () = watching.refuses() => {}
                () = self.accept(listener, &places) => {}
            }
            self.behaviour.takes().await;
            listener = loop {
                match TcpListener::bind(self.addr).await {
                    Ok(listener) => break listener,
                    Err(error) => {
                        tracing::warn!(pod = self.behaviour.pod(), addr = %self.addr, %error, "port is taken");
                        tokio::time::sleep(AGAIN).await;
                    }
                }
            };
        }
    }

    async fn accept(&self, listener: TcpListener, places: &Arc<Semaphore>) {
        loop {
            let Ok(place) = places.clone().acquire_owned().await else {
                return;
            };
            match listener.accept().await {
                Ok((stream, client)) => {
                    let (behaviour, idle) = (self.behaviour.clone(), self.limits.idle);
                    let connection = async move {
                        if let Err(error) = talk(stream, client, &behaviour, idle).await {
                            tracing::debug!(pod = behaviour.pod(), %client, %error, "connection ended");
                        }
                        drop(place);
                    };
                    let stop = self.stop.clone();
                    self.tasks.spawn(stop.run_until_cancelled_owned(connection));
                }
                Err(error) => {
                    // Out of descriptors, most likely: the connection stays queued, and trying at once would spin.
                    tracing::warn!(pod = self.behaviour.pod(), %error, "no connection taken");
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }
}

async fn talk(
    stream: TcpStream,
    client: SocketAddr,
    behaviour: &Behaviour,
    idle: Duration,
) -> io::Result<()> {
    let mut stream = Idle::new(stream, idle);
    let mut opening = Vec::with_capacity(CHUNK);
    loop {
        match http::opening(&opening) {
            Opening::Request => {
                let reset = stream.reset_on_close();
                return http::serve(stream, opening, client, behaviour, reset).await;
            }
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
    echo_lines(stream, opening, behaviour).await
}

// Answers as the bytes come, so that a client which sends no line end waits for nothing and no line is too long. After
// its FIN everything has been answered, and ours follows.
async fn echo_lines(
    stream: Idle<TcpStream>,
    mut chunk: Vec<u8>,
    behaviour: &Behaviour,
) -> io::Result<()> {
    let reset = stream.reset_on_close();
    let mut stream = BufWriter::with_capacity(CHUNK, stream);
    let mut at_line_start = true;
    loop {
        let injection = behaviour.injection();
        let mut cut = false;
        if injection.faults().blackhole {
            injection.count(FaultKind::Blackhole);
        } else if !chunk.is_empty() {
            let fate = injection.draw(Instant::now(), Carrier::Tcp);
            pause(fate.delay).await;
            if fate.reset {
                reset.set();
                return Ok(());
            }
            if fate.cut {
                cut = true;
                chunk.truncate(chunk.len() / 2);
            }
            write_lines(&mut stream, &chunk, behaviour.pod(), &mut at_line_start).await?;
            stream.flush().await?;
            let pacing = injection.time_for(chunk.len() as u64);
            if !pacing.is_zero() {
                injection.count(FaultKind::Rate);
                pause(pacing).await;
            }
        }
        chunk.clear();
        if cut || stream.read_buf(&mut chunk).await? == 0 {
            return stream.shutdown().await;
        }
    }
}

/// Waits, if there is anything to wait for.
pub(super) async fn pause(duration: Duration) {
    if !duration.is_zero() {
        tokio::time::sleep(duration).await;
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
