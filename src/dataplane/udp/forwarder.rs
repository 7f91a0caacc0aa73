//! One UDP listener on one data thread: takes what clients and backends have sent, a batch at a time, and passes it on.
//!
//! However many flows are ready, a turn costs one call per flow and one for all replies. Within a flow nothing is
//! reordered; what the kernel will not take is dropped and counted.

use std::collections::VecDeque;
use std::io;
use std::net::UdpSocket;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::model::ServicePortKey;
use crate::net::batches::{Batch, SLOTS};
use crate::net::poller::Interest;
use crate::net::sockets::{gather_datagrams, leave_port};
use crate::routing::Route;

use super::super::Listener;
use super::super::admission::{Admitted, FlowKind};
use super::super::engine::{Key as ListenerKey, Reactor, Token};
use super::super::observer::OpenFlows;
use super::appetite::{Appetite, is_bulk};
use super::delayed::Delayed;
use super::flow_key::FlowKey;
use super::flows::{Action, FlowId, FlowTable};
use super::session::{Loss, Session, idle_timeout};

/// Rounds after which others get their turn.
const ROUNDS: usize = 16;

/// Datagrams after which they do; a round more than that, in which the kernel has gathered some, is all it can be.
const TURN: usize = 2 * ROUNDS * SLOTS;

/// A flow idle for less than this is not ended to make room for another: it may be waiting for its reply.
const EVICTABLE: Duration = Duration::from_secs(5);

/// Datagrams that are still taken when a listener ends: at least as many as its receive buffer holds, each of which the
/// kernel counts with 768 octets or more.
const QUEUED: usize = 8192;

/// How long a flow of a listener that has left its port waits for another reply.
const LAST_REPLY: Duration = Duration::from_millis(500);

/// One listener's datagrams on one thread.
pub(super) struct Forwarder {
    listener: Arc<Listener>,
    socket: UdpSocket,
    key: ListenerKey,
    flows: FlowTable<FlowKey, Session>,
    // Clients have sent something that has not been read.
    readable: bool,
    appetite: Appetite,
    // The kernel gathers them.
    gathers: bool,
    // Flows whose backends have.
    ready: VecDeque<FlowId>,
    has_asked_for_a_turn: bool,
    has_left: bool,
    // Datagrams that the kernel had no room for, modulo 2^32.
    lost: u32,
    // Late on purpose.
    delayed: Delayed,
    // The earliest call that is under way.
    called_at: Option<Instant>,
}

/// How a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Everything that was there has been forwarded.
    Idle,
    /// There may be more.
    Yields,
}

