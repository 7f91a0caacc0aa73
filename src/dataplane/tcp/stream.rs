//! One side of a connection: its socket, and what the reactor has said of it since it was last found wanting. What is
//! known to fail is not tried, which is most of what an event loop can save.

use std::io;

use crate::net::poller::Readiness;
use crate::net::streams::Liveness;

use super::kernel::Socket;

/// A nonblocking socket and its readiness.
#[derive(Debug)]
pub(super) struct Stream<S> {
    socket: S,
    readable: bool,
    writable: bool,
    // After what is there comes the end: a short read does not mean that nothing follows.
    ending: bool,
    broken: bool,
    // The packet that completes the handshake waits for something to carry.
    owes_ack: bool,
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

impl<S: Socket> Stream<S> {
    /// An accepted connection: its options are those of its listener.
    pub(super) fn accepted(socket: S) -> Self {
        Self {
            socket,
            readable: false,
            writable: true,
            ending: false,
            broken: false,
            owes_ack: false,
            tuning: Tuning::Done,
        }
    }

    /// A connection that is being made.
    pub(super) fn dialled(socket: S) -> Self {
        Self {
            socket,
            readable: false,
            writable: false,
            ending: false,
            broken: false,
            owes_ack: true,
            tuning: Tuning::Fresh,
        }
    }

    /// The socket itself.
    pub(super) fn socket(&self) -> &S {
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
            self.socket.settle(liveness);
        }
    }

    /// Whether nothing has been sent since it was dialled, so that its peer may not know yet that it is connected.
    pub(super) fn owes_ack(&self) -> bool {
        self.owes_ack
    }

    /// Completes the handshake, if nothing that was sent has.
    pub(super) fn acknowledge(&mut self) {
        if std::mem::take(&mut self.owes_ack) {
            self.socket.acknowledge();
        }
    }

    pub(super) fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.take(|socket| socket.receive(into))?;
        // Short means dry, unless the end is there to be read too; dry again is an event.
        if n < into.len() && !self.ending {
            self.readable = false;
        }
        Ok(n)
    }

    pub(super) fn fill(&mut self, pipe: &S::Pipe) -> io::Result<usize> {
        self.take(|socket| socket.fill(pipe))
    }

    pub(super) fn write(&mut self, bytes: &[u8], liveness: Liveness) -> io::Result<usize> {
        match self.tuning {
            Tuning::Fresh => self.tuning = Tuning::Spoke,
            Tuning::Spoke => self.tune(liveness),
            Tuning::Done => {}
        }
        let n = self.give(|socket| socket.send(bytes))?;
        if n < bytes.len() {
            self.writable = false;
        }
        Ok(n)
    }

    pub(super) fn drain(
        &mut self,
        pipe: &S::Pipe,
        len: usize,
        liveness: Liveness,
    ) -> io::Result<usize> {
        self.tune(liveness);
        self.give(|socket| socket.drain(pipe, len))
    }

    /// Tells the peer that nothing more comes.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        self.owes_ack = false;
        self.socket.end()
    }

    /// Makes the coming close a reset.
    pub(super) fn reset_on_close(&self) {
        self.socket.reset_on_close();
    }

    fn take(&mut self, read: impl FnOnce(&S) -> io::Result<usize>) -> io::Result<usize> {
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

    fn give(&mut self, write: impl FnOnce(&S) -> io::Result<usize>) -> io::Result<usize> {
        if !self.writable {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let outcome = write(&self.socket);
        match &outcome {
            Ok(_) => self.owes_ack = false,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
            // The call has reported what was wrong.
            Err(_) => self.broken = false,
        }
        outcome
    }
}
