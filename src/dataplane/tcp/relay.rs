//! The relay of one TCP connection: an [`Exchange`] over two streams.
//!
//! FIN passes as FIN, RST as RST. Dropped before its end (abort, panic), it resets both ends: an unfinished flow never
//! looks finished. An idle relay holds two descriptors and no buffer.

use std::io;

use crate::net::streams::Liveness;

use super::direction::Path;
use super::exchange::{EndOfStream, Ends, Exchange, Outcome, Side};
use super::kernel::Socket;
use super::stream::Stream;

/// A connection being relayed.
#[derive(Debug)]
pub(super) struct Relay<S: Socket> {
    pub(super) client: Stream<S>,
    pub(super) backend: Stream<S>,
    exchange: Exchange<S::Pipe>,
    finished: bool,
}

impl<S: Socket> Relay<S> {
    pub(super) fn new(client: Stream<S>, backend: Stream<S>) -> Self {
        Self {
            client,
            backend,
            exchange: Exchange::new(),
            finished: false,
        }
    }

    /// Bytes delivered so far: to the backend, to the client.
    pub(super) fn moved(&self) -> (u64, u64) {
        self.exchange.moved()
    }

    /// Moves what can be moved; `buffer` is scratch space.
    pub(super) fn pump(&mut self, buffer: &mut [u8], liveness: Liveness) -> Outcome {
        let mut streams = Streams {
            client: &mut self.client,
            backend: &mut self.backend,
            liveness,
        };
        let outcome = self.exchange.pump(&mut streams, buffer);
        match outcome {
            Outcome::Blocked => self.unnoticed_reset().map_or(outcome, Outcome::Reset),
            Outcome::Finished => {
                self.finished = true;
                outcome
            }
            Outcome::Yield | Outcome::Reset(_) => outcome,
        }
    }

    /// Hands the client half of what the backend has said, and says how much that was; `None` if it has said nothing. For
    /// an answer that is to be cut short: the relay is over then.
    pub(super) fn cut_short(&mut self, buffer: &mut [u8], liveness: Liveness) -> Option<u64> {
        let said = self.backend.read(buffer).ok().filter(|n| *n > 0)?;
        let taken = self.client.write(&buffer[..said / 2], liveness);
        // What it does not take at once it does not get.
        Some(taken.unwrap_or(0) as u64)
    }

    // A reader learns of a reset by reading. Of a side that nobody reads from, because the other one is stalled or it has
    // ended, only the reactor can tell.
    fn unnoticed_reset(&self) -> Option<Side> {
        [(Side::Client, &self.client), (Side::Backend, &self.backend)]
            .into_iter()
            .find(|(side, stream)| stream.is_broken() && self.exchange.is_unread(*side))
            .map(|(side, _)| side)
    }
}

impl<S: Socket> Drop for Relay<S> {
    fn drop(&mut self) {
        if !self.finished {
            self.client.reset_on_close();
            self.backend.reset_on_close();
        }
    }
}

// Both sockets, while the relay pumps.
struct Streams<'a, S> {
    client: &'a mut Stream<S>,
    backend: &'a mut Stream<S>,
    liveness: Liveness,
}

impl<S: Socket> Ends for Streams<'_, S> {
    type Pipe = S::Pipe;
    type Path<'a>
        = OneWay<'a, S>
    where
        Self: 'a;

    fn path(&mut self, source: Side, end: EndOfStream) -> OneWay<'_, S> {
        let (source, sink) = match source {
            Side::Client => (&mut *self.client, &mut *self.backend),
            Side::Backend => (&mut *self.backend, &mut *self.client),
        };
        OneWay {
            source,
            sink,
            end,
            liveness: self.liveness,
        }
    }
}

// One direction's use of them.
struct OneWay<'a, S> {
    source: &'a mut Stream<S>,
    sink: &'a mut Stream<S>,
    end: EndOfStream,
    liveness: Liveness,
}

