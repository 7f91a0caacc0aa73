//! The seam between a route and the algorithm that picks among its backends.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::model::Algorithm;

use super::{Backend, Warming};

/// One choice to be made for one new flow.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a> {
    /// The client's address, which affinity is keyed by.
    pub client: IpAddr,
    /// The candidates: one of a route's two sets, in the route's shuffled order.
    pub backends: &'a [Arc<Backend>],
    /// Backends that this flow has tried already; never chosen again.
    pub tried: &'a [SocketAddr],
    /// Candidates that are passed over this time, by index; empty = none.
    pub passed_over: &'a [bool],
    /// How new candidates warm up; `None` where none does.
    pub warming: Option<Warming<'a>>,
    /// The time of the choice.
    pub now: Instant,
}

impl Choice<'_> {
    /// Whether the candidate at `index` may be chosen.
    pub fn is_open(&self, index: usize) -> bool {
        !self.is_passed_over(index) && !self.tried.contains(&self.backends[index].addr)
    }

    /// Whether the candidate at `index` is passed over this time.
    pub fn is_passed_over(&self, index: usize) -> bool {
        self.passed_over.get(index).is_some_and(|out| *out)
    }

    /// Whether every candidate may be chosen.
    pub fn are_all_open(&self) -> bool {
        self.tried.is_empty() && self.passed_over.is_empty()
    }
}

/// An algorithm together with its state for one service port. Shared by all data threads and by both candidate sets;
/// survives table changes.
pub trait Balancer: fmt::Debug + Send + Sync {
    /// The index of the chosen candidate; `None` if there is none left to try.
    fn pick(&self, choice: &Choice<'_>) -> Option<usize>;

    /// Forgets what has expired and what points to a backend that `keeps` rejects. Called on table changes and now
    /// and then in between.
    fn sweep(&self, _now: Instant, _keeps: &dyn Fn(SocketAddr) -> bool) {}

    /// How many clients it remembers; all zero for an algorithm without memory of clients.
    fn memory(&self) -> ClientMemory {
        ClientMemory::default()
    }
}

/// Figures of a balancer that sends clients back to where they were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientMemory {
    /// Clients remembered at this moment, expired ones that no sweep has found yet included.
    pub clients: usize,
    /// Clients forgotten before their time, or never remembered, because the memory was full.
    pub evicted_total: u64,
}

/// Makes the balancer of a new or reconfigured service port.
pub trait BalancerFactory: Send + Sync {
    /// A fresh balancer; with `affinity`, one that sends a client back to its backend for that long.
    fn make(&self, algorithm: Algorithm, affinity: Option<Duration>) -> Arc<dyn Balancer>;
}
