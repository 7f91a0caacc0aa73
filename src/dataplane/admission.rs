//! How many flows and listener sockets the data path may have: the descriptor budget, known at start. Past it, new
//! flows are refused and counted, never an abort, never a spin.
//!
//! Shared by all data threads. Counts only; opens and closes nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::Listener;
use super::accounts::Fault;

/// Descriptors left to everything else: log and manifest files, the API watch, admin connections, DNS sockets.
const RESERVE: usize = 256;

/// Descriptors each data thread may use for itself: its epoll and up to 64 pipes.
const PER_THREAD: usize = 132;

/// Two sockets.
const PER_TCP_FLOW: usize = 2;

/// The socket to the backend; the client side is the listener's.
const PER_UDP_FLOW: usize = 1;

/// The budget and what is used of it.
#[derive(Debug)]
pub(super) struct Admission {
    descriptors: usize,
    max_tcp: usize,
    max_udp: usize,
    max_listeners: usize,
    spread_listeners: usize,
    used: AtomicUsize,
    listeners: AtomicUsize,
    tcp: AtomicUsize,
    udp: AtomicUsize,
}

/// The two kinds of flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FlowKind {
    Tcp,
    Udp,
}

impl FlowKind {
    fn descriptors(self) -> usize {
        match self {
            Self::Tcp => PER_TCP_FLOW,
            Self::Udp => PER_UDP_FLOW,
        }
    }
}

impl Admission {
    /// The budget under a limit of open descriptors. A maximum of 0 is derived: as many as there are descriptors for.
    pub(super) fn new(limit: usize, threads: usize, max_tcp: usize, max_udp: usize) -> Self {
        let descriptors = limit.saturating_sub(RESERVE + PER_THREAD * threads).max(64);
        let or = |configured: usize, derived: usize| match configured {
            0 => derived,
            n => n,
        };
        Self {
            descriptors,
            max_tcp: or(max_tcp, descriptors / PER_TCP_FLOW),
            // Idle UDP flows linger until they time out: they may not crowd out TCP.
            max_udp: or(max_udp, descriptors / 2),
            // Listeners without flows would be of no use, and 20,000 descriptors must do for 10,000 of them.
            max_listeners: descriptors / 4 * 3,
            spread_listeners: limit / 8,
            used: AtomicUsize::new(0),
            listeners: AtomicUsize::new(0),
            tcp: AtomicUsize::new(0),
            udp: AtomicUsize::new(0),
        }
    }

    /// Whether there are few enough listener sockets for `n` more of one listener: then it gets one per thread.
    pub(super) fn may_spread(&self, n: usize) -> bool {
        self.listeners.load(Ordering::Relaxed) + n <= self.spread_listeners
    }

    /// Takes descriptors for `n` sockets of listeners, or what belongs to them; false if there are too few left.
    pub(super) fn take_listeners(&self, n: usize) -> bool {
        if !take(&self.listeners, n, self.max_listeners) {
            return false;
        }
        let fits = take(&self.used, n, self.descriptors);
        if !fits {
            self.listeners.fetch_sub(n, Ordering::Relaxed);
        }
        fits
    }

    /// Gives descriptors of listeners back.
    pub(super) fn return_listeners(&self, n: usize) {
        self.listeners.fetch_sub(n, Ordering::Relaxed);
        self.used.fetch_sub(n, Ordering::Relaxed);
    }

    /// How many more UDP flows there may be at this moment.
    pub(super) fn udp_room(&self) -> usize {
        let flows = self
            .max_udp
            .saturating_sub(self.udp.load(Ordering::Relaxed));
        let descriptors = self
            .descriptors
            .saturating_sub(self.used.load(Ordering::Relaxed));
        flows.min(descriptors / PER_UDP_FLOW)
    }

    /// Flows at this moment: TCP, UDP.
    pub(super) fn active(&self) -> (usize, usize) {
        (
            self.tcp.load(Ordering::Relaxed),
            self.udp.load(Ordering::Relaxed),
        )
    }

