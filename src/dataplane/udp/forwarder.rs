//! The loop of one UDP listener on one data thread: takes what clients and backends have sent, a batch at a time, and
//! passes it on.
//!
//! All sockets to backends are in one epoll set, so a round costs two system calls however many flows are ready, plus
//! one per flow. Within a flow nothing is reordered; what the kernel will not take is dropped and counted.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::unix::AsyncFd;
use tokio::time::{Sleep, sleep_until};

use crate::net::batches::{Batch, SLOTS};
use crate::net::message_addresses::LocalAddress;
use crate::net::readable::readable;

use super::super::Listener;
use super::super::admission::{Admitted, FlowKind};
use super::super::thread::{Instruction, Orders};
use super::backends::{Backends, receive_ready};
use super::flows::{Action, FlowId, FlowTable};
use super::session::{Loss, Session, idle_timeout};

/// Rounds after which other tasks get their turn: at most 1024 datagrams each way.
const ROUNDS: usize = 16;

/// A flow idle for less than this is not ended to make room for another: it may be waiting for its reply.
const EVICTABLE: Duration = Duration::from_secs(5);

thread_local! {
    // Scratch space for all listeners of the thread: nothing stays in it from one round to the next.
    static BATCH: RefCell<Batch> = RefCell::new(Batch::new());
}

/// Tells the flows of a listener apart: the client, and the address it sent to where the listener has several.
type Key = (SocketAddr, Option<LocalAddress>);

/// One listener's datagrams on one thread.
pub(in super::super) struct Forwarder {
    listener: Arc<Listener>,
    socket: AsyncFd<UdpSocket>,
    flows: FlowTable<Key, Session>,
    // There while there are flows: a cold listener costs one descriptor.
    backends: Option<Backends>,
    timer: Option<Timer>,
}

struct Timer {
    at: Instant,
    sleep: Pin<Box<Sleep>>,
}

impl Forwarder {
    /// Registers the socket with the thread's reactor.
    pub(in super::super) fn new(listener: Arc<Listener>, socket: UdpSocket) -> io::Result<Self> {
        let socket = readable(socket)?;
        let flows = FlowTable::new(listener.shared.udp_idle_timeout);
        Ok(Self {
            listener,
            socket,
            flows,
            backends: None,
            timer: None,
        })
    }

    /// Forwards until told to close; then all its flows end. A panic costs the flows that are open, not the listener.
    pub(in super::super) async fn run(mut self, mut orders: Orders) {
        poll_fn(|cx| {
            let step = AssertUnwindSafe(|| self.poll(cx, &mut orders));
            catch_unwind(step).unwrap_or_else(|_reported_by_the_panic_hook| {
                self.flows = FlowTable::new(self.listener.shared.udp_idle_timeout);
                self.backends = None;
                self.timer = None;
                cx.waker().wake_by_ref();
                Poll::Pending
            })
        })
        .await;
        self.end_flows("listener_closed");
        drop(self);
        orders.done();
    }

    fn end_flows(&mut self, reason: &'static str) {
        for (_, session) in self.flows.close_where(|_| true) {
            session.end(reason);
        }
        self.backends = None;
    }

