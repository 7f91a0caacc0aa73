//! UDP: flows, and the batched loop that forwards their datagrams.
//!
//! ```text
//!  client ─► listener ─[recvmmsg]─► flow table ─► run of one flow ─[send or sendmmsg]─► its socket ─► backend
//!  client ◄─ listener ◄─[sendmmsg]─ gathered from all ready flows ◄─[recv or recvmmsg]─ its socket ◄─ backend
//! ```
//!
//! A flow is a client address and the local address it sent to; it has a connected socket, so that the kernel reports
//! a backend's "port unreachable" to it.

mod appetite;
mod delayed;
mod flow_key;
mod flows;
mod forwarder;
mod session;

use std::collections::HashMap;
use std::io;
use std::net::UdpSocket;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::model::ServicePortKey;
use crate::net::batches::Batch;

use super::Listener;
use super::engine::{Key, Reactor, Slab, Token};
use super::observer::{OpenFlows, WhoseFlows};
use forwarder::{Forwarder, Turn};

pub(super) use flows::FlowId;

/// The UDP side of a data thread.
///
/// What arrives makes its listener ask for a turn, and has it after all other events of the round: what came together is
/// forwarded together.
pub(super) struct Udp {
    forwarders: Slab<Forwarder>,
    by_route: HashMap<ServicePortKey, Vec<Key>>,
    // Scratch space of all listeners: nothing stays in it from one turn to the next. There once there is a listener.
    batch: Option<Batch>,
}

impl Udp {
    /// With nothing to serve.
    pub(super) fn new() -> Self {
        Self {
            forwarders: Slab::new(),
            by_route: HashMap::new(),
            batch: None,
        }
    }

    /// Lists its flows.
    pub(super) fn list(&self, whose: &WhoseFlows, flows: &mut OpenFlows) {
        for forwarder in self.forwarders.iter() {
            if whose.takes(&forwarder.route().service) {
                forwarder.list(flows);
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
        socket: UdpSocket,
        reactor: &Reactor,
    ) -> io::Result<Key> {
        let listener = Arc::new(listener);
        let route = listener.id.route.clone();
        let key = self.forwarders.next_key();
        let forwarder = Forwarder::new(listener, socket, key, reactor)?;
        self.forwarders.insert(forwarder);
        self.by_route.entry(route).or_default().push(key);
        self.batch.get_or_insert_default();
        Ok(key)
    }

    /// Leaves a listener's port; its flows go on until no reply comes any more.
    pub(super) fn leave(&mut self, key: Key, reactor: &mut Reactor) {
        if let (Some(forwarder), Some(batch)) = (self.forwarders.get_mut(key), &mut self.batch) {
            let leaving = catch_unwind(AssertUnwindSafe(|| forwarder.leave(batch, reactor)));
            if let Err(_reported_by_the_panic_hook) = leaving {
                forwarder.start_over(reactor);
            }
        }
    }

    /// Whether no listener has a flow.
    pub(super) fn is_over(&self) -> bool {
        self.forwarders.iter().all(Forwarder::is_over)
    }

    /// Closes a listener. What clients have sent there is still forwarded, but its flows end.
    pub(super) fn stop(&mut self, key: Key, reactor: &mut Reactor) {
        self.leave(key, reactor);
        if let Some(forwarder) = self.forwarders.remove(key) {
            let route = forwarder.route();
            if let Some(keys) = self.by_route.get_mut(route) {
                keys.retain(|other| *other != key);
                if keys.is_empty() {
                    self.by_route.remove(route);
                }
            }
            forwarder.close();
        }
    }

    /// The table says something new about a route.
    pub(super) fn recheck(&mut self, route: &ServicePortKey, reactor: &mut Reactor) {
        for key in self.by_route.get(route).into_iter().flatten() {
            if let Some(forwarder) = self.forwarders.get_mut(*key) {
                forwarder.recheck(reactor);
            }
        }
    }

    /// Clients have sent something to a listener.
    pub(super) fn clients_ready(&mut self, key: Key, reactor: &mut Reactor) {
        if let Some(forwarder) = self.forwarders.get_mut(key) {
            forwarder.clients_ready(reactor);
        }
    }

    /// A backend has sent something to a flow of the listener in that place.
    pub(super) fn backend_ready(&mut self, listener: u32, flow: FlowId, reactor: &mut Reactor) {
        if let Some(forwarder) = self.forwarders.at(listener) {
            forwarder.backend_ready(flow, reactor);
        }
    }

    /// It is a listener's turn to forward.
    pub(super) fn go_on(&mut self, key: Key, reactor: &mut Reactor) {
        let (Some(forwarder), Some(batch)) = (self.forwarders.get_mut(key), &mut self.batch) else {
            return;
        };
        match catch_unwind(AssertUnwindSafe(|| forwarder.turn(batch, reactor))) {
            Ok(Turn::Idle) => {}
            Ok(Turn::Yields) => reactor.turn_again(Token::UdpListener(key)),
            // It costs the flows that are open, not the listener.
            Err(_reported_by_the_panic_hook) => forwarder.start_over(reactor),
        }
    }

    /// Flows of a listener may have been idle for long enough.
    pub(super) fn expire(&mut self, key: Key, reactor: &mut Reactor) {
        if let Some(forwarder) = self.forwarders.get_mut(key) {
            forwarder.expire(reactor);
        }
    }
}
