//! The engine of a data thread: one epoll set, and a loop that carries each event to the listener or connection it is
//! about. Nothing it calls ever waits.
//!
//! ```text
//!          ┌────────────── round ──────────────┐
//!  epoll ──► events ─► turns ─► timers ─► mail ─┴──► until drained
//!             │ tcp: accept, dial, relay
//!             └ udp: batches, one round of turns for all that arrived together
//! ```
//!
//! Flows never change threads, so nothing here is locked but the mailbox.

mod reactor;
mod slab;
mod timers;
mod token;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;

use crate::net::poller::{Events, Readiness};

use super::mailbox::{Mail, Mailbox, Order, Period, Socket};
use super::observer::OpenFlows;
use super::tcp::Tcp;
use super::udp::Udp;
use super::{Drained, Listener};

pub(super) use reactor::Reactor;
pub(super) use slab::{Key, Slab};
pub(super) use token::Token;

/// Everything a data thread has.
pub(super) struct Engine {
    mailbox: Arc<Mailbox>,
    reactor: Reactor,
    tcp: Tcp,
    udp: Udp,
    served: HashMap<Period, Place>,
    ending: Option<Ending>,
}

/// Where a listener is that is being served.
#[derive(Clone, Copy)]
enum Place {
    Tcp(Key),
    Udp(Key),
}

/// The thread drains.
struct Ending {
    // `None` is so late that no clock shows it.
    until: Option<Instant>,
    // Connections there were at its beginning.
    active: usize,
    done: oneshot::Sender<Drained>,
}

impl Engine {
    /// With nothing to serve yet.
    ///
    /// # Errors
    /// Those of `epoll_create1(2)` and `epoll_ctl(2)`.
    pub(super) fn new(mailbox: Arc<Mailbox>) -> io::Result<Self> {
        let reactor = Reactor::new()?;
        reactor.watch_wake_up(&mailbox.arrived, Token::Mailbox)?;
        Ok(Self {
            mailbox,
            reactor,
            tcp: Tcp::new(),
            udp: Udp::new(),
            served: HashMap::new(),
            ending: None,
        })
    }

    /// Serves until it has drained or nobody holds the thread any more; then what is left is reset.
    pub(super) fn run(mut self) {
        let mut events = Events::new();
        let mut turns = Vec::new();
        loop {
            if let Err(error) = self.reactor.wait(&mut events) {
                // epoll_wait(2) fails for a wrong descriptor or wrong memory only.
                tracing::error!(%error, "waiting for events failed; the data thread ends");
                return;
            }
            let mut mail_arrived = false;
            for (bits, readiness) in events.iter() {
                match Token::from_bits(bits) {
                    Some(Token::Mailbox) => mail_arrived = true,
                    Some(token) => self.dispatch(token, readiness),
                    None => {}
                }
            }
            self.reactor.take_turns(&mut turns);
            for token in turns.drain(..) {
                self.resume(token);
            }
            while let Some(token) = self.reactor.due() {
                self.call(token);
            }
            if mail_arrived && self.follow().hung_up {
                return;
            }
            if self.is_drained() {
                return self.end();
            }
        }
    }

    fn dispatch(&mut self, token: Token, readiness: Readiness) {
        match token {
            Token::TcpListener(key) => self.tcp.accept(key, &mut self.reactor),
            Token::Client(key) => self.tcp.client_ready(key, readiness, &mut self.reactor),
            Token::Backend(key) => self.tcp.backend_ready(key, readiness, &mut self.reactor),
            Token::UdpListener(key) => self.udp.clients_ready(key, &mut self.reactor),
            Token::UdpFlow(listener, flow) => {
                self.udp.backend_ready(listener, flow, &mut self.reactor);
            }
            Token::Mailbox | Token::Patience | Token::Settling => {}
        }
    }

