//! Bulk: one stream of bytes as fast as it goes, and whatever comes back, for as long as the load lasts.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::time::timeout;

use super::client::{connect, failure_of};
use super::lane::Shared;
use super::pattern;
use super::tally::Failure;

/// Bytes of one write and one read.
const CHUNK: usize = 256 * 1024;

/// Bytes of a line in the stream, so that a server which works by lines has some.
const LINE: usize = 4096;

/// Streams to `target` until the end of `counted`; what moves before its start is not counted. A stream that breaks off
/// early is one failure.
pub(super) async fn stream(
    shared: &Shared,
    target: SocketAddr,
    origin: Option<SocketAddr>,
    counted: Range<Duration>,
) {
    let left = || counted.end.saturating_sub(shared.now());
    let whole = async {
        let mut stream = connect(target, origin).await?;
        let (mut from, mut to) = stream.split();
        let (sent, received) = tokio::join!(
            send(shared, &mut to, &counted),
            receive(shared, &mut from, &counted)
        );
        sent.and(received).map_err(|error| failure_of(&error))
    };
    match timeout(left() + shared.patience, whole).await {
        // What the other side still had to say when time was up is nobody's failure.
        Ok(Ok(())) | Err(_) => shared.progress.count(true),
        Ok(Err(failure)) => fail(shared, failure),
    }
}

fn fail(shared: &Shared, failure: Failure) {
    shared.progress.count(false);
    *shared
        .tally
        .borrow_mut()
        .failures
        .entry(failure)
        .or_default() += 1;
}

async fn send(
    shared: &Shared,
    to: &mut WriteHalf<'_>,
    counted: &Range<Duration>,
) -> io::Result<()> {
    let mut chunk = Vec::with_capacity(CHUNK);
    let mut line = Vec::new();
    for number in 0..(CHUNK / LINE) as u64 {
        pattern::fill(&mut line, number, LINE, true);
        chunk.extend_from_slice(&line);
    }
    while shared.now() < counted.end {
        let n = to.write(&chunk).await?;
        shared.progress.moved(n);
        if counted.contains(&shared.now()) {
            shared.tally.borrow_mut().bytes_sent += n as u64;
        }
    }
    to.shutdown().await
}

// Reads until the other side ends; it is expected to after our FIN.
async fn receive(
    shared: &Shared,
    from: &mut ReadHalf<'_>,
    counted: &Range<Duration>,
) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let n = from.read(&mut chunk).await?;
        if n == 0 {
            return Ok(());
        }
        shared.progress.moved(n);
        if counted.contains(&shared.now()) {
            shared.tally.borrow_mut().bytes_received += n as u64;
        }
    }
}
