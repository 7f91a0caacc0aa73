//! What is known of a backend that only the data path can know: its flows, and how its dials went.
//!
//! Shared by all data threads and all tables in which the backend's address stays. Counts only; what follows from a
//! failure is `held_back`'s.

use std::sync::atomic::{AtomicU64, Ordering};

use super::held_back::Conduct;

/// Figures of a backend that are born on the data path.
#[derive(Debug, Default)]
pub struct Live {
    active: AtomicU64,
    flows_total: AtomicU64,
    failures_total: AtomicU64,
    pub(super) conduct: Conduct,
}

impl Live {
    /// A flow begins.
    pub fn begin(&self) {
        self.active.fetch_add(1, Ordering::Relaxed);
        self.flows_total.fetch_add(1, Ordering::Relaxed);
    }

    /// A flow that had begun ends.
    pub fn end(&self) {
        self.active.fetch_sub(1, Ordering::Relaxed);
    }

    /// It could not be reached.
    pub(super) fn fail(&self) {
        self.failures_total.fetch_add(1, Ordering::Relaxed);
    }

    /// Flows at this moment.
    pub fn active(&self) -> u64 {
        self.active.load(Ordering::Relaxed)
    }

    /// Flows since the backend appeared.
    pub fn flows_total(&self) -> u64 {
        self.flows_total.load(Ordering::Relaxed)
    }

    /// Failed dials since the backend appeared.
    pub fn failures_total(&self) -> u64 {
        self.failures_total.load(Ordering::Relaxed)
    }
}
