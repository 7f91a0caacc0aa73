//! What flows carry and how they fare, per service port and per backend. Counting costs no more than a plain addition:
//! every figure is written by one data thread alone, and the threads' figures are added up only when somebody asks.
//!
//! An account belongs to one listener on one thread and is opened by its first flow. Bounded by what exists: listeners, and
//! of their backends those that the table has or that flows still use. What is gone is added to what is kept of its
//! service port, and that to the totals once the service port is gone too, so no total ever goes back.

mod exposition;
mod figures;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use crate::model::ServicePortKey;
use crate::routing::Published;

use super::observer::Carried;
use figures::{BackendFigures, ServiceFigures};

pub(super) use exposition::Exposition;

/// The upper ends of the buckets in which the time to reach a backend is counted, in microseconds. A last one takes
/// the rest.
pub(super) const BUCKETS: [u64; 11] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 50_000, 250_000, 1_000_000, 4_000_000,
];

/// A figure that only grows, and that one thread alone writes.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    /// Adds to it. Not one atomic operation, because nobody else adds.
    pub(super) fn add(&self, n: u64) {
        self.0
            .store(self.0.load(Ordering::Relaxed) + n, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Why a flow was not served, or ended without an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It did not come through capture.
    Uncaptured,
    /// Nothing could serve it.
    NoBackend,
    /// The traffic policy kept it from all backends.
    Policy,
    /// Its Service had as many connections as it may have.
    MaxConnections,
    /// The process had as many flows as it may have.
    Limit,
    /// No backend could be reached.
    DialFailed,
    /// Its client was gone before a backend was reached.
    ClientGone,
    /// No descriptors or memory.
    Shortage,
    /// Its client reset it.
    ClientReset,
    /// Its backend reset it.
    BackendReset,
    /// It was reset on purpose.
    Injected,
}

impl Fault {
    const ALL: [Self; 11] = [
        Self::Uncaptured,
        Self::NoBackend,
        Self::Policy,
        Self::MaxConnections,
        Self::Limit,
        Self::DialFailed,
        Self::ClientGone,
        Self::Shortage,
        Self::ClientReset,
        Self::BackendReset,
        Self::Injected,
    ];

    /// The metric label and flow-log word.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Uncaptured => "uncaptured",
            Self::NoBackend => "no_backend",
            Self::Policy => "policy",
            Self::MaxConnections => "max_connections",
            Self::Limit => "limit",
            Self::DialFailed => "dial_failed",
            Self::ClientGone => "client_gone",
            Self::Shortage => "shortage",
            Self::ClientReset => "client_reset",
            Self::BackendReset => "backend_reset",
            Self::Injected => "injected",
        }
    }
}

/// One listener's figures on one thread.
#[derive(Debug)]
pub(super) struct ServiceAccount {
    route: ServicePortKey,
    /// Flows that were admitted.
    pub(super) opened: Count,
    /// Of these, how many have ended.
    pub(super) ended: Count,
    /// UDP datagrams forwarded.
    pub(super) datagrams_to_backends: Count,
    /// UDP datagrams forwarded.
    pub(super) datagrams_to_clients: Count,
    faults: [Count; Fault::ALL.len()],
    // Locked once per flow, and by whoever asks for figures.
    backends: Mutex<HashMap<SocketAddr, Arc<BackendAccount>>>,
}

/// One backend's figures as one listener on one thread sees it.
#[derive(Debug, Default)]
pub(super) struct BackendAccount {
    /// Flows that reached it.
    pub(super) flows: Count,
    /// Payload bytes that went to it.
    pub(super) bytes_to_backend: Count,
    /// Payload bytes that came from it.
    pub(super) bytes_to_client: Count,
    /// Attempts to reach it that failed, and refusals of datagrams.
    pub(super) failures: Count,
    reached_within: [Count; BUCKETS.len() + 1],
    reaching_us: Count,
}