    fn poll(&mut self, cx: &mut Context<'_>, orders: &mut Orders) -> Poll<()> {
        while let Poll::Ready(instruction) = orders.poll_next(cx) {
            match instruction {
                Instruction::Recheck => self.recheck(),
                Instruction::Close => return Poll::Ready(()),
            }
        }
        BATCH.with_borrow_mut(|batch| {
            for _ in 0..ROUNDS {
                let now = Instant::now();
                self.poll_timer(now, cx);
                let clients = self.poll_clients(batch, now, cx);
                let backends = self.poll_backends(batch, now, cx);
                if clients.is_pending() && backends.is_pending() {
                    return Poll::Pending;
                }
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
    }

    // One batch from clients to backends.
    fn poll_clients(&mut self, batch: &mut Batch, now: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let Poll::Ready(received) = receive_ready(&self.socket, SLOTS, cx, |socket| {
            batch.receive(socket, 0..SLOTS)
        }) else {
            return Poll::Pending;
        };
        let mut start = 0;
        while start < received {
            let key = key(batch, start);
            let mut end = start + 1;
            while end < received && self::key(batch, end) == key {
                end += 1;
            }
            match key {
                Some(key) => self.forward(batch, start..end, key, now, cx),
                None => self.count_drop(Loss::Malformed, end - start),
            }
            start = end;
        }
        Poll::Ready(())
    }

    // A run of datagrams of one flow.
    fn forward(
        &mut self,
        batch: &mut Batch,
        slots: Range<usize>,
        key: Key,
        now: Instant,
        cx: &mut Context<'_>,
    ) {
        let id = match self.flows.on_client_datagram(&key, now) {
            Action::Forward(id) => id,
            Action::Open => match self.open(key, now, cx) {
                Ok(id) => id,
                Err(reason) => return self.count_drop(reason, slots.len()),
            },
        };
        let (Some(session), Some(backends)) = (self.flows.session(id), &self.backends) else {
            return;
        };
        let drops = &self.listener.shared.metrics.udp_drops;
        session.forward(
            batch,
            slots,
            now,
            &mut |socket| backends.watch(socket, id),
            &mut |reason, n| drops.with_label_values(&[reason.reason()]).inc_by(n as u64),
        );
        if session.is_void() {
            self.flows.close(id);
        }
    }

    fn open(&mut self, key: Key, now: Instant, cx: &mut Context<'_>) -> Result<FlowId, Loss> {
        if self.backends.is_none() {
            self.backends = Some(Backends::new(&self.listener).ok_or(Loss::Shortage)?);
        }
        let timeout = {
            let table = self.listener.shared.table.load();
            let route = table
                .route(&self.listener.id.route)
                .ok_or(Loss::NoBackend)?;
            idle_timeout(&self.listener, route)
        };
        let flow = self.admit(now).ok_or(Loss::Limit)?;
        self.flows.set_idle_timeout(timeout);
        let id = self.flows.open(key, Session::new(flow, key.0, now), now);
        self.arm(now + timeout, cx);
        Ok(id)
    }

    // No listener may use more than what is left for all others: at the bound, it ends its own oldest flow.
    fn admit(&mut self, now: Instant) -> Option<Admitted> {
        let admit = |flows: &FlowTable<Key, Session>| {
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

    // One batch from backends to clients, gathered from as many flows as fit.
    fn poll_backends(&mut self, batch: &mut Batch, now: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let Some(backends) = &mut self.backends else {
            return Poll::Pending;
        };
        if backends.ready.is_empty() && backends.poll_ready(cx).is_pending() {
            return Poll::Pending;
        }
        let mut filled = 0;
        while filled < SLOTS
            && let Some(id) = backends.ready.pop_front()
        {
            let Some((key, session)) = self.flows.on_backend_datagram(id, now) else {
                continue;
            };
            let Some(socket) = session.socket() else {
                continue;
            };
            match batch.receive(socket, filled..SLOTS) {
                Ok(n) => {
                    let slots = filled..filled + n;
                    let returned = slots.clone().map(|slot| batch.len(slot) as u64).sum();
                    for slot in slots {
                        batch.address_to(slot, key.0, key.1);
                    }
                    session.returned(returned);
                    filled += n;
                    if filled == SLOTS {
                        // It filled what was left: there may be more. Others first.
                        backends.ready.push_back(id);
                    } else {
                        session.drained();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => session.drained(),
                // Reported once, and ahead of what had arrived before it.
                Err(error) => {
                    session.receive_failed(&error);
                    backends.ready.push_front(id);
                }
            }
        }
        self.reply(batch, filled);
        Poll::Ready(())
    }

    // Sends gathered replies from the listener's own address.
    fn reply(&self, batch: &mut Batch, filled: usize) {
        let metrics = &self.listener.shared.metrics;
        let mut next = 0;
        while next < filled {
            match batch.send(self.socket.get_ref(), next..filled) {
                Ok(n) => {
                    let bytes = (next..next + n).map(|slot| batch.len(slot) as u64).sum();
                    metrics.udp_datagrams_to_clients.inc_by(n as u64);
                    metrics.udp_bytes_to_clients.inc_by(bytes);
                    next += n;
                }
                Err(error) => {
                    self.count_drop(Loss::of(&error), 1);
                    next += 1;
                }
            }
        }
    }

    // Ends flows that the newest table does not want any more.
    fn recheck(&mut self) {
        let table = self.listener.shared.table.load();
        let Some(route) = table.route(&self.listener.id.route) else {
            drop(table);
            return self.end_flows("service_gone");
        };
        self.flows
            .set_idle_timeout(idle_timeout(&self.listener, route));
        let gone = |session: &Session| {
            // Without a backend it was refused; what refused it may be different now.
            session
                .backend()
                .is_none_or(|backend| !route.still_serves(backend))
        };
        for (_, session) in self.flows.close_where(gone) {
            session.end("backend_gone");
        }
        // A new timeout may be shorter than what the timer is set to.
        self.timer = None;
    }

    fn poll_timer(&mut self, now: Instant, cx: &mut Context<'_>) {
        let due = match &mut self.timer {
            Some(timer) => timer.sleep.as_mut().poll(cx).is_ready(),
            None => self.flows.len() > 0,
        };
        if due {
            self.timer = None;
            let (expired, next) = self.flows.expire(now);
            for (_, session) in expired {
                session.end("idle");
            }
            if let Some(next) = next {
                self.arm(next, cx);
            }
            if self.flows.len() == 0 {
                self.backends = None;
            }
        }
    }

    // Wakes the task at that time, or before.
    fn arm(&mut self, at: Instant, cx: &mut Context<'_>) {
        if self.timer.as_ref().is_some_and(|timer| timer.at <= at) {
            return;
        }
        let mut sleep = Box::pin(sleep_until(at.into()));
        // Polled once, so that it knows whom to wake. If it is due already, the next round sees it.
        if sleep.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
        self.timer = Some(Timer { at, sleep });
    }

    fn count_drop(&self, reason: Loss, n: usize) {
        let drops = &self.listener.shared.metrics.udp_drops;
        drops.with_label_values(&[reason.reason()]).inc_by(n as u64);
    }
}

fn key(batch: &Batch, slot: usize) -> Option<Key> {
    Some((batch.source(slot)?, batch.local(slot)))
}