impl<S: Socket> Path for OneWay<'_, S> {
    type Pipe = S::Pipe;

    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.source.read(into)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.sink.write(bytes, self.liveness)
    }

    fn finish(&mut self) -> io::Result<()> {
        match self.end {
            EndOfStream::Announce => self.sink.finish(),
            EndOfStream::Keep => Ok(()),
        }
    }

    fn take_pipe(&mut self) -> Option<S::Pipe> {
        self.source.socket().take_pipe()
    }

    fn return_pipe(&mut self, pipe: S::Pipe) {
        self.source.socket().return_pipe(pipe);
    }

    fn fill(&mut self, pipe: &S::Pipe) -> io::Result<usize> {
        self.source.fill(pipe)
    }

    fn drain(&mut self, pipe: &S::Pipe, len: usize) -> io::Result<usize> {
        self.sink.drain(pipe, len, self.liveness)
    }

    fn read_back(&mut self, pipe: &S::Pipe, len: usize) -> io::Result<Vec<u8>> {
        self.sink.socket().read_back(pipe, len)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::thread;

    use crate::net::poller::{Events, Interest, Poller};

    use super::super::BUFFER;
    use super::super::pipe_pool::{pooled_bytes, refuse_pipes};
    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connected = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (connected, listener.accept().unwrap().0)
    }

    // A relay between a client and a backend.
    fn relay() -> (TcpStream, Relay<TcpStream>, TcpStream) {
        let ((client, near), (far, backend)) = (pair(), pair());
        for socket in [&near, &far] {
            socket.set_nonblocking(true).unwrap();
        }
        let relay = Relay::new(Stream::accepted(near), Stream::dialled(far));
        (client, relay, backend)
    }

    // Pumps until the end; the two sides are other threads.
    fn run(relay: &mut Relay<TcpStream>) -> Outcome {
        let poller = Poller::new().unwrap();
        for (token, stream) in [(0, &relay.client), (1, &relay.backend)] {
            poller
                .add(stream.socket(), Interest::Stream, token)
                .unwrap();
        }
        let mut events = Events::new();
        let mut buffer = vec![0; BUFFER];
        loop {
            poller.wait(&mut events, None).unwrap();
            for (token, ready) in events.iter() {
                let side = [&mut relay.client, &mut relay.backend];
                side.into_iter()
                    .nth(usize::try_from(token).unwrap())
                    .unwrap()
                    .note(ready);
            }
            loop {
                match relay.pump(&mut buffer, Liveness::default()) {
                    Outcome::Blocked => break,
                    Outcome::Yield => {}
                    end @ (Outcome::Finished | Outcome::Reset(_)) => return end,
                }
            }
        }
    }

    // 100 MiB through a relay on this thread.
    fn transfer() {
        let (mut client, mut relay, mut backend) = relay();
        // Repeats at no multiple of a buffer's size.
        let unit: Vec<u8> = (0..1 << 20).map(|n: u32| n.to_le_bytes()[1]).collect();
        let bytes = [&unit[..], b"odd"].concat().repeat(100);
        let copy = bytes.clone();
        let sending = thread::spawn(move || client.write_all(&copy).unwrap());
        let receiving = thread::spawn(move || {
            let mut got = Vec::new();
            backend.read_to_end(&mut got).unwrap();
            got
        });
        assert_eq!(run(&mut relay), Outcome::Finished);
        sending.join().unwrap();
        assert!(receiving.join().unwrap() == bytes);
    }

    #[test]
    fn bulk_goes_through_pipes() {
        transfer();
        assert!(pooled_bytes() > 0);
    }

    #[test]
    fn bulk_is_copied_where_there_are_no_pipes() {
        refuse_pipes();
        transfer();
        assert_eq!(pooled_bytes(), 0);
    }

    #[test]
    fn an_aborted_relay_resets_both_sides() {
        let (mut client, relay, mut backend) = relay();
        drop(relay);
        for end in [&mut client, &mut backend] {
            let error = end.read(&mut [0; 1]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
    }
}
