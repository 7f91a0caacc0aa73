//! TCP: accept, dial, relay.
//!
//! ```text
//!  acceptor ──► connection: dialling ──► relaying ──► flow log
//!                            │ attempts    │ two directions: copy or splice
//! ```
//!
//! [`Tcp`] has all listeners and connections of a data thread, and hands each event to the one it is about. A panic
//! costs the connection it happened in, and nothing else.

mod acceptor;
mod attempts;
mod connection;
mod dial;
mod direction;
mod exchange;
mod kernel;
#[cfg(test)]
mod lifetime_tests;
mod pipe_pool;
mod proxy_header;
mod relay;
mod settling;
#[cfg(test)]
mod simulation;
mod stream;

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::net::poller::Readiness;
use crate::net::sockets::{BACKLOG, reset_on_close};

use super::Listener;
use super::admission::{Admitted, FlowKind};
use super::engine::{Key, Reactor, Slab, Token};
use super::observer::{OpenFlows, WhoseFlows};
pub use attempts::Effort;

use acceptor::{Acceptor, Taken};
use connection::{Connection, Fate};
use settling::{SETTLED, Settling};

/// One read of a busy flow: 64 KiB copies at 2.5 GiB/s where 8 KiB reach 1.2.
const BUFFER: usize = 64 * 1024;

/// The TCP side of a data thread.
pub(super) struct Tcp {
    acceptors: Slab<Acceptor>,
    // Boxed: a place that is free costs next to nothing.
    connections: Slab<Box<Connection<TcpStream>>>,
    settling: Settling,
    // Scratch space of all flows: nothing stays in it from one event to the next.
    buffer: Box<[u8]>,
}

impl Tcp {
    /// With nothing to serve.
    pub(super) fn new() -> Self {
        Self {
            acceptors: Slab::new(),
            connections: Slab::new(),
            settling: Settling::default(),
            buffer: vec![0; BUFFER].into_boxed_slice(),
        }
    }

    /// Connections at this moment.
    pub(super) fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Lists its connections.
    pub(super) fn list(&self, whose: &WhoseFlows, flows: &mut OpenFlows) {
        for connection in self.connections.iter() {
            if whose.takes(&connection.route().service) {
                flows.add(|| connection.as_open());
            }
        }
    }

    /// Serves a listener from now on.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    pub(super) fn serve(
        &mut self,
        listener: Listener,
        socket: TcpListener,
        reactor: &Reactor,
    ) -> io::Result<Key> {
        let acceptor = Acceptor::new(Arc::new(listener), socket);
        acceptor.watch(self.acceptors.next_key(), reactor)?;
        Ok(self.acceptors.insert(acceptor))
    }

    /// Closes a listener. Who waits in its backlog is still served: closing the socket would reset them.
    pub(super) fn stop(&mut self, key: Key, reactor: &mut Reactor) {
        if let Some(mut acceptor) = self.acceptors.remove(key) {
            for _ in 0..BACKLOG {
                let Some((client, peer)) = acceptor.take_waiting() else {
                    return;
                };
                self.begin(acceptor.listener(), client, peer, reactor);
            }
        }
    }

    /// Takes connections that wait at a listener.
    pub(super) fn accept(&mut self, key: Key, reactor: &mut Reactor) {
        let Some(acceptor) = self.acceptors.get_mut(key) else {
            return;
        };
        let listener = acceptor.listener().clone();
        for _ in 0..acceptor.turn(reactor.round()) {
            let Some(acceptor) = self.acceptors.get_mut(key) else {
                return;
            };
            match acceptor.take(key, reactor) {
                Taken::Connection(client, peer) => self.begin(&listener, client, peer, reactor),
                Taken::Failed => {}
                Taken::Nothing => return,
            }
        }
    }

    /// A listener's rest is over.
    pub(super) fn rested(&mut self, key: Key, reactor: &mut Reactor) {
        if let Some(acceptor) = self.acceptors.get_mut(key) {
            acceptor.wake(key, reactor);
        }
    }

    /// Something has become possible on a connection's client side.
    pub(super) fn client_ready(&mut self, key: Key, ready: Readiness, reactor: &mut Reactor) {
        self.with(key, reactor, |connection, buffer, _| {
            connection.client_ready(ready, buffer)
        });
    }

    /// Something has become possible on a connection's backend side.
    pub(super) fn backend_ready(&mut self, key: Key, ready: Readiness, reactor: &mut Reactor) {
        self.with(key, reactor, |connection, buffer, reactor| {
            connection.backend_ready(ready, key, buffer, reactor)
        });
    }

    /// A connection goes on where it had to leave off for others.
    pub(super) fn go_on(&mut self, key: Key, reactor: &mut Reactor) {
        self.with(key, reactor, |connection, buffer, _| {
            connection.go_on(buffer)
        });
    }

    /// A dial attempt may have lasted too long.
    pub(super) fn dial_due(&mut self, key: Key, reactor: &mut Reactor) {
        self.with(key, reactor, |connection, buffer, reactor| {
            connection.dial_due(key, buffer, reactor)
        });
    }

    /// Some connections have been open for a while.
    pub(super) fn settle(&mut self, reactor: &mut Reactor) {
        while let Some(key) = self.settling.due(reactor.now()) {
            self.settled(key);
        }
        if let Some(next) = self.settling.next() {
            reactor.call_at(next, Token::Settling);
        }
    }

    fn settled(&mut self, key: Key) {
        if let Some(connection) = self.connections.get_mut(key) {
            connection.settle();
        }
    }

    /// Resets all connections.
    pub(super) fn reset_all(&mut self) {
        self.connections.clear();
    }

    fn begin(
        &mut self,
        listener: &Arc<Listener>,
        client: TcpStream,
        peer: SocketAddr,
        reactor: &mut Reactor,
    ) {
        let Some(flow) = Admitted::new(listener, FlowKind::Tcp) else {
            reset_on_close(&client);
            let refused = &listener.shared.metrics.tcp_refused;
            refused.with_label_values(&["limit"]).inc();
            return;
        };
        let key = self.connections.next_key();
        let begin = AssertUnwindSafe(|| Connection::begin(client, peer, flow, key, reactor));
        // A panic has dropped the client, and thereby reset it.
        if let Ok(Some(connection)) = catch_unwind(begin) {
            self.connections.insert(Box::new(connection));
            let now = reactor.now();
            if self.settling.next().is_none() {
                reactor.call_at(now + SETTLED, Token::Settling);
            }
            if let Some(oldest) = self.settling.begin(key, now) {
                self.settled(oldest);
            }
        }
    }

    // Lets a connection do something, and ends it if that was its end.
    fn with(
        &mut self,
        key: Key,
        reactor: &mut Reactor,
        step: impl FnOnce(&mut Connection<TcpStream>, &mut [u8], &mut Reactor) -> Fate,
    ) {
        // It may have ended in this very round.
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let buffer = &mut self.buffer;
        let step = AssertUnwindSafe(|| step(connection, buffer, reactor));
        match catch_unwind(step) {
            Ok(Fate::GoesOn) => {}
            Ok(Fate::Yields) => reactor.turn_again(Token::Client(key)),
            // Dropped before its end, it resets both sides.
            Ok(Fate::Over) | Err(_) => {
                self.connections.remove(key);
            }
        }
    }
}
