//! The relay of one TCP connection: two [`Direction`]s over two tokio streams, as one hand-written future.
//!
//! FIN passes as FIN and leaves the other direction open; a broken end passes as RST. Dropped before its end (abort,
//! panic), it resets both ends: an unfinished flow never looks finished. An idle relay holds two descriptors and no
//! buffer.

use std::cell::RefCell;
use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use crate::net::sockets::reset_on_close;

use super::super::admission::Admitted;
use super::direction::{Broken, Direction, Path, Progress};
use super::pipe_pool::PooledPipe;

/// One read of a busy flow: 64 KiB copies at 2.5 GiB/s where 8 KiB reach 1.2.
const BUFFER: usize = 64 * 1024;

thread_local! {
    // Scratch space for all flows of the thread: nothing stays in it from one poll to the next.
    static COPY_BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER].into_boxed_slice());
}

/// An end of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Backend,
}

/// How a relay ended.
#[derive(Debug)]
pub(super) enum End {
    /// Both directions ended with a FIN.
    Finished,
    /// That side broke, and the other is reset.
    Reset(Side),
}

/// A connection being relayed.
#[derive(Debug)]
pub(super) struct Relay {
    client: TcpStream,
    backend: TcpStream,
    to_backend: Direction<PooledPipe>,
    to_client: Direction<PooledPipe>,
    // The side that takes nothing more. What it sent before is still delivered, and then the other side is reset.
    deaf: Option<Side>,
    finished: bool,
    flow: Admitted,
}

impl Relay {
    pub(super) fn new(client: TcpStream, backend: TcpStream, flow: Admitted) -> Self {
        Self {
            client,
            backend,
            to_backend: Direction::new(),
            to_client: Direction::new(),
            deaf: None,
            finished: false,
            flow,
        }
    }

    /// The flow that is relayed.
    pub(super) fn flow(&self) -> &Admitted {
        &self.flow
    }

    /// Bytes delivered so far: to the backend, to the client.
    pub(super) fn moved(&self) -> (u64, u64) {
        (self.to_backend.moved(), self.to_client.moved())
    }

    // Moves what can be moved away from `from`. `None` = go on later.
    fn pump(&mut self, from: Side, cx: &mut Context<'_>) -> Result<Progress, End> {
        let (direction, other, source, sink) = match from {
            Side::Client => (
                &mut self.to_backend,
                self.to_client.is_done(),
                &mut self.client,
                &mut self.backend,
            ),
            Side::Backend => (
                &mut self.to_client,
                self.to_backend.is_done(),
                &mut self.backend,
                &mut self.client,
            ),
        };
        if self.deaf == Some(from.other()) {
            return Ok(Progress::Blocked);
        }
        let from_is_deaf = self.deaf == Some(from);
        let mut streams = Streams {
            source,
            sink,
            // After the second FIN both sockets are closed at once, which sends it; and a side that broke must not be
            // told of as if it had ended.
            announce_end: !other && !from_is_deaf,
            cx,
        };
        let before = direction.moved();
        let outcome = COPY_BUFFER.with_borrow_mut(|buffer| direction.pump(&mut streams, buffer));
        let metrics = &self.flow.listener.shared.metrics;
        let moved = direction.moved() - before;
        if moved > 0 {
            match from {
                Side::Client => metrics.tcp_bytes_to_backends.inc_by(moved),
                Side::Backend => metrics.tcp_bytes_to_clients.inc_by(moved),
            }
        }
        match outcome {
            Ok(Progress::Done) if from_is_deaf => Err(End::Reset(from)),
            Ok(progress) => Ok(progress),
            Err(Broken::Source(error)) => {
                tracing::debug!(side = ?from, %error, "read failed");
                Err(End::Reset(from))
            }
            Err(Broken::Sink(error)) => {
                tracing::debug!(side = ?from.other(), %error, "write failed");
                if self.deaf.is_some() || other {
                    return Err(End::Reset(from.other()));
                }
                self.deaf = Some(from.other());
                Ok(Progress::Blocked)
            }
        }
    }
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Client => Self::Backend,
            Self::Backend => Self::Client,
        }
    }
}

impl Future for Relay {
    type Output = End;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<End> {
        let this = self.get_mut();
        let outcome = this.pump(Side::Client, cx).and_then(|to_backend| {
            this.pump(Side::Backend, cx)
                .map(|to_client| (to_backend, to_client))
        });
        match outcome {
            Ok((Progress::Done, Progress::Done)) => {
                this.finished = true;
                Poll::Ready(End::Finished)
            }
            Ok((to_backend, to_client)) => {
                if to_backend == Progress::Yield || to_client == Progress::Yield {
                    cx.waker().wake_by_ref();
                }
                Poll::Pending
            }
            Err(end) => Poll::Ready(end),
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if !self.finished {
            reset_on_close(&self.client);
            reset_on_close(&self.backend);
        }
    }
}

// The two sockets of one direction, while the task is polled.
struct Streams<'a, 'cx> {
    source: &'a mut TcpStream,
    sink: &'a mut TcpStream,
    announce_end: bool,
    cx: &'a mut Context<'cx>,
}

impl Path for Streams<'_, '_> {
    type Pipe = PooledPipe;

    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut buffer = ReadBuf::new(into);
        // tokio stops at a short read without asking the kernel again, unless the peer has ended.
        let poll = Pin::new(&mut *self.source).poll_read(self.cx, &mut buffer);
        or_would_block(poll.map_ok(|()| buffer.filled().len()))
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        or_would_block(Pin::new(&mut *self.sink).poll_write(self.cx, bytes))
    }

    fn finish(&mut self) -> io::Result<()> {
        if self.announce_end {
            SockRef::from(&*self.sink).shutdown(Shutdown::Write)?;
        }
        Ok(())
    }

    fn take_pipe(&mut self) -> Option<PooledPipe> {
        PooledPipe::take()
    }

    fn return_pipe(&mut self, pipe: PooledPipe) {
        pipe.give_back();
    }

    fn fill(&mut self, pipe: &PooledPipe) -> io::Result<usize> {
        let pipe = pipe.pipe().ok_or(io::ErrorKind::NotFound)?;
        let source = &*self.source;
        or_would_block(poll_io(
            || source.poll_read_ready(self.cx),
            || source.try_io(Interest::READABLE, || pipe.fill(source)),
        ))
    }

    fn drain(&mut self, pipe: &PooledPipe, len: usize) -> io::Result<usize> {
        let pipe = pipe.pipe().ok_or(io::ErrorKind::NotFound)?;
        let sink = &*self.sink;
        or_would_block(poll_io(
            || sink.poll_write_ready(self.cx),
            || sink.try_io(Interest::WRITABLE, || pipe.drain(sink, len)),
        ))
    }

    fn read_back(&mut self, pipe: &PooledPipe, len: usize) -> io::Result<Vec<u8>> {
        let pipe = pipe.pipe().ok_or(io::ErrorKind::NotFound)?;
        pipe.read_back(len)
    }
}

// Repeats `attempt` while the reactor says that the socket is ready; pending once the task will be woken.
fn poll_io(
    mut ready: impl FnMut() -> Poll<io::Result<()>>,
    mut attempt: impl FnMut() -> io::Result<usize>,
) -> Poll<io::Result<usize>> {
    loop {
        ready!(ready())?;
        match attempt() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            outcome => return Poll::Ready(outcome),
        }
    }
}

fn or_would_block(poll: Poll<io::Result<usize>>) -> io::Result<usize> {
    match poll {
        Poll::Ready(outcome) => outcome,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}