    fn of(&self, kind: FlowKind) -> (&AtomicUsize, usize) {
        match kind {
            FlowKind::Tcp => (&self.tcp, self.max_tcp),
            FlowKind::Udp => (&self.udp, self.max_udp),
        }
    }

    fn admit(&self, kind: FlowKind) -> bool {
        let (flows, max) = self.of(kind);
        if !take(flows, 1, max) {
            return false;
        }
        let fits = take(&self.used, kind.descriptors(), self.descriptors);
        if !fits {
            flows.fetch_sub(1, Ordering::Relaxed);
        }
        fits
    }

    fn release(&self, kind: FlowKind) {
        self.of(kind).0.fetch_sub(1, Ordering::Relaxed);
        self.used.fetch_sub(kind.descriptors(), Ordering::Relaxed);
    }
}

// Adds `n` unless that would pass `max`. Adding first keeps it to one atomic operation where there is room; two that
// meet at the bound may both be refused, never both admitted.
fn take(counter: &AtomicUsize, n: usize, max: usize) -> bool {
    if counter.fetch_add(n, Ordering::Relaxed) + n <= max {
        return true;
    }
    counter.fetch_sub(n, Ordering::Relaxed);
    false
}

/// A flow within the budget; its descriptors are free again when it is dropped.
#[derive(Debug)]
pub(super) struct Admitted {
    /// Where it arrived.
    pub(super) listener: Arc<Listener>,
    kind: FlowKind,
}

impl Admitted {
    /// Admits a flow; `None` at the bound.
    pub(super) fn new(listener: &Arc<Listener>, kind: FlowKind) -> Option<Self> {
        let shared = &listener.shared;
        if !shared.admission.admit(kind) {
            listener.account().fault(Fault::Limit);
            return None;
        }
        listener.account().opened.add(1);
        Some(Self {
            listener: listener.clone(),
            kind,
        })
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let shared = &self.listener.shared;
        shared.admission.release(self.kind);
        self.listener.account().ended.add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_holds_and_frees_again() {
        let admission = Admission::new(20_000, 2, 2, 1);
        assert!(admission.admit(FlowKind::Tcp));
        assert!(admission.admit(FlowKind::Tcp));
        assert!(!admission.admit(FlowKind::Tcp));
        assert_eq!(admission.udp_room(), 1);
        assert!(admission.admit(FlowKind::Udp));
        assert_eq!(admission.udp_room(), 0);
        assert!(!admission.admit(FlowKind::Udp));
        assert_eq!(admission.active(), (2, 1));
        admission.release(FlowKind::Tcp);
        assert!(admission.admit(FlowKind::Tcp));
    }

    #[test]
    fn all_kinds_share_the_descriptors() {
        let admission = Admission::new(RESERVE + PER_THREAD + 100, 1, 0, 0);
        assert!(admission.take_listeners(74));
        for _ in 0..12 {
            assert!(admission.admit(FlowKind::Tcp));
        }
        assert!(admission.admit(FlowKind::Udp));
        assert!(!admission.admit(FlowKind::Tcp), "one descriptor is not two");
        assert!(admission.admit(FlowKind::Udp));
        assert!(!admission.admit(FlowKind::Udp));
        assert!(!admission.take_listeners(1));
        assert_eq!(admission.active(), (12, 2), "a refusal leaves no trace");
        admission.release(FlowKind::Udp);
        assert!(admission.take_listeners(1));
        assert!(
            !admission.take_listeners(1),
            "three quarters of them at most"
        );
        admission.return_listeners(1);
        assert!(admission.admit(FlowKind::Udp));
    }

    #[test]
    fn listeners_spread_over_threads_while_they_are_few() {
        let admission = Admission::new(1000, 2, 0, 0);
        assert!(admission.take_listeners(100));
        assert!(admission.may_spread(25));
        assert!(!admission.may_spread(26));
    }

    #[test]
    fn twenty_thousand_descriptors_carry_9_500_connections() {
        let admission = Admission::new(20_000, 2, 0, 0);
        for _ in 0..9_500 {
            assert!(admission.admit(FlowKind::Tcp));
        }
    }
}
