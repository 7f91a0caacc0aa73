//! One side of a connection: its socket, and what the reactor has said of it since it was last found wanting. What is
//! known to fail is not tried, which is most of what an event loop can save.

use std::io;
use std::net::TcpStream;

use crate::net::poller::Readiness;
use crate::net::sockets::{end_of_stream, reset_on_close, send};
use crate::net::streams::{Liveness, receive, send_at_once};

use super::pipe_pool::PooledPipe;

/// A nonblocking socket and its readiness.
#[derive(Debug)]
pub(super) struct Stream {
    socket: TcpStream,
    readable: bool,
    writable: bool,
    // After what is there comes the end: a short read does not mean that nothing follows.
    ending: bool,
    broken: bool,
    tuning: Tuning,
}

/// Whether the options of a dialled socket are set. The first piece goes without delay in any case, so a connection that
/// asks one question and ends never pays for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tuning {
    Fresh,
    Spoke,
    Done,
}

impl Stream {
    /// An accepted connection: its options are those of its listener.
    pub(super) fn accepted(socket: TcpStream) -> Self {
        Self {
            socket,
            readable: false,
            writable: true,
            ending: false,
            broken: false,
            tuning: Tuning::Done,
        }
    }

    /// A connection that is being made.
    pub(super) fn dialled(socket: TcpStream) -> Self {
        Self {
            socket,
            readable: false,
            writable: false,
            ending: false,
            broken: false,
            tuning: Tuning::Fresh,
        }
    }

    /// The socket itself.
    pub(super) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Notes what the reactor says.
    pub(super) fn note(&mut self, ready: Readiness) {
        self.readable |= ready.readable();
        self.writable |= ready.writable();
        self.ending |= ready.peer_ended();
        self.broken |= ready.broken();
    }

    /// It has an error that no call has reported yet: a reset.
    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Sets the options of a dialled socket, once.
    pub(super) fn tune(&mut self, liveness: Liveness) {
        if self.tuning != Tuning::Done {
            self.tuning = Tuning::Done;
            send_at_once(&self.socket);
            liveness.apply(&self.socket);
        }
    }

    pub(super) fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.take(|socket| receive(socket, into))?;
        // Short means dry, unless the end is there to be read too; dry again is an event.
        if n < into.len() && !self.ending {
            self.readable = false;
        }
        Ok(n)
    }

    pub(super) fn fill(&mut self, pipe: &PooledPipe) -> io::Result<usize> {
        let pipe = pipe.pipe().ok_or(io::ErrorKind::NotFound)?;
        self.take(|socket| pipe.fill(socket))
    }

    pub(super) fn write(&mut self, bytes: &[u8], liveness: Liveness) -> io::Result<usize> {
        match self.tuning {
            Tuning::Fresh => self.tuning = Tuning::Spoke,
            Tuning::Spoke => self.tune(liveness),
            Tuning::Done => {}
        }
        let n = self.give(|socket| send(socket, bytes))?;
        if n < bytes.len() {
            self.writable = false;
        }
        Ok(n)
    }

    pub(super) fn drain(
        &mut self,
        pipe: &PooledPipe,
        len: usize,
        liveness: Liveness,
    ) -> io::Result<usize> {
        self.tune(liveness);
        let pipe = pipe.pipe().ok_or(io::ErrorKind::NotFound)?;
        self.give(|socket| pipe.drain(socket, len))
    }

    /// Tells the peer that nothing more comes.
    pub(super) fn finish(&self) -> io::Result<()> {
        end_of_stream(&self.socket)
    }

    /// Makes the coming close a reset.
    pub(super) fn reset_on_close(&self) {
        reset_on_close(&self.socket);
    }

    fn take(&mut self, read: impl FnOnce(&TcpStream) -> io::Result<usize>) -> io::Result<usize> {
        if !self.readable {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let outcome = read(&self.socket);
        if let Err(error) = &outcome {
            if error.kind() == io::ErrorKind::WouldBlock {
                self.readable = false;
            } else {
                // The call has reported what was wrong.
                self.broken = false;
            }
        }
        outcome
    }

    fn give(&mut self, write: impl FnOnce(&TcpStream) -> io::Result<usize>) -> io::Result<usize> {
        if !self.writable {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let outcome = write(&self.socket);
        if let Err(error) = &outcome {
            if error.kind() == io::ErrorKind::WouldBlock {
                self.writable = false;
            } else {
                // The call has reported what was wrong.
                self.broken = false;
            }
        }
        outcome
    }
}
