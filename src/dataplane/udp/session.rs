//! One UDP flow's link to a backend: choosing it, sending to it, replacing it when it refuses.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use crate::capture::plan::Entry;
use crate::faults::{Carrier, FaultKind, Injection};
use crate::net::batches::{Batch, Received};
use crate::net::descriptors::is_shortage;
use crate::net::sockets::{connected_udp, gather_datagrams};
use crate::routing::{Caller, FrontendKind, Route, Verdict};

use super::super::Listener;
use super::super::accounts::BackendAccount;
use super::super::admission::Admitted;
use super::super::backend::InUse;
use super::super::flow_log::Closed;
use super::super::observer::OpenFlow;
use super::appetite::Appetite;

/// How many backends one datagram is offered at most.
const ATTEMPTS: usize = 4;

/// A backend that has had so many datagrams at a time, of so many bytes on average, sends in bulk: worth a call to have the
/// kernel gather what its sender had cut by the kernel, and the plain `recv` of a lone one.
const BULK: (usize, u64) = (8, 512);

/// A flow's state beyond its place in the table.
#[derive(Debug)]
pub(super) struct Session {
    // `None` after a refusal; the next datagram chooses again.
    link: Option<Link>,
    // Backends that refused since one was last reached.
    tried: Vec<SocketAddr>,
    flow: Admitted,
    client: SocketAddr,
    opened: Instant,
    bytes_to_backend: u64,
    bytes_to_client: u64,
    /// How many messages its backend is asked for.
    pub(super) appetite: Appetite,
    /// It is among those whose backends have sent something.
    pub(super) is_queued: bool,
    // Until when those before occupy the rate that a fault allows.
    busy_until: Option<Instant>,
}

#[derive(Debug)]
struct Link {
    socket: UdpSocket,
    backend: InUse,
    account: Arc<BackendAccount>,
    // The kernel gathers its datagrams.
    gathers: bool,
    // The backend refused, but what it had sent before is not read yet.
    refused: bool,
}

/// Why datagrams are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// Nothing could serve it.
    NoBackend,
    /// The traffic policy keeps it from all backends.
    Policy,
    /// The bound on flows.
    Limit,
    /// No descriptors or memory for a socket.
    Shortage,
    /// A queue of the kernel is full.
    Congested,
    /// The listener's receive buffer was full.
    NoRoom,
    /// Larger than the path to the backend takes.
    TooLarge,
    /// Every backend that was tried refused.
    Unreachable,
    /// Where it came from is no address.
    Malformed,
    /// A fault asks for it.
    Injected,
    /// Any other error.
    Other,
}

impl Loss {
    /// The metric label.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::NoBackend => "no_backend",
            Self::Policy => "policy",
            Self::Limit => "limit",
            Self::Shortage => "shortage",
            Self::Congested => "congested",
            Self::NoRoom => "receive_buffer",
            Self::TooLarge => "too_large",
            Self::Unreachable => "unreachable",
            Self::Malformed => "malformed",
            Self::Injected => "injected",
            Self::Other => "other",
        }
    }

    /// What a failed send means for the datagram, on a socket that stays usable.
    pub(super) fn of(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(nix::libc::EMSGSIZE) => Self::TooLarge,
            _other if error.kind() == io::ErrorKind::WouldBlock || is_shortage(error) => {
                Self::Congested
            }
            _other => Self::Other,
        }
    }
}

impl Session {
    /// A flow without a link yet.
    pub(super) fn new(flow: Admitted, client: SocketAddr, now: Instant) -> Self {
        Self {
            link: None,
            tried: Vec::new(),
            flow,
            client,
            opened: now,
            bytes_to_backend: 0,
            bytes_to_client: 0,
            appetite: Appetite::of_one(),
            is_queued: false,
            busy_until: None,
        }
    }

    /// Receives what the backend has sent; `None` if there is none.
    pub(super) fn receive(
        &self,
        batch: &mut Batch,
        slots: Range<usize>,
    ) -> Option<io::Result<Received>> {
        let link = self.link.as_ref()?;
        Some(if link.gathers {
            batch.receive_gathered_from_peer(&link.socket, slots)
        } else {
            batch.receive_from_peer(&link.socket, slots)
        })
    }

    /// The backend, if there is one.
    pub(super) fn backend(&self) -> Option<SocketAddr> {
        self.link.as_ref().map(|link| link.backend.addr())
    }

    /// Whether there is nothing to remember: no backend has been found.
    pub(super) fn is_void(&self) -> bool {
        self.link.is_none() && self.tried.is_empty()
    }

    /// How it stands.
    pub(super) fn as_open(&self) -> OpenFlow {
        OpenFlow {
            service: self.flow.listener.id.route.clone(),
            client: self.client,
            backend: self.backend(),
            opened: self.opened,
            bytes_to_backend: self.bytes_to_backend,
            bytes_to_client: self.bytes_to_client,
        }
    }