    // Another turn for who asked for it.
    fn resume(&mut self, token: Token) {
        match token {
            Token::Client(key) => self.tcp.go_on(key, &mut self.reactor),
            Token::UdpListener(key) => self.udp.go_on(key, &mut self.reactor),
            Token::TcpListener(_)
            | Token::Backend(_)
            | Token::UdpFlow(..)
            | Token::Mailbox
            | Token::Patience
            | Token::Settling => {}
        }
    }

    // A timer.
    fn call(&mut self, token: Token) {
        match token {
            Token::TcpListener(key) => self.tcp.rested(key, &mut self.reactor),
            Token::Client(key) => self.tcp.dial_due(key, &mut self.reactor),
            Token::Settling => self.tcp.settle(&mut self.reactor),
            Token::UdpListener(key) => self.udp.expire(key, &mut self.reactor),
            Token::Backend(_) | Token::UdpFlow(..) | Token::Mailbox | Token::Patience => {}
        }
    }

    fn follow(&mut self) -> Mail {
        let mut mail = self.mailbox.collect();
        for order in mail.orders.drain(..) {
            match order {
                Order::Serve {
                    period,
                    listener,
                    socket,
                } => self.serve(period, listener, socket),
                Order::Stop { period, done } => {
                    if let Some(place) = self.served.remove(&period) {
                        self.stop(place);
                        let _nobody_waits = done.send(());
                    }
                }
                Order::List { whose, done } => {
                    let mut flows = OpenFlows::default();
                    self.tcp.list(&whose, &mut flows);
                    self.udp.list(&whose, &mut flows);
                    let _nobody_waits = done.send(flows);
                }
                Order::Drain { patience, done } => {
                    for place in self.served.values() {
                        match *place {
                            Place::Tcp(key) => self.tcp.stop(key, &mut self.reactor),
                            Place::Udp(key) => self.udp.leave(key, &mut self.reactor),
                        }
                    }
                    let until = self.reactor.now().checked_add(patience);
                    if let Some(until) = until {
                        self.reactor.call_at(until, Token::Patience);
                    }
                    self.ending = Some(Ending {
                        until,
                        active: self.tcp.connections(),
                        done,
                    });
                }
            }
        }
        for route in &mail.changed {
            self.udp.recheck(route, &mut self.reactor);
        }
        mail
    }

    fn serve(&mut self, period: Period, listener: Listener, socket: Socket) {
        let id = listener.id.clone();
        let started = match socket {
            Socket::Tcp(socket) => {
                let served = self.tcp.serve(listener, socket, &self.reactor);
                served.map(Place::Tcp)
            }
            Socket::Udp(socket) => {
                let served = self.udp.serve(listener, socket, &self.reactor);
                served.map(Place::Udp)
            }
        };
        match started {
            Ok(place) => {
                self.served.insert(period, place);
            }
            Err(error) => tracing::error!(listener = %id, %error, "listener could not be served"),
        }
    }

    fn stop(&mut self, place: Place) {
        match place {
            Place::Tcp(key) => self.tcp.stop(key, &mut self.reactor),
            Place::Udp(key) => self.udp.stop(key, &mut self.reactor),
        }
    }

    fn is_drained(&self) -> bool {
        self.ending.as_ref().is_some_and(|ending| {
            let is_over = |until| until <= self.reactor.now();
            let is_idle = self.tcp.connections() == 0 && self.udp.is_over();
            is_idle || ending.until.is_some_and(is_over)
        })
    }

    // Resets what is left, then answers.
    fn end(mut self) {
        let aborted = self.tcp.connections();
        self.tcp.reset_all();
        for (_, place) in std::mem::take(&mut self.served) {
            self.stop(place);
        }
        if let Some(ending) = self.ending.take() {
            // What was accepted while the listeners were closed counts as well, so there may be more than there were.
            let finished = ending.active.saturating_sub(aborted);
            let _nobody_waits = ending.done.send(Drained { finished, aborted });
        }
    }
}

// However the thread ends, nobody may wait for it.
impl Drop for Engine {
    fn drop(&mut self) {
        self.mailbox.close();
    }
}