impl Forwarder {
    /// Begins to hear of datagrams.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    pub(super) fn new(
        listener: Arc<Listener>,
        socket: UdpSocket,
        key: ListenerKey,
        reactor: &Reactor,
    ) -> io::Result<Self> {
        reactor.watch(&socket, Interest::Read, Token::UdpListener(key))?;
        let flows = FlowTable::new(listener.shared.udp_idle_timeout);
        Ok(Self {
            listener,
            socket,
            key,
            flows,
            readable: false,
            appetite: Appetite::of_two(),
            gathers: false,
            ready: VecDeque::new(),
            has_asked_for_a_turn: false,
            has_left: false,
            lost: 0,
            delayed: Delayed::default(),
            called_at: None,
        })
    }

    /// What it forwards for.
    pub(super) fn route(&self) -> &ServicePortKey {
        &self.listener.id.route
    }

    /// Lists its flows.
    pub(super) fn list(&self, flows: &mut OpenFlows) {
        for session in self.flows.sessions() {
            flows.add(|| session.as_open());
        }
    }

    /// Leaves what comes from now on to whoever shares the port, or refuses it, and forwards what has come. Flows wait for
    /// replies that are on their way.
    pub(super) fn leave(&mut self, batch: &mut Batch, reactor: &mut Reactor) {
        if let Err(error) = leave_port(&self.socket) {
            tracing::debug!(listener = %self.listener.id, %error, "port could not be left; flows end");
            return self.end_flows("listener_closed");
        }
        self.readable = true;
        let mut taken = 0;
        while self.readable && taken < QUEUED {
            // An error that was pending is one less of a few.
            taken += self.take_from_clients(batch, reactor).max(1);
        }
        self.has_left = true;
        self.flows.touch_all(reactor.now());
        self.flows.set_idle_timeout(LAST_REPLY);
        self.called_at = None;
        self.expire(reactor);
    }

    /// Whether no reply is waited for any more.
    pub(super) fn is_over(&self) -> bool {
        self.flows.len() == 0 && self.delayed.next().is_none()
    }

    /// Ends all flows and closes the socket.
    pub(super) fn close(mut self) {
        self.end_flows("listener_closed");
    }

    /// Ends all flows without a word, after something went wrong with one of them.
    pub(super) fn start_over(&mut self, reactor: &mut Reactor) {
        self.flows = FlowTable::new(self.listener.shared.udp_idle_timeout);
        self.ready.clear();
        self.called_at = None;
        self.clients_ready(reactor);
    }

    /// Clients have sent something.
    pub(super) fn clients_ready(&mut self, reactor: &mut Reactor) {
        self.readable = true;
        self.ask_for_a_turn(reactor);
    }

    /// A backend has sent something.
    pub(super) fn backend_ready(&mut self, flow: FlowId, reactor: &mut Reactor) {
        // Level-triggered: it is told again in each round until it has been read.
        if let Some(session) = self.flows.session(flow)
            && !std::mem::replace(&mut session.is_queued, true)
        {
            self.ready.push_back(flow);
        }
        self.ask_for_a_turn(reactor);
    }

    fn ask_for_a_turn(&mut self, reactor: &mut Reactor) {
        if !self.has_asked_for_a_turn {
            self.has_asked_for_a_turn = true;
            reactor.turn_again(Token::UdpListener(self.key));
        }
    }

    fn end_flows(&mut self, reason: &'static str) {
        for (_, session) in self.flows.close_where(|_| true) {
            session.end(reason);
        }
        self.ready.clear();
    }

    /// Forwards what is there.
    pub(super) fn turn(&mut self, batch: &mut Batch, reactor: &mut Reactor) -> Turn {
        self.has_asked_for_a_turn = false;
        let mut n = 0;
        for _ in 0..ROUNDS {
            if !self.readable && self.ready.is_empty() {
                return Turn::Idle;
            }
            if self.readable {
                n += self.take_from_clients(batch, reactor);
            }
            if !self.ready.is_empty() {
                n += self.take_from_backends(batch, reactor.now(), reactor.round());
            }
            if n >= TURN {
                break;
            }
        }
        self.has_asked_for_a_turn = true;
        Turn::Yields
    }

    // One batch from clients to backends; how many datagrams.
    fn take_from_clients(&mut self, batch: &mut Batch, reactor: &mut Reactor) -> usize {
        let most = self.appetite.messages();
        let received = match batch.receive(&self.socket, 0..most) {
            Ok(received) => received,
            Err(error) => {
                // Any other error was pending, such as the ICMP answer to a reply, and is gone with this report.
                if error.kind() == io::ErrorKind::WouldBlock {
                    self.readable = false;
                } else {
                    tracing::debug!(listener = %self.listener.id, %error, "receive failed");
                }
                return 0;
            }
        };
        // Less than asked for has emptied it; the next arrival is a new event.
        self.readable = received.messages == most;
        self.appetite.had(received.messages, most, reactor.round());
        let n = received.datagrams;
        if !self.gathers && is_bulk(n, (0..n).map(|slot| batch.len(slot) as u64).sum()) {
            // One that cannot hands over one by one, and says so again next time.
            self.gathers = gather_datagrams(&self.socket).is_ok();
        }
        // The last one knows of all. The kernel counts messages: what it had gathered is one.
        if let Some(lost) = n.checked_sub(1).and_then(|last| batch.lost(last)) {
            let more = lost.wrapping_sub(self.lost);
            self.lost = lost;
            self.count_drop(Loss::NoRoom, usize::try_from(more).unwrap_or(usize::MAX));
        }
        let mut start = 0;
        while start < n {
            let key = key(batch, start);
            let mut end = start + 1;
            while end < n && self::key(batch, end) == key {
                end += 1;
            }
            match key {
                Some(key) => self.forward(batch, start..end, key, reactor),
                None => self.count_drop(Loss::Malformed, end - start),
            }
            start = end;
        }
        n
    }

    // A run of datagrams of one flow.
    fn forward(
        &mut self,
        batch: &mut Batch,
        slots: Range<usize>,
        key: FlowKey,
        reactor: &mut Reactor,
    ) {
        let now = reactor.now();
        let id = match self.flows.on_client_datagram(&key, now) {
            Action::Forward(id) => id,
            Action::Open => match self.open(key, reactor) {
                Ok(id) => id,
                Err(reason) => return self.count_drop(reason, slots.len()),
            },
        };
        let Some(session) = self.flows.session(id) else {
            return;
        };
        let token = Token::UdpFlow(self.key.place, id);
        let drops = &self.listener.shared.metrics.udp_drops;
        let delayed = &mut self.delayed;
        session.forward(
            batch,
            slots,
            now,
            &mut |socket| reactor.watch(socket, Interest::Level, token),
            &mut |reason, n| drops.with_label_values(&[reason.reason()]).inc_by(n as u64),
            &mut |until, datagram| delayed.keep(until, id, datagram),
        );
        if session.is_void() {
            self.flows.close(id);
        }
        if let Some(next) = self.delayed.next() {
            self.call_at(next, reactor);
        }
    }

    fn open(&mut self, key: FlowKey, reactor: &mut Reactor) -> Result<FlowId, Loss> {
        let now = reactor.now();
        let timeout = {
            let table = self.listener.shared.table.load();
            let route = table
                .route(&self.listener.id.route)
                .ok_or(Loss::NoBackend)?;
            self.idle_timeout(route)
        };
        let flow = self.admit(now).ok_or(Loss::Limit)?;
        self.flows.set_idle_timeout(timeout);
        let id = self
            .flows
            .open(key, Session::new(flow, key.client(), now), now);
        self.call_at(now + timeout, reactor);
        Ok(id)
    }

    // No listener may use more than what is left for all others: at the bound, it ends its own oldest flow.
    fn admit(&mut self, now: Instant) -> Option<Admitted> {
        let admit = |flows: &FlowTable<FlowKey, Session>| {
            if flows.len() > self.listener.shared.admission.udp_room() {
                return None;
            }
            Admitted::new(&self.listener, FlowKind::Udp)
        };
        admit(&self.flows).or_else(|| {
            let (_, oldest) = self.flows.evict(now, EVICTABLE)?;
            oldest.end("evicted");
            Admitted::new(&self.listener, FlowKind::Udp)
        })
    }

    // One batch from backends to clients, gathered from as many flows as fit; how many datagrams.
    fn take_from_backends(&mut self, batch: &mut Batch, now: Instant, round: u64) -> usize {
        let mut filled = 0;
        while filled < SLOTS
            && let Some(id) = self.ready.pop_front()
        {
            let Some((key, session)) = self.flows.on_backend_datagram(id, now) else {
                continue;
            };
            session.is_queued = false;
            let most = session.appetite.messages().min(SLOTS - filled);
            let Some(received) = session.receive(batch, filled..filled + most) else {
                continue;
            };
            match received {
                Ok(received) => {
                    session.appetite.had(received.messages, most, round);
                    let slots = filled..filled + received.datagrams;
                    let returned = slots.clone().map(|slot| batch.len(slot) as u64).sum();
                    let (client, local) = (key.client(), key.local());
                    for slot in slots {
                        batch.address_to(slot, client, local);
                    }
                    session.returned(received.datagrams, returned);
                    filled += received.datagrams;
                    if received.messages < most {
                        session.drained();
                    } else if most > 1 || session.is_refused() {
                        // As much as it was asked for: there may be more. Others first. After one alone, the next round
                        // tells.
                        session.is_queued = true;
                        self.ready.push_back(id);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => session.drained(),
                // Reported once, and ahead of what had arrived before it.
                Err(error) => {
                    session.receive_failed(&error);
                    session.is_queued = true;
                    self.ready.push_front(id);
                }
            }
        }
        self.reply(batch, filled);
        filled
    }

    // Sends gathered replies from the listener's own address.
    fn reply(&self, batch: &mut Batch, filled: usize) {
        let mut next = 0;
        while next < filled {
            match batch.send(&self.socket, next..filled) {
                Ok(n) => {
                    self.listener.account().datagrams_to_clients.add(n as u64);
                    next += n;
                }
                Err(error) => {
                    self.count_drop(Loss::of(&error), 1);
                    next += 1;
                }
            }
        }
    }

    /// Ends flows that the newest table does not want any more.
    pub(super) fn recheck(&mut self, reactor: &mut Reactor) {
        let table = self.listener.shared.table.load();
        let Some(route) = table.route(&self.listener.id.route) else {
            drop(table);
            return self.end_flows("service_gone");
        };
        let timeout = self.idle_timeout(route);
        self.flows.set_idle_timeout(timeout);
        let gone = |session: &Session| {
            // Without a backend it was refused; what refused it may be different now.
            session
                .backend()
                .is_none_or(|backend| !route.still_serves(backend))
        };
        for (_, session) in self.flows.close_where(gone) {
            session.end("backend_gone");
        }
        drop(table);
        // A new timeout may be shorter than what the next call is for.
        self.called_at = None;
        self.expire(reactor);
    }

    /// Ends flows that have been idle for long enough.
    pub(super) fn expire(&mut self, reactor: &mut Reactor) {
        let now = reactor.now();
        if self.called_at.is_some_and(|at| at > now) {
            return;
        }
        self.called_at = None;
        while let Some((flow, datagram)) = self.delayed.due(now) {
            if let Some(session) = self.flows.session(flow) {
                session.send_late(&datagram);
            }
        }
        if let Some(next) = self.delayed.next() {
            self.call_at(next, reactor);
        }
        let (expired, next) = self.flows.expire(now);
        for (_, session) in expired {
            session.end("idle");
        }
        if let Some(next) = next {
            self.call_at(next, reactor);
        }
    }

    fn idle_timeout(&self, route: &Route) -> Duration {
        if self.has_left {
            return LAST_REPLY;
        }
        idle_timeout(&self.listener, route)
    }

    // Is called at that time, or before.
    fn call_at(&mut self, at: Instant, reactor: &mut Reactor) {
        if self.called_at.is_none_or(|earlier| earlier > at) {
            self.called_at = Some(at);
            reactor.call_at(at, Token::UdpListener(self.key));
        }
    }

    fn count_drop(&self, reason: Loss, n: usize) {
        let drops = &self.listener.shared.metrics.udp_drops;
        drops.with_label_values(&[reason.reason()]).inc_by(n as u64);
    }
}

fn key(batch: &Batch, slot: usize) -> Option<FlowKey> {
    Some(FlowKey::new(batch.source(slot)?, batch.local(slot)))
}
