//! The relay of one TCP connection: an [`Exchange`] over two tokio streams, as one hand-written future.
//!
//! FIN passes as FIN, RST as RST. Dropped before its end (abort, panic), it resets both ends: an unfinished flow never
//! looks finished. An idle relay holds two descriptors and no buffer.

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
use super::direction::Path;
use super::exchange::{EndOfStream, Ends, Exchange, Outcome, Side};
use super::pipe_pool::PooledPipe;

/// One read of a busy flow: 64 KiB copies at 2.5 GiB/s where 8 KiB reach 1.2.
const BUFFER: usize = 64 * 1024;

thread_local! {
    // Scratch space for all flows of the thread: nothing stays in it from one poll to the next.
    static COPY_BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER].into_boxed_slice());
}

/// How a relay ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    exchange: Exchange<PooledPipe>,
    finished: bool,
    flow: Admitted,
}

impl Relay {
    pub(super) fn new(client: TcpStream, backend: TcpStream, flow: Admitted) -> Self {
        Self {
            client,
            backend,
            exchange: Exchange::new(),
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
        self.exchange.moved()
    }

    fn pump(&mut self, cx: &mut Context<'_>) -> Outcome {
        let before = self.exchange.moved();
        let mut streams = Streams {
            client: &mut self.client,
            backend: &mut self.backend,
            cx,
        };
        let outcome =
            COPY_BUFFER.with_borrow_mut(|buffer| self.exchange.pump(&mut streams, buffer));
        let after = self.exchange.moved();
        let metrics = &self.flow.listener.shared.metrics;
        if after.0 > before.0 {
            metrics.tcp_bytes_to_backends.inc_by(after.0 - before.0);
        }
        if after.1 > before.1 {
            metrics.tcp_bytes_to_clients.inc_by(after.1 - before.1);
        }
        outcome
    }
}

impl Future for Relay {
    type Output = End;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<End> {
        let this = self.get_mut();
        match this.pump(cx) {
            Outcome::Blocked => Poll::Pending,
            Outcome::Yield => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Outcome::Finished => {
                this.finished = true;
                Poll::Ready(End::Finished)
            }
            Outcome::Reset(side) => Poll::Ready(End::Reset(side)),
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

// Both sockets, while the task is polled.
struct Streams<'a, 'cx> {
    client: &'a mut TcpStream,
    backend: &'a mut TcpStream,
    cx: &'a mut Context<'cx>,
}

impl<'cx> Ends for Streams<'_, 'cx> {
    type Pipe = PooledPipe;
    type Path<'a>
        = OneWay<'a, 'cx>
    where
        Self: 'a;

    fn path(&mut self, source: Side, end: EndOfStream) -> OneWay<'_, 'cx> {
        let (source, sink) = match source {
            Side::Client => (&mut *self.client, &mut *self.backend),
            Side::Backend => (&mut *self.backend, &mut *self.client),
        };
        OneWay {
            source,
            sink,
            end,
            cx: self.cx,
        }
    }
}

// One direction's use of them.
struct OneWay<'a, 'cx> {
    source: &'a mut TcpStream,
    sink: &'a mut TcpStream,
    end: EndOfStream,
    cx: &'a mut Context<'cx>,
}

impl Path for OneWay<'_, '_> {
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
        if self.end == EndOfStream::Announce {
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