    /// Sends the datagrams in `slots` to the backend, in order. `watch` is called with each new socket before it is
    /// used. What cannot be sent is dropped and reported to `dropped`; what shall be late goes to `delay`, which says
    /// whether it has room.
    pub(super) fn forward(
        &mut self,
        batch: &mut Batch,
        slots: Range<usize>,
        now: Instant,
        watch: &mut dyn FnMut(&UdpSocket) -> io::Result<()>,
        dropped: &mut dyn FnMut(Loss, usize),
        delay: &mut dyn FnMut(Instant, &[u8]) -> bool,
    ) {
        for slot in slots.clone() {
            batch.address_to_peer(slot);
        }
        let mut next = slots.start;
        let mut refusals = 0;
        while next < slots.end {
            let link = match self
                .link
                .take()
                .map_or_else(|| self.link_up(now, watch), Ok)
            {
                Ok(link) => link,
                Err(loss) => return dropped(loss, slots.end - next),
            };
            let sent = match self.injection(&link) {
                None => batch.send(&link.socket, next..slots.end),
                Some(injection) => match self.impair(&injection, batch, next, now) {
                    Ok(Passage::Once) => batch.send(&link.socket, next..next + 1),
                    Ok(Passage::Twice) => batch
                        .send(&link.socket, next..next + 1)
                        .and_then(|_| batch.send(&link.socket, next..next + 1)),
                    Ok(Passage::Late(until, copies))
                        if (0..copies).all(|_| delay(until, batch.bytes(next))) =>
                    {
                        next += 1;
                        self.link = Some(link);
                        continue;
                    }
                    Ok(Passage::Late(..) | Passage::None) => {
                        dropped(Loss::Injected, 1);
                        next += 1;
                        self.link = Some(link);
                        continue;
                    }
                    Err(refused) => Err(refused),
                },
            };
            match sent {
                Ok(n) => {
                    let bytes = (next..next + n).map(|slot| batch.len(slot) as u64).sum();
                    let account = self.flow.listener.account();
                    account.datagrams_to_backends.add(n as u64);
                    link.account.bytes_to_backend.add(bytes);
                    self.bytes_to_backend += bytes;
                    next += n;
                    self.link = Some(link);
                }
                // The refusal of an earlier datagram; this one has not been sent.
                Err(error) if is_refusal(&error) => {
                    self.refused(link);
                    refusals += 1;
                    if refusals == ATTEMPTS {
                        return dropped(Loss::Unreachable, slots.end - next);
                    }
                }
                Err(error) => {
                    dropped(Loss::of(&error), 1);
                    next += 1;
                    self.link = Some(link);
                }
            }
        }
    }

    /// Sends a datagram whose delay is over, if its backend is still there. What the kernel does not take is lost.
    pub(super) fn send_late(&mut self, datagram: &[u8]) {
        if let Some(link) = &self.link
            && link.socket.send(datagram).is_ok()
        {
            let account = self.flow.listener.account();
            account.datagrams_to_backends.add(1);
            link.account.bytes_to_backend.add(datagram.len() as u64);
            self.bytes_to_backend += datagram.len() as u64;
        }
    }

    // Asked for each run of datagrams: a flow may be older than the fault, and outlive it.
    fn injection(&self, link: &Link) -> Option<Arc<Injection>> {
        let shared = &self.flow.listener.shared;
        if !shared.faults.any_between() {
            return None;
        }
        let key = &self.flow.listener.id.route;
        let port = shared.table.load().route(key)?.port;
        link.backend.injection(&shared.faults, key, port)
    }

    // An error is the refusal of the backend, which another one may make good.
    fn impair(
        &mut self,
        injection: &Injection,
        batch: &mut Batch,
        slot: usize,
        now: Instant,
    ) -> io::Result<Passage> {
        let faults = injection.faults();
        if faults.refuse {
            injection.count(FaultKind::Refuse);
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        if faults.blackhole {
            injection.count(FaultKind::Blackhole);
            return Ok(Passage::None);
        }
        let fate = injection.draw(now, Carrier::Udp);
        if fate.loss {
            return Ok(Passage::None);
        }
        if fate.cut {
            batch.set_len(slot, batch.len(slot) / 2);
            batch.address_to_peer(slot);
        }
        let until = self.paced(injection, batch.len(slot), now) + fate.delay;
        Ok(match (until > now, fate.duplicate) {
            (true, twice) => Passage::Late(until, 1 + usize::from(twice)),
            (false, true) => Passage::Twice,
            (false, false) => Passage::Once,
        })
    }

    // When a datagram of that size is through: each waits for those before it.
    fn paced(&mut self, injection: &Injection, bytes: usize, now: Instant) -> Instant {
        let takes = injection.time_for(bytes as u64);
        if takes.is_zero() {
            return now;
        }
        injection.count(FaultKind::Rate);
        let free = self.busy_until.map_or(now, |until| until.max(now));
        *self.busy_until.insert(free + takes)
    }

    /// Counts what came back at a time.
    pub(super) fn returned(&mut self, datagrams: usize, bytes: u64) {
        self.bytes_to_client += bytes;
        // It speaks: whoever refused before may be tried again next time.
        self.tried.clear();
        if let Some(link) = &mut self.link {
            link.account.bytes_to_client.add(bytes);
            link.backend.succeeded();
            if !link.gathers && datagrams >= BULK.0 && bytes >= datagrams as u64 * BULK.1 {
                link.gathers = gather_datagrams(&link.socket).is_ok();
            }
        }
    }

    /// Reading from the backend failed: if it refused, the link ends once it has been drained.
    pub(super) fn receive_failed(&mut self, error: &io::Error) {
        if let Some(link) = &mut self.link {
            link.refused |= is_refusal(error);
        }
    }

    /// The backend refused, but what it had sent before may not be read yet.
    pub(super) fn is_refused(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.refused)
    }