impl ServiceAccount {
    fn new(route: ServicePortKey) -> Self {
        Self {
            route,
            opened: Count::default(),
            ended: Count::default(),
            datagrams_to_backends: Count::default(),
            datagrams_to_clients: Count::default(),
            faults: Default::default(),
            backends: Mutex::default(),
        }
    }

    /// A flow was not served, or ended without an end.
    pub(super) fn fault(&self, fault: Fault) {
        self.faults[fault as usize].add(1);
    }

    /// The account of one of its backends.
    pub(super) fn backend(&self, addr: SocketAddr) -> Arc<BackendAccount> {
        self.backends().entry(addr).or_default().clone()
    }

    fn backends(&self) -> MutexGuard<'_, HashMap<SocketAddr, Arc<BackendAccount>>> {
        self.backends.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BackendAccount {
    /// A flow has reached it, after so long.
    pub(super) fn reached(&self, after: Duration) {
        let us = u64::try_from(after.as_micros()).unwrap_or(u64::MAX);
        let bucket = BUCKETS.partition_point(|upper| *upper < us);
        self.reached_within[bucket].add(1);
        self.reaching_us.add(us);
        self.flows.add(1);
    }
}

/// All accounts there are, and what is kept of those that are no more.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    table: OnceLock<Published>,
    ledger: Mutex<Ledger>,
}

#[derive(Debug, Default)]
struct Ledger {
    open: Vec<Arc<ServiceAccount>>,
    closed: HashMap<ServicePortKey, ServiceFigures>,
    // Service ports that are gone, all together: TCP, UDP.
    gone: [ServiceFigures; 2],
}

impl Accounts {
    /// Whose routes say which service ports and backends there are.
    pub(super) fn follow(&self, table: Published) {
        let _stays_the_first = self.table.set(table);
    }

    /// Opens an account.
    pub(super) fn open(&self, route: ServicePortKey) -> Arc<ServiceAccount> {
        let account = Arc::new(ServiceAccount::new(route));
        self.ledger().open.push(account.clone());
        account
    }

    // All figures, by service port, and those of the service ports that are gone: TCP, UDP. Closes accounts that nobody
    // uses any more.
    fn figures(&self) -> (HashMap<ServicePortKey, ServiceFigures>, [ServiceFigures; 2]) {
        let table = self.table.get().map(Published::load_full);
        let mut ledger = self.ledger();
        let Ledger { open, closed, gone } = &mut *ledger;
        open.retain(|account| {
            let route = table.as_ref().and_then(|table| table.route(&account.route));
            let is_used = Arc::strong_count(account) > 1;
            let mut backends = account.backends();
            backends.retain(|addr, backend| {
                let stays = is_used
                    && (Arc::strong_count(backend) > 1
                        || route.is_some_and(|route| route.still_serves(*addr)));
                if !stays {
                    let kept = closed.entry(account.route.clone()).or_default();
                    kept.of_former_backends.add(&BackendFigures::of(backend));
                }
                stays
            });
            drop(backends);
            if !is_used {
                let kept = closed.entry(account.route.clone()).or_default();
                kept.add(&ServiceFigures::of(account));
            }
            is_used
        });
        let mut figures: HashMap<ServicePortKey, ServiceFigures> = HashMap::new();
        for account in open.iter() {
            let figures = figures.entry(account.route.clone()).or_default();
            figures.add(&ServiceFigures::of(account));
        }
        closed.retain(|route, kept| {
            let exists = table
                .as_ref()
                .is_some_and(|table| table.route(route).is_some());
            if exists || figures.contains_key(route) {
                figures.entry(route.clone()).or_default().add(kept);
                return true;
            }
            gone[figures::index(route.protocol)].add(kept);
            false
        });
        (figures, gone.clone())
    }

    /// What went to each backend.
    pub(super) fn carried(&self) -> HashMap<(ServicePortKey, SocketAddr), Carried> {
        let (by_key, _gone) = self.figures();
        let each = by_key.into_iter().flat_map(|(key, figures)| {
            let backends = figures.backends.into_iter();
            backends.map(move |(addr, backend)| ((key.clone(), addr), backend.carried()))
        });
        each.collect()
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
