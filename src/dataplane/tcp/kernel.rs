//! What a connection asks of the kernel: sockets that never block, and the data thread that makes and watches them.
//!
//! Here is the one implementation over real sockets. A connection knows only the traits, so its whole life can be
//! simulated (`lifetime_tests`): every decision is its own, nothing here decides anything.

use std::fmt::Debug;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use crate::net::poller::Interest;
use crate::net::sockets::{end_of_stream, original_destination, reset_on_close, send};
use crate::net::streams::{
    Liveness, acknowledge, dial, error_of, limit_rate, receive, send_at_once,
};

use super::super::engine::{Reactor, Token};
use super::pipe_pool::PooledPipe;

/// A TCP socket that never blocks. Dropped, it is closed: with a reset after [`Socket::reset_on_close`].
pub(super) trait Socket: Debug {
    /// A buffer in the kernel.
    type Pipe: Debug;

    /// Its own address.
    fn local_addr(&self) -> io::Result<SocketAddr>;
    /// Where it was going before NAT led it here.
    fn original_destination(&self, peer: &SocketAddr) -> io::Result<SocketAddr>;

    /// Reads what is there; 0 = the peer has ended.
    fn receive(&self, into: &mut [u8]) -> io::Result<usize>;
    /// Writes what the kernel takes at once.
    fn send(&self, bytes: &[u8]) -> io::Result<usize>;
    /// Tells the peer that nothing more comes.
    fn end(&self) -> io::Result<()>;
    /// Completes the handshake, if nothing has been sent.
    fn acknowledge(&self);
    /// Makes the coming close a reset.
    fn reset_on_close(&self);
    /// The error that nobody has been told yet.
    fn error(&self) -> Option<io::Error>;

    /// Sets the options of a long life.
    fn settle(&self, liveness: Liveness);
    /// Lets no more bytes per second out, where the kernel can.
    fn limit_rate(&self, bytes_per_second: u64);

    /// An empty pipe; `None` if none is to be had now.
    fn take_pipe(&self) -> Option<Self::Pipe>;
    /// Gives an empty pipe back.
    fn return_pipe(&self, pipe: Self::Pipe);
    /// Moves bytes from here into an empty pipe; 0 = the peer has ended.
    fn fill(&self, pipe: &Self::Pipe) -> io::Result<usize>;
    /// Moves up to `len` bytes of the pipe on to here.
    fn drain(&self, pipe: &Self::Pipe, len: usize) -> io::Result<usize>;
    /// Reads the last `len` bytes back out of a pipe.
    fn read_back(&self, pipe: &Self::Pipe, len: usize) -> io::Result<Vec<u8>>;
}

/// Makes and watches sockets, and knows the time.
pub(super) trait Kernel {
    /// What it makes.
    type Socket: Socket;

    /// The time of the present round.
    fn now(&self) -> Instant;
    /// Calls `token` at that time.
    fn call_at(&mut self, at: Instant, token: Token);
    /// Tells `token` what becomes possible on `socket`, each time that it changes.
    fn watch(&mut self, socket: &Self::Socket, token: Token) -> io::Result<()>;
    /// Begins to connect.
    fn dial(&mut self, addr: SocketAddr) -> io::Result<Self::Socket>;
}

impl Kernel for Reactor {
    type Socket = TcpStream;

    fn now(&self) -> Instant {
        Self::now(self)
    }

    fn call_at(&mut self, at: Instant, token: Token) {
        Self::call_at(self, at, token);
    }

    fn watch(&mut self, socket: &TcpStream, token: Token) -> io::Result<()> {
        Self::watch(self, socket, Interest::Stream, token)
    }

    fn dial(&mut self, addr: SocketAddr) -> io::Result<TcpStream> {
        dial(addr)
    }
}

impl Socket for TcpStream {
    type Pipe = PooledPipe;

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Self::local_addr(self)
    }

    fn original_destination(&self, peer: &SocketAddr) -> io::Result<SocketAddr> {
        original_destination(self, peer)
    }

    fn receive(&self, into: &mut [u8]) -> io::Result<usize> {
        receive(self, into)
    }

    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        send(self, bytes)
    }

    fn end(&self) -> io::Result<()> {
        end_of_stream(self)
    }

    fn acknowledge(&self) {
        acknowledge(self);
    }

    fn reset_on_close(&self) {
        reset_on_close(self);
    }

    fn error(&self) -> Option<io::Error> {
        error_of(self)
    }

    fn settle(&self, liveness: Liveness) {
        send_at_once(self);
        liveness.apply(self);
    }

    fn limit_rate(&self, bytes_per_second: u64) {
        // A kernel without pacing leaves it as fast as it is.
        let _as_fast_as_it_is = limit_rate(self, bytes_per_second);
    }

    fn take_pipe(&self) -> Option<PooledPipe> {
        PooledPipe::take()
    }

    fn return_pipe(&self, pipe: PooledPipe) {
        pipe.give_back();
    }

    fn fill(&self, pipe: &PooledPipe) -> io::Result<usize> {
        pipe.pipe().ok_or(io::ErrorKind::NotFound)?.fill(self)
    }

    fn drain(&self, pipe: &PooledPipe, len: usize) -> io::Result<usize> {
        pipe.pipe().ok_or(io::ErrorKind::NotFound)?.drain(self, len)
    }

    fn read_back(&self, pipe: &PooledPipe, len: usize) -> io::Result<Vec<u8>> {
        pipe.pipe().ok_or(io::ErrorKind::NotFound)?.read_back(len)
    }
}
