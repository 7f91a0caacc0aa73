//! The accepting end of one listener on one data thread. Takes what waits and hands it over; never dials, never waits.
//!
//! The socket is watched by level: a round that leaves some in the backlog is told again, so no call is spent on finding
//! out that nobody waits any more.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use crate::net::descriptors::is_shortage;
use crate::net::poller::Interest;
use crate::net::streams::accept;

use super::super::Listener;
use super::super::engine::{Key, Reactor, Token};

/// How long a listener rests when descriptors have run out: clients wait in the backlog meanwhile.
const REST: Duration = Duration::from_millis(20);

/// Connections taken in one round at most, when more wait than were taken before.
const MOST_PER_ROUND: usize = 16;

/// A listener that takes connections.
pub(super) struct Acceptor {
    listener: Arc<Listener>,
    socket: TcpListener,
    per_round: usize,
    last_round: u64,
    resting: bool,
}

/// What a look at the backlog found.
pub(super) enum Taken {
    /// Somebody.
    Connection(TcpStream, SocketAddr),
    /// A connection that was gone by then.
    Failed,
    /// Nobody, or no descriptor for anybody.
    Nothing,
}

impl Acceptor {
    pub(super) fn new(listener: Arc<Listener>, socket: TcpListener) -> Self {
        Self {
            listener,
            socket,
            per_round: 1,
            last_round: 0,
            resting: false,
        }
    }

    /// What it accepts for.
    pub(super) fn listener(&self) -> &Arc<Listener> {
        &self.listener
    }

    /// Begins to hear of connections that wait.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    pub(super) fn watch(&self, key: Key, reactor: &Reactor) -> io::Result<()> {
        reactor.watch(&self.socket, Interest::Level, Token::TcpListener(key))
    }

    /// How many to take in this round: one, and twice as many as in the round before if some were left there.
    pub(super) fn turn(&mut self, round: u64) -> usize {
        self.per_round = if round == self.last_round + 1 {
            (self.per_round * 2).min(MOST_PER_ROUND)
        } else {
            1
        };
        self.last_round = round;
        self.per_round
    }

    /// Takes one.
    pub(super) fn take(&mut self, key: Key, reactor: &mut Reactor) -> Taken {
        if self.resting {
            return Taken::Nothing;
        }
        match accept(&self.socket) {
            Ok((client, peer)) => Taken::Connection(client, peer),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // The next one is not what this round left.
                self.last_round = 0;
                Taken::Nothing
            }
            Err(error) if is_shortage(&error) => {
                self.count(&error, "shortage");
                self.rest(key, reactor);
                Taken::Nothing
            }
            // Everything else concerns a connection that is gone by now (accept(2)).
            Err(error) => {
                self.count(&error, "other");
                Taken::Failed
            }
        }
    }

    /// Goes on after a rest.
    pub(super) fn wake(&mut self, key: Key, reactor: &mut Reactor) {
        if self.resting {
            self.resting = false;
            self.hear(Interest::Level, key, reactor);
        }
    }

    /// Takes one of those that wait while the listener is closed. The kernel is asked directly: the reactor may not
    /// have told of the last arrivals yet.
    pub(super) fn take_waiting(&mut self) -> Option<(TcpStream, SocketAddr)> {
        loop {
            match accept(&self.socket) {
                Ok(taken) => return Some(taken),
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    if error.kind() != io::ErrorKind::WouldBlock {
                        tracing::debug!(listener = %self.listener.id, %error, "accepting what waited failed");
                    }
                    return None;
                }
            }
        }
    }

    fn rest(&mut self, key: Key, reactor: &mut Reactor) {
        self.resting = true;
        self.hear(Interest::Nothing, key, reactor);
        reactor.call_at(reactor.now() + REST, Token::TcpListener(key));
    }

    fn hear(&self, interest: Interest, key: Key, reactor: &Reactor) {
        if let Err(error) = reactor.watch_for(&self.socket, interest, Token::TcpListener(key)) {
            // epoll_ctl(2) changes a registration without allocating: only a wrong descriptor could fail.
            tracing::error!(listener = %self.listener.id, %error, "changing what a listener hears failed");
        }
    }

    fn count(&self, error: &io::Error, reason: &'static str) {
        let errors = &self.listener.shared.metrics.accept_errors;
        errors.with_label_values(&[reason]).inc();
        tracing::debug!(listener = %self.listener.id, %error, "accept failed");
    }
}