    /// Everything the backend sent has been read.
    pub(super) fn drained(&mut self) {
        if let Some(link) = self.link.take_if(|link| link.refused) {
            self.refused(link);
        }
    }

    /// Ends the flow; writes its line.
    pub(super) fn end(self, reason: &'static str) {
        let closed = Closed {
            service: &self.flow.listener.id.route,
            client: self.client,
            backend: self.backend(),
            bytes_to_backend: self.bytes_to_backend,
            bytes_to_client: self.bytes_to_client,
            opened: self.opened,
            reason,
        };
        closed.log();
    }

    fn refused(&mut self, link: Link) {
        let listener = &self.flow.listener;
        link.backend
            .failed(&listener.id.route, &listener.shared.metrics);
        link.account.failures.add(1);
        tracing::debug!(listener = %self.flow.listener.id, backend = %link.backend.addr(), "backend refused a datagram");
        if self.tried.len() < ATTEMPTS {
            self.tried.push(link.backend.addr());
        }
    }

    fn link_up(
        &mut self,
        now: Instant,
        watch: &mut dyn FnMut(&UdpSocket) -> io::Result<()>,
    ) -> Result<Link, Loss> {
        let listener = &self.flow.listener;
        if !listener.hears(self.client.ip()) {
            return Err(Loss::Policy);
        }
        let table = listener.shared.table.load();
        let route = table.route(&listener.id.route).ok_or(Loss::NoBackend)?;
        let caller = Caller {
            ip: self.client.ip(),
            origin: listener.origin(self.client.ip(), None, &table),
            kind: kind(listener),
        };
        let backends = match route.verdict(caller.kind, caller.origin) {
            Verdict::Serve(backends) => backends,
            Verdict::Refuse => return Err(Loss::NoBackend),
            Verdict::Silent => return Err(Loss::Policy),
        };
        let client = self.client.ip().to_canonical();
        let pick = |tried: &[SocketAddr]| InUse::pick(route, backends, client, tried, now);
        // When all have refused, they are asked again: a flow is never lost for good.
        let backend = pick(&self.tried)
            .or_else(|| {
                self.tried.clear();
                pick(&[])
            })
            .ok_or(Loss::NoBackend)?;
        let source = table.node.shown_source(route, caller, backend.addr().ip());
        let socket = connected_udp(backend.addr(), source)
            .and_then(|socket| watch(&socket).map(|()| socket))
            .map_err(|error| {
                tracing::debug!(listener = %listener.id, backend = %backend.addr(), %error, "no socket");
                if is_refusal(&error) { Loss::Unreachable } else { Loss::Shortage }
            })?;
        let account = listener.account().backend(backend.addr());
        account.flows.add(1);
        Ok(Link {
            socket,
            backend,
            account,
            gathers: false,
            refused: false,
        })
    }
}

// What becomes of one datagram on purpose.
enum Passage {
    None,
    Once,
    Twice,
    Late(Instant, usize),
}

/// After how long without a datagram flows of that route end.
pub(super) fn idle_timeout(listener: &Arc<Listener>, route: &Route) -> std::time::Duration {
    let default = listener.shared.udp_idle_timeout;
    route.knobs.udp_idle_timeout.unwrap_or(default)
}

// Redirected datagrams do not tell where they were going; their listener does, as far as policies care.
fn kind(listener: &Listener) -> FrontendKind {
    match listener.id.entry {
        Entry::At(_, kind) => kind,
        Entry::All | Entry::Diverted | Entry::ClusterIp => FrontendKind::ClusterIp,
        Entry::External => FrontendKind::NodePort,
    }
}

// What ICMP reports to a connected socket: the datagram before did not arrive.
fn is_refusal(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::PermissionDenied
    )
}
